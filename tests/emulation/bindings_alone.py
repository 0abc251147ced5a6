"""The Python bindings of TensorRT without TensorRT: its registry wheels against empty libraries compiled on the spot.

The bindings are thin: classes and signatures are in them, the work is in libnvinfer, which NVIDIA gives out elsewhere. A
library that exports the few functions they look up when they are loaded lets them be imported, and nothing be called.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WHEELS = Path(sys.prefix) / "tensorrt-bindings"
VERSIONS = ("10.3.0", "10.9.0.34", "10.16.1.11", "11.4.0.106")
RTX = "tensorrt-rtx"

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    file
    for room in ("export", "fusioner_rt")
    for file in (ROOT / room).rglob("*.py")
    if file.parent.name == "tensorrt" or re.search(r"\b_?trt\.", file.read_text())
)
"""Every file that calls TensorRT."""

RTX_ALONE = {
    "EngineValidity", "EngineValidity.INVALID", "EngineValidity.SUBOPTIMAL", "EngineInvalidityDiagnostics",
    "Runtime.get_engine_validity", "IRuntimeConfig.create_runtime_cache", "IRuntimeConfig.set_runtime_cache",
    "IRuntimeConfig.cuda_graph_strategy", "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.set_execution_context_allocation_strategy", "ICudaEngine.create_runtime_config",
    "IRuntimeCache.deserialize", "IRuntimeCache.serialize", "CudaGraphStrategy", "CudaGraphStrategy.DISABLED",
    "DynamicShapesKernelSpecializationStrategy", "DynamicShapesKernelSpecializationStrategy.EAGER",
    "ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability",
    "BuilderFlag.REQUIRE_USER_ALLOCATION", "IExecutionContext.is_stream_capturable",
    *(f"EngineInvalidityDiagnostics.{name}" for name in (
        "VERSION_MISMATCH", "UNSUPPORTED_CC", "INSUFFICIENT_GPU_MEMORY", "OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME",
        "MALFORMED_ENGINE",
    )),
}  # fmt: skip
"""Called with TensorRT-RTX only, as fusioner_rt/tensorrt/versions.py sees to."""

DESCRIBE = r"""
import importlib, inspect, json, sys
def described(owner):
    members = {}
    for name in dir(owner):
        value = getattr(owner, name, None)
        if name.startswith("__") and name != "__init__":
            continue
        if isinstance(value, property):
            members[name] = {"writable": value.fset is not None}
        elif inspect.isclass(value):
            members[name] = {"members": described(value)} if value.__module__.startswith(("tensorrt", "pybind11")) else {}
        elif inspect.isfunction(value):
            members[name] = {"signatures": [name + str(inspect.signature(value))]}
        elif callable(value):
            members[name] = {"signatures": (value.__doc__ or "").splitlines()}
        else:
            members[name] = {}
    return members
module = importlib.import_module(sys.argv[1])
print(json.dumps({"version": module.__version__, "members": described(module)}))
"""


def of(version, temporary):
    """What the bindings of a version of VERSIONS, or the installed TensorRT-RTX, consist of: {name: member}.

    member: `signatures` of a function, `writable` of a property, `members` of a class. Skips where they are not installed.
    """
    if version == RTX:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
        return _described("tensorrt_rtx", {})
    return _described("tensorrt_bindings", environment(version, str(temporary)))


@functools.cache
def environment(version, temporary):
    """Variables under which `import tensorrt_bindings` works. Compiles the empty libraries into `temporary`."""
    wheel = WHEELS / version
    library = wheel / "tensorrt_bindings" / "tensorrt.so"
    if not library.is_file():
        pytest.skip(f"the bindings of TensorRT {version} are not in {WHEELS}: make {WHEELS.name}")
    compiler = shutil.which("cc")
    if compiler is None or shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("no C compiler and binutils: apt-get install gcc")
    folder = Path(temporary) / version
    folder.mkdir(parents=True)
    symbols = _printed("nm", "-D", "--undefined-only", library)
    wanted = re.findall(r"\b((?:create|get|init)[A-Z]\w+)$", symbols, re.MULTILINE)
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in wanted))
    for needed in re.findall(r"\[(libnv\w+\.so\.\d+)\]", _printed("readelf", "-d", library)):
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{needed}", "-o", folder / needed, source], check=True
        )
    return {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(wheel)}


def _described(module, variables):
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE, module], env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["members"]


def _printed(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def accepts(member, name, positional, keywords):
    """Whether one of a function's signatures takes so many positional arguments and these keywords."""
    for line in member["signatures"]:
        found = re.match(rf"\s*(?:\d+\. )?{re.escape(name)}\((.*)\)(?: -> .*)?$", line)
        if not found or found[1] == "*args, **kwargs":
            continue
        parameters = [part.strip() for part in _split(found[1])]
        parameters = [part for part in parameters if not part.startswith("self:")]
        names = [part.partition(":")[0].strip() for part in parameters]
        required = {name for name, part in zip(names, parameters, strict=True) if "=" not in part}
        given = set(names[:positional]) | set(keywords)
        if positional <= len(names) and set(keywords) <= set(names[positional:]) and required <= given:
            return True
    return False


def _split(parameters):
    """At the commas outside brackets."""
    depth, part = 0, ""
    for character in parameters:
        depth += (character in "[(<") - (character in "])>")
        if character == "," and not depth:
            yield part
            part = ""
        else:
            part += character
    if part.strip():
        yield part
