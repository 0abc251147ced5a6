"""The Open Inference Protocol, version 2, with its binary tensors, as Triton's clients speak it.

Input PICTURE: BYTES [B] or [B, 1], picture files (in JSON, base64), or UINT8 [B, H, W, 3] or [H, W, 3], which PIXELS is too.
WORDS: BYTES [K], or [B, K] with the same row for every picture. BACKGROUND, THRESHOLD, MODE, WINDOW, SIZE: BYTES likewise.
Or parameters of these names in small letters, those of POST /v1/segment that say how. Outputs: LABELS UINT16 [B, H, W],
CONFIDENCE FP32 [B, H, W], SHARES FP32 [B, K], WORDS BYTES [K], or [B, K] where the input has rows.
"""

import base64
import binascii
import json
import math
import re
import struct
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..argument_checks import shown
from ..results.segmentation import Segmentation
from . import request
from .errors import RequestInvalid
from .request import SegmentRequest

HEADER = "Inference-Header-Content-Length"
INPUTS = [
    {"name": "PICTURE", "datatype": "BYTES", "shape": [-1]},
    {"name": "WORDS", "datatype": "BYTES", "shape": [-1]},
]
"""What the protocol's metadata tells. It has no word for inputs that may be left out, as PIXELS and those of options may."""
OUTPUTS = [
    {"name": "LABELS", "datatype": "UINT16", "shape": [-1, -1, -1]},
    {"name": "CONFIDENCE", "datatype": "FP32", "shape": [-1, -1, -1]},
    {"name": "SHARES", "datatype": "FP32", "shape": [-1, -1]},
    {"name": "WORDS", "datatype": "BYTES", "shape": [-1]},
]
PARAMETERS = ("words", "background", "threshold", "mode", "window", "size")
OPTIONS = {name.upper(): name for name in PARAMETERS}
"""Inputs of BYTES that say what the parameters say."""
_THEIRS = (
    "binary_data_output", "sequence_id", "sequence_start", "sequence_end", "priority", "timeout",
)  # fmt: skip
"""Parameters of the protocol's extensions, which clients may send."""


@dataclass(frozen=True)
class Inference:
    """pictures: files' bytes, or (H, W, 3) uint8. outputs: names, and whether each is answered as bytes. rows: WORDS has one
    for every picture."""

    id: str
    request: SegmentRequest
    pictures: Sequence[bytes | np.ndarray]
    outputs: Mapping[str, bool]
    rows: bool


def parse(body: bytes, header_length: str | None, model: str, max_words: int, max_pixels: int, most: int) -> Inference:
    """header_length: of the JSON at the body's start, where tensors' bytes follow. most: pictures. Raises RequestInvalid."""
    size = len(body)
    if header_length is not None:
        if not (re.fullmatch(r"[0-9]{1,12}", header_length) and int(header_length) <= len(body)):
            raise RequestInvalid("is no length within the body", "give the bytes of the JSON", HEADER)
        size = int(header_length)
    content = request.read_json(body[:size], "the request", "send the JSON of the protocol")
    content = _of(content, dict, "the request")
    tensors, rest = {}, memoryview(body)[size:]
    for given in _of(content.get("inputs", []), list, "inputs"):
        name = _of(_of(given, dict, "an input").get("name"), str, "an input's name")
        tensors[name], rest = _tensor(given, name, rest)
    if len(rest):
        raise RequestInvalid(f"{len(rest)} bytes follow the last input", "give each input's binary_data_size")
    if unknown := tensors.keys() - {"PICTURE", "PIXELS", *OPTIONS}:
        raise RequestInvalid(
            f"there is no input {shown(min(unknown))}", f"the inputs are PICTURE or PIXELS, and {', '.join(OPTIONS)}"
        )
    parameters = _of(content.get("parameters", {}), dict, "parameters")
    fields = {name: value for name, value in parameters.items() if name not in _THEIRS}
    request.check_names(fields, PARAMETERS)
    for name in filter(tensors.__contains__, OPTIONS):
        if OPTIONS[name] in fields:
            raise RequestInvalid("is given as an input and as a parameter", "give it once", OPTIONS[name])
        fields[OPTIONS[name]] = option(name, _bytes(tensors[name], name), tensors[name].shape)
    if len(given := tensors.keys() & {"PICTURE", "PIXELS"}) != 1:
        found = "two kinds of pictures" if given else "no picture"
        raise RequestInvalid(f"the request holds {found}", "give the input PICTURE, or PIXELS", "inputs")
    name = min(given)
    pictures = _pictures(tensors[name], name, max_pixels)
    if not 1 <= len(pictures) <= most:
        raise RequestInvalid(f"holds {len(pictures)} pictures", f"give 1 to {most} in one request", name)
    asked = request.parse({**fields, "model": model}, max_words, max_pixels)
    outputs = _outputs(content, parameters.get("binary_data_output") is True)
    rows = "WORDS" in tensors and len(tensors["WORDS"].shape) > 1
    return Inference(str(content.get("id", ""))[:200], asked, pictures, outputs, rows)


