"""Every gate lets the real graphs through and stops a planted fault, by its own error and exit code."""

import importlib
import inspect
import pkgutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

import export
from export import gates
from fusioner_rt.bundle import Bundle
from fusioner_rt.errors import FusionerError, WordUnreadable
from fusioner_rt.onnx.runtime import OnnxRuntime
from training import checkpoint
from training.encoders.table import Table

NAMES = ("text", "image_fusion", "mask_scores", "mask_labels", "mask_tiles", "mask_probabilities")


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return checkpoint.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def graphs(bundle):
    runtime = OnnxRuntime("onnxruntime-cpu")
    return {name: runtime.load(bundle.graph(name)) for name in NAMES}


@pytest.fixture(scope="module")
def in_parts(graphs, bundle):
    """The graphs and the parts of image_fusion, which are then put through every gate too."""
    runtime = OnnxRuntime("onnxruntime-cpu")
    parts = [name for name in bundle.graphs if name not in NAMES]
    return graphs | {name: runtime.load(bundle.graph(name), threads=1) for name in parts}


@pytest.fixture(scope="module")
def found_in_parts(model, in_parts, bundle, photographs):
    return gates.parity(model, in_parts, bundle.preprocessing, photographs, precision="fp32")


@pytest.fixture(scope="module")
def found(model, graphs, bundle, photographs):
    return gates.parity(model, graphs, bundle.preprocessing, photographs, precision="fp32")


def faulty(graphs, name, fault):
    """The graphs, one of them with its outputs (and inputs at hand) put through `fault`."""

    def run(inputs):
        outputs = {key: value.copy() for key, value in graphs[name](inputs).items()}
        return fault(inputs, outputs) or outputs

    return {**graphs, name: run}


def test_real_graphs_pass_every_gate(found, graphs, bundle, photographs):
    assert found.agreement >= gates.LEAST_AGREEMENT
    assert all(found.errors[name] <= found.allowed(name) for name in ("embeddings", "features", "refined"))
    assert gates.batch(graphs, found, bundle.preprocessing, photographs, 4)["largest_difference_of_allowed"] <= 1
    assert gates.words(graphs, found, bundle.preprocessing, photographs[0])["mask_agreement"] >= gates.LEAST_AGREEMENT


def test_float16_errors_are_judged_beside_pytorchs_own(model, tiny_bundle_fp16, photographs):
    bundle = Bundle.open(tiny_bundle_fp16)
    runtime = OnnxRuntime("onnxruntime-cpu")
    graphs = {name: runtime.load(bundle.graph(name)) for name in NAMES}
    half = gates.parity(model, graphs, bundle.preprocessing, photographs, precision="fp16")
    assert 1e-5 < half.plain["features"] < 1e-2
    assert half.errors["features"] > 1e-5
    with pytest.raises(gates.ParityFailed, match="in fp32 and twice that"):
        gates.parity(model, graphs, bundle.preprocessing, photographs, precision="fp32")


def a_wrong_channel(_, outputs):
    outputs["features"][..., 3] *= 1.001


def a_number_lost(_, outputs):
    outputs["features"][0, 0, 0, 0] = np.nan


def wrong_words(_, outputs):
    outputs["embeddings"] *= np.linspace(1, 1.01, outputs["embeddings"].shape[1], dtype=np.float32)


def words_lost(_, outputs):
    outputs["embeddings"][0] = np.inf


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("image_fusion", a_wrong_channel), ("image_fusion", a_number_lost), ("text", wrong_words), ("text", words_lost),
    ],
)  # fmt: skip
def test_parity_stops_a_graph_that_errs_more_than_its_precision_explains(
    model, graphs, bundle, photographs, name, fault
):
    with np.errstate(all="ignore"), pytest.raises(gates.ParityFailed, match="err by"):
        gates.parity(model, faulty(graphs, name, fault), bundle.preprocessing, photographs[:1], precision="fp32")


@pytest.mark.parametrize(("graph", "output"), [("mask_labels", "labels"), ("mask_tiles", "word")])
def test_parity_stops_other_masks(model, graphs, bundle, photographs, graph, output):
    def shifted(_, outputs):
        outputs[output] = np.where(outputs[output] > 0, outputs[output] % 3 + 1, 0)

    with pytest.raises(gates.ParityFailed, match="pixels get PyTorch's label"):
        gates.parity(model, faulty(graphs, graph, shifted), bundle.preprocessing, photographs[:1], precision="fp32")


