"""The engine bundle: a folder with a manifest that names, sizes and hashes every file in it (docs/bundle.md)."""

import contextlib
import hashlib
import json
import mmap
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from .argument_checks import as_path, named, shown, whole
from .atomic_files import write_atomically
from .bundle_places import bundles_in, named_bundles
from .cures import GET_ONE, OPEN_AGAIN, PLACES, build_command, in_checkout, is_checkout, plans_command, rebuild, restore
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
    one_line,
)
from .manifest import FORMAT, FORMAT_VERSION, MANIFEST, FileEntry, Manifest
from .manifest_document import DIGEST, digest_of, has_its_digest, read_document, with_digest
from .regular_files import NotRegular, open_regular

_MOST_IN_MEMORY = 64 << 20  # bytes of weights
_CHUNK = 1 << 18


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
        rest = {file: entry for file, entry in bundle.files.items() if file not in plan_files}
        verify_files(rest, lambda: restore(folder))
        if plans:
            verify_files({file: bundle.files[file] for file in plan_files}, bundle._plans_again)
        return bundle

    @classmethod
    def of(cls, folder: Path, content: Mapping[str, Any]) -> "Bundle":
        """A bundle of a parsed JSON manifest, files unchecked. Raises ManifestInvalid."""
        try:
            return cls(**vars(Manifest.parse(folder, content)), folder=folder)
        except ManifestInvalid as error:
            raise ManifestInvalid(error.found, restore(folder), subject=folder / MANIFEST) from None

    def _plans_again(self) -> str:
        return f"copy the bundle again, or build its plans again: {plans_command(self.folder, self.plans[0].flavour)}"

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

    def read(self, file: Path) -> bytes:
        """The content of a file, as it was hashed just now: the bundle may have been replaced since it was opened.

        Raises BundleFileMissing or BundleFileAltered.
        """
        with self._opened(file) as (stream, size):
            content = stream.read(size)
        self._check(file, content)
        return content

    def read_weights(self, file: Path) -> bytes | mmap.mmap:
        """As `read`. A file over 64 MiB is mapped, which takes no memory of its own: who writes into it later writes here."""
        if self.files[file].bytes <= _MOST_IN_MEMORY:
            return self.read(file)
        with self._opened(file) as (stream, _):
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._check(file, content)
        return content

    @contextlib.contextmanager
    def _opened(self, file: Path) -> Iterator[tuple[BinaryIO, int]]:
        """A file that is listed and has its size, and that size."""
        if file not in self.files:
            raise BundleFileMissing(
                "is not in the manifest, and a file of the bundle names it", OPEN_AGAIN, subject=file
            )
        expected = self.files[file].bytes
        try:
            with open_regular(file) as stream:
                if (size := os.fstat(stream.fileno()).st_size) != expected:
                    raise self._replaced(file, f"{size} bytes, expected {expected}")
                yield stream, expected
        except OSError as error:
            raise BundleFileMissing(f"can no longer be read ({error.strerror})", OPEN_AGAIN, subject=file) from None

    def _check(self, file: Path, content: bytes | mmap.mmap) -> None:
        digest, expected = hashlib.sha256(content).hexdigest(), self.files[file].sha256
        if digest != expected:
            raise self._replaced(file, f"sha256 {digest[:12]}…, expected {expected[:12]}…")

    def _replaced(self, file: Path, how: str) -> BundleFileAltered:
        return BundleFileAltered(
            f"was replaced after this session had opened the bundle ({how})", OPEN_AGAIN, subject=file
        )


@dataclass(frozen=True)
class FoundBundle:
    """why: a sentence's part that tells why it is this one."""

    folder: Path
    why: str


