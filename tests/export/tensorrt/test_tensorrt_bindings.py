"""Every TensorRT call this code makes exists, with the arguments it is given, in the bindings of TensorRT 10 and 11 and of
TensorRT-RTX: the real ones, loaded without their libraries."""

import ast
import functools
import io
from pathlib import Path

import bindings_alone as bindings
import numpy as np
import pytest

from fusioner_rt.tensorrt.versions import LEAST

ROOT = Path(__file__).resolve().parents[3]
MODULE = "the module"
RECEIVERS = {
    # What TensorRT's objects are called, by file, or by file and function where a name means two things.
    "trt": MODULE, "self.trt": MODULE, "self._trt": MODULE,
    "self._builder": "Builder", "self._parser": "OnnxParser", "self.definition": "INetworkDefinition",
    "export/tensorrt/build_plans.py:config": "IBuilderConfig",
    "export/tensorrt/build_plans.py:config.get_timing_cache()": "ITimingCache",
    "export/tensorrt/build_plans.py:profile": "IOptimizationProfile",
    "export/tensorrt/build_plans.py:_explained:error": "ParserError",
    "export/tensorrt/build_plans.py:error.code()": "ErrorCode",
    "export/tensorrt/report.py:network": "INetworkDefinition",
    "export/tensorrt/report.py:layer": "ILayer",
    "export/tensorrt/report.py:layer.type": "LayerType",
    "export/tensorrt/report.py:layer.get_output(0)": "ITensor",
    "export/tensorrt/report.py:tensor": "ITensor",
    "export/tensorrt/report.py:dtype": "DataType",
    "export/tensorrt/report.py:runtime": "Runtime",
    "export/tensorrt/report.py:engine": "ICudaEngine",
    "export/tensorrt/report.py:engine.create_engine_inspector()": "EngineInspector",
    "fusioner_rt/tensorrt/versions.py:config": "IRuntimeConfig",
    "fusioner_rt/tensorrt/versions.py:set_capabilities:config": "IBuilderConfig",
    "fusioner_rt/tensorrt/versions.py:require_own_memory:config": "IBuilderConfig",
    "fusioner_rt/tensorrt/versions.py:runtime": "Runtime",
    "fusioner_rt/tensorrt/versions.py:engine": "ICudaEngine",
    "fusioner_rt/tensorrt/versions.py:recordable:context": "IExecutionContext",
    "fusioner_rt/tensorrt/versions.py:flags": "EngineInvalidityDiagnostics",
    "fusioner_rt/tensorrt/runtime_cache.py:self._cache": "IRuntimeCache",
    "fusioner_rt/tensorrt/runtime_cache.py:config": "IRuntimeConfig",
    "fusioner_rt/tensorrt/loaded_plan.py:self._runtime": "Runtime",
    "fusioner_rt/tensorrt/loaded_plan.py:Engine:self._engine": "ICudaEngine",
    "fusioner_rt/tensorrt/loaded_plan.py:self._context": "IExecutionContext",
    "fusioner_rt/tensorrt/loaded_plan.py:Engine:context": "IExecutionContext",
    "fusioner_rt/tensorrt/loaded_plan.py:modes": "TensorIOMode",
}  # fmt: skip


class Uses(ast.NodeVisitor):
    """Collects `Class.member` with how it is used, and attributes of receivers that no one has named."""

    def __init__(self, file, members):
        self.file, self.members = file, members
        self.scope, self.found, self.unnamed = [], [], []

    def visit_scope(self, node):
        self.scope.append(node.name)
        self.generic_visit(node)
        self.scope.pop()

    visit_FunctionDef = visit_ClassDef = visit_scope  # noqa: N815

    def visit_Call(self, node):
        if isinstance(node.func, ast.Attribute):
            keywords = [keyword.arg for keyword in node.keywords]
            self.attribute(node.func, "call", len(node.args), keywords)
            self.visit(node.func.value)
        else:
            self.visit(node.func)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.visit(argument)

    def visit_Attribute(self, node):
        self.attribute(node, "set" if isinstance(node.ctx, ast.Store) else "get")
        self.visit(node.value)

    def attribute(self, node, how, positional=0, keywords=()):
        receiver = ast.unparse(node.value)
        owner = self.owner(receiver)
        if owner == MODULE:
            self.found.append((node.attr, how, positional, keywords))
        elif owner:
            self.found.append((f"{owner}.{node.attr}", how, positional, keywords))
        elif owner == "" and node.attr in self.members:
            self.unnamed.append(f"{self.file}:{'.'.join(self.scope)}: {receiver}.{node.attr}")

    def owner(self, receiver):
        """A class, MODULE, or "" for what nobody has named."""
        for key in (*(f"{self.file}:{scope}:{receiver}" for scope in self.scope), f"{self.file}:{receiver}", receiver):
            if key in RECEIVERS:
                return RECEIVERS[key]
        for module in (name for name, owner in RECEIVERS.items() if owner == MODULE):
            if receiver.startswith(f"{module}."):
                return receiver.removeprefix(f"{module}.")
        return ""


