"""Several processes on one port, each with its share of the cores. One that ends is started again."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from ..errors import FusionerError
from . import metrics
from .listening import own_signals, reloads_held_back, run
from .settings import Settings

_READY = b"ready\n"
_SOON = 10.0  # seconds: a process that ends sooner after its start is not started again at once


def supervise(settings: Settings, listener: socket.socket, ready: Callable[[], None]) -> int:
    """Run the processes until a signal ends them. Returns the exit code: of the first that cannot start, else 0."""
    with tempfile.TemporaryDirectory(prefix="fusioner-rt-") as folder:
        for name in ("handles", "metrics"):
            Path(folder, name).mkdir()
        shared = replace(settings, shared=Path(folder, "handles"))
        return _Supervisor(shared, listener, Path(folder, "metrics")).run(ready)


class _Supervisor:
    def __init__(self, settings: Settings, listener: socket.socket, numbers: Path) -> None:
        """numbers: folder of the metrics that the processes share."""
        self._settings, self._listener, self._numbers = settings, listener, numbers
        self._processes: list[subprocess.Popen[bytes]] = []
        self._started: dict[int, float] = {}
        self._ending = False
        self._reloads = 0

    def run(self, ready: Callable[[], None]) -> int:
        def reload(*_: object) -> None:
            self._reloads += 1
            self._tell(signal.SIGHUP)

        with own_signals({signal.SIGTERM: self._end, signal.SIGINT: self._end, signal.SIGHUP: reload}):
            return self._supervise(ready)

    def _supervise(self, ready: Callable[[], None]) -> int:
        for count in (1, self._settings.workers - 1):  # where the first cannot start, the others need not say so too
            started = [self._start() for _ in range(count)]
            for process in started:
                assert process.stdout is not None
                if process.stdout.readline() != _READY and not self._ending:  # it has said why
                    self._end()
                    self._wait()
                    return process.returncode or 1
        if not self._ending:
            ready()
        while not self._ending:
            time.sleep(0.1)
            for process in [one for one in self._processes if one.poll() is not None]:
                self._replace(process)
        self._wait()
        return 0

    def _start(self) -> subprocess.Popen[bytes]:
        descriptor = self._listener.fileno()
        reloads = self._reloads
        with reloads_held_back():
            process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.workers", str(descriptor)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[descriptor], start_new_session=True,
                env={**os.environ, metrics.FOLDER: str(self._numbers)},
            )  # fmt: skip
        self._processes.append(process)
        if (
            self._reloads > reloads
        ):  # asked for while it was not among those that are told: threads of libraries take signals too
            process.send_signal(signal.SIGHUP)
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(self._settings), default=str).encode() + b"\n")
        process.stdin.flush()  # and left open: its end tells the process that this one is gone
        self._started[process.pid] = time.monotonic()
        return process

    def _replace(self, process: subprocess.Popen[bytes]) -> None:
        if time.monotonic() - self._started[process.pid] < _SOON:
            time.sleep(1)
        print(f"fusioner-rt: process {process.pid} ended by {process.returncode}; another is started", file=sys.stderr)
        self._processes.remove(process)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        del self._started[process.pid]
        mark_process_dead(process.pid, str(self._numbers))
        if not self._ending:
            self._start()

    def _end(self, *_: object) -> None:
        self._ending = True
        self._tell(signal.SIGTERM)

    def _tell(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def _wait(self) -> None:
        self._listener.close()  # or who connects now waits for nobody
        self._tell(signal.SIGTERM)  # again, for one that was started meanwhile
        until = time.monotonic() + self._settings.deadline + 10
        for process in self._processes:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _work(descriptor: int) -> int:
    """One of the processes. It reads its settings from stdin, says that it is ready, and ends when stdin does."""
    import threading

    fields = json.loads(sys.stdin.readline())
    settings = Settings(**{**fields, "cors": tuple(fields["cors"]), "shared": Path(fields["shared"])})

    def ready() -> None:
        sys.stdout.buffer.write(_READY)
        sys.stdout.buffer.flush()

    def follow() -> None:
        sys.stdin.read()
        if settings.shared:  # who started it can no longer do so
            shutil.rmtree(settings.shared.parent, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    try:
        run(settings, socket.socket(fileno=descriptor), ready)
    except FusionerError as error:
        print(f"fusioner-rt: {error.as_command()}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_work(int(sys.argv[1])))
