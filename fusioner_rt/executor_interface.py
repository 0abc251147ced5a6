"""The contract between `Session` and the executor of a backend, and the data they exchange."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

Mode = Literal["joint", "independent"]
TextGraph: TypeAlias = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Request:
    """The options of a call. vectors: (K, t) float32, the same object for the same words."""

    vectors: np.ndarray
    threshold: float
    mode: Mode
    probabilities: bool


@dataclass(frozen=True, eq=False)
class Answer:
    """labels: (H, W) uint16. confidence: (H, W) float32. probabilities: (K, H, W) float32, or None if not requested."""

    labels: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Waiting:
    """A picture of a call, ready to run. prepared: the result of `Executor.prepare`, or of `encode_pictures` if `encoded`,
    or features (h', w', d) float32 that words are compared with as they are if `joined`, those of sliding windows.

    input_size: (h, w) of the network's input. size: (H, W) of its label map.
    """

    prepared: np.ndarray
    input_size: tuple[int, int]
    size: tuple[int, int]
    encoded: bool = False
    joined: bool = False


class Clock(Protocol):
    """Times a stage of `segmentation.STAGES`. members: indices of pictures in the group; none means all."""

    def __call__(self, stage: str, *members: int) -> AbstractContextManager[None]: ...


def untimed(stage: str, *members: int) -> AbstractContextManager[None]:
    """A Clock that measures nothing."""
    return nullcontext()


@runtime_checkable
class RecordingExecutor(Protocol):
    """An executor that records its work and launches the recording later."""

    def prove_recording(self, pictures: Sequence[Waiting], request: Request) -> None:
        """Compare recorded and unrecorded runs on two pictures of one size."""

    def forget(self) -> None:
        """Free what was made for the shapes run so far."""


class CpuSide(Protocol):
    """CPU work of a GPU executor. Threads may share one."""

    def text(self) -> TextGraph:
        """The text graph, loaded on first use."""

    def load_rest(self) -> None:
        """Load now what else is loaded on first use."""

    def maps(self, features: np.ndarray, refined: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores (B, K, h, w) and gram (B, 5, h, w) of features (B, h, w, d) and words (B, K, d), all float32."""

    def answer(self, maps: tuple[np.ndarray, np.ndarray], size: tuple[int, int], request: Request) -> Answer:
        """Resolve one picture. maps: as of `Executor.maps`, or (K, 1, h, w) and (K, 5, h, w) of words fused alone.

        size: (H, W) of its label map.
        """

    def close(self) -> None:
        """Free all resources. Closing twice is fine."""


class Executor(Protocol):
    """Runs a bundle on one backend. Threads may share one. All errors are FusionerErrors."""

    @property
    def notes(self) -> list[str]:
        """Problems that were worked around, one sentence each."""

    @property
    def max_group(self) -> int:
        """The most pictures of a group."""

    @property
    def lanes(self) -> int:
        """How many calls at once keep the machine busy."""

    def in_lanes(self) -> "Executor":
        """The executor for calls of which several run at once, with the same results bit for bit. May load graphs; closing this
        one closes it. Raises as opening an executor."""

    def prepare(self, rgb: np.ndarray, input_size: tuple[int, int]) -> np.ndarray:
        """Prepare a picture (H, W, 3) uint8 for `run`. May return the picture itself."""

    def group(self, waiting: Waiting) -> Hashable:
        """A key: pictures with equal keys may run as one group."""

    def encode_pictures(self, group: Sequence[Waiting]) -> list[np.ndarray]:
        """The part of each picture's work that needs no words, in order: a new array, or the result of `prepare`."""

    def encode_windows(self, crops: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Features (h', w', d) float32 of at most `max_group` windows (h, w, 3) uint8 of one size. Of a bundle that has windows."""

    def run(self, group: Sequence[Waiting], request: Request, clock: Clock) -> list[Answer]:
        """One answer per picture, in order. Encoded pictures are allowed."""

    def maps(self, group: Sequence[Waiting], request: Request) -> list[tuple[np.ndarray, np.ndarray]]:
        """Scores (1, K, h, w) and gram (1, 5, h, w), float32, of each picture, in order. Words are fused jointly."""

    def text(self) -> TextGraph:
        """The text graph, loaded on first use."""

    def load_rest(self) -> None:
        """Load now what else is loaded on first use."""

    def close(self) -> None:
        """Free all resources. Closing twice is fine."""
