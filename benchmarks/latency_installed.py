"""What a candidate takes on disk: the files of its model, and the packages that have to be installed to run it."""

from __future__ import annotations

import importlib.metadata
from functools import cache
from pathlib import Path

from benchmarks.latency_candidates import Job

ROOT = Path(__file__).resolve().parents[1]
_RUNTIME = ("numpy", "pillow", "tokenizers")
_NEEDED = {
    "torch": ("torch", "safetensors", *_RUNTIME), "ort": ("onnxruntime", *_RUNTIME), "openvino": ("openvino", *_RUNTIME),
    "ours": ("onnxruntime", *_RUNTIME), "clipseg": ("torch", "transformers", *_RUNTIME),
}  # fmt: skip


def model_bytes(job: Job) -> int:
    """Of pictures' and words' sides alike, for candidates other than PyTorch's. One graph: with text graph and tokenizer."""
    files = job.files
    bundle = files.bundle(job.precision)
    if job.candidate.startswith("ours"):
        return sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    return sum(
        file.stat().st_size for file in (files.monolith(job.precision), bundle / "text.onnx", bundle / "tokenizer.json")
    )


def installed_bytes(candidate: str) -> int | None:
    """Of the distributions it needs, and of ours the runtime; None where one is not installed."""
    kind = next((name for name in _NEEDED if candidate.startswith(name)), "torch")
    try:
        total = sum(_bytes(name) for name in set().union(*(_closure(name) for name in _NEEDED[kind])))
    except importlib.metadata.PackageNotFoundError:
        return None
    if kind == "ours":
        total += sum(file.stat().st_size for file in (ROOT / "fusioner_rt").rglob("*.py"))
    return total


@cache
def _closure(name: str) -> frozenset[str]:
    """A distribution and all it requires on this machine."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: set[str] = set()
    waiting = [canonicalize_name(name)]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        for text in importlib.metadata.requires(one) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    return frozenset(found)


@cache
def _bytes(name: str) -> int:
    files = importlib.metadata.files(name) or []
    return sum(path.stat().st_size for file in files if (path := Path(str(file.locate()))).is_file())
