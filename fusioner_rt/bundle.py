"""The engine bundle: a folder with a manifest that names, sizes and hashes every file in it (docs/bundle.md)."""

import contextlib
import hashlib
import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from .errors import (
    BundleFileAltered,
    BundleFileMissing,
    BundleMissing,
    BundleVersionUnknown,
    FusionerError,
    ManifestInvalid,
    SizeOutsideProfile,
)
from .files import write_atomically
from .plans import Plan, read_plans
from .preprocess import Preprocessing
from .words.templates import check_templates

FORMAT = "fusioner-rt bundle"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GRAPHS = ("text", "image_fusion", "mask_scores", "mask_labels", "mask_probabilities")
"""Which every bundle has. Others are used where they are: older bundles lack them."""
PLACES = ("engines/demo", "models/demo/bundle")
"""Where a bundle is looked for, below the current folder, when none is named."""
_HELD = 64 << 20  # bytes
_DEMONSTRATION = tuple(Path(place) for place in (*PLACES, "models/demo"))


@dataclass(frozen=True)
class Profile:
    """The range one dimension was built for."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class Bundle:
    """An opened and verified bundle."""

    folder: Path
    manifest: dict[str, Any]
    name: str
    precision: str
    templates: tuple[str, ...]
    max_tokens: int
    preprocessing: Preprocessing
    words: Profile
    batch: Profile
    size: Profile
    plans: tuple[Plan, ...]

    @classmethod
    def open(cls, folder: str | os.PathLike[str], plans: bool = True) -> "Bundle":
        """Read the manifest and check every file against it, before anything is loaded. plans: check these too.

        Raises BundleMissing, ManifestInvalid, BundleVersionUnknown, BundleFileMissing or BundleFileAltered.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        try:
            profiles = {
                name: Profile(*(int(manifest["profiles"][name][bound]) for bound in ("min", "opt", "max")))
                for name in ("words", "batch", "size")
            }
            bundle = cls(
                folder=folder,
                manifest=manifest,
                name=str(manifest["name"]),
                precision=str(manifest["precision"]),
                templates=check_templates(manifest["templates"]),
                max_tokens=int(manifest["tokenizer"]["max_tokens"]),
                preprocessing=Preprocessing.from_manifest(manifest["preprocessing"]),
                **profiles,
                plans=read_plans(folder, manifest.get("engines", [])),
            )
            if not isinstance(manifest["files"], dict):
                raise TypeError("files is not an object")
            if missing := set(GRAPHS) - manifest["graphs"].keys():
                raise KeyError(f"{sorted(missing)[0]} in graphs")
            entries = manifest["graphs"].values()
            files = [manifest["tokenizer"]["file"], *(entry["file"] for entry in entries)]
            files += [entry["weights"] for entry in entries if "weights" in entry]
            if "kernels" in manifest:
                kernels = manifest["kernels"]
                files.append(kernels["abi"])
                for names in (kernels["features"], kernels["targets"]):
                    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
                        raise TypeError("features or targets of kernels are no list of names")
            if "known_answer" in manifest:
                files.append(manifest["known_answer"]["file"])
            files += [plan.file.relative_to(folder).as_posix() for plan in bundle.plans]
            for used in files:
                if used not in manifest["files"]:
                    raise KeyError(f"{used} in files")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ManifestInvalid(
                f"a field is missing or malformed ({error!r})", rebuild(folder), subject=folder / MANIFEST
            ) from None
        except FusionerError as error:
            raise ManifestInvalid(f"{error}", rebuild(folder), subject=folder / MANIFEST) from None
        of_plans = {plan.file.relative_to(folder).as_posix() for plan in bundle.plans}
        of_plans |= {str(entry["report"]) for entry in manifest.get("engines", []) if "report" in entry}
        verify_files(folder, {name: entry for name, entry in manifest["files"].items() if name not in of_plans})
        if plans:
            flavour = bundle.plans[0].flavour if bundle.plans else "tensorrt"
            cure = f"copy the bundle again, or build its plans again: {bundle.plans_command(flavour)}"
            verify_files(folder, {name: entry for name, entry in manifest["files"].items() if name in of_plans}, cure)
        return bundle

    def graph(self, name: str) -> Path:
        """Where a graph lies."""
        return self.folder / self.manifest["graphs"][name]["file"]

    def weights(self, name: str) -> Path | None:
        """The file beside a graph that holds its large weights, where there is one."""
        file = self.manifest["graphs"][name].get("weights")
        return self.folder / file if file else None

    @property
    def in_parts(self) -> bool:
        """Whether there are `image`, `fusion` and, of models that have one, the decoder's graphs beside image_fusion."""
        return {"image", "fusion"} <= self.manifest["graphs"].keys()

    @property
    def picture_sha256(self) -> str:
        """Of all that encoded pictures depend on: preprocessing and the graphs that read pictures."""
        graphs = [entry for name in ("image_fusion", "image") if (entry := self.manifest["graphs"].get(name))]
        used = {entry[key] for entry in graphs for key in ("file", "weights") if key in entry}
        hashes = {name: self.manifest["files"][name]["sha256"] for name in used}
        said = json.dumps([self.manifest["preprocessing"], hashes], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()

    def build_command(self, **cured: str | int) -> str:
        """The command that builds this bundle again; see the function of that name."""
        return build_command(self.folder, **cured)

    def plans_command(self, backend: str, profiles: str = "") -> str:
        """The command that builds TensorRT plans into this bundle from its own graphs."""
        command = f"python export/add_plans.py {shlex.quote(str(self.folder))} --backend {backend}"
        return f"{command} --profiles {profiles}" if profiles else command

    @property
    def tokenizer(self) -> Path:
        return self.folder / self.manifest["tokenizer"]["file"]

    def read_again(self, path: Path) -> bytes | None:
        """The bytes of a file that is loaded long after `open`, whose hash was taken of these very bytes.

        Returns None for a file too large to be held twice, checked and to be loaded by its path.
        Raises BundleFileMissing or BundleFileAltered: vectors of one bundle must not be cached as another's.
        """
        expected = next(entry for name, entry in self.manifest["files"].items() if self.folder / name == path)
        try:
            content = path.read_bytes() if expected["bytes"] <= _HELD else None
            digest = sha256(path) if content is None else hashlib.sha256(content).hexdigest()
        except OSError as error:
            raise BundleFileMissing(
                f"can no longer be read ({error.strerror})",
                "close this session and open the bundle again",
                subject=path,
            ) from None
        if digest != expected["sha256"]:
            raise BundleFileAltered(
                f"was replaced after this session had opened the bundle (sha256 {digest[:12]}…, expected "
                f"{expected['sha256'][:12]}…)",
                "close this session and open the bundle again",
                subject=path,
            )
        return content

    @property
    def text_sha256(self) -> str:
        """The text graph's hash: word vectors depend on it."""
        return str(self.manifest["files"][self.manifest["graphs"]["text"]["file"]]["sha256"])


def build_command(folder: Path, **cured: str | int) -> str:
    """The command that builds the bundle in `folder` again, with its own precision and profiles but those being cured.

    cured: precision ("fp16", "bf16" or "fp32"), sizes ("32,320,1024"), max_words, max_batch, backend, profiles. What
    the manifest does not tell, because it is missing, damaged or of another version, is left to the command's defaults, in half precision. The
    checkpoint is named by its place in the command alone, as a bundle does not say where it came from; the
    demonstration's is the default, and for any other bundle it would build the wrong model.
    """
    options: dict[str, Any] = {"precision": "fp16"}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if (manifest["format"], manifest["format_version"]) == (FORMAT, FORMAT_VERSION):
            profiles, precision = manifest["profiles"], manifest["precision"]
            sizes = ",".join(str(int(profiles["size"][bound])) for bound in ("min", "opt", "max"))
            most = {f"max_{name}": int(profiles[name]["max"]) for name in ("words", "batch")}
            options = {"precision": precision, "sizes": sizes, **most}
            if flavours := sorted({str(entry["flavour"]) for entry in manifest["engines"]}):
                options["backend"] = flavours[0]  # a build makes plans of one flavour
            if any(entry.get("precision") == "bf16" for entry in manifest["engines"]):
                options["precision"] = "bf16"  # of plans alone
    options |= cured
    parts = ["python export/build_engine.py"]
    if not any(folder.absolute().parts[-len(place.parts) :] == place.parts for place in _DEMONSTRATION):
        parts.append("--checkpoint CHECKPOINT")
    if options["precision"] != "fp32":
        parts.append(f"--{options['precision']}")
    names = ("sizes", "max_words", "max_batch", "backend", "profiles")
    parts += [f"--{name.replace('_', '-')} {options[name]}" for name in names if name in options]
    return " ".join([*parts, "--out", shlex.quote(str(folder))])


def input_size_of(bundle: Bundle, height: int, width: int, picture: str) -> tuple[int, int]:
    """Network input (h, w) of a picture. picture: names it in messages. Raises SizeOutsideProfile."""
    high, wide = bundle.preprocessing.input_size(height, width)
    allowed = bundle.size
    if not (allowed.min <= min(high, wide) and max(high, wide) <= allowed.max):
        least, most = min(allowed.min, high, wide), max(allowed.max, high, wide)
        raise SizeOutsideProfile(
            f"needs a network input of {wide}x{high}, the bundle in {bundle.folder} was built for "
            f"edges of {allowed.min} to {allowed.max}",
            f"rebuild it: {bundle.build_command(sizes=f'{least},{allowed.opt},{most}')}",
            subject=picture,
        )
    return high, wide


def rebuild(folder: Path) -> str:
    """The cure for most that can be wrong with a bundle."""
    return f"rebuild it: {build_command(folder)}"


def find_bundle(named: str | os.PathLike[str] | None = None) -> Path:
    """The bundle's folder: the one named, else $FUSIONER_ENGINE, else the first of PLACES. Raises BundleMissing."""
    if named is not None:
        return Path(named)
    if from_environment := os.environ.get("FUSIONER_ENGINE"):
        return Path(from_environment)
    for place in PLACES:
        if (Path(place) / MANIFEST).is_file():
            return Path(place)
    raise BundleMissing(
        f"no engine bundle was named and none lies in {' or '.join(PLACES)} below {Path.cwd()}",
        f"name one with --engine DIR or FUSIONER_ENGINE, or build one: {build_command(Path(PLACES[0]))}",
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json as a dict, its format and version checked and nothing else."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = f"holds no {MANIFEST}" if folder.is_dir() else "there is no such folder"
        raise BundleMissing(
            f"{what}, an engine bundle was expected",
            f"name another with --engine DIR, or build it: {build_command(folder)}",
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


def verify_files(folder: Path, files: dict[str, Any], cure: str = "") -> None:
    """Compare size and sha256 of every file with the manifest's. Raises BundleFileMissing or BundleFileAltered.

    cure: what to do about it, by default to build the bundle again.
    """
    cure = cure or rebuild(folder)
    for name, expected in files.items():
        if ".." in Path(name).parts or "\\" in name or PureWindowsPath(name).anchor or os.path.isabs(name):
            raise ManifestInvalid(f"names a file outside the bundle, {name!r}", cure, subject=folder / MANIFEST)
        path = folder / name
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise BundleFileAltered(f"has {size} bytes, the manifest says {expected['bytes']}", cure, subject=path)
            digest = sha256(path)
        except FileNotFoundError:
            raise BundleFileMissing("is missing, the manifest lists it", cure, subject=path) from None
        except OSError as error:
            raise BundleFileMissing(
                f"cannot be read ({error.strerror}), the manifest lists it", cure, subject=path
            ) from None
        except (KeyError, TypeError, ValueError) as error:  # the last for names that no file can have
            raise ManifestInvalid(
                f"files entry {name!r} is malformed ({error!r})", cure, subject=folder / MANIFEST
            ) from None
        if digest != expected["sha256"]:
            raise BundleFileAltered(
                f"its content is not what the bundle was built with (sha256 {digest[:12]}…, expected "
                f"{str(expected['sha256'])[:12]}…)",
                cure,
                subject=path,
            )


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: str | os.PathLike[str], manifest: dict[str, Any]) -> dict[str, Any]:
    """Write manifest.json for the files now in the folder.

    manifest: everything but `format`, `format_version` and `files`, which are filled in here.
    Returns what was written. Raises OSError.
    """
    folder = Path(folder)
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    first = {"format": FORMAT, "format_version": FORMAT_VERSION}
    whole = {**first, **manifest, **first, "files": files}
    text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / MANIFEST, lambda stream: stream.write(text.encode()))
    return whole
