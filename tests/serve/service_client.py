"""A service in a thread of a test, and what asks one over HTTP."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import socket
import threading
from dataclasses import dataclass
from typing import Any

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
