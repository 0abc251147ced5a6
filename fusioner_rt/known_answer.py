"""The bundle's known answer (docs/bundle.md): seeded pictures and the CPU path's results for them.

Every backend except the CPU path is compared with it when it is opened, within bounds for its precision. A wrong plan,
such as one of zeros, may agree with itself; it does not agree with the known answer.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .bundle import Bundle
from .cures import plans_command, rebuild
from .errors import AnswerWrong, ManifestInvalid
from .executor_interface import Executor, Request, Waiting, untimed


@dataclass(frozen=True, eq=False)
class KnownAnswer:
    """pictures: (B, H, W, 3) uint8. input_size: (h', w') of the network. words: K names. vectors: (K, t) float32.

    cosines: (B, K, h, w) float32, between words and every `step`-th low-resolution feature of a row and column.
    labels: (B, H, W) uint16, at `threshold`, the bundle's.
    bounds: by precision: `mean` and `largest`, the mean and maximum error of a word's cosines in a picture; `labels`, the
    share of a picture's pixels that may differ.
    """

    pictures: np.ndarray
    input_size: tuple[int, int]
    words: tuple[str, ...]
    vectors: np.ndarray
    step: int
    cosines: np.ndarray
    labels: np.ndarray
    bounds: Mapping[str, Mapping[str, float]]
    threshold: float

    def check(self) -> None:
        """Raises ValueError where the arrays do not fit each other."""
        pictures, words = len(self.pictures), len(self.words)
        if not (
            self.pictures.dtype == np.uint8 and self.pictures.shape[-1] == 3
            and self.labels.shape == self.pictures.shape[:-1] and self.cosines.shape[:2] == (pictures, words)
            and len(self.vectors) == words and self.step > 0
        ):  # fmt: skip
            raise ValueError({name: value.shape for name, value in vars(self).items() if isinstance(value, np.ndarray)})

    @property
    def request(self) -> Request:
        return Request(self.vectors, self.threshold, "joint", False)

    def waiting(self, executor: Executor) -> list[Waiting]:
        """The pictures, prepared."""
        size = (self.pictures.shape[1], self.pictures.shape[2])
        return [Waiting(executor.prepare(rgb, self.input_size), self.input_size, size) for rgb in self.pictures]


def read(bundle: Bundle) -> KnownAnswer:
    """Read the known answer. Raises ManifestInvalid, BundleFileMissing, BundleFileAltered."""
    entry = bundle.known_answer
    if entry is None:
        raise ManifestInvalid("has no known answer", rebuild(bundle.folder), subject=bundle.folder)
    try:
        with np.load(io.BytesIO(bundle.read(entry.file)), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ("pictures", "vectors", "cosines", "labels")}
        answer = KnownAnswer(
            words=entry.words, input_size=entry.input_size, step=entry.step, bounds=entry.bounds,
            threshold=bundle.threshold, **arrays,
        )  # fmt: skip
        answer.check()
        return answer
    except (KeyError, TypeError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ManifestInvalid(f"is no known answer ({error!r})", rebuild(bundle.folder), subject=entry.file) from None


def cosines(scores: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """scores (B, K, h, w) divided by the lengths of features, from gram (B, 5, h, w); 0 for a zero feature."""
    length = np.sqrt(gram[:, :1])
    return np.divide(scores, length, out=np.zeros_like(scores), where=length != 0)


def precision_of(bundle: Bundle, backend: str) -> str:
    """Precision of a backend's products: of its plans, else of the graphs."""
    plans = (plan.precision for plan in bundle.plans if (plan.flavour, plan.graph) == (backend, "image_fusion"))
    return next(plans, bundle.precision)


def compare(bundle: Bundle, answer: KnownAnswer, executor: Executor, backend: str) -> None:
    """Compare cosines and labels of each picture alone, then of all in a group where the executor takes several.

    Raises AnswerWrong.
    """
    precision, waiting = precision_of(bundle, backend), answer.waiting(executor)
    if precision not in answer.bounds:
        raise ManifestInvalid(
            f"its known answer has no bounds in {precision}, which backend {backend} computes in",
            rebuild(bundle.folder),
            subject=bundle.folder,
        )
    allowed = answer.bounds[precision]
    command = plans_command(bundle.folder, backend)
    again = f"build its plans again: {command}, or " if backend.startswith("tensorrt") else ""
    groups: list[Sequence[int]] = [[index] for index in range(len(waiting))]
    if executor.max_group > 1:
        groups.append(range(min(len(waiting), executor.max_group)))
    for members in groups:
        batch = f", in a batch of {len(members)}" if len(members) > 1 else ""
        group = [waiting[index] for index in members]
        for index, (scores, gram) in zip(members, executor.maps(group, answer.request), strict=True):
            apart = errors(cosines(scores, gram)[0, :, :: answer.step, :: answer.step], answer.cosines[index])
            worst = np.maximum(*(apart[name] / allowed[name] for name in apart)).argmax()
            if not all(apart[name][worst] <= allowed[name] for name in apart):
                raise AnswerWrong(
                    f"its cosines of {answer.words[worst]!r} in picture {index + 1} of the bundle's known "
                    f"answer{batch} are off by {apart['mean'][worst]:.2g} on average and "
                    f"{apart['largest'][worst]:.2g} at worst, {allowed['mean']:.2g} and "
                    f"{allowed['largest']:.2g} are allowed in {precision}",
                    f"{again}choose another backend",
                    subject=f"backend {backend}",
                )
        for index, result in zip(members, executor.run(group, answer.request, untimed), strict=True):
            share = float((result.labels != answer.labels[index]).mean())
            if not share <= allowed["labels"]:
                raise AnswerWrong(
                    f"its labels of picture {index + 1} of the bundle's known answer{batch} differ in "
                    f"{share:.2%} of the pixels, {allowed['labels']:.2%} is allowed in {precision}",
                    f"{again}choose another backend",
                    subject=f"backend {backend}",
                )


def errors(actual: np.ndarray, expected: np.ndarray) -> dict[str, np.ndarray]:
    """`mean` and `largest` error of each word's cosines, (K,) each; infinite where a cosine is not finite.

    actual, expected: (K, h, w).
    """
    if actual.shape != expected.shape:
        return dict.fromkeys(("mean", "largest"), np.full(len(expected), np.inf))
    apart = np.abs(actual - expected)
    apart[~np.isfinite(apart)] = np.inf
    return {"mean": apart.mean(axis=(1, 2)), "largest": apart.max(axis=(1, 2))}