def option(name: str, elements: Sequence[bytes], shape: Sequence[int]) -> Any:
    """What an input of OPTIONS says: a text, or a list of WORDS or BACKGROUND. elements: of its shape, [n] or [B, n].

    Raises RequestInvalid, also where two rows differ: pictures of one request are asked for the same.
    """
    row = list(elements)[: shape[-1] if len(shape) > 1 else len(elements)]
    if row and list(elements) != row * (len(elements) // len(row)):
        raise RequestInvalid(
            "differs between the pictures of one request",
            "send pictures that are asked for other things by themselves",
            name,
        )
    texts = [_decoded(element, name) for element in row]
    if len(texts) != 1 and name not in ("WORDS", "BACKGROUND"):
        raise RequestInvalid(f"has {len(texts)} elements", "give one", name)
    return texts[0] if len(texts) == 1 else texts


def check_stackable(results: Sequence[Segmentation], outputs: Container[str], cure: str, name: str = "PICTURE") -> None:
    """Raises RequestInvalid where pictures of different sizes are to be answered as one array. cure: how to say a size."""
    if len({result.labels.shape for result in results}) > 1 and ("LABELS" in outputs or "CONFIDENCE" in outputs):
        raise RequestInvalid("the pictures have different sizes", cure, name)


def output(name: str, results: Sequence[Segmentation], rows: bool) -> np.ndarray:
    """An output's array; of texts for WORDS, with the same row for every picture where `rows`."""
    if name == "WORDS":
        words = list(results[0].words)
        return np.array([words] * len(results) if rows else words, object)
    of: Any = {
        "LABELS": lambda result: result.labels.astype("<u2", copy=False),
        "CONFIDENCE": lambda result: result.confidence.astype("<f4", copy=False),
        "SHARES": lambda result: result.shares.astype("<f4"),
    }[name]
    return np.stack([of(result) for result in results])


def answer(inference: Inference, results: Sequence[Segmentation], model: str) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON where tensors' bytes follow. Raises RequestInvalid for sizes that differ."""
    check_stackable(results, inference.outputs, "give the parameter size, such as 480x640")
    outputs, chunks = [], []
    for name, binary in inference.outputs.items():
        array = output(name, results, inference.rows)
        entry: dict[str, Any] = {"name": name, "datatype": _DATATYPES[name], "shape": list(array.shape)}
        if binary:
            content = _lengths(array.ravel().tolist()) if array.dtype == object else array.tobytes()
            entry["parameters"] = {"binary_data_size": len(content)}
            chunks.append(content)
        else:
            entry["data"] = array.ravel().tolist()
        outputs.append(entry)
    told = {"model_name": model, "model_version": "1", "id": inference.id, "outputs": outputs}
    header = json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")
    return b"".join([header, *chunks]), len(header) if chunks else None


def answered_bytes(inference: Inference, results: Sequence[Segmentation]) -> int:
    """About what `answer` takes in memory beside its results."""
    pixels = sum(result.labels.size for result in results)
    # A number of an array; and where it is one of Python, that, its place in a list, and its digits.
    each = {"LABELS": (2, 32 + 8 + 4), "CONFIDENCE": (4, 24 + 8 + 22)}
    asked = (each[name][not binary] for name, binary in inference.outputs.items() if name in each)
    return pixels * sum(asked)


def metadata(model: str) -> dict[str, Any]:
    """What the protocol tells of a model."""
    return {"name": model, "versions": ["1"], "platform": "fusioner-rt", "inputs": INPUTS, "outputs": OUTPUTS}


_DATATYPES = {str(output["name"]): str(output["datatype"]) for output in OUTPUTS}


def _outputs(content: Mapping[str, Any], all_binary: bool) -> dict[str, bool]:
    asked = {}
    for given in _of(content.get("outputs", []), list, "outputs"):
        name = _of(_of(given, dict, "an output").get("name"), str, "an output's name")
        if name not in _DATATYPES:
            raise RequestInvalid(f"there is no output {shown(name)}", f"the outputs are {', '.join(_DATATYPES)}")
        asked[name] = bool(_of(given.get("parameters", {}), dict, "parameters").get("binary_data", all_binary))
    return asked or dict.fromkeys(_DATATYPES, all_binary)


@dataclass(frozen=True)
class _Tensor:
    """data: the bytes of a binary tensor, or a list of JSON."""

    datatype: str
    shape: tuple[int, ...]
    data: Any


def _tensor(given: Mapping[str, Any], name: str, rest: memoryview) -> tuple[_Tensor, memoryview]:
    """An input, and the bytes after its own."""
    shape = _of(given.get("shape"), list, f"{name}'s shape")
    if len(shape) > 8 or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 31 for n in shape):
        raise RequestInvalid(f"has the shape {shown(shape)}", "give whole numbers", name)
    datatype = _of(given.get("datatype"), str, f"{name}'s datatype")
    size = _of(given.get("parameters", {}), dict, "parameters").get("binary_data_size")
    if size is None:
        return _Tensor(datatype, tuple(shape), _of(given.get("data"), list, f"{name}'s data")), rest
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
        raise RequestInvalid(f"has binary_data_size {shown(size)}, {len(rest)} bytes are there", "send them all", name)
    return _Tensor(datatype, tuple(shape), rest[:size]), rest[size:]


