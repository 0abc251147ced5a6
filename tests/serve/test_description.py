"""GET /openapi.json, /metrics and /v1/models say what the service does."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from openapi_spec_validator import validate
from prometheus_client.parser import text_string_to_metric_families

from fusioner_rt import Session
from fusioner_rt.serve import request
from fusioner_rt.serve.answer import FORMS


def test_the_description_is_valid_and_has_every_route_and_no_other(service: Any) -> None:
    told = service.get("/openapi.json").json
    validate(told)
    routes = {
        (re.sub(r":\w+", "", route.path), method.lower()) for route in service.app.routes for method in route.methods
    }
    described = {(path, method) for path, methods in told["paths"].items() for method in methods}
    assert described == {(path, method) for path, method in routes if method != "head"}


def test_metrics_and_the_log_learn_the_route_of_every_starlette(service: Any) -> None:
    for route in service.app.routes:  # those before 1.7 tell what a route itself tells, and no more
        scope = {"type": "http", "method": "GET", "path": re.sub(r"{\w+(:\w+)?}", "x", route.path), "root_path": ""}
        assert route.matches(scope)[1]["route"].path == route.path


def test_the_description_has_every_field_and_form_and_no_other(service: Any) -> None:
    segment = service.get("/openapi.json").json["paths"]["/v1/segment"]["post"]
    fields = [parameter["name"] for parameter in segment["parameters"] if parameter["in"] == "query"]
    assert fields == [*request.FIELDS, "handle"]
    for kind in ("multipart/form-data", "application/json"):
        form = segment["requestBody"]["content"][kind]["schema"]["properties"]
        assert form.keys() == {"picture", "handle", *request.FIELDS}
    assert list(segment["responses"]["200"]["content"]) == list(FORMS)


def test_the_description_says_what_needs_the_token(start: Any) -> None:
    service = start(token="a-secret")
    told = service.get("/openapi.json").json
    validate(told)
    asked = 0
    for path, methods in told["paths"].items():
        for method, about in methods.items():
            secured = about.get("security", told["security"]) != []
            assert (service.ask(method.upper(), re.sub(r"{\w+}", "x", path)).status == 401) is secured, path
            asked += secured
    assert 5 < asked < len(told["paths"])


def test_every_option_of_a_session_is_a_field() -> None:
    not_told = {"self", "picture", "probabilities", "channels", "before_each"}
    own = inspect.signature(Session.segment).parameters.keys() - not_told
    assert own <= set(request.FIELDS)
    assert set(request.SegmentRequest(words="a").options) == own


def test_answers_are_as_described(service: Any, png: bytes) -> None:
    schemas = service.get("/openapi.json").json["components"]["schemas"]
    answers = {
        "Answer": service.post("/v1/segment?words=cat&threshold=0", png).json,
        "Encoded": service.post("/v1/encode", png).json,
        "Problem": service.post("/v1/segment", png).json,
    }
    for name, told in answers.items():
        assert list(told) == list(schemas[name]["properties"]) == schemas[name]["required"]
    word = answers["Answer"]["words"][0]
    assert word.keys() <= schemas["Answer"]["properties"]["words"]["items"]["properties"].keys()
    assert word.keys() >= {"word", "share", "score", "area", "box", "mask"}


def test_metrics_can_be_read_and_count(service: Any, png: bytes) -> None:
    def read() -> dict[str, float]:
        text = service.get("/metrics").body.decode()
        return {
            sample.name + str(sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    before = read()
    service.post("/v1/segment?words=cat", png)
    service.post("/v1/segment?words=", png)
    after = read()

    def grown(name: str, **labels: str) -> float:
        key = name + str(sorted(labels.items()))
        return after.get(key, 0.0) - before.get(key, 0.0)

    assert grown("fusioner_requests_total", route="/v1/segment", method="POST", status="200") == 1
    assert grown("fusioner_requests_total", route="/v1/segment", method="POST", status="400") == 1
    assert grown("fusioner_errors_total", kind="WordsInvalid") == 1
    assert grown("fusioner_batch_size_count") == 2
    assert grown("fusioner_request_seconds_count", route="/v1/segment") == 2
    for stage in ("decode", "queue", "fusion", "mask_head", "answer", "total"):
        assert grown("fusioner_stage_seconds_count", stage=stage) == 1, stage
    for gauge in ("queue_length", "running", "in_flight", "bytes_held"):
        assert after[f"fusioner_{gauge}[]"] == 0
    assert after["fusioner_handle_bytes[]"] >= 0


def test_a_models_facts_are_its_bundles(service: Any, session: Session) -> None:
    (told,) = service.get("/v1/models").json["models"]
    assert told["name"] == "tiny"
    assert (told["threshold"], told["max_words"], told["max_batch"]) == (0.5, 64, 4)
    assert told["backend"] == session.backend.effective


def test_the_page_has_a_strict_policy_and_only_its_own_files(service: Any) -> None:
    import fusioner_rt.serve

    folder = Path(fusioner_rt.serve.__file__).parent / "page"
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert (folder / "index.html") in files
    for file in files:
        reply = service.get(f"/page/{file.relative_to(folder).as_posix()}")
        assert reply.status == 200, file
        assert reply.body == file.read_bytes()
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        sources = {part.split()[0]: part.split()[1:] for part in policy.split("; ")}
        assert all(given in (["'self'"], ["'none'"], ["'script'"]) for given in sources.values()), policy
        assert sources["trusted-types"] == sources["frame-ancestors"] == sources["form-action"] == ["'none'"]
        assert reply.headers["x-content-type-options"] == "nosniff"
    assert service.get("/v1/models").headers["x-content-type-options"] == "nosniff"
    assert service.get("/").body == (folder / "index.html").read_bytes()
    assert service.get("/").headers["content-type"] == "text/html; charset=utf-8"
