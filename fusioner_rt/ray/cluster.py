"""Ray for the length of a command: a cluster that is there, or one of this machine's cores."""

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..cpu_cores import cores
from ..errors import ClusterFailed, FusionerError, one_line
from ..optional_packages import optional
from ..whole_folders import unfinished_folder

_STORE = 512 << 20  # bytes of this machine's object store: it holds names, some files and results, and no pixels
_PATIENCE = 10.0  # seconds for a connection
_ENDING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def running_cluster(verbose: bool = False) -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS, or start one that ends with the block and leaves nothing. For the main thread.

    verbose: show what Ray and the actors say. What is printed meanwhile, by Ray too, goes to stderr. Raises ClusterFailed.
    """
    ray = optional("ray", "ray[data]", "datasets", "'fusioner-rt[ray]'")
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if not ray.is_initialized():
            _start(ray, verbose, stack)
        yield


def _start(ray: Any, verbose: bool, stack: contextlib.ExitStack) -> None:
    options: dict[str, Any] = {"logging_level": logging.INFO if verbose else logging.CRITICAL, "log_to_driver": verbose}
    if not verbose:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised, too
    if address := os.environ.get("RAY_ADDRESS"):
        _check_there(address)
    else:
        # Sockets and logs; /tmp/ray would keep them for ever.
        folder = stack.enter_context(unfinished_folder(Path(tempfile.gettempdir(), "fusioner"), lambda _: None))
        options |= {
            "address": "local", "num_cpus": cores(), "object_store_memory": _STORE, "include_dashboard": False,
            "_temp_dir": str(folder),
        }  # fmt: skip
    stack.callback(ray.shutdown)  # also of a start that is interrupted, or fails halfway
    handlers = {number: signal.getsignal(number) for number in _ENDING}
    try:
        with contextlib.nullcontext() if verbose else _silent_libraries():
            ray.init(**options)
    except Exception as error:  # of the network, of versions that differ, of processes that did not start
        raise ClusterFailed(
            f"Ray cannot be reached or started ({one_line(error)})", "check RAY_ADDRESS, or unset it, and TMPDIR"
        ) from error
    finally:
        for number, handler in handlers.items():  # Ray sets its own
            signal.signal(number, handler)


def _check_there(address: str) -> None:
    """Whether something listens at HOST:PORT, which Ray would ask for minutes. Raises ClusterFailed."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "/" in host:  # auto, or another protocol
        return
    try:
        socket.create_connection((host, int(port)), _PATIENCE).close()
    except OSError as error:
        raise ClusterFailed(
            f"no cluster answers at {address} ({error.strerror or error})", "check RAY_ADDRESS, or unset it"
        ) from None


@contextlib.contextmanager
def _silent_libraries() -> Iterator[None]:
    """Nothing is written to stderr, also by what is no Python: Ray's own library tells there that it will be silent."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def told_by_ray(error: BaseException) -> FusionerError:
    """What an error of a run on Ray is: one of ours where it began with one in an actor."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        # Ray raises a task's error as one that is of its class, too, and cannot be made anew; its cause is the error itself.
        if isinstance(one, FusionerError) and not isinstance(getattr(one, "cause", None), FusionerError):
            return one
        if id(one) not in seen:
            seen.add(id(one))
            inner = (getattr(one, "cause", None), one.__cause__, one.__context__)
            waiting += [found for found in inner if isinstance(found, BaseException)]
    return ClusterFailed(f"Ray ended the run ({one_line(error)})", "the same command goes on, once that is mended")
