"""The models of `export/triton_repository.py` in a real Triton Inference Server, asked by its own clients."""

from __future__ import annotations

import io
import json
import queue
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented import blocks_of
from made_pictures import encoded, scene
from PIL import Image
from tritonclient import grpc, http
from tritonclient.utils import InferenceServerException

from benchmarks import triton_server
from benchmarks.service import Service
from fusioner_rt import Session
from fusioner_rt.results.segmentation import Segmentation
from fusioner_rt.words.cache import TextCache
from tests.triton.conftest import BUNDLE, ROOT
from tests.triton.server import Server, served

PICTURES = {path.stem: path.read_bytes() for path in sorted((ROOT / "docs/pictures").glob("*.jpg"))}
TOGETHER = 2e-6
"""What confidence may be off where other requests ran beside: twice what docs/cpu.md tells of a batch."""
OUTPUTS = ["LABELS", "CONFIDENCE", "SHARES", "WORDS"]
ASKED: list[dict[str, Any]] = [
    {"words": ["cat", "sofa"]},
    {"words": "cat, sofa|couch", "background": "common"},
    {"words": [["person", "man"], "rocket"], "background": ["wall", "flag"], "threshold": 0.3},
    {"words": "cat, sofa", "threshold": {"cat": 0.7}, "mode": "independent", "size": (120, 97)},
]


def texts(module: Any, name: str, rows: list[list[str]]) -> Any:
    tensor = module.InferInput(name, [len(rows), len(rows[0])], "BYTES")
    tensor.set_data_from_numpy(np.array([[one.encode() for one in row] for row in rows], object))
    return tensor


def inputs(module: Any, *files: bytes, name: str = "PICTURE", **asked: Any) -> list[Any]:
    """Tensors of a request, a row for every picture. asked: as `Session.segment` takes it."""
    picture = module.InferInput(name, [len(files), 1], "BYTES")
    picture.set_data_from_numpy(np.array([[file] for file in files], object))
    given = [picture]
    for option, value in asked.items():
        if option == "size":
            row = [f"{value[0]}x{value[1]}"]
        elif isinstance(value, list) and all(isinstance(one, str) for one in value):
            row = value
        else:
            row = [value if isinstance(value, str) else json.dumps(value)]
        given.append(texts(module, option.upper(), [row] * len(files)))
    return given


def same(answer: Any, own: list[Segmentation], off: float = 0.0) -> None:
    """Whether all outputs are a session's, bit for bit. off: what confidence may be off, where others ran beside (docs/cpu.md)."""
    assert np.array_equal(answer.as_numpy("LABELS"), np.stack([one.labels for one in own]))
    assert np.abs(answer.as_numpy("CONFIDENCE") - np.stack([one.confidence for one in own])).max() <= off
    assert np.array_equal(answer.as_numpy("SHARES"), np.stack([one.shares for one in own]).astype(np.float32))
    assert [[word.decode() for word in row] for row in answer.as_numpy("WORDS")] == [list(one.words) for one in own]
    assert [answer.as_numpy(name).dtype for name in ("LABELS", "CONFIDENCE")] == [np.uint16, np.float32]


def refused(ask: Callable[[], Any]) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as found:
        ask()
    return found.value


def test_the_models_are_ready_and_say_what_they_take(over_http: Any, over_grpc: Any, server: Server) -> None:
    for name in ("demo", "demo_stream", "demo_engines", "raw"):
        assert over_http.is_model_ready(name)
        assert over_grpc.is_model_ready(name)
    told = over_http.get_model_metadata("demo")
    assert [tensor["name"] for tensor in told["outputs"]] == OUTPUTS
    assert {tensor["name"]: tensor["shape"] for tensor in told["inputs"]}["PICTURE"] == [-1, 1]
    config = over_http.get_model_config("demo")
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 50_000
    assert config["response_cache"] == {"enable": True}
    assert "error" not in re.sub(r"(?i)--\S*error\S*", "", server.log.read_text().lower().split("started grpc")[0])


def test_the_warm_up_has_run_before_a_first_request(over_http: Any, server: Server, word_cache: Path) -> None:
    """Its word, which no test asks for, is in the cache of words, which was empty."""
    assert "zeppelin" in {one.word for one in TextCache(word_cache).words()}
    for name in ("demo", "raw"):
        statistics = over_http.get_inference_statistics(name)["model_stats"][0]
        assert statistics["inference_stats"]["fail"]["count"] == 0
    words = [line for line in server.log.read_text().splitlines() if "demo runs" in line]
    assert len(words) == 1
    assert "onnxruntime-cpu" in words[0]


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("picture", sorted(PICTURES))
def test_labels_are_a_sessions_by_http_and_grpc(
    over_http: Any, over_grpc: Any, session: Session, asked: dict[str, Any], picture: str
) -> None:
    own = [session.segment(io.BytesIO(PICTURES[picture]), **asked)]
    same(over_http.infer("demo", inputs(http, PICTURES[picture], **asked)), own)
    same(over_grpc.infer("demo", inputs(grpc, PICTURES[picture], **asked)), own)


