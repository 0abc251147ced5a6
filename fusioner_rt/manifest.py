"""`manifest.json` as typed data (docs/bundle.md), parsed and checked once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from .errors import FusionerError, ManifestInvalid
from .plans import Plan
from .preprocess import Preprocessing
from .words.templates import check_templates

FORMAT = "fusioner-rt bundle"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GRAPHS = (
    "text", "image_fusion", "image", "fusion", "mask_scores", "mask_labels", "mask_tiles", "mask_probabilities",
)  # fmt: skip
"""The graphs of every bundle. Models with a decoder have further ones for it."""


@dataclass(frozen=True)
class Profile:
    """The range of one dimension that the bundle was built for."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class FileEntry:
    """sha256: of the content, in hexadecimal. bytes: length of the content."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Tensor:
    """shape: per dimension its length, or a letter where it varies."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphEntry:
    """weights: the file beside the graph that holds its large weights, or None."""

    file: Path
    weights: Path | None
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    @property
    def files(self) -> list[Path]:
        return [self.file, *([self.weights] if self.weights else [])]


@dataclass(frozen=True)
class KernelsEntry:
    """abi: the kernels' record, in their folder. features: dtypes of features. targets: such as "sm_89"."""

    abi: Path
    features: tuple[str, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True)
class AnswerEntry:
    """The manifest's `known_answer`; `known_answer.KnownAnswer` explains the fields."""

    file: Path
    words: tuple[str, ...]
    input_size: tuple[int, int]
    step: int
    bounds: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`. Files are paths in the bundle's folder; `files` lists them all."""

    name: str
    created: str
    precision: str
    temperature: float
    templates: tuple[str, ...]
    tokenizer: Path
    max_tokens: int
    preprocessing: Preprocessing
    words: Profile
    batch: Profile
    size: Profile
    graphs: Mapping[str, GraphEntry]
    text_width: int
    plans: tuple[Plan, ...]
    kernels: KernelsEntry | None
    known_answer: AnswerEntry | None
    files: Mapping[Path, FileEntry]

    @classmethod
    def parse(cls, folder: Path, content: Mapping[str, Any]) -> "Manifest":
        """folder: the bundle's. content: the JSON object. Raises ManifestInvalid."""
        try:
            return cls._parse(folder, content)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ManifestInvalid(f"a field is missing or malformed ({error!r})") from None
        except FusionerError as error:
            raise ManifestInvalid(str(error)) from None

    @classmethod
    def _parse(cls, folder: Path, content: Mapping[str, Any]) -> "Manifest":
        graphs = {str(name): _graph(folder, entry) for name, entry in content["graphs"].items()}
        if missing := set(GRAPHS) - graphs.keys():
            raise KeyError(f"{sorted(missing)[0]} in graphs")
        manifest = cls(
            name=str(content["name"]),
            created=str(content["created"]),
            precision=str(content["precision"]),
            temperature=float(content["temperature"]),
            templates=check_templates(content["templates"]),
            tokenizer=folder / content["tokenizer"]["file"],
            max_tokens=int(content["tokenizer"]["max_tokens"]),
            preprocessing=Preprocessing.from_manifest(content["preprocessing"]),
            graphs=graphs,
            text_width=int(graphs["image_fusion"].inputs["words"].shape[-1]),
            plans=tuple(Plan.parse(folder, entry) for entry in content["engines"]),
            kernels=_kernels(folder, content["kernels"]) if "kernels" in content else None,
            known_answer=_answer(folder, content["known_answer"]) if "known_answer" in content else None,
            files={_inside(folder, name): _file(name, entry) for name, entry in content["files"].items()},
            **{name: _profile(content["profiles"][name]) for name in ("words", "batch", "size")},
        )
        for file in manifest._used_files():
            if file not in manifest.files:
                raise KeyError(f"{file.relative_to(folder).as_posix()} in files")
        return manifest

    def _used_files(self) -> list[Path]:
        return [
            self.tokenizer,
            *(file for graph in self.graphs.values() for file in graph.files),
            *([self.kernels.abi] if self.kernels else []),
            *([self.known_answer.file] if self.known_answer else []),
            *(file for plan in self.plans for file in plan.files),
        ]


def _inside(folder: Path, name: str) -> Path:
    """The path of a listed file. Raises ManifestInvalid where it is outside the folder."""
    if ".." in Path(name).parts or "\\" in name or PureWindowsPath(name).anchor or os.path.isabs(name):
        raise ManifestInvalid(f"names a file outside the bundle, {name!r}")
    return folder / name


def _file(name: str, entry: Mapping[str, Any]) -> FileEntry:
    try:
        if "\0" in name:
            raise ValueError("embedded null byte")
        os.fsencode(name)  # raises for what is no text
        return FileEntry(str(entry["sha256"]), int(entry["bytes"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ManifestInvalid(f"files entry {name!r} is malformed ({error!r})") from None


def _profile(entry: Mapping[str, Any]) -> Profile:
    return Profile(*(int(entry[bound]) for bound in ("min", "opt", "max")))


def _graph(folder: Path, entry: Mapping[str, Any]) -> GraphEntry:
    weights = folder / entry["weights"] if "weights" in entry else None
    return GraphEntry(folder / entry["file"], weights, _tensors(entry["inputs"]), _tensors(entry["outputs"]))


def _tensors(entries: Mapping[str, Any]) -> dict[str, Tensor]:
    return {str(name): Tensor(str(dtype), tuple(shape)) for name, (dtype, shape) in entries.items()}


def _kernels(folder: Path, entry: Mapping[str, Any]) -> KernelsEntry:
    for names in (entry["features"], entry["targets"]):
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise TypeError("features or targets of kernels are no list of names")
    return KernelsEntry(folder / entry["abi"], tuple(entry["features"]), tuple(entry["targets"]))


def _answer(folder: Path, entry: Mapping[str, Any]) -> AnswerEntry:
    height, width = (int(edge) for edge in entry["input_size"])
    bounds = {
        str(precision): {name: float(allowed[name]) for name in ("mean", "largest", "labels")}
        for precision, allowed in entry["bounds"].items()
    }
    return AnswerEntry(
        folder / entry["file"], tuple(map(str, entry["words"])), (height, width), int(entry["step"]), bounds
    )
