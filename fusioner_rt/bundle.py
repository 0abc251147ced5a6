"""The engine bundle: a folder with a manifest that names, sizes and hashes every file in it (docs/bundle.md)."""

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .argument_checks import as_path, named, whole
from .atomic_files import write_atomically
from .cures import OPEN_AGAIN, PLACES, build_command, plans_command, rebuild
from .errors import (
    BundleFileAltered,
    BundleFileMissing,
    BundleMissing,
    BundleVersionUnknown,
    KernelsUnusable,
    ManifestInvalid,
    SizeOutsideProfile,
    Spelled,
    UsageError,
)
from .manifest import FORMAT, FORMAT_VERSION, MANIFEST, FileEntry, Manifest

_MAX_READ = 64 << 20  # bytes; larger files are hashed without being held in memory


@dataclass(frozen=True)
class Bundle(Manifest):
    """A manifest and its folder."""

    folder: Path

    @classmethod
    def open(cls, folder: str | os.PathLike[str], plans: bool = True) -> "Bundle":
        """Read the manifest and check every file against it. plans: whether to check the plans too.

        Raises BundleMissing, ManifestInvalid, BundleVersionUnknown, BundleFileMissing or BundleFileAltered.
        """
        folder = Path(folder)
        bundle = cls.of(folder, read_manifest(folder))
        plan_files = {file for plan in bundle.plans for file in plan.files}
        verify_files({file: entry for file, entry in bundle.files.items() if file not in plan_files}, rebuild(folder))
        if plans:
            flavour = bundle.plans[0].flavour if bundle.plans else "tensorrt"
            cure = f"copy the bundle again, or build its plans again: {plans_command(folder, flavour)}"
            verify_files({file: entry for file, entry in bundle.files.items() if file in plan_files}, cure)
        return bundle

    @classmethod
    def of(cls, folder: Path, content: Mapping[str, Any]) -> "Bundle":
        """A bundle of a parsed JSON manifest, files unchecked. Raises ManifestInvalid."""
        try:
            return cls(**vars(Manifest.parse(folder, content)), folder=folder)
        except ManifestInvalid as error:
            raise ManifestInvalid(error.found, rebuild(folder), subject=folder / MANIFEST) from None

    def graph(self, name: str) -> Path:
        """The path of a graph."""
        return self.graphs[name].file

    @property
    def kernels_folder(self) -> Path:
        """The folder of the compiled kernels. Raises KernelsUnusable where there are none."""
        if self.kernels is None:
            raise KernelsUnusable(
                "holds no compiled kernels, which a GPU runs pictures and masks with",
                f"rebuild it without --kernels none: {build_command(self.folder)}",
                subject=self.folder,
            )
        return self.kernels.abi.parent

    @property
    def picture_sha256(self) -> str:
        """Hash of all that encoded pictures depend on: preprocessing and the graphs that read pictures."""
        files = {file for name in ("image_fusion", "image") for file in self.graphs[name].files}
        hashes = {file.relative_to(self.folder).as_posix(): self.files[file].sha256 for file in files}
        content = json.dumps([self.preprocessing.to_manifest(), hashes], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def text_sha256(self) -> str:
        """Hash of the text graph, which word vectors depend on."""
        return self.files[self.graph("text")].sha256

    def with_input_side(self, side: int | None) -> "Bundle":
        """The same bundle with another `Preprocessing.side`; None keeps its own. Raises UsageError outside its profile."""
        if side is None:
            return self
        try:
            side = whole(side, "input_size", self.size.min, self.size.max, "")
            fits = self._fits(side)
        except UsageError:
            fits = False
        if not fits:
            takes, own = [s for s in range(self.size.min, self.size.max + 1) if self._fits(s)], self.preprocessing.side
            whole_numbers = f"whole numbers of {takes[0]} to {takes[-1]}" if takes else "no other than its own"
            found, expected = named("input_size", side), f"the bundle in {self.folder} takes {whole_numbers}"
            raise UsageError(
                Spelled(f"{found}; {expected}", f"{found.command}; {expected}"),
                f"give one of those; its own is {own}" if takes else f"leave it out; its own is {own}",
            )
        return replace(self, preprocessing=replace(self.preprocessing, side=side))

    def _fits(self, side: int) -> bool:
        """Whether it is one of the bundle's sizes, and pictures of 16:9 keep their aspect within them."""
        if not self.size.min <= side <= self.size.max:
            return False
        edges = replace(self.preprocessing, side=side, longest=2 * self.size.max).input_size(900, 1600)
        return self.size.min <= min(edges) and max(edges) <= self.size.max

    def input_size(self, height: int, width: int, picture: str) -> tuple[int, int]:
        """Network input (h, w) of a picture. picture: its name for messages. Raises SizeOutsideProfile."""
        h, w = self.preprocessing.input_size(height, width)
        allowed = self.size
        if not (allowed.min <= min(h, w) and max(h, w) <= allowed.max):
            shortest, longest = min(allowed.min, h, w), max(allowed.max, h, w)
            raise SizeOutsideProfile(
                f"needs a network input of {w}x{h}, the bundle in {self.folder} was built for edges of "
                f"{allowed.min} to {allowed.max}",
                rebuild(self.folder, sizes=f"{shortest},{allowed.opt},{longest}"),
                subject=picture,
            )
        return h, w

    def read_again(self, file: Path) -> bytes | None:
        """Read a file after `open` and check its hash again, since the bundle may have been replaced meanwhile.

        Returns the bytes, or None for a file over 64 MiB, which the caller loads by its path.
        Raises BundleFileMissing or BundleFileAltered.
        """
        expected = self.files[file]
        try:
            content = file.read_bytes() if expected.bytes <= _MAX_READ else None
            digest = sha256(file) if content is None else hashlib.sha256(content).hexdigest()
        except OSError as error:
            raise BundleFileMissing(f"can no longer be read ({error.strerror})", OPEN_AGAIN, subject=file) from None
        if digest != expected.sha256:
            raise BundleFileAltered(
                f"was replaced after this session had opened the bundle (sha256 {digest[:12]}…, expected "
                f"{expected.sha256[:12]}…)",
                OPEN_AGAIN,
                subject=file,
            )
        return content


def find_bundle(folder: str | os.PathLike[str] | None = None) -> Path:
    """The bundle's folder: the one given, else $FUSIONER_ENGINE, else the first of PLACES. Raises BundleMissing, UsageError."""
    if folder is not None:
        return as_path(folder, "the bundle")
    if from_environment := os.environ.get("FUSIONER_ENGINE"):
        return Path(from_environment)
    for place in PLACES:
        if (Path(place) / MANIFEST).is_file():
            return Path(place)
    raise BundleMissing(
        f"no engine bundle was named and none lies in {' or '.join(PLACES)} below {Path.cwd()}",
        Spelled(
            f"name one, also by FUSIONER_ENGINE, or build one: {build_command(Path(PLACES[0]))}",
            f"name one with --engine DIR or FUSIONER_ENGINE, or build one: {build_command(Path(PLACES[0]))}",
        ),
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json as JSON. Checks its format and version alone."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = f"holds no {MANIFEST}" if folder.is_dir() else "there is no such folder"
        if (folder / "config.json").is_file():
            raise BundleMissing(
                "is a checkpoint, an engine bundle was expected",
                f"build one: python export/build_engine.py --checkpoint {shlex.quote(str(folder))} --fp16",
                subject=folder,
            ) from None
        raise BundleMissing(
            f"{found}, an engine bundle was expected",
            Spelled(
                f"name another, or build it: {build_command(folder)}",
                f"name another with --engine DIR, or build it: {build_command(folder)}",
            ),
            subject=folder,
        ) from None
    except NotADirectoryError:
        raise BundleMissing("is not a folder, an engine bundle was expected", "name one", subject=folder) from None
    except OSError as error:
        raise BundleMissing(f"cannot be read ({error.strerror})", "check its permissions", subject=path) from None
    except ValueError as error:  # JSON and UTF-8 errors
        raise ManifestInvalid(f"is not JSON ({error})", rebuild(folder), subject=path) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ManifestInvalid(f'does not say "format": "{FORMAT}"', f"name another, or {rebuild(folder)}", subject=path)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        raise BundleVersionUnknown(
            f"format version {version!r}, this fusioner-rt reads version {FORMAT_VERSION}",
            f"{'update fusioner-rt, or ' if newer else ''}{rebuild(folder)}",
            subject=path,
        )
    return manifest


def verify_files(files: Mapping[Path, FileEntry], cure: str) -> None:
    """Compare size and sha256 of every file with the manifest's. cure: of the error where they differ.

    Raises BundleFileMissing or BundleFileAltered.
    """
    for file, expected in files.items():
        try:
            size = file.stat().st_size
            if size != expected.bytes:
                raise BundleFileAltered(f"has {size} bytes, the manifest says {expected.bytes}", cure, subject=file)
            digest = sha256(file)
        except FileNotFoundError:
            raise BundleFileMissing("is missing, the manifest lists it", cure, subject=file) from None
        except OSError as error:
            raise BundleFileMissing(
                f"cannot be read ({error.strerror}), the manifest lists it", cure, subject=file
            ) from None
        if digest != expected.sha256:
            raise BundleFileAltered(
                f"its content is not what the bundle was built with (sha256 {digest[:12]}…, expected "
                f"{expected.sha256[:12]}…)",
                cure,
                subject=file,
            )


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def complete(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with `format`, `format_version` and all files of the folder added. Raises OSError."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    first = {"format": FORMAT, "format_version": FORMAT_VERSION}
    return {**first, **manifest, **first, "files": files}


def write_manifest(folder: str | os.PathLike[str], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write manifest.json, completed by `complete`, and return its content. Raises OSError."""
    folder = Path(folder)
    whole = complete(folder, manifest)
    text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / MANIFEST, lambda stream: stream.write(text.encode()))
    return whole
