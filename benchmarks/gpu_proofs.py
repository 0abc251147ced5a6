"""The bundle's kernels on a GPU against their definitions on the CPU, in numpy alone: neither torch nor Triton is needed.

Raises Wrong where something differs by more than rounding. Used by benchmarks/gpu_check.py and by tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fusioner_rt.device_array import DeviceArray
from fusioner_rt.gpu.driver import Device, Memory, Stream
from fusioner_rt.gpu.kernel_contract import SCORINGS
from fusioner_rt.gpu.kernel_launcher import Kernels
from fusioner_rt.gpu.mask_head import CudaMaskHead
from fusioner_rt.gpu.preprocess import CudaPreprocess
from fusioner_rt.preprocess import Preprocessing

TEMPERATURE, THRESHOLD = 0.07, 0.5
CANCELLED = 2.0**-22  # as kernels.reference
CONFIDENCES = {"float32": 0.0, "float16": 2.0**-12}
"""What rounding to the dtype may move a probability by: half of the step below 1."""

ResizeCase = tuple[int, tuple[int, int], tuple[int, int]]  # pictures, H×W, h×w
SMALL_RESIZES: list[ResizeCase] = [
    (2, (37, 53), (24, 40)),  # both axes, the rows first
    (1, (90, 11), (8, 13)),  # the columns first
    (3, (21, 17), (21, 40)),  # one axis
    (2, (30, 7), (9, 7)),
    (2, (9, 14), (9, 14)),  # none
]
LARGE_RESIZES: list[ResizeCase] = [
    (2, (3001, 4003), (288, 384)),
    (4, (427, 640), (256, 384)),
    (1, (4000, 700), (544, 96)),
    (1, (5, 7), (801, 1111)),
]


class Wrong(AssertionError):
    """A kernel computes something else than its definition."""


@dataclass(frozen=True)
class MaskCase:
    """features (pictures, *low, channels) and `words` words of `dtype`, to label maps of `size` by `scoring`."""

    dtype: str
    words: int
    pictures: int = 1
    low: tuple[int, int] = (61, 83)
    channels: int = 256
    size: tuple[int, int] = (517, 773)
    scoring: str = "sigmoid"

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """float32, of values that the dtype has. Always the same ones for the same case."""
        random = np.random.default_rng(self.words)
        features = random.standard_normal((self.pictures, *self.low, self.channels)).astype(np.float32)
        words = random.standard_normal((self.pictures, self.words, self.channels)).astype(np.float32)
        return rounded(features, self.dtype), rounded(words, self.dtype)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values, as near as the dtype has them."""
    if dtype == "bfloat16":
        return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    return values.astype(dtype).astype(np.float32)


