"""What is said of a file that was given for weights: what it is, whose weights it holds, and which command takes it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save, save_file

from export import build_engine
from training import evaluate, train
from training.encoders import WeightsNotFound, WeightsUnfit, image_encoder
from training.encoders.bert import Bert
from training.encoders.open_clip import _load, import_open_clip
from training.encoders.recognition import described, looks_like
from training.encoders.released import read_state
from training.encoders.vision_transformer import VARIANTS, VisionTransformer

CLIPS = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "RN50", "RN101")
STATE = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.zeros(3)}
scratch = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def clip_state(name: str) -> dict[str, torch.Tensor]:
    open_clip = import_open_clip()
    with torch.device("meta"):
        return open_clip.CLIP(**open_clip.get_model_config(name)).state_dict()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_is_known_by_its_names_and_shapes(name: str) -> None:
    state = clip_state(name)
    for given_ in (state, {"state_dict": {f"module.{n}": v for n, v in state.items()}, "epoch": 3}):
        likeness = looks_like(given_)
        assert likeness is not None
        assert likeness.encoder == f"open_clip:{name}"
        assert described(given_) == f"CLIP {name.replace('-', '/', 2).replace('/', '-', 1)}'s, {len(state)} tensors"
    command = looks_like(state).command(Path("a b.pt"))  # type: ignore[union-attr]
    built = {"ViT-B-16": "--model clip-b16 ", "ViT-L-14": "--model clip-l14 "}.get(name)
    if built:
        assert command == f"python export/build_engine.py {built}--weights 'a b.pt' --fp16"
    else:
        assert command == f"python -m training.train RECIPE --data DIR --image-encoder 'open_clip:{name}:a b.pt'"


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("prefix", ["", "module.base_encoder."])
def test_a_vit_is_known_up_to_what_releases_share(name: str, prefix: str) -> None:
    with torch.device("meta"):
        state = VisionTransformer.of(VARIANTS[name]).state_dict()
    likeness = looks_like({"state_dict": {prefix + n: v for n, v in state.items()}})
    assert likeness is not None
    asked, found = VARIANTS[name], VARIANTS[likeness.encoder]
    assert (found.width, found.patch, found.layer_scale) == (asked.width, asked.patch, asked.layer_scale)
    if prefix and not name.startswith("dinov2"):
        assert likeness.encoder.startswith("mocov3")


@pytest.mark.parametrize(("width", "layers", "name"), [(768, 12, "BERT-base's"), (384, 6, "MiniLM-L6's"), (64, 2, "a BERT's of width 64")])  # fmt: skip
def test_a_bert_is_known_with_its_prefix_and_without(width: int, layers: int, name: str) -> None:
    with torch.device("meta"):
        state = Bert(90, width, layers, 4, 32, 16, 1e-12, Path()).state_dict()
    for prefix in ("", "bert."):
        likeness = looks_like({prefix + n: v for n, v in state.items()})
        assert likeness is not None
        assert likeness.whose == name
        assert likeness.command(Path("folder")).endswith("--text-encoder bert:folder")


def test_what_no_encoder_here_has_is_said_to_be_so() -> None:
    assert looks_like(STATE) is None
    assert described(STATE) == "of no encoder known here, 2 tensors (weight, bias, …)"
    assert looks_like({}) is None


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("vision_model.embeddings.patch_embedding.weight", "OpenAI's own file"),
        ("embeddings.patch_embeddings.projection.weight", "as its authors published it"),
        ("_conv_stem.weight", "pip install --no-deps"),
        ("project_pixels.0.weight", "name the folder that holds it beside config.json"),
    ],
)
def test_weights_that_no_encoder_takes_say_what_to_do_instead(
    name: str, cure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({name: torch.zeros(1)}, tmp_path / "w.pt")
    assert build_engine.main(["--checkpoint", str(tmp_path / "w.pt"), "--out", str(tmp_path / "out")]) == 71
    assert cure in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(WeightsUnfit, match=re.escape(cure)):
        image_encoder(f"dino-vits16:{tmp_path / 'w.pt'}")


def test_names_and_shapes_of_an_archive_are_read_without_its_numbers(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(4, 3)), str(tmp_path / "archive.pt"))
    state = read_state(tmp_path / "archive.pt", "meta")
    assert {name: (tuple(value.shape), value.device.type) for name, value in state.items()} == {
        "weight": ((3, 4), "meta"), "bias": ((3,), "meta"),
    }  # fmt: skip


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


def archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as written:
        written.writestr("photos/a.jpg", "x")
    return stream.getvalue()


def array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


def pytorch(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


class Code:
    def __reduce__(self) -> Any:
        return print, ("run",)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 350000000\n"
OTHERS: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "text": (lambda: b"hello\n", r"is a text file \('hello'\)", "name another file"),
    "page": (lambda: b"\n<!DOCTYPE html><html>", "is a web page", "not the page that shows it"),
    "pointer": (lambda: LFS, "is a Git LFS pointer, which stands for a file of 350,000,000 bytes", "git lfs pull"),
    "empty": (lambda: b"", "is an empty file", "fetch it again"),
    "picture": (picture, "is a picture", "name another file"),
    "zip": (archive, r"is a zip archive \(photos/a.jpg\)", "unpack it"),
    "array": (array, "is a NumPy array", "name another file"),
    "half a release": (lambda: pytorch(STATE)[:900], "ends early: 900 bytes", "fetch it again"),
    "half a safetensors": (lambda: save(STATE)[:-1], r"ends early: \d+ bytes of \d+", "fetch it again"),
    "list": (lambda: pytorch([1]), "holds a list", "name another file"),
    "code": (lambda: pytorch({"a": Code()}), "holds a pickled print, which could run code", "state_dict"),
    "whole model": (lambda: pytorch(torch.nn.Linear(1, 1)), "holds a pickled torch.nn", "state_dict"),
    "noise": (lambda: bytes(range(256)) * 9, "cannot be read as weights", "fetch it again"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_no_weights_is_called_what_it_is(
    name: str, suffix: str, tmp_path: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, found, cure = OTHERS[name]
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(make())
    with pytest.raises(WeightsUnfit, match=f"{found}.*; .*{cure}") as refused:
        image_encoder(f"dino-vits16:{file}")
    assert "\n" not in str(refused.value)
    assert "weights_only" not in str(refused.value)
    assert evaluate.main([str(file), "--data", str(shapes)]) == 71
    said = capsys.readouterr().err
    assert "a checkpoint's folder was expected" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("whole", [pytorch(STATE), pytorch(STATE, _use_new_zipfile_serialization=False), save(STATE)], ids=["zip", "legacy", "safetensors"])  # fmt: skip
@scratch
@given(share=st.floats(0, 1, exclude_max=True))
def test_no_part_of_a_file_is_taken_for_the_whole(whole: bytes, share: float, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(whole)
    assert all(torch.equal(read_state(file)[name], value) for name, value in STATE.items())
    assert {n: v.shape for n, v in read_state(file, "meta").items()} == {n: v.shape for n, v in STATE.items()}
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsUnfit) as refused:
        read_state(file)
    assert "\n" not in str(refused.value)
    assert refused.value.cure


@scratch
@given(content=st.one_of(st.binary(max_size=600), st.text(max_size=200).map(str.encode)), suffix=st.sampled_from([".pt", ".safetensors", ""]))  # fmt: skip
def test_any_bytes_are_refused_in_one_line(content: bytes, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    with pytest.raises(WeightsUnfit) as refused:
        read_state(file)
    assert len(str(refused.value).splitlines()) == 1
    assert refused.value.cure


def test_a_safetensors_file_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.pt")
    torch.save(STATE, tmp_path / "weights.safetensors")
    for file in tmp_path.iterdir():
        assert torch.equal(read_state(file)["weight"], STATE["weight"])


def test_a_folder_names_the_weights_in_it(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match=r"is a folder, not a file; .*; name a file"):
        image_encoder(f"dino-vits16:{tmp_path}")
    save_file(STATE, tmp_path / "model.safetensors")
    with pytest.raises(WeightsNotFound, match=f"name the file in it: {tmp_path}/model.safetensors"):
        image_encoder(f"dino-vits16:{tmp_path}")


def test_weights_of_another_size_name_the_model_they_look_like(tmp_path: Path) -> None:
    torch.save(VisionTransformer.of(VARIANTS["dino-vits16"]).state_dict(), tmp_path / "small.pth")
    file = tmp_path / "small.pth"
    with pytest.raises(
        WeightsUnfit, match=r"another model \(ViT-S/16's .*expected \(1, 1, 768\).*name them dino-vits16:FILE"
    ):
        image_encoder(f"dino-vitb16:{file}")  # fmt: skip
    assert build_engine.main(["--checkpoint", str(file), "--out", str(tmp_path / "out")]) == 71


def test_the_commands_say_what_was_given_in_a_checkpoints_place(
    tmp_path: Path, shapes: Path, tiny_checkpoint: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, unfinished, release = tmp_path / "run", tmp_path / "unfinished", tmp_path / "release"
    run.mkdir(), (unfinished / "state").mkdir(parents=True), release.mkdir()
    (run / "checkpoint").symlink_to(tiny_checkpoint)
    (unfinished / "state" / "state.json").write_text("{}")
    with torch.device("meta"):
        shapes_of_bert = Bert(90, 64, 2, 4, 32, 16, 1e-12, Path()).state_dict()
    save_file({n: torch.zeros(v.shape) for n, v in shapes_of_bert.items()}, release / "model.safetensors")
    (release / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "empty").mkdir()
    for path, says in {
        tiny_checkpoint / "weights.safetensors": f"is a file of a checkpoint, .* name its folder: {tiny_checkpoint}",
        tiny_checkpoint / "config.json": f"is a file of a checkpoint, .* name its folder: {tiny_checkpoint}",
        tiny_bundle / "text.onnx": "is a file of an engine bundle",
        run: f"is the folder of a training run, .* name the checkpoint in it: {run / 'checkpoint'}",
        unfinished: "is the folder of an unfinished training run",
        release: rf"is a folder of encoder weights \(a BERT's of width 64, 37 tensors\).*--text-encoder bert:{release}\n",
        release / "model.safetensors": rf"is a file of encoder weights.*--text-encoder bert:{release}\n",
        tmp_path / "empty": "is an empty folder",
    }.items():
        for main, rest in ((evaluate.main, ["--data", str(shapes)]), (build_engine.main, ["--checkpoint"])):
            arguments = (
                [str(path), *rest] if main is evaluate.main else [*rest, str(path), "--out", str(tmp_path / "x")]
            )
            assert main(arguments) == 71
            said = capsys.readouterr().err
            assert re.search(says, said.splitlines()[-1] + "\n"), (says, said)
    assert build_engine.main(["--checkpoint", str(tiny_bundle), "--out", str(tmp_path / "x")]) == 71
    assert "is an engine bundle, a checkpoint's folder was expected; name the checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("lacking", ["torch", "safetensors", "tqdm"])
@pytest.mark.parametrize("command", ["training.train", "training.evaluate", "export.build_engine"])
def test_a_missing_library_is_one_line_with_the_projects_pip_command(
    lacking: str, command: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{lacking!r}] = None\n")
    given_ = {"training.train": ["--list"], "training.evaluate": ["x", "--data", "y"]}.get(
        command, ["--out", str(tmp_path / "x")]
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-m", command, *given_], capture_output=True, text=True, cwd=root,
        env={"PYTHONPATH": f"{tmp_path}:{root}", "PATH": "", "HOME": str(tmp_path)},
    )  # fmt: skip
    said = done.stderr.strip().splitlines()
    assert done.returncode not in (0, None)
    assert f"the Python package {lacking} is not installed" in said[-1]
    assert "pip install -c constraints.txt -e '.[cpu,export,train]'" in said[-1]
    assert "Traceback" not in done.stderr


def test_a_library_that_draws_is_missed_before_anything_is_trained(
    tmp_path: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert train.main(["tiny", "--data", str(shapes), "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("training.train: the Python package matplotlib is not installed")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lacking", ["open_clip", "torchvision"])
def test_a_missing_library_of_an_encoder_is_named(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("open_clip", lacking)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, lacking, None)
    _load.cache_clear()
    with pytest.raises(
        WeightsNotFound, match=rf"package {lacking}\b.* is not installed, .*; pip install -c constraints.txt"
    ):
        image_encoder("open_clip:ViT-B-16:random")
