"""The runtime cache of TensorRT-RTX: compiled kernels, kept in a file between processes."""

import contextlib
import threading
from pathlib import Path
from typing import Any

from ..atomic_files import write_atomically
from ..cures import WRITABLE_CACHE
from ..errors import CudaFailed, Spelled, one_line
from ..gpu.driver import Device


class RuntimeCache:
    """Kernels that TensorRT-RTX compiled on a GPU. Other flavours have none.

    note: why the file could not be written, or None. A file of another driver, GPU or version is replaced. Threads may
    share one. It must outlive the contexts made with it.
    """

    def __init__(self, path: Path | None, device: Device) -> None:
        """path: of the file, or None."""
        self.path, self._device = path, device
        self.note: str | None = None
        self._cache: Any = None
        self._saved = b""
        self._lock = threading.Lock()

    def of(self, config: Any) -> Any:
        """The cache of a runtime configuration. The first call reads the file."""
        with self._lock, self._device.current():
            if self._cache is None:
                self._cache = config.create_runtime_cache()
                with contextlib.suppress(OSError):
                    content = self.path.read_bytes() if self.path is not None else b""
                    if content and self._cache.deserialize(content):
                        self._saved = content
            return self._cache

    def save(self) -> None:
        """Write new kernels to the file, atomically. An error becomes the note."""
        if self.path is None:
            return
        with self._lock:
            try:
                with self._device.current():
                    serialized = self._cache.serialize() if self._cache is not None else None
                content = bytes(serialized) if serialized is not None else b""
                if content and content != self._saved:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(self.path, lambda stream: stream.write(content))
                    self._saved, self.note = content, None
            except (OSError, RuntimeError, CudaFailed) as error:
                found = f"what TensorRT-RTX compiled cannot be kept in {self.path} ({one_line(error)}): the next process compiles again"
                self.note = Spelled(f"{found}; {WRITABLE_CACHE}", f"{found}; {WRITABLE_CACHE.command}")

    def close(self) -> None:
        """Save, and free the cache. Its contexts must be gone. Closing twice is fine."""
        self.save()
        with self._lock, contextlib.suppress(CudaFailed), self._device.current():
            self._cache = None
