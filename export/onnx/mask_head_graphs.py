"""The mask head as four ONNX graphs (design section 4), held to kernels/reference.py.

mask_scores         (B, h, w, d) features and (B, K, d) words to score and Gram maps, still at low resolution
mask_labels         those maps to a label map and the best word's probability, at any size
mask_tiles          the same for tiles of an output, each with the few words that can win in it (fusioner_rt.onnx.mask_tiles)
mask_probabilities  those maps to one probability map per word, at any size

mask_labels and mask_probabilities compute the output rows they are asked for: a caller that takes an output band by band
holds a band of K maps and never K maps of H×W. They compute the taps themselves. mask_tiles is given them, and its result
at a pixel depends on the four neighbours alone: on no tile border, and not on how many words there are.

naive_graph is the form that people usually export, for comparison. It is in no bundle.

Interpolation is a product with a two-tap matrix, columns first. Only the low-resolution rows under a band enter it, so its
zeros cost little, and every ONNX Runtime multiplies matrices at full speed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kernels.reference import CANCELLED, TINY, gram_pairs

OPSET = 20
IR_VERSION = 10
FLOAT, INT64, UINT16 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT16


class Graph:
    """Writes ONNX nodes one call at a time: `graph.MatMul(a, b)` adds the node and returns its output's name.

    Arguments are names of earlier values or numpy constants; keyword arguments are the node's attributes.
    """

    def __init__(self, name: str, inputs: dict[str, tuple[int, list[Any]]], prefix: str = ""):
        """prefix: before the names of values. A branch of another graph needs one of its own."""
        self.name = name
        self.prefix = prefix
        self.inputs = inputs
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        name = f"{array.dtype}_{'x'.join(map(str, array.shape))}_{'_'.join(map(str, array.ravel()))}"
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def __getattr__(self, kind: str) -> Any:
        if not kind[0].isupper():
            raise AttributeError(kind)

        def add(*arguments: Any, name: str | None = None, **attributes: Any) -> str:
            names = [value if isinstance(value, str) else self.constant(value) for value in arguments]
            made = f"{self.prefix}{kind}_{len(self.nodes)}"
            output = name or made
            self.nodes.append(helper.make_node(kind, names, [output], name=made, **attributes))
            return output

        return add

    def size(self, value: str, axis: int) -> str:
        """One dimension of a value, as a scalar."""
        return self.Squeeze(self.Shape(value, start=axis, end=axis + 1))

    def graph(self, outputs: dict[str, tuple[int, list[Any]]]) -> onnx.GraphProto:
        def infos(values: dict[str, tuple[int, list[Any]]]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in values.items()]

        return helper.make_graph(
            self.nodes, self.name, infos(self.inputs), infos(outputs), list(self.constants.values())
        )

    def model(self, outputs: dict[str, tuple[int, list[Any]]]) -> onnx.ModelProto:
        graph = self.graph(outputs)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="fusioner-rt")
        onnx.checker.check_model(model, full_check=True)
        return model


def integer(value: int | list[int]) -> np.ndarray:
    return np.asarray(value, np.int64)


def real(value: float) -> np.ndarray:
    return np.asarray(value, np.float32)


def scores_graph(channels: int) -> onnx.ModelProto:
    """mask_scores: `kernels.reference.score_maps`, for features and words of d = `channels`."""
    graph = Graph("mask_scores", {
        "features": (FLOAT, ["B", "h", "w", channels]),
        "refined": (FLOAT, ["B", "K", channels]),
    })  # fmt: skip
    largest = graph.ReduceMax(graph.Abs("features"), integer([1, 2, 3]), keepdims=1)
    features = graph.Div("features", graph.Max(largest, real(TINY)))

    largest_word = graph.ReduceMax(graph.Abs("refined"), integer([2]), keepdims=1)
    words = graph.Div("refined", graph.Max(largest_word, real(TINY)))
    words = graph.Div(words, graph.Max(graph.ReduceL2(words, integer([2]), keepdims=1), real(TINY)))

    flat = graph.Reshape(features, integer([0, -1, channels]))
    scores = graph.MatMul(words, graph.Transpose(flat, perm=[0, 2, 1]))
    positions = graph.Shape("features", start=1, end=3)
    graph.Reshape(scores, graph.Concat(integer([0, 0]), positions, axis=0), name="scores")

    add_gram(graph, features, row_axis=1, sized="features")
    return graph.model({"scores": (FLOAT, ["B", "K", "h", "w"]), "gram": (FLOAT, ["B", 5, "h", "w"])})


def add_gram(graph: Graph, features: str, row_axis: int, sized: str) -> None:
    """The output "gram": the five Gram maps of `kernels.reference.score_maps`, stacked along `row_axis`.

    features: (..., h, w, d), h being at `row_axis`. sized: a value of the same h and w at the same axes.
    """
    row, column, channel = range(row_axis, row_axis + 3)
    right = graph.Gather(features, following(graph, graph.size(sized, column)), axis=column)
    next_row = following(graph, graph.size(sized, row))
    down, diagonal = graph.Gather(features, next_row, axis=row), graph.Gather(right, next_row, axis=row)
    pairs = gram_pairs(features, right, down, diagonal)
    products = [graph.ReduceSum(graph.Mul(one, other), integer([channel]), keepdims=0) for one, other in pairs]
    graph.Concat(*[graph.Unsqueeze(product, integer([row])) for product in products], axis=row, name="gram")


def labels_graph(temperature: float, scoring: str = "sigmoid") -> onnx.ModelProto:
    """mask_labels: `kernels.reference.resolve` for the output rows asked for.

    The words become the last axis before anything grows to output size: the best of K neighbours in memory is found faster
    than the best of K planes, and the product that interpolates rows is as fast either way.
    """
    graph = resolution_graph("mask_labels", {"threshold": (FLOAT, [])})
    width = graph.Slice("size", integer([1]), integer([2]), integer([0]))
    rows, columns, first, last = tap_matrices(graph)

    scores = graph.Transpose(graph.Slice("scores", first, last, integer([2])), perm=[0, 2, 3, 1])  # (B, rows, w, K)
    scores = graph.MatMul(graph.Slice(columns, integer([0]), integer([-1]), integer([1])), scores)  # (B, rows, W, K)
    scores = graph.MatMul(
        graph.Slice(rows, integer([0]), integer([-1]), integer([1])), graph.Reshape(scores, integer([0, 0, -1]))
    )
    scores = graph.Reshape(scores, graph.Concat(integer([0, 0]), width, integer([-1]), axis=0))

    best = graph.ReduceMax(scores, integer([3]), keepdims=0)
    word = graph.ArgMax(scores, axis=3, keepdims=0)
    length = lengths(graph, rows, columns, first, last)
    if scoring == "softmax":
        length = graph.Mul(length, real(temperature))
        best, length = (graph.Unsqueeze(value, integer([3])) for value in (best, length))
        winners_softmax(graph, scores, best, length, axis=3)
    else:
        graph.Sigmoid(graph.Mul(graph.Div(best, length), real(1 / temperature)), name="confidence")
    found = graph.Where(graph.Greater("confidence", "threshold"), graph.Add(word, integer(1)), integer(0))
    graph.Cast(found, to=UINT16, name="labels")
    return graph.model({"labels": (UINT16, ["B", "R", "W"]), "confidence": (FLOAT, ["B", "R", "W"])})


def behind_the_best(graph: Graph, scores: str, best: str, length: str) -> str:
    """exp((score - best score) / length), 1 of the best word and less of others: nothing overflows.

    best: the highest of the words' scores. length: by which scores are divided. Both have one element along words' axis.
    """
    return graph.Exp(graph.Div(graph.Sub(scores, best), length))


def winners_softmax(graph: Graph, scores: str, best: str, length: str, axis: int) -> None:
    """The output "confidence": the best word's softmax, as `kernels.reference.resolve` has it. axis: of the words."""
    behind = behind_the_best(graph, scores, best, length)
    graph.Reciprocal(graph.ReduceSum(behind, integer([axis]), keepdims=0), name="confidence")