@functools.cache
def uses(members=frozenset()):
    found, unnamed = [], []
    for source in bindings.SOURCES:
        visitor = Uses(str(source.relative_to(ROOT)), members)
        visitor.visit(ast.parse(source.read_text()))
        found += visitor.found
        unnamed += visitor.unnamed
    return found, unnamed


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("libraries")
    return functools.cache(lambda version: bindings.of(version, folder))


def look_up(module, path):
    """The member at `ILogger.Severity.ERROR`, or None."""
    member = {"members": module}
    for name in path.split("."):
        member = member.get("members", {}).get(name)
        if member is None:
            return None
    return member


def wrong(module, path, how, positional, keywords):
    """What a module does not have of one use, or None."""
    member = look_up(module, path)
    if member is None:
        return "is not there"
    name = path.rpartition(".")[2]
    if how == "set" and not member.get("writable"):
        return "cannot be set"
    if how == "call":
        if "members" in member:  # a constructor
            member, name = member["members"]["__init__"], "__init__"
        if "signatures" not in member:
            return "cannot be called"
        if not bindings.accepts(member, name, positional, keywords):
            return f"does not take {positional} arguments and {keywords}: {member['signatures'][:1]}"
    return None


CALLS = sorted({path for path, *_ in uses()[0] if not path.startswith("__")})


@pytest.mark.parametrize("path", CALLS)
def test_every_call_exists_with_the_arguments_it_is_given(loaded, path):
    lacking = {
        (version, how, positional, *keywords): reason
        for version in (*bindings.VERSIONS, bindings.RTX)
        for used, how, positional, keywords in uses()[0]
        if used == path and (version == bindings.RTX or path not in bindings.RTX_ALONE)
        if (reason := wrong(loaded(version), path, how, positional, keywords))
    }
    assert lacking == {}


PLAIN = {
    "type",
    "line",
    "precision",
    "start",
    "size",
    "mode",
    "batch",
    "enqueue",
    "name",
    "value",
    "reset",
    "flags",
    "logger",
    "file",
}
PLAIN = PLAIN.union(*map(dir, (list, dict, str, set, io.BytesIO, np.ndarray)))
"""Members of TensorRT's classes that Python's and our own objects have as well: of a receiver that no one has named."""


def test_no_object_of_tensorrt_goes_unlooked_at(loaded):
    members = set()
    for version in (*bindings.VERSIONS, bindings.RTX):
        for kind in loaded(version).values():
            members |= {name for name, member in kind.get("members", {}).items() if not name.startswith("_")}
    assert uses(frozenset(members - PLAIN))[1] == [], (
        "say in RECEIVERS which class it is, or in PLAIN that it is Python's own"
    )


def test_what_is_called_with_rtx_alone_is_absent_from_an_older_full_tensorrt_and_used(loaded):
    oldest, used = loaded(bindings.VERSIONS[0]), {path for path, *_ in uses()[0]}
    assert {path for path in bindings.RTX_ALONE if look_up(oldest, path)} == set()
    assert used >= bindings.RTX_ALONE


def test_the_oldest_version_that_is_taken_is_the_oldest_that_was_looked_up():
    oldest = tuple(int(part) for part in bindings.VERSIONS[0].split(".")[:2])
    assert LEAST["tensorrt"] == oldest
    assert f'"tensorrt>={oldest[0]}.{oldest[1]}"' in (ROOT / "pyproject.toml").read_text()


def test_a_missing_call_a_wrong_argument_and_a_read_only_property_are_noticed(loaded):
    module = loaded("11.4.0.106")
    assert wrong(module, "BuilderFlag.FP16", "get", 0, ()) == "is not there"  # gone since TensorRT 11
    assert wrong(loaded("10.16.1.11"), "BuilderFlag.FP16", "get", 0, ()) is None
    assert wrong(module, "IBuilderConfig.set_timing_cache", "call", 1, ("ignore_mismatch",)) is None
    assert "does not take" in wrong(module, "IBuilderConfig.set_timing_cache", "call", 1, ("ignore",))
    assert "does not take" in wrong(module, "IBuilderConfig.set_timing_cache", "call", 1, ())
    assert "does not take" in wrong(module, "OnnxParser", "call", 1, ())
    assert wrong(module, "OnnxParser", "call", 2, ()) is None
    assert wrong(module, "ITensor.dtype", "set", 0, ()) == "cannot be set"
    assert wrong(module, "ITensor.dtype", "call", 0, ()) == "cannot be called"
