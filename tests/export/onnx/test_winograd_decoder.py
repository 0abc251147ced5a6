"""The decoder's graphs for CPUs, and what runs them strip by strip, held to the model and the mask head's definition."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from export.onnx.winograd_decoder import POINTS, decoder_graphs, winograd
from fusioner_rt.errors import GraphUnusable
from fusioner_rt.onnx import decoder_in_strips
from fusioner_rt.onnx.runtime import OnnxRuntime
from fusioner_rt.workers import Workers
from kernels import reference
from training.model import Decoder

ROUNDINGS = 16 * float(np.finfo(np.float32).eps)  # as export.gates has it


def made(width: int, channels: tuple[int, ...], half: bool = False) -> Decoder:
    """Random weights, as a checkpoint in fp16 has them where `half`; norms that shift and scale."""
    torch.manual_seed(0)
    decoder = Decoder(width, channels).eval().requires_grad_(False)
    for norm in decoder.norms:
        torch.nn.init.normal_(norm.weight, 1, 0.3)  # type: ignore[arg-type]
        torch.nn.init.normal_(norm.bias, 0, 0.3)  # type: ignore[arg-type]
    return decoder.half().float() if half else decoder


def loaded(
    decoder: Decoder, folder: Path, half: bool = False, threads: int = 2, aligned: int = 0
) -> decoder_in_strips.Decoder:
    runtime = OnnxRuntime("onnxruntime-cpu", 1)
    graphs = {}
    for name, graph in decoder_graphs(decoder, half, aligned).items():
        onnx.save_model(graph, folder / f"{name}.onnx")
        graphs[name] = runtime.load(folder / f"{name}.onnx")
    return decoder_in_strips.Decoder(
        [graphs[name] for name in decoder_in_strips.graph_names(graphs)], Workers(threads, "test")
    )


def maps(decoder: Decoder, fused: Tensor, refined: Tensor, aligned: int = 0) -> dict[str, np.ndarray]:
    """Plain arithmetic in the dtype of the arguments: scores and Gram maps, without the definition's scaling."""
    trained, beside = fused.permute(0, 3, 1, 2).tensor_split([fused.shape[3] - aligned], dim=1)
    features = decoder.to(fused.dtype)(trained)
    if aligned:
        beside = F.interpolate(beside, scale_factor=float(decoder.scale), mode="bilinear", align_corners=False)
        features = torch.cat([F.normalize(features, dim=-1), beside.permute(0, 2, 3, 1)], -1)
    right = torch.cat([features[:, :, 1:], features[:, :, -1:]], dim=2)
    down = torch.cat([features[:, 1:], features[:, -1:]], dim=1)
    diagonal = torch.cat([right[:, 1:], right[:, -1:]], dim=1)
    pairs = [(features, features), (features, right), (features, down), (features, diagonal), (right, down)]
    scores = torch.einsum("bhwd,bkd->bkhw", features, F.normalize(refined, dim=-1))
    return {"scores": scores.numpy(), "gram": torch.stack([(a * b).sum(-1) for a, b in pairs], dim=1).numpy()}


def inputs(batch: int, words: int, size: tuple[int, int], width: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, *size, width), torch.randn(batch, words, width)


