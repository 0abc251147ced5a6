"""Uploads, read with a bound as they come, to fields and a picture."""

import asyncio
import base64
import binascii
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from ..argument_checks import shown
from .errors import BodySlow, BodyTooLarge, BodyUnknown, RequestInvalid, ServiceFull
from .request import FIELDS, read_json

_MOST_PARTS = 64
_CODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 47}  # window bits of zlib


class Room:
    """Bytes that all requests may hold at once."""

    def __init__(self, size: int) -> None:
        self.size, self.taken = size, 0

    def take(self, count: int) -> None:
        """Raises ServiceFull."""
        if self.taken + count > self.size:
            raise ServiceFull(
                f"the requests at hand fill the {self.size / 1e6:.0f} MB that this service keeps", "send it again later"
            )
        self.taken += count

    def give(self, count: int) -> None:
        self.taken -= count


class Held:
    """What one request holds of the room."""

    def __init__(self, room: Room) -> None:
        self._room, self.count = room, 0

    def take(self, count: int) -> None:
        """Raises ServiceFull, and RequestInvalid where the whole room is too small."""
        if self.count + count > self._room.size:
            raise RequestInvalid(
                f"the request and its answer take {(self.count + count) / 1e6:.0f} MB, this service has "
                f"{self._room.size / 1e6:.0f} MB for all",
                "ask for a smaller size, for fewer pictures in one request, or for binary tensors in place of JSON",
            )
        self._room.take(count)
        self.count += count

    @contextmanager
    def meanwhile(self, count: int) -> Iterator[None]:
        """Take, and give back. Raises as `take`."""
        self.take(count)
        try:
            yield
        finally:
            self.give(count)

    def keep(self, count: int) -> None:
        """Give back all but this, which is taken. Raises as `take`."""
        self.release()
        self.take(count)

    def give(self, count: int) -> None:
        count = min(count, self.count)  # of a request that is over already
        self._room.give(count)
        self.count -= count

    def release(self) -> None:
        self.give(self.count)


def parsed_bytes(body: bytes) -> int:
    """About what its JSON takes in memory beside it, if it is JSON: the least objects stand between commas."""
    return 56 * body.count(b",")


