"""Pictures that wait share a call; the queue is bounded; nobody's error, hang-up or deadline is another's."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_pictures import encoded
from PIL import Image

from fusioner_rt import Session
from fusioner_rt.serve import answer, request
from fusioner_rt.serve.batching import Batches, Places
from fusioner_rt.serve.errors import DeadlinePassed, ServiceFull

SLOW = "/v1/segment?words=cat&masks=none&size=2500x2500"


class Recorder:
    """Runs groups that wait for `open`, and records them."""

    def __init__(self) -> None:
        self.groups: list[list[Any]] = []
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)

    def __call__(self, items: Sequence[Any]) -> list[Any]:
        self.groups.append(list(items))
        self.begun.release()
        assert self.gate.wait(10)
        if "bad" in items:
            raise ValueError("bad")
        return [item * 2 for item in items]


def run(work: Callable[[], Any]) -> Any:
    return asyncio.run(work())


def soon(seconds: float = 10) -> float:
    return time.monotonic() + seconds


async def begun(recorder: Recorder) -> None:
    assert await asyncio.to_thread(recorder.begun.acquire, timeout=10)


def test_what_waits_for_a_thread_runs_in_groups_of_one_key_oldest_first() -> None:
    async def work() -> None:
        recorder = Recorder()
        batches = Batches[Any, Any](recorder, 1, 0.0)
        first = asyncio.ensure_future(batches.submit("a", "k", 3, soon(), False))
        await begun(recorder)
        rest = [asyncio.ensure_future(batches.submit(item, key, 3, soon(), False)) for item, key in
                (("b", "k"), ("x", "other"), ("c", "k"), ("d", "k"), ("e", "k"))]  # fmt: skip
        await asyncio.sleep(0)
        assert batches.waiting == 5
        recorder.gate.set()
        assert await asyncio.gather(first, *rest) == ["aa", "bb", "xx", "cc", "dd", "ee"]
        assert recorder.groups == [["a"], ["b", "c", "d"], ["x"], ["e"]]
        assert batches.waiting == 0
        await batches.close()
        assert batches.running == 0

    run(work)


def test_a_full_group_waits_for_nobody_and_others_no_longer_than_they_may() -> None:
    async def work() -> None:
        recorder = Recorder()
        recorder.gate.set()
        batches = Batches[Any, Any](recorder, 2, 0.2)
        start = time.monotonic()
        await asyncio.gather(*(batches.submit(item, "k", 2, soon(), False) for item in "ab"))
        assert time.monotonic() - start < 0.15
        await asyncio.gather(*(batches.submit(item, "k", 3, soon(), False) for item in "cd"))
        assert 0.19 <= time.monotonic() - start < 2
        start = time.monotonic()
        await batches.submit("e", "k", 3, soon(), True)
        assert time.monotonic() - start < 0.15
        assert recorder.groups == [["a", "b"], ["c", "d"], ["e"]]
        await batches.close()

    run(work)


def test_an_error_is_that_items_alone() -> None:
    async def work() -> None:
        recorder = Recorder()
        recorder.gate.set()
        batches = Batches[Any, Any](recorder, 1, 0.05)
        done = await asyncio.gather(
            *(batches.submit(item, "k", 3, soon(), False) for item in ("a", "bad", "c")), return_exceptions=True
        )
        assert [done[0], done[2]] == ["aa", "cc"]
        assert isinstance(done[1], ValueError)
        await batches.close()

    run(work)


def test_what_is_late_or_given_up_is_not_run() -> None:
    async def work() -> None:
        recorder = Recorder()
        batches = Batches[Any, Any](recorder, 1, 0.0)
        running = asyncio.ensure_future(batches.submit("a", "k", 1, soon(0.1), False))
        await begun(recorder)
        late = asyncio.ensure_future(batches.submit("b", "k", 1, soon(0.1), False))
        left = asyncio.ensure_future(batches.submit("c", "k", 1, soon(), False))
        await asyncio.sleep(0)
        left.cancel()
        for one in (running, late):
            with pytest.raises(DeadlinePassed):
                await one
        assert batches.waiting == 0
        recorder.gate.set()
        assert await batches.submit("d", "k", 1, soon(), False) == "dd"
        with pytest.raises(DeadlinePassed):
            await batches.submit("e", "k", 1, soon(-0.1), False)  # late before it came here, and a thread is free
        await batches.close()
        assert recorder.groups == [["a"], ["d"]]

    run(work)


def test_places_are_bounded_and_given_back() -> None:
    places = Places(2)
    with places.several(2):
        with pytest.raises(ServiceFull):
            places.check()
        with pytest.raises(ServiceFull), places.several():
            pass
    assert places.taken == 0
    with pytest.raises(ZeroDivisionError), places.several():
        _ = 1 / 0
    assert places.taken == 0


def test_requests_at_once_share_calls_and_get_their_own_masks(
    start: Any, session: Session, picture: np.ndarray
) -> None:
    service = start(concurrency=1, max_wait=50, max_batch=4)
    pictures = [np.roll(picture, shift, 1) for shift in range(12)]
    with ThreadPoolExecutor(12) as pool:
        files = [encoded(Image.fromarray(one)) for one in pictures]
        path = "/v1/segment?words=cat,dog&threshold=0"
        replies = list(pool.map(lambda file: service.post(path, file, Accept="image/png"), files))
    for one, reply in zip(pictures, replies, strict=True):
        labels = np.asarray(Image.open(io.BytesIO(reply.body)))
        assert np.array_equal(labels, session.segment(one, "cat, dog", threshold=0).labels)
    assert service.metric("fusioner_batch_size_sum") == 12
    assert service.metric("fusioner_batch_size_count") < 12


def test_who_keeps_a_picture_shares_no_call_with_who_has_kept_one(start: Any, png: bytes) -> None:
    service = start(concurrency=1, max_wait=500, max_batch=4)
    handle = service.post("/v1/encode", png).json["handle"]
    asked = [
        lambda: service.post(SLOW, png),  # others are at hand
        lambda: service.post_json("/v1/segment", handle=handle, words="dog", keep=True),
        lambda: service.post("/v1/segment?words=dog&keep=true", png),
    ]
    with ThreadPoolExecutor(3) as pool:
        replies = []
        for ask in asked:
            replies.append(pool.submit(ask))
            assert happens(lambda: service.metric("fusioner_in_flight") == len(replies))
        told = [reply.result() for reply in replies]
    assert [reply.status for reply in told] == [200] * 3
    assert told[1].json["handle"] == handle
    assert told[2].json["handle"] not in (handle, None)


def test_on_cpus_there_are_no_batches_unless_they_are_asked_for(start: Any, png: bytes) -> None:
    service = start(concurrency=1, max_wait=50)
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda _: service.post("/v1/segment?words=cat", png), range(6)))
    assert [reply.status for reply in replies] == [200] * 6
    assert service.metric("fusioner_batch_size_count") == service.metric("fusioner_batch_size_sum") == 6


def test_beyond_the_queue_requests_are_told_to_come_again(start: Any, png: bytes) -> None:
    service = start(concurrency=1, queue=1)
    with ThreadPoolExecutor(10) as pool:
        replies = list(pool.map(lambda _: service.post(SLOW, png), range(10)))
    refused = [reply for reply in replies if reply.status == 503]
    assert {reply.status for reply in replies} == {200, 503}
    assert all(reply.headers["retry-after"] == "1" and reply.json["type"].endswith("ServiceFull") for reply in refused)
    assert service.post("/v1/segment?words=cat", png).status == 200
    assert service.metric("fusioner_in_flight") == 0


def test_a_request_has_its_deadline(service: Any, png: bytes) -> None:
    start = time.monotonic()
    reply = service.post(SLOW, png, X_Timeout_Ms="60")
    assert (reply.status, reply.json["type"]) == (504, "urn:fusioner-rt:DeadlinePassed")
    assert time.monotonic() - start < 1
    assert service.post("/v1/segment?words=cat", png).status == 200


def test_an_answer_that_is_not_made_in_time_is_late_too_and_not_made_further(
    service: Any, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, gate, own = [], threading.Event(), answer._found

    def slow(*given: Any) -> Any:
        made.append(given)
        assert gate.wait(20)
        return own(*given)

    monkeypatch.setattr(answer, "_found", slow)
    path = "/v1/segment?words=cat,dog,lamp&threshold=0&instances=true"
    gate.set()
    assert service.post(path, png).status == 200  # words are encoded then
    gate.clear()
    made.clear()
    reply = service.post(path, png, X_Timeout_Ms="2000")
    assert (reply.status, reply.json["type"]) == (504, "urn:fusioner-rt:DeadlinePassed")
    gate.set()
    reply = service.post(path, png)
    assert (reply.status, len(reply.json["words"])) == (200, 3)
    assert len(made) == 1 + sum(word["area"] > 0 for word in reply.json["words"]) + len(reply.json["instances"])


def test_fields_are_read_beside_the_answers_of_others(
    service: Any, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, answered, own = threading.Event(), threading.Event(), request.parse

    def slow(*given: Any) -> Any:
        begun.set()
        assert answered.wait(10)
        return own(*given)

    monkeypatch.setattr(request, "parse", slow)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(service.post, "/v1/segment?words=cat", png)
        assert begun.wait(10)
        assert service.get("/healthz").status == 200
        answered.set()
        assert reply.result().status == 200


def test_who_hangs_up_is_not_waited_for(service: Any, png: bytes) -> None:
    for _ in range(8):
        with service.connect() as line:
            line.sendall(f"POST {SLOW} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(png)}\r\n\r\n".encode() + png)
            time.sleep(0.01)
    until = soon(20)
    while service.metric("fusioner_in_flight") and time.monotonic() < until:
        time.sleep(0.02)
    assert service.metric("fusioner_in_flight") == 0
    assert service.metric("fusioner_bytes_held") == 0
    gone = [line for line in service.log if line.get("error") == "ClientGone"]
    assert gone
    assert all(line["status"] == 499 for line in gone)
    assert service.post("/v1/segment?words=cat", png).status == 200


def test_a_slow_reader_holds_up_nobody_and_is_given_up(start: Any, png: bytes) -> None:
    service = start(read_time=0.5, idle_time=0.5)
    with service.connect() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"POST /v1/segment?words=cat&threshold=0&size=3000x3000 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(png)}\r\n"
        line.sendall(f"{head}Accept: application/x-npz\r\n\r\n".encode() + png)
        assert line.recv(10)
        assert 1_000_000 < service.metric("fusioner_bytes_held") < 6 * 3000 * 3000  # the answer, no more its masks
        for _ in range(5):
            assert service.post("/v1/segment?words=cat", png).status == 200
        until = soon(20)
        while service.metric("fusioner_bytes_held") and time.monotonic() < until:
            time.sleep(0.02)
        assert service.metric("fusioner_bytes_held") == 0
        assert happens(lambda: not service.connections)
    assert [line for line in service.log if line.get("error") == "ReaderSlow"]


@pytest.mark.parametrize("limits", [{"max_pixels": 10_000}, {"max_batch": 1}])
def test_pictures_and_label_maps_of_a_call_are_bounded(start: Any, png: bytes, limits: dict[str, int]) -> None:
    service = start(concurrency=1, max_wait=100, **limits)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: service.post("/v1/segment?words=cat&size=90x90", png), range(8)))
    assert [reply.status for reply in replies] == [200] * 8
    assert service.metric("fusioner_batch_size_count") == 8


def test_masks_of_requests_at_hand_are_bounded(start: Any, png: bytes) -> None:
    running = start(memory=8_000_000)
    session = running.app.state.service.models["tiny"].session
    path = "/v1/segment?words=cat&size=1000x1000"
    with ThreadPoolExecutor(1) as pool, ExitStack() as encoding:  # of words, for which the first waits
        encoding.enter_context(session._text._encoding)
        first = pool.submit(running.post, path, png)
        assert happens(lambda: running.metric("fusioner_bytes_held") > 6_000_000)
        full = running.post(path, png)
        assert (full.status, full.json["type"]) == (503, "urn:fusioner-rt:ServiceFull")
        encoding.close()
        assert first.result().status == 200
    assert happens(lambda: not running.metric("fusioner_bytes_held"))
    large = running.post("/v1/segment?words=cat&size=1200x1200", png)
    assert (large.status, large.json["type"]) == (400, "urn:fusioner-rt:RequestInvalid")
    assert "this service has 8 MB for all" in large.json["detail"]


def test_what_json_takes_in_memory_is_bounded(start: Any, png: bytes) -> None:
    running = start(memory=30_000_000)
    for path in ("/v1/segment", "/v1/encode", "/v2/models/tiny/infer"):
        many = running.post(path, b'{"words": [' + b"{}," * 1_000_000 + b"{}]}", "application/json")
        assert (many.status, many.json["type"]) == (400, "urn:fusioner-rt:RequestInvalid")
        assert "take 59 MB" in many.json["detail"]
    pictures = {"name": "PICTURE", "shape": [3], "datatype": "BYTES", "data": [base64.b64encode(png).decode()] * 3}
    for size, status in (("1000x1000", 400), ("500x500", 400), ("200x200", 200)):  # of arrays; of numbers in JSON
        body = {"inputs": [pictures], "parameters": {"words": "cat", "size": size}}
        assert running.post_json("/v2/models/tiny/infer", **body).status == status
    body["outputs"] = [{"name": "LABELS", "parameters": {"binary_data": True}}]
    body["parameters"]["size"] = "500x500"
    assert running.post_json("/v2/models/tiny/infer", **body).status == 200
    assert running.metric("fusioner_bytes_held") == 0


def test_new_words_of_a_request_that_is_late_or_left_are_not_encoded(start: Any, png: bytes) -> None:
    """Another thread has the text encoder, until the request is over."""
    running = start()
    service = running.app.state.service
    session = service.models["tiny"].session
    before = session.text_encoder_calls
    with session._text._encoding:
        late = running.post(
            f"/v1/segment?words={','.join(f'late{letter}' for letter in 'abcdefghij')}", png, X_Timeout_Ms="1500"
        )
        with running.connect() as line:
            path = f"/v1/segment?words={','.join(f'left{letter}' for letter in 'abcdefghij')}"
            line.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(png)}\r\n\r\n".encode() + png)
            assert happens(lambda: service.batches.running == 2)
        assert happens(lambda: service.places.taken == 0)
        assert service.batches.running == 2
    assert happens(lambda: not service.batches.running)
    assert session.text_encoder_calls == before
    assert (late.status, late.json["type"], late.json["subject"]) == (504, "urn:fusioner-rt:DeadlinePassed", "words")
    assert "fewer new words" in late.json["cure"]
    told = running.post("/v1/segment?words=latea,lateb", png)
    assert told.json["timing"]["text"] > 0
    assert session.text_encoder_calls == before + 2


def test_words_that_are_fused_alone_are_fused_no_further_when_nobody_waits(
    start: Any, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(concurrency=1)
    executor = running.app.state.service.models["tiny"].session._executor
    passes, gate, own = [], threading.Event(), executor._fuse

    def slow(inputs: Any, words: Any, clock: Any) -> Any:
        passes.append(len(words))
        assert gate.wait(20)
        return own(inputs, words, clock)

    monkeypatch.setattr(executor, "_fuse", slow)
    path = f"/v1/segment?mode=independent&words={','.join(f'thing {number}' for number in range(12))}"
    assert running.post(path.replace(" ", "%20"), png, X_Timeout_Ms="1500").status == 504
    gate.set()
    assert running.post("/v1/segment?words=cat", png).status == 200
    assert passes == [4, 1]  # of twelve words, four a pass; and the joint one


def test_a_handle_whose_bundle_is_loaded_anew_while_it_waits_is_gone(
    start: Any, tiny_bundle: Path, tiny_bundle_fp16: Path, tmp_path: Path, png: bytes
) -> None:
    folder = tmp_path / "bundle"
    folder.symlink_to(tiny_bundle)
    running = start(engines={"a": str(folder)}, concurrency=1)
    models = running.app.state.service.models
    handle = running.post("/v1/encode", png).json["handle"]
    with ThreadPoolExecutor(2) as pool, ExitStack() as encoding:
        encoding.enter_context(models["a"].session._text._encoding)
        first = pool.submit(running.post, "/v1/segment?words=new", png)
        assert happens(lambda: running.metric("fusioner_running") == 1)
        waits = pool.submit(running.post_json, "/v1/segment", handle=handle, words="cat")
        assert happens(lambda: running.metric("fusioner_queue_length") == 1)
        folder.unlink()
        folder.symlink_to(tiny_bundle_fp16)
        assert list(models.reload()) == [("a", None)]
        encoding.close()
        assert first.result().status == 200
        assert (waits.result().status, waits.result().json["type"]) == (404, "urn:fusioner-rt:HandleGone")


def happens(condition: Callable[[], bool]) -> bool:
    until = soon(20)
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def test_words_are_loaded_one_by_one_until_told_to_stop_and_kept(tiny_bundle: Any) -> None:
    class Enough(Exception):
        pass

    calls = 0

    def before_each() -> None:
        nonlocal calls
        if calls == 2:
            raise Enough
        calls += 1

    with Session(tiny_bundle, cache=False, threads=1) as session:
        with pytest.raises(Enough):
            session.load_words("one, two, three", "four", before_each)
        assert session.text_encoder_calls == 2
        session.load_words("one, two")
        assert session.text_encoder_calls == 2
        assert session.words == ()
        session.load_words("one, two, three", "four")
        assert session.text_encoder_calls == 4
