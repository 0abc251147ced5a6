"""Where bundles lie that have a name: in the user's data folder, and in installed packages (docs/bundle.md)."""

import importlib.util
import os
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .manifest import MANIFEST

GROUP = "fusioner_rt.bundles"
"""Entry points of packages that hold a bundle: its name, and the module whose folder it lies in."""
DEMONSTRATION = "demo"


@dataclass(frozen=True)
class NamedBundle:
    """package: that holds it, or None for a fetched bundle."""

    folder: Path
    package: str | None

    @property
    def source(self) -> str:
        return f"installed by the package {self.package}" if self.package else f"fetched to {self.folder}"


def fetched_folder() -> Path:
    """Where `fusioner-rt fetch` puts bundles: fusioner-rt/bundles in $XDG_DATA_HOME, else in ~/.local/share."""
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path(os.path.expanduser("~"), ".local", "share")) / "fusioner-rt" / "bundles"


def named_bundles() -> dict[str, NamedBundle]:
    """Fetched and installed bundles by name; of one name, the fetched one. The default first, the demonstration last."""
    found = {folder.name: NamedBundle(folder, None) for folder in bundles_in(fetched_folder())}
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        if entry.name not in found and (folder := _folder(entry)):
            found[entry.name] = NamedBundle(folder, entry.dist.name if entry.dist else entry.value)
    return dict(sorted(found.items(), key=lambda item: (item[0] == DEMONSTRATION, item[0])))


def bundles_in(folder: Path) -> list[Path]:
    """The folders in this one that hold a manifest, but for hidden ones, sorted."""
    try:
        inside = [child for child in sorted(folder.iterdir()) if not child.name.startswith(".")]
    except (OSError, ValueError):  # no folder, or no name of one
        return []
    return [child for child in inside if os.path.isfile(child / MANIFEST)]


def _folder(entry: metadata.EntryPoint) -> Path | None:
    """The bundle's folder, that of the entry's module or one in it. Imports nothing; None where there is no module."""
    top, *inner = re.findall(r"\w+", entry.value.partition("[")[0]) or [""]
    places = [Path(str(entry.dist.locate_file(top)))] if entry.dist else []
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    places += map(Path, (spec and spec.submodule_search_locations) or [])
    folders = [place.joinpath(*inner) for place in places]
    holding = [
        one for folder in folders for one in ([folder] if os.path.isfile(folder / MANIFEST) else bundles_in(folder))
    ]
    return next(iter([*holding, *(folder for folder in folders if folder.is_dir())]), None)