def test_rows_of_a_request_are_pictures(over_http: Any, session: Session) -> None:
    files = list(PICTURES.values())
    asked: dict[str, Any] = {"words": "cat, person", "size": (80, 60)}
    own = session.segment([io.BytesIO(file) for file in files], **asked)
    same(over_http.infer("demo", inputs(http, *files, **asked)), own)
    error = refused(lambda: over_http.infer("demo", inputs(http, *files, words="cat, person")))
    assert "the pictures have different sizes; give the input SIZE" in error.message()
    shares = over_http.infer(
        "demo", inputs(http, *files, words="cat, dog"), outputs=[http.InferRequestedOutput("SHARES")]
    ).as_numpy("SHARES")
    assert shares.shape == (3, 2)
    rows = [*inputs(http, *files[:2]), texts(http, "WORDS", [["cat"], ["dog"]])]
    assert "differs between the pictures of one request" in refused(lambda: over_http.infer("demo", rows)).message()


def test_requests_that_wait_run_together_and_one_that_is_wrong_fails_alone(over_http: Any, session: Session) -> None:
    """Three kinds of words, pictures of three sizes, among them a file that is no picture, and words that are none."""
    kinds = ["cat, dog", "person, rocket, sky", "cup|mug, table"]
    jobs = [(name, words) for name in PICTURES for words in kinds]
    before = over_http.get_inference_statistics("demo")["model_stats"][0]

    def ask(file: bytes, words: str) -> Any:
        return over_http.async_infer("demo", inputs(http, file, words=words))

    waiting = [ask(PICTURES[name], words) for name, words in jobs]
    broken = [ask(PICTURES["cat"][: 100 + n], "cat") for n in range(2)]
    wordless = ask(PICTURES["cat"], "cat, photo.jpg")
    for (name, words), one in zip(jobs, waiting, strict=True):
        same(one.get_result(), [session.segment(io.BytesIO(PICTURES[name]), words)], TOGETHER)
    for one in broken:
        error = refused(one.get_result)
        assert error.status() == "400"
        assert error.message().startswith("PictureUnreadable: PICTURE: ")
    error = refused(wordless.get_result)
    assert error.status() == "400"
    assert error.message().startswith("WordsInvalid: ")
    after = over_http.get_inference_statistics("demo")["model_stats"][0]
    ran, executions = (after[key] - before[key] for key in ("inference_count", "execution_count"))
    assert ran == len(jobs) + 3
    assert executions < ran


