"""Released weight files, fabricated with the releases' names and shapes, whole and broken."""

from __future__ import annotations

import argparse
import hashlib
import socket
import time
from dataclasses import replace
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from training.encoders import WeightsNotFound, WeightsUnfit, allow_download, image_encoder, text_encoder
from training.encoders.positions import interpolate_positions
from training.encoders.released import DOWNLOAD, read_state, url_file
from training.encoders.vision_transformer import VARIANTS, Variant, VisionTransformer, load_released

Shapes = dict[str, tuple[int, ...]]


def vit_names(width: int, depth: int, patch: int, positions: int, layer_scale: bool) -> Shapes:
    """The backbone's names and shapes as DINO, DINOv2 and MoCo v3 release them."""
    names: Shapes = {
        "cls_token": (1, 1, width), "pos_embed": (1, positions, width), "norm.weight": (width,), "norm.bias": (width,),
        "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,),
    }  # fmt: skip
    for block in range(depth):
        parts: Shapes = {
            "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
            "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
            "mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,),
        }  # fmt: skip
        if layer_scale:
            parts |= {"ls1.gamma": (width,), "ls2.gamma": (width,)}
        names |= {f"blocks.{block}.{name}": shape for name, shape in parts.items()}
    return names


def fabricated(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=random) * 0.2 for name, shape in shapes.items()}


