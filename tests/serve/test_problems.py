"""Whatever a client sends, it gets a problem document of one line, and the next request works."""

from __future__ import annotations

import base64
import http.client
import json
import random
import re
import threading
import time
import urllib.error
import urllib.request
import zlib
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import pytest
from made_pictures import png_header

from fusioner_rt.serve import problem
from fusioner_rt.serve.errors import ServiceError

KEYS = {"type", "title", "status", "detail", "code", "found", "cure", "subject", "is_input", "id"}


def check(reply: Any, status: int, kind: str) -> dict[str, Any]:
    """A problem document of this kind, that says nothing of the server."""
    told: dict[str, Any] = reply.json
    assert (reply.status, told["type"]) == (status, f"urn:fusioner-rt:{kind}"), reply.body
    assert reply.headers["content-type"] == problem.MEDIA_TYPE
    assert told.keys() >= KEYS
    assert told["status"] == status
    assert told["id"] == reply.headers["x-request-id"]
    assert len(told["detail"].splitlines()) == 1
    assert not re.search(r"Traceback|\.py|File \"|/tmp/|/home/|/usr/|object at 0x", reply.body.decode())
    return told


def works(service: Any, png: bytes) -> bool:
    return bool(service.post("/v1/segment?words=cat", png).status == 200)


QUERIES = {
    "": ("RequestInvalid", 400),
    "words=": ("WordsInvalid", 400),
    "words=cat,cat": ("WordsInvalid", 400),
    "words=cat&words=cat": ("WordsInvalid", 400),
    "word=cat": ("RequestInvalid", 400),
    "words=cat&treshold=0.5": ("RequestInvalid", 400),
    "words=cat&threshold=3": ("RequestInvalid", 400),
    "words=cat&threshold=nan": ("RequestInvalid", 400),
    "words=cat&threshold={": ("RequestInvalid", 400),
    'words=cat&threshold={"dog":0.5}': ("UsageError", 400),
    "words=cat&mode=both": ("RequestInvalid", 400),
    "words=cat&window=sliding": ("UsageError", 400),
    "words=cat&size=0x5": ("RequestInvalid", 400),
    "words=cat&size=9999x9999": ("RequestInvalid", 400),
    "words=cat&size=5": ("RequestInvalid", 400),
    "words=cat&masks=all": ("RequestInvalid", 400),
    "words=cat&keep=perhaps": ("RequestInvalid", 400),
    "words=cat&tolerance=-1": ("RequestInvalid", 400),
    "words=cat&model=other": ("NotServed", 404),
    "words=cat&mode=joint&mode=joint": ("RequestInvalid", 400),
    "words=cat&handle=x": ("RequestInvalid", 400),
    "words=cat\0": ("WordsInvalid", 400),
    f"words={'a' * 5000}": ("WordsInvalid", 400),
    f"words={','.join(f'w{n}' for n in range(1000))}": ("TooManyWords", 400),
    f"words={','.join(f'w{n}' for n in range(50))}&background=common": ("TooManyWords", 400),
}


@pytest.mark.parametrize("query", QUERIES)
def test_a_wrong_field_is_a_problem(service: Any, png: bytes, query: str) -> None:
    from urllib.parse import quote

    kind, status = QUERIES[query]
    check(service.post(f"/v1/segment?{quote(query, safe='=&')}", png), status, kind)


