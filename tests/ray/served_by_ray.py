"""Bundles that Ray Serve serves on this machine, over real HTTP."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from service_client import Client

from fusioner_rt.ray import deployment

CORES = 2


@contextmanager
def ray_serve() -> Iterator[int]:
    """Ray, where it does not run, and its Serve. Yields the port; at the end what was started ends."""
    own = not ray.is_initialized()
    if own:
        ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield port
    finally:
        serve.shutdown()
        if own:
            ray.shutdown()


class Deployed(Client):
    """An application in a running Serve. route: what its paths are below."""

    def __init__(self, bundle: Any, port: int, name: str = "default", route: str = "/", **options: Any) -> None:
        """options: of `deployment`. All that tests start have room in two cores."""
        super().__init__("127.0.0.1", port)
        own = options.get("options", {})
        options["options"] = {"ray_actor_options": {"num_cpus": 0.2}, **own}
        self.application, self.token, self._below = name, options.get("token", ""), route.rstrip("/")
        self.handle = serve.run(deployment(bundle, **options), name=name, route_prefix=route)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        return super().ask(method, self._below + path, body, **headers)

    def replicas(self) -> int:
        """How many answer."""
        found = serve.status().applications[self.application].deployments["fusioner-rt"].replica_states
        return found.get("RUNNING", 0)

    def processes(self) -> list[int]:
        """Those of its replicas."""
        name = f"ServeReplica:{self.application}:"
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                title = (folder / "cmdline").read_text()
                alive = "\nState:\tZ" not in (folder / "status").read_text()
            except OSError:
                continue
            if name in title and alive:
                found.append(int(folder.name))
        return found

    def delete(self) -> None:
        """Let it finish what is in flight, and end it."""
        serve.delete(self.application)


@contextmanager
def served_by_ray(bundle: Any, **options: Any) -> Iterator[Deployed]:
    """Ray, Serve and one application, for tests that need no other. options: of `deployment`."""
    with ray_serve() as port:
        yield Deployed(bundle, port, **options)
