"""Where a video comes from: a file, a camera or a URL, told by content, ending, device and scheme; and how FFmpeg opens it.

Of a file FFmpeg reads nothing else: formats that name other files or hosts, as playlists do, are opened where a URL was given, and
then by network protocols alone.
"""

import errno
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..argument_checks import shown
from ..errors import FusionerError, PictureMissing, UsageError, VideoUnreachable, VideoUnreadable, one_line
from ..memory_shortage import is_shortage
from ..missing_pictures import split_url, why_missing, without_secrets
from ..optional_packages import optional
from ..picture_formats import SUFFIXES as PICTURE_SUFFIXES
from ..picture_formats import holds_video
from ..regular_files import check_regular, open_regular

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer

SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .divx .flv .h264 .h265 .hevc .ivf .m2ts .m2v .m4v .mjpeg .mjpg .mkv .mov .mp4 .mpeg .mpg .mts "  # noqa: SIM905
    ".mxf .nut .ogm .ogv .qt .vob .webm .wmv .y4m".split()
)
"""Suffixes of videos. MPEG transport streams, .ts, are told by their content: other files are called so, too."""

SILENCE = 10.0
"""Seconds without a frame after which a camera or URL counts as gone."""

_HTTP = ("http", "https")
_SCHEMES = (*_HTTP, "rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt")
_MOTION_JPEG = (".mjpeg", ".mjpg")  # which begin as a JPEG does
_URL = re.compile(rf"(?:{'|'.join(_SCHEMES)})://.", re.IGNORECASE)
_CAMERA = re.compile(r"/dev/video\d+")
_FILE_FORMATS = (
    "3gp", "asf", "avi", "dv", "flv", "gif", "h264", "hevc", "ivf", "m4v", "matroska", "mjpeg", "mov", "mp4", "mpeg", "mpegts",
    "mpegvideo", "mxf", "nut", "obu", "ogg", "rm", "webm", "yuv4mpegpipe",
)  # fmt: skip
_URL_FORMATS = (*_FILE_FORMATS, "dash", "hls", "mpjpeg", "rtp", "rtsp", "sdp")
_URL_PROTOCOLS = "http,https,httpproxy,rtmp,rtmps,rtp,rtsp,rtsps,srt,tcp,tls,udp,crypto"


class Source(NamedTuple):
    """name: for messages, without passwords. stem: what results are called. live: it is no older than now, and does not wait."""

    name: str
    stem: str
    location: str
    kind: Literal["file", "camera", "url"]
    live: bool


def is_url(given: str) -> bool:
    """Whether this is a URL that a video may come from. Those that end as pictures do are none."""
    if not _URL.match(given):
        return False
    parts = split_url(given)
    return parts.scheme.lower() not in _HTTP or Path(parts.path).suffix.lower() not in PICTURE_SUFFIXES


def is_video(given: str | os.PathLike[str]) -> bool:
    """Whether a path or URL names a video: a file by its content, or by its ending where its content is no picture; a camera,
    /dev/video0; or a URL such as rtsp://. A file that does not exist is one by its ending. Nothing is decoded. Raises UsageError.
    """
    text = _text(given)
    if is_url(text):
        return True
    path = Path(os.path.expanduser(text))
    named = path.suffix.lower() in SUFFIXES
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISCHR(mode):
            return bool(_CAMERA.fullmatch(os.path.realpath(path)))
        if not stat.S_ISREG(mode):
            return False
        with open_regular(path) as stream:
            head = stream.read(192)
    except (OSError, ValueError):  # ValueError: a null byte
        return named
    if path.suffix.lower() in _MOTION_JPEG or _holds_transport_stream(head):
        return True
    return holds_video(head) or (named and not _holds_picture(head))


