"""The examples compile, and call the session by names and arguments that it has. They run where their library and a GPU
are: tests/runtime/gpu/test_on_gpu.py.
"""

import ast
import inspect
from pathlib import Path

import pytest

from fusioner_rt import Session

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_there_is_one_for_each_library() -> None:
    assert [path.stem for path in EXAMPLES] == ["cupy_frames", "pycuda_frames", "torch_frames"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_sessions_are_called_as_they_can_be(path: Path) -> None:
    tree = ast.parse(path.read_text())
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "session"
    ]
    assert {call.func.attr for call in calls} == {"set_vocabulary", "segment_on_device"}
    for call in calls:
        signature = inspect.signature(getattr(Session, call.func.attr))
        signature.bind(None, *call.args, **{keyword.arg: None for keyword in call.keywords})
