"""The description of the service, OpenAPI 3.1: GET /openapi.json."""

from typing import Any

from .. import __version__
from .answer import JPEG, JSON, NPZ, PNG
from .problem import MEDIA_TYPE
from .settings import Settings

_TEXT, _NUMBER, _WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}
_WORDS = {
    "oneOf": [
        {"type": "string"},
        {"type": "array", "items": {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}]}},
    ],
    "examples": ["cat, sofa|couch", ["cat", ["sofa", "couch"]]],
}
FIELDS: dict[str, dict[str, Any]] = {
    "words": {**_WORDS, "description": "What to look for; a list in the list, or | between words, is a group."},
    "background": {**_WORDS, "description": 'Words whose pixels belong to nothing, or "common".'},
    "threshold": {
        "oneOf": [
            {"type": "number", "minimum": 0, "maximum": 1},
            {"type": "object", "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1}},
            {"const": "default"},
        ],
        "description": "Least probability of a mask, or of some words' by word. By default the bundle's.",
    },
    "mode": {"enum": ["joint", "independent"], "default": "joint"},
    "window": {"enum": ["whole", "sliding"], "default": "whole"},
    "size": {
        "oneOf": [
            {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2},
            {"type": "string", "pattern": "^[0-9]+x[0-9]+$"},
        ],
        "description": "Height and width of the label map, [H, W] or HxW. By default the picture's.",
    },
    "masks": {"enum": ["rle", "polygons", "none"], "default": "rle", "description": "Masks of the JSON answer."},
    "tolerance": {"type": "number", "minimum": 0, "default": 0, "description": "Of polygons, pixels."},
    "instances": {"type": "boolean", "default": False, "description": "Also list the connected parts of each word."},
    "keep": {"type": "boolean", "default": False, "description": "Also answer a handle, for other words."},
    "model": {**_TEXT, "description": "By default the first."},
}
_ENCODE = ("model", "window")
_FOUND = {
    "area": _WHOLE,
    "box": {"type": ["array", "null"], "items": _WHOLE, "description": "x, y, width, height"},
    "mask": {
        "type": "object",
        "properties": {"size": {"type": "array", "items": _WHOLE}, "counts": _TEXT},
        "description": "Run lengths as COCO has them, compressed.",
    },
    "polygons": {"type": "array", "items": {"type": "object"}},
}
_COLOUR = {"type": "array", "items": _WHOLE, "description": "Red, green and blue of overlays, 0 to 255."}
_TIMING = {"type": "object", "additionalProperties": _NUMBER, "description": "Milliseconds by stage."}


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    return schema | ({"required": required} if required else {})


_SCHEMAS = {
    "Answer": _object(
        {
            "id": _TEXT,
            "model": _TEXT,
            "size": {"type": "array", "items": _WHOLE, "description": "Height and width of the label map."},
            "words": {
                "type": "array",
                "items": _object({"word": _TEXT, "share": _NUMBER, "score": _NUMBER, "colour": _COLOUR, **_FOUND}),
            },
            "instances": {"type": "array", "items": _object({"word": _TEXT, "score": _NUMBER, **_FOUND})},
            "threshold": {"type": ["number", "object", "string"]},
            "notes": {"type": "array", "items": _TEXT},
            "timing": _TIMING,
            "handle": {"type": ["string", "null"]},
        },
        ["id", "model", "size", "words", "instances", "threshold", "notes", "timing", "handle"],
    ),
    "Encoded": _object(
        {
            "id": _TEXT,
            "handle": _TEXT,
            "model": _TEXT,
            "size": {"type": "array", "items": _WHOLE},
            "seconds": {**_NUMBER, "description": "It is kept for so long after its last use."},
            "timing": _TIMING,
        },
        ["id", "handle", "model", "size", "seconds", "timing"],
    ),
    "Problem": _object(
        {
            "type": _TEXT,
            "title": _TEXT,
            "status": _WHOLE,
            "detail": _TEXT,
            "code": _WHOLE,
            "found": _TEXT,
            "cure": _TEXT,
            "subject": {"type": ["string", "null"]},
            "is_input": {"type": "boolean"},
            "id": _TEXT,
        },
        ["type", "title", "status", "detail", "code", "found", "cure", "subject", "is_input", "id"],
    ),
}
_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}


_OPEN = ("/page/", "/healthz", "/openapi.json", "/v2/health/")


def is_open(path: str) -> bool:
    """Whether a route needs no token: it holds no data."""
    return path == "/" or path.startswith(_OPEN)


