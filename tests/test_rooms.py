"""The rooms of the tree and what they may import: drawn from every import there is, wherever in a file it stands."""

from __future__ import annotations

import ast
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fusioner_rt", "export", "kernels", "training")
Graph = dict[str, set[str]]

ENGINES = {"onnx", "gpu", "tensorrt", "ladder", "open_backend", "session"}
FORBIDDEN = {
    "onnx": {"gpu", "tensorrt"},
    "gpu": {"onnx", "tensorrt"},
    "tensorrt": {"onnx"},
    "words": ENGINES,
    "results": ENGINES,
}
"""By a room of the runtime: rooms and files that none of its files imports."""


def module(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def named(node: ast.AST, package: str) -> Iterator[str]:
    """What an import statement names, a module or a name in one. package: that of the file."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)


@functools.cache
def imported(text: str, package: str) -> frozenset[str]:
    return frozenset(one for node in ast.walk(ast.parse(text)) for one in named(node, package))


def imports(root: Path) -> Graph:
    """The modules of PACKAGES that each of them imports: at its top, in a function, or for types alone."""
    files = {module(file, root): file for package in PACKAGES for file in (root / package).rglob("*.py")}
    graph: Graph = {}
    for name, file in files.items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        found = imported(file.read_text(), package)
        graph[name] = {one if one in files else one.rpartition(".")[0] for one in found} & files.keys() - {name}
    return graph


def circle(graph: Graph) -> list[str]:
    """A way from a module back to itself, or none."""
    done: set[str] = set()
    for start in graph:
        way, waiting = [start], [iter(sorted(graph[start]))]
        while waiting:
            following = next(waiting[-1], None)
            if following is None:
                waiting.pop()
                done.add(way.pop())
            elif following in way:
                return [*way[way.index(following) :], following]
            elif following not in done:
                way.append(following)
                waiting.append(iter(sorted(graph[following])))
    return []


def room(name: str) -> str:
    """The folder of a module of the runtime, or the module itself where it lies in none."""
    return name.split(".")[1] if "." in name else ""


def trespasses(graph: Graph) -> list[tuple[str, str]]:
    return [
        (name, other)
        for name in graph
        if name.startswith("fusioner_rt.")
        for other in sorted(graph[name])
        if other.startswith("fusioner_rt.") and room(other) in FORBIDDEN.get(room(name), set())
    ]


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert circle(imports(ROOT)) == []


def test_no_backend_imports_anothers_room_and_words_and_results_no_engine() -> None:
    graph = imports(ROOT)
    assert {room(name) for name in graph if name.startswith("fusioner_rt.")} >= FORBIDDEN.keys()
    assert trespasses(graph) == []


def test_the_service_is_imported_by_its_command_and_by_ray_alone() -> None:
    graph = imports(ROOT)
    assert {name for name in graph for other in graph[name] if room(other) == "serve" != room(name)} == {
        "fusioner_rt.commands.serve",
        "fusioner_rt.ray.serve",
        "fusioner_rt.ray.serve_batches",
    }


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("fusioner_rt/onnx/decoder_in_strips.py", "from ..gpu import driver", "trespass"),
        ("fusioner_rt/gpu/pipeline.py", "def late():\n    from ..onnx.mask_head import MaskHead", "trespass"),
        ("fusioner_rt/tensorrt/loaded_plan.py", "import fusioner_rt.onnx.runtime", "trespass"),
        ("fusioner_rt/results/coco.py", "from fusioner_rt.session import Session", "trespass"),
        ("fusioner_rt/words/parse.py", "from .. import open_backend", "trespass"),
        ("fusioner_rt/errors.py", "if False:\n    from .session import Session", "circle"),
        ("export/gates.py", "from export import build_engine", "circle"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, line: str, found: str) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / file, "a") as stream:
        stream.write(f"\n{line}\n")
    graph, name = imports(tmp_path), module(tmp_path / file, tmp_path)
    assert name in (circle(graph) if found == "circle" else [one for one, _ in trespasses(graph)])
