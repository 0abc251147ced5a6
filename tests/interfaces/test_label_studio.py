"""The backend for Label Studio: its REST over HTTP, its masks by label-studio-sdk."""

from __future__ import annotations

import base64
import json
import socket
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
        ("/predict", {"label_config": CONFIG, "tasks": [{"data": {"image": "http://["}}]}, 400, "no valid address"),
        ("/predict", {"label_config": CONFIG, "tasks": [{"data": {"image": "/data/local-files/?d=%00"}}]}, 400, "null byte"),
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


class Studio(BaseHTTPRequestHandler):
    """Holds one picture as Label Studio would: as an upload, and in a cloud to which the presigned address leads."""

    def do_GET(self) -> None:
        port, keyed = self.server.server_address[1], self.headers["Authorization"] == "Token secret"
        if keyed and self.path == "/tasks/5/presign/?fileuri=s3://bucket/cat.jpg":
            self.send_response(303)
            self.send_header("Location", f"http://localhost:{port}/signed/cat.jpg")
            self.end_headers()
            return
        signed = self.path == "/signed/cat.jpg" and self.headers["Authorization"] is None  # the cloud gets no key
        allowed = signed or (keyed and self.path.startswith("/storage-data/uploaded/?filepath=upload/7/cat.jpg"))
        self.send_response(200 if allowed else 403)
        self.end_headers()
        self.wfile.write((PICTURES / "cat.jpg").read_bytes() if allowed else b"")


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "secret")
    with ThreadingHTTPServer(("127.0.0.1", 0), Studio) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "address",
    ["/data/upload/7/cat.jpg", "upload/7/cat.jpg", "/storage-data/uploaded/?filepath=upload/7/cat.jpg", "s3://bucket/cat.jpg"],
)  # fmt: skip
def test_uploads_and_cloud_storage_are_fetched_with_the_key(
    studio: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK is the real one."""
    fetch = local_pictures(studio=studio)
    assert fetch({"id": 5}, address) == (PICTURES / "cat.jpg").read_bytes()
    assert fetch({"id": 5}, f"{studio}/storage-data/uploaded/?filepath=upload/7/cat.jpg")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "wrong")
    with pytest.raises(PictureMissing, match="LABEL_STUDIO_API_KEY"):
        fetch({"id": 5}, address)


@pytest.mark.parametrize("task", [{}, {"id": None}, {"id": "../5"}])
def test_cloud_storage_needs_the_tasks_number(studio: str, task: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="has no number"):
        local_pictures(studio=studio)(task, "s3://bucket/cat.jpg")


@pytest.mark.parametrize("rooted", [True, False])
@pytest.mark.parametrize(
    "form",
    [
        "/data/x?a=1?d={}",
        "/data/x#?d={}",
        "/data/x?d={}",
        "/data/upload/x?d={}",
        "/data/upload/x#?d={}",
        "/data/upload/x%3Fd={}",
        "/data/local-files/?a=1?d={}",
        "/data/local-files/#?d={}",
        "/data/local-files/?d={}",
        "/data/local-files/?d=..{}",
        "/data/upload/../{}",
        "/data/upload/%2e%2e/{}",
        "/data/upload/%2E./{}",
        "/storage-data/uploaded/?filepath=..{}",
        "upload/7/..{}",
        "s3://bucket/..{}",
        "file://{}",
        "{}",
    ],
)
def test_no_address_reaches_a_file_outside_the_root(studio: str, form: str, rooted: bool, tmp_path: Path) -> None:
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(b"secret")
    fetch = local_pictures(PICTURES if rooted else None, studio)
    with pytest.raises(UsageError):
        fetch({"id": 5}, form.format(outside))


def test_a_second_name_in_a_local_files_address_is_part_of_the_first(studio: str) -> None:
    fetched = local_pictures(PICTURES, studio)({}, "/data/local-files/?d=cat.jpg?d=/etc/hostname")
    assert fetched == PICTURES / "cat.jpg?d=" / "etc" / "hostname"


def test_an_upload_of_a_label_studio_on_this_machine_is_not_read_from_its_folder(
    studio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folder = tmp_path / "label-studio" / "media" / "upload" / "7"
    folder.mkdir(parents=True)
    (folder / "cat.jpg").write_bytes(b"not what the server gives")
    assert local_pictures(studio=studio)({}, "/data/upload/7/cat.jpg") == (PICTURES / "cat.jpg").read_bytes()


def test_a_file_that_the_sdk_did_not_download_is_refused(studio: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a check of addresses to miss one, or the SDK to learn another form."""
    from label_studio_sdk._extensions.label_studio_tools.core.utils import io

    monkeypatch.setattr(io, "get_local_path", lambda *_, **__: str(PICTURES / "cat.jpg"))
    with pytest.raises(UsageError, match="a file of this machine"):
        local_pictures(studio=studio)({}, "/data/upload/7/cat.jpg")


@pytest.mark.parametrize("studio_address", ["localhost:8080", "studio", "", "ftp://studio", "http://", "http://["])
def test_what_is_no_address_of_a_label_studio_is_one_line(
    studio_address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--engine", str(BUNDLE), "--studio", studio_address]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "http://localhost:8080" in said


def test_a_port_that_cannot_be_listened_on_is_one_line(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    for port in ("99999", "-1", address.rpartition(":")[2]):
        assert main(["--engine", str(BUNDLE), f"--port={port}"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f":{port} (" in said


def test_what_nobody_foresaw_is_answered_in_one_line_and_logged(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(task: dict[str, Any], address: str) -> Any:
        raise KeyError("a\nfault")

    body = {"label_config": CONFIG, "tasks": [{"data": {"image": LOCAL}}]}
    status, answer = Backend(session, broken).answer("POST", "/predict", body)
    assert status == 500
    assert "KeyError" in answer["error"]
    assert "\n" not in answer["error"]
    assert [(record.name, record.exc_info is not None) for record in caplog.records] == [("fusioner_rt", True)]


def test_deeply_nested_json_is_refused(address: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{address}/predict", b"[" * 200_000, timeout=60)
    assert caught.value.code == 400
    assert "no JSON" in json.load(caught.value)["error"]


def test_a_silent_connection_is_closed(session: Session) -> None:
    with server(Backend(session), port=0) as running:
        assert running.RequestHandlerClass.timeout == 30  # type: ignore[attr-defined]
        running.RequestHandlerClass.timeout = 0.2  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        with socket.create_connection(("127.0.0.1", running.server_port), timeout=20) as silent:
            silent.sendall(b"POST /predict HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
            assert silent.recv(1) == b""
        running.shutdown()
        thread.join()


def test_labels_are_words_and_predicted_values_their_synonyms() -> None:
    assert read_config(CONFIG).words == {"Katze": ["cat", "kitten"], "sofa": ["sofa"]}


def test_a_missing_bundle_is_one_line_and_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--engine", str(tmp_path)]) == 30
    assert capsys.readouterr().err.count("\n") == 1
