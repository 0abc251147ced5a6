"""Ray Serve serves a bundle as `fusioner-rt serve` does: the same routes, masks and problems, by as many replicas as are needed."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from documented import blocks_of
from made_pictures import encoded, scene
from PIL import Image
from ray import serve
from served_by_ray import Deployed, ray_serve
from service_client import Running
from tritonclient import http

from fusioner_rt import Session
from fusioner_rt.bundle import read_manifest, write_manifest
from fusioner_rt.errors import UsageError
from fusioner_rt.ray import application, deployment
from fusioner_rt.serve.settings import Settings

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "models/demo/bundle"
PICTURES = sorted((ROOT / "docs/pictures").glob("*.jpg"))
SLOW = "/v1/segment?words=cat&masks=none&size=2500x2500"


def until(condition: Callable[[], Any], seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ray_serve() as port:
        yield port


@pytest.fixture(scope="module")
def shared(port: int) -> Iterator[Deployed]:
    """Two replicas, which most tests ask."""
    deployed = Deployed(BUNDLE, port, "shared", "/shared", min_replicas=2, max_replicas=2, max_bytes=3_000_000)
    yield deployed
    deployed.delete()


@pytest.fixture
def deploy(port: int) -> Iterator[Callable[..., Deployed]]:
    """Deploys an application of a test's own."""
    made: list[Deployed] = []

    def run(name: str, bundle: Any = BUNDLE, **options: Any) -> Deployed:
        made.append(Deployed(bundle, port, name, f"/{name}", **options))
        return made[-1]

    yield run
    for one in made:
        one.delete()


