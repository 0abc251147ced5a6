"""The convolutional decoder and the mask head's first stage as graphs for CPUs (paper 3.1.3; design section 4).

The decoder is k times [3×3 conv, instance norm, ReLU, 2× bilinear]. A 3×3 conv after an upsampling is computed from the
map before the upsampling: a tile of 4×4 outputs depends on 6×6 upsampled values, which are linear in 4×4 values of the
low-resolution map. Winograd's minimal filtering F(4×4, 3×3) is linear too, so both together are one matrix per axis. A
tile then takes 36 products of channels instead of 144 (Lavin and Gray 2016, arXiv:1509.09308). The result is exact but for
rounding, and none of the decoder's maps is ever written upsampled.

decoder_first   fused (B, h, w, D), refined (B, K, D) → map (B, h, w, c), before its norm, and its statistics; words (B, K, e);
                of a model with an aligned residual its channels (B, h', w', r) in the size of the scores
decoder_up_i    rows of one picture's map → rows of the next, twice as large, before its norm, and their statistics
                (convolutions leave their bias out: an instance norm follows, which takes the mean away)
decoder_scores  rows of the last map, and of the aligned residual where there is one → rows of the scores and Gram maps of `kernels.reference.score_maps`, unscaled

`fusioner_rt.onnx.decoder_in_strips` calls them strip by strip, so that what lies between the operators stays in the processor's
cache. The features of the last 1×1 conv are never written either. They are rotated: the mask head needs inner products
alone, and those stay the same. The rotation makes the conv's matrix triangular (QR), so half of it is zeros, and leaves
out directions in which features never differ from zero.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, cast

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import nn

from export.onnx.mask_head_graphs import FLOAT, INT64, Graph, add_gram, integer, real
from fusioner_rt.onnx.decoder_in_strips import OUTPUTS, WINDOW
from kernels.reference import TINY
from training.model import Decoder

POINTS = (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2))
"""Where Winograd's polynomials are evaluated, beside infinity. These err half as much as the usual 0, ±1, ±2."""

TRIANGLE = 4
"""Parts that the triangular matrix is split into. Each leaves its zeros out, and 5/8 of the products remain."""

NORMALIZE_EPS = 1e-12  # of torch's F.normalize

Matrices = tuple[np.ndarray, np.ndarray, np.ndarray]


def decoder_graphs(decoder: Decoder, half: bool, aligned: int = 0) -> dict[str, onnx.ModelProto]:
    """The graphs of a decoder, in the order in which they run. half: weights are stored in float16; all is computed in
    float32. aligned: channels of the aligned residual, the last of `fused` and `refined`."""
    graphs = {"decoder_first": _first(decoder, half, aligned)}
    for index in range(1, len(decoder.convolutions)):
        graphs[f"decoder_up_{index}"] = _up(decoder, index, half)
    graphs["decoder_scores"] = _scores(decoder, half, aligned)
    return graphs


def winograd(points: tuple[Fraction, ...] = POINTS, outputs: int = OUTPUTS) -> Matrices:
    """The matrices of a 3-tap correlation with `outputs` values: for its `outputs` + 2 inputs, 3 weights and products.

    Returns input (n, n), weight (n, 3) and output (outputs, n) float64, n = outputs + 2: the transposed Toom-Cook
    algorithm at n - 1 points and infinity.
    """
    size = outputs + 2
    roots = [[point for j, point in enumerate(points) if j != i] for i in range(size - 1)]
    scale = [math.prod(point - root for root in others) for point, others in zip(points, roots, strict=True)]
    of_input = [[*_polynomial(others), Fraction(0)] for others in roots] + [_polynomial(points)]
    of_weight = [[point**j / by for j in range(3)] for point, by in zip(points, scale, strict=True)] + [[0, 0, 1]]
    of_output = [[*(point**i for point in points), Fraction(int(i == outputs - 1))] for i in range(outputs)]
    return tuple(np.array(matrix, np.float64) for matrix in (of_input, of_weight, of_output))  # type: ignore[return-value]


