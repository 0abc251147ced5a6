"""Training-free CLIP, from a file of weights to masks: what sessions give is what a plain spelling in PyTorch gives."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from export.build_bundle import Build
from export.options import Options
from export.stages import Stages
from fusioner_rt import EncodedPicture, Session
from fusioner_rt.bundle import Bundle
from fusioner_rt.cures import build_command
from fusioner_rt.errors import FusionerError
from fusioner_rt.manifest_document import with_digest
from training import training_free
from training.encoders.open_clip import MEAN, STD, import_open_clip

ROOT = Path(__file__).resolve().parents[2]
CAT = ROOT / "docs" / "pictures" / "cat.jpg"
WORDS = ["cat", "dog", "sofa", "red chair", "grass"]


@pytest.fixture(scope="module")
def session(clip_bundle: Path) -> Iterator[Session]:
    with Session(clip_bundle, backend="onnxruntime-cpu", cache=False) as opened:
        yield opened


def pictures() -> list[np.ndarray]:
    """A photograph at its own size, smaller than the network's input, and tall and narrow; edges odd."""
    photograph = Image.open(CAT).convert("RGB")
    return [np.asarray(photograph)] + [np.asarray(photograph.resize(size)) for size in ((231, 157), (213, 611))]


def plain_features(model: Any, pixels: Tensor) -> Tensor:
    """pixels (1, 3, H, W) → (h, w, e), unit length: the equations of NACLIP, one after the other."""
    visual = model.visual
    x = visual.conv1(pixels)
    h, w = x.shape[2:]
    grid = visual.positional_embedding[1:].T.reshape(1, -1, *visual.grid_size)
    if (h, w) != tuple(visual.grid_size):
        grid = F.interpolate(grid, size=(h, w), mode="bicubic", align_corners=False, antialias=False)
    x = torch.cat([(visual.class_embedding + visual.positional_embedding[0])[None], (x + grid)[0].flatten(1).T])
    x = visual.ln_pre(x)[None]
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    last = visual.transformer.resblocks[-1]
    y, heads = last.ln_1(x)[0], last.attn.num_heads
    width = y.shape[1]
    places = [(i // w, i % w) for i in range(h * w)]
    near = torch.zeros(1 + h * w, 1 + h * w)
    near[1:, 1:] = torch.exp(-(torch.cdist(torch.tensor(places).float(), torch.tensor(places).float()) ** 2) / (2 * 25))
    attended = []
    for head in range(heads):
        rows = slice(head * width // heads, (head + 1) * width // heads)
        weights, biases = last.attn.in_proj_weight, last.attn.in_proj_bias
        key = y @ weights[width : 2 * width][rows].T + biases[width : 2 * width][rows]
        value = y @ weights[2 * width :][rows].T + biases[2 * width :][rows]
        attended.append(torch.softmax(key @ key.T / (width / heads) ** 0.5 + near, dim=1) @ value)
    x = last.attn.out_proj(torch.cat(attended, dim=1))
    x = visual.ln_post(x) @ visual.proj
    return F.normalize(x[1:], dim=1).reshape(h, w, -1)


@torch.no_grad()
def plain(model: Any, rgb: np.ndarray, words: list[str], sliding: bool) -> Tensor:
    """(K, H, W): probabilities, with every feature brought to the output's size."""
    open_clip = import_open_clip()
    vectors = []
    for word in words:
        prompts = open_clip.tokenize([template(word) for template in open_clip.OPENAI_IMAGENET_TEMPLATES])
        vectors.append(F.normalize(F.normalize(model.encode_text(prompts), dim=1).mean(0), dim=0))
    scale = 336 / min(rgb.shape[:2])
    h, w = (min(max(int(edge * scale / 16 + 0.5), 1) * 16, 1024) for edge in rgb.shape[:2])
    resized = np.asarray(Image.fromarray(rgb).resize((w, h), Image.Resampling.BICUBIC))
    pixels = ((torch.from_numpy(resized.copy()) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)[None]
    if sliding:
        total, count = torch.zeros(h // 16, w // 16, 32), torch.zeros(h // 16, w // 16, 1)
        for top in sorted({min(i * 112, h - 224) for i in range(20)}):
            for left in sorted({min(i * 112, w - 224) for i in range(20)}):
                part = plain_features(model, pixels[:, :, top : top + 224, left : left + 224])
                total[top // 16 : top // 16 + 14, left // 16 : left // 16 + 14] += part
                count[top // 16 : top // 16 + 14, left // 16 : left // 16 + 14] += 1
        features = total / count
    else:
        features = plain_features(model, pixels)
    size = (rgb.shape[0], rgb.shape[1])
    large = F.interpolate(features.permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=False)[0]
    cosine = torch.einsum("ehw,ke->khw", F.normalize(large, dim=0), torch.stack(vectors))
    return torch.softmax(40 * cosine, dim=0)


@pytest.mark.parametrize("window", ["whole", "sliding"])
@pytest.mark.parametrize("index", range(3))
def test_masks_are_those_of_a_plain_spelling_of_the_equations(
    small_clip: tuple[Any, Path], session: Session, index: int, window: Any
) -> None:
    rgb = pictures()[index]
    expected = plain(small_clip[0], rgb, WORDS, window == "sliding").numpy()
    found = session.segment(rgb, words=WORDS, window=window, probabilities=True)
    assert found.probabilities is not None
    # A cosine's rounding of some 1e-6 is multiplied by 40; half of it reaches the probability.
    assert np.abs(found.probabilities - expected).max() < 2e-4
    np.testing.assert_allclose(found.confidence, expected.max(axis=0), atol=2e-4)
    best = np.sort(expected, axis=0)
    clear = (best[-1] - best[-2] > 4e-4) & (np.abs(best[-1] - 0.1) > 4e-4)
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found.labels[clear], expected.argmax(axis=0)[clear] + 1)
    assert len(np.unique(found.labels)) > 1


def test_windows_are_joined_the_same_when_the_picture_was_encoded_first(session: Session) -> None:
    rgb = pictures()[1]
    encoded = session.encode(rgb, window="sliding")
    assert isinstance(encoded, EncodedPicture)
    direct = session.segment(rgb, words=WORDS, window="sliding")
    np.testing.assert_array_equal(session.segment(encoded, words=WORDS, window="sliding").labels, direct.labels)
    for wrong in (lambda: session.segment(encoded, words=WORDS), lambda: session.encode(encoded)):
        with pytest.raises(FusionerError, match="was encoded with window='sliding'"):
            wrong()


def test_windows_may_be_stopped_between_two_passes(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):
        pass

    def enough() -> None:
        if passes:
            raise Enough

    def counted(crops: Any) -> Any:
        passes.append(len(crops))
        return own(crops)

    own, passes, rgb = session._executor.encode_windows, list[int](), pictures()[2]
    monkeypatch.setattr(session._executor, "encode_windows", counted)
    encoded = session.encode(rgb, window="sliding")
    assert len(passes) > 1
    assert max(passes) <= session.bundle.batch.max
    for call in (session.encode, functools.partial(session.segment, words=WORDS)):
        passes.clear()
        with pytest.raises(Enough):
            call(rgb, window="sliding", before_each=enough)  # type: ignore[operator]
        assert len(passes) == 1
    assert session.segment(encoded, words=WORDS, window="sliding").labels.shape == rgb.shape[:2]


def test_a_list_of_pictures_is_a_picture_at_a_time(session: Session) -> None:
    for window in ("whole", "sliding"):
        together = session.segment(pictures(), words=WORDS, window=window)  # type: ignore[call-overload]
        for result, rgb in zip(together, pictures(), strict=True):
            alone = session.segment(rgb, words=WORDS, window=window)  # type: ignore[call-overload]
            np.testing.assert_array_equal(result.labels, alone.labels)


def test_probabilities_of_a_pixel_sum_to_one_over_words_groups_and_background(session: Session) -> None:
    result = session.segment(CAT, words=WORDS, probabilities=True)
    assert result.probabilities is not None
    np.testing.assert_allclose(result.probabilities.sum(axis=0), 1, atol=1e-5)
    hidden = session.segment(CAT, words=WORDS, background=["wall", "sky"], probabilities=True)
    assert hidden.probabilities is not None
    assert hidden.probabilities.shape == result.probabilities.shape
    assert (hidden.probabilities <= result.probabilities + 1e-6).all()  # what background words take


def test_one_word_alone_has_every_pixel_and_a_note_says_why(session: Session) -> None:
    session.set_vocabulary("cat")
    assert any("background" in note for note in session.notes)
    result = session.segment(CAT)
    assert (result.labels == 1).all()
    assert (result.confidence == 1).all()
    session.set_vocabulary("cat", background="common")
    assert not any("compares words with each other" in note for note in session.notes)


def test_independent_words_are_compared_like_joint_ones(session: Session) -> None:
    joint, alone = (session.segment(CAT, words=WORDS, mode=mode) for mode in ("joint", "independent"))
    np.testing.assert_array_equal(joint.labels, alone.labels)
    np.testing.assert_array_equal(joint.confidence, alone.confidence)
    assert alone.mode == "independent"


def test_temperature_threshold_and_scoring_come_from_the_bundle(session: Session, clip_bundle: Path) -> None:
    manifest = json.loads((clip_bundle / "manifest.json").read_text())
    assert (manifest["scoring"], manifest["temperature"], manifest["threshold"]) == ("softmax", 1 / 40, 0.1)
    assert manifest["windows"] == {"side": 224, "stride": 112}
    assert manifest["preprocessing"]["fit"] == "short"
    assert len(manifest["templates"]) == 80
    assert session.segment(CAT, words=WORDS).threshold == 0.1
    words = [f"thing number {index}" for index in range(40)]
    some = session.segment(CAT, words=words)
    np.testing.assert_array_equal(some.labels == 0, ~(some.confidence > np.float32(0.1)))
    assert (session.segment(CAT, words=words, threshold=0).labels > 0).all()


def test_cures_name_the_model_and_its_weights_in_place_of_a_checkpoint(session: Session, clip_bundle: Path) -> None:
    manifest = json.loads((clip_bundle / "manifest.json").read_text())
    manifest["model"]["image_encoder"] = "dense_clip:ViT-B-16:my weights.pt"
    (clip_bundle.parent / "of-b16").mkdir()
    (clip_bundle.parent / "of-b16" / "manifest.json").write_text(json.dumps(with_digest(manifest)))
    assert "--model clip-b16 --weights 'my weights.pt' --sizes" in build_command(clip_bundle.parent / "of-b16")


def test_a_build_for_inputs_larger_than_a_window_has_none(clip_bundle: Path) -> None:
    assert Bundle.open(clip_bundle).size.min <= Bundle.open(clip_bundle).windows.side  # type: ignore[union-attr]
    build = Build(clip_bundle, Options(clip_bundle, clip_bundle, sizes=(256, 336, 1024)), Stages(False))
    build.model, build.sizes = (
        SimpleNamespace(config=training_free.clip("clip-b16"), random_weights=[]),
        (256, 336, 1024),
    )  # type: ignore[assignment]
    build.model.text_encoder = SimpleNamespace(max_tokens=77)  # type: ignore[assignment]
    build.preprocessing = Bundle.open(clip_bundle).preprocessing
    assert "windows" not in build._described({})


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("ViT-L-14", "build it with --model clip-l14"),
        ("ViT-B-32", "give --weights of CLIP: ViT-B-16's with --model clip-b16, ViT-L-14's with --model clip-l14"),
    ],
)
def test_weights_of_another_clip_are_answered_in_the_commands_own_words(
    tmp_path: Path, weights: str, expected: str
) -> None:
    with torch.device("meta"):
        shapes = (
            import_open_clip()
            .CLIP(
                **{
                    key: value
                    for key, value in import_open_clip().get_model_config(weights).items()
                    if key != "custom_text"
                }
            )
            .state_dict()
        )
    torch.save({name: torch.zeros(()).expand(value.shape) for name, value in shapes.items()}, tmp_path / "w.pt")
    with pytest.raises(FusionerError) as raised:
        training_free.build("clip-b16", str(tmp_path / "w.pt"))
    assert expected in raised.value.cure


def test_weights_that_are_not_there_are_asked_for_by_the_commands_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", "/nowhere")
    monkeypatch.setenv("HF_HOME", "/nowhere")
    with pytest.raises(FusionerError) as raised:
        training_free.build("clip-b16")
    assert "name the file of its weights: --weights FILE, or allow the download: --download" in raised.value.cure


def test_a_bundle_without_windows_says_so(tiny_bundle: Path) -> None:
    with (
        Session(tiny_bundle, backend="onnxruntime-cpu", cache=False) as opened,
        pytest.raises(FusionerError, match="has no sliding windows"),
    ):
        opened.segment(CAT, words="cat", window="sliding")


def test_a_window_that_is_none_is_named(session: Session) -> None:
    with pytest.raises(FusionerError, match="choose whole or sliding"):
        session.segment(CAT, words="cat", window="slide")  # type: ignore[call-overload]


def test_tensorrt_reads_the_graphs(clip_bundle: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    for name in ("image_fusion", "text"):
        network = builder.create_network(0)  # held: the parser only borrows it
        parser = trt.OnnxParser(network, logger)
        assert parser.parse_from_file(str(clip_bundle / f"{name}.onnx")), str(parser.get_error(0))


@pytest.mark.slow
def test_tensorrt_takes_the_graphs(clip_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    folder = tmp_path / "clip-b16"
    shutil.copytree(clip_bundle, folder)
    add = [sys.executable, ROOT / "export" / "add_plans.py", folder, "--backend", "tensorrt-rtx", "--for", "sm_89"]
    subprocess.run(add, check=True, capture_output=True, timeout=300)
    plans = json.loads((folder / "manifest.json").read_text())["engines"]
    assert {plan["graph"] for plan in plans} == {"image_fusion", "text"}


@pytest.mark.slow
def test_two_commands_lead_from_clips_weights_in_a_file_to_masks(tmp_path: Path) -> None:
    """The real ViT-B/16's shapes, random weights, half precision: what anyone with the weights runs."""
    torch.manual_seed(0)
    torch.save(import_open_clip().create_model("ViT-B-16", precision="fp32").state_dict(), tmp_path / "ViT-B-16.pt")
    build = [sys.executable, ROOT / "export" / "build_engine.py", "--model", "clip-b16", "--weights", "ViT-B-16.pt"]
    subprocess.run([*build, "--fp16", "--kernels", "none"], cwd=tmp_path, check=True, timeout=600)
    manifest = json.loads((tmp_path / "engines" / "clip-b16" / "manifest.json").read_text())
    assert manifest["gates"]["parity"]["mask_agreement"] >= 0.995
    assert manifest["precision"] == "fp16"
    segment = [
        sys.executable,
        "-m",
        "fusioner_rt",
        "segment",
        CAT,
        "--words",
        "cat, dog, sofa",
        "--background",
        "common",
    ]
    done = subprocess.run(
        [*segment, "--engine", "engines/clip-b16", "--labels"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "cat.overlay.jpg" in done.stdout
    assert Image.open(tmp_path / "output" / "cat.labels.png").size == Image.open(CAT).size


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "clip-b16", "--checkpoint", "models/demo/checkpoint"], "give --model or --checkpoint"),
        (["--weights", "ViT-B-16.pt"], "give --weights with --model clip-b16 or clip-l14"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments: list[str], expected: str) -> None:
    from export.build_engine import parse

    with pytest.raises(FusionerError, match=expected):
        parse(arguments)