def tiles_graph(temperature: float, scoring: str = "sigmoid") -> onnx.ModelProto:
    """mask_tiles: T tiles of P×Q output pixels, each over its own S×V window of the maps and its own K words.

    Two products interpolate, columns first. Each output is a sum of two products among zeros, so the order in which ONNX
    Runtime adds makes no difference: a word's score at a pixel is the same number in every tile and beside any words. The
    words stay the middle axis, where the first product leaves them. One word alone needs no search for the best.

    By softmax K is all words of the picture, in order. `words` is then their numbers, or the winner's alone where it is
    known, (T, 1): no search then either.
    """
    graph = Graph("mask_tiles", {
        "scores": (FLOAT, ["T", "S", "K", "V"]),
        "gram": (FLOAT, ["T", 5, "S", "V"]),
        "words": (UINT16, ["T", "K"]),
        "down": (FLOAT, ["T", "P", "S"]),
        "across": (FLOAT, ["T", "V", "Q"]),
        "down_squares": (FLOAT, ["T", "P", "S2"]),
        "across_squares": (FLOAT, ["T", "V2", "Q"]),
    })  # fmt: skip
    taps_down, count, taps_across = (graph.Shape("scores", start=axis, end=axis + 1) for axis in (1, 2, 3))
    scores = graph.Mul("scores", real(1 / temperature))  # divided while the maps are small
    scores = graph.Reshape(scores, graph.Concat(integer([0, -1]), taps_across, axis=0))
    scores = graph.MatMul(scores, "across")  # (T, S·K, Q)
    scores = graph.Reshape(scores, graph.Concat(integer([0]), taps_down, integer([-1]), axis=0))
    scores = graph.MatMul("down", scores)  # (T, P, K·Q)
    outputs: dict[str, tuple[int, list[Any]]] = {
        "word": (UINT16, ["T", None, None]), "confidence": (FLOAT, ["T", "P", "Q"])
    }  # fmt: skip
    if scoring == "softmax":
        each = graph.Reshape(scores, graph.Concat(integer([0, 0]), count, integer([-1]), axis=0))  # (T, P, K, Q)
        known, sought = Graph("known", {}, "known_"), Graph("sought", {}, "sought_")
        known.Reshape("words", integer([0, 1, 1]), name="known_word")
        place = sought.ArgMax(each, axis=2, keepdims=0)
        sought.Cast(sought.Add(place, integer(1)), to=UINT16, name="sought_word")
        given = graph.Squeeze(graph.Shape("words", start=1, end=2))
        branches = {
            f"{name}_branch": branch.graph({f"{branch.name}_word": (UINT16, ["T", None, None])})
            for name, branch in (("then", known), ("else", sought))
        }
        graph.nodes.append(helper.make_node("If", [graph.Equal(given, integer(1))], ["word"], **branches))
        length = graph.Unsqueeze(tile_lengths(graph), integer([2]))
        winners_softmax(graph, each, graph.ReduceMax(each, integer([2]), keepdims=1), length, axis=2)
        return graph.model(outputs)

    one, several = Graph("one", {}, "one_"), Graph("several", {}, "several_")
    one.Identity(scores, name="one_best")
    one.Reshape("words", integer([0, 1, 1]), name="one_word")
    each = several.Reshape(scores, several.Concat(integer([0, 0]), count, integer([-1]), axis=0))  # (T, P, K, Q)
    several.ReduceMax(each, integer([2]), keepdims=0, name="several_best")
    place = several.ArgMax(each, axis=2, keepdims=0)
    word = several.GatherElements("words", several.Reshape(place, integer([0, -1])), axis=1)
    several.Reshape(word, several.Shape(place), name="several_word")
    branches = {
        f"{name}_branch": branch.graph({
            f"{branch.name}_best": (FLOAT, ["T", "P", "Q"]), f"{branch.name}_word": (UINT16, ["T", None, None])
        })
        for name, branch in (("then", one), ("else", several))
    }  # fmt: skip
    graph.nodes.append(
        helper.make_node("If", [graph.Equal(graph.Squeeze(count), integer(1))], ["best", "word"], **branches)
    )
    graph.Sigmoid(graph.Div("best", tile_lengths(graph)), name="confidence")
    return graph.model(outputs)


