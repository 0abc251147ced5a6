"""Whether a folder may be replaced as a whole: where it is of our own kind, and nothing else lies in it."""

from collections.abc import Collection
from pathlib import Path

from .errors import OutputUnwritable
from .manifest import FORMAT, GRAPHS, MANIFEST
from .manifest_document import LARGEST, read_document
from .regular_files import open_regular

_NAMED = 5  # files in a message


def holds_a_bundle(folder: Path) -> bool:
    """Whether a folder's manifest is a bundle's, of any version, or was one before it was harmed, as it says or the graphs do."""
    try:
        return read_document(folder).get("format") == FORMAT
    except ValueError:
        with open_regular(folder / MANIFEST) as stream:
            says_so = FORMAT.encode() in stream.read(LARGEST)
        return says_so or all((folder / f"{name}.onnx").is_file() for name in GRAPHS)
    except (OSError, TypeError):
        return False


def check_nothing_is_lost(old: Path, new: Path | None = None) -> None:
    """Check that all files of a bundle's folder are the bundle's own.

    new: the folder of the bundle that takes its place, which tells a bundle's files where the old manifest is harmed; without
    it such a folder passes. Raises OutputUnwritable.
    """
    listed = _listed(old)
    if listed is None and new is not None:
        listed = _listed(new)
    if listed is not None:
        check_files(old, {MANIFEST, *listed}, "the manifest does not list")


def check_files(folder: Path, own: Collection[str], why: str) -> None:
    """Check that a folder, where there is one, holds no other files than `own`, relative paths. Raises OutputUnwritable.

    why: what tells the others, for the message: "the manifest does not list".
    """
    there = [file for file in folder.rglob("*") if file.is_symlink() or not file.is_dir()]
    others = sorted({file.relative_to(folder).as_posix() for file in there} - set(own))
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        raise OutputUnwritable(
            f"holds {', '.join(others[:_NAMED])}{more}, which would be removed: {why} {'it' if len(others) == 1 else 'them'}",
            "move what is yours elsewhere first, or choose another place",
            subject=folder,
        )


def _listed(folder: Path) -> set[str] | None:
    """The files that a manifest of any version lists, or None."""
    try:
        return {Path(name).as_posix() for name in dict(read_document(folder)["files"])}
    except (OSError, ValueError, TypeError, LookupError):
        return None
