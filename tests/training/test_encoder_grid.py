"""Every pair of the paper's table 1, and the other encoders, at a small size: built, trained a step, exported, compared.

The classes and the code are those of the real encoders; width, depth and weights are not. All text encoders here have
one width, so one image graph serves every text encoder. What differs in numbers alone is traced once, for tracing takes
seconds: CLIP-L stands for CLIP-B, BERT-B for MiniLM, and DINOv2 for DINO and MoCo v3, whose layers are its own without
the scale. BERT-L here is pooled by its first token. `make slow` traces them; in CI export/test_table_and_stride_14.py traces
a DINOv2 and a table, and conftest.py a CLIP and a BERT.
"""

from __future__ import annotations

import copy
import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from export.gates import ROUNDINGS
from export.onnx import model_graphs
from fusioner_rt.words.templates import PAPER_TEMPLATES
from fusioner_rt.words.tokenizer import PromptTokenizer
from training.encoders import ImageEncoder, TextEncoder, image_encoder, text_encoder
from training.encoders.bert import Bert
from training.encoders.open_clip import import_open_clip
from training.encoders.table import build
from training.encoders.tiny import tiny_text
from training.encoders.vision_transformer import VisionTransformer
from training.model import Fusioner, FusionerConfig

WIDTH = 32  # of every text encoder here
WORDS = ["cat", "dining table", "tree"]

TABLE_1 = [
    (image, text)
    for image, texts in (
        ("CLIP-B", ("CLIP-B", "BERT-B", "BERT-L")),
        ("CLIP-L", ("CLIP-L", "BERT-B", "BERT-L")),
        ("DINO-B", ("CLIP-B", "BERT-B", "BERT-L")),
        ("MoCo-B", ("CLIP-B", "BERT-B", "BERT-L")),
    )
    for text in texts
]
OTHERS = [("ResNet-101", "CLIP-B"), ("DINOv2", "MiniLM"), ("DINOv2", "table"), ("CLIP-B", "table")]
TRACED_IMAGES = ("CLIP-L", "ResNet-101", "DINOv2")
TRACED_TEXTS = ("CLIP-L", "BERT-B", "BERT-L", "table")
Graphs = Callable[[str], onnx.ModelProto]


def clip_config(image: dict[str, Any], text_layers: int) -> dict[str, Any]:
    text = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": text_layers}
    return {"embed_dim": WIDTH, "vision_cfg": image, "text_cfg": text}