FILE = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\nabc\r\n--b--\r\n'
SAID: dict[str, tuple[str, bytes, str, str]] = {
    "a field's near name": ("segment?words=a&pictures=b", b"x", "image/png", "'pictures'; did you mean picture? the fields are picture, handle, words"),
    "a picture in the query": ("segment?words=a&picture=b", b"x", "image/png", "picture: is no field of a query; send the picture as the body"),
    "words for the encoder": ("encode?words=a", b"x", "image/png", "words: is no field of encode; send it to segment, with the handle"),
    "another field for the encoder": ("encode?modle=a", b"x", "image/png", "did you mean model? the fields are picture, model, window"),
    "a file by another name": ("segment?words=a", FILE, "multipart/form-data; boundary=b", "image: is no part that takes a file; send the file as the part picture"),
    "an empty body": ("segment?words=a", b"", "image/png", "picture: is empty, no bytes came; send the bytes of a picture file"),
    "an empty part": ("segment?words=a", FILE.replace(b"image", b"picture").replace(b"abc", b""), "multipart/form-data; boundary=b", "picture: is empty"),
    "no boundary": ("segment?words=a", FILE, "multipart/form-data", "Content-Type: multipart/form-data has no boundary; "),
    "no JSON": ("segment", b'{"words": ', "application/json", "the body is no JSON, from line 1, column 11 on; send a JSON object"),
    "no UTF-8": ("segment", b'{"words": "\xe9"}', "application/json", "the body is no JSON: it holds bytes that are no UTF-8; send"),
    "deep JSON": ("segment", b"[" * 200_000, "application/json", "the body is nested too deeply; send"),
    "many digits": ("segment", b'{"words": ' + b"9" * 5000 + b"}", "application/json", "the body holds a number with too many digits"),
    "a threshold": ("segment?words=a&threshold=3", b"x", "image/png", "threshold: is '3'; give a probability from 0 to 1"),
    "a size": ("segment?words=a&size=5", b"x", "image/png", "size: is '5'; give [H, W]"),
    "a mode": ("segment?words=a&mode=x", b"x", "image/png", "mode: is 'x'; give joint or independent"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_a_message_says_what_to_do_here(service: Any, name: str) -> None:
    path, body, kind, said = SAID[name]
    detail = service.post(f"/v1/{path}", body, kind).json["detail"]
    assert said in detail
    assert "codec" not in detail


def test_no_more_words_are_taken_than_the_bundle_takes(start: Any) -> None:
    told = check(start().post(f"/v1/segment?words={'a,' * 70}b", b"x"), 400, "TooManyWords")
    assert told["detail"] == "words: 71 words were given, at most 64 are taken; give fewer words"


@pytest.mark.parametrize("between", [*",;，；、。،؛\n\r\x85\u2028\u2029|", " . ", ". ", ".\n"])
def test_no_more_words_are_taken_than_the_service_takes_however_they_are_separated(service: Any, between: str) -> None:
    query = urlencode({"words": between.join(f"word{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(51))})
    told = check(service.post(f"/v1/segment?{query}", b"x"), 400, "TooManyWords")
    assert told["detail"].endswith(" words were given, at most 50 are taken; give fewer words")


def test_windows_that_a_bundle_has_not_are_refused_without_its_folder(service: Any, png: bytes) -> None:
    for path in ("segment?words=cat&window=sliding", "encode?window=sliding"):
        told = check(service.post(f"/v1/{path}", png), 400, "UsageError")
        assert told["detail"] == "window: the model tiny has no sliding windows; leave it out"
        assert told["title"] == "An invalid argument or call"


def test_a_problem_names_no_folder_of_a_bundle() -> None:
    for folder in ("/srv/models/demo/bundle", "models/demo/bundle"):
        told = problem.document(fusioner_error(f"the bundle in {folder} has no windows", "x"), "1")
        assert told["found"] == "this bundle has no windows"


def test_credentials_of_another_scheme_are_told_of_bearer(start: Any) -> None:
    service = start(token="a-secret")
    told = check(service.get("/v1/models", Authorization="Basic eDp5"), 401, "TokenWrong")
    assert told["found"] == "the header Authorization does not begin with Bearer"
    assert "Bearer TOKEN" in told["cure"]


@pytest.mark.parametrize("chunked", [False, True])
def test_who_sends_all_before_it_reads_sees_the_refusal(service: Any, chunked: bool) -> None:
    """urllib, with Connection: close; more than the buffers of the line hold."""
    body = b"x" * 30_000_000
    address = f"http://{service.host}:{service.port}/v1/segment?words=cat"
    for path, status in ((address, 413), (f"http://{service.host}:{service.port}/nowhere", 404)):
        asked = urllib.request.Request(path, iter([body]) if chunked else body, {"Content-Type": "image/png"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked, timeout=60)
        assert refused.value.code == status
        assert json.loads(refused.value.read())["status"] == status


def test_who_is_refused_and_sends_no_further_is_let_go(start: Any, png: bytes) -> None:
    service = start(body_time=0.3)
    for expect in ("", "Expect: 100-continue\r\n"):
        with service.connect() as line:
            head = f"POST /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{expect}Content-Length: 100\r\n\r\n"
            line.sendall(head.encode())
            answered = line.makefile("rb").read()  # to the end of the connection
        assert answered.startswith(b"HTTP/1.1 404 ")
        assert b"100 Continue" not in answered
    assert works(service, png)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "null", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://here.example", "Host": "here.example"}, 200),
        ({"Origin": "https://HERE.example", "Host": "here.example:443"}, 200),
        ({"Origin": "http://other.example", "Sec-Fetch-Site": "same-origin"}, 200),  # a proxy changed Host
        ({}, 200),
    ],
)
def test_a_page_of_another_origin_is_refused(service: Any, png: bytes, headers: dict[str, str], status: int) -> None:
    reply = service.post("/v1/segment?words=cat", png, **headers)
    assert reply.status == status, reply.body
    if status == 403:
        check(reply, 403, "OriginRefused")
        assert service.get("/healthz", **headers).status == 200


def test_for_its_own_machine_it_takes_that_machines_names_alone(start: Any) -> None:
    own, named = start(loopback=True), start(loopback=True, cors=("https://here.example",))
    for host in ("localhost", "LOCALHOST:8080", "a.localhost:1", "127.0.0.1:8080", "[::1]:8080", "192.168.0.1"):
        assert own.get("/v1/models", Host=host).status == 200, host
    for host in ("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example"):
        for service in (own, named):
            assert check(service.get("/v1/models", Host=host), 403, "OriginRefused")["subject"] == "Host"
    assert own.get("/healthz", Host="evil.example").status == 200
    assert named.get("/v1/models", Host="here.example").status == 200
    assert start(loopback=True, cors=("*",)).get("/v1/models", Host="here.example").status == 200
    guarded = start(loopback=True, token="secret")
    assert guarded.get("/v1/models", Host="here.example", Authorization="Bearer secret").status == 200


BODIES: dict[str, tuple[bytes, str, str, int]] = {
    "no picture": (b"", "image/png", "PictureUnreadable", 422),
    "text": (b"no picture at all", "image/jpeg", "PictureUnreadable", 422),
    "a path": (b"/etc/passwd", "image/jpeg", "PictureUnreadable", 422),
    "cut short": (png_header(50, 50)[:60], "image/png", "PictureUnreadable", 422),
    "a bomb": (png_header(60_000, 60_000), "image/png", "PictureTooLarge", 413),
    "a smaller bomb": (png_header(8_000, 8_000), "image/png", "PictureTooLarge", 413),
    "no form": (b"x", "multipart/form-data", "RequestInvalid", 400),
    "a broken form": (b"--b\r\nx", "multipart/form-data; boundary=b", "RequestInvalid", 400),
    "half a form": (b'--b\r\nContent-Disposition: form-data; name="picture"\r\n\r\nabc', "multipart/form-data; boundary=b", "RequestInvalid", 400),
    "no JSON": (b"{", "application/json", "RequestInvalid", 400),
    "deep JSON": (b"[" * 200_000, "application/json", "RequestInvalid", 400),
    "a list": (b"[]", "application/json", "RequestInvalid", 400),
    "no base64": (b'{"picture": "***"}', "application/json", "RequestInvalid", 400),
    "a number": (b'{"picture": 5}', "application/json", "RequestInvalid", 400),
    "no UTF-8": (b"\xff\xfe{}", "application/json", "RequestInvalid", 400),
    "XML": (b"<a/>", "text/xml", "BodyUnknown", 415),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_a_wrong_body_is_a_problem(service: Any, png: bytes, name: str) -> None:
    body, kind_of_body, kind, status = BODIES[name]
    check(
        service.post("/v1/segment?words=cat" if "json" not in kind_of_body else "/v1/segment", body, kind_of_body),
        status,
        kind,
    )
    assert works(service, png)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "kind"),
    [
        ("GET", "/nowhere", {}, 404, "NotServed"),
        ("POST", "/v1/segment/?words=a", {"Host": "elsewhere.example"}, 404, "NotServed"),
        ("GET", "/page/../app.py", {}, 404, "NotServed"),
        ("GET", "/page/%2e%2e/app.py", {}, 404, "NotServed"),
        ("GET", "/page/nothing.js", {}, 404, "NotServed"),
        ("GET", "/v1/segment", {}, 405, "MethodWrong"),
        ("POST", "/v1/segment?words=a", {"Accept": "text/html"}, 406, "FormUnknown"),
        ("POST", "/v1/segment?words=a", {"Content-Encoding": "br"}, 415, "BodyUnknown"),
        ("POST", "/v1/segment?words=a", {"Content-Encoding": "gzip"}, 400, "RequestInvalid"),
        ("POST", "/v1/segment?words=a", {"X-Timeout-Ms": "soon"}, 400, "RequestInvalid"),
        ("POST", "/v1/segment?words=a", {"Sec-Fetch-Site": "cross-site", "Origin": "https://example.org"}, 403, "OriginRefused"),
        ("POST", "/v1/encode?words=a", {}, 400, "RequestInvalid"),
        ("DELETE", "/v1/encoded/..%2f..%2fetc", {}, 404, "NotServed"),
        ("DELETE", "/v1/encoded/x", {}, 404, "HandleGone"),
        ("GET", "/v2/models/none", {}, 404, "NotServed"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_a_problem(
    service: Any, method: str, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    body = b"x" if method == "POST" else None
    check(service.ask(method, path, body, **headers), status, kind)


def test_a_body_over_the_limit_is_refused_before_it_is_read_or_as_it_comes(service: Any, png: bytes) -> None:
    check(service.post("/v1/segment?words=cat", b"x" * 3_000_001), 413, "BodyTooLarge")

    def chunks() -> Any:
        for _ in range(40):
            yield b"x" * 100_000

    check(service.post("/v1/segment?words=cat", chunks()), 413, "BodyTooLarge")
    packed = zlib.compress(b"x" * 50_000_000)
    check(service.post("/v1/segment?words=cat", packed, Content_Encoding="deflate"), 413, "BodyTooLarge")
    assert works(service, png)
    assert service.metric("fusioner_bytes_held") == 0


def test_a_refused_body_is_taken_so_that_the_connection_lives(service: Any, png: bytes) -> None:
    connection = http.client.HTTPConnection(service.host, service.port, timeout=60)
    for path, status in (("/nowhere", 404), ("/v1/models", 405), ("/v1/segment?words=cat", 406)) * 2:
        connection.request("POST", path, b"x" * 2_500_000, {"Accept": "text/html"})
        reply = connection.getresponse()
        reply.read()
        assert reply.status == status
        assert connection.sock is not None  # it was not closed
    connection.close()


def test_an_id_is_repeated_by_the_answer_the_problem_and_the_log(service: Any, png: bytes) -> None:
    told = check(service.post("/v1/segment?words=", png, X_Request_Id="my-id.1"), 400, "WordsInvalid")
    assert told["id"] == "my-id.1"
    assert service.post("/v1/segment?words=cat", png, X_Request_Id="my-id.2").json["id"] == "my-id.2"
    assert service.get("/healthz", X_Request_Id="not plain\t").headers["x-request-id"] != "not plain"
    until = time.monotonic() + 10
    while not (lines := [line for line in service.log if line.get("id") == "my-id.2"]) and time.monotonic() < until:
        time.sleep(0.01)
    (line,) = lines
    assert (line["route"], line["status"], line["method"], line["batch"]) == ("/v1/segment", 200, "POST", 1)
    assert line["bytes"] == len(png)
    assert line["stages"]["total"] > 0
    (line,) = (line for line in service.log if line.get("id") == "my-id.1")
    assert line["error"] == "WordsInvalid"


def test_a_token_is_asked_for(start: Any, png: bytes) -> None:
    service = start(token="a-secret")
    for headers in ({}, {"Authorization": "Bearer a-secre"}, {"Authorization": "a-secret"}):
        reply = service.post("/v1/segment?words=cat", png, **headers)
        check(reply, 401, "TokenWrong")
        assert reply.headers["www-authenticate"] == "Bearer"
        assert service.ask("GET", "/v1/models", **headers).status == 401
        assert service.ask("GET", "/metrics", **headers).status == 401
        assert service.ask("GET", "/v2/models/tiny", **headers).status == 401
        assert service.ask("OPTIONS", "/v1/models", **headers).status == 401
    assert service.get("/healthz").status == service.get("/v2/health/ready").status == 200
    assert service.post("/v1/segment?words=cat", png, Authorization="Bearer a-secret").status == 200
    assert "a-secret" not in json.dumps(service.log)


@pytest.mark.parametrize("host", ["x", "x/page/?", "x/page/#", "x/healthz?", "x/v2/health/?", ""])
def test_a_host_header_opens_no_route(start: Any, host: str) -> None:
    """Starlette before 1.0, which the extra takes too, makes of Host and path the URL that it tells."""
    assert start(token="a-secret").ask("GET", "/v1/models", Host=host).status == 401


def test_the_word_bearer_may_be_written_in_any_case(start: Any) -> None:
    service = start(token="a-secret")
    for told in ("bearer a-secret", "BEARER a-secret", "Bearer  a-secret"):
        assert service.get("/v1/models", Authorization=told).status == 200
    for told in ("Basic a-secret", "Bearer", "bearer a-secret x", "Bearer é"):
        check(service.get("/v1/models", Authorization=told), 401, "TokenWrong")


def test_other_origins_may_ask_where_they_are_named(start: Any, png: bytes) -> None:
    service = start(cors=("https://example.org",))
    headers = (
        "authorization, content-encoding, content-type, inference-header-content-length, x-request-id, x-timeout-ms"
    )
    asked = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": headers,
    }
    before = service.ask("OPTIONS", "/v2/models/tiny/infer", **asked)
    assert (before.status, before.headers["access-control-allow-origin"]) == (200, "https://example.org")
    reply = service.post("/v1/segment?words=cat", png, Origin="https://example.org", Sec_Fetch_Site="cross-site")
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "https://example.org")
    assert "inference-header-content-length" in reply.headers["access-control-expose-headers"].lower()
    refused = service.post("/v1/segment?words=", png, Origin="https://example.org", Sec_Fetch_Site="cross-site")
    assert refused.headers["access-control-allow-origin"] == "https://example.org"
    check(refused, 400, "WordsInvalid")
    foreign = {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"}
    assert service.get("/healthz", **foreign).headers["access-control-allow-origin"] is None
    check(service.post("/v1/segment?words=cat", png, **foreign), 403, "OriginRefused")


def test_without_a_name_no_origin_may(service: Any) -> None:
    assert service.get("/healthz", Origin="https://example.org").headers["access-control-allow-origin"] is None


def test_half_a_body_and_a_hang_up_leave_nothing(service: Any, png: bytes) -> None:
    for _ in range(20):
        with service.connect() as line:
            line.sendall(
                b"POST /v1/segment?words=cat HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + png[:500]
            )
    assert works(service, png)
    until = time.monotonic() + 10
    while service.metric("fusioner_bytes_held") and time.monotonic() < until:
        time.sleep(0.02)
    assert service.metric("fusioner_bytes_held") == 0
    assert service.metric("fusioner_in_flight") == 0


def test_a_body_that_does_not_come_is_given_up(start: Any, png: bytes) -> None:
    service = start(body_time=0.2)
    with service.connect() as line:
        line.sendall(b"POST /v1/segment?words=cat HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        assert b" 408 " in line.makefile("rb").readline()
    assert works(service, png)


def test_a_connection_that_nothing_comes_of_is_closed(start: Any, png: bytes) -> None:
    service = start(idle_time=0.8)
    half = b"POST /v1/segment?words=cat HTTP/1.1\r\nHost: x\r\n"
    with service.connect() as silent, service.connect() as slow, service.connect() as kept, service.connect() as waits:
        silent.settimeout(20)
        kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + half)  # the second request of a connection
        waits.sendall(half + b"Content-Length: 9\r\n\r\n")  # for its body there is another limit
        begun = time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):  # the service has closed it
            while time.monotonic() < begun + 20:
                slow.sendall(half[:1])
                half = half[1:] or b"X"
                time.sleep(0.05)
        assert 0.7 < time.monotonic() - begun < 5
        assert silent.recv(1) == b""
        assert kept.makefile("rb").read().endswith(b"}")
        waits.settimeout(0.2)
        with pytest.raises(TimeoutError):
            waits.recv(1)
    connection = http.client.HTTPConnection(service.host, service.port, timeout=20)
    for _ in range(6):  # one that is used stays open
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        assert connection.sock is not None
        time.sleep(0.3)
    connection.close()
    assert works(service, png)


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_broken_bodies_break_nothing(service: Any, png: bytes, count: int) -> None:
    """Every byte sequence is a 4xx or a result, never a 5xx, on connections that stay open."""
    random_ = random.Random(0)
    whole = json.dumps(
        {"picture": base64.b64encode(png).decode(), "words": "cat, dog", "size": [9, 9], "threshold": 0.5}
    ).encode()
    part = (
        b'--b\r\nContent-Disposition: form-data; name="picture"\r\n\r\n'
        + png
        + b'\r\n--b\r\nContent-Disposition: form-data; name="words"\r\n\r\ncat\r\n--b--\r\n'
    )
    seeds = [(whole, "application/json"), (part, "multipart/form-data; boundary=b"), (png, "image/png")]
    seen: dict[int, int] = {}

    def send(number: int) -> None:
        connection = http.client.HTTPConnection(service.host, service.port, timeout=60)
        for index in range(number, count, 4):
            body, kind = seeds[index % 3]
            broken = bytearray(body)
            for _ in range(random_.randint(1, 8)):
                place = random_.randrange(len(broken))
                broken[place : place + random_.randint(0, 40)] = random_.randbytes(random_.randint(0, 6))
            path = "/v1/segment?words=cat&size=8x8" if kind == "image/png" else "/v1/segment"
            connection.request("POST", path, bytes(broken), {"Content-Type": kind})
            reply = connection.getresponse()
            content = reply.read()
            seen[reply.status] = seen.get(reply.status, 0) + 1
            assert reply.status < 500, (content, bytes(broken))
        connection.close()

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(seen.values()) == count, seen
    assert sum(times for status, times in seen.items() if status >= 400) > count / 2
    assert works(service, png)


def test_every_kind_has_its_status() -> None:
    import fusioner_rt.errors

    def below(kind: type) -> list[type]:
        return [one for child in kind.__subclasses__() for one in (child, *below(child))]

    for kind in below(ServiceError):
        error = kind("found", "cure")
        assert problem.status_of(error) == error.status
        assert (error.status < 500) == kind.is_input, kind
    kinds = [kind for kind in below(fusioner_rt.errors.FusionerError) if kind.__module__ == "fusioner_rt.errors"]
    for kind in kinds:
        status = problem.status_of(kind("found", "cure"))
        assert (400 <= status < 500) == kind.is_input, (kind, status)


def test_what_nobody_foresaw_says_nothing_of_the_server() -> None:
    known = problem.as_known(RuntimeError("/home/me/secret.py, line 5"))
    assert problem.document(known, "1")["status"] == 500
    assert "secret" not in json.dumps(problem.document(known, "1"))
    path = fusioner_error("the bundle in /srv/models/demo/bundle has no windows", "/srv/models/demo/manifest.json")
    assert "/srv" not in json.dumps(problem.document(path, "1"))


def fusioner_error(found: str, subject: str) -> Any:
    from fusioner_rt.errors import UsageError

    return UsageError(found, "leave it out", subject)
