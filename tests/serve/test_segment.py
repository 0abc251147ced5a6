"""The same picture and words give the same masks by every door of the service as by `Session`."""

from __future__ import annotations

import base64
import gzip
import io
import json
import sys
import time
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fusioner_rt import Segmentation, Session
from fusioner_rt.results.colours import word_colours
from fusioner_rt.serve.answer import Answer, encode, media_type
from fusioner_rt.serve.request import SegmentRequest

WORDS = "cat, red sofa|couch, lamp"
OPTIONS: dict[str, Any] = {"threshold": 0.1}


@pytest.fixture(scope="module")
def truth(session: Session, picture: np.ndarray) -> Any:
    return session.segment(picture, WORDS, **OPTIONS)


def form(parts: dict[str, Any], boundary: str = "line") -> tuple[bytes, str]:
    """multipart/form-data. parts: texts, lists of texts, or a file's bytes."""
    body = b""
    for name, given in parts.items():
        for value in given if isinstance(given, list) else [given]:
            file = '; filename="a.png"\r\nContent-Type: image/png' if isinstance(value, bytes) else ""
            content = value if isinstance(value, bytes) else str(value).encode()
            body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
            body += content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def labels_of(reply: Any) -> np.ndarray:
    assert reply.status == 200, reply.body
    return np.asarray(Image.open(io.BytesIO(reply.body)))


def mask_of(entry: dict[str, Any]) -> np.ndarray:
    """COCO's compressed run lengths, by the reference implementation."""
    from pycocotools import mask

    return mask.decode({"size": entry["mask"]["size"], "counts": entry["mask"]["counts"].encode()}).astype(bool)


def test_three_forms_of_a_body_give_the_labels_of_a_session(service: Any, png: bytes, truth: Any) -> None:
    raw = service.post(f"/v1/segment?threshold=0.1&words={'cat,red%20sofa|couch,lamp'}", png, Accept="image/png")
    many = service.post(
        "/v1/segment", *form({"picture": png, "words": WORDS.split(", "), "threshold": 0.1}), Accept="image/png"
    )
    fields = {"picture": base64.b64encode(png).decode(), "words": WORDS, "threshold": 0.1}
    one = service.post("/v1/segment", json.dumps(fields), "application/json", Accept="image/png")
    packed = service.post(
        "/v1/segment",
        gzip.compress(json.dumps(fields).encode()),
        "application/json",
        Accept="image/png",
        Content_Encoding="gzip",
    )
    for reply in (raw, many, one, packed):
        assert np.array_equal(labels_of(reply), truth.labels)
        assert reply.headers["content-type"] == "image/png"


def test_the_json_answer_is_the_result(service: Any, png: bytes, truth: Any) -> None:
    told = service.post(
        "/v1/segment", *form({"picture": png, "words": WORDS, "threshold": 0.1, "instances": "true"})
    ).json
    assert [word["word"] for word in told["words"]] == list(truth.words)
    assert [word["colour"] for word in told["words"]] == word_colours(truth.words).tolist()
    assert told["size"] == list(truth.labels.shape)
    assert told["model"] == "tiny"
    assert told["handle"] is None
    for word, entry in zip(truth.words, told["words"], strict=True):
        assert entry["share"] == pytest.approx(truth.shares[truth.words.index(word)], abs=1e-6)
        assert entry["score"] == pytest.approx(truth.scores[truth.words.index(word)], abs=1e-6)
        assert entry["area"] == truth[word].sum()
        assert (entry["box"] is None) == (entry["area"] == 0)
        if entry["area"]:
            assert np.array_equal(mask_of(entry), truth[word])
    assert any(entry["area"] for entry in told["words"])
    assert len(told["instances"]) == len(truth.instances())
    assert all(
        np.array_equal(mask_of(got), own.mask) for got, own in zip(told["instances"], truth.instances(), strict=True)
    )
    assert told["timing"]["total"] > 0
    assert {"decode", "queue", "fusion"} <= told["timing"].keys()