def description(settings: Settings, below: str = "") -> dict[str, Any]:
    """The OpenAPI document. below: the path that the routes are below."""
    secured: dict[str, Any] = {"security": [{"token": []}]} if settings.token else {}
    schemes = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}} if settings.token else {}
    handle_field = {"name": "handle", "in": "query", "schema": _TEXT, "description": "In place of a body."}
    segment = {
        "requestBody": {**_body(tuple(FIELDS), {"handle": _TEXT}), "required": False},
        "parameters": [*_query(tuple(FIELDS)), handle_field, _TIMEOUT],
        "responses": _responses(
            {
                JSON: {"schema": {"$ref": "#/components/schemas/Answer"}},
                PNG: {"schema": _FILE},
                JPEG: {"schema": _FILE},
                NPZ: {"schema": _FILE},
            }
        ),
    }
    encode = {
        "requestBody": _body(_ENCODE, {}),
        "parameters": [*_query(_ENCODE), _TIMEOUT],
        "responses": _responses({JSON: {"schema": {"$ref": "#/components/schemas/Encoded"}}}),
    }
    model = {"name": "model", "in": "path", "required": True, "schema": _TEXT}
    handle = {"name": "handle", "in": "path", "required": True, "schema": _TEXT}
    infer_body = {
        "required": True,
        "content": {JSON: {"schema": {"type": "object"}}, "application/octet-stream": {"schema": _FILE}},
    }
    infer = {"parameters": [model, _TIMEOUT], "requestBody": infer_body, "responses": _responses(_ANYTHING)}
    paths: dict[str, dict[str, Any]] = {
        "/v1/segment": {"post": {"summary": "Masks of a picture", **segment}},
        "/v1/encode": {"post": {"summary": "Encode a picture, for many words", **encode}},
        "/v1/encoded/{handle}": {
            "delete": {
                "summary": "Drop an encoded picture",
                "parameters": [handle],
                "responses": _responses(None, "204"),
            }
        },
        "/v1/models": {"get": {"summary": "The bundles", "responses": _responses(_ANYTHING)}},
        "/v2": {"get": {"summary": "Open Inference Protocol: the server", "responses": _responses(_ANYTHING)}},
        "/v2/health/live": {"get": {"summary": "Alive", "responses": _responses(None)}},
        "/v2/health/ready": {"get": {"summary": "Ready", "responses": _responses(None)}},
        "/v2/models/{model}": {
            "get": {"summary": "Inputs and outputs", "parameters": [model], "responses": _responses(_ANYTHING)}
        },
        "/v2/models/{model}/ready": {
            "get": {"summary": "A model is ready", "parameters": [model], "responses": _responses(None)}
        },
        "/v2/models/{model}/infer": {"post": {"summary": "Masks of pictures, as tensors", **infer}},
        "/healthz": {"get": {"summary": "Alive", "responses": _responses(_ANYTHING)}},
        "/openapi.json": {"get": {"summary": "This document", "responses": _responses(_ANYTHING)}},
        "/metrics": {"get": {"summary": "Metrics for Prometheus", "responses": _responses({"text/plain": {}})}},
        "/": {"get": {"summary": "The page", "responses": _responses({"text/html": {}})}},
        "/page/{name}": {
            "get": {
                "summary": "A file of the page",
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": _TEXT}],
                "responses": _responses({"*/*": {}}),
            }
        },
    }
    for path in paths:
        if settings.token and is_open(path):
            paths[path]["get"]["security"] = []
    return {
        "openapi": "3.1.0",
        "info": {"title": "fusioner-rt", "version": __version__, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        **({"servers": [{"url": below}]} if below else {}),
        "paths": paths,
        "components": {"schemas": _SCHEMAS, **schemes},
        **secured,
    }  # fmt: skip


_ANYTHING = {JSON: {"schema": {"type": "object"}}}
_TIMEOUT = {
    "name": "X-Timeout-Ms", "in": "header", "schema": {"type": "integer", "minimum": 1},
    "description": "Milliseconds for the whole request; never more than the service's own deadline.",
}  # fmt: skip


def _query(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Fields beside a picture as raw body."""
    return [{"name": name, "in": "query", "schema": FIELDS[name]} for name in names]


def _body(names: tuple[str, ...], further: dict[str, Any]) -> dict[str, Any]:
    fields = {name: FIELDS[name] for name in names}
    encoded = {"type": "string", "contentEncoding": "base64", "description": "A picture file."}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _object({"picture": _FILE, **further, **fields})},
            JSON: {"schema": _object({"picture": encoded, **further, **fields})},
            "image/*": {"schema": _FILE},
            "application/octet-stream": {"schema": _FILE},
        },
    }


def _responses(content: dict[str, Any] | None, status: str = "200") -> dict[str, Any]:
    done: dict[str, Any] = {"description": "Done"}
    problem = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: done if content is None else {**done, "content": content},
        "default": {"description": "A problem document (RFC 9457)", "content": problem},
    }
