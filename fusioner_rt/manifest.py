"""`manifest.json` as typed data (docs/bundle.md), parsed and checked once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from .errors import ManifestInvalid, TemplatesInvalid
from .gpu.kernel_contract import SCORINGS
from .json_fields import Field
from .plans import Plan
from .preprocess import MOST_PIXELS, Preprocessing
from .words.templates import check_templates

FORMAT = "fusioner-rt bundle"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GRAPHS = (
    "text", "image_fusion", "image", "fusion", "mask_scores", "mask_labels", "mask_tiles", "mask_probabilities",
)  # fmt: skip
"""The graphs of every bundle. Models with a decoder have those of `decoder_graphs` too."""
PRECISIONS = ("fp32", "fp16")
ENCODERS = ("image", "text")

MOST = {"words": 65_535, "batch": 65_535, "size": MOST_PIXELS}
"""Bounds of the profiles: labels are uint16, and a GPU takes as many pictures."""
MOST_CHANNELS, MOST_LAYERS, MOST_TOKENS = 1 << 16, 16, 4096
MOST_FILES, MOST_BYTES = 20_000, 1 << 40
"""Bounds of a manifest's numbers and lists. They keep out what no bundle has, and no machine could run."""


@dataclass(frozen=True)
class Profile:
    """The range of one dimension that the bundle was built for."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class Windows:
    """Sliding windows over the network's input. side, stride: in pixels of the input, multiples of its step."""

    side: int
    stride: int


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
    """The content of `manifest.json`. Files are paths in the bundle's folder; `files` lists them all.

    scoring, temperature: of the mask head. threshold: a mask's least probability where a call names none.
    windows: None where the bundle has no sliding windows.
    encoders: what the model was built from, such as "dense_clip:ViT-B-16:openai" and "open_clip:ViT-B-16:openai".
    random_weights: the encoders without trained weights, "image" or "text".
    """

    name: str
    created: str
    precision: str
    scoring: str
    temperature: float
    threshold: float
    templates: tuple[str, ...]
    tokenizer: Path
    max_tokens: int
    preprocessing: Preprocessing
    windows: Windows | None
    words: Profile
    batch: Profile
    size: Profile
    graphs: Mapping[str, GraphEntry]
    text_width: int
    plans: tuple[Plan, ...]
    kernels: KernelsEntry | None
    known_answer: AnswerEntry | None
    encoders: tuple[str, ...]
    random_weights: tuple[str, ...]
    files: Mapping[Path, FileEntry]

    @classmethod
    def parse(cls, folder: Path, content: Mapping[str, Any]) -> "Manifest":
        """folder: the bundle's. content: the JSON object. Raises ManifestInvalid, which names the entry."""
        document = Field(dict(content))
        graphs = {name: _graph(folder, entry) for name, entry in document["graphs"].entries().items()}
        decoder = [entry.whole(1, MOST_CHANNELS) for entry in document["model"]["decoder"].items(most=MOST_LAYERS)]
        for name in (*GRAPHS, *decoder_graphs(len(decoder))):
            if name not in graphs:
                raise ManifestInvalid(f"graphs.{name} is missing")
        kernels, answer, random = (document.get(name) for name in ("kernels", "known_answer", "random_weights"))
        windows = document.get("windows")
        preprocessing = Preprocessing.from_manifest(document["preprocessing"])
        manifest = cls(
            name=document["name"].text(),
            created=document["created"].text(),
            precision=document["precision"].one_of(PRECISIONS),
            scoring=document["scoring"].one_of(SCORINGS),
            temperature=document["temperature"].number(1e-6, 1e6),
            threshold=document["threshold"].number(0, 1),
            templates=_templates(document["templates"]),
            tokenizer=folder / document["tokenizer"]["file"].text(),
            max_tokens=document["tokenizer"]["max_tokens"].whole(1, MOST_TOKENS),
            preprocessing=preprocessing,
            windows=_windows(windows, preprocessing) if windows else None,
            graphs=graphs,
            text_width=_text_width(document["graphs"]["image_fusion"]["inputs"]["words"]),
            plans=tuple(_plan(folder, entry) for entry in document["engines"].items()),
            kernels=_kernels(folder, kernels) if kernels else None,
            known_answer=_answer(folder, answer) if answer else None,
            encoders=tuple(entry.text() for kind in ENCODERS if (entry := document["model"].get(f"{kind}_encoder"))),
            random_weights=tuple(kind.one_of(ENCODERS) for kind in random.items()) if random else (),
            files={
                _inside(folder, name): _file(name, entry)
                for name, entry in document["files"].entries(MOST_FILES).items()
            },
            **{name: _profile(document["profiles"][name], most) for name, most in MOST.items()},
        )
        for file in manifest._used_files():
            if file not in manifest.files:
                place = file.relative_to(folder) if file.is_relative_to(folder) else file
                raise ManifestInvalid(f"there is no {place.as_posix()} in files, which another entry names")
        return manifest

    @property
    def note(self) -> str | None:
        """What makes the bundle's masks meaningless, or None."""
        if not self.random_weights:
            return None
        one = len(self.random_weights) == 1
        encoders = f"{' and '.join(self.random_weights)} {'encoder' if one else 'encoders'}"
        return f"the {encoders} of this bundle {'has' if one else 'have'} random weights: its masks mean nothing"

    def _used_files(self) -> list[Path]:
        return [
            self.tokenizer,
            *(file for graph in self.graphs.values() for file in graph.files),
            *([self.kernels.abi] if self.kernels else []),
            *([self.known_answer.file] if self.known_answer else []),
            *(file for plan in self.plans for file in plan.files),
        ]


