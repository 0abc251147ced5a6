"""A real `tritonserver` over a model repository: the one that the wheel nvidia-pytriton holds (tests/triton/requirements.txt).

    with Server(repository) as server:
        http.InferenceServerClient(server.http)

It needs Linux, a libpython of this Python's version, and the environment that `make triton` makes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

START = 120.0
"""Seconds until all models are loaded."""


class ServerFailed(Exception):
    """The server ended, or was not ready in time; its log is the message."""


class Server:
    """It runs until the block ends. http, grpc: host and port for clients. log: its file."""

    def __init__(self, repository: Path, *options: str, models: tuple[str, ...] = (), **environment: str) -> None:
        """options: of tritonserver, too. models: to load; none for all of the repository, which then are not unloaded.

        environment: of the server, too.
        """
        self._repository, self._options, self._models = repository, options, models
        self._environment = environment
        self._stack = ExitStack()

    def __enter__(self) -> Server:
        home = _wheel() / "tritonserver"
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="tritonserver-")))
        self.log = folder / "log"
        ports = _free_ports(3)
        self.http, self.grpc, self._metrics = (f"127.0.0.1:{port}" for port in ports)
        command = [
            str(home / "bin/tritonserver"), f"--model-repository={self._repository.resolve()}",
            f"--backend-directory={_backends(home, folder / 'backends')}", f"--cache-directory={home / 'caches'}",
            "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1",
            f"--http-port={ports[0]}", f"--grpc-port={ports[1]}", f"--metrics-port={ports[2]}",
            "--allow-gpu-metrics=false", f"--backend-config=python,shm-region-prefix-name={folder.name}",
            *(["--model-control-mode=explicit"] if self._models else []), *(f"--load-model={name}" for name in self._models),
            *self._options,
        ]  # fmt: skip
        environment = {**os.environ, "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")), **self._environment}
        log = self._stack.enter_context(self.log.open("w"))
        self._process = subprocess.Popen(
            command, cwd=_packages(folder / "packages"), stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        self._stack.callback(self.stop)
        try:
            self._wait()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def metric(self, name: str, model: str | None = None) -> float:
        """The sum of a metric's samples, or of a model's."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=30) as reply:
            lines = reply.read().decode().splitlines()
        found = [re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line) for line in lines]
        return sum(float(one[2]) for one in found if one and (model is None or f'model="{model}"' in (one[1] or "")))

    def stop(self) -> int:
        """SIGTERM, on which it finishes what runs. Returns its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()

    def _wait(self) -> None:
        end = time.monotonic() + START
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise ServerFailed(self.log.read_text()[-20000:])


def _wheel() -> Path:
    """The folder of the package that holds the server. It is not imported: it would start one of its own."""
    found = importlib.util.find_spec("pytriton")
    if found is None or found.origin is None:
        raise ServerFailed("nvidia-pytriton is not installed here: make .venv-triton/.ready")
    return Path(found.origin).parent


def _packages(to: Path) -> Path:
    """A folder that names this environment's packages, the nearest first.

    The stub knows neither PYTHONPATH nor environments: it looks in the folder that the server was started in, and then in the
    packages of the Python whose library it loads.
    """
    to.mkdir()
    for folder in [Path(path) for path in sys.path if path.endswith("-packages")]:
        for entry in folder.iterdir():
            place = to / entry.name
            if not place.exists() and entry.suffix != ".pth":
                place.symlink_to(entry)
    return to


def _backends(home: Path, to: Path) -> Path:
    """The folder of backends, with the stub of this Python."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = to / "python"
    python.mkdir(parents=True)
    for file in (home / "backends/python").iterdir():
        (python / file.name).symlink_to(file)
    stub = python / "triton_python_backend_stub"
    stub.unlink(missing_ok=True)
    stub.symlink_to(home / "python_backend_stubs" / version / stub.name)
    return to


def _free_ports(count: int) -> list[int]:
    """The server takes no port 0."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def served(bundle: Path, folder: Path, *options: str, server: tuple[str, ...] = ()) -> Iterator[Server]:
    """A server of a bundle, by the project's own command. folder: for the repository. options: of the command. server: of tritonserver."""
    from export import triton_repository

    triton_repository.write(triton_repository.parse([str(bundle), str(folder), *options]))
    with Server(folder, *server) as running:
        yield running
