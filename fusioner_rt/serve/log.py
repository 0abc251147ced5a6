"""One JSON line a request, written by a thread of its own: a reader of stderr that stops, stops no request."""

import io
import json
import logging
import queue
import threading
import time
import traceback
from typing import IO, Any

_MOST = 10_000  # lines that wait; further ones are counted alone


class RequestLog:
    """Writes lines of JSON to a stream, by default stderr."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        # Not sys.stderr: a thread that waits there holds its lock, with which Python ends by SIGABRT.
        self._stream = stream or io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", write_through=True)
        self._lines: queue.Queue[str | None] = queue.Queue(_MOST)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def __call__(self, **fields: Any) -> None:
        """Write a line. Never waits, never fails."""
        if self._lost:
            fields["lines_lost"] = self._lost
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        try:
            self._lines.put_nowait(json.dumps({"time": stamp, **fields}, default=str))
            self._lost = 0
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Write what waits, for a second at most."""
        try:
            self._lines.put(None, timeout=1)
        except queue.Full:
            return
        self._thread.join(1)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # a full disk, a closed pipe
                self._lost += 1


class LibraryLog(logging.Handler):
    """What libraries log and warn of, as such lines."""

    def __init__(self, log: RequestLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        told: dict[str, Any] = {
            "logger": record.name,
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[1]:
            told["traceback"] = traceback.format_exception(record.exc_info[1])
        self._log(event="log", **told)
