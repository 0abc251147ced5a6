"""A machine learning backend for Label Studio: it answers with a brush mask per label of the project.

    python -m fusioner_rt.interfaces.label_studio --root FOLDER

The words are the labels of the project's `BrushLabels`; a label's `predicted_values="cat, kitten"` are asked for in its place.
Needs no package but where pictures are fetched from Label Studio, which is label-studio-sdk's work.
"""

import base64
import binascii
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np

from .. import __version__
from ..command_end import run_command, say
from ..command_parser import CommandParser, count, path_argument
from ..decode_picture import Picture
from ..errors import FusionerError, PictureMissing, UsageError, one_line
from ..optional_packages import optional
from ..results.rle import run_lengths
from ..results.segmentation import Segmentation
from ..session import Session
from .objects import objects

VERSION = f"fusioner-rt {__version__}"
_SIZES = (3, 4, 8, 16)  # bits of a run's length, the four widths that Label Studio's editor writes
_LONGEST = 1 << _SIZES[-1]
_BODY = 64_000_000  # bytes of a request
_PATIENCE = 30.0  # seconds that a connection may be silent
_SDK = "label_studio_sdk._extensions.label_studio_tools.core.utils.io"
_UPLOADS = ("/data/upload/", "/upload/", "upload/", "/storage-data/uploaded/")
_CLOUDS = ("s3://", "gs://", "azure-blob://")
_log = logging.getLogger("fusioner_rt")
Fetch = Callable[[dict[str, Any], str], Picture]


def brush_rle(mask: np.ndarray) -> list[int]:
    """Label Studio's run lengths of a brush mask, bytes as numbers. mask: (H, W) bool.

    They are of the mask's four channels, row by row, with values of 0 and 255: a header of 53 bits (the number of values, the
    bits of one, the four widths), then for each run a 1, which width, the length less one, and the value.
    """
    bits = [f"{mask.size * 4:032b}", f"{8 - 1:05b}", *(f"{width - 1:04b}" for width in _SIZES)]
    value = 0
    for run in run_lengths(np.asarray(mask, bool).T):  # of the transposed, down the columns: row by row
        left = run * 4
        while left:
            length = min(left, _LONGEST)
            kind = next(kind for kind, width in enumerate(_SIZES) if length <= 1 << width)
            bits.append(f"1{kind:02b}{length - 1:0{_SIZES[kind]}b}{value:08b}")
            left -= length
        value = 255 - value
    text = "".join(bits)
    count = len(text) // 8 + 1
    return list(int(text.ljust(count * 8, "0"), 2).to_bytes(count, "big"))


@dataclass(frozen=True)
class Brush:
    """The brush of a labelling configuration. words: a label's own spellings and synonyms, by label. data: the name of the
    task's field that holds the picture.
    """

    name: str
    image: str
    data: str
    words: dict[str, list[str]]


def read_config(config: Any) -> Brush:
    """The first `BrushLabels` of a labelling configuration, which is XML. Raises UsageError."""
    try:
        tree = ElementTree.fromstring(config)
    except (ElementTree.ParseError, TypeError, ValueError) as error:
        raise UsageError(
            f"the labelling configuration is no XML ({one_line(error)})", "send the project's label_config"
        ) from None
    brush = next(tree.iter("BrushLabels"), None)
    image = next(
        (one for one in tree.iter("Image") if brush is not None and one.get("name") == brush.get("toName")), None
    )
    if brush is None or image is None:
        raise UsageError(
            "the labelling configuration has no BrushLabels of an Image",
            'give it <Image name="image" value="$image"/> and <BrushLabels name="tag" toName="image"> with a Label per word',
        )
    words = {
        label.get("value", ""): [
            word.strip() for word in label.get("predicted_values", label.get("value", "")).split(",") if word.strip()
        ]
        for label in brush.iter("Label")
    }
    return Brush(brush.get("name", ""), image.get("name", ""), image.get("value", "").removeprefix("$"), words)