CLIPS = {
    "small-b": clip_config({"image_size": 64, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}, 1),
    "small-l": clip_config({"image_size": 56, "layers": 1, "width": 48, "head_width": 16, "patch_size": 14}, 2),
    "small-resnet": clip_config({"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}, 1),
}
CLIP_NAMES = {"CLIP-B": "small-b", "CLIP-L": "small-l", "ResNet-101": "small-resnet"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small CLIPs known to open_clip, a BERT's folder, and a table's file."""
    folder = tmp_path_factory.mktemp("encoders")
    (folder / "clips").mkdir()
    for name, config in CLIPS.items():
        (folder / "clips" / f"{name}.json").write_text(json.dumps(config))
    import_open_clip().add_model_config(folder / "clips")

    for number, name in enumerate(("BERT-B", "BERT-L")):
        tokenizer = tiny_text()[0].tokenizer_file
        size = {"hidden_size": WIDTH, "num_hidden_layers": 1 + number, "num_attention_heads": 2 + 2 * number}
        config = {"vocab_size": 100, "intermediate_size": 64, "max_position_embeddings": 80, "layer_norm_eps": 1e-12}
        (folder / name).mkdir()
        (folder / name / "tokenizer.json").write_bytes(tokenizer.read_bytes())
        (folder / name / "config.json").write_text(json.dumps({**config, **size}))
        torch.manual_seed(number)
        save_file(
            Bert.from_files(folder / name / "config.json", None, folder / name / "tokenizer.json").state_dict(),
            folder / name / "model.safetensors",
        )

    (folder / "names.txt").write_text("\n".join([*WORDS, "sofa"]) + "\n")
    np.save(folder / "vectors.npy", np.random.default_rng(0).standard_normal((4, WIDTH)).astype(np.float16))
    build(folder / "table.safetensors", [(folder / "names.txt", folder / "vectors.npy")])
    return folder


@pytest.fixture(scope="module")
def images(folder: Path) -> dict[str, ImageEncoder]:
    def vit(patch: int, side: int, heads: int, layer_scale: bool) -> VisionTransformer:
        encoder = VisionTransformer(32, 1, heads, patch, side, layer_scale)
        for block in encoder.blocks if layer_scale else ():
            torch.nn.init.uniform_(block.ls1.gamma), torch.nn.init.uniform_(block.ls2.gamma)
        return encoder

    torch.manual_seed(3)
    made: dict[str, Any] = {
        "DINO-B": vit(16, 64, 4, False), "MoCo-B": vit(16, 64, 8, False), "DINOv2": vit(14, 70, 4, True)
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # weights are random
        for name, small in CLIP_NAMES.items():
            made[name] = image_encoder(f"open_clip:{small}:random")[0]
    return made


@pytest.fixture(scope="module")
def texts(folder: Path) -> dict[str, TextEncoder]:
    names = {
        "CLIP-B": "open_clip:small-b:random", "CLIP-L": "open_clip:small-l:random", "BERT-B": f"bert:{folder / 'BERT-B'}",
        "BERT-L": f"bert:{folder / 'BERT-L'}:cls", "table": f"table:{folder / 'table.safetensors'}",
    }  # fmt: skip
    torch.manual_seed(4)
    minilm = Bert(100, WIDTH, 1, 2, 64, 80, 1e-12, tiny_text()[0].tokenizer_file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return {"MiniLM": minilm, **{kind: text_encoder(name)[0] for kind, name in names.items()}}  # type: ignore[dict-item]


def paired(image: ImageEncoder, text: TextEncoder, decoder: tuple[int, ...] = ()) -> Fusioner:
    """The same fusion weights every time."""
    torch.manual_seed(7)
    templates = text.templates or PAPER_TEMPLATES[:3]
    return Fusioner(
        FusionerConfig(width=32, layers=1, heads=4, decoder=decoder, templates=templates), image, text
    ).eval()


@pytest.fixture(scope="module")
def image_graph(images: dict[str, ImageEncoder], texts: dict[str, TextEncoder], traces: None) -> Graphs:
    return functools.cache(lambda name: model_graphs.image_fusion_graph(paired(images[name], texts["table"])))


@pytest.fixture(scope="module")
def text_graph(images: dict[str, ImageEncoder], texts: dict[str, TextEncoder], traces: None) -> Graphs:
    return functools.cache(lambda name: model_graphs.text_graph(paired(images["DINOv2"], texts[name])))


@pytest.mark.parametrize(("image", "text"), TABLE_1 + OTHERS)
def test_a_training_step_changes_fusion_and_decoder_and_no_encoder(
    image: str, text: str, images: dict[str, ImageEncoder], texts: dict[str, TextEncoder]
) -> None:
    model = paired(images[image], texts[text], decoder=(16, 8)).train()
    before = copy.deepcopy(model.state_dict())
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for encoder in (model.image_encoder, model.text_encoder) for p in encoder.parameters()]  # type: ignore[attr-defined]
    assert frozen
    assert not {id(p) for p in frozen} & {id(p) for p in trained}
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    side = 2 * model.image_encoder.multiple
    features, refined = model(torch.randn(2, 3, side, 2 * side), model.word_vectors(WORDS).expand(2, -1, -1))
    cosine = torch.einsum("bhwd,bkd->bkhw", F.normalize(features, dim=-1), F.normalize(refined, dim=-1))
    target = (torch.rand(cosine.shape) < 0.5).float()
    F.binary_cross_entropy_with_logits(cosine / model.config.temperature, target).backward()
    optimiser.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not {name for name in changed if name.startswith(("image_encoder.", "text_encoder."))}
    parts = {name.split(".")[0] for name in model.trained_state()}
    assert {name.split(".")[0] for name in changed} == parts >= {"project_pixels", "project_words", "layers", "decoder"}


def opened(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def run(graph: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    return opened(graph).run(None, inputs)


def close(ours: np.ndarray, plain: torch.Tensor, truth: torch.Tensor) -> None:
    """The build's rule: the error against float64 is at most twice PyTorch's in float32, plus a few roundings."""
    largest = float(truth.abs().max())
    allowed = 2 * float((plain - truth).abs().max()) + ROUNDINGS * largest
    assert ours.shape == tuple(truth.shape)
    assert float(np.abs(ours - truth.numpy()).max()) <= allowed


def prompts(model: Fusioner) -> dict[str, np.ndarray]:
    tokenizer = PromptTokenizer(model.text_encoder.tokenizer_file, model.text_encoder.max_tokens)
    texts = [template.replace("{category}", word) for word in WORDS for template in model.config.templates]
    return dict(zip(("input_ids", "attention_mask"), tokenizer(texts), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("text", TRACED_TEXTS)
@torch.no_grad()
def test_an_exported_text_encoder_is_the_encoder(
    text: str, texts: dict[str, TextEncoder], images: dict[str, ImageEncoder], text_graph: Graphs
) -> None:
    model = paired(images["DINOv2"], texts[text])
    exact = copy.deepcopy(model.text_encoder).double()  # type: ignore[attr-defined]
    arrays = prompts(model)
    (vectors,) = run(text_graph(text), **arrays)
    tokens = [torch.from_numpy(array) for array in arrays.values()]
    close(vectors, model.text_encoder(*tokens), exact(*tokens))


@pytest.mark.slow
@pytest.mark.parametrize("text", TRACED_TEXTS)
@pytest.mark.parametrize("image", TRACED_IMAGES)
@torch.no_grad()
def test_an_exported_pair_is_the_model_at_the_pretrained_size_and_beyond(
    image: str,
    text: str,
    images: dict[str, ImageEncoder],
    texts: dict[str, TextEncoder],
    image_graph: Graphs,
    text_graph: Graphs,
) -> None:
    model = paired(images[image], texts[text])
    exact = copy.deepcopy(model).double()
    (vectors,) = run(text_graph(text), **prompts(model))
    mean = torch.from_numpy(vectors).unflatten(0, (len(WORDS), -1)).mean(1)
    words = F.normalize(mean, dim=-1)[None]
    torch.testing.assert_close(words[0], model.word_vectors(WORDS), atol=2e-6, rtol=0)
    encoder, session = model.image_encoder, opened(image_graph(image))
    for height, width in ((encoder.side // encoder.multiple,) * 2, (3, 11)):
        pixels = torch.randn(1, 3, height * encoder.multiple, width * encoder.multiple)
        found = session.run(None, {"pixels": pixels.numpy(), "words": words.numpy()})
        for ours, plain, truth in zip(found, model(pixels, words), exact(pixels.double(), words.double()), strict=True):
            close(ours, plain, truth)


@pytest.fixture
def graph(name: str, image_graph: Graphs, text_graph: Graphs) -> onnx.ModelProto:
    kind, _, encoder = name.partition(" ")
    return (image_graph if kind == "image" else text_graph)(encoder)


every_graph = pytest.mark.parametrize(
    "name", [*(f"image {name}" for name in TRACED_IMAGES), *(f"text {name}" for name in TRACED_TEXTS)]
)


@pytest.mark.slow
@every_graph
def test_graphs_hold_plain_operators_only(graph: onnx.ModelProto) -> None:
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 20)]
    kinds = {node.op_type for node in graph.graph.node}
    assert not {"If", "Loop", "Scan", "Attention", "BatchNormalization", "Einsum", "GridSample"} & kinds
    for node in graph.graph.node:
        assert not {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}.get("antialias", 0)


@pytest.mark.slow
@every_graph
def test_tensorrt_reads_every_graph(graph: onnx.ModelProto) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)  # held: the parser only borrows it
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(graph.SerializeToString()), str(parser.get_error(0))