@pytest.fixture(scope="module")
def alone() -> Iterator[Running]:
    """`fusioner-rt serve`, to compare with."""
    running = Running(Settings({"default": str(BUNDLE)}, concurrency=1, threads=1, max_bytes=3_000_000, loopback=True))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session(BUNDLE, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def png() -> bytes:
    return encoded(Image.fromarray(scene(61, 93)))


def labels_of(reply: Any) -> np.ndarray:
    assert reply.status == 200, reply.body
    return np.asarray(Image.open(io.BytesIO(reply.body)))


@pytest.mark.parametrize(
    ("words", "background"), [("cat, sofa|couch", None), ("person, cup, table", "common"), ("cat", "wall, floor")]
)
def test_labels_are_a_sessions_bit_by_bit(
    shared: Deployed, session: Session, words: str, background: str | None
) -> None:
    options = {"background": background} if background else {}
    client = http.InferenceServerClient(f"127.0.0.1:{shared.port}/shared")
    for path in PICTURES:
        truth = session.segment(path, words, **options)
        file = path.read_bytes()
        assert np.array_equal(labels_of(asked(shared, file, words, options)), truth.labels)
        picture = http.InferInput("PICTURE", [1], "BYTES")
        picture.set_data_from_numpy(np.array([file], object))
        answer = client.infer("default", [picture], parameters={"words": words, **options})
        assert np.array_equal(answer.as_numpy("LABELS")[0], truth.labels)
        assert np.array_equal(answer.as_numpy("CONFIDENCE")[0], truth.confidence)


def asked(service: Any, file: bytes, words: str, options: dict[str, str]) -> Any:
    query = urlencode({"words": words, **options})
    return service.post(f"/v1/segment?{query}", file, "image/jpeg", Accept="image/png")


ASKED: list[tuple[str, str, Any, dict[str, str]]] = [
    ("GET", "/", None, {}),
    ("GET", "/page/main.js", None, {}),
    ("GET", "/page/samples/cat.jpg", None, {}),
    ("GET", "/page/..%2fapp.py", None, {}),
    ("GET", "/healthz", None, {}),
    ("GET", "/v1/models", None, {}),
    ("GET", "/v2", None, {}),
    ("GET", "/v2/health/ready", None, {}),
    ("GET", "/v2/models/default", None, {}),
    ("GET", "/v2/models/other", None, {}),
    ("POST", "/v2/models/default/infer", b"{}", {}),
    ("GET", "/nowhere", None, {}),
    ("GET", "/v1/segment", None, {}),
    ("POST", "/v1/segment?words=cat", b"no picture", {}),
    ("POST", "/v1/segment?words=cat", b"", {}),
    ("POST", "/v1/segment?words=cat.jpg", "png", {}),
    ("POST", "/v1/segment?words=cat&colour=red", "png", {}),
    ("POST", "/v1/segment?words=cat&threshold=3", "png", {}),
    ("POST", "/v1/segment?words=cat&handle=none", None, {}),
    ("POST", "/v1/segment?words=cat", "png", {"Accept": "text/csv"}),
    ("POST", "/v1/segment?words=cat", "png", {"Origin": "https://example.org"}),
    ("POST", "/v1/segment?words=cat", "png", {"Host": "evil.example"}),
    ("POST", "/v1/segment?words=cat", "png", {"X-Timeout-Ms": "soon"}),
    ("POST", "/v1/segment?words=cat", b"x" * 3_000_001, {}),
    ("POST", "/v1/segment?words=cat&masks=polygons&instances=true", "png", {}),
    ("POST", "/v1/segment?words=cat,dog&threshold=0", "png", {"Accept": "image/jpeg"}),
    ("DELETE", "/v1/encoded/none", None, {}),
]


@pytest.mark.parametrize("case", ASKED, ids=[f"{method} {path} {headers}" for method, path, _, headers in ASKED])
def test_answers_and_problems_are_those_of_the_service(
    shared: Deployed, alone: Running, png: bytes, case: tuple[str, str, Any, dict[str, str]]
) -> None:
    method, path, body, headers = case
    given = {"X_Request_Id": "a-1", "Content_Type": "image/png", **headers}
    theirs, own = (one.ask(method, path, png if body == "png" else body, **given) for one in (shared, alone))
    assert theirs.status == own.status, theirs.body
    assert theirs.headers["content-type"] == own.headers["content-type"]
    assert theirs.headers.get_all("x-request-id") == ["a-1"]
    if "json" in (own.headers["content-type"] or ""):
        assert comparable(theirs.json) == comparable(own.json)
    else:
        assert theirs.body == own.body


def comparable(told: Any) -> Any:
    """Without what differs from one answer to the next."""
    if isinstance(told, dict):
        told.pop("timing", None)
    return told


def test_every_replica_takes_a_handle_and_tells_the_sums_of_all(shared: Deployed, png: bytes) -> None:
    before = shared.metric("fusioner_batch_size_count")
    handles = [shared.post("/v1/encode", png).json["handle"] for _ in range(3)]
    asks = [handle for handle in handles for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:  # that both replicas have some
        replies = list(pool.map(lambda handle: shared.post_json("/v1/segment", handle=handle, words="cat"), asks))
    assert [reply.status for reply in replies] == [200] * len(asks)
    assert until(lambda: shared.metric("fusioner_batch_size_count") == before + len(asks) + len(handles))
    assert until(lambda: shared.metric("fusioner_handles") == 3)
    for handle in handles:
        assert shared.ask("DELETE", f"/v1/encoded/{handle}").status == 204
    for _ in range(4):
        reply = shared.post_json("/v1/segment", handle=handles[0], words="cat")
        assert (reply.status, reply.json["type"]) == (404, "urn:fusioner-rt:HandleGone")


def test_a_replica_has_the_threads_of_its_cores(shared: Deployed) -> None:
    """Whatever the machine has: two replicas of one core each do not take four."""
    for process in shared.processes():
        names = [(task / "comm").read_text().strip() for task in Path(f"/proc/{process}/task").iterdir()]
        assert len([name for name in names if name.startswith("segment")]) <= 1
        assert len([name for name in names if name.startswith("pictures")]) <= 2


def test_beyond_the_queue_requests_are_told_to_come_again(deploy: Callable[..., Deployed], png: bytes) -> None:
    deployed = deploy("queue", queue=1, options={"max_ongoing_requests": 1})
    with ThreadPoolExecutor(10) as pool:
        replies = list(pool.map(lambda _: deployed.post(SLOW, png), range(10)))
    refused = [reply for reply in replies if reply.status == 503]
    assert {reply.status for reply in replies} == {200, 503}
    assert all(reply.headers["retry-after"] == "1" for reply in refused)
    assert deployed.post("/v1/segment?words=cat", png).status == 200


def test_who_hangs_up_is_not_waited_for(deploy: Callable[..., Deployed], png: bytes) -> None:
    deployed = deploy("left")
    for _ in range(4):
        with deployed.connect() as line:
            line.sendall(
                f"POST /left{SLOW} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(png)}\r\n\r\n".encode() + png
            )
            time.sleep(0.05)
    assert until(lambda: deployed.metric("fusioner_in_flight") == deployed.metric("fusioner_bytes_held") == 0)
    metrics = deployed.get("/metrics").body.decode()
    assert 'fusioner_errors_total{kind="ClientGone"}' in metrics, metrics
    assert deployed.post("/v1/segment?words=cat", png).status == 200


def test_pictures_of_the_same_words_share_calls_and_get_their_own_masks(
    deploy: Callable[..., Deployed], session: Session
) -> None:
    deployed = deploy("batches", max_batch=4, max_wait=50, concurrency=1, options={"max_ongoing_requests": 20})
    pictures = [np.roll(scene(61, 93), shift, 1) for shift in range(16)]
    words = ["cat, dog" if index % 4 else "sky, tree" for index in range(16)]
    with ThreadPoolExecutor(16) as pool:
        files = [encoded(Image.fromarray(one)) for one in pictures]
        replies = list(pool.map(lambda file, ask: asked(deployed, file, ask, {"threshold": "0"}), files, words))
        reply = deployed.post(SLOW, files[0], X_Timeout_Ms="40")
    assert (reply.status, reply.json["type"]) == (504, "urn:fusioner-rt:DeadlinePassed")
    for picture, ask, reply in zip(pictures, words, replies, strict=True):
        assert np.mean(labels_of(reply) != session.segment(picture, ask, threshold=0).labels) < 1e-3
    assert deployed.metric("fusioner_batch_size_count") < 16


@serve.deployment(max_ongoing_requests=20)
class Scenario:
    """What `@serve.batch` gathers, in a replica, where alone it runs."""

    async def __call__(self) -> dict[str, Any]:
        from fusioner_rt.ray.serve_batches import ServeBatches
        from fusioner_rt.serve.errors import DeadlinePassed

        groups: list[list[Any]] = []
        gate = threading.Event()

        def run(items: Any) -> list[Any]:
            groups.append(list(items))
            gate.wait(10)
            if "bad" in items:
                raise ValueError("bad")
            return [item * 2 for item in items]

        batches = ServeBatches[Any, Any](run, 1, 0.1, lambda size: None)

        def submit(item: str, key: str, seconds: float = 10, alone: bool = False, most: int = 3) -> Any:
            return asyncio.ensure_future(batches.submit(item, key, most, time.monotonic() + seconds, alone))

        first = submit("a", "k", alone=True)
        await asyncio.sleep(0.02)
        at_once = len(groups)
        late, left = submit("late", "k", 0.05), submit("left", "k")
        rest = [submit(*one) for one in (("b", "k"), ("x", "other"), ("c", "k"), ("bad", "z"), ("d", "z"))]
        await asyncio.sleep(0.3)
        left.cancel()
        more = submit("e", "k")  # joins those that wait for the thread
        await asyncio.sleep(0.2)
        gate.set()
        done = await asyncio.gather(first, late, left, *rest, more, return_exceptions=True)
        await batches.close()
        told = [one if isinstance(one, str) else type(one).__name__ for one in done]
        return {"at_once": at_once, "groups": groups, "done": told, "late": DeadlinePassed.__name__}


def test_what_serve_gathers_keeps_the_rules_of_the_queue(port: int) -> None:
    handle = serve.run(Scenario.bind(), name="scenario", route_prefix="/scenario")
    told = handle.remote().result(timeout_s=60)
    serve.delete("scenario")
    assert told["at_once"] == 1  # who is alone waits for nobody
    assert told["done"] == ["aa", told["late"], "CancelledError", "bb", "xx", "cc", "ValueError", "dd", "ee"]
    assert told["groups"] == [["a"], ["b", "c", "e"], ["x"], ["bad", "d"], ["bad"], ["d"]]


def test_replicas_come_with_the_load_and_one_that_is_killed_fails_what_it_had_alone(
    deploy: Callable[..., Deployed], png: bytes
) -> None:
    quick = {"upscale_delay_s": 0.5, "target_ongoing_requests": 1}
    deployed = deploy("scaled", max_replicas=2, autoscaling=quick, options={"health_check_period_s": 1})
    assert deployed.replicas() == 1
    asked: list[tuple[float, float, int]] = []  # begun, ended, status
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            begun = time.monotonic()
            try:
                status = deployed.post("/v1/segment?words=cat", png).status
            except OSError:
                status = 0
            asked.append((begun, time.monotonic(), status))

    with ThreadPoolExecutor(6) as pool:
        try:
            for _ in range(6):
                pool.submit(ask)
            assert until(lambda: deployed.replicas() == 2)
            processes = deployed.processes()
            assert len(processes) == 2
            time.sleep(1)
            killed = time.monotonic()
            os.kill(processes[0], signal.SIGKILL)
            assert until(lambda: deployed.replicas() == 2 and len(set(deployed.processes()) - set(processes)) == 1)
            time.sleep(1)
        finally:
            ended.set()
    failed = [(begun, end) for begun, end, status in asked if status != 200]
    in_flight = sum(begun <= killed <= end for begun, end, _ in asked)
    assert all(begun <= killed for begun, _ in failed), [begun - killed for begun, _ in failed]
    assert len(failed) <= in_flight
    assert sum(begun > killed for begun, _, _ in asked) > in_flight


def test_what_is_in_flight_is_finished_and_nothing_is_left(deploy: Callable[..., Deployed], png: bytes) -> None:
    deployed = deploy("ending")
    assert deployed.post("/v1/encode", png).status == 200
    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(deployed.post, SLOW, png) for _ in range(3)]
        assert until(lambda: deployed.metric("fusioner_in_flight") == 3)
        (process,) = deployed.processes()
        folder = Path(tempfile.gettempdir())
        mine = [one for one in folder.glob("fusioner-rt-ray-*") if held(process, one)]
        assert len(mine) == 1
        deployed.delete()
        assert [one.result().status for one in asking] == [200] * 3
    assert until(lambda: not mine[0].exists())
    assert deployed.processes() == []


def held(process: int, folder: Path) -> bool:
    return any(Path(os.path.realpath(link)) == folder for link in Path(f"/proc/{process}/fd").iterdir())


def test_several_bundles_are_named_and_another_user_config_loads_those_that_changed(
    deploy: Callable[..., Deployed], png: bytes, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(BUNDLE, changed)
    deployed = deploy("several", {"first": BUNDLE, "second": changed}, options={"user_config": {"revision": 1}})
    assert [model["name"] for model in deployed.get("/v1/models").json["models"]] == ["first", "second"]
    assert deployed.post("/v1/segment?words=cat&model=second", png).json["model"] == "second"
    assert deployed.post("/v1/segment?words=cat", png).json["model"] == "first"
    manifest = read_manifest(changed)
    manifest["threshold"] = 0.7
    write_manifest(changed, manifest)
    deployed.handle.reconfigure.remote({"revision": 2}).result(timeout_s=30)
    thresholds = [model["threshold"] for model in deployed.get("/v1/models").json["models"]]
    assert thresholds == [0.5, 0.7]
    deployed.handle.check_health.remote().result(timeout_s=30)


def test_a_token_is_wanted_below_a_route_too(deploy: Callable[..., Deployed], png: bytes) -> None:
    deployed = deploy("token", token="secret", loopback=False)
    assert deployed.post("/v1/segment?words=cat", png, Host="here.example").status == 200
    told = deployed.get("/openapi.json").json
    assert told["servers"] == [{"url": "/token"}]
    deployed.token = ""
    assert deployed.get("/healthz").status == deployed.get("/").status == deployed.get("/openapi.json").status == 200
    assert deployed.get("/v1/models").status == deployed.get("/metrics").status == 401


def test_a_bundle_that_is_not_there_is_told(port: int) -> None:
    with pytest.raises(RuntimeError, match="fail"):
        Deployed("nowhere", port, "nowhere", "/nowhere", options={"max_constructor_retry_count": 1})
    status = serve.status().applications["nowhere"]
    assert "BundleMissing" in str(status), status
    serve.delete("nowhere")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"que": 3}, "there is no setting 'que'; did you mean queue?"),
        ({"workers": 2}, "there is no setting 'workers'"),
        ({"queue": "many"}, "queue is 'many'; give a whole number of 1 or more"),
        ({"deadline": -1}, "deadline is -1; give a number of 0 to 86400"),
        ({"cors": "*"}, "cors is '*'; give a list of texts"),
        ({"num_cpus": 0.5}, "num_cpus is 0.5"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas is 2"),
        ({"bundle": {}}, "no bundle is named"),
    ],
)
def test_what_is_no_option_is_told_before_anything_is_deployed(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as told:
        deployment(**given)
    assert str(told.value).startswith(said)
    assert "--" not in str(told.value)


def test_the_command_lines_texts_are_read_as_json() -> None:
    made = application({"bundle": str(BUNDLE), "num_cpus": "2", "queue": "5", "token": "123456"})
    options = made._bound_deployment
    assert options.max_queued_requests == 5
    assert options.ray_actor_options["num_cpus"] == 2
    with pytest.raises(UsageError, match="num_cpus is 'two'"):
        application({"num_cpus": "two"})
    with pytest.raises(UsageError, match=r"token is .hidden.; give a text"):
        deployment(token=123456)  # type: ignore[arg-type]


def test_the_pages_block_runs(tmp_path: Path) -> None:
    (code,) = blocks_of((ROOT / "docs/ray.md").read_text().partition("\n## Ray Serve\n")[2], "python")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        code = code.replace("8000", str(free.getsockname()[1]))
    for name in ("docs", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\[0\.\d+, 0\.\d+\]$", done.stdout, re.MULTILINE), done.stdout
