"""The contract between a GPU pipeline and its engine for image_fusion."""

from collections.abc import Mapping
from typing import Any, Protocol


class EngineContext(Protocol):
    """An engine ready for certain shapes. outputs: shapes of features and refined. workspace_bytes: for `place`."""

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def workspace_bytes(self) -> int: ...

    def place(self, pointers: Mapping[str, int], workspace: int) -> None:
        """Set the addresses of pixels, words, features, refined and the workspace, multiples of 256."""

    def recordable(self, stream: int) -> bool:
        """Whether the engine allows recording its work on the stream."""

    def enqueue(self, stream: int) -> None:
        """Enqueue one run on `stream`. The device's context is current."""


class Engine(Protocol):
    """Runs image_fusion on a GPU. Threads may share it, each with its own contexts.

    records: whether its work can be part of a CUDA graph.
    """

    records: bool

    def context(self, shapes: Mapping[str, tuple[int, ...]], stream: int) -> Any:
        """An EngineContext for pixels (P, 3, h, w) and words (B, K, t). May enqueue work on `stream`."""

    def give_back(self, context: Any) -> None:
        """Keep a context for the next call with its shapes."""

    def max_batch(self, name: str) -> int:
        """The maximum first dimension of an input."""

    def close(self) -> None:
        """All contexts must have been given back. Closing twice is fine."""
