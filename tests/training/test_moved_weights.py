"""A checkpoint's encoders whose weights moved are found again by their content, and random ones say that they are."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from export import build_engine
from export.build_bundle import Build
from export.stages import Stages
from fusioner_rt.errors import FusionerError, UsageError
from training import checkpoint, evaluate, train
from training.checkpoint import CheckpointError, Moved
from training.encoders import (
    WeightsNotFound,
    WeightsUnfit,
    has_random_weights,
    image_encoder,
    text_encoder,
    with_weights,
)
from training.encoders.bert import Bert
from training.encoders.open_clip import OPENAI_NUMBERS, _load, import_open_clip
from training.encoders.tiny import tiny_text
from training.encoders.vision_transformer import VARIANTS, Variant, VisionTransformer
from training.model import FusionerConfig
from training.progress import Progress

BERT = {
    "vocab_size": 90, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 70, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
}  # fmt: skip
SMALL: dict[str, Any] = {"width": 32, "layers": 1, "heads": 4, "decoder": ()}


@pytest.fixture(scope="session", autouse=True)
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The architecture open_clip:moved-vit, and weights of it as OpenAI writes them."""
    folder = tmp_path_factory.mktemp("clip")
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 48, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    (folder / "moved-vit.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    import_open_clip().add_model_config(folder)
    torch.manual_seed(3)
    state = import_open_clip().CLIP(24, vision, text, quick_gelu=True).state_dict()
    torch.save({**state, **dict.fromkeys(OPENAI_NUMBERS, torch.tensor(1))}, folder / "clip.pt")
    return folder / "clip.pt"


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BERT))
    shutil.copy(tiny_text()[0].tokenizer_file, folder / "tokenizer.json")
    torch.manual_seed(4)
    save_file(Bert.from_files(folder / "config.json", None, folder / "tokenizer.json").state_dict(), folder / "model.safetensors")  # fmt: skip
    return folder