def as_bytes(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values of the dtype, as they lie in memory."""
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def score_maps(features: np.ndarray, words: np.ndarray, kind: type) -> tuple[np.ndarray, np.ndarray]:
    """Stage 1 as kernels.reference defines it, computed in `kind`, without its scaling."""
    features, words = features.astype(kind), words.astype(kind)
    unit = words / np.linalg.norm(words, axis=-1, keepdims=True)
    right = np.concatenate([features[:, :, 1:], features[:, :, -1:]], axis=2)
    down, diagonal = (np.concatenate([one[:, 1:], one[:, -1:]], axis=1) for one in (features, right))
    pairs = ((features, features), (features, right), (features, down), (features, diagonal), (right, down))
    gram = np.stack([(one * other).sum(axis=-1) for one, other in pairs], axis=1)
    pictures, height, width, channels = features.shape
    scores = unit @ features.reshape(pictures, -1, channels).swapaxes(1, 2)
    return scores.reshape(pictures, -1, height, width), gram


def probabilities(scores: np.ndarray, gram: np.ndarray, size: tuple[int, int], scoring: str = "sigmoid") -> np.ndarray:
    """Stage 2 likewise: (B, K, H, W) in the dtype of the maps."""
    kind = scores.dtype.type
    (upper, lower, y), (left, right, x) = (
        _taps(low, high, kind) for low, high in zip(scores.shape[-2:], size, strict=True)
    )
    one_y, y, one_x = (1 - y)[:, None], y[:, None], 1 - x

    def between(maps: np.ndarray) -> np.ndarray:
        rows = one_y * maps[..., upper, :] + y * maps[..., lower, :]
        return one_x * rows[..., left] + x * rows[..., right]

    itself, beside, below, diagonal, crossed = (gram[:, index] for index in range(5))
    along = one_x**2 * itself[..., left] + x**2 * itself[..., right] + 2 * one_x * x * beside[..., left]
    cross = one_x**2 * below[..., left] + x**2 * below[..., right] + one_x * x * (diagonal + crossed)[..., left]
    length = one_y**2 * along[:, upper] + y**2 * along[:, lower] + 2 * one_y * y * cross[:, upper]
    length = np.maximum(length, kind(CANCELLED) * between(itself))
    cosine = between(scores) / np.sqrt(length)[:, None]
    if scoring == "softmax":
        powers = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / kind(TEMPERATURE))
        return powers / powers.sum(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        return kind(1) / (kind(1) + np.exp(-cosine / kind(TEMPERATURE)))


def mask_head(kernels: Kernels, case: MaskCase, repeats: int = 1) -> dict[str, float]:
    """Run a case on every kernel of stage 2 that the bundle holds, and compare; then again, bit for bit; then with one
    feature that is NaN. Returns errors, and raises Wrong.
    """
    features, words = case.inputs()
    exact, plain = (
        probabilities(*score_maps(features, words, kind), case.size, case.scoring) for kind in (np.float64, np.float32)
    )  # at most twice what plain arithmetic errs in float32, as tests/kernels demand
    allowed = 2 * float(np.abs(plain - exact).max()) + float(np.finfo(np.float32).eps)
    found = launched(kernels, case, features, words)
    off = _compare(case, found, exact, allowed)
    best = exact.max(axis=1)
    expected = np.where(best > THRESHOLD, exact.argmax(axis=1) + 1, 0)
    second = np.partition(exact, -2, axis=1)[:, -2] if case.words > 1 else np.zeros_like(best)
    sure = (np.abs(best - THRESHOLD) > allowed) & (best - second > 2 * allowed)
    for dtype in CONFIDENCES:
        wrong = int((found[f"labels.{dtype}"] != expected)[sure].sum())
        if wrong:
            raise Wrong(f"{case}: {wrong} labels differ that no rounding explains, with {dtype} confidence")
    if not (found["finite"] == 1).all():
        raise Wrong(f"{case}: the flag says that finite maps are not")
    for number in range(1, repeats):
        again = launched(kernels, case, features, words)
        for name, array in found.items():
            if not np.array_equal(array, again[name]):
                raise Wrong(f"{case}: {name} of run {number + 1} differs from the first")
    features[0, -1, -1, -1] = np.nan
    broken = launched(kernels, case, features, words)
    if broken["finite"][0] != 0 or (case.pictures > 1 and broken["finite"][1] != 1):
        raise Wrong(f"{case}: the flag does not tell which picture has NaN")
    for dtype in CONFIDENCES:
        if not np.isnan(broken[f"confidence.{dtype}"][0, -1, -1]) or broken[f"labels.{dtype}"][0, -1, -1] != 0:
            raise Wrong(f"{case}: a NaN feature does not give label 0 and {dtype} confidence NaN")
    return {"error": off, "allowed": allowed, "unsure": float(1 - sure.mean())}


def _compare(case: MaskCase, found: dict[str, np.ndarray], exact: np.ndarray, allowed: float) -> float:
    """Confidence, probabilities and masks with the exact probabilities; returns the error of float32 confidence."""
    errors = {}
    for dtype, rounding in CONFIDENCES.items():
        for name, truth in (("confidence", exact.max(axis=1)), ("probabilities", exact)):
            if f"{name}.{dtype}" in found:
                off = errors[name, dtype] = float(np.abs(found[f"{name}.{dtype}"] - truth).max())
                if not off <= allowed + rounding:
                    raise Wrong(f"{case}: {dtype} {name} is off by {off:.3g}, {allowed + rounding:.3g} is allowed")
    if "masks" in found:
        bits = np.unpackbits(found["masks"].view(np.uint8), axis=-1, bitorder="little")[..., : case.size[1]]
        wrong = int(((bits == 1) != (exact > THRESHOLD))[np.abs(exact - THRESHOLD) > allowed].sum())
        if wrong:
            raise Wrong(f"{case}: {wrong} bits of masks differ that no rounding explains")
    return errors["confidence", "float32"]


def launched(kernels: Kernels, case: MaskCase, features: np.ndarray, words: np.ndarray) -> dict[str, np.ndarray]:
    """finite; labels.DTYPE and confidence.DTYPE; probabilities.DTYPE and masks where the bundle holds those kernels."""
    device, head = kernels.device, CudaMaskHead(kernels, TEMPERATURE, case.scoring)
    held = {name.removeprefix(SCORINGS[case.scoring]) for name in kernels.record.names}
    with on_gpu(device) as gpu:
        seen = gpu.put(as_bytes(features, case.dtype), case.dtype, features.shape)
        vectors = gpu.put(as_bytes(words, case.dtype), case.dtype, words.shape)
        workspace = gpu.new((CudaMaskHead.workspace_bytes(features.shape, case.words),), "uint8")
        maps = (
            gpu.new((case.pictures, case.words, *case.low), "float32"),
            gpu.new((case.pictures, 5, *case.low), "float32"),
        )
        out = {"finite": gpu.new((case.pictures,), "int32")}
        head.maps(seen, vectors, workspace, *maps, out["finite"], gpu.stream)
        for dtype in CONFIDENCES:
            labels = out[f"labels.{dtype}"] = gpu.new((case.pictures, *case.size), "uint16")
            confidence = out[f"confidence.{dtype}"] = gpu.new((case.pictures, *case.size), dtype)
            head.labels(*maps, THRESHOLD, labels, confidence, gpu.stream)
            if (name := f"probabilities.{dtype}") in held:
                out[name] = gpu.new((case.pictures, case.words, *case.size), dtype)
                head.probabilities(*maps, out[name], gpu.stream)
        if "masks" in held:
            height, width = case.size
            out["masks"] = gpu.new((case.pictures, case.words, height, -(-width // 32)), "int32")
            head.masks(*maps, THRESHOLD, out["masks"], width, gpu.stream)
        return {name: gpu.get(array) for name, array in out.items()}


def names(kernels: Kernels) -> None:
    """Labels of words become those of names as on the host, and nothing beyond them is written. Raises Wrong.

    Several words of a name, a background word, a name of which nothing is sure; confidence that is a threshold or NaN.
    """
    owners, thresholds = np.array([0, 2, 1, 0, 1, 3], np.uint16), np.array([0, 0.25, 0.5, 1, 9, 9], np.float32)
    head, random, guard = CudaMaskHead(kernels, TEMPERATURE), np.random.default_rng(0), 64
    for shape in ((1, 1, 1), (3, 37, 43), (2, 5, 300)):
        for dtype in CONFIDENCES:
            labels = random.integers(0, len(owners), shape).astype(np.uint16)
            confidence = random.choice(np.array([0, 0.2, 0.25, 0.4, 0.5, 0.75, 1, np.nan], dtype), shape)
            with on_gpu(kernels.device) as gpu:
                held = gpu.put(np.append(labels, np.full(guard, 1, np.uint16)), "uint16")
                others = [gpu.put(array, array.dtype.name) for array in (confidence, owners, thresholds)]
                head.names(DeviceArray(held.pointer, shape, "uint16"), *others, gpu.stream)
                found = gpu.get(held)
            expected = np.where(confidence > thresholds[owners[labels]], owners[labels], 0)
            if not np.array_equal(found[:-guard].reshape(shape), expected):
                raise Wrong(f"names of {shape} labels beside {dtype} confidence are not those of the host")
            if not (found[-guard:] == 1).all():
                raise Wrong(f"names of {shape} labels beside {dtype} confidence: bytes beyond them were written")


def preprocess(kernels: Kernels, cases: list[ResizeCase], resample: str) -> None:
    """Bit for bit with Pillow, and no byte written beyond the outputs. Raises Wrong."""
    preprocessing = Preprocessing(320, 1, 4096, resample, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    launcher, random, guard = CudaPreprocess(kernels, preprocessing), np.random.default_rng(0), 64
    for count, before, size in cases:
        pictures = np.where(random.random((count, *before, 3)) > 0.5, 255, random.integers(0, 256)).astype(np.uint8)
        plan = launcher.plan(*before, size)
        needed, values = plan.workspace_bytes(count), count * 3 * size[0] * size[1]
        with on_gpu(kernels.device) as gpu:
            source, tables = gpu.put(pictures, "uint8"), gpu.put(plan.tables, "int32")
            between = gpu.put(np.full(needed + guard, 77, np.uint8), "uint8")
            pixels = gpu.put(np.full(values + guard, 77, np.float32), "float32")
            for _ in range(2):  # the second finds the kernels loaded
                launcher.launch(
                    source.pointer, count, plan, tables.pointer, between.pointer, pixels.pointer, gpu.stream
                )
            found, work = gpu.get(pixels), gpu.get(between)
        expected = np.stack([preprocessing(picture, size) for picture in pictures])
        case = f"{before} to {size}, {resample}"
        if not np.array_equal(found[:-guard].reshape(expected.shape), expected):
            raise Wrong(f"{case}: not the bits that the CPU gives")
        if not ((found[-guard:] == 77).all() and (work[needed:] == 77).all()):
            raise Wrong(f"{case}: bytes beyond the output were written")


def ptx_alone(kernels: Kernels) -> Kernels:
    """The kernels without the GPU's cubins."""
    every = kernels.record.launches
    kernels.record.launches = lambda name, capability: [  # type: ignore[method-assign]
        launch for launch in every(name, capability) if launch.file.suffix == ".ptx"
    ]
    return kernels


class Arrays:
    """Arrays on a GPU, for one stream's work."""

    def __init__(self, device: Device, stream: int, stack: contextlib.ExitStack) -> None:
        self.device, self.stream, self._stack = device, stream, stack
        self._memory: dict[int, Memory] = {}

    def new(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        memory = self._stack.enter_context(Memory(self.device, max(1, DeviceArray(0, shape, dtype).nbytes)))
        self._memory[memory.pointer] = memory
        return DeviceArray(memory.pointer, shape, dtype)

    def put(self, values: np.ndarray, dtype: str, shape: tuple[int, ...] | None = None) -> DeviceArray:
        array = self.new(values.shape if shape is None else shape, dtype)
        self._memory[array.pointer].upload(values, self.stream)
        return array

    def get(self, array: DeviceArray) -> np.ndarray:
        return self._memory[array.pointer].download(np.empty(array.shape, array.dtype), self.stream)


@contextlib.contextmanager
def on_gpu(device: Device) -> Iterator[Arrays]:
    """Arrays and a stream that go at the end."""
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(Stream(device))
        yield Arrays(device, stream.handle, stack)


def _taps(low: int, high: int, kind: type) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every output index the lower and the upper neighbour, and the upper one's weight, by whole numbers."""
    position = np.clip((2 * np.arange(high, dtype=np.int64) + 1) * low - high, 0, (low - 1) * 2 * high)
    first = position // (2 * high)
    return first, np.minimum(first + 1, low - 1), ((position - first * 2 * high) / (2 * high)).astype(kind)
