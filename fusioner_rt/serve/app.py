"""`create_app`: the routes of the service as an ASGI application."""

import asyncio
import contextlib
import hmac
import importlib.resources
import ipaddress
import json
import re
import secrets
import time
import traceback
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..argument_checks import shown
from . import answer, body, openapi, problem, request, v2
from .batching import Batches, deadline_passed
from .errors import MethodWrong, NotServed, OriginRefused, RequestInvalid, TokenWrong
from .log import RequestLog
from .service import Asker, MakeBatcher, Service
from .settings import Settings

Made = TypeVar("Made")
_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_CHUNK = 1 << 18
_LATER = 0.1  # seconds: what waits in the queue says itself that its time is over, and more of it
_ENCODE = ("model", "window")
_SECURITY = {
    # The page reads pictures as files and streams, never by an address of data: or blob:, and makes no markup of text.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_TYPES = {
    "html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8",
    "json": "application/json", "svg": "image/svg+xml", "jpg": "image/jpeg",
}  # fmt: skip


def create_app(settings: Settings, log: RequestLog | None = None, batcher: MakeBatcher = Batches) -> Starlette:
    """The application. It opens the bundles; the end of its lifespan lets what runs finish.

    log: by default to stderr. batcher: makes the queue. Several applications may live in one process, and each below a path
    of its own, the scope's root_path. Raises the errors of `Session`.
    """
    service = Service(settings, batcher)
    doors = _Doors(service, log or RequestLog())
    for name in service.models.names:
        doors.tell_notes(name)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        numbers = asyncio.create_task(_keep_numbers(service))
        yield
        numbers.cancel()
        await service.close()
        await asyncio.to_thread(doors.log.close)

    routes = [
        _Route("/v1/segment", doors.segment, methods=["POST"]),
        _Route("/v1/encode", doors.encode, methods=["POST"]),
        _Route("/v1/encoded/{handle}", doors.forget, methods=["DELETE"]),
        _Route("/v1/models", doors.models),
        _Route("/v2", doors.server),
        _Route("/v2/health/live", doors.empty),
        _Route("/v2/health/ready", doors.empty),
        _Route("/v2/models/{model}", doors.model),
        _Route("/v2/models/{model}/ready", doors.model_ready),
        _Route("/v2/models/{model}/infer", doors.infer, methods=["POST"]),
        _Route("/healthz", doors.health),
        _Route("/openapi.json", doors.description),
        _Route("/metrics", doors.metrics),
        _Route("/", doors.page),
        _Route("/page/{name:path}", doors.page),
    ]
    middleware = [Middleware(_Envelope, doors=doors)]
    if settings.cors:  # around it all: a page reads problems too
        allowed = ["Authorization", "Content-Encoding", "Content-Type", v2.HEADER, "X-Request-Id", "X-Timeout-Ms"]
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware, allow_origins=list(settings.cors), allow_methods=["GET", "POST", "DELETE"],
                allow_headers=allowed, expose_headers=["Retry-After", v2.HEADER, "X-Request-Id"],
            ),
        )  # fmt: skip
    app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _known}, lifespan=lifespan)
    app.router.redirect_slashes = False  # to an address that the client's Host header names
    app.state.service, app.state.reload = service, doors.reload
    return app