def loaded(module: nn.Module, state: dict[str, Tensor]) -> bool:
    own = module.state_dict()
    return set(own) == set(state) and all(torch.equal(own[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads", "patch", "positions"),
    [
        ("dino-vits16", 384, 12, 6, 16, 197),
        ("dino-vitb16", 768, 12, 12, 16, 197),
        ("dinov2-vits14", 384, 12, 6, 14, 1370),
        ("dinov2-vitb14", 768, 12, 12, 14, 1370),
        ("dinov2-vitl14", 1024, 24, 16, 14, 1370),
        ("mocov3-vits16", 384, 12, 12, 16, 197),
        ("mocov3-vitb16", 768, 12, 12, 16, 197),
    ],
)
def test_every_variant_has_the_names_and_shapes_of_its_release(
    name: str, width: int, depth: int, heads: int, patch: int, positions: int
) -> None:
    with torch.device("meta"):
        encoder = VisionTransformer.of(VARIANTS[name])
    shapes = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    assert shapes == vit_names(width, depth, patch, positions, name.startswith("dinov2"))
    assert (encoder.blocks[0].heads, encoder.width, encoder.stride, encoder.side) == (
        heads, width, patch, patch * round((positions - 1) ** 0.5),
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("layer_scale", [False, True])
def test_tokens_are_those_of_timms_vision_transformer(layer_scale: bool) -> None:
    from training.encoders.open_clip import define_torchvision_operators

    library = define_torchvision_operators()  # before timm imports torchvision
    from timm.models.vision_transformer import VisionTransformer as Timm

    torch.manual_seed(0)
    timm = Timm(
        img_size=48, patch_size=16, embed_dim=24, depth=3, num_heads=3, num_classes=0,
        init_values=1.0 if layer_scale else None,
    ).eval()  # fmt: skip
    timm.load_state_dict(fabricated({n: tuple(v.shape) for n, v in timm.state_dict().items()}))
    encoder = VisionTransformer(24, 3, 3, 16, 48, layer_scale).eval()
    encoder.load_state_dict(timm.state_dict())
    pixels = torch.randn(2, 3, 48, 48)
    expected = F.normalize(timm.forward_features(pixels)[:, 1:], dim=-1)
    torch.testing.assert_close(encoder(pixels).flatten(1, 2), expected, atol=1e-5, rtol=0)
    del library


SMALL = Variant(24, 3, 3, 16, 48, False, "")


@pytest.fixture
def state() -> dict[str, Tensor]:
    return fabricated(vit_names(24, 3, 16, 10, False))


def extra(prefix: str, names: tuple[str, ...]) -> dict[str, Tensor]:
    return {prefix + name: torch.zeros(2) for name in names}


def put(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def test_a_bare_backbone_loads_from_both_kinds_of_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "dino.pth")
    save_file(state, tmp_path / "dino.safetensors")
    for file in sorted(tmp_path.iterdir()):
        encoder = VisionTransformer.of(SMALL)
        load_released(encoder, file)
        assert loaded(encoder, state)


@pytest.mark.parametrize("prefix", ["module.backbone.", "backbone."])
def test_dinos_training_checkpoint_gives_its_teachers_backbone(
    prefix: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    student = put("module.backbone.", fabricated(vit_names(24, 3, 16, 10, False), seed=1))
    head = extra(prefix.replace("backbone.", "head."), ("mlp.0.weight", "mlp.0.bias", "last_layer.weight_v"))
    document = {
        "student": student, "teacher": {**put(prefix, state), **head}, "epoch": 100,
        "args": argparse.Namespace(arch="vit_base", patch_size=16), "optimizer": {"state": {}, "param_groups": []},
    }  # fmt: skip
    torch.save(document, tmp_path / "checkpoint.pth")
    encoder = VisionTransformer.of(SMALL)
    load_released(encoder, tmp_path / "checkpoint.pth")
    assert loaded(encoder, state)


@pytest.mark.parametrize("encoders", [("base_encoder", "momentum_encoder"), ("momentum_encoder",)])
def test_moco_gives_its_base_encoder_or_where_there_is_none_the_momentum_encoder(
    encoders: tuple[str, ...], state: dict[str, Tensor], tmp_path: Path
) -> None:
    momentum = fabricated(vit_names(24, 3, 16, 10, False), seed=1)
    content: dict[str, Tensor] = extra("module.predictor.", ("0.weight", "1.running_mean"))
    for values, name in zip((state, momentum), encoders, strict=False):
        content |= put(f"module.{name}.", values) | extra(f"module.{name}.head.", ("0.weight", "1.num_batches_tracked"))
    torch.save({"epoch": 300, "arch": "vit_base", "state_dict": content}, tmp_path / "vit-b-300ep.pth.tar")
    encoder = VisionTransformer.of(SMALL)
    load_released(encoder, tmp_path / "vit-b-300ep.pth.tar", VARIANTS["mocov3-vitb16"].dropped)
    assert loaded(encoder, state)


@pytest.mark.parametrize("chunks", [1, 3])
def test_dinov2_loads_released_and_in_chunks(chunks: int, tmp_path: Path) -> None:
    state = fabricated(vit_names(24, 3, 14, 26, True))
    variant = replace(SMALL, patch=14, side=70, layer_scale=True)
    released = {**state, "mask_token": torch.zeros(1, 24)}
    chunked = {
        f"blocks.{int(name.split('.')[1]) // (3 // chunks)}.{name.removeprefix('blocks.')}"
        if name.startswith("blocks.")
        else name: value
        for name, value in released.items()
    }
    teacher = {**put("backbone.", chunked), **extra("dino_head.", ("mlp.0.weight",))}
    torch.save(released, tmp_path / "released.pth")
    torch.save({"teacher": teacher}, tmp_path / "chunked.pth")
    for file in sorted(tmp_path.iterdir()):
        encoder = VisionTransformer.of(variant)
        load_released(encoder, file, VARIANTS["dinov2-vits14"].dropped)
        assert loaded(encoder, state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.2.mlp.fc1.bias"), r"1 missing \(blocks\.2\.mlp\.fc1\.bias\)"),
        (lambda s: s.update(register_tokens=torch.zeros(1, 4, 24)), r"1 unexpected \(register_tokens\)"),
        (lambda s: s.update({"head.weight": torch.zeros(10, 24)}), r"unexpected \(head\.weight\)"),
        (lambda s: s.update(pos_embed=torch.zeros(1, 26, 24)), r"pos_embed has shape \(1, 26, 24\), expected \(1, 10, 24\)"),
        (lambda s: s.pop("cls_token"), "no ViT backbone"),
    ],
)  # fmt: skip
def test_weights_of_another_model_are_refused_naming_what_differs(
    change: Any, message: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(WeightsUnfit, match=message):
        load_released(VisionTransformer.of(SMALL), tmp_path / "weights.pth")


def test_a_file_that_would_run_code_or_is_no_weights_is_refused(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return print, ("run",)

    torch.save({"cls_token": Code()}, tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("not weights")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    for name in ("code", "text", "list"):
        with pytest.raises(WeightsUnfit, match=name):
            read_state(tmp_path / f"{name}.pth")


def test_a_local_file_goes_with_the_name_and_its_hash_is_returned(tmp_path: Path) -> None:
    state = fabricated(vit_names(384, 12, 16, 197, False))
    save_file(state, tmp_path / "dino.safetensors")
    encoder, digest = image_encoder(f"dino-vits16:{tmp_path / 'dino.safetensors'}")
    assert loaded(encoder, state)  # type: ignore[arg-type]
    assert len(digest) == 64
    with pytest.raises(WeightsNotFound, match="is not a file"):
        image_encoder(f"dino-vits16:{tmp_path / 'other.safetensors'}")


def test_random_weights_are_named_and_warned_of_and_always_the_same() -> None:
    with pytest.warns(UserWarning, match="dino-vits16:random: random weights"):
        first, second = (image_encoder("dino-vits16:random")[1] for _ in range(2))
    assert first == second


class TestDownloads:
    @pytest.fixture(autouse=True)
    def elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Empty caches, and no network."""
        import huggingface_hub.constants

        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv(DOWNLOAD, "0")

        self.tried: list[tuple[Any, ...]] = []

        def refused(*arguments: Any) -> None:
            self.tried.append(arguments)  # recorded: the caller turns the error into WeightsNotFound
            raise OSError("no network")

        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's client tries again for 20 s
        monkeypatch.setattr(socket.socket, "connect", refused)
        monkeypatch.setattr(socket, "getaddrinfo", refused)

    @pytest.mark.parametrize(
        ("find", "name"),
        [
            (image_encoder, "dino-vitb16"), (image_encoder, "dinov2-vits14"), (image_encoder, "mocov3-vitb16"),
            (image_encoder, "open_clip:RN101"), (text_encoder, "open_clip:ViT-B-16"),
            (text_encoder, "bert:bert-base-uncased"), (text_encoder, "bert:bert-large-uncased:cls"),
        ],
    )  # fmt: skip
    def test_unasked_nothing_is_fetched_and_the_message_says_how_to_ask(self, find: Any, name: str) -> None:
        with pytest.raises(WeightsNotFound, match=f"{name}: .* is not on this machine; .*local file.*--download"):
            find(name)
        assert self.tried == []

    def test_asked_a_file_is_fetched_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        released = tmp_path / "weights.pth"
        released.write_bytes(b"weights")
        with pytest.raises(WeightsNotFound, match="not on this machine"):
            url_file(released.as_uri(), "dino")
        allow_download()
        file = url_file(released.as_uri(), "dino")
        assert file.read_bytes() == b"weights"
        released.unlink()
        monkeypatch.setenv(DOWNLOAD, "0")
        assert url_file(released.as_uri(), "dino") == file

    def test_a_failed_fetch_leaves_nothing_and_says_why(self, tmp_path: Path) -> None:
        allow_download()
        with pytest.raises(WeightsNotFound, match="No such file"):
            url_file((tmp_path / "gone.pth").as_uri(), "dino")
        assert not list((tmp_path / "torch").rglob("gone*"))

    @pytest.mark.parametrize(
        ("find", "name"),
        [
            (image_encoder, "dino-vitb16"), (image_encoder, "open_clip:RN101"), (text_encoder, "open_clip:ViT-B-16"),
            (text_encoder, "bert:bert-base-uncased"), (image_encoder, "open_clip:ViT-B-16:laion2b_s34b_b88k"),
        ],
    )  # fmt: skip
    def test_asked_without_a_network_that_is_the_reason_and_no_more_asking_is_advised(
        self, find: Any, name: str
    ) -> None:
        allow_download()
        with pytest.raises(WeightsNotFound, match=r"the download failed: the server cannot be reached") as refused:
            find(name)
        assert self.tried
        assert self.only_names_a_local_file(refused.value)

    @staticmethod
    def only_names_a_local_file(error: WeightsNotFound) -> bool:
        said = str(error)
        return "--download" not in said and DOWNLOAD not in said and "local file" in error.cure and "\n" not in said

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (HTTPError("", 404, "Not Found", Message(), None), r"has no such file \(404\)"),
            (HTTPError("", 401, "Unauthorized", Message(), None), r"wants you to log in \(401\)"),
            (HTTPError("", 503, "Unavailable", Message(), None), r"answered \(503\)"),
            (OSError(28, "No space left on device", "/cache/a.pth"), "/cache/a.pth cannot be written .No space left"),
            (URLError(OSError(101, "Network is unreachable")), r"cannot be reached \(Network is unreachable\)"),
            (TimeoutError("timed out"), r"cannot be reached \(timed out\)"),
        ],
    )
    @pytest.mark.parametrize("place", ["url", "hub"])
    def test_the_reason_of_a_failed_fetch_is_in_words(
        self, error: Exception, reason: str, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import huggingface_hub

        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
        allow_download()
        with pytest.raises(WeightsNotFound, match=reason) as refused:
            image_encoder("dino-vitb16") if place == "url" else text_encoder("bert:bert-base-uncased")
        assert self.only_names_a_local_file(refused.value)

    def test_what_comes_with_another_hash_than_its_address_says_is_not_kept(self, tmp_path: Path) -> None:
        allow_download()
        for content, fits in ((b"the release", True), (b"another file", False)):
            folder = tmp_path / hashlib.sha256(b"the release").hexdigest()
            folder.mkdir(exist_ok=True)
            (folder / f"{fits}.pt").write_bytes(content)
            if fits:
                assert url_file((folder / "True.pt").as_uri(), "clip").read_bytes() == content
                continue
            with pytest.raises(WeightsNotFound, match="another sha256 than the release") as refused:
                url_file((folder / "False.pt").as_uri(), "clip")
            assert self.only_names_a_local_file(refused.value)
        assert [file.name for file in (tmp_path / "torch").rglob("*.pt")] == ["True.pt"]

    def test_a_hub_that_is_switched_off_is_the_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(WeightsNotFound, match=r"allow the download: --download.*, and unset HF_HUB_OFFLINE"):
            text_encoder("bert:bert-base-uncased")
        allow_download()
        with pytest.raises(
            WeightsNotFound, match="HF_HUB_OFFLINE is set, which forbids the download; unset"
        ) as refused:
            text_encoder("bert:bert-base-uncased")
        assert self.only_names_a_local_file(refused.value)
        assert self.tried == []

    @pytest.mark.parametrize("place", ["/no/such/folder", "./folder", "a/b/c"])
    def test_a_folder_that_is_gone_is_not_looked_for_on_the_hub(self, place: str) -> None:
        allow_download()
        with pytest.raises(WeightsNotFound, match=r"it is no folder; expected a folder with config\.json"):
            text_encoder(f"bert:{place}")
        assert self.tried == []


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20), st.floats(-3, 3, width=32))
def test_constant_positions_stay_constant_at_any_size(
    rows: int, columns: int, height: int, width: int, value: float
) -> None:
    table = torch.full((rows * columns, 3), value)
    resized = interpolate_positions(table, (rows, columns), (height, width))
    # Four cubic weights a side, each rounded, times four: their sum is 1 to a few roundings.
    torch.testing.assert_close(resized, torch.full((1, 3, height, width), value), atol=1e-5, rtol=0)


@given(st.integers(1, 40), st.integers(1, 40))
def test_positions_at_the_learnt_size_are_the_table(rows: int, columns: int) -> None:
    table = torch.randn(rows * columns, 4)
    same = interpolate_positions(table, (rows, columns), (rows, columns))
    assert torch.equal(same[0].permute(1, 2, 0).flatten(0, 1), table)
