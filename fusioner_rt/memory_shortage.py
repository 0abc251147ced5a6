"""A shortage of memory, in whatever words a library tells of it, as one kind of error: MemoryShort.

Below a call of the API a shortage is a MemoryError, or what a library makes of one: what catches a library's errors lets a
shortage pass (`is_shortage`), and the call itself (`tells_shortage`) says what was asked for and what would need less.
"""

import errno
import functools
import mmap
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from .errors import FusionerError, MemoryShort, Spelled, one_line

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")

OF_A_PICTURE = Spelled(
    "give a smaller picture, size=(H, W), fewer pictures or words a call, or open the session with threads=1 or a smaller "
    "input_size",
    "give a smaller picture, --size HxW or fewer words, or --threads 1 or a smaller --input-size",
)
OF_A_RESULT = Spelled("segment with a smaller size=(H, W), and keep fewer results", "give a smaller --size HxW")
OF_A_SESSION = Spelled("free some, or open the session with threads=1", "free some, or give --threads 1")

_NO_THREAD = ("can't start new thread", "pthread_create failed")
_SAID = (
    *_NO_THREAD,
    "bad_alloc",
    "bad allocation",
    "can't allocate lock",
    "annot allocate memory",
    "ailed to allocate memory",
    "failed to map segment",
    "out of memory",
)
"""How Python, ONNX Runtime, Pillow and the dynamic linker tell of it where they raise no MemoryError."""


def is_shortage(error: BaseException) -> bool:
    """Whether an error of a library, or of Python, tells of too little memory."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, FusionerError):  # it has a kind, and may quote anything
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    text = str(error)
    return any(said in text for said in _SAID)


def check_room(count: int) -> None:
    """Raises MemoryError where `count` bytes cannot be had: before work of libraries that end the process where they get none."""
    try:
        mmap.mmap(-1, count).close()
    except OSError as error:
        raise MemoryError(f"{count >> 20} MiB at once") from error


def memory_short(error: BaseException, cure: str, subject: object = None) -> MemoryShort:
    """A shortage as an error of ours."""
    told = one_line(error)
    needed = f" ({told})" if str(error).strip() else ""
    found = f"needs more memory than is free here{needed}"
    if any(said in told for said in _NO_THREAD):
        found = f"no further thread can be started here, for want of memory or by a limit on threads{needed}"
    return MemoryShort(found, cure, None if subject is None else str(subject))


def tells_shortage(
    cure: str, of: Callable[..., object] | None = None
) -> Callable[[Callable[Arguments, Returned]], Callable[Arguments, Returned]]:
    """Decorates a call whose shortages are to be MemoryShort. of: what a call works on, from its arguments; or None.

    The failed call's frames are cleared, so that whoever keeps the error does not keep the arrays they held.
    """

    def decorate(call: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
        @functools.wraps(call)
        def told(*arguments: Arguments.args, **options: Arguments.kwargs) -> Returned:
            try:
                return call(*arguments, **options)
            except Exception as error:
                told_already = isinstance(error, MemoryShort)
                if not told_already and not is_shortage(error):
                    raise
                traceback.clear_frames(error.__traceback__)
                if told_already:
                    raise
                short = memory_short(error, cure, of(*arguments, **options) if of else None)
            raise short  # out of the handler: an error's context would be kept with it

        return told

    return decorate