def find_source(given: str | os.PathLike[str], live: bool | None = None) -> Source:
    """live: by default of cameras, and of URLs but those of http. Raises PictureMissing, UsageError."""
    text = _text(given)
    if is_url(text):
        parts = split_url(text)
        stem = Path(parts.path).stem or parts.hostname or "stream"
        return Source(
            without_secrets(text), stem, text, "url", parts.scheme.lower() not in _HTTP if live is None else live
        )
    path = os.path.expanduser(text)
    try:
        camera = bool(_CAMERA.fullmatch(os.path.realpath(path))) and stat.S_ISCHR(os.stat(path).st_mode)
        if not camera:
            check_regular(path)
    except (OSError, ValueError) as error:
        raise why_missing(text, error) from None
    # A file's name may hold what FFmpeg takes for a protocol; "file:" keeps it a name.
    location = path if camera else f"file:{path}"
    return Source(text, Path(path).stem, location, "camera" if camera else "file", camera if live is None else live)


def _text(given: Any) -> str:
    text = os.fspath(given) if isinstance(given, (str, os.PathLike)) else None
    if isinstance(text, str):
        return text
    cure = "give a path as text or pathlib.Path, or a URL"
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        cure = f"name the camera, /dev/video{given}"
    raise UsageError(f"the video is given as {shown(given)}", cure)


def open_input(source: Source) -> "InputContainer":
    """Open a source by FFmpeg. Raises PackageMissing, PictureMissing, VideoUnreadable, VideoUnreachable."""
    av = package()
    formats, protocols = (_FILE_FORMATS, "file") if source.kind == "file" else (_URL_FORMATS, _URL_PROTOCOLS)
    options = {"format_whitelist": ",".join(formats), "protocol_whitelist": protocols}
    given: dict[str, Any] = {"options": options}
    if source.kind == "camera":
        given = {"format": "v4l2", "options": {}}
    elif source.kind == "url":
        given["timeout"] = SILENCE
        if source.location.lower().startswith("rtsp"):
            options["rtsp_transport"] = "tcp"  # lost packets of UDP are grey frames
    if source.live:
        given["options"] |= {
            "flags": "low_delay"
        }  # without "nobuffer", which throws away what FFmpeg reads to know the format
    try:
        return av.open(source.location, **given)
    except Exception as error:  # FFmpeg's kinds have bases of many kinds
        raise why_unopened(source, error) from None


def why_unopened(source: Source, error: Exception) -> FusionerError:
    """What FFmpeg tells of a source that it cannot open, or not go on with. Raises it where it is a shortage of memory."""
    if is_shortage(error):
        raise error
    reason = one_line_of(error)
    if source.kind == "file":
        if isinstance(error, (FileNotFoundError, PermissionError)):
            return PictureMissing(f"cannot be opened ({reason})", "check the path and its permissions", source.name)
        return VideoUnreadable(
            f"is no video that is understood, or a broken one ({reason})",
            "fetch or export it again, or convert it to MP4",
            subject=source.name,
        )
    return unreachable(source, f"no video ({reason})", getattr(error, "errno", None) == errno.EIO)


def unreachable(source: Source, found: str, is_broken_off: bool = False) -> VideoUnreachable:
    """The error of a camera or URL that gives `found`. is_broken_off: as where a server of files gives no parts of them."""
    if source.kind == "camera":
        what, cure = "the camera", "check that it is there, and that no other program has it"
    else:
        what, cure = "the URL", "check the address, and that this machine reaches it"
        if is_broken_off and split_url(source.location).scheme.lower() in _HTTP:
            cure = "download the file first, for its server may give it from the beginning alone"
    return VideoUnreachable(f"{what} gives {found}", cure, source.name)


def one_line_of(error: BaseException) -> str:
    """What FFmpeg tells, without the location, which may hold a password."""
    return str(getattr(error, "strerror", None) or one_line(error))


def package() -> Any:
    """The package av. Raises PackageMissing."""
    return optional("av", "av", "videos", "'fusioner-rt[video]'")


def open_output(path: Path, **options: str) -> "OutputContainer":
    """Raises ValueError where FFmpeg knows no format by the suffix."""
    return package().open(f"file:{path}", "w", container_options=options)


def _holds_transport_stream(head: bytes) -> bool:
    return head[:1] == b"G" == head[188:189]  # a packet of 188 bytes, and the next


def _holds_picture(head: bytes) -> bool:
    """Whether a file begins as the pictures do that are given wrong names."""
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM")) or head[8:12] == b"WEBP"