def _bytes(tensor: _Tensor, name: str) -> list[bytes]:
    """The elements of a tensor of BYTES."""
    if tensor.datatype != "BYTES":
        raise RequestInvalid(f"is {shown(tensor.datatype)}, BYTES was expected", "send it as BYTES", name)
    if isinstance(tensor.data, list):
        found = []
        for element in _flat(tensor.data):
            found.append(_of(element, str, f"an element of {name}").encode("utf-8", "replace"))
    else:
        found, rest = [], tensor.data
        while len(rest):
            length = struct.unpack("<I", rest[:4])[0] if len(rest) >= 4 else 1 << 40
            if length > len(rest) - 4:
                raise RequestInvalid("is cut short", "give each element's length in 4 bytes, then its bytes", name)
            found.append(bytes(rest[4 : 4 + length]))
            rest = rest[4 + length :]
    if len(found) != math.prod(tensor.shape):
        raise RequestInvalid(
            f"has {len(found)} elements, its shape {list(tensor.shape)} says {math.prod(tensor.shape)}",
            "send as many",
            name,
        )
    return found


def _pictures(tensor: _Tensor, name: str, max_pixels: int) -> list[bytes | np.ndarray]:
    if tensor.datatype == "BYTES" and name == "PICTURE":
        files = _bytes(tensor, name)
        if isinstance(tensor.data, list):
            try:
                return [base64.b64decode(file, validate=True) for file in files]
            except binascii.Error as error:
                raise RequestInvalid(
                    f"is no base64 ({error})", "send files in base64, or as binary tensors", name
                ) from None
        return list(files)
    shape = tensor.shape if len(tensor.shape) == 4 else (1, *tensor.shape)
    if tensor.datatype != "UINT8" or len(shape) != 4 or shape[3] != 3 or not all(shape):
        raise RequestInvalid(
            f"is {shown(tensor.datatype)} {list(tensor.shape)}",
            "send files as BYTES [B] in PICTURE, or pixels as UINT8 [B, H, W, 3]",
            name,
        )
    if shape[1] * shape[2] > max_pixels:
        raise RequestInvalid(
            f"has {shape[1]}x{shape[2]} pixels, at most {max_pixels / 1e6:g} million are accepted",
            "shrink it",
            name,
        )
    count = math.prod(shape)
    try:
        pixels = (
            np.array(list(_flat(tensor.data)), np.uint8)
            if isinstance(tensor.data, list)
            else np.frombuffer(tensor.data, np.uint8)
        )
    except (ValueError, TypeError, OverflowError):
        raise RequestInvalid("holds values that are no bytes", "give whole numbers of 0 to 255", name) from None
    if pixels.size != count:
        raise RequestInvalid(f"has {pixels.size} values, its shape says {count}", "send as many", name)
    return list(pixels.reshape(shape))


def _flat(data: list[Any], depth: int = 8) -> Iterator[Any]:
    """Values of nested lists; the protocol allows both."""
    for element in data:
        if isinstance(element, list) and depth:
            yield from _flat(element, depth - 1)
        else:
            yield element


def _lengths(texts: list[str]) -> bytes:
    coded = [text.encode("utf-8", "replace") for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in coded)


def _decoded(text: bytes, name: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise RequestInvalid("holds bytes that are no UTF-8", "send UTF-8", name) from None


def _of(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        expected = {"dict": "an object", "list": "a list", "str": "a text"}[kind.__name__]
        raise RequestInvalid(f"{what} is {shown(value)}, {expected} was expected", "send the JSON of the protocol")
    return value