def find_bundle(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder that `locate_bundle` finds."""
    return locate_bundle(given).folder


def locate_bundle(given: str | os.PathLike[str] | None = None) -> FoundBundle:
    """The bundle that is meant. Its files are not read.

    given: its folder, the folder that it alone lies in, or the name of an installed or fetched bundle. By default
        $FUSIONER_ENGINE, which names one likewise, else the first of PLACES, else the first of `named_bundles`.
    Raises BundleMissing, UsageError.
    """
    if given is not None:
        as_path(given, "the bundle")
        return _named(os.fspath(given), "it was named")
    if from_environment := os.environ.get("FUSIONER_ENGINE"):
        return _named(from_environment, "FUSIONER_ENGINE names it")
    for place in PLACES:
        if os.path.isfile(Path(place, MANIFEST)):
            return FoundBundle(
                Path(place), f"none was named; the first in {' and '.join(PLACES)} below the current folder"
            )
    for name, bundle in (known := named_bundles()).items():
        others = ", ".join(list(known)[1:])
        others = f"; there are also {others}, by their names" if others else ""
        return FoundBundle(bundle.folder, f"none was named; {name}, {bundle.source}{others}")
    raise BundleMissing(
        f"no engine bundle was named, none lies in {' or '.join(PLACES)} below {Path.cwd()}, and none is installed or fetched",
        Spelled(
            f"name one, also by FUSIONER_ENGINE, {_get_one(Path(PLACES[0]))}",
            f"name one with --engine DIR or FUSIONER_ENGINE, {_get_one(Path(PLACES[0]))}",
        ),
    )


def _named(given: str, why: str) -> FoundBundle:
    if "://" in given:
        raise BundleMissing(
            "is a URL, a folder was expected",
            "fetch it, and name what that prints: fusioner-rt fetch URL",
            subject=given,
        )
    folder = Path(given)
    if folder.name == MANIFEST and os.path.isfile(folder):
        folder = folder.parent
    if os.path.isfile(folder / MANIFEST):
        return FoundBundle(folder, why)
    inside = bundles_in(folder)
    if len(inside) > 1:
        names = ", ".join(bundle.name for bundle in inside)
        raise BundleMissing(
            f"holds no {MANIFEST} and several bundles: {names}", f"name one, such as {inside[0]}", subject=folder
        )
    if inside:
        return FoundBundle(inside[0], f"{why}: the one bundle in {given}")
    if given == folder.name and not os.path.exists(folder) and (bundle := named_bundles().get(given)):
        return FoundBundle(bundle.folder, f"{why}: {given}, {bundle.source}")
    return FoundBundle(folder, why)


def _get_one(folder: Path) -> str:
    return f"{GET_ONE}{f', or build it: {build_command(folder)}' if is_checkout() else ''}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json as JSON. Checks its format, version and digest alone.

    Raises BundleMissing, ManifestInvalid, BundleVersionUnknown, BundleFileAltered.
    """
    path = folder / MANIFEST
    try:
        manifest = read_document(folder)
    except FileNotFoundError:
        found = f"holds no {MANIFEST}" if folder.is_dir() else _no_such(folder)
        if (folder / "config.json").is_file():
            place = folder if is_checkout() else folder.absolute()
            raise BundleMissing(
                "is a checkpoint, an engine bundle was expected",
                f"build one: {in_checkout(f'python export/build_engine.py --checkpoint {shlex.quote(str(place))} --fp16')}",
                subject=folder,
            ) from None
        by_environment = os.environ.get("FUSIONER_ENGINE") == str(folder)
        another = "change or unset FUSIONER_ENGINE, name another" if by_environment else "name another"
        raise BundleMissing(
            f"{found}, an engine bundle was expected",
            Spelled(f"{another}, {_get_one(folder)}", f"{another} with --engine DIR, {_get_one(folder)}"),
            subject=folder,
        ) from None
    except NotADirectoryError:
        packed = folder.name.endswith((".zip", ".tar", ".tgz", ".gz"))
        cure = f"unpack it: fusioner-rt fetch {shlex.quote(str(folder))}" if packed else "name one"
        raise BundleMissing("is not a folder, an engine bundle was expected", cure, subject=folder) from None
    except NotRegular as error:
        raise BundleMissing(f"cannot be read: {error.strerror}", "name another bundle", subject=path) from None
    except OSError as error:
        raise BundleMissing(f"cannot be read ({error.strerror})", "check its permissions", subject=path) from None
    except (ValueError, TypeError) as error:  # of JSON, UTF-8 and bounds
        raise ManifestInvalid(f"is not JSON as expected ({one_line(error)})", restore(folder), subject=path) from None
    if manifest.get("format") != FORMAT:
        raise ManifestInvalid(f'does not say "format": "{FORMAT}"', f"name another, or {restore(folder)}", subject=path)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION or not isinstance(version, int) or isinstance(version, bool):
        newer = isinstance(version, int) and version > FORMAT_VERSION
        raise BundleVersionUnknown(
            f"format version {shown(version)}, this fusioner-rt reads version {FORMAT_VERSION}",
            f"{'update fusioner-rt, or ' if newer else ''}{rebuild(folder)}",
            subject=path,
        )
    if DIGEST not in manifest:
        raise ManifestInvalid(f"{DIGEST} is missing, its own digest was expected", restore(folder), subject=path)
    if not has_its_digest(manifest):
        raise BundleFileAltered(
            f"its content is not what was written (sha256 {digest_of(manifest)[:12]}…, {DIGEST} says "
            f"{shown(manifest[DIGEST], 14)})",
            restore(folder),
            subject=path,
        )
    return manifest


def _no_such(folder: Path) -> str:
    names = ", ".join(named_bundles()) if folder.name == str(folder) else ""
    return f"there is no such folder{f', nor a bundle of this name (there are: {names})' if names else ''}"


def verify_files(files: Mapping[Path, FileEntry], cure: Callable[[], str]) -> None:
    """Compare size and sha256 of every file with the manifest's. cure: tells that of the error where they differ.

    Raises BundleFileMissing or BundleFileAltered.
    """
    for file, expected in files.items():
        try:
            with open_regular(file) as stream:
                size = os.fstat(stream.fileno()).st_size
                if size != expected.bytes:
                    raise BundleFileAltered(
                        f"has {size} bytes, the manifest says {expected.bytes}", cure(), subject=file
                    )
                digest = _digest(stream, size)
        except FileNotFoundError:
            raise BundleFileMissing("is missing, the manifest lists it", cure(), subject=file) from None
        except OSError as error:
            raise BundleFileMissing(
                f"cannot be read ({error.strerror}), the manifest lists it", cure(), subject=file
            ) from None
        if digest != expected.sha256:
            raise BundleFileAltered(
                f"its content is not what the bundle was built with (sha256 {digest[:12]}…, expected "
                f"{expected.sha256[:12]}…)",
                cure(),
                subject=file,
            )


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open_regular(path) as stream:
        return _digest(stream, os.fstat(stream.fileno()).st_size)


def _digest(stream: BinaryIO, size: int) -> str:
    """Hex digest of the next `size` bytes."""
    hashed = hashlib.sha256()
    while size > 0 and (chunk := stream.read(min(size, _CHUNK))):
        hashed.update(chunk)
        size -= len(chunk)
    return hashed.hexdigest()


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
    """Write manifest.json, completed by `complete` and with its digest, and return its content. Raises OSError."""
    folder = Path(folder)
    whole = with_digest(complete(folder, manifest))
    text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / MANIFEST, lambda stream: stream.write(text.encode()))
    return whole