def decoder_graphs(layers: int) -> list[str]:
    """Names of the decoder's graphs, in the order they run. layers: number of its 3×3 convs; 0 is no decoder."""
    return ["decoder_first", *(f"decoder_up_{index}" for index in range(1, layers)), "decoder_scores"] if layers else []


def _inside(folder: Path, name: str) -> Path:
    """The path of a listed file. Raises ManifestInvalid where it is outside the folder, or no name of a file."""
    if ".." in Path(name).parts or "\\" in name or PureWindowsPath(name).anchor or os.path.isabs(name):
        raise ManifestInvalid(f"a file is named that lies outside the bundle, {name!r}")
    try:
        if "\0" in name:
            raise ValueError
        os.fsencode(name)  # raises for what is no text
    except ValueError:
        raise ManifestInvalid(f"{name!r} is no name of a file") from None
    return folder / name


def _file(name: str, entry: Field) -> FileEntry:
    return FileEntry(entry["sha256"].sha256(), entry["bytes"].whole(0, MOST_BYTES))


def _profile(entry: Field, most: int) -> Profile:
    profile = Profile(*(entry[bound].whole(1, most) for bound in ("min", "opt", "max")))
    if not profile.min <= profile.opt <= profile.max:
        raise entry.wrong("min <= opt <= max")
    return profile


def _windows(entry: Field, preprocessing: Preprocessing) -> Windows:
    windows, step = Windows(*(entry[name].whole(1, MOST_PIXELS) for name in ("side", "stride"))), preprocessing.multiple
    fit = windows.side % step == windows.stride % step == 0
    if not (fit and windows.stride <= windows.side <= preprocessing.longest):
        raise entry.wrong(f"multiples of {step} up to {preprocessing.longest}, the stride no longer than the side")
    return windows


def _graph(folder: Path, entry: Field) -> GraphEntry:
    weights = entry.get("weights")
    return GraphEntry(
        folder / entry["file"].text(), folder / weights.text() if weights else None,
        _tensors(entry["inputs"]), _tensors(entry["outputs"]),
    )  # fmt: skip


def _tensors(entry: Field) -> dict[str, Tensor]:
    tensors = {}
    for name, described in entry.entries().items():
        dtype, shape = described.items(2)
        tensors[name] = Tensor(dtype.text(), tuple(map(_edge, shape.items())))
    if not tensors:
        raise entry.wrong("a tensor at least")
    return tensors


def _edge(entry: Field) -> int | str:
    return entry.text() if isinstance(entry.value, str) else entry.whole(0, MOST_BYTES)


def _text_width(words: Field) -> int:
    return words.items(2)[1].items(3)[-1].whole(1, MOST_CHANNELS)


def _templates(entry: Field) -> tuple[str, ...]:
    try:
        return check_templates([template.text() for template in entry.items()])
    except TemplatesInvalid as error:
        raise ManifestInvalid(f"{entry.place}: {error.found}") from None


def _plan(folder: Path, entry: Field) -> Plan:
    try:
        return Plan.parse(folder, entry)
    except ValueError as error:
        raise ManifestInvalid(f"{entry.place}: {error}") from None


def _kernels(folder: Path, entry: Field) -> KernelsEntry:
    features, targets = (tuple(name.text() for name in entry[names].items()) for names in ("features", "targets"))
    return KernelsEntry(folder / entry["abi"].text(), features, targets)


def _answer(folder: Path, entry: Field) -> AnswerEntry:
    height, width = (edge.whole(1, MOST_PIXELS) for edge in entry["input_size"].items(2))
    bounds = {
        precision: {name: allowed[name].number(0, 1e6) for name in ("mean", "largest", "labels")}
        for precision, allowed in entry["bounds"].entries().items()
    }
    words = tuple(word.text() for word in entry["words"].items())
    return AnswerEntry(
        folder / entry["file"].text(), words, (height, width), entry["step"].whole(1, MOST_PIXELS), bounds
    )
