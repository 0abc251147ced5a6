"""Ray for the length of a command: a cluster that is there, or one of this machine's cores."""

import contextlib
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

from ..cpu_cores import cores
from ..errors import ClusterFailed, FusionerError, one_line
from ..optional_packages import optional

_STORE = 512 << 20  # bytes of this machine's object store: it holds names, some files and results, and no pixels
_ENDING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def running_cluster(verbose: bool = False) -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS, or start one that ends with the block and leaves nothing.

    verbose: show what Ray and the actors say. Raises ClusterFailed.
    """
    ray = optional("ray", "ray[data]", "datasets", "'fusioner-rt[ray]'")
    if ray.is_initialized():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _ENDING}
    with contextlib.ExitStack() as left:
        options = {"logging_level": logging.INFO if verbose else logging.ERROR, "log_to_driver": verbose}
        if not os.environ.get("RAY_ADDRESS"):
            folder = tempfile.mkdtemp(prefix="fusioner-ray-")  # sockets and logs; /tmp/ray would keep them for ever
            left.callback(shutil.rmtree, folder, ignore_errors=True)
            options |= {
                "address": "local", "num_cpus": cores(), "object_store_memory": _STORE, "include_dashboard": False,
                "_temp_dir": folder,
            }  # fmt: skip
        try:
            ray.init(**options)
        except Exception as error:  # of the network, of versions that differ, of processes that did not start
            raise ClusterFailed(
                f"Ray cannot be reached or started ({one_line(error)})", "check RAY_ADDRESS, or unset it"
            ) from error
        left.callback(ray.shutdown)
        for number, handler in handlers.items():  # Ray has set its own
            signal.signal(number, handler)
        yield


def told_by_ray(error: BaseException) -> FusionerError:
    """What an error of a run on Ray is: one of ours where it began with one in an actor."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, FusionerError):
            return one
        if id(one) not in seen:
            seen.add(id(one))
            inner = (getattr(one, "cause", None), one.__cause__, one.__context__)
            waiting += [found for found in inner if isinstance(found, BaseException)]
    return ClusterFailed(f"Ray ended the run ({one_line(error)})", "the same command goes on, once that is mended")
