"""What a build is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Options:
    """What the command line says; `build_engine.build` takes it from anywhere.

    model: of training.training_free.MODELS, in place of a checkpoint. weights: of that model: a file, a tag of open_clip's
    or "random"; None is OpenAI's release. download: whether weights may be fetched. sizes: least, usual and longest input edge, pixels. kernels: as in `--kernels`. chosen: the user named the checkpoint,
    and may then replace a bundle of another model. bf16: of the TensorRT plans alone. profiles and what follows: as
    tensorrt.build_plans.PlanOptions. small_text: the text encoder's weights in 8 and 4 bits (export.onnx.small_weights). image_weights, text_weights, command: as training.checkpoint.Moved.
    """

    checkpoint: Path
    out: Path
    fp16: bool = False
    max_words: int = 256
    max_batch: int = 8
    sizes: tuple[int, int, int] | None = None
    backend: str = "auto"
    build_for: str | None = None
    kernels: str = "all"
    pictures: Path | None = None
    chosen: bool = True
    bf16: bool = False
    small_text: bool = False
    profiles: tuple[str, ...] = ()
    timing_cache: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    image_weights: Path | None = None
    text_weights: Path | None = None
    command: str = "python export/build_engine.py --checkpoint CHECKPOINT"
    model: str | None = None
    weights: str | None = None
    download: bool = False

    @property
    def name(self) -> str:
        """The bundle's."""
        return named(self.out, "bundle")

    @property
    def plan_precision(self) -> str:
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"


def named(folder: Path, generic: str) -> str:
    """A folder's name, or its parent's where the folder is only called what it is."""
    folder = folder.absolute()
    return folder.parent.name if folder.name == generic else folder.name
