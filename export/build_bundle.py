"""A build as a story: prepare, export, prove, write. Every stage reads what those before it made.

The graphs are exported and written first, because they are proved as they were written. The manifest is written last and
once, when all that it says was proved.
"""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

import fusioner_rt
from export import compile_kernels, gates, make_known_answer
from export.onnx import (
    for_cpu,
    half_precision,
    mask_head_graphs,
    model_graphs,
    shared_weights,
    small_weights,
    winograd_decoder,
)
from export.onnx.round_weights import round_weights
from export.options import Options
from export.stages import Stages, Step
from export.summary_table import Row, rows
from export.tensorrt import build_plans, prove_plans
from fusioner_rt.bundle import Bundle, complete, write_manifest
from fusioner_rt.decode_picture import SUFFIXES
from fusioner_rt.errors import UsageError
from fusioner_rt.manifest import MANIFEST
from fusioner_rt.manifest_document import read_document
from fusioner_rt.onnx.decoder_in_strips import of_strips
from fusioner_rt.onnx.runtime import OnnxRuntime
from fusioner_rt.preprocess import Preprocessing
from training import checkpoint, training_free
from training.encoders import allow_download
from training.encoders.bert import Bert
from training.model import IDENTITY, LONGEST_EDGE, Fusioner, FusionerConfig

