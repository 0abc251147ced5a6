"""The Open Inference Protocol, asked by Triton's own client."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tritonclient import http
from tritonclient.utils import InferenceServerException

from fusioner_rt import Session


@pytest.fixture(scope="module")
def client(service: Any) -> Iterator[Any]:
    opened = http.InferenceServerClient(f"{service.host}:{service.port}", concurrency=4)
    yield opened
    opened.close()


def files(*pictures: bytes, binary: bool = True) -> Any:
    tensor = http.InferInput("PICTURE", [len(pictures)], "BYTES")
    given = pictures if binary else [base64.b64encode(one) for one in pictures]
    tensor.set_data_from_numpy(np.array(given, object), binary_data=binary)
    return tensor


def pixels(*pictures: np.ndarray, binary: bool = True, name: str = "PICTURE") -> Any:
    batch = np.stack(pictures)
    tensor = http.InferInput(name, batch.shape, "UINT8")
    tensor.set_data_from_numpy(batch, binary_data=binary)
    return tensor


def words(*given: str, binary: bool = True) -> Any:
    tensor = http.InferInput("WORDS", [len(given)], "BYTES")
    tensor.set_data_from_numpy(np.array([word.encode() for word in given], object), binary_data=binary)
    return tensor


def test_the_server_and_its_model_are_there(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "fusioner-rt"
    told = client.get_model_metadata("tiny")
    assert told["name"] == "tiny"
    assert [tensor["name"] for tensor in told["outputs"]] == ["LABELS", "CONFIDENCE", "SHARES", "WORDS"]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("as_files", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_labels_are_those_of_a_session(
    client: Any,
    session: Session,
    picture: np.ndarray,
    png: bytes,
    binary: bool,
    as_files: bool,
    compression: str | None,
) -> None:
    own = session.segment(picture, ["cat", "red sofa"], threshold=0.2)
    given = files(png, binary=binary) if as_files else pixels(picture, binary=binary)
    names = ["LABELS", "CONFIDENCE", "SHARES", "WORDS"]
    outputs = [http.InferRequestedOutput(name, binary_data=binary) for name in names]
    reply = client.infer(
        "tiny", [given, words("cat", "red sofa", binary=binary)], outputs=outputs, parameters={"threshold": 0.2},
        request_compression_algorithm=compression, response_compression_algorithm=compression, request_id="7",
    )  # fmt: skip
    assert np.array_equal(reply.as_numpy("LABELS"), own.labels[None])
    assert reply.as_numpy("LABELS").dtype == np.uint16
    assert np.array_equal(reply.as_numpy("CONFIDENCE"), own.confidence[None])
    assert np.array_equal(reply.as_numpy("SHARES"), own.shares[None].astype(np.float32))
    assert [str(w, "utf-8") if isinstance(w, bytes) else w for w in reply.as_numpy("WORDS")] == ["cat", "red sofa"]
    assert reply.get_response()["id"] == "7"
    assert reply.get_response()["model_name"] == "tiny"


def test_a_batch_is_answered_in_its_order(client: Any, session: Session, picture: np.ndarray) -> None:
    pictures = [np.roll(picture, shift, 0) for shift in range(5)]
    reply = client.infer(
        "tiny", [pixels(*pictures)], parameters={"words": "cat, dog|hound", "threshold": 0.1, "size": "30x40"}
    )
    own = [session.segment(one, "cat, dog|hound", threshold=0.1, size=(30, 40)).labels for one in pictures]
    assert np.array_equal(reply.as_numpy("LABELS"), np.stack(own))


def test_only_the_outputs_that_are_asked_for_are_answered(client: Any, picture: np.ndarray) -> None:
    reply = client.infer("tiny", [pixels(picture), words("cat")], outputs=[http.InferRequestedOutput("SHARES")])
    assert [output["name"] for output in reply.get_response()["outputs"]] == ["SHARES"]


@pytest.mark.parametrize(
    ("inputs", "parameters", "said"),
    [
        (lambda picture, png: [words("cat")], {}, "no picture"),
        (lambda picture, png: [pixels(picture)], {}, "no words"),
        (lambda picture, png: [pixels(picture), words("cat")], {"treshold": 1}, "did you mean threshold"),
        (
            lambda picture, png: [pixels(picture), words("cat")],
            {"words": "dog"},
            "given as an input and as a parameter",
        ),
        (lambda picture, png: [files(b"no picture"), words("cat")], {}, "picture"),
        (lambda picture, png: [files(png, b""), words("cat")], {}, "picture"),
        (lambda picture, png: [pixels(picture[:, :, :2]), words("cat")], {}, "UINT8 [B, H, W, 3]"),
        (lambda picture, png: [pixels(*[picture[:8, :8]] * 65), words("cat")], {}, "1 to 64"),
    ],
)
def test_a_wrong_request_is_an_error_of_the_client(
    client: Any, picture: np.ndarray, png: bytes, inputs: Any, parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        client.infer("tiny", inputs(picture, png), parameters=parameters)
    assert said in refused.value.message()
    assert refused.value.status().startswith("4")


def test_sizes_that_differ_need_one_size(client: Any, session: Session, picture: np.ndarray, png: bytes) -> None:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture[:40]).save(stream, "PNG")
    with pytest.raises(InferenceServerException, match="different sizes"):
        client.infer("tiny", [files(png, stream.getvalue()), words("cat")])
    reply = client.infer("tiny", [files(png, stream.getvalue()), words("cat")], parameters={"size": "20x20"})
    assert reply.as_numpy("LABELS").shape == (2, 20, 20)


def row(name: str, *given: str, times: int = 1) -> Any:
    tensor = http.InferInput(name, [times, len(given)], "BYTES")
    tensor.set_data_from_numpy(np.array([[word.encode() for word in given]] * times, object))
    return tensor


def test_rows_and_options_are_taken_as_inputs_as_triton_has_them(
    client: Any, session: Session, picture: np.ndarray, png: bytes
) -> None:
    """Every input has a row for each picture, so that one client's code asks either server."""
    own = session.segment(picture, ["cat", "dog|hound"], background=["sky", "wall"], threshold=0.1, size=(30, 40))
    options = {
        "BACKGROUND": ["sky", "wall"],
        "THRESHOLD": ["0.1"],
        "MODE": ["joint"],
        "WINDOW": ["whole"],
        "SIZE": ["30x40"],
    }
    rows = [row(name, *given, times=2) for name, given in {"WORDS": ["cat, dog|hound"], **options}.items()]
    file = http.InferInput("PICTURE", [2, 1], "BYTES")
    file.set_data_from_numpy(np.array([[png], [png]], object))
    raw = http.InferInput("PIXELS", [2, *picture.shape], "UINT8")
    raw.set_data_from_numpy(np.stack([picture, picture]))
    for given in (file, raw):
        reply = client.infer("tiny", [given, *rows])
        assert np.array_equal(reply.as_numpy("LABELS"), np.stack([own.labels, own.labels]))
        assert reply.as_numpy("SHARES").shape == (2, 2)
        assert [[str(w, "utf-8") for w in words] for words in reply.as_numpy("WORDS")] == [["cat", "dog"]] * 2


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (lambda png: [files(png), row("WORDS", "cat"), row("MODE", "joint", "joint")], "MODE: has 2 elements"),
        (lambda png: [files(png), words("cat"), row("SIZE", "30")], "size: is '30'"),
        (
            lambda png: [files(png), pixels(np.zeros((4, 4, 3), np.uint8), name="PIXELS"), words("cat")],
            "two kinds of pictures",
        ),
        (lambda png: [files(png), words("cat"), row("COLOUR", "red")], "there is no input 'COLOUR'"),
    ],
)
def test_a_wrong_input_is_an_error_of_the_client(client: Any, png: bytes, inputs: Any, said: str) -> None:
    with pytest.raises(InferenceServerException) as refused:
        client.infer("tiny", inputs(png))
    assert said in refused.value.message()
    assert refused.value.status() == "400"


