"""BERT's released files and tables of names, as text encoders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional as F

from fusioner_rt.words.tokenizer import PromptTokenizer
from training.encoders import TextEncoder, WeightsNotFound, WeightsUnfit, readable_words, text_encoder
from training.encoders.bert import Bert, encoder_state
from training.encoders.table import TableInvalid, main, normalised, read_names
from training.encoders.tiny import tiny_text

BERT_BASE = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "max_position_embeddings": 512, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
}  # fmt: skip
SMALL = {
    **BERT_BASE, "vocab_size": 90, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 70,
}  # fmt: skip


def released_names(config: dict[str, object]) -> dict[str, tuple[int, ...]]:
    """bert-base-uncased's names and shapes: prefix, first releases' LayerNorm names, heads of the pretraining."""
    width, inner, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    assert isinstance(width, int)
    assert isinstance(inner, int)
    assert isinstance(words, int)
    names: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (words, width),
        "bert.embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),  # type: ignore[dict-item]
        "bert.embeddings.token_type_embeddings.weight": (2, width),
        "bert.pooler.dense.weight": (width, width), "bert.pooler.dense.bias": (width,),
        "cls.predictions.bias": (words,), "cls.predictions.transform.dense.weight": (width, width),
        "cls.predictions.transform.dense.bias": (width,), "cls.seq_relationship.weight": (2, width),
        "cls.seq_relationship.bias": (2,),
    }  # fmt: skip
    norms = ["bert.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"]
    for layer in range(config["num_hidden_layers"]):  # type: ignore[call-overload]
        place = f"bert.encoder.layer.{layer}."
        shapes = {
            **{f"attention.self.{part}": (width, width) for part in ("query", "key", "value")},
            "attention.output.dense": (width, width), "intermediate.dense": (inner, width), "output.dense": (width, inner),
        }  # fmt: skip
        for name, shape in shapes.items():
            names |= {f"{place}{name}.weight": shape, f"{place}{name}.bias": shape[:1]}
        norms += [f"{place}attention.output.LayerNorm", f"{place}output.LayerNorm"]
    return names | {f"{norm}.{part}": (width,) for norm in norms for part in ("gamma", "beta")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(shape, generator=random) * 0.3 + name.endswith("gamma")
        for name, shape in released_names(SMALL).items()
    }
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    (tmp_path / "tokenizer.json").write_bytes(tiny_text()[0].tokenizer_file.read_bytes())
    return tmp_path


def test_bert_base_has_the_names_and_shapes_of_its_release() -> None:
    with torch.device("meta"):
        model = Bert(30522, 768, 12, 12, 3072, 512, 1e-12, Path())
        state = encoder_state({name: torch.empty(shape) for name, shape in released_names(BERT_BASE).items()})
    assert {n: v.shape for n, v in state.items()} == {n: v.shape for n, v in model.state_dict().items()}


def test_released_and_plain_names_are_one_encoder(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    released = text_encoder(f"bert:{folder}")[0]
    state = load_file(folder / "model.safetensors")
    own = released.state_dict()  # type: ignore[attr-defined]
    norm = "encoder.layer.1.output.LayerNorm."
    assert torch.equal(own[f"{norm}weight"], state[f"bert.{norm}gamma"])
    assert torch.equal(own[f"{norm}bias"], state[f"bert.{norm}beta"])
    save_file({**own, "embeddings.position_ids": torch.arange(70)[None]}, folder / "model.safetensors")
    again = text_encoder(f"bert:{folder}")[0].state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(again[name], value) for name, value in own.items())


@torch.no_grad()
def test_pooling_is_part_of_the_name_and_mean_where_none_is_given(folder: Path) -> None:
    default, mean, first = (text_encoder(f"bert:{folder}{pooling}")[0] for pooling in ("", ":mean", ":cls"))
    ids, mask = torch.tensor([[2, 10, 11, 3, 0], [2, 12, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    assert torch.equal(default(ids, mask), mean(ids, mask))
    assert not torch.allclose(mean(ids, mask), first(ids, mask), atol=0.01)
    # One token: its mean is itself.
    torch.testing.assert_close(mean(ids[:, :1], mask[:, :1]), first(ids[:, :1], mask[:, :1]))
    for encoder in (mean, first):  # padding changes neither
        torch.testing.assert_close(encoder(ids[1:, :3], mask[1:, :3]), encoder(ids, mask)[1:], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("config", "state", "message"),
    [
        ({"num_hidden_layers": 3}, {}, r"missing \(encoder\.layer\.2"),
        ({"num_hidden_layers": 1}, {}, r"unexpected \(encoder\.layer\.1"),
        ({"hidden_act": "relu"}, {}, "does not describe a BERT"),
        ({"vocab_size": 91}, {}, r"expected \(91, 16\)"),
        ({}, {"bert.adapter.weight": torch.zeros(1)}, r"unexpected \(adapter\.weight\)"),
    ],
)
def test_what_is_no_bert_of_this_shape_is_refused(
    config: dict[str, object], state: dict[str, torch.Tensor], message: str, folder: Path
) -> None:
    from safetensors.torch import load_file

    (folder / "config.json").write_text(json.dumps({**SMALL, **config}))
    save_file({**load_file(folder / "model.safetensors"), **state}, folder / "model.safetensors")
    with pytest.raises(WeightsUnfit, match=message):
        text_encoder(f"bert:{folder}")


LVIS = [
    {"id": 3, "name": "mouse_(computer_equipment)", "synonyms": ["mouse_(computer_equipment)", "computer_mouse"]},
    {"id": 1, "name": "television_set", "synonyms": ["television_set", "tv", "remote_control"]},
    {"id": 2, "name": "bow_(weapon)", "synonyms": ["bow_(weapon)"]},
    {"id": 4, "name": "bow_(ribbon)", "synonyms": ["bow_(ribbon)"]},
]


@pytest.fixture
def table(tmp_path: Path) -> TextEncoder:
    (tmp_path / "lvis.json").write_text(json.dumps(LVIS))
    (tmp_path / "objects.csv").write_text("2,Tv,TV\n1,Cabinet/shef,Cabinet/shelf\n")
    (tmp_path / "coco.txt").write_text("dining table\nTelevision set\n")
    arguments = [str(tmp_path / "table.safetensors")]
    for index, (name, rows) in enumerate((("lvis.json", 4), ("objects.csv", 2), ("coco.txt", 2))):
        vectors = np.zeros((rows, 8), np.float16)
        vectors[np.arange(rows), np.arange(rows)] = 10 * (index + 1)  # row r of source s: length 10 s along axis r
        vectors[:, 7] = index
        np.save(tmp_path / f"{name}.npy", vectors)
        arguments += ["--names", str(tmp_path / name), "--vectors", str(tmp_path / f"{name}.npy")]
    assert main(arguments) == 0
    return text_encoder(f"table:{tmp_path / 'table.safetensors'}")[0]


def vector(table: TextEncoder, name: str) -> torch.Tensor:
    ids, mask = map(torch.from_numpy, PromptTokenizer(table.tokenizer_file, table.max_tokens)([name]))
    assert ids.shape == mask.shape == (1, 1)
    return table(ids, mask)[0]


def row(source: int, index: int) -> torch.Tensor:
    expected = torch.zeros(8)
    expected[index], expected[7] = 10.0 * (source + 1), source
    return F.normalize(expected, dim=0)


@pytest.mark.parametrize(
    ("name", "source", "index"),
    [
        ("television set", 0, 0),  # the first source wins
        ("remote control", 0, 0),  # a synonym, its underscore a space
        ("tv", 1, 1),  # a name's own row before a synonym's
        ("mouse", 0, 2),  # the note in brackets left out
        ("mouse (computer equipment)", 0, 2),
        ("shelf", 1, 0),
        ("cabinet/shelf", 1, 0),
        ("cabinet/shef", 1, 0),  # the spelling before correction
        ("dining table", 2, 0),
        ("  Dining_TABLE ", 2, 0),
    ],
)
def test_a_name_finds_its_vector(table: TextEncoder, name: str, source: int, index: int) -> None:
    torch.testing.assert_close(vector(table, name), row(source, index))


def test_a_table_knows_whole_names_alone_and_names_of_one_meaning_only(table: TextEncoder) -> None:
    words = ["tv", "bow", "bow (weapon)", "television", "dining", "dining table set", "a photo of a tv", "[UNK]", ""]
    assert readable_words(table, words) == ["tv", "bow (weapon)"]
    assert torch.equal(vector(table, "bow"), torch.zeros(8))
    assert table.templates == ("{category}",)


def test_synonyms_are_the_same_tokens_so_that_asking_for_both_is_refused(table: TextEncoder) -> None:
    tokenizer = PromptTokenizer(table.tokenizer_file, table.max_tokens)
    remote, television, tv = tokenizer.ids(["remote control", "television set", "tv"])
    assert remote == television != tv


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text())
def test_a_lookup_name_is_its_own(name: str) -> None:
    assert normalised(normalised(name)) == normalised(name)


def test_other_encoders_read_what_their_tokenizer_has_tokens_for() -> None:
    assert readable_words(text_encoder("minilm-l6")[0], ["tv monitor", "🦄", "猫 cat"]) == ["tv monitor", "猫 cat"]
    assert readable_words(tiny_text()[0], ["cat", "é"]) == ["cat", "é"]  # type: ignore[list-item, arg-type]


@pytest.mark.parametrize(
    ("file", "content"),
    [("a.json", "[{}]"), ("a.json", "{"), ("a.json", "[1]"), ("a.csv", "x,cat"), ("a.csv", "1"), ("b.txt", None)],
)
def test_a_list_of_names_that_is_none_is_refused(file: str, content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(TableInvalid, match="is no list of names"):
        read_names(tmp_path / file)


def test_vectors_that_do_not_fit_the_names_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    command = [str(tmp_path / "out.safetensors"), "--names", str(tmp_path / "names.txt"), "--vectors"]
    for vectors in (np.ones((3, 4)), np.ones(2), np.full((2, 4), np.nan), np.eye(2, 4, k=3)):
        np.save(tmp_path / "vectors.npy", vectors)
        assert main([*command, str(tmp_path / "vectors.npy")]) == TableInvalid.exit_code
        assert "expected finite numbers, a row for each of the 2" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    save_file({"vectors": torch.zeros(2, 3)}, tmp_path / "table.safetensors", {"names": '{"cat": 5}'})
    with pytest.raises(WeightsUnfit, match="is not a table of names"):
        text_encoder(f"table:{tmp_path / 'table.safetensors'}")
    with pytest.raises(WeightsNotFound, match="build a table"):
        text_encoder(f"table:{tmp_path / 'none.safetensors'}")


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_table_whose_vector_has_no_direction_is_refused(tmp_path: Path, value: float) -> None:
    vectors = torch.tensor([[1.0, 2.0], [value, 0.0]])
    save_file({"vectors": vectors}, tmp_path / "table.safetensors", {"names": '{"cat": 0, "dog": 1}'})
    with pytest.raises(WeightsUnfit, match="a vector is zero or not finite"):
        text_encoder(f"table:{tmp_path / 'table.safetensors'}")
