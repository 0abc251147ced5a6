"""`Session.segment_on_device`: pictures and label maps in GPU memory, on a caller's stream."""

from dataclasses import dataclass
from typing import Any

from ..bundle import Bundle
from ..cures import build_command
from ..device_array import DeviceArray
from ..errors import BackendUnavailable, DeviceArrayInvalid
from ..executor_interface import Executor, Request
from ..words.owners import NameTables
from .executor import GpuExecutor
from .foreign_arrays import GpuArray, view


@dataclass(frozen=True, eq=False)
class DeviceSegmentation:
    """words: the K names. labels: (H, W) or (B, H, W) uint16, 0 = background, n = words[n - 1]. confidence: of that
    shape, float32, or float16 where `out` is. Both are `GpuArray`s, or the objects of `out`, and are filled in the order
    of `stream`.
    """

    words: tuple[str, ...]
    labels: Any
    confidence: Any
    stream: int


def segment_on_device(
    executor: Executor, bundle: Bundle, picture: Any, words: tuple[str, ...], request: Request,
    size: tuple[int, int] | None, stream: int, out: tuple[Any, Any] | None, names: NameTables | None = None,
) -> DeviceSegmentation:  # fmt: skip
    """See `Session.segment_on_device`, which has checked the options."""
    if not isinstance(executor, GpuExecutor):
        raise BackendUnavailable(
            "segment_on_device needs a backend that works in GPU memory, and this session's does not",
            "session.backend.passed_over and session.notes tell why, fusioner-rt doctor what to do; or copy the picture "
            "to the host and use segment",
        )
    device = executor.device
    given = view(picture, "picture", device, stream)
    batch = given if len(given.shape) == 4 else DeviceArray(given.pointer, (1, *given.shape), given.dtype)
    if given.dtype != "uint8" or len(batch.shape) != 4 or batch.shape[3] != 3 or min(batch.shape) < 1:
        raise DeviceArrayInvalid(f"picture is {given.dtype} {given.shape}", "give (H, W, 3) or (B, H, W, 3) uint8 RGB")
    pictures, height, width = batch.shape[:3]
    if pictures > bundle.batch.max:
        raise DeviceArrayInvalid(
            f"picture holds {pictures} pictures; the bundle was built for {bundle.batch.max} at once",
            f"give them in parts, or rebuild it: {build_command(bundle.folder, max_batch=pictures)}",
        )
    input_size = bundle.input_size(height, width, "the picture in GPU memory")
    edges = (pictures, *(size or (height, width)))
    shape = edges if len(given.shape) == 4 else edges[1:]
    results: tuple[Any, Any] = out or (
        executor.new(shape, "uint16", stream), executor.new(shape, "float32", stream),
    )  # fmt: skip
    arrays = []
    for name, dtypes, result in (
        ("labels", ("uint16",), results[0]),
        ("confidence", ("float32", "float16"), results[1]),
    ):
        array = view(result, f"{name} of out", device, stream, writable=True)
        if array.shape != shape or array.dtype not in dtypes:
            raise DeviceArrayInvalid(
                f"{name} of out is {array.dtype} {array.shape}", f"give {' or '.join(dtypes)} {shape}"
            )
        arrays.append(DeviceArray(array.pointer, edges, array.dtype))
    executor.run_on(stream, batch, input_size, request, arrays[0], arrays[1], names)
    for result in results:
        if isinstance(result, GpuArray):
            result.filled()
    return DeviceSegmentation(words, *results, stream)
