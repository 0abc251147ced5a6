"""Listens on a port until a signal ends it."""

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import uvicorn

from ..errors import UsageError
from .app import create_app
from .settings import Settings


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
    app = create_app(settings)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, ws="none", lifespan="on", backlog=2048,
        timeout_graceful_shutdown=int(settings.deadline) + 5, timeout_keep_alive=30, proxy_headers=False,
    )  # fmt: skip
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the service's own log has the errors
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it warns of forms that clients broke
    # The server raises its signals again once it is done, which would end the process by them.
    with own_signals({number: lambda *_: None for number in (signal.SIGTERM, signal.SIGINT)}):
        asyncio.run(_run(_Server(config, ready), listener, app.state.reload))


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


async def _run(
    server: uvicorn.Server, listener: socket.socket, reload: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    loop, tasks = asyncio.get_running_loop(), set()

    def load() -> None:
        task = loop.create_task(reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, load)
    await server.serve([listener])


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
