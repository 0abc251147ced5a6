"""Every kind of error of every room says whether the caller's input is at fault, and has a code of its own."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import export
import fusioner_rt
import training
from fusioner_rt.errors import FusionerError, PackageMissing

INPUT = [
    "UsageError",
    "BackendUnknown",
    "SizeOutsideProfile",
    "PictureMissing",
    "PictureUnreadable",
    "PictureTooLarge",
    "PictureInvalid",
    "FrameUnreadable",
    "VideoUnreadable",
    "PicturesFailed",
    "OverlayTooLarge",
    "DeviceArrayInvalid",
    "WordsInvalid",
    "TooManyWords",
    "TemplatesInvalid",
    "WordUnreadable",
    "OutputNotABundle",
    "InputUnreadable",
    "NoPictures",
    "RecipeError",
    "DataError",
    "RequestInvalid",
    "TokenWrong",
    "OriginRefused",
    "NotServed",
    "HandleGone",
    "MethodWrong",
    "FormUnknown",
    "BodySlow",
    "BodyTooLarge",
    "BodyUnknown",
]
OURS = ("fusioner_rt", "export", "training")
ROOT = Path(__file__).parents[1]


def kinds(of: type[FusionerError] = FusionerError) -> Iterator[type[FusionerError]]:
    for kind in of.__subclasses__():
        yield kind
        yield from kinds(kind)


def import_all() -> None:
    for room in (fusioner_rt, export, training):
        for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
            if not module.name.endswith("__main__"):
                try:
                    importlib.import_module(module.name)
                except (ImportError, PackageMissing):  # of an optional package
                    continue


def test_every_kind_states_whether_the_input_is_at_fault() -> None:
    import_all()
    found = {kind for kind in kinds() if kind.__module__.split(".")[0] in OURS}
    assert len(found) > 50
    assert not [kind for kind in found if "is_input" not in vars(kind)]
    assert sorted({kind.__name__ for kind in found if kind.is_input}) == sorted(INPUT)


def test_every_kind_of_the_runtime_has_an_exit_code_of_its_own() -> None:
    import_all()
    found = [kind for kind in {FusionerError, *kinds()} if kind.__module__.split(".")[0] == "fusioner_rt"]
    named = sorted((kind.exit_code, kind.__name__) for kind in found)
    assert len({code for code, _ in named}) == len(named), named


def written(file: Path) -> Iterator[tuple[int, str]]:
    """Code and name of every kind that a file defines. Read, not imported: some need packages that are not here."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, (ast.Assign, ast.AnnAssign)) and isinstance(line.value, ast.Constant):
                    targets = line.targets if isinstance(line, ast.Assign) else [line.target]
                    if any(isinstance(target, ast.Name) and target.id == "exit_code" for target in targets):
                        yield int(str(line.value.value)), f"{file.relative_to(ROOT)}: {node.name}"


def test_no_two_kinds_of_the_repository_have_one_code() -> None:
    """A program that reads `code` in the service's answer, or an exit code, looks one up in one list."""
    rooms = (*OURS, "benchmarks", "kernels", "examples")
    found = sorted(pair for room in rooms for file in (ROOT / room).rglob("*.py") for pair in written(file))
    assert len(found) > 80
    twice = [pair for pair in found if sum(pair[0] == code for code, _ in found) > 1]
    assert not twice
    assert found[0][0] > 0
    assert found[-1][0] < 124  # timeout's and the shells' own begin there


def test_every_kind_writes_its_code() -> None:
    """One that took its base's would not be seen by the test above."""
    import_all()
    found = {kind for kind in kinds() if kind.__module__.split(".")[0] in OURS}
    assert not [kind for kind in found if "exit_code" not in vars(kind)]