@pytest.mark.parametrize("wrong", ["whole", "parts"])
def test_other_masks_of_one_path_do_not_hide_behind_the_other(model, in_parts, bundle, photographs, monkeypatch, wrong):
    """So few that both paths together would have enough pixels right."""
    maps, now = gates._maps, []

    def noted(head, outputs):
        now[:] = ["parts" if "gram" in outputs else "whole"]
        return maps(head, outputs)

    def some(outputs, output):
        if now == [wrong]:
            flat = outputs[output].reshape(-1)
            flat[::125] = flat[::125] % 3 + 1

    monkeypatch.setattr(gates, "_maps", noted)
    graphs = faulty(in_parts, "mask_labels", lambda _, outputs: some(outputs, "labels"))
    graphs = faulty(graphs, "mask_tiles", lambda _, outputs: some(outputs, "word"))
    said = r"label \(.*, computed part by part\)" if wrong == "parts" else r"label \([^,]*\)"
    with pytest.raises(gates.ParityFailed, match=rf"only 99\.[0-4]\d% of .* {said}"):
        gates.parity(model, graphs, bundle.preprocessing, photographs[:1], precision="fp32")


@pytest.mark.parametrize("graph", ["mask_labels", "mask_tiles"])
def test_parity_stops_a_mask_head_that_errs(model, graphs, bundle, photographs, graph):
    def coarse(_, outputs):
        outputs["confidence"] = outputs["confidence"].astype(np.float16).astype(np.float32)

    with pytest.raises(gates.ParityFailed, match="mask head's probabilities"):
        gates.parity(model, faulty(graphs, graph, coarse), bundle.preprocessing, photographs[:1], precision="fp32")


def test_parity_stops_probabilities_that_err_where_labels_do_not(model, graphs, bundle, photographs):
    def shy(_, outputs):
        outputs["probabilities"] *= 0.999

    with pytest.raises(gates.ParityFailed, match="mask head's probabilities"):
        gates.parity(
            model, faulty(graphs, "mask_probabilities", shy), bundle.preprocessing, photographs[:1], precision="fp32"
        )


@pytest.mark.parametrize(
    ("graph", "output"),
    [("mask_labels", "confidence"), ("mask_tiles", "confidence"), ("mask_probabilities", "probabilities")],
)
def test_parity_stops_a_mask_head_that_loses_a_number(model, graphs, bundle, photographs, graph, output):
    def lost(_, outputs):
        outputs[output].flat[0] = np.nan

    with pytest.raises(gates.ParityFailed, match="probabilities err by inf"):
        gates.parity(model, faulty(graphs, graph, lost), bundle.preprocessing, photographs[:1], precision="fp32")


@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
def test_numbers_lost_on_both_sides_do_not_allow_each_other(model, graphs, bundle, photographs, monkeypatch, lost):
    def both(_, outputs):
        outputs["embeddings"][:] = lost

    monkeypatch.setattr(gates, "_text", lambda model, tokens: np.full((16, 24), lost, np.float32))
    with np.errstate(all="ignore"), pytest.raises(gates.ParityFailed, match="embeddings err by inf"):
        gates.parity(model, faulty(graphs, "text", both), bundle.preprocessing, photographs[:1], precision="fp32")


def first_row_for_all(_, outputs):
    outputs["features"][:] = outputs["features"][:1]


def last_row_lost(_, outputs):
    if len(outputs["features"]) > 1:
        outputs["features"][-1] = 0


def size_matters(_, outputs):
    outputs["refined"] *= 1 + 0.001 * (len(outputs["refined"]) - 1)
    outputs["refined"][..., 0] += 0.01 * (len(outputs["refined"]) - 1)


def a_row_without_numbers(_, outputs):
    if len(outputs["refined"]) > 1:
        outputs["refined"][-1] = np.nan


@pytest.mark.parametrize("fault", [first_row_for_all, last_row_lost, size_matters, a_row_without_numbers])
def test_the_batch_gate_stops_rows_that_know_their_batch(found, graphs, bundle, photographs, fault):
    with pytest.raises(gates.BatchFailed, match=r"row \d of (features|refined) differs"):
        gates.batch(faulty(graphs, "image_fusion", fault), found, bundle.preprocessing, photographs, 4)


def test_the_batch_gate_works_with_one_picture_and_says_when_it_has_nothing_to_do(found, graphs, bundle, photographs):
    with pytest.raises(gates.BatchFailed):
        gates.batch(faulty(graphs, "image_fusion", first_row_for_all), found, bundle.preprocessing, photographs[:1], 4)
    assert "skipped" in gates.batch(graphs, found, bundle.preprocessing, photographs, 1)


def test_the_words_gate_stops_a_graph_that_knows_a_words_place(found, graphs, bundle, photographs):
    def placed(_, outputs):
        outputs["refined"] += 0.01 * np.arange(outputs["refined"].shape[1], dtype=np.float32)[:, None]

    with pytest.raises(gates.WordsFailed, match="changes refined"):
        gates.words(faulty(graphs, "image_fusion", placed), found, bundle.preprocessing, photographs[0])

    def lost(inputs, outputs):
        if not np.array_equal(inputs["words"][0], found.words):
            outputs["features"][0, 0, 0] = np.nan

    with pytest.raises(gates.WordsFailed, match="changes features by inf"):
        gates.words(faulty(graphs, "image_fusion", lost), found, bundle.preprocessing, photographs[0])

    def unnamed(_, outputs):
        outputs["word"] = np.minimum(outputs["word"], 1)

    with pytest.raises(gates.WordsFailed, match="pixels their word"):
        gates.words(faulty(graphs, "mask_tiles", unnamed), found, bundle.preprocessing, photographs[0])


