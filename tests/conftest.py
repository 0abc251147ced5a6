"""What tests of several rooms share: a small model, and bundles built from it by the real export."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusioner_rt  # noqa: F401  # before any import of onnxruntime: it turns off its telemetry

ROOT = str(Path(__file__).parents[1])
# What nohup and a shell's background turn off, the commands that tests start would ignore too.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
# Scripts that tests start find this project where it is not installed, as on a GPU machine that is only lent.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="session", autouse=True)
def no_users_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the cache or the bundles of the user who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.setenv("FUSIONER_CACHE", str(tmp_path_factory.mktemp("words")))
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of training.model.tiny: random weights, every part in place."""
    from training import checkpoint
    from training.model import tiny

    folder = tmp_path_factory.mktemp("models") / "tiny" / "checkpoint"
    checkpoint.save(tiny(), folder, {"pictures": 0})
    return folder


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """From now on the exporter is asked once for each module in a whole run: its workers share the graphs it made."""
    import kept_traces

    from export.onnx import model_graphs

    folder = _of_all_workers(tmp_path_factory) / "traces"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_graphs, "traced", kept_traces.keep(model_graphs.traced, folder))
        yield


@pytest.fixture(scope="session")
def tiny_traces(traces: None, tiny_checkpoint: Path) -> None:
    """The tiny model's graphs. Of two workers that need them at once, each begins at its end of the list."""
    from export.onnx import model_graphs
    from training import checkpoint

    parts: list[Callable[..., Any]] = [
        model_graphs.text_graph, model_graphs.decoder_graph, model_graphs.fusion_graph, model_graphs.image_graph
    ]  # fmt: skip
    for part in parts[:: -1 if os.environ.get("PYTEST_XDIST_WORKER") == "gw1" else 1]:
        part(checkpoint.load(tiny_checkpoint))


@pytest.fixture(scope="session")
def tiny_bundle(
    tiny_traces: None, tiny_checkpoint: Path, picture_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An fp32 bundle, through export.build_engine.build and all its gates."""
    return _built(tiny_checkpoint, picture_folder, tmp_path_factory, fp16=False)


@pytest.fixture(scope="session")
def tiny_bundle_fp16(
    tiny_traces: None, tiny_checkpoint: Path, picture_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """As tiny_bundle, with --fp16."""
    return _built(tiny_checkpoint, picture_folder, tmp_path_factory, fp16=True)


@pytest.fixture(scope="session")
def made_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle to be moved about and not run: the demonstration's manifest, over files of a few bytes."""
    from fusioner_rt.bundle import write_manifest

    folder = tmp_path_factory.mktemp("made")
    manifest = json.loads(Path(ROOT, "models/demo/bundle/manifest.json").read_text())
    for name in [name for name in manifest["files"] if "sm_" not in name]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 5)
    write_manifest(folder, manifest)
    return folder


@pytest.fixture
def planned(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle with plans of both graphs, for the emulated TensorRT (tests/emulation/emulated_gpu.py)."""
    from emulated_gpu import planned_copy

    return planned_copy(tiny_bundle, tmp_path / "planned")


SMALL_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 224, "layers": 3, "width": 64, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A small CLIP of open_clip's with random weights, by the name tested-dense, and the file that holds them."""
    import torch

    from training.encoders.open_clip import import_open_clip

    folder = tmp_path_factory.mktemp("clip")
    (folder / "tested-dense.json").write_text(json.dumps(SMALL_CLIP))
    import_open_clip().add_model_config(folder / "tested-dense.json")
    torch.manual_seed(0)
    model = import_open_clip().create_model("tested-dense", precision="fp32").eval()
    for value in model.parameters():
        if value.ndim > 1:
            torch.nn.init.normal_(value, std=value.shape[-1] ** -0.5)
    torch.save(model.state_dict(), folder / "weights.pt")
    return model, folder / "weights.pt"


@pytest.fixture(scope="session")
def clip_bundle(small_clip: tuple[Any, Path], traces: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp32 bundle of the small CLIP, as `build_engine.py --model clip-b16` builds one."""
    from export.build_engine import build, parse
    from training import training_free
    from training.encoders.open_clip import _load

    def made(out: Path) -> None:
        arguments = ["--model", "clip-b16", "--weights", str(small_clip[1]), "--out", str(out), "--max-words", "64"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(training_free.MODELS, "clip-b16", ("tested-dense", SMALL_CLIP["embed_dim"]))
            build(
                parse([*arguments, "--max-batch", "4", "--kernels", "sm_80", "--backend", "onnxruntime"]), shown=False
            )
        _load.cache_clear()

    return _made_once("clip-b16", made, tmp_path_factory)


@pytest.fixture
def traced_once(tiny_traces: None) -> None:
    """Builds of the tiny model in this test take seconds, not half a minute."""


@pytest.fixture(scope="session")
def photographs() -> list[np.ndarray]:
    """Three pictures (H, W, 3) uint8 of different sizes and aspect ratios."""
    from export.gates import textured

    return [textured(seed, size) for seed, size in enumerate(((96, 128), (151, 97), (64, 64)))]


@pytest.fixture(scope="session")
def picture_folder(photographs: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photographs` as PNG files."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for index, picture in enumerate(photographs):
        Image.fromarray(picture).save(folder / f"{index}.png")
    return folder


def _built(checkpoint: Path, pictures: Path, temporary: pytest.TempPathFactory, fp16: bool) -> Path:
    from export.build_engine import Options, build
    from fusioner_rt.bundle import read_manifest, write_manifest

    def made(out: Path) -> None:
        limits: dict[str, Any] = {"max_words": 64, "max_batch": 4, "kernels": "sm_80"}
        build(Options(checkpoint, out, fp16, **limits, backend="onnxruntime", pictures=pictures), shown=False)
        # It stands for a trained model's: what is said of random weights would stand between every test and what it is
        # about.
        manifest = read_manifest(out)
        assert manifest.pop("random_weights") == ["image", "text"]
        write_manifest(out, manifest)

    return _made_once("tiny-fp16" if fp16 else "tiny", made, temporary)


def _made_once(name: str, make: Callable[[Path], None], temporary: pytest.TempPathFactory) -> Path:
    """A folder that one worker of a run makes. Each has a copy, for tests may change what is theirs."""
    from kept_traces import alone

    made = _of_all_workers(temporary) / name / name
    made.parent.mkdir(exist_ok=True)
    with alone(made):
        if not made.exists():
            make(made)
    return Path(shutil.copytree(made, temporary.mktemp("engines") / name))


def _of_all_workers(temporary: pytest.TempPathFactory) -> Path:
    own = temporary.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