def _polynomial(roots: Any) -> list[Fraction]:
    """Coefficients, lowest first, of the product of (x - root)."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [up - root * down for up, down in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


def _first(decoder: Decoder, half: bool, aligned: int) -> onnx.ModelProto:
    convolution = cast(nn.Conv2d, decoder.convolutions[0])
    inputs, outputs, width = convolution.in_channels, convolution.out_channels, decoder.out.out_features
    graph = Graph("decoder_first", {
        "fused": (FLOAT, ["B", "h", "w", inputs + aligned]),
        "refined": (FLOAT, ["B", "K", width + aligned]),
    })  # fmt: skip
    fused = "fused"
    if aligned:
        fused, beside = _parted(graph, "fused", inputs, aligned, axis=3)
        scales = np.array([1, decoder.scale, decoder.scale, 1], np.float32)
        graph.Resize(beside, "", scales, name="aligned", mode="linear", coordinate_transformation_mode="half_pixel")
    x = graph.Transpose(fused, perm=[0, 3, 1, 2])
    x = graph.Conv(x, _weight(graph, "weight", convolution.weight, half), pads=[1] * 4)
    mean = graph.ReduceMean(x, integer([2, 3]), keepdims=1)
    centred = graph.Sub(x, mean)
    graph.Squeeze(mean, integer([2, 3]), name="mean")
    graph.ReduceMean(graph.Mul(centred, centred), integer([2, 3]), keepdims=0, name="variance")
    graph.Transpose(x, perm=[0, 2, 3, 1], name="map")

    largest = graph.ReduceMax(graph.Abs("refined"), integer([2]), keepdims=1)
    words = graph.Div("refined", graph.Max(largest, real(TINY)))
    words = graph.Div(words, graph.Max(graph.ReduceL2(words, integer([2]), keepdims=1), real(TINY)))
    basis = _array(graph, "basis", _rotation(decoder, half)[0])
    spanned = _rotation(decoder, half)[0].shape[1]
    if aligned:
        words, beside = _parted(graph, words, width, aligned, axis=2)
        graph.Concat(graph.MatMul(words, basis), beside, axis=2, name="words")
    else:
        graph.MatMul(words, basis, name="words")
    return graph.model({
        "map": (FLOAT, ["B", "h", "w", outputs]),
        "mean": (FLOAT, ["B", outputs]),
        "variance": (FLOAT, ["B", outputs]),
        "words": (FLOAT, ["B", "K", spanned + aligned]),
        **({"aligned": (FLOAT, ["B", "h'", "w'", aligned])} if aligned else {}),
    })  # fmt: skip


def _parted(graph: Graph, value: str, first: int, second: int, axis: int) -> tuple[str, str]:
    """The first channels of a value, and those after them."""
    cut, end = integer([first]), integer([first + second])
    return (
        graph.Slice(value, integer([0]), cut, integer([axis])),
        graph.Slice(value, cut, end, integer([axis])),
    )


def _normalised(graph: Graph, norm: Any) -> str:
    """Instance norm and ReLU of "x", given its "mean" and "variance"."""
    gamma, beta = _float(graph, "gamma", norm.weight), _float(graph, "beta", norm.bias)
    scale = graph.Div(gamma, graph.Sqrt(graph.Add("variance", real(norm.eps))))
    shift = graph.Sub(beta, graph.Mul("mean", scale))
    return str(graph.Relu(graph.Add(graph.Mul("x", scale), shift)))


def _up(decoder: Decoder, index: int, half: bool) -> onnx.ModelProto:
    """Rows of a map to rows of the next: the arguments are those of `fusioner_rt.onnx.decoder_in_strips.Strip` and `Columns`."""
    convolution = cast(nn.Conv2d, decoder.convolutions[index])
    inputs, outputs = convolution.in_channels, convolution.out_channels
    of_input, of_weight, of_output = (matrix.astype(np.float32) for matrix in winograd())
    graph = Graph(f"decoder_up_{index}", {
        "x": (FLOAT, ["R", "w", inputs]),
        "mean": (FLOAT, [inputs]),
        "variance": (FLOAT, [inputs]),
        "rows": (FLOAT, [WINDOW, "n", "R"]),
        "columns": (FLOAT, ["blocks", WINDOW, "m", "span"]),
        "points": (INT64, ["blocks", "span"]),
        "share": (FLOAT, [1, "P"]),
    })  # fmt: skip
    n, rows = graph.Shape("rows", start=1, end=2), graph.Shape("rows", start=2, end=3)
    blocks, m, span = (graph.Shape("columns", start=axis, end=axis + 1) for axis in (0, 2, 3))
    across = graph.MatMul(of_input, graph.Reshape("columns", integer([0, 0, -1])))
    across = graph.Reshape(across, graph.Concat(blocks, integer([-1]), span, axis=0))
    down = graph.MatMul(of_input, graph.Reshape("rows", integer([WINDOW, -1])))
    down = graph.Reshape(down, graph.Concat(integer([-1]), rows, axis=0))
    x = graph.Gather(_normalised(graph, decoder.norms[index - 1]), "points", axis=1)  # (R, blocks, span, inputs)
    x = graph.MatMul(across, x)  # (R, blocks, 6m, inputs)
    x = graph.Reshape(x, graph.Concat(rows, blocks, integer([WINDOW]), m, integer([inputs]), axis=0))
    x = graph.Transpose(x, perm=[2, 0, 1, 3, 4])  # before the rows' transform, which makes it larger
    x = graph.MatMul(down, graph.Reshape(x, graph.Concat(integer([WINDOW]), rows, integer([-1]), axis=0)))
    x = graph.Reshape(x, integer([WINDOW**2, -1, inputs]))  # by column and row of the window

    weight = graph.Transpose(_weight(graph, "weight", convolution.weight, half), perm=[3, 2, 1, 0])
    weight = graph.MatMul(of_weight, graph.Reshape(weight, integer([3, -1])))
    weight = graph.MatMul(of_weight, graph.Reshape(weight, integer([WINDOW, 3, -1])))
    weight = graph.Reshape(weight, integer([WINDOW**2, inputs, outputs]))
    products = [
        graph.MatMul(graph.Squeeze(one, integer([0])), graph.Squeeze(by, integer([0])))
        for one, by in zip(_split(graph, x, "x"), _split(graph, weight, "weight"), strict=True)
    ]
    x = graph.Reshape(graph.Concat(*products, axis=0), integer([WINDOW, -1]))
    x = graph.MatMul(of_output, x)
    x = graph.MatMul(of_output, graph.Reshape(x, integer([OUTPUTS, WINDOW, -1])))
    x = graph.Reshape(x, graph.Concat(integer([OUTPUTS, OUTPUTS]), n, graph.Mul(blocks, m), integer([outputs]), axis=0))
    graph.Reshape(graph.Transpose(x, perm=[2, 1, 3, 0, 4]), integer([-1, outputs]), name="y")
    # of this strip alone, about its own mean: sums of squares about zero would lose their digits
    graph.MatMul("share", "y", name="y_mean")
    centred = graph.Sub("y", "y_mean")
    graph.MatMul("share", graph.Mul(centred, centred), name="y_variance")
    return graph.model({
        "y": (FLOAT, ["P", outputs]), "y_mean": (FLOAT, [1, outputs]), "y_variance": (FLOAT, [1, outputs])
    })  # fmt: skip


def _scores(decoder: Decoder, half: bool, aligned: int) -> onnx.ModelProto:
    channels = decoder.out.in_features
    _, matrix, offset = _rotation(decoder, half)
    spanned = len(offset)
    graph = Graph("decoder_scores", {
        "x": (FLOAT, ["R", "w", channels]),
        "mean": (FLOAT, [channels]),
        "variance": (FLOAT, [channels]),
        "words": (FLOAT, ["K", spanned + aligned]),
        **({"aligned": (FLOAT, ["R", "w", aligned])} if aligned else {}),
    })  # fmt: skip
    x = _normalised(graph, decoder.norms[-1])
    parts = []
    for index, part in enumerate(np.array_split(np.arange(spanned), min(TRIANGLE, spanned))):
        first, last = int(part[0]), int(part[-1]) + 1  # channels before `first` are zeros in these columns
        first_used = min(first, channels - 1)
        used = graph.Slice(x, integer([first_used]), integer([channels]), integer([2])) if index else x
        parts.append(graph.MatMul(used, _array(graph, f"matrix_{index}", matrix[first_used:, first:last].copy())))
    features = graph.Add(graph.Concat(*parts, axis=2), _array(graph, "offset", offset))
    if aligned:
        length = graph.Max(graph.ReduceL2(features, integer([2]), keepdims=1), real(NORMALIZE_EPS))
        features = graph.Concat(graph.Div(features, length), "aligned", axis=2)
    flat = graph.Reshape(features, integer([-1, spanned + aligned]))
    positions = graph.Shape("x", start=0, end=2)
    scores = graph.MatMul("words", graph.Transpose(flat, perm=[1, 0]))
    graph.Reshape(scores, graph.Concat(integer([-1]), positions, axis=0), name="scores")

    add_gram(graph, features, row_axis=0, sized="x")
    return graph.model({"scores": (FLOAT, ["K", "R", "w"]), "gram": (FLOAT, [5, "R", "w"])})


def _rotation(decoder: Decoder, half: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An orthonormal basis (d, e) of the features that the last conv can give, and the conv in that basis: matrix (c, e) and
    offset (e,), all float32.

    Element (i, j) of the conv's matrix is zero where j > i.
    """
    weight, bias = (_numpy(value, half).astype(np.float64) for value in (decoder.out.weight, decoder.out.bias))
    basis, within = np.linalg.qr(np.concatenate([weight, bias[:, None]], axis=1))
    return basis.astype(np.float32), within[:, :-1].T.astype(np.float32), within[:, -1].astype(np.float32)


def _split(graph: Graph, value: str, name: str) -> list[str]:
    parts = [f"{name}_{index}" for index in range(WINDOW**2)]
    graph.nodes.append(helper.make_node("Split", [value], parts, axis=0, num_outputs=len(parts), name=f"split_{name}"))
    return parts


def _numpy(value: Any, half: bool) -> np.ndarray:
    array: np.ndarray = value.detach().cpu().numpy().astype(np.float32)
    return array.astype(np.float16) if half else array


def _weight(graph: Graph, name: str, value: Any, half: bool) -> str:
    """The weights as they are stored in image_fusion, cast to float32 once, when the graph is loaded."""
    stored = _array(graph, name, _numpy(value, half))
    return graph.Cast(stored, to=FLOAT) if half else stored


def _float(graph: Graph, name: str, value: Any) -> str:
    return _array(graph, name, _numpy(value, False))


def _array(graph: Graph, name: str, array: np.ndarray) -> str:
    graph.constants[name] = numpy_helper.from_array(array, name)
    return name