def test_the_parts_pass_every_gate_and_are_recorded_beside_the_whole(
    found, found_in_parts, in_parts, bundle, photographs
):
    assert found_in_parts.agreement >= gates.LEAST_AGREEMENT
    of_parts = {name for name in found_in_parts.errors if name.endswith(gates.IN_PARTS)}
    assert len(of_parts) == 2
    assert found_in_parts.errors.keys() - of_parts == found.errors.keys()
    assert all(found_in_parts.errors[name] <= found_in_parts.allowed(name) for name in of_parts)
    arguments = in_parts, found_in_parts, bundle.preprocessing
    assert gates.batch(*arguments, photographs, 4)["largest_difference_of_allowed"] <= 1
    assert gates.words(*arguments, photographs[0])["mask_agreement"] >= gates.LEAST_AGREEMENT


def tokens_turned(_, outputs):
    outputs["tokens"][..., 0] *= 1.01


def fused_turned(_, outputs):
    outputs["fused"][..., 3] += 0.001 * np.abs(outputs["fused"]).max()


def fused_lost(_, outputs):
    outputs["fused"][0, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("name", "fault"), [("image", tokens_turned), ("fusion", fused_turned), ("fusion", fused_lost)]
)
def test_parity_stops_a_part_that_errs_where_the_whole_does_not(model, in_parts, bundle, photographs, name, fault):
    with np.errstate(all="ignore"), pytest.raises(gates.ParityFailed, match="_in_parts err by"):
        gates.parity(model, faulty(in_parts, name, fault), bundle.preprocessing, photographs[:1], precision="fp32")


def test_the_other_gates_stop_a_part_that_knows_its_batch_or_a_words_place(
    found_in_parts, in_parts, bundle, photographs
):
    def batched(_, outputs):
        outputs["tokens"][1:] = outputs["tokens"][:1]

    def placed(_, outputs):
        outputs["refined"] += np.arange(outputs["refined"].shape[1], dtype=np.float32)[:, None]

    with pytest.raises(gates.BatchFailed, match=r"row \d of \w+ differs"):
        gates.batch(faulty(in_parts, "image", batched), found_in_parts, bundle.preprocessing, photographs, 4)
    with pytest.raises(gates.WordsFailed, match="changes"):
        gates.words(faulty(in_parts, "fusion", placed), found_in_parts, bundle.preprocessing, photographs[0])


def table_of(rows):
    """A text encoder that knows these names alone: name → row."""
    count = 1 + max(rows.values())
    return Table(rows, torch.randn(count, 5, generator=torch.Generator().manual_seed(0)))


def test_the_gates_ask_for_words_that_the_text_encoder_reads_and_tells_apart(model):
    assert gates.gate_words(model.text_encoder) == list(gates.WORDS)
    some = {"sofa": 0, "couch": 0, "cat": 1, "kitty": 1, **{f"name {i}": 2 + i for i in range(50)}}
    chosen = gates.gate_words(table_of(some))
    assert chosen[:2] == ["cat", "sofa"]
    assert len({some[word] for word in chosen}) == len(chosen) == len(gates.WORDS)
    assert gates.gate_words(table_of({"sofa": 0, "couch": 0, "lamp": 1})) == ["sofa", "lamp"]


def test_a_text_encoder_that_reads_no_word_is_refused(tmp_path):
    tokenizer = Tokenizer(WordPiece({"[UNK]": 0, "猫": 1}, unk_token="[UNK]"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = SimpleNamespace(tokenizer_file=tmp_path / "tokenizer.json", max_tokens=8)
    with pytest.raises(WordUnreadable, match="none of the words that the gates ask for"):
        gates.gate_words(encoder)


def test_gate_pictures_come_from_the_folder_or_are_said_to_be_missing(tmp_path, photographs):
    from PIL import Image

    with pytest.raises(gates.NoPictures, match="--pictures DIR"):
        gates.gate_pictures(tmp_path)
    for index, picture in enumerate(photographs):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    assert [p.shape for p in gates.gate_pictures(tmp_path)] == [p.shape for p in photographs]
    assert len(gates.gate_pictures(None)) == 3


def test_every_error_of_building_and_training_has_an_exit_code_of_its_own():
    import fusioner_rt.errors
    import training

    names = [f"export.{m.name}" for m in pkgutil.iter_modules(export.__path__)]
    names += [m.name for m in pkgutil.walk_packages(training.__path__, "training.") if not m.name.endswith("__main__")]
    modules = [fusioner_rt.errors, *map(importlib.import_module, names)]
    errors = {
        c for module in modules for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, FusionerError)
    }
    codes = [error.exit_code for error in errors]
    assert len(errors) > 30
    assert len(set(codes)) == len(codes), sorted((e.exit_code, e.__name__) for e in errors)