@settings(max_examples=20, deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(2, 40)),  # torch normalises no single pixel
    channels=st.lists(st.sampled_from([3, 8, 17]), min_size=1, max_size=3).map(tuple),
    width=st.sampled_from([5, 16, 24]),
    words=st.integers(1, 5),
    batch=st.integers(1, 3),
    threads=st.integers(1, 3),
    half=st.booleans(),
    aligned=st.sampled_from([0, 2, 9]),
    strip_bytes=st.sampled_from([1, 1 << 12, decoder_in_strips.STRIP_BYTES]),
)
def test_maps_err_at_most_twice_what_plain_arithmetic_errs(
    tmp_path_factory: pytest.TempPathFactory,
    size: tuple[int, int],
    channels: tuple[int, ...],
    width: int,
    words: int,
    batch: int,
    threads: int,
    half: bool,
    aligned: int,
    strip_bytes: int,
) -> None:
    decoder = made(width, channels, half)
    fused, refined = inputs(batch, words, size, width + aligned)
    exact, plain = (maps(decoder, *given, aligned) for given in ((fused.double(), refined.double()), (fused, refined)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder_in_strips, "STRIP_BYTES", strip_bytes)
        own = loaded(decoder, tmp_path_factory.mktemp("graphs"), half, threads, aligned).maps(
            fused.numpy(), refined.numpy()
        )
    for name, found in zip(("scores", "gram"), own, strict=True):
        largest = np.abs(exact[name]).max()
        # Instance norm of a map of few pixels divides by what is next to nothing: its own error is the measure there.
        allowed = 2 * np.abs(plain[name] - exact[name]).max() + ROUNDINGS * largest
        assert found.shape == exact[name].shape
        assert np.abs(found - exact[name]).max() <= allowed


def test_the_maps_are_those_of_the_definition_but_for_its_scale(tmp_path: Path) -> None:
    decoder, (fused, refined) = made(24, (16, 8)), inputs(2, 3, (5, 7), 24)
    scores, gram = loaded(decoder, tmp_path).maps(fused.numpy(), refined.numpy())
    features = decoder(fused.permute(0, 3, 1, 2))
    wanted, wanted_gram = reference.score_maps(features, refined)
    scale = features.abs().amax(dim=(1, 2, 3)).numpy()[:, None, None, None]
    np.testing.assert_allclose(scores / scale, wanted, atol=1e-5)
    np.testing.assert_allclose(gram / scale**2, wanted_gram, atol=1e-4)


def test_a_picture_has_the_same_maps_in_a_batch_bit_for_bit(tmp_path: Path) -> None:
    decoder, (fused, refined) = made(24, (16, 16, 8)), inputs(3, 4, (6, 5), 24)
    own = loaded(decoder, tmp_path)
    together = own.maps(fused.numpy(), refined.numpy())
    for picture in range(3):
        alone = own.maps(fused[picture : picture + 1].numpy(), refined[picture : picture + 1].numpy())
        for every, one in zip(together, alone, strict=True):
            np.testing.assert_array_equal(every[picture], one[0])


def test_memory_used_again_changes_nothing(tmp_path: Path) -> None:
    decoder, (fused, refined) = made(24, (16, 16, 8)), inputs(1, 4, (7, 5), 24)
    own = loaded(decoder, tmp_path)
    before = own.maps(fused.numpy(), refined.numpy())
    own.maps(fused.numpy() * np.float32(np.nan), refined.numpy())
    for first, second in zip(before, own.maps(fused.numpy(), refined.numpy()), strict=True):
        np.testing.assert_array_equal(first, second)


@given(st.integers(1, 70))
def test_windows_hold_what_a_convolution_reads_of_the_upsampled_row(size: int) -> None:
    row = np.random.default_rng(size).standard_normal(size)
    upsampled = F.interpolate(torch.from_numpy(row)[None, None], scale_factor=2, mode="linear")[0, 0].numpy()
    cut = decoder_in_strips.windows(size).astype(np.float64) @ row  # (WINDOW, tiles)
    padded = np.zeros(decoder_in_strips.OUTPUTS * cut.shape[1] + 2)
    padded[1 : 1 + 2 * size] = upsampled
    for tile in range(cut.shape[1]):
        start = decoder_in_strips.OUTPUTS * tile
        np.testing.assert_allclose(cut[:, tile], padded[start : start + decoder_in_strips.WINDOW], atol=1e-6)


@given(st.integers(1, 300))
def test_blocks_of_columns_are_the_windows_cut_up(size: int) -> None:
    every, cut = decoder_in_strips.windows(size), decoder_in_strips.columns(size)
    m = cut.windows.shape[2]
    whole = np.zeros((decoder_in_strips.WINDOW, cut.width // decoder_in_strips.OUTPUTS, size), np.float32)
    for block, points in enumerate(cut.points):
        whole[:, m * block : m * (block + 1), points] = cut.windows[block]
    np.testing.assert_array_equal(whole[:, : every.shape[1]], every)
    assert not whole[:, every.shape[1] :].any()
    assert m <= decoder_in_strips.BLOCK


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 9))
def test_strips_cover_every_row_once(size: int, tile_rows: int, threads: int) -> None:
    every, cut = decoder_in_strips.windows(size), decoder_in_strips.strips(size, tile_rows, threads)
    written = [row for strip in cut for row in range(*strip.write)]
    assert written == list(range(decoder_in_strips.OUTPUTS * every.shape[1]))
    assert sum(strip.valid for strip in cut) == 2 * size
    whole = np.zeros_like(every)
    for strip in cut:
        tiles = slice(strip.write[0] // decoder_in_strips.OUTPUTS, strip.write[1] // decoder_in_strips.OUTPUTS)
        assert strip.rows.shape[1] <= tile_rows
        whole[:, tiles, slice(*strip.read)] = strip.rows
    np.testing.assert_array_equal(whole, every)


def test_winograd_is_the_correlation_with_three_weights() -> None:
    of_input, of_weight, of_output = winograd()
    random = np.random.default_rng(0)
    values, weights = random.standard_normal(6), random.standard_normal(3)
    found = of_output @ ((of_input @ values) * (of_weight @ weights))
    np.testing.assert_allclose(found, np.correlate(values, weights, "valid"), atol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("channels", [(16,), (16, 8), (16, 16, 8)])
def test_what_is_not_finite_is_seen_in_the_maps_of_its_picture_alone(
    tmp_path: Path, channels: tuple[int, ...], value: float
) -> None:
    decoder, (fused, refined) = made(24, channels), inputs(2, 3, (5, 7), 24)
    fused[1, 2, 3, 4] = value
    scores, gram = loaded(decoder, tmp_path).maps(fused.numpy(), refined.numpy())
    assert np.isfinite(scores[0]).all()
    assert np.isfinite(gram[0]).all()
    assert not np.isfinite(scores[1]).all()
    assert not np.isfinite(gram[1]).all()


def test_an_error_in_a_strip_reaches_the_caller_and_its_memory_is_not_used_again(tmp_path: Path) -> None:
    decoder, (fused, refined) = made(24, (16, 8)), inputs(1, 3, (9, 7), 24)
    own = loaded(decoder, tmp_path)
    own.maps(fused.numpy(), refined.numpy())
    (kept,) = own._kept
    fill = own._ups[0].fill

    def failing(inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        raise GraphUnusable("decoder_up_1.onnx: failed")

    own._ups[0].fill = failing  # type: ignore[method-assign]
    with pytest.raises(GraphUnusable, match="failed"):
        own.maps(fused.numpy(), refined.numpy())
    assert not own._kept
    own._ups[0].fill = fill  # type: ignore[method-assign]
    own.maps(fused.numpy(), refined.numpy())
    assert all(one is not kept for one in own._kept)
    own.close()
    assert not own._kept


def test_arrays_that_do_not_lie_in_one_piece_are_refused(tmp_path: Path) -> None:
    graph = decoder_graphs(made(24, (16, 8)), False)["decoder_scores"]
    onnx.save_model(graph, tmp_path / "decoder_scores.onnx")
    run = OnnxRuntime("onnxruntime-cpu", 1).load(tmp_path / "decoder_scores.onnx")
    x, statistics, words = np.zeros((3, 4, 8), np.float32), np.ones(8, np.float32), np.ones((2, 9), np.float32)
    scores, gram = np.empty((2, 3, 4), np.float32), np.empty((5, 3, 4), np.float32)
    given = {"x": x, "mean": statistics, "variance": statistics, "words": words}
    run.fill(given, {"scores": scores, "gram": gram})
    with pytest.raises(GraphUnusable, match="x is not contiguous"):
        run.fill({**given, "x": x.transpose(1, 0, 2)}, {"scores": scores, "gram": gram})


def test_the_points_err_about_half_as_much_as_the_usual_ones() -> None:
    random = np.random.default_rng(0)
    values = np.maximum(random.standard_normal((64, 6, 6, 256)), 0).astype(np.float32)
    weights = (random.standard_normal((256, 3, 3)) / 48).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(values.astype(np.float64), (3, 3), axis=(1, 2))
    exact = np.einsum("npqcij,cij->npq", windows, weights.astype(np.float64))

    def error(*points: Fraction) -> float:
        of_input, of_weight, of_output = (matrix.astype(np.float32) for matrix in winograd(points))
        products = np.einsum("ai,nijc,bj->nabc", of_input, values, of_input, optimize=True)
        products *= np.einsum("ai,cij,bj->abc", of_weight, weights, of_weight, optimize=True)
        found = np.einsum("pa,nab,qb->npq", of_output, products.sum(axis=3), of_output, optimize=True)
        return float(np.sqrt(np.mean((found - exact) ** 2)))

    usual = error(*map(Fraction, (0, 1, -1, 2, -2)))
    assert error(*POINTS) < 0.7 * usual