@pytest.fixture
def dino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file for dino-vits16, which is a small ViT here."""
    monkeypatch.setitem(VARIANTS, "dino-vits16", Variant(24, 2, 3, 16, 48, False, ""))
    torch.save(VisionTransformer.of(VARIANTS["dino-vits16"]).state_dict(), tmp_path / "dino.pth")
    return tmp_path / "dino.pth"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    save_file({"vectors": torch.eye(2, 8)}, tmp_path / "table.safetensors", {"names": '{"cat": 0, "red thing": 1}'})
    return tmp_path / "table.safetensors"


def saved(folder: Path, image: str, text: str) -> Path:
    checkpoint.save(checkpoint.build(FusionerConfig(image, text, **SMALL)), folder, {})
    return folder


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def move(place: Path) -> Path:
    (place.parent / "new home").mkdir(exist_ok=True)
    _load.cache_clear()
    return Path(shutil.move(place, place.parent / "new home" / place.name))


def test_both_towers_of_a_moved_clip_are_found_by_one_flag(small_clip: Path, tmp_path: Path) -> None:
    file = shutil.copy(small_clip, tmp_path / "ViT.pt")
    folder = saved(tmp_path / "one", f"open_clip:moved-vit:{file}", f"open_clip:moved-vit:{file}")
    before, model = (folder / "config.json").read_bytes(), checkpoint.load(folder)
    new = move(file)
    with pytest.raises(WeightsNotFound, match=rf"{file} is not a file.*--checkpoint {folder} --image-weights FILE$"):
        checkpoint.load(folder)
    for moved in (Moved(image=new), Moved(text=new), Moved(new, new), Moved(new.parent)):
        again = checkpoint.load(folder, moved)
        assert same(again, model)
        assert again.config.image_encoder == again.config.text_encoder == f"open_clip:moved-vit:{new}"
        assert again.config.encoder_sha256 == model.config.encoder_sha256
    assert (folder / "config.json").read_bytes() == before


@pytest.mark.parametrize("kind", ["dino and bert", "tiny and table"])
def test_every_encoder_with_a_file_is_found_by_its_content(
    kind: str, dino: Path, bert: Path, table: Path, tmp_path: Path
) -> None:
    image, text, old = ("dino-vits16:", "bert:", bert) if kind == "dino and bert" else ("tiny", "table:", table)
    image_name = f"{image}{dino}" if image.endswith(":") else image
    pooling = ":cls" if text == "bert:" else ""
    folder = saved(tmp_path / "one", image_name, f"{text}{old}{pooling}")
    model, new, new_dino = checkpoint.load(folder), move(old), move(dino) if image.endswith(":") else None
    if new_dino:
        with pytest.raises(WeightsNotFound, match=r"dino\.pth is not a file.* --image-weights FILE"):
            checkpoint.load(folder)
    with pytest.raises(WeightsNotFound, match=r" --text-weights FILE"):
        checkpoint.load(folder, Moved(new_dino))
    again = checkpoint.load(folder, Moved(new_dino, new))
    assert same(again, model)
    assert again.config.text_encoder == f"{text}{new}{pooling}"
    if new.is_dir():
        assert same(checkpoint.load(folder, Moved(new_dino, new / "model.safetensors")), model)


def test_a_file_of_other_content_is_refused_by_both_hashes(dino: Path, bert: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "one", f"dino-vits16:{dino}", f"bert:{bert}")
    expected = json.loads((folder / "config.json").read_text())["model"]["encoder_sha256"]
    other = tmp_path / "other.pth"
    other.write_bytes(dino.read_bytes() + b"x")
    (tmp_path / "other").mkdir()
    shutil.copytree(bert, tmp_path / "other", dirs_exist_ok=True)
    weights = tmp_path / "other" / "model.safetensors"
    state = Bert.from_files(bert / "config.json", None, bert / "tokenizer.json").state_dict()
    save_file(state, weights)
    for moved, kind, file in ((Moved(other), "image", other), (Moved(None, tmp_path / "other"), "text", weights)):
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        with pytest.raises(CheckpointError) as refused:
            checkpoint.load(folder, moved)
        said = str(refused.value)
        assert said.startswith(f"--{kind}-weights ")
        assert found[:12] in said
        assert expected[kind][:12] in said
    shutil.copy(weights, bert / "model.safetensors")  # at the old place, too
    with pytest.raises(CheckpointError, match=rf"{expected['text'][:12]}.*{found[:12]}.* --text-weights FILE"):
        checkpoint.load(folder)
    dino.write_text("hello")
    with pytest.raises(WeightsUnfit, match=r"is a text file .*; name where the same weights lie now: .* --image-weights FILE"):  # fmt: skip
        checkpoint.load(folder)


def test_a_place_without_weights_and_an_encoder_without_a_file_are_said(
    tiny_checkpoint: Path, dino: Path, tmp_path: Path
) -> None:
    for moved, flag in ((Moved(dino), "--image-weights"), (Moved(text=dino), "--text-weights")):
        with pytest.raises(UsageError, match=rf"{flag} .*encoder, tiny, takes no file; leave it out"):
            checkpoint.load(tiny_checkpoint, moved)
    folder = saved(tmp_path / "one", f"dino-vits16:{dino}", "tiny")
    for place, says in (("nowhere", "there is no such file"), ("empty", "found none"), ("two", "found a.pt, b.pth")):
        if place != "nowhere":
            (tmp_path / place).mkdir()
        for name in ("a.pt", "b.pth") if place == "two" else ():
            (tmp_path / place / name).write_text("")
        with pytest.raises(FusionerError, match=says):
            checkpoint.load(folder, Moved(tmp_path / place))


def test_a_flag_that_was_given_is_not_advised(bert: Path, tmp_path: Path) -> None:
    folder, new = saved(tmp_path / "one", "tiny", f"bert:{bert}"), move(bert)
    (new / "tokenizer.json").unlink()
    with pytest.raises(WeightsNotFound, match=r"it lacks tokenizer\.json") as refused:
        checkpoint.load(folder, Moved(text=new))
    assert "--text-weights" not in str(refused.value)


def test_without_hashes_a_flag_is_of_its_own_encoder_alone(dino: Path, bert: Path) -> None:
    config = Moved(image=dino).of(FusionerConfig("dino-vits16:/old.pth", f"bert:{bert}", **SMALL))
    assert (config.image_encoder, config.text_encoder) == (f"dino-vits16:{dino}", f"bert:{bert}")


@pytest.mark.parametrize("program", ["build", "evaluate"])
def test_the_command_that_failed_is_given_back_with_the_flag_in_it(
    program: str, dino: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "one", f"dino-vits16:{dino}", "tiny")
    new = move(dino)
    if program == "build":
        main, prefix = build_engine.main, "python export/build_engine.py"
        arguments = ["--checkpoint", str(folder), "--fp16", "--out", str(tmp_path / "out"), "--backend", "onnxruntime"]
    else:
        main, prefix = evaluate.main, "python -m training.evaluate"
        arguments = [str(folder), "--data", str(shapes), "--least", "1", "--cache", str(tmp_path / "cache")]
    assert main(arguments) == WeightsNotFound.exit_code
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"{prefix} {' '.join(arguments)} --image-weights FILE")
    assert "--download" not in said
    if program == "evaluate":  # a build of it takes minutes
        assert main([*arguments, "--image-weights", str(new)]) == 0


def test_a_bundle_has_no_weights_to_move(tiny_bundle: Path, shapes: Path, tmp_path: Path, capsys: Any) -> None:
    command = [str(tiny_bundle), "--data", str(shapes), "--cache", str(tmp_path / "cache")]
    assert evaluate.main([*command, "--text-weights", "x"]) == UsageError.exit_code
    assert "is an engine bundle, which holds its encoders' weights" in capsys.readouterr().err


NAMES = [
    "open_clip:ViT-B-16", "dense_clip:ViT-B-16:/old/e.pt", "open_clip:ViT-B-16:laion2b_s34b_b88k", "open_clip:RN101:/old/a.pt", "dino-vits16",
    "dinov2-vitb14:/old/b.pth", "mocov3-vitb16:c.tar", "bert:org/name:cls", "bert:/old/folder", "table:/old/d.safetensors",
]  # fmt: skip


@given(st.sampled_from(NAMES), *[st.text("abc./", min_size=1).map(lambda text: Path(f"/{text}/w.pt"))] * 2)
def test_a_weights_place_is_all_that_another_place_changes(name: str, first: Path, second: Path) -> None:
    once, twice = with_weights(name, second), with_weights(with_weights(name, first) or "", second)
    assert once == twice
    assert once is not None
    assert str(second.parent) in once


@pytest.mark.parametrize("name", ["tiny", "efficientnet-lite0", "open_clip:ViT-B-16:random", "dino-vits16:random"])
def test_an_encoder_without_a_file_takes_none(name: str) -> None:
    assert with_weights(name, Path("w.pt")) is None


def test_a_tags_file_is_read_as_the_tag_says(small_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's weights without its three numbers: the tag alone tells their activation."""
    state = {n: v for n, v in torch.load(small_clip).items() if n not in OPENAI_NUMBERS}
    save_file(state, tmp_path / "released.safetensors")
    open_clip = import_open_clip()
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda model: ["openai"])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: {"mean": (0.5,) * 3})
    renamed = with_weights("open_clip:moved-vit", tmp_path / "released.safetensors")
    assert renamed == f"open_clip:moved-vit:openai:{tmp_path / 'released.safetensors'}"
    _load.cache_clear()
    by_tag = image_encoder(renamed)[0]
    by_numbers = image_encoder(f"open_clip:moved-vit:{small_clip}")[0]
    assert by_tag.mean == (0.5,) * 3
    pixels = torch.randn(1, 3, 48, 48)
    torch.testing.assert_close(by_tag(pixels), by_numbers(pixels))


