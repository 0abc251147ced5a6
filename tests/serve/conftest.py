"""The service over real HTTP: in a thread of the test, or as the command it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_pictures import encoded, scene
from PIL import Image
from service_client import Client, Running

from fusioner_rt import Session
from fusioner_rt.serve.settings import Settings


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
