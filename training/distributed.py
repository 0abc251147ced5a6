"""One process or several: under `torchrun --nproc-per-node 2 -m training.train ...` each computes a share of every step.

All processes make the same random draws, and each computes its own rows of the batch. Sums go over all processes, so a
run's figures do not depend on their number (up to the order of float sums).
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

from fusioner_rt.errors import UsageError

PATIENCE = timedelta(hours=12)  # the others wait while the first process validates or caches word vectors


@dataclass(frozen=True)
class Processes:
    """This process, its rank among the run's processes, and its device."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process validates, writes and prints."""
        return self.rank == 0

    def rows(self, size: int) -> range:
        """This process's rows of a batch; may be empty for a batch smaller than the number of processes."""
        return range(self.rank * size // self.count, (self.rank + 1) * size // self.count)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(value)
        return value

    def agree(self, value: float) -> float:
        """The first process's value."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared)

    def wait(self) -> None:
        """Waits until all processes are here."""
        if self.count > 1:
            dist.barrier()

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process runs the body alone, then the others do: they find the files it wrote."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Only the first process shows progress bars."""
        with contextlib.nullcontext() if self.first else contextlib.redirect_stderr(io.StringIO()):
            yield


@contextlib.contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """Joins the processes that torchrun started; without torchrun there is one process.

    device: "auto" (CUDA where available), "cpu", "cuda" or "cuda:N". Raises UsageError.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if count == 1:
        yield Processes(chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Processes(chosen, dist.get_rank(), count)
    finally:
        dist.destroy_process_group()


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """The device of that name (see `processes`); each local process gets its own GPU. Raises UsageError."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if found else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdigit():
        raise UsageError(
            f"no device is called {device!r}; expected auto, cpu, cuda or cuda:N", "choose one of these by --device"
        )
    index = int(number) if number else local_rank
    if index >= found:
        raise UsageError(f"device {device} was asked for, but PyTorch sees {found} CUDA devices", "use --device cpu")
    return torch.device("cuda", index)
