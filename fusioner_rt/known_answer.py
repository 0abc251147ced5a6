"""The bundle's known answer (docs/bundle.md): seeded pictures, and what the CPU path makes of them.

A backend that only agrees with itself proves nothing: a plan of zeros, or of one picture for a whole batch, does. So each
but the CPU path is compared with this answer when it is opened, within what its precision explains.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .bundle import Bundle, rebuild
from .errors import AnswerWrong, ManifestInvalid
from .executor import Executor, Request, Waiting, untimed

THRESHOLD = 0.5


@dataclass(frozen=True, eq=False)
class KnownAnswer:
    """pictures: (B, H, W, 3) uint8. input_size: (h', w'), in which the network sees each. words: K names.

    vectors: (K, t) float32, theirs. cosines: (B, K, h, w) float32, between words and every `step`-th low-resolution
    feature of a row and column. labels: (B, H, W) uint16, at THRESHOLD.
    bounds: by precision, `mean` and `largest`: how far the cosines of a word in a picture may be off, on average and at
    worst; `labels`: the share of a picture's pixels that may differ.
    """

    pictures: np.ndarray
    input_size: tuple[int, int]
    words: tuple[str, ...]
    vectors: np.ndarray
    step: int
    cosines: np.ndarray
    labels: np.ndarray
    bounds: Mapping[str, Mapping[str, float]]

    @property
    def request(self) -> Request:
        return Request(self.vectors, THRESHOLD, "joint", False)

    def waiting(self, executor: Executor) -> list[Waiting]:
        """The pictures, prepared."""
        size = (self.pictures.shape[1], self.pictures.shape[2])
        return [Waiting(executor.prepare(rgb, self.input_size), self.input_size, size) for rgb in self.pictures]


def read(bundle: Bundle) -> KnownAnswer | None:
    """None for a bundle of an earlier version, which has none.

    Raises ManifestInvalid, and BundleFileMissing or BundleFileAltered for a file that is no longer the bundle's.
    """
    if "known_answer" not in bundle.manifest:
        return None
    entry = bundle.manifest["known_answer"]
    path = bundle.folder / entry["file"]
    try:
        with np.load(io.BytesIO(bundle.read_again(path) or path.read_bytes()), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ("pictures", "vectors", "cosines", "labels")}
        height, width = (int(edge) for edge in entry["input_size"])
        bounds = {
            str(precision): {name: float(found[name]) for name in ("mean", "largest", "labels")}
            for precision, found in entry["bounds"].items()
        }
        words, step = tuple(map(str, entry["words"])), int(entry["step"])
        pictures, labels, cosines = arrays["pictures"], arrays["labels"], arrays["cosines"]
        if not (
            pictures.dtype == np.uint8 and pictures.shape[-1] == 3 and labels.shape == pictures.shape[:-1]
            and cosines.shape[:2] == (len(pictures), len(words)) and len(arrays["vectors"]) == len(words) and step > 0
        ):  # fmt: skip
            raise ValueError({name: array.shape for name, array in arrays.items()})
        return KnownAnswer(input_size=(height, width), words=words, step=step, bounds=bounds, **arrays)
    except (KeyError, TypeError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ManifestInvalid(f"is no known answer ({error!r})", rebuild(bundle.folder), subject=path) from None


def cosines(scores: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Of low-resolution maps (B, K, h, w) and (B, 5, h, w): (B, K, h, w), free of their scale; of a zero feature 0."""
    length = np.sqrt(gram[:, :1])
    return np.divide(scores, length, out=np.zeros_like(scores), where=length != 0)


def precision_of(bundle: Bundle, backend: str) -> str:
    """That of a backend's products: its plans' own, else the graphs'."""
    entries = [entry for entry in bundle.manifest.get("engines", []) if entry["flavour"] == backend]
    own = [str(entry["precision"]) for entry in entries if entry["graph"] == "image_fusion" and "precision" in entry]
    return own[0] if own else bundle.precision


def compare(bundle: Bundle, answer: KnownAnswer, executor: Executor, backend: str) -> None:
    """Every picture alone, then together where the executor takes several: cosines and labels. Raises AnswerWrong."""
    precision, every = precision_of(bundle, backend), answer.waiting(executor)
    if precision not in answer.bounds:
        raise ManifestInvalid(
            f"its known answer has no bounds in {precision}, which backend {backend} computes in",
            rebuild(bundle.folder),
            subject=bundle.folder,
        )
    allowed = answer.bounds[precision]
    again = f"build its plans again: {bundle.plans_command(backend)}, or " if backend.startswith("tensorrt") else ""
    groups: list[Sequence[int]] = [[index] for index in range(len(every))]
    if executor.most > 1:
        groups.append(range(min(len(every), executor.most)))
    for members in groups:
        beside = f", in a batch of {len(members)}" if len(members) > 1 else ""
        group = [every[index] for index in members]
        for index, (scores, gram) in zip(members, executor.maps(group, answer.request), strict=True):
            off = errors(cosines(scores, gram)[0, :, :: answer.step, :: answer.step], answer.cosines[index])
            worst = np.maximum(*(off[name] / allowed[name] for name in off)).argmax()
            if not all(off[name][worst] <= allowed[name] for name in off):
                raise AnswerWrong(
                    f"its cosines of {answer.words[worst]!r} in picture {index + 1} of the bundle's known "
                    f"answer{beside} are off by {off['mean'][worst]:.2g} on average and "
                    f"{off['largest'][worst]:.2g} at worst, {allowed['mean']:.2g} and "
                    f"{allowed['largest']:.2g} are allowed in {precision}",
                    f"{again}choose another backend",
                    subject=f"backend {backend}",
                )
        for index, found in zip(members, executor.run(group, answer.request, untimed), strict=True):
            share = float((found.labels != answer.labels[index]).mean())
            if not share <= allowed["labels"]:
                raise AnswerWrong(
                    f"its labels of picture {index + 1} of the bundle's known answer{beside} differ in "
                    f"{share:.2%} of the pixels, {allowed['labels']:.2%} is allowed in {precision}",
                    f"{again}choose another backend",
                    subject=f"backend {backend}",
                )


def errors(found: np.ndarray, expected: np.ndarray) -> dict[str, np.ndarray]:
    """`mean` and `largest` difference of every word's cosines, (K, h, w) both: (K,) each, infinite where one is no number."""
    if found.shape != expected.shape:
        return dict.fromkeys(("mean", "largest"), np.full(len(expected), np.inf))
    apart = np.abs(found - expected)
    apart[~np.isfinite(apart)] = np.inf
    return {"mean": apart.mean(axis=(1, 2)), "largest": apart.max(axis=(1, 2))}
