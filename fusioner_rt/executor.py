"""What runs a bundle: the contract between `Session` and a backend, and what both sides pass through it."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

Mode = Literal["joint", "independent"]
TextGraph: TypeAlias = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked of every picture of a call. vectors: (K, t) float32, the same object while words stay the same."""

    vectors: np.ndarray
    threshold: float
    mode: Mode
    probabilities: bool


@dataclass(frozen=True, eq=False)
class Answer:
    """labels: (H, W) uint16. confidence: (H, W) float32. probabilities: (K, H, W) float32, or None if not asked for."""

    labels: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Waiting:
    """A picture of a call, ready to run. prepared: what `Executor.prepare` made of it, or `encode` if `encoded`.

    input_size: (h, w) of the network's input. size: (H, W) of its label map.
    """

    prepared: np.ndarray
    input_size: tuple[int, int]
    size: tuple[int, int]
    encoded: bool = False


class Clock(Protocol):
    """Times a stage (of `segmentation.STAGES`) for pictures, by their place in the group being run, or for all."""

    def __call__(self, stage: str, *members: int) -> AbstractContextManager[None]: ...


def untimed(stage: str, *members: int) -> AbstractContextManager[None]:
    """A Clock that times nothing."""
    return nullcontext()


@runtime_checkable
class RecordingExecutor(Protocol):
    """An executor that records what it runs, to launch it as a whole later."""

    def prove_recording(self, pictures: Sequence[Waiting], request: Request) -> None:
        """Compare both ways of running on two pictures of one size."""

    def forget(self) -> None:
        """Give back what was readied for the shapes run so far."""


class Executor(Protocol):
    """Threads may share one. Errors are FusionerError."""

    @property
    def notes(self) -> list[str]:
        """What did not go as it should and was worked around, one sentence each."""

    @property
    def most(self) -> int:
        """Pictures of a group at most."""

    def prepare(self, rgb: np.ndarray, input_size: tuple[int, int]) -> np.ndarray:
        """What of a picture (H, W, 3) uint8 is kept until it is run; it may be the picture itself."""

    def group(self, waiting: Waiting) -> Hashable:
        """Pictures with the same value may be run together."""

    def encode(self, group: Sequence[Waiting]) -> list[np.ndarray]:
        """Of each picture, in order, all that depends on no words and is computed apart from them: a new array, or what
        `prepare` made of it."""

    def run(self, group: Sequence[Waiting], request: Request, clock: Clock) -> list[Answer]:
        """One answer per picture, in order; encoded ones may be among them."""

    def maps(self, group: Sequence[Waiting], request: Request) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each picture, in order, all words together: scores (1, K, h, w) and gram (1, 5, h, w), float32."""

    def text(self) -> TextGraph:
        """The text graph, loaded when first asked for."""

    def close(self) -> None:
        """Give everything back; closing twice is fine."""