def test_random_weights_are_known_from_the_encoder(small_clip: Path, dino: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        random = [
            image_encoder(name)[0]
            for name in (
                "tiny",
                "dino-vits16:random",
                "open_clip:moved-vit:random",
                "dense_clip:moved-vit:random",
                "open_clip:RN50:random",
            )
        ]
        random += [text_encoder(name)[0] for name in ("tiny", "open_clip:moved-vit:random")]  # type: ignore[misc]
    named = shutil.copy(dino, dino.with_name("random"))  # a file of that name holds no random weights
    read = [image_encoder(f"open_clip:moved-vit:{small_clip}")[0], image_encoder(f"dino-vits16:{named}")[0]]
    assert [has_random_weights(encoder) for encoder in random] == [True] * 7
    assert [has_random_weights(encoder) for encoder in read] == [False] * 2


def test_a_manifest_names_the_weights_that_were_used_and_the_random_ones(dino: Path, tmp_path: Path) -> None:
    folder, new = saved(tmp_path / "one", f"dino-vits16:{dino}", "tiny"), move(dino)
    (tmp_path / "out").mkdir()
    build = Build(tmp_path / "out", build_engine.Options(folder, tmp_path / "out", image_weights=new), Stages(False))
    build.prepare()
    build.load_model()
    described = build._described({})
    assert described["model"]["image_encoder"] == f"dino-vits16:{new}"
    assert described["random_weights"] == ["text"]


def test_a_run_goes_on_where_its_encoders_file_lies_now_and_not_on_another(
    dino: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(file: Path, epochs: int = 2) -> list[str]:
        out = ["--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache"), "--workers", "0"]
        return ["tiny", "--data", str(shapes), "--image-encoder", f"dino-vits16:{file}", "--epochs", str(epochs), *out]

    save = Progress.save

    def interrupted(self: Progress, optimiser: Any) -> None:
        save(self, optimiser)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "save", interrupted)
        assert train.main(command(dino)) == 130
    other = tmp_path / "other.pth"
    torch.save(VisionTransformer.of(VARIANTS["dino-vits16"]).state_dict(), other)
    digests = [hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in (dino, other)]
    capsys.readouterr()
    assert train.main(command(other)) == UsageError.exit_code
    assert re.search(rf"{digests[0]}.*{digests[1]}.* --image-encoder NAME:FILE", capsys.readouterr().err)
    new = move(dino)
    assert train.main(command(new, epochs=3)) == UsageError.exit_code
    assert "other settings (epochs 2 there, 3 here)" in capsys.readouterr().err
    assert train.main(command(new)) == 0
    assert "resuming after epoch 1" in capsys.readouterr().out
    config, record = checkpoint.read_config(tmp_path / "run" / "checkpoint")
    assert config.image_encoder == f"dino-vits16:{new}"
    assert record["random_weights"] == ["text"]