class _Route(Route):
    """Starlette before 1.7 does not say which route a request took."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(scope)
        return match, {**found, "route": self}


async def _keep_numbers(service: Service) -> None:
    """For the processes that share them, of which any may be asked."""
    while service.settings.shared:
        await service.in_thread(service.metrics.update)
        await asyncio.sleep(1)


class _Doors:
    """The routes' functions."""

    def __init__(self, service: Service, log: RequestLog) -> None:
        self.service, self.settings, self.log = service, service.settings, log

    async def segment(self, http: Request) -> Response:
        form = answer.media_type(http.headers.get("accept", ""))
        service, asker = self.service, http.state.asker
        query, kind = body.queried(http), http.headers.get("content-type", "")
        received = await self._body(http)

        def read() -> tuple[request.SegmentRequest, bytes | None, str | None]:
            fields, picture = body.fields_of(kind, query, received)
            handle = fields.pop("handle", None)
            asked = request.parse(fields, self._most_words(fields.get("model"), handle), self.settings.max_pixels)
            if (picture is None) == (handle is None):
                raise RequestInvalid(
                    "the request holds no picture" if handle is None else "the request holds a picture and a handle",
                    "send one picture: as the body, as the part picture of a form, in base64 as picture in JSON; or a handle",
                    "picture",
                )
            answer.check_packages(form, asked)
            return asked, picture, None if handle is None else request.text(handle, "handle")

        async def work() -> bytes:
            with service.places.several():
                with asker.held.meanwhile(body.parsed_bytes(received)):
                    asked, picture, handle = await service.in_thread(read)
                done = await service.segment(asked, picture, handle, asker)
                assert done.result is not None
                told = answer.Answer(asker.id, done.model, asked, done.result, done.timing, done.handle, asker.check)
                start = time.perf_counter()
                content: bytes = await service.in_thread(answer.encode, form, told)
                taken = time.perf_counter() - start
                service.metrics.stages.labels("answer").observe(taken)
                asker.told["stages"]["answer"] = round(taken * 1000, 1)
                return content

        content = await _in_time(http, work())
        asker.held.keep(len(content))
        return Response(content, media_type=form)

    async def encode(self, http: Request) -> Response:
        service, asker = self.service, http.state.asker
        query, kind = body.queried(http), http.headers.get("content-type", "")
        received = await self._body(http)

        def read() -> tuple[request.SegmentRequest, bytes]:
            fields, picture = body.fields_of(kind, query, received)
            for name in fields:
                if name in (*request.FIELDS, "handle") and name not in _ENCODE:
                    raise RequestInvalid("is no field of encode", "send it to segment, with the handle", name)
            request.check_names(fields, _ENCODE, ("picture", *_ENCODE))
            if picture is None:
                raise RequestInvalid("the request holds no picture", "send one", "picture")
            return request.parse({"words": "-", **fields}, self.settings.max_words, self.settings.max_pixels), picture

        async def work() -> dict[str, Any]:
            with service.places.several():
                with asker.held.meanwhile(body.parsed_bytes(received)):
                    given, picture = await service.in_thread(read)
                done = await service.encode(picture, given.model, given.window, asker)
            assert done.encoded is not None
            return {
                "id": asker.id,
                "handle": done.handle,
                "model": done.model,
                "size": list(done.encoded.picture.shape[:2]),
                "seconds": self.settings.handle_age,
                "timing": {stage: round(taken, 3) for stage, taken in done.timing.items()},
            }

        return _json(await _in_time(http, work()))

    async def forget(self, http: Request) -> Response:
        await _in_time(http, self.service.in_thread(self.service.handles.drop, http.path_params["handle"]))
        return Response(status_code=204)

    async def models(self, http: Request) -> Response:
        return _json({"models": [self._described(name) for name in self.service.models.names]})

    async def server(self, http: Request) -> Response:
        return _json({"name": "fusioner-rt", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def empty(self, http: Request) -> Response:
        return Response()

    async def model(self, http: Request) -> Response:
        return _json(v2.metadata(self.service.models[http.path_params["model"]].name))

    async def model_ready(self, http: Request) -> Response:
        self.service.models[http.path_params["model"]]
        return Response()

    async def infer(self, http: Request) -> Response:
        service, asker, settings = self.service, http.state.asker, self.settings
        model = service.models[http.path_params["model"]].name
        received = await self._body(http)

        async def work() -> tuple[bytes, int | None]:
            with asker.held.meanwhile(body.parsed_bytes(received)):
                inference = await service.in_thread(
                    v2.parse,
                    received,
                    http.headers.get(v2.HEADER),
                    model,
                    self._most_words(model, None),
                    settings.max_pixels,
                    settings.queue,
                )
            with service.places.several(len(inference.pictures)):
                tasks = [
                    asyncio.ensure_future(service.segment(inference.request, picture, None, asker))
                    for picture in inference.pictures
                ]
                try:
                    results = [done.result for done in await asyncio.gather(*tasks) if done.result is not None]
                finally:
                    for task in tasks:
                        task.cancel()
                with asker.held.meanwhile(v2.answered_bytes(inference, results)):
                    answered: tuple[bytes, int | None] = await service.in_thread(v2.answer, inference, results, model)
                return answered

        content, header = await _in_time(http, work())
        asker.held.keep(len(content))
        headers = {} if header is None else {v2.HEADER: str(header)}
        return Response(content, 200, headers, "application/octet-stream" if header else "application/json")

    async def health(self, http: Request) -> Response:
        return _json({"status": "ok", "version": __version__, "models": self.service.models.names})

    async def description(self, http: Request) -> Response:
        return _json(openapi.description(self.settings, http.scope.get("root_path", "")))

    async def metrics(self, http: Request) -> Response:
        from .metrics import MEDIA_TYPE

        def text() -> bytes:
            self.service.metrics.update()
            return self.service.metrics.text()

        return Response(await _in_time(http, self.service.in_thread(text)), headers={"Content-Type": MEDIA_TYPE})

    async def page(self, http: Request) -> Response:
        name = http.path_params.get("name", "index.html")
        parts = name.split("/")
        kind = _TYPES.get(name.rpartition(".")[2].lower())
        if kind is None or any(not re.fullmatch(r"\w[\w.-]*", part, re.ASCII) for part in parts):
            raise NotServed("there is no such page")
        file = importlib.resources.files(__package__).joinpath("page", *parts)
        try:
            content = await _in_time(http, self.service.in_thread(file.read_bytes))
        except OSError:
            raise NotServed("there is no such page") from None
        return Response(content, headers={**_SECURITY, "Content-Type": kind})

    def tell_notes(self, name: str) -> None:
        """Log what is not as it should be with a bundle that was opened."""
        for note in self.service.models[name].session.notes:
            self.log(event="note", model=name, message=note)

    async def reload(self) -> None:
        """Load changed bundles anew."""

        def load() -> None:
            unchanged = self.service.models.names
            for name, error in self.service.models.reload():
                self.service.metrics.reloads.labels(name, "failed" if error else "done").inc()
                failed = {"error": problem.logged(error)} if error else {}
                self.log(event="reload", model=name, result="failed" if error else "loaded", **failed)
                if not error:
                    self.tell_notes(name)
                unchanged.remove(name)
            for name in unchanged:
                self.log(event="reload", model=name, result="unchanged")

        await asyncio.to_thread(load)

    async def _body(self, http: Request) -> bytes:
        self.service.places.check()  # before a body is read for nothing
        asker: Asker = http.state.asker
        seconds = min(self.settings.body_time, max(0.0, asker.until - time.monotonic()))
        content = await body.read(http, self.settings.max_bytes, seconds, asker.held)
        asker.told["bytes"] = len(content)
        return content

    def _most_words(self, model: Any, handle: Any) -> int:
        """Words of a request: no more than its bundle takes, where the request says which that is."""
        models = self.service.models
        known = model in models.names if isinstance(model, str) else model is None and handle is None
        most = self.settings.max_words
        return min(most, models[model].session.bundle.words.max) if known else most

    def _described(self, name: str) -> dict[str, Any]:
        model = self.service.models[name]
        bundle, backend = model.session.bundle, model.session.backend
        return {
            "name": name,
            "digest": model.digest,
            "backend": backend.effective,
            "threshold": bundle.threshold,
            "max_words": bundle.words.max,
            "max_batch": bundle.batch.max,
            "windows": bundle.windows is not None,
        }


class _Envelope:
    """What is around every request: its id, the token, problems, metrics, and its line of the log."""

    def __init__(self, app: ASGIApp, doors: _Doors) -> None:
        self._app, self._doors = app, doors
        self._settings = doors.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, http = time.monotonic(), Request(scope, receive)
        given = http.headers.get("x-request-id", "")
        held = body.Held(self._doors.service.room)
        asker = Asker(given if _ID.fullmatch(given) else secrets.token_hex(8), start + self._settings.deadline, held)
        scope.setdefault("state", {})["asker"] = asker
        status, failed = 0, ""
        upload = _Upload(receive, http.headers, start + self._settings.body_time)

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", asker.id.encode()), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message.get("headers", []), *own]
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if last and upload.is_coming:
                await _in_chunks({**message, "more_body": True}, send, self._settings.read_time)
                held.release()
                await upload.drain(asker.until)
                message = {"type": "http.response.body"}
            await _in_chunks(message, send, self._settings.read_time)

        try:
            try:
                self._check(http, asker, start)
                await self._app(scope, upload, answered)
            except body.ClientDisconnect:
                failed, status = "ClientGone", 499
            except asyncio.CancelledError:  # by a server that stops what nobody waits for
                failed, status = "ClientGone", status or 499
                raise
            except Exception as error:
                if status:
                    raise
                known = problem.as_known(error)
                failed = type(known).__name__
                if not known.is_input:
                    asker.told["error_detail"] = problem.logged(error)
                if known is not error:
                    asker.told["traceback"] = traceback.format_exception(error)
                await problem.response(known, asker.id, _path(scope))(scope, upload, answered)
        except TimeoutError:
            failed = "ReaderSlow"
            raise
        finally:
            held.release()
            self._tell(http, asker, start, status, failed or asker.told.pop("failed", ""))

    def _check(self, http: Request, asker: Asker, start: float) -> None:
        """Raises TokenWrong, OriginRefused, RequestInvalid."""
        settings = self._settings
        is_open = openapi.is_open(_path(http.scope))  # http.url would hold what the Host header says, a path even
        if settings.token and not is_open:
            scheme, _, given = http.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), settings.token.encode()):
                found = (
                    "the request bears no token" if not scheme
                    else "the header Authorization does not begin with Bearer" if scheme.lower() != "bearer"
                    else "the token is not this service's"
                )  # fmt: skip
                raise TokenWrong(found, "send the header Authorization: Bearer TOKEN")
        if not is_open:
            self._check_origin(http.headers)
        if timeout := http.headers.get("x-timeout-ms"):
            if not (timeout.isascii() and timeout.isdecimal() and len(timeout) < 10 and int(timeout)):
                raise RequestInvalid("is no whole number of milliseconds", "give 1 or more", "X-Timeout-Ms")
            asker.until = min(asker.until, start + int(timeout) / 1000)

    def _check_origin(self, headers: Headers) -> None:
        """Raises OriginRefused."""
        settings, host = self._settings, headers.get("host", "").lower()
        origin, site = headers.get("origin", ""), headers.get("sec-fetch-site")
        # A page over plain HTTP has the origin alone; that of a file or a sandbox is "null".
        is_own = site in ("same-origin", "none") if site else _authority(origin) == _authority(f"//{host}") != ""
        if origin and not is_own and not {origin, "*"} & set(settings.cors):
            raise OriginRefused(
                "a page of another site asks", "name its origin when the service is started, for CORS", origin
            )
        # A site may let its name lead to this machine: its pages are then of the same origin.
        named = "*" in settings.cors or _authority(f"//{host}") in map(_authority, settings.cors)
        if settings.loopback and not settings.token and not named and not _is_here(host):
            raise OriginRefused(
                f"the request is for the host {shown(host)}, this service is for this machine alone",
                "ask for localhost, or start the service with a token, or with that host's origin, for CORS",
                "Host",
            )

    def _tell(self, http: Request, asker: Asker, start: float, status: int, failed: str) -> None:
        seconds, metrics = time.monotonic() - start, self._doors.service.metrics
        route = getattr(http.scope.get("route"), "path", "other")
        metrics.requests.labels(route, http.method if http.method in _METHODS else "other", str(status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        if failed:
            metrics.errors.labels(failed).inc()
        error = {"error": failed} if failed else {}
        self._doors.log(
            id=asker.id, method=http.method, route=route, status=status, ms=round(seconds * 1000, 1), **error, **asker.told
        )  # fmt: skip


_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH")


class _Upload:
    """A request's `receive`, which knows whether its body is still coming."""

    def __init__(self, receive: Receive, headers: Headers, until: float) -> None:
        """until: when it is no longer waited for, as of time.monotonic."""
        self._receive, self._until = receive, until
        self.is_coming = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self._held_back = "expect" in headers  # until it is asked for

    async def __call__(self) -> Message:
        message = await self._receive()
        self._held_back = False
        if not message.get("more_body", False):  # the end, or the client is gone
            self.is_coming = False
        return message

    async def drain(self, until: float) -> None:
        """Take what a refused client still sends: a connection that is closed before loses it the answer."""
        seconds = min(self._until, until) - time.monotonic()
        if not self._held_back:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while self.is_coming:
                        await self()


def _path(scope: Scope) -> str:
    """That of the route, below what the application is below. http.url would hold what the Host header says, a path even."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _authority(origin: str) -> str:
    """The host and port of an origin; no port is that of the scheme, which a proxy may have ended."""
    return re.sub(r":(80|443)$", "", origin.partition("//")[2].lower())


def _is_here(host: str) -> bool:
    """Whether a Host header names this machine, whatever a name server says: by an address, localhost, or not at all."""
    name = re.sub(r":[0-9]*$", "", host)
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name in ("", "localhost") or name.endswith(".localhost")
    return True


async def _in_chunks(message: Message, send: Send, seconds: float) -> None:
    """Send an answer as fast as its reader takes it. seconds: for each chunk. Raises TimeoutError."""
    content = message.get("body", b"")
    if message["type"] == "http.response.body" and len(content) > _CHUNK:
        more = message.get("more_body", False)
        for start in range(0, len(content), _CHUNK):
            last = start + _CHUNK >= len(content)
            part = {**message, "body": content[start : start + _CHUNK], "more_body": more or not last}
            async with asyncio.timeout(seconds):
                await send(part)
        return
    async with asyncio.timeout(seconds):
        await send(message)


async def _in_time(http: Request, work: Awaitable[Made]) -> Made:
    """The result of work, which ends when the client hangs up or its time is over. Raises ClientDisconnect, DeadlinePassed."""
    asker: Asker = http.state.asker
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(http))
    try:
        left = max(0.0, asker.until - time.monotonic()) + _LATER
        await asyncio.wait({working, leaving}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise body.ClientDisconnect if leaving.done() else deadline_passed()
    finally:
        asker.is_over = True
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})


async def _gone(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _known(http: Request, error: Exception) -> Response:
    """The router's own errors: no such route, another method."""
    status = getattr(error, "status_code", 500)
    asker: Asker = http.state.asker
    path = _path(http.scope)
    if status == 405:
        allowed = (getattr(error, "headers", None) or {}).get("Allow", "")
        refused = MethodWrong(f"{http.method} is not taken there", f"use {allowed}")
        asker.told["failed"] = "MethodWrong"
        response = problem.response(refused, asker.id, path)
        response.headers["Allow"] = allowed
        return response
    asker.told["failed"] = "NotServed"
    return problem.response(NotServed("there is no such route", "GET /openapi.json lists them"), asker.id, path)


def _json(content: Any) -> Response:
    return Response(json.dumps(content, ensure_ascii=False).encode(), media_type="application/json")
