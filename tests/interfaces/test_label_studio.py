"""The backend for Label Studio: its REST over HTTP, its masks by label-studio-sdk."""

from __future__ import annotations

import base64
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from label_studio_sdk.converter import brush
from label_studio_sdk.label_interface import LabelInterface
from made_results import results

from fusioner_rt import Segmentation, Session
from fusioner_rt.errors import PictureMissing, UsageError
from fusioner_rt.interfaces.label_studio import Backend, brush_rle, local_pictures, main, read_config, server

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "models" / "demo" / "bundle"
PICTURES = ROOT / "docs" / "pictures"
CONFIG = """<View><Image name="photo" value="$image"/><BrushLabels name="tag" toName="photo">
  <Label value="Katze" predicted_values="cat, kitten"/><Label value="sofa"/></BrushLabels></View>"""
LOCAL = "/data/local-files/?d=cat.jpg"


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session(BUNDLE) as session:
        yield session


@pytest.fixture(scope="module")
def address(session: Session) -> Iterator[str]:
    with server(Backend(session, local_pictures(PICTURES)), port=0) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def asked(address: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as answer:
        return answer.code, json.load(answer)


@settings(max_examples=40, deadline=None)
@given(results())
def test_run_lengths_are_the_sdks_and_decode_to_the_mask(result: Segmentation) -> None:
    for mask in result.masks:
        lengths = brush_rle(mask)
        assert lengths == brush.mask2rle(mask.astype(np.uint8) * 255)
        assert np.array_equal(brush.decode_rle(lengths).reshape(*mask.shape, 4), mask[..., None].repeat(4, 2) * 255)


def test_runs_longer_than_the_widest_length_are_split() -> None:
    mask = np.zeros((301, 257), bool)
    mask[100:] = True
    decoded = brush.decode_rle(brush_rle(mask)).reshape(*mask.shape, 4)
    assert np.array_equal(decoded[..., 3] > 0, mask)


def test_a_prediction_over_http_is_valid_and_holds_the_results_masks(address: str, session: Session) -> None:
    assert asked(f"{address}/health")[1]["status"] == "UP"
    status, answer = asked(f"{address}/setup", {"schema": CONFIG, "project": "1.2"})
    assert (status, list(answer)) == (200, ["model_version"])

    tasks = [{"id": 5, "data": {"image": LOCAL}}, {"id": 6, "data": {"image": data_address("coffee.jpg")}}]
    status, answer = asked(f"{address}/predict", {"tasks": tasks, "label_config": CONFIG, "project": "1.2"})
    assert status == 200
    for name, prediction in zip(("cat.jpg", "coffee.jpg"), answer["results"], strict=True):
        expected = session.segment(PICTURES / name, [["cat", "kitten"], "sofa"])
        assert LabelInterface(CONFIG).validate_prediction(prediction, return_errors=True) == []
        decoded = brush.decode_from_annotation(
            "tag", [{**one, "rle": one["value"]["rle"], **one["value"]} for one in prediction["result"]]
        )
        words = {"tag-Katze-0": "cat", "tag-sofa-0": "sofa"}
        assert set(decoded) == {key for key, word in words.items() if expected[word].any()}
        for key, mask in decoded.items():
            assert np.array_equal(mask > 0, expected[words[key]])


def data_address(name: str) -> str:
    return "data:image/jpeg;base64," + base64.b64encode((PICTURES / name).read_bytes()).decode()


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/setup", {"schema": "<View/>"}, 400, "no BrushLabels"),
        ("/setup", {"schema": "cat"}, 400, "is no XML"),
        ("/predict", {"label_config": CONFIG, "tasks": [{"data": {}}]}, 400, "no 'image'"),
        ("/predict", {"label_config": CONFIG, "tasks": [{"data": {"image": "/data/local-files/?d=../words.md"}}]}, 400, "lies outside"),
        ("/predict", {"label_config": CONFIG, "tasks": [{"data": {"image": "http://example.org/a.jpg"}}]}, 400, "--studio"),
        ("/predict", {"label_config": CONFIG, "tasks": 3}, 400, "tasks are a int"),
        ("/train", {}, 404, "none of /health"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_answered_with_what_was_wrong(
    address: str, path: str, body: Any, status: int, said: str
) -> None:
    code, answer = asked(address + path, body)
    assert (code, said in answer["error"]) == (status, True), answer


def test_only_the_label_studio_that_was_named_is_asked_for_pictures() -> None:
    fetch = local_pictures(studio="http://127.0.0.1:1")
    with pytest.raises(UsageError, match="cannot be reached"):
        fetch({}, "http://127.0.0.1:2/a.jpg")
    with pytest.raises(UsageError, match="cannot be reached"):
        fetch({}, "/data/local-files/?d=etc/passwd")  # no root was given


def test_uploads_are_fetched_from_label_studio_with_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that holds one picture stands where Label Studio would; the SDK is the real one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers["Authorization"] == "Token secret" and "filepath=upload/7/cat.jpg" in self.path
            self.send_response(200 if allowed else 403)
            self.end_headers()
            self.wfile.write((PICTURES / "cat.jpg").read_bytes() if allowed else b"")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as studio:
        threading.Thread(target=studio.serve_forever).start()
        fetch = local_pictures(studio=f"http://127.0.0.1:{studio.server_port}")
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", "wrong")
        with pytest.raises(PictureMissing, match="LABEL_STUDIO_API_KEY"):
            fetch({}, "/data/upload/7/cat.jpg")
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", "secret")
        fetched = fetch({}, "/data/upload/7/cat.jpg")
        studio.shutdown()
    assert isinstance(fetched, Path)
    assert fetched.read_bytes() == (PICTURES / "cat.jpg").read_bytes()


def test_labels_are_words_and_predicted_values_their_synonyms() -> None:
    assert read_config(CONFIG).words == {"Katze": ["cat", "kitten"], "sofa": ["sofa"]}


def test_a_missing_bundle_is_one_line_and_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bundle", str(tmp_path)]) == 30
    assert capsys.readouterr().err.count("\n") == 1
