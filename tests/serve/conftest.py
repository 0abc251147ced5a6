"""The service over real HTTP: in a thread of the test, or as the command it is."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_pictures import encoded, scene
from PIL import Image

from fusioner_rt import Session
from fusioner_rt.serve.app import create_app
from fusioner_rt.serve.listening import Server, listen
from fusioner_rt.serve.log import RequestLog
from fusioner_rt.serve.settings import Settings


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Asks a service. address: host and port. token: what it is to be sent, where it has one."""

    token = ""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """headers: with _ for -."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        if self.token:
            headers = {"Authorization": f"Bearer {self.token}", **headers}
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            reply = connection.getresponse()
            return Reply(reply.status, reply.headers, reply.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any, kind: str = "image/png", **headers: str) -> Reply:
        return self.ask("POST", path, body, Content_Type=kind, **headers)

    def post_json(self, path: str, **fields: Any) -> Reply:
        return self.post(path, json.dumps(fields), "application/json")

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=60)

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


class Running(Client):
    """A service in a thread of this process. log: its lines."""

    def __init__(self, settings: Settings) -> None:
        self._stream = io.StringIO()
        self.app = create_app(settings, RequestLog(self._stream))
        listener = listen("127.0.0.1", 0)
        super().__init__(*listener.getsockname()[:2])
        self._server = Server(self.app, settings)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([listener])))
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            threading.Event().wait(0.01)

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]

    @property
    def connections(self) -> set[Any]:
        return self._server.server_state.connections

    def stop(self) -> None:
        self._server.end()
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture(scope="session")
def settings(tiny_bundle: Path) -> Callable[..., Settings]:
    """Settings over the tiny bundle: settings(queue=2)."""

    def make(**options: Any) -> Settings:
        return Settings(**{"engines": {"tiny": str(tiny_bundle)}, "concurrency": 2, "threads": 1, **options})

    return make


@pytest.fixture(scope="session")
def service(settings: Callable[..., Settings]) -> Iterator[Running]:
    """The service that most tests ask."""
    running = Running(settings(max_words=50, max_pixels=40_000_000, max_bytes=3_000_000))
    yield running
    running.stop()


@pytest.fixture
def start(settings: Callable[..., Settings]) -> Iterator[Callable[..., Running]]:
    """Starts a service of its own: start(token="secret")."""
    started: list[Running] = []

    def run(**options: Any) -> Running:
        started.append(Running(settings(**options)))
        return started[-1]

    yield run
    for one in started:
        one.stop()


class Command(Client):
    """`fusioner-rt serve` in a process of its own."""

    def __init__(self, *options: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fusioner_rt", "serve", "--port", "0", *options],
            stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
        )  # fmt: skip
        assert self.process.stderr is not None
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line)
            if "serving on" in line:
                break
        else:
            raise AssertionError(self.lines)
        host, port = line.rpartition("/")[2].strip().split(":")
        super().__init__(host, int(port))
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr or []), daemon=True).start()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def command(tiny_bundle: Path) -> Iterator[Callable[..., Command]]:
    """Starts the command over the tiny bundle: command("--workers", "2")."""
    started: list[Command] = []

    def run(*options: str, **environment: str) -> Command:
        engine = [] if "--engine" in options else ["--engine", str(tiny_bundle)]
        started.append(Command(*engine, *options, **environment))
        return started[-1]

    yield run
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    return scene(61, 93)


@pytest.fixture(scope="session")
def png(picture: np.ndarray) -> bytes:
    return encoded(Image.fromarray(picture))


@pytest.fixture(scope="session")
def session(tiny_bundle: Path) -> Iterator[Session]:
    with Session(tiny_bundle, threads=1) as opened:
        yield opened