MAX_WORDS = 65535  # a label map has 16 bits
MAX_BATCH = 1024
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Build:
    """One build into a folder that was empty.

    graphs: those that are whole in themselves, by name. parts: those that image_fusion is made of, for CPUs.
    running_whole, running_parts: the same, loaded. bf16_graphs: sources of plans in bfloat16, or none.
    codes, small_text: of a text encoder with rounded weights, and what rounding does to words.
    manifest: as it grows. no_kernels: why none can be compiled, or nothing.
    """

    folder: Path
    options: Options
    stages: Stages
    plan_options: build_plans.PlanOptions = field(init=False)
    no_kernels: str | None = field(init=False)
    pictures: list[np.ndarray] = field(init=False)
    model: Fusioner = field(init=False)
    preprocessing: Preprocessing = field(init=False)
    sizes: tuple[int, int, int] = field(init=False)
    codes: dict[bytes, small_weights.Rounded] = field(default_factory=dict)
    small_text: dict[str, Any] = field(default_factory=dict)
    graphs: dict[str, onnx.ModelProto] = field(default_factory=dict)
    parts: dict[str, onnx.ModelProto] = field(default_factory=dict)
    bf16_graphs: dict[str, onnx.ModelProto] = field(default_factory=dict)
    running_whole: dict[str, Any] = field(default_factory=dict)
    running_parts: dict[str, Any] = field(default_factory=dict)
    parity: gates.Parity = field(init=False)
    manifest: dict[str, Any] = field(default_factory=dict)

    def run(self) -> list[Row]:
        """After `prepare`. Returns the rows of the closing table. Raises what the stages raise."""
        self.stages.run(self._steps())
        found = rows(self.folder, self.manifest, self.stages.seconds)
        if self.no_kernels and self.options.kernels != "none":
            found.append(Row("kernels/", 0, "none", seconds=0.0, note=self.no_kernels))
        return found

    def _steps(self) -> list[Step]:
        bf16, with_plans = self.options.bf16, self.plan_options.flavour in build_plans.MODULES
        return [
            ("checkpoint and encoders", self.load_model),
            *([("gate: small text", self.round_text)] if self.options.small_text else []),
            ("text graph", self.export_text),
            ("image_fusion graph", self.export_image_fusion),
            ("mask head graphs", self.export_mask_head),
            ("graphs", self.write_graphs),
            ("gate: parity with PyTorch", self.prove_parity),
            *([("gate: parity of bf16", self.prove_bf16)] if bf16 else []),
            ("gate: batches", self.prove_batches),
            ("gate: order of words", self.prove_words),
            ("kernels for GPUs", self.compile_kernels),
            *([("plans", self.build_plans)] if with_plans else []),
            ("known answer", self.add_known_answer),
            *([("gate: plans on this GPU", self.prove_plans)] if with_plans else []),
            ("manifest", self.write),
        ]

    def prepare(self) -> None:
        """What can be known to fail is known now rather than in a minute."""
        options = self.options
        if options.max_words > MAX_WORDS:
            raise UsageError(
                f"a label map numbers its words with 16 bits, {MAX_WORDS} at most",
                "give fewer",
                subject=f"--max-words {options.max_words}",
            )
        if options.max_batch > MAX_BATCH:
            raise UsageError(
                f"at most {MAX_BATCH} pictures run at once", "give fewer", subject=f"--max-batch {options.max_batch}"
            )
        self.plan_options = build_plans.PlanOptions(
            build_plans.choose(options.backend), options.build_for, options.profiles, options.timing_cache,
            options.hardware_compatible, options.version_compatible, options.plan_precision,
        )  # fmt: skip
        build_plans.check(self.plan_options)
        self.no_kernels = compile_kernels.without(options.kernels)
        self.pictures = gates.gate_pictures(options.pictures or _own_pictures())

    def load_model(self) -> None:
        options = self.options
        if options.download:
            allow_download()
        if options.model:
            self.model = training_free.build(options.model, options.weights or "")
        else:
            moved = checkpoint.Moved(options.image_weights, options.text_weights, options.command)
            self.model = checkpoint.load(options.checkpoint, moved)
        _refuse_another_model(options, self.model.config)
        image = self.model.image_encoder
        self.sizes = _sizes(self.options.sizes, image.multiple, image.side)
        self.preprocessing = self.model.preprocessing(*self.sizes[1:])
        self.no_kernels = self.no_kernels or compile_kernels.unfit(self.model.config.channels)

    def round_text(self) -> None:
        words = gates.gate_words(self.model.text_encoder)
        before = self.model.word_vectors(words)
        if isinstance(self.model.text_encoder, Bert):
            self.model.text_encoder.drop_unread_positions()
        self.codes = round_weights(cast(nn.Module, self.model.text_encoder), self.options.fp16)
        self.small_text = gates.small_text(before, self.model.word_vectors(words))

    def export_text(self) -> None:
        graph = self._in_precision(model_graphs.text_graph(self.model))
        if self.options.fp16:
            half_precision.prove_half("text", graph)
        self.graphs["text"] = small_weights.small(graph, self.codes)

    def export_image_fusion(self) -> None:
        """As a whole, and in the parts that a CPU runs."""
        parts = model_graphs.picture_graphs(self.model)
        self.graphs["image_fusion"] = self._in_precision(model_graphs.joined(parts))
        self.parts = {name: for_cpu.for_cpu(self._in_precision(parts[name])) for name in ("image", "fusion")}
        if self.model.decoder is not None:
            self.parts |= winograd_decoder.decoder_graphs(
                self.model.decoder, self.options.fp16, self.model.config.aligned
            )
        if self.options.fp16:  # the whole holds all weights of the parts
            half_precision.prove_half("image_fusion", self.graphs["image_fusion"])

    def export_mask_head(self) -> None:
        config = self.model.config
        scoring = config.temperature, config.scoring
        self.graphs["mask_scores"] = mask_head_graphs.scores_graph(config.channels)
        self.graphs["mask_labels"] = mask_head_graphs.labels_graph(*scoring)
        self.graphs["mask_tiles"] = mask_head_graphs.tiles_graph(*scoring)
        self.graphs["mask_probabilities"] = mask_head_graphs.probabilities_graph(*scoring)

    def write_graphs(self) -> None:
        """To the folder, and loaded from there."""
        sharing = {"image_fusion": self.graphs["image_fusion"], **self.parts}
        lean = shared_weights.share(sharing, self.folder / shared_weights.FILE)
        written = self.graphs | lean
        for name, graph in written.items():
            onnx.save_model(graph, self.folder / f"{name}.onnx")
        shutil.copyfile(self.model.text_encoder.tokenizer_file, self.folder / "tokenizer.json")
        load = OnnxRuntime("onnxruntime-cpu").load
        self.running_whole = {name: load(self.folder / f"{name}.onnx") for name in self.graphs}
        self.running_parts = {
            name: load(self.folder / f"{name}.onnx", threads=1 if of_strips(name) else None) for name in self.parts
        }
        self.manifest = self._described(written)

    def prove_parity(self) -> None:
        self.parity = gates.parity(
            self.model, self._running, self.preprocessing, self.pictures, self.manifest["precision"]
        )
        self._record("parity", self.parity.record())

    def prove_bf16(self) -> None:
        """Of image_fusion alone: words are encoded once and cached for all backends, so they stay as the graph has them."""
        name, bf16 = "image_fusion", half_precision.BF16
        graph = self.bf16_graphs[name] = half_precision.to_half(self.graphs[name], bf16)
        half_precision.prove_half(name, graph, bf16)
        rounded = half_precision.emulated(graph, bf16).SerializeToString()  # a CPU has no bfloat16 operators
        running = OnnxRuntime("onnxruntime-cpu").load(self.folder / f"{name}.onnx", rounded)
        found = gates.parity(
            self.model, self.running_whole | {name: running}, self.preprocessing, self.pictures, bf16.name
        )
        self._record("parity_bf16", found.record())

    def prove_batches(self) -> None:
        limit = self.options.max_batch
        self._record("batch", gates.batch(self._running, self.parity, self.preprocessing, self.pictures, limit))

    def prove_words(self) -> None:
        found = gates.words(self._running, self.parity, self.preprocessing, self.pictures[0])
        self._record("words", found)

    def compile_kernels(self) -> None:
        def progress(done: int, total: int) -> None:
            self.stages.say(f"kernels for GPUs {done}/{total}")

        if self.options.kernels != "none" and not self.no_kernels:
            self.manifest["kernels"] = compile_kernels.add(
                self.folder, self.options.kernels, progress, self.manifest["scoring"]
            )

    def build_plans(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder) as sources:
            files = {name: Path(sources) / f"{name}.onnx" for name in self.bf16_graphs}
            for name, file in files.items():
                onnx.save_model(self.bf16_graphs[name], file)
            taken = build_plans.add_plans(self.folder, self.manifest, self.plan_options, files, self.stages.shown)
        self.stages.seconds |= taken

    def add_known_answer(self) -> None:
        asked = gates.gate_words(self.model.text_encoder)
        precisions = sorted({self.manifest["precision"], self.options.plan_precision})
        self.manifest["known_answer"] = make_known_answer.add(
            self._bundle(), self.model, asked, self.parity.words, precisions
        )

    def prove_plans(self) -> None:
        found = prove_plans.prove(self._bundle(), self.model, self.running_whole, self.preprocessing, self.pictures)
        self._record("plans", found)

    def write(self) -> None:
        """The manifest, and the check that the runtime makes before anyone relies on the bundle."""
        self.manifest = write_manifest(self.folder, self.manifest)
        Bundle.open(self.folder)

    @property
    def _running(self) -> dict[str, Any]:
        return self.running_whole | self.running_parts

    @property
    def _in_precision(self) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
        return half_precision.to_half if self.options.fp16 else lambda graph: graph

    def _bundle(self) -> Bundle:
        """The bundle as far as it is made."""
        return Bundle.of(self.folder, complete(self.folder, self.manifest))

    def _record(self, gate: str, found: Any) -> None:
        self.manifest["gates"][gate] = found

    def _described(self, written: Mapping[str, onnx.ModelProto]) -> dict[str, Any]:
        """The manifest of graphs that nothing is proved of yet."""
        options, config = self.options, self.model.config
        least, usual, longest = self.sizes
        windows = {"side": training_free.WINDOW, "stride": training_free.STRIDE}
        return {
            "name": options.name,
            "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "built_with": _versions(),
            "model": config.to_dict(),
            "random_weights": self.model.random_weights,
            "precision": "fp16" if options.fp16 else "fp32",
            "scoring": config.scoring,
            "temperature": config.temperature,
            "threshold": config.threshold,
            "templates": list(config.templates),
            "tokenizer": {"file": "tokenizer.json", "max_tokens": self.model.text_encoder.max_tokens},
            "preprocessing": self.preprocessing.to_manifest(),
            **({"windows": windows} if config.fusion == IDENTITY and least <= training_free.WINDOW else {}),
            "profiles": {
                "words": {"min": 1, "opt": min(20, options.max_words), "max": options.max_words},
                "batch": {"min": 1, "opt": 1, "max": options.max_batch},
                "size": {"min": least, "opt": usual, "max": longest},
            },
            "graphs": {name: model_graphs.described(name, graph) for name, graph in written.items()},
            "gates": {"small_text": self.small_text} if self.small_text else {},
            "engines": [],
        }