def test_polygons_are_those_of_the_result(service: Any, png: bytes, truth: Any) -> None:
    told = service.post(
        "/v1/segment", *form({"picture": png, "words": WORDS, "threshold": 0.1, "masks": "polygons"})
    ).json
    for entry in told["words"]:
        own = truth.polygons()[entry["word"]]
        assert [np.asarray(ring["exterior"]).tolist() for ring in entry.get("polygons", [])] == [
            p.exterior.tolist() for p in own
        ]


@pytest.mark.parametrize(
    ("package", "field"), [("shapely", "masks=polygons"), ("scipy", "instances=true")], ids=["polygons", "instances"]
)
def test_what_needs_a_package_that_is_missing_is_refused_before_the_model_runs(
    service: Any, png: bytes, monkeypatch: pytest.MonkeyPatch, package: str, field: str
) -> None:
    for name in {package, *(name for name in sys.modules if name.split(".")[0] == package)}:
        monkeypatch.setitem(sys.modules, name, None)
    before = service.metric("fusioner_batch_size_count")
    reply = service.post(f"/v1/segment?words=cat&{field}", png)
    assert (reply.status, reply.json["type"]) == (501, "urn:fusioner-rt:PackageMissing")
    assert service.metric("fusioner_batch_size_count") == before
    labels_of(service.post(f"/v1/segment?words=cat&{field}", png, Accept="image/png"))  # which has neither


def test_the_arrays_are_those_of_the_result(service: Any, png: bytes, session: Session, picture: np.ndarray) -> None:
    reply = service.post(
        "/v1/segment?words=cat,dog&threshold=0&size=40x50", png, Accept="application/x-npz;q=0.9, text/html"
    )
    assert reply.headers["content-type"] == "application/x-npz"
    own = session.segment(picture, "cat, dog", threshold=0, size=(40, 50))
    arrays = np.load(io.BytesIO(reply.body), allow_pickle=False)
    assert np.array_equal(arrays["labels"], own.labels)
    assert np.array_equal(arrays["confidence"], own.confidence.astype(np.float16))
    told = json.loads(zipfile.ZipFile(io.BytesIO(reply.body)).read("answer.json"))
    assert told["size"] == [40, 50]
    assert not any("mask" in word for word in told["words"])


def test_the_overlay_is_the_results(service: Any, png: bytes, truth: Any) -> None:
    reply = service.post("/v1/segment", *form({"picture": png, "words": WORDS, "threshold": 0.1}), Accept="image/jpeg")
    assert Image.open(io.BytesIO(reply.body)).size == truth.overlay().size


@pytest.mark.parametrize(
    ("accept", "form_of_it"),
    [
        ("", "application/json"), ("*/*", "application/json"), ("text/html, */*;q=0.1", "application/json"),
        ("image/*", "image/png"), ("image/jpeg, image/png;q=0.9", "image/jpeg"), ("image/png;q=0.2, image/jpeg;q=0.7", "image/jpeg"),
        ("application/x-npz", "application/x-npz"), ("application/json;q=0, image/png", "image/png"),
    ],
)  # fmt: skip
def test_the_answers_form_is_what_the_client_likes_best(service: Any, png: bytes, accept: str, form_of_it: str) -> None:
    reply = service.post("/v1/segment?words=cat", png, Accept=accept)
    assert reply.headers["content-type"] == form_of_it


def test_masks_of_many_words_are_not_in_memory_at_once() -> None:
    words = tuple(f"w{number}" for number in range(60))
    labels = np.random.default_rng(0).integers(0, 61, (300, 400)).astype(np.uint16)  # each word is everywhere
    result = Segmentation(
        words, labels, np.ones(labels.shape, np.float32), np.zeros((300, 400, 3), np.uint8), {}, 0.5, "joint"
    )
    told = Answer("1", "m", SegmentRequest(words), result, {})
    tracemalloc.start()
    try:
        content = encode("application/json", told)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 4 * len(content) + 20 * labels.size < 60 * labels.size


