"""Bundles by name. One is loaded anew beside the old one, which ends with its last call: no request sees a gap."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..argument_checks import shown
from ..bundle import find_bundle
from ..cpu_cores import cores
from ..manifest import MANIFEST
from ..session import Session
from .errors import NotServed
from .settings import Settings

_MOST_CALLS = 4  # of sessions at once, unless told otherwise: each holds the activations of a picture


@dataclass(eq=False)
class Model:
    """An open bundle. digest: of its manifest. users: calls that run. retired: another has its name."""

    name: str
    session: Session
    digest: str
    users: int = 0
    retired: bool = False


class Models:
    """The bundles of a service. Threads may share it."""

    def __init__(self, settings: Settings) -> None:
        """Opens them all. Raises the errors of `Session`."""
        self._settings = settings
        self.concurrency, self._threads = shares(settings)
        self._models: dict[str, Model] = {}
        self._lock, self._loading = threading.Lock(), threading.Lock()
        try:
            for name, engine in settings.engines.items():
                self._models[name] = self._open(name, engine)
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> list[str]:
        """The first is the default."""
        return list(self._models)

    def __getitem__(self, name: str | None) -> Model:
        """Raises NotServed."""
        if name is None:
            return next(iter(self._models.values()))
        if name not in self._models:
            raise NotServed(f"there is no model {shown(name)}", f"the models are {', '.join(self.names)}", "model")
        return self._models[name]

    @contextmanager
    def used(self, name: str) -> Iterator[Session]:
        """The session of a name, which stays open meanwhile."""
        with self._lock:
            model = self[name]
            model.users += 1
        try:
            yield model.session
        finally:
            with self._lock:
                model.users -= 1
                last = model.retired and not model.users
            if last:
                model.session.close()

    def reload(self) -> Iterator[tuple[str, BaseException | None]]:
        """Load the bundles that have changed. Yields each one's name, and the error of one that stays as it was."""
        with self._loading:
            for name, engine in self._settings.engines.items():
                try:
                    if _digest(find_bundle(engine)) == self._models[name].digest:
                        continue
                    opened = self._open(name, engine)
                except Exception as error:
                    yield name, error
                    continue
                with self._lock:
                    old, self._models[name] = self._models[name], opened
                self._retire(old)
                yield name, None

    def close(self) -> None:
        """Close each session once its last call is done."""
        for model in self._models.values():
            self._retire(model)

    def _retire(self, model: Model) -> None:
        with self._lock:
            model.retired, idle = True, not model.users
        if idle:
            model.session.close()

    def _open(self, name: str, engine: str | None) -> Model:
        settings, folder = self._settings, find_bundle(engine)
        digest = _digest(folder)  # before it is opened: what is replaced meanwhile is found by the next reload
        session = Session(
            folder, backend=settings.backend, cache=settings.cache, threads=self._threads,
            input_size=settings.input_size, max_pixels=settings.max_pixels,
        )  # fmt: skip
        try:
            session.load_text()  # the files may be replaced before the bundle is loaded anew
        except BaseException:
            session.close()
            raise
        return Model(name, session, digest)


def shares(settings: Settings) -> tuple[int, int]:
    """Calls at once, and threads of each, of one worker process: together they fill its share of the cores.

    One thread a call gives the most pictures a second, since the threads of a graph wait for each other.
    """
    share = own_cores(settings)
    concurrency = settings.concurrency or min(share, _MOST_CALLS)
    return concurrency, settings.threads or max(1, share // concurrency)


def own_cores(settings: Settings) -> int:
    """Cores of one worker process."""
    return max(1, (settings.cores or cores()) // settings.workers)


def _digest(folder: Path) -> str:
    """Of the manifest; "" where there is none, which opening the bundle tells better."""
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return ""