def regions(result: Segmentation, brush: Brush, instances: bool = False) -> list[dict[str, Any]]:
    """The `result` of a prediction: a region per word that has pixels, or with `instances` per connected part.

    result: of the words of `brush`, in their order.
    """
    height, width = result.labels.shape
    labels = list(brush.words)
    return [
        {
            "id": f"{one.label}-{number}",
            "from_name": brush.name,
            "to_name": brush.image,
            "type": "brushlabels",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": one.score,
            "value": {"format": "rle", "rle": brush_rle(one.mask), "brushlabels": [labels[one.label - 1]]},
        }
        for number, one in enumerate(objects(result, instances))
    ]


def local_pictures(root: str | os.PathLike[str] | None = None, studio: str | None = None) -> Fetch:
    """How a task's picture is found.

    root: the folder that Label Studio serves as local files; what lies outside it is refused. studio: the address of a Label
    Studio from which uploads and cloud storage are fetched, with the key of $LABEL_STUDIO_API_KEY; no other host is asked but
    those that it redirects to. Raises UsageError where `studio` is no http or https address.
    """
    host = None if studio is None else _host(studio)

    def fetch(task: dict[str, Any], address: str) -> Picture:
        try:
            parts = urlsplit(address)
        except ValueError as error:
            raise UsageError(f"the picture {address} has no valid address ({one_line(error)})", "correct it") from None
        if parts.scheme == "data":
            try:
                return base64.b64decode(address.partition(",")[2], validate=True)
            except (binascii.Error, ValueError):
                raise UsageError("a picture's data address is not base64", "send data:image/png;base64,...") from None
        local = parse_qs(parts.query).get("d") if parts.path.rstrip("/").endswith("/data/local-files") else None
        if local and root is not None:
            return _below(Path(root), local[0], address)
        if studio is not None and not local:
            if "#" in address or "?d=" in unquote(address) or ".." in re.split(r"[/\\?&=]", unquote(address)):
                raise UsageError(
                    f"the picture {address} has a fragment, a .. or a second ?d= in its address",
                    "give the address as Label Studio writes it",
                )
            cloud = address.startswith(_CLOUDS)
            if cloud and not isinstance(task.get("id"), int):
                raise UsageError(f"the task of the picture {address} has no number", "give the task's id")
            if cloud or address.startswith(_UPLOADS) or (parts.scheme in ("http", "https") and parts.netloc == host):
                return _fetched(studio, address, task["id"] if cloud else None)
        raise UsageError(
            f"the picture {address} cannot be reached",
            "start the backend with --root for local files, --studio for those that Label Studio holds",
        )

    return fetch


def _host(studio: str) -> str:
    try:
        parts = urlsplit(studio)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"{studio!r} is no address of a Label Studio", "give one such as http://localhost:8080")
    return parts.netloc


def _below(root: Path, name: str, address: str) -> Path:
    try:
        path = (root / name).resolve()
    except ValueError as error:
        raise UsageError(f"the picture {address} is no path ({one_line(error)})", "correct its address") from None
    if not path.is_relative_to(root.resolve()):
        raise UsageError(f"the picture {address} lies outside {root}", "serve the folder that holds it with --root")
    return path


def _fetched(studio: str, address: str, task: int | None) -> bytes:
    """The SDK also opens this machine's files: of what it names, only what it downloaded is read."""
    download = optional(_SDK, "label-studio-sdk", "pictures of Label Studio").get_local_path
    with TemporaryDirectory(prefix="fusioner-") as folder:
        cache = Path(folder).resolve()
        try:
            path = Path(
                download(
                    address, hostname=studio, task_id=task, cache_dir=str(cache), image_dir=str(cache / "no uploads")
                )
            ).resolve()
            if path.is_relative_to(cache):
                return path.read_bytes()
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            raise PictureMissing(
                f"the picture {address} cannot be fetched from {studio} ({one_line(error)})",
                "check the address and the key in $LABEL_STUDIO_API_KEY",
            ) from None
    raise UsageError(f"the picture {address} is a file of this machine", "serve its folder with --root")