@pytest.mark.parametrize(
    ("given", "parameters", "said"),
    [
        (lambda: inputs(http, b"", words="cat"), {}, "PictureUnreadable: PICTURE: is empty"),
        (lambda: inputs(http, PICTURES["cat"], words=""), {}, "WordsInvalid: "),
        (lambda: inputs(http, PICTURES["cat"], words="cat", threshold="2"), {}, "RequestInvalid: threshold: is '2'"),
        (lambda: inputs(http, PICTURES["cat"], words="cat", mode="both"), {}, "give joint or independent"),
        (lambda: inputs(http, PICTURES["cat"], words="cat", window="sliding"), {}, "UsageError: this bundle has no sliding"),
        (lambda: inputs(http, PICTURES["cat"], words="cat", size=(9000, 9000)), {}, "at most 40 million"),
        (lambda: inputs(http, PICTURES["cat"], words="cat"), {"threshold": 0.6}, "there is no parameter 'threshold'; give an input"),
        (lambda: inputs(http, PICTURES["cat"], words=[f"w{n}" for n in range(257)]), {}, "TooManyWords: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_our_words(over_http: Any, given: Any, parameters: dict[str, Any], said: str) -> None:
    error = refused(lambda: over_http.infer("demo", given(), parameters=parameters))
    assert error.status() == "400"
    assert said in error.message()
    assert str(ROOT) not in error.message()


def test_the_cache_answers_what_was_asked_before(over_http: Any, server: Server, session: Session) -> None:
    asked: dict[str, Any] = {"words": "kitten, cushion", "background": "common"}
    own = [session.segment(io.BytesIO(PICTURES["cat"]), **asked)]

    def hits() -> float:
        return server.metric("nv_cache_num_hits_per_model", "demo")

    same(over_http.infer("demo", inputs(http, PICTURES["cat"], **asked)), own)
    before, ran = hits(), over_http.get_inference_statistics("demo")["model_stats"][0]["execution_count"]
    same(over_http.infer("demo", inputs(http, PICTURES["cat"], **asked)), own)
    assert hits() == before + 1
    assert over_http.get_inference_statistics("demo")["model_stats"][0]["execution_count"] == ran
    same(
        over_http.infer("demo", inputs(http, PICTURES["cat"], **asked, threshold="0.9")),
        [session.segment(io.BytesIO(PICTURES["cat"]), **asked, threshold=0.9)],
    )
    assert hits() == before + 1


def test_what_the_page_says_against_the_cache_is_so(over_http: Any) -> None:
    """Where a server does better, the page may say so, and the option may become the default."""
    assert "PictureUnreadable" in refused(lambda: over_http.infer("demo", inputs(http, b"1", words="cat"))).message()
    assert over_http.infer("demo", inputs(http, b"1", words="cat")).get_response()["outputs"] == []

    asked = inputs(http, PICTURES["cat"], words="cat, sofa, tail")
    over_http.infer("demo", asked, outputs=[http.InferRequestedOutput("SHARES")])
    later = over_http.infer("demo", asked, parameters={"threshold": 0.9}).get_response()
    assert [output["name"] for output in later["outputs"]] == ["SHARES"]


def test_pixels_are_taken_where_they_were_asked_for_and_never_from_the_cache(
    over_http: Any, server: Server, session: Session
) -> None:
    """Black pixels of 30x40 and 40x30 are the same bytes, which is all that the cache looks at."""

    def ask(pixels: np.ndarray, **asked: Any) -> Any:
        tensor = http.InferInput("PIXELS", pixels.shape, "UINT8")
        tensor.set_data_from_numpy(pixels)
        rows = [texts(http, name.upper(), [[text]] * len(pixels)) for name, text in asked.items()]
        return over_http.infer("raw", [tensor, *rows])

    pictures = np.stack([scene(61, 93), np.roll(scene(61, 93), 7, 1)])
    same(ask(pictures, words="cat, sofa", threshold="0.1"), session.segment(list(pictures), "cat, sofa", threshold=0.1))
    for shape in ((1, 30, 40, 3), (1, 40, 30, 3)):
        black = np.zeros(shape, np.uint8)
        same(ask(black, words="cat, sofa"), [session.segment(black[0], "cat, sofa")])
    assert server.metric("nv_cache_num_hits_per_model", "raw") == 0
    both = [*inputs(http, PICTURES["cat"], words="cat"), http.InferInput("PIXELS", [1, 2, 3, 3], "UINT8")]
    both[-1].set_data_from_numpy(np.zeros((1, 2, 3, 3), np.uint8))
    assert "two kinds of pictures" in refused(lambda: over_http.infer("raw", both)).message()
    assert "no picture" in refused(lambda: over_http.infer("raw", [texts(http, "WORDS", [["cat"]])])).message()
    same(
        over_http.infer("raw", inputs(http, PICTURES["cat"], words="cat")),
        [session.segment(io.BytesIO(PICTURES["cat"]), "cat")],
    )


def test_a_stream_answers_each_picture_in_order_and_goes_on_after_one_that_is_none(
    server: Server, session: Session
) -> None:
    files = [
        PICTURES["cat"],
        b"no picture",
        PICTURES["coffee"],
        *[encoded(Image.fromarray(scene(40 + n, 50))) for n in range(20)],
    ]
    picture = grpc.InferInput("PICTURE", [len(files)], "BYTES")
    picture.set_data_from_numpy(np.array(files, object))
    words = grpc.InferInput("WORDS", [2], "BYTES")
    words.set_data_from_numpy(np.array([b"cat", b"cup"], object))
    answers: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer("demo_stream", [picture, words], enable_empty_final_response=True)
        found = []
        while True:
            answer = answers.get(timeout=60)
            if (
                not isinstance(answer, Exception)
                and answer.get_response().parameters["triton_final_response"].bool_param
            ):
                break
            found.append(answer)
        client.stop_stream()
    assert len(found) == len(files)
    for file, answer in zip(files, found, strict=True):
        if file == b"no picture":
            assert "PictureUnreadable: PICTURE" in str(answer)
        else:
            same(answer, [session.segment(io.BytesIO(file), ["cat", "cup"])], TOGETHER)


@pytest.mark.parametrize("asked", [*ASKED[:3], {"words": "cat", "size": (50, 40), "threshold": 0.2}])
def test_the_ensemble_with_the_engine_by_itself_labels_as_a_session(
    over_http: Any, session: Session, asked: dict[str, Any]
) -> None:
    """The graph in one piece rounds otherwise than its parts, which a session runs on a CPU."""
    file = PICTURES["cat"]
    answer = over_http.infer("demo_engines", inputs(http, file, file, **asked))
    own = session.segment(io.BytesIO(file), **asked)
    for row in range(2):
        assert (answer.as_numpy("LABELS")[row] == own.labels).mean() > 0.999
        assert np.abs(answer.as_numpy("CONFIDENCE")[row] - own.confidence).max() < 0.02
        assert np.abs(answer.as_numpy("SHARES")[row] - own.shares).max() < 1e-3
        assert [word.decode() for word in answer.as_numpy("NAMES")[row]] == list(own.words)
    wrong = refused(lambda: over_http.infer("demo_engines", inputs(http, file, **asked, mode="independent")))
    assert "RequestInvalid: an engine by itself" in wrong.message()


def test_one_client_asks_both_doors(over_http: Any, session: Session) -> None:
    """The same tensors, the same arrays: by `fusioner-rt serve` and by Triton."""
    own = [session.segment(io.BytesIO(PICTURES["cat"]), **ASKED[1])] * 2
    with Service(BUNDLE) as service, http.InferenceServerClient(service.url.removeprefix("http://")) as other:
        for client, name in ((over_http, "demo"), (other, "default")):
            same(client.infer(name, inputs(http, PICTURES["cat"], PICTURES["cat"], **ASKED[1])), own, TOGETHER)


def test_a_model_is_unloaded_and_loaded_while_the_server_runs(over_http: Any, session: Session) -> None:
    over_http.unload_model("raw")
    assert not over_http.is_model_ready("raw")
    assert over_http.is_server_live()
    over_http.load_model("raw")
    assert over_http.is_model_ready("raw")
    same(
        over_http.infer("raw", inputs(http, PICTURES["cat"], words="cat")),
        [session.segment(io.BytesIO(PICTURES["cat"]), "cat")],
    )


def test_a_bundle_that_was_altered_is_not_loaded_and_the_others_stay(over_http: Any, repository: Path) -> None:
    broken = repository / "broken"
    shutil.copytree(repository / "demo", broken)
    (broken / "config.pbtxt").write_text(
        (broken / "config.pbtxt").read_text().replace('name: "demo"', 'name: "broken"')
    )
    (broken / "bundle/text.onnx").write_bytes(b"altered")
    try:
        assert "BundleFileAltered: " in refused(lambda: over_http.load_model("broken")).message()
    finally:
        shutil.rmtree(broken)
    assert over_http.is_model_ready("demo")


def test_the_clients_block_of_the_models_readme_runs(
    server: Server, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = blocks_of((repository / "demo/README.md").read_text(), "python")
    monkeypatch.chdir(ROOT / "docs/pictures")
    names: dict[str, Any] = {}
    exec(code.replace("127.0.0.1:8000", server.http), names)
    assert names["labels"].shape == np.asarray(Image.open("cat.jpg")).shape[:2]
    assert set(np.unique(names["labels"])) >= {0, 1}


def test_what_a_full_queue_does_not_take_may_be_sent_again(tmp_path: Path) -> None:
    options = ["--queue", "2", "--max-batch", "1", "--in-place"]
    with (
        served(BUNDLE, tmp_path, *options) as server,
        http.InferenceServerClient(server.http, concurrency=24) as client,
    ):
        calls = [client.async_infer("demo", inputs(http, PICTURES["cat"], words="cat")) for _ in range(24)]
        errors = []
        for call in calls:
            try:
                call.get_result()
            except InferenceServerException as error:
                errors.append(error)
        assert 0 < len(errors) < 24
        assert {error.status() for error in errors} == {"503"}
        assert "exceeds maximum queue size" in errors[0].message().lower()


def test_the_benchmark_measures_every_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "triton.jsonl"
    given = ["--seconds", "1", "--rounds", "1", "--clients", "4", "--busy", "--json", str(record)]
    assert triton_server.main(given) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    assert {row["case"] for row in rows} == {"bare", *triton_server.KINDS, "response cache"}
    for row in rows:
        if row["case"] != "bare":
            assert row["statuses"].keys() <= {"200"}  # on a busy machine a batch may be done when wrk has gone
            assert row["instance_bytes"] > 50e6
    assert max(row["pictures_a_second"] for row in rows) > 0
    assert {row["pictures_a_call"] for row in rows if row["case"] == "each alone"} <= {1, None}
    assert triton_server.main(["--from", str(record)]) == 0
    assert capsys.readouterr().out == printed
