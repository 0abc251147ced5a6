"""Objects that a forked process must not destroy.

A fork copies memory and one thread. ONNX Runtime's threads are not among it, and its objects wait for them when they end: a child
that destroys one hangs, or dies.
"""

import ctypes
from typing import Any


def keep_for_ever(thing: Any) -> None:
    """Count a reference that nobody gives back, so that `thing` and what it holds live until the process is gone."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
