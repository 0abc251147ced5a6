"""Every kind of error of every room says whether the caller's input is at fault."""

import importlib
import pkgutil
from collections.abc import Iterator

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