def tile_lengths(graph: Graph) -> str:
    """(T, P, Q) float32: as `lengths`, with the lower bounds taken at low resolution."""
    itself, form = quadratic_form(graph, "gram")
    squared = graph.MatMul("down_squares", graph.MatMul(form, "across_squares"))
    floor = graph.Max(graph.Mul(itself, real(CANCELLED)), real(TINY))
    return graph.Sqrt(graph.Max(squared, graph.MatMul("down", graph.MatMul(floor, "across"))))


def probabilities_graph(temperature: float, scoring: str = "sigmoid") -> onnx.ModelProto:
    """mask_probabilities: `kernels.reference.probabilities` for the output rows asked for."""
    graph = resolution_graph("mask_probabilities", {})
    rows, columns, first, last = tap_matrices(graph)
    # divided by the temperature while the maps are small
    scores = graph.Mul(graph.Slice("scores", first, last, integer([2])), real(1 / temperature))
    across = graph.Transpose(graph.Slice(columns, integer([0]), integer([-1]), integer([1])), perm=[1, 0])
    down = graph.Slice(rows, integer([0]), integer([-1]), integer([1]))
    scores = graph.MatMul(down, graph.MatMul(scores, across))
    length = graph.Unsqueeze(lengths(graph, rows, columns, first, last), integer([1]))
    if scoring == "softmax":
        behind = behind_the_best(graph, scores, graph.ReduceMax(scores, integer([1]), keepdims=1), length)
        graph.Div(behind, graph.ReduceSum(behind, integer([1]), keepdims=1), name="probabilities")
    else:
        graph.Sigmoid(graph.Div(scores, length), name="probabilities")
    return graph.model({"probabilities": (FLOAT, ["B", "K", "R", "W"])})