async def read(request: Request, most: int, seconds: float, held: Held) -> bytes:
    """The body. most: bytes, also once it is unpacked. Raises BodyTooLarge, BodySlow, BodyUnknown, ServiceFull, ClientDisconnect."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise _too_large(most)
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "", *_CODINGS):
        raise BodyUnknown(
            f"the body is coded as {shown(coding)}", "send it plain, or as gzip or deflate", "Content-Encoding"
        )
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > most:
                    raise _too_large(most)
                held.take(len(chunk))
                body += chunk
    except TimeoutError:
        raise BodySlow(f"the body did not arrive within {seconds:g} s", "send it again over a faster line") from None
    if coding in _CODINGS:
        held.take(most)  # it may unpack to as much
        return await asyncio.to_thread(_unpacked, bytes(body), _CODINGS[coding], most)
    return bytes(body)


def fields_of(content_type: str, query: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes | None]:
    """The fields of a request, and its picture's bytes where it has one.

    content_type: of the body: multipart/form-data, application/json, or else the picture itself with the fields in the query.
    Raises RequestInvalid, BodyUnknown.
    """
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        fields, picture = _multipart(body, options.get(b"boundary", b""))
    elif kind == b"application/json":
        fields, picture = _json(body)
    elif kind in (b"", b"application/octet-stream") or kind.startswith(b"image/"):
        return dict(query), body if body or kind else None  # with a handle in the query there need be no body
    else:
        raise BodyUnknown(
            f"the body is {shown(content_type)}",
            "send a picture as image/* or application/octet-stream, multipart/form-data, or application/json",
            "Content-Type",
        )
    if twice := fields.keys() & query.keys():
        raise RequestInvalid(f"{min(twice)} is given in the query and in the body", "give it once")
    return {**query, **fields}, picture


def queried(request: Request) -> dict[str, Any]:
    """The fields of a query; of `words` there may be several. Raises RequestInvalid."""
    fields = _gathered(request.query_params.multi_items())
    if "picture" in fields:
        raise RequestInvalid("is no field of a query", "send the picture as the body", "picture")
    return fields


def _gathered(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name not in fields:
            fields[name] = value
        elif name in ("words", "background"):
            fields[name] = [*(fields[name] if isinstance(fields[name], list) else [fields[name]]), value]
        else:
            raise RequestInvalid("is given twice", "give it once", name)
    return fields


def _json(body: bytes) -> tuple[dict[str, Any], bytes | None]:
    fields = read_json(body, "the body", "send a JSON object")
    if not isinstance(fields, dict):
        raise RequestInvalid(f"the body is {shown(fields)}, a JSON object was expected", "send an object of the fields")
    given = fields.pop("picture", None)
    if given is None:
        return fields, None
    if not isinstance(given, str):
        raise RequestInvalid(
            f"is {shown(given)}, base64 was expected", "give a picture file's bytes in base64", "picture"
        )
    text = given.partition(",")[2] if given.startswith("data:") else given
    try:
        return fields, base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestInvalid(f"is no base64 ({error})", "give a picture file's bytes in base64", "picture") from None


def _multipart(body: bytes, boundary: bytes) -> tuple[dict[str, Any], bytes | None]:
    """The parts of a form. Its file is the part `picture`."""
    if not boundary:
        raise RequestInvalid(
            "multipart/form-data has no boundary", "let the client's own form write that header", "Content-Type"
        )
    parts: list[tuple[dict[bytes, bytes], bytearray]] = []
    header: list[bytearray] = []
    ended = False

    def part_begin() -> None:
        if len(parts) == _MOST_PARTS:
            raise RequestInvalid(f"the form has more than {_MOST_PARTS} parts", "send fewer")
        parts.append(({}, bytearray()))

    def header_begin() -> None:
        header[:] = [bytearray(), bytearray()]

    def header_field(data: bytes, start: int, end: int) -> None:
        header[0].extend(data[start:end])

    def header_value(data: bytes, start: int, end: int) -> None:
        header[1].extend(data[start:end])

    def header_end() -> None:
        parts[-1][0][bytes(header[0]).lower()] = bytes(header[1])

    def part_data(data: bytes, start: int, end: int) -> None:
        parts[-1][1].extend(memoryview(data)[start:end])

    def end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": part_begin, "on_header_begin": header_begin, "on_header_field": header_field,
                "on_header_value": header_value, "on_header_end": header_end, "on_part_data": part_data, "on_end": end,
            },
        )  # fmt: skip
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestInvalid(f"the form cannot be read ({str(error)[:120]})", "send multipart/form-data") from None
    if not ended:
        raise RequestInvalid("the form is cut short: its last boundary is missing", "send it whole")
    picture, pairs = None, []
    for headers, content in parts:
        _, options = parse_options_header(headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name == "picture":
            if picture is not None:
                raise RequestInvalid("is given twice", "send one picture a request", name)
            picture = bytes(content)
            continue
        if b"filename" in options and name not in (*FIELDS, "handle"):
            raise RequestInvalid("is no part that takes a file", "send the file as the part picture", name)
        try:
            pairs.append((name, content.decode()))
        except UnicodeDecodeError:
            raise RequestInvalid("holds bytes that are no UTF-8", "send the file as the part picture", name) from None
    return _gathered(pairs), picture


def _unpacked(body: bytes, window: int, most: int) -> bytes:
    unpack = zlib.decompressobj(window)
    try:
        content = unpack.decompress(body, most + 1)
    except zlib.error as error:
        raise RequestInvalid(f"the body cannot be unpacked ({error})", "send it whole, or plain") from None
    if len(content) > most:
        raise _too_large(most)
    if not unpack.eof:
        raise RequestInvalid("the packed body is cut short", "send it whole")
    return content


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {most / 1e6:g} MB", "send a smaller picture")


__all__ = ["ClientDisconnect", "Held", "Room", "fields_of", "parsed_bytes", "queried", "read"]
