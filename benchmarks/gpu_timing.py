"""How long work takes on a GPU, without what Python takes to launch it: recorded once, over buffers that no cache holds all
of, and the recording launched many times between two marks of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fusioner_rt.gpu.cuda_graph import CudaGraph
from fusioner_rt.gpu.driver import Device, Stream
from fusioner_rt.gpu.mask_head import CudaMaskHead

COLD_BYTES = 256 << 20
"""Of all buffers together: five times the largest cache."""
MAX_BUFFERS = 64


def rotations(piece: int) -> int:
    """How many buffers of `piece` bytes it takes, that none is in a cache when it comes again."""
    return min(MAX_BUFFERS, max(2, -(-COLD_BYTES // max(1, piece))))


def microseconds(device: Device, works: Sequence[Callable[[int], Any]], seconds: float = 0.2) -> dict[str, float]:
    """Median and spread of one work. works: alike, on buffers of their own; each is given a stream, and gives it the work.

    They are recorded one after the other; a recording is launched until `seconds` have passed, eleven times at least.
    """
    driver, flags = device.driver, 0
    with Stream(device) as stream:
        for work in works:  # the first launch of a kernel loads it, which cannot be recorded
            work(stream.handle)
        stream.wait()
        graph = CudaGraph(device, stream.handle, lambda: [work(stream.handle) for work in works])
        with device.current():
            marks = driver.cuEventCreate(flags), driver.cuEventCreate(flags)
        try:
            taken: list[float] = []
            while len(taken) < 11 or (sum(taken) * len(works) < seconds * 1e6 and len(taken) < 200):
                with device.current():
                    driver.cuEventRecord(marks[0], stream.handle)
                graph.launch(stream.handle)
                with device.current():
                    driver.cuEventRecord(marks[1], stream.handle)
                stream.wait()
                with device.current():
                    taken.append(float(driver.cuEventElapsedTime(marks[0], marks[1])) * 1000 / len(works))
        finally:
            graph.close()
            with device.current():
                for mark in marks:
                    driver.cuEventDestroy(mark)
    low, median, high = np.percentile(taken[1:], (20, 50, 80))
    return {"p20_us": round(low, 2), "p50_us": round(median, 2), "p80_us": round(high, 2), "launches": len(taken)}


def mask_head_stages(
    device: Device, head: CudaMaskHead, features: Sequence[Any], words: Any, workspace: Any, maps: tuple[Any, Any],
    finite: Any, outputs: Sequence[tuple[Any, Any]], threshold: float,
) -> list[float]:  # fmt: skip
    """Median microseconds of stage 1, over the features' buffers in turn, and of stage 2, over the outputs'.

    All arrays as `CudaMaskHead.maps` and `labels` take them.
    """
    stages = (
        [lambda stream, seen=seen: head.maps(seen, words, workspace, *maps, finite, stream) for seen in features],
        [lambda stream, out=out: head.labels(*maps, threshold, *out, stream) for out in outputs],
    )
    return [microseconds(device, works)["p50_us"] for works in stages]