def resolution_graph(name: str, more: dict[str, tuple[int, list[Any]]]) -> Graph:
    """A graph whose inputs are the maps, the output's size, the rows asked for (first, one past the last), and `more`."""
    maps: dict[str, tuple[int, list[Any]]] = {
        "scores": (FLOAT, ["B", "K", "h", "w"]),
        "gram": (FLOAT, ["B", 5, "h", "w"]),
    }
    return Graph(name, {**maps, "size": (INT64, [2]), "rows": (INT64, [2]), **more})


def tap_matrices(graph: Graph) -> tuple[str, str, str, str]:
    """The taps of `kernels.reference.interpolation_taps`, for the rows asked for and for all columns.

    Returns the row matrix (R, last-first+1) and the column matrix (W, w+1): entry (i, j) is output i's weight of input j.
    Their last column is zero; `quadratic` multiplies each tap by the next one. And first and last, (1,) int64 each: the
    first low-resolution row that the asked-for rows read, and one past the last.
    """
    height, width = (graph.Gather("size", integer(axis)) for axis in (0, 1))
    from_row, to_row = (graph.Gather("rows", integer(end)) for end in (0, 1))
    low_height, low_width = graph.size("scores", 2), graph.size("scores", 3)
    one = integer(1)

    top = lower_tap(graph, low_height, height, from_row)
    bottom = lower_tap(graph, low_height, height, graph.Sub(to_row, one))
    bottom = graph.Min(graph.Add(bottom, integer(2)), low_height)
    under = graph.Range(top, graph.Add(bottom, one), one)
    rows = hat(graph, low_height, height, graph.Range(from_row, to_row, one), under)

    along = graph.Range(integer(0), graph.Add(low_width, one), one)
    columns = hat(graph, low_width, width, graph.Range(integer(0), width, one), along)
    return rows, columns, graph.Unsqueeze(top, integer([0])), graph.Unsqueeze(bottom, integer([0]))


def hat(graph: Graph, size_in: str, size_out: str, outputs: str, inputs: str) -> str:
    """(outputs, inputs) float32: 1 where an output lies on an input, falling linearly to 0 at that input's neighbours.

    Positions are divided as integers, as in the reference: the fraction alone is rounded.
    """
    unit = graph.Mul(size_out, integer(2))
    odd = graph.Add(graph.Mul(outputs, integer(2)), integer(1))
    position = graph.Sub(graph.Mul(odd, size_in), size_out)
    end = graph.Mul(graph.Sub(size_in, integer(1)), unit)
    position = graph.Unsqueeze(graph.Min(graph.Max(position, integer(0)), end), integer([1]))
    lower = graph.Div(position, unit)
    remainder = graph.Sub(position, graph.Mul(lower, unit))
    fraction = graph.Div(graph.Cast(remainder, to=FLOAT), graph.Cast(unit, to=FLOAT))
    steps = graph.Sub(graph.Cast(inputs, to=FLOAT), graph.Cast(lower, to=FLOAT))
    return graph.Relu(graph.Sub(real(1), graph.Abs(graph.Sub(steps, fraction))))


def lower_tap(graph: Graph, size_in: str, size_out: str, output: str) -> str:
    """The lower neighbour of one output index, both scalars."""
    odd = graph.Add(graph.Mul(output, integer(2)), integer(1))
    position = graph.Max(graph.Sub(graph.Mul(odd, size_in), size_out), integer(0))
    return graph.Min(graph.Div(position, graph.Mul(size_out, integer(2))), graph.Sub(size_in, integer(1)))