def test_a_long_header_of_forms_holds_up_nobody() -> None:
    start = time.process_time()
    for _ in range(10):
        assert media_type("image/png, " + "text/html," * 6000) == "image/png"
    assert time.process_time() - start < 0.05


def test_a_handle_gives_other_words_the_same_masks(
    service: Any, png: bytes, session: Session, picture: np.ndarray
) -> None:
    handle = service.post("/v1/encode", png).json["handle"]
    kept = service.post("/v1/segment?words=cat&keep=true", png).json["handle"]
    assert handle != kept
    own = session.segment(picture, WORDS, **OPTIONS)
    for one in (handle, kept):
        fields = json.dumps({"handle": one, "words": WORDS, "threshold": 0.1})
        reply = service.post("/v1/segment", fields, "application/json", Accept="image/png")
        assert np.array_equal(labels_of(reply), own.labels)
    timing = service.post_json("/v1/segment", handle=handle, words="dog").json["timing"]
    assert timing["image"] == timing["preprocess"] == timing["decode"] == 0
    assert service.ask("DELETE", f"/v1/encoded/{handle}").status == 204
    gone = service.post_json("/v1/segment", handle=handle, words="cat")
    assert (gone.status, gone.json["type"]) == (404, "urn:fusioner-rt:HandleGone")
    assert service.ask("DELETE", f"/v1/encoded/{handle}").status == 404
    assert service.post_json("/v1/segment", handle=kept, words="cat").status == 200


def test_with_a_handle_in_the_query_there_need_be_no_body(service: Any, png: bytes) -> None:
    handle = service.post("/v1/encode", png).json["handle"]
    reply = service.ask("POST", f"/v1/segment?handle={handle}&words=cat")
    assert reply.json["words"] == service.post("/v1/segment?words=cat", png).json["words"]
    assert "holds no picture" in service.ask("POST", "/v1/segment?words=cat").json["detail"]


def test_options_reach_the_session(service: Any, png: bytes, session: Session, picture: np.ndarray) -> None:
    own = session.segment(
        picture, ["cat", "dog"], size=(33, 44), threshold={"cat": 0.3}, mode="independent", background="common"
    )
    fields = {
        "words": ["cat", "dog"],
        "size": [33, 44],
        "threshold": {"cat": 0.3},
        "mode": "independent",
        "background": "common",
    }
    reply = service.post(
        "/v1/segment",
        json.dumps({**fields, "picture": base64.b64encode(png).decode()}),
        "application/json",
        Accept="image/png",
    )
    assert np.array_equal(labels_of(reply), own.labels)
    texts = {**fields, "words": '["cat", "dog"]', "size": "33x44", "threshold": '{"cat": 0.3}'}
    assert np.array_equal(
        labels_of(service.post("/v1/segment", *form({"picture": png, **texts}), Accept="image/png")), own.labels
    )


def test_two_models_are_asked_by_name(start: Any, tiny_bundle: Any, tiny_bundle_fp16: Any, png: bytes) -> None:
    running = start(engines={"a": str(tiny_bundle), "b": str(tiny_bundle_fp16)})
    assert [model["name"] for model in running.get("/v1/models").json["models"]] == ["a", "b"]
    assert running.post("/v1/segment?words=cat", png).json["model"] == "a"
    assert running.post("/v1/segment?words=cat&model=b", png).json["model"] == "b"
    assert running.post("/v1/segment?words=cat&model=c", png).status == 404
    handle = running.post("/v1/encode?model=b", png).json["handle"]
    assert running.post_json("/v1/segment", words="cat", handle=handle).json["model"] == "b"
    assert running.post_json("/v1/segment", words="cat", handle=handle, model="a").status == 400