class Backend:
    """Answers Label Studio's requests, whatever server they come through."""

    def __init__(self, session: Session, fetch: Fetch | None = None, instances: bool = False) -> None:
        """fetch: `local_pictures()` by default. instances: a region per connected part, not per word."""
        self._session, self._fetch, self._instances = session, fetch or local_pictures(), instances

    def answer(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """The status and the JSON of an answer. body: the request's JSON, or None."""
        body = body if isinstance(body, dict) else {}
        try:
            match method, path.rstrip("/") or "/health":
                case "GET", "/health":
                    return 200, {"status": "UP", "model_class": "Fusioner"}
                case "POST", "/setup":
                    read_config(body.get("schema"))
                    return 200, {"model_version": VERSION}
                case "POST", "/predict":
                    return 200, {"results": self._predict(body), "model_version": VERSION}
                case "POST", "/webhook":  # annotations teach it nothing
                    return 201, {}
                case _:
                    return 404, {"error": f"{method} {path} is none of /health, /setup, /predict and /webhook"}
        except FusionerError as error:
            return 400 if error.is_input else 500, {"error": str(error)}
        except Exception as error:
            _log.exception("%s %s failed", method, path)
            return 500, {
                "error": f"the backend failed ({type(error).__name__}: {one_line(error)}); its log tells where"
            }

    def _predict(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        brush, tasks = read_config(body.get("label_config")), body.get("tasks")
        if not isinstance(tasks, list):
            raise UsageError(f"the tasks are a {type(tasks).__name__}", "send a list of tasks, each with its data")
        return [self._prediction(task, brush) for task in tasks]

    def _prediction(self, task: dict[str, Any], brush: Brush) -> dict[str, Any]:
        try:
            address = task["data"][brush.data]
        except (KeyError, TypeError):
            address = None
        if not isinstance(address, str):
            raise UsageError(f"a task has no {brush.data!r}", "give the picture's address under data")
        result = self._session.segment(self._fetch(task, address), words=list(brush.words.values()))
        found = regions(result, brush, self._instances)
        score = max((region["score"] for region in found), default=0.0)
        return {"model_version": VERSION, "score": score, "result": found}


def server(backend: Backend, host: str = "127.0.0.1", port: int = 9090) -> ThreadingHTTPServer:
    """An HTTP server of a backend; `serve_forever()` runs it. Port 0 takes a free one. Raises UsageError."""

    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE

        def do_GET(self) -> None:
            self._reply(*backend.answer("GET", self.path.partition("?")[0]))

        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("Content-Length") or 0)
                if not 0 <= length <= _BODY:
                    return self._reply(413, {"error": f"the request has {length} bytes, at most {_BODY} are read"})
                body = json.loads(self.rfile.read(length) or b"{}")
            except (ValueError, RecursionError) as error:
                return self._reply(400, {"error": f"the request is no JSON ({one_line(error)})"})
            self._reply(*backend.answer("POST", self.path.partition("?")[0], body))

        def _reply(self, status: int, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"the backend cannot listen on {host}:{port} ({one_line(error)})", "choose another port or host"
        ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command("fusioner-rt", lambda: _main(arguments), "the backend has stopped")


def _main(arguments: Sequence[str] | None) -> int:
    parser = CommandParser(prog="python -m fusioner_rt.interfaces.label_studio", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--engine", type=path_argument, metavar="DIR", help="the engine bundle, by default as for `fusioner-rt segment`"
    )
    parser.add_argument("--root", metavar="DIR", help="the folder that Label Studio serves as local files")
    parser.add_argument(
        "--studio", metavar="URL", help="a Label Studio that holds pictures; its key is in $LABEL_STUDIO_API_KEY"
    )
    parser.add_argument("--instances", action="store_true", help="a region per connected part, not per word")
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (default %(default)s, this machine alone)"
    )
    parser.add_argument("--max-pixels", type=count, metavar="N", help="pixels of the largest picture (67108864)")
    parser.add_argument("--port", type=int, default=9090, help="default %(default)s")
    given = parser.parse_args(arguments)
    logging.basicConfig()
    fetch = local_pictures(given.root, given.studio)
    session = Session(given.engine, max_pixels=given.max_pixels)
    with server(Backend(session, fetch, given.instances), given.host, given.port) as running:
        say(f"Label Studio's backend: http://{given.host}:{running.server_port}")
        running.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