def _refuse_another_model(options: Options, config: FusionerConfig) -> None:
    """A forgotten --checkpoint must not put the demonstration model in place of a user's own."""
    if options.chosen or not (options.out / MANIFEST).is_file():
        return
    try:
        other = FusionerConfig.from_dict(read_document(options.out)["model"]) != config
    except (OSError, ValueError, TypeError, KeyError):  # a broken manifest says nothing of its model
        other = True
    if other:
        raise UsageError(
            f"{options.out} holds a bundle of another model than {options.checkpoint}",
            "name the checkpoint to build from with --checkpoint, or another folder with --out",
        )


def _sizes(asked: tuple[int, int, int] | None, multiple: int, side: int) -> tuple[int, int, int]:
    """Least, usual and longest input edge. Raises UsageError."""
    offered = (multiple, side, max(side, LONGEST_EDGE // multiple * multiple))
    least, usual, longest = asked or offered
    if not least <= usual <= longest or any(size % multiple or size < multiple for size in (least, usual, longest)):
        raise UsageError(
            f"expected three ascending multiples of {multiple}, this image encoder's step",
            f"give for example {','.join(map(str, offered))}",
            subject=f"--sizes {least},{usual},{longest}",
        )
    return least, usual, longest


def _own_pictures() -> Path | None:
    folder = ROOT / "docs" / "pictures"
    return folder if any(path.suffix.lower() in SUFFIXES for path in folder.glob("*")) else None


def _versions() -> dict[str, str]:
    versions = {module.__name__: module.__version__ for module in (fusioner_rt, torch, onnx, onnxruntime)}
    return {name: version.partition("+")[0] for name, version in versions.items()}