def lengths(graph: Graph, rows: str, columns: str, first: str, last: str) -> str:
    """(B, R, W) float32: the length of every upsampled feature, `kernels.reference.squared_length`.

    The quadratic form is an interpolation too, of maps twice as large along each axis: those of a position with itself
    beside those of the position with its neighbour. Its taps are the squared taps beside twice their products.
    """
    itself, form = quadratic_form(graph, graph.Slice("gram", first, last, integer([2])))
    across = graph.Transpose(quadratic(graph, columns), perm=[1, 0])
    squared = graph.MatMul(quadratic(graph, rows), graph.MatMul(form, across))

    # A length below the rounding of its own terms is noise: see CANCELLED.
    plain_rows, plain_columns = (
        graph.Slice(taps, integer([0]), integer([-1]), integer([1])) for taps in (rows, columns)
    )
    itself = graph.Mul(itself, real(CANCELLED))
    mean = graph.MatMul(plain_rows, graph.MatMul(itself, graph.Transpose(plain_columns, perm=[1, 0])))
    return graph.Sqrt(graph.Max(squared, mean, real(TINY)))


def quadratic_form(graph: Graph, gram: str) -> tuple[str, str]:
    """The map of <f,f> (B, h, w), and the form (B, 2h, 2w) of all five, from gram (B, 5, h, w)."""
    itself, right, down, diagonal, crossed = (graph.Gather(gram, integer(index), axis=1) for index in range(5))
    slanted = graph.Mul(graph.Add(diagonal, crossed), real(0.5))
    return itself, graph.Concat(graph.Concat(itself, right, axis=2), graph.Concat(down, slanted, axis=2), axis=1)


def quadratic(graph: Graph, taps: str) -> str:
    """(outputs, 2·inputs) from (outputs, inputs + 1) taps: their squares beside twice the product of each and the next."""
    lower = graph.Slice(taps, integer([0]), integer([-1]), integer([1]))
    upper = graph.Slice(taps, integer([1]), integer([2**31 - 1]), integer([1]))
    return graph.Concat(graph.Mul(lower, lower), graph.Mul(graph.Mul(lower, upper), real(2)), axis=1)


def following(graph: Graph, size: str) -> str:
    """(size,) int64: the index after each one; after the last comes itself."""
    successors = graph.Range(integer(1), graph.Add(size, integer(1)), integer(1))
    return graph.Min(successors, graph.Sub(size, integer(1)))


def naive_graph(channels: int, temperature: float) -> onnx.ModelProto:
    """The same labels as people usually export them, for comparison: with all features at output size.

    features (1, h, w, d), refined (1, K, d), `size` (2,) int64, threshold () -> labels and confidence (1, H, W).
    """
    graph = Graph("mask_naive", {
        "features": (FLOAT, [1, "h", "w", channels]),
        "refined": (FLOAT, [1, "K", channels]),
        "size": (INT64, [2]),
        "threshold": (FLOAT, []),
    })  # fmt: skip
    planes = graph.Transpose("features", perm=[0, 3, 1, 2])
    sizes = graph.Concat(integer([1, channels]), "size", axis=0)
    planes = graph.Resize(planes, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")
    pixels = graph.Div(planes, graph.Max(graph.ReduceL2(planes, integer([1]), keepdims=1), real(TINY)))
    words = graph.Div("refined", graph.Max(graph.ReduceL2("refined", integer([2]), keepdims=1), real(TINY)))
    cosine = graph.MatMul(words, graph.Reshape(pixels, integer([0, 0, -1])))  # (1, K, H·W)
    probability = graph.Sigmoid(graph.Mul(cosine, real(1 / temperature)))
    best = graph.ReduceMax(probability, integer([1]), keepdims=0)
    word = graph.Add(graph.ArgMax(probability, axis=1, keepdims=0), integer(1))
    found = graph.Cast(graph.Where(graph.Greater(best, "threshold"), word, integer(0)), to=UINT16)
    shape = graph.Concat(integer([1]), "size", axis=0)
    graph.Reshape(found, shape, name="labels")
    graph.Reshape(best, shape, name="confidence")
    return graph.model({"labels": (UINT16, [1, "H", "W"]), "confidence": (FLOAT, [1, "H", "W"])})
