"""What a service is started with."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """engines: bundle folders or names, None for the one a session finds, by the model's name; the first is the default.

    backend, cache, input_size: as `Session` takes them. threads: per graph; concurrency: calls of sessions at once. None
    chooses both by the cores. cores: that may be kept busy, None for those that the machine grants.
    max_batch: pictures of a call, at most the bundle's. None takes the bundle's on a GPU, and 1, no batches, on CPUs.
    max_wait: milliseconds that a request may wait for others to share a batch; 0 for none.
    queue: pictures that may wait. deadline, body_time, read_time: seconds for a whole request, for its body to arrive, and for
    a client to take a chunk of its answer. idle_time: seconds that a connection without a request, or with half a head of
    one, stays open.
    max_bytes: of a body. max_pixels: of a picture or label map. max_words: of a request. memory: bytes of all bodies,
    pictures, masks and answers at once.
    handles, handle_bytes, handle_age: how many encoded pictures are kept, their bytes, seconds since their last use.
    token: that every request must bear, "" for none. cors: origins whose pages may ask, or "*".
    loopback: it listens for this machine alone: without a token, requests for other hosts than it are refused.
    shared: folder that several processes share their handles in, or None.
    """

    engines: dict[str, str | None] = field(default_factory=lambda: {"default": None})
    backend: str = "auto"
    cache: str | None = None
    input_size: int | None = None
    threads: int | None = None
    concurrency: int | None = None
    cores: int | None = None
    max_batch: int | None = None
    max_wait: float = 3.0
    queue: int = 64
    deadline: float = 30.0
    body_time: float = 30.0
    read_time: float = 30.0
    idle_time: float = 30.0
    max_bytes: int = 32_000_000
    max_pixels: int = 40_000_000
    max_words: int = 1000
    memory: int = 2_000_000_000
    handles: int = 256
    handle_bytes: int = 500_000_000
    handle_age: float = 600.0
    token: str = field(default="", repr=False)
    cors: tuple[str, ...] = ()
    loopback: bool = False
    workers: int = 1
    shared: Path | None = None
