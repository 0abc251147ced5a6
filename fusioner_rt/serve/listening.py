"""Listens on a port until a signal ends it."""

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette

from ..errors import UsageError
from .app import create_app
from .log import LibraryLog, RequestLog
from .settings import Settings

_RELOAD = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, and does not listen yet: nobody connects before the bundles are open. Raises UsageError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot listen on {host} port {port} ({said})", "choose another address or port") from None
    return listener


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Whether this machine alone reaches it."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def run(settings: Settings, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve in this process. ready: is called once it answers. Raises the errors of `Session`."""
    log = RequestLog()
    logging.getLogger().addHandler(LibraryLog(log))
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the service's own log has the errors
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it warns of forms that clients broke
    logging.getLogger("fusioner_rt").propagate = False  # it quotes words, and answers have these notes
    wanted: list[int] = []  # reloads that are asked for while it starts
    with own_signals({reload: lambda number, _: wanted.append(number) for reload in _RELOAD}):
        app = create_app(settings, log)
        server = Server(app, settings, ready)
        # uvicorn hears them when it serves alone, and raises them again then, which would end the process by them.
        with own_signals(dict.fromkeys((signal.SIGTERM, signal.SIGINT), server.end)):
            asyncio.run(_run(server, listener, app.state.reload, wanted))


class Server(uvicorn.Server):
    """uvicorn, which also closes connections that nothing comes of."""

    def __init__(self, app: Starlette, settings: Settings, ready: Callable[[], None] = lambda: None) -> None:
        """ready: is called once it answers."""
        super().__init__(
            uvicorn.Config(
                app, log_config=None, access_log=False, server_header=False, http="h11", ws="none", lifespan="on", backlog=2048,
                timeout_graceful_shutdown=int(settings.deadline) + 5, timeout_keep_alive=30, proxy_headers=False,
            )
        )  # fmt: skip
        self._idle_time, self._ready = settings.idle_time, ready

    def end(self, *_: object) -> None:
        """Finish what is in flight, and return from `serve`."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._closing = asyncio.create_task(self._close_idle())  # while it shuts down, too
        self._ready()

    async def _close_idle(self) -> None:
        """uvicorn waits for the rest of a request's head for ever, and so it does for who takes no rest of an answer."""
        since: dict[Any, float] = {}
        connections: set[Any] = self.server_state.connections
        while True:
            await asyncio.sleep(min(1.0, self._idle_time / 4))
            now, before, since = time.monotonic(), since, {}
            for connection in list(connections):
                request = connection.cycle
                if request is None or request.response_complete or connection.transport.is_closing():
                    state = connection, request
                    since[state] = before.get(state, now)
                    if now - since[state] >= self._idle_time:
                        connection.transport.abort()


async def _run(
    server: Server, listener: socket.socket, reload: Callable[[], Coroutine[Any, Any, None]], wanted: list[int]
) -> None:
    loop, tasks = asyncio.get_running_loop(), set()

    def load() -> None:
        task = loop.create_task(reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    for number in _RELOAD:
        loop.add_signal_handler(number, load)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    if wanted:
        load()
    await server.serve([listener])


@contextlib.contextmanager
def reloads_held_back() -> Iterator[None]:
    """SIGHUP waits in a process that is started meanwhile, until `run` hears it there: it would end that one before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _RELOAD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def own_signals(handlers: dict[int, Callable[..., None]]) -> Iterator[None]:
    """Hear these signals in place of the command, which takes a second one for impatience."""
    waker = signal.set_wakeup_fd(-1)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(waker)