def test_words_that_differ_between_pictures_are_refused(client: Any, png: bytes) -> None:
    tensor = http.InferInput("WORDS", [2, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"cat"], [b"dog"]], object))
    with pytest.raises(InferenceServerException, match="differs between the pictures"):
        client.infer("tiny", [files(png, png), tensor])


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ({}, b"{"), ({}, b"[]"), ({}, b'{"inputs": 5}'), ({}, b'{"inputs": [5]}'), ({}, b'{"inputs": [{"name": "PICTURE"}]}'),
        ({}, b'{"inputs": [{"name": "X", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}'),
        ({}, b'{"inputs": [{"name": "PICTURE", "shape": [2], "datatype": "BYTES", "data": ["a"]}]}'),
        ({}, b'{"inputs": [{"name": "PICTURE", "shape": [-1], "datatype": "BYTES", "data": ["a"]}]}'),
        ({}, b'{"inputs": [{"name": "PICTURE", "shape": [1], "datatype": "FP32", "data": [1.5]}]}'),
        ({}, b'{"inputs": [{"name": "PICTURE", "shape": [1, 1, 3], "datatype": "UINT8", "data": [1, 2, 300]}]}'),
        ({}, b'{"inputs": [{"name": "PICTURE", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 99}}]}'),
        ({"Inference-Header-Content-Length": "9999"}, b"{}"), ({"Inference-Header-Content-Length": "x"}, b"{}"),
        ({"Inference-Header-Content-Length": "2"}, b"{}trailing"), ({"Inference-Header-Content-Length": "0" * 12 + "2" * 5000}, b"{}"),
    ],
)  # fmt: skip
def test_a_malformed_request_is_a_problem_with_the_protocols_error(
    service: Any, header: dict[str, str], body: bytes
) -> None:
    reply = service.ask("POST", "/v2/models/tiny/infer", body, **header)
    assert reply.status == 400, reply.body
    assert json.loads(reply.body)["error"] == json.loads(reply.body)["detail"]
