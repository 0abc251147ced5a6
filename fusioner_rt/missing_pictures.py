"""Why a path cannot be opened as a picture, and what was probably meant."""

import difflib
import os
import re
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from .errors import PictureMissing, Spelled, UsageError
from .picture_formats import SUFFIXES
from .regular_files import NotRegular

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # a drive's letter is one; Path makes one slash of two
_HOST = re.compile(r"(\[[^]]*\]|[^:]*)(:\d*)?")
_BASE64 = ("/9j/", "iVBORw0K", "R0lGOD", "UklGR")  # JPEG, PNG, GIF, WebP
_MOST_NAMES = 10_000


def why_missing(path: str, error: Exception) -> PictureMissing:
    """The error for a path that cannot be opened. error: what `open` raised."""
    if not path:
        return PictureMissing("the path of the picture is empty", "name a file")
    if path[:5].lower() == "data:":
        return PictureMissing(
            "this is a data URL, not a path",
            Spelled("pass base64.b64decode of what follows its comma", "decode what follows its comma: base64 -d"),
            subject=_shortened(path),
        )
    if _URL.match(path):
        return _url(path)
    if len(path) > 200 and path.startswith(_BASE64):
        return PictureMissing(
            "this is base64, not a path",
            Spelled("pass base64.b64decode(text)", "decode it: base64 -d"),
            subject=_shortened(path),
        )
    try:
        if os.path.isdir(path):
            return PictureMissing(
                "this is a folder, a picture file was expected",
                Spelled(
                    "name the file in it, or list them: sorted(pathlib.Path(folder).glob('*.jpg'))",
                    "name the file in it",
                ),
                subject=path,
            )
    except ValueError:
        pass
    if isinstance(error, ValueError):  # a null byte
        return PictureMissing(f"is not a path ({error})", "check the path", subject=_shortened(repr(path)))
    if not isinstance(error, FileNotFoundError):
        reason = error.strerror if isinstance(error, OSError) else None
        if isinstance(error, NotRegular):
            opened = Spelled("open it, and pass the file object: open(path, 'rb')", "pipe what it holds into stdin: -")
            return PictureMissing(str(error.strerror), opened, subject=path)
        cure = "check its permissions" if isinstance(error, PermissionError) else "check the path"
        return PictureMissing(f"cannot be opened ({reason or error})", cure, subject=_shortened(path))
    return PictureMissing("there is no such file", _cure(Path(path)), subject=path)


def is_pattern(name: str) -> bool:
    """Whether a name may be a pattern of names, `photos/*.jpg`. A file that is really named so comes first."""
    return any(mark in name for mark in "*?[")


def split_url(url: str) -> SplitResult:
    """Its parts. Raises UsageError for what only begins like one."""
    try:
        return urlsplit(url)
    except ValueError as error:
        raise UsageError(f"is no URL that can be read ({error})", "check its host", without_secrets(url)) from None


def without_secrets(name: str) -> str:
    """A path, or a URL as it may be shown: without its user, password and parameters."""
    scheme, mark, rest = name.partition("://")
    if not mark or not _URL.match(name):
        return name
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in host:
        rest = rest[host.rindex("@") + 1 :]
    elif not _HOST.fullmatch(host):  # of a password with a slash, it is the user and a part of that
        rest = rest.rpartition("@")[2]
    return f"{scheme}://{re.split('[?#]', rest, maxsplit=1)[0]}"


def _url(path: str) -> PictureMissing:
    scheme, _, rest = path.partition(":")
    rest = rest.lstrip("/")
    if scheme.lower() == "file":
        return PictureMissing("this is a URL, not a path", f"pass /{unquote(rest)}", subject=f"file:///{rest}")
    return PictureMissing(
        "this is a URL, and nothing is fetched from the network",
        "download it, for example by curl -O, and pass the file's path or its bytes",
        subject=without_secrets(f"{scheme}://{rest}"),
    )


def _cure(path: Path) -> str:
    if is_pattern(str(path)):
        return "the command line alone takes patterns: pass sorted(glob.glob(pattern))"
    folder = path.parent
    if not folder.is_dir():
        return f"check the path: there is no folder {folder} (relative to {Path.cwd()})"
    near = _near(path)
    return f"did you mean {near}?" if near else f"check the path (relative to {Path.cwd()})"


def _near(path: Path) -> Path | None:
    """A picture of a similar name beside it."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry, _ in zip(entries, range(_MOST_NAMES), strict=False)]
    except OSError:
        return None
    stem = path.stem.strip().casefold()
    for name in sorted(names):  # another suffix, or other capitals
        if Path(name).suffix.lower() in SUFFIXES and stem in (Path(name).stem.casefold(), name.casefold()):
            return path.parent / name
    close = difflib.get_close_matches(path.name, names, 1, 0.8)
    return path.parent / close[0] if close else None


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:50]}..."
