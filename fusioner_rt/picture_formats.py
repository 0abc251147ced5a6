"""Which files are pictures: by their content where they are opened, by their suffix where a folder is looked through."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import Spelled
from .memory_shortage import is_shortage

if TYPE_CHECKING:
    from PIL.Image import Image

COMMON = ("JPEG", "PNG", "BMP", "GIF", "PPM")
"""Formats that Pillow opens without loading all its plugins."""

# Raster formats only: Pillow passes others, such as EPS, to an external interpreter.
_OWN = (*COMMON, "WEBP", "TIFF", "AVIF", "JPEG2000", "TGA")

SUFFIXES = frozenset(
    ".apng .avif .avifs .bmp .gif .icb .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .mpo .pbm .pfm .pgm "  # noqa: SIM905
    ".png .pnm .ppm .tga .tif .tiff .vda .vst .webp".split()
)
"""Suffixes of the formats that are always read."""

_RAW = frozenset(
    ".3fr .ari .arw .bay .cr2 .cr3 .crw .dcr .dng .erf .fff .gpr .iiq .k25 .kdc .mef .mos .mrw .nef .nrw .orf .pef "  # noqa: SIM905
    ".raf .raw .rw2 .rwl .sr2 .srf .srw .x3f".split()
)
_OTHER = frozenset(
    ".bpg .cur .dds .dib .emf .eps .exr .flif .hdr .heic .heics .heif .heifs .hif .icns .ico .jls .jxl .jxr .pcx "  # noqa: SIM905
    ".psb .psd .qoi .sgi .svg .svgz .wdp .wmf .xcf".split()
)

_PLUGINS = {
    "HEIC": ("HEIF", ("pillow_heif", "pi_heif"), "pillow-heif"),
    "JPEG XL": ("JXL", ("pillow_jxl",), "pillow-jxl-plugin"),
    "AVIF": ("AVIF", ("pillow_avif",), "pillow-avif-plugin"),
}
"""By kind of picture: Pillow's name of it, the modules of which one teaches it to Pillow, and the package of the first."""

TIFF = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0")
"""How a TIFF begins, as Pillow takes it."""

_CAMERA = "a camera's raw file"
_CONVERT = "convert it to JPEG or PNG"
_SIGNATURES = (  # offset, the bytes there, and what begins so
    (4, b"ftyphe", "HEIC"), (4, b"ftypmif1", "HEIC"), (4, b"ftypmsf1", "HEIC"), (4, b"ftypavi", "AVIF"),
    (0, b"\xff\x0a", "JPEG XL"), (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (4, b"ftypcrx", _CAMERA), (8, b"CR\2", _CAMERA), (0, b"FUJIFILMCCD-RAW", _CAMERA), (0, b"IIU\0", _CAMERA),
    (0, b"IIRO", _CAMERA), (0, b"FOVb", _CAMERA), (6, b"HEAPCCDR", _CAMERA),
    (4, b"ftyp", "a video"), (0, b"\x1aE\xdf\xa3", "a video"), (8, b"AVI ", "a video"),
    (0, b"8BPS", "a Photoshop document"), (0, b"%PDF", "a PDF"), (0, b"%!PS", "PostScript"), (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"<svg", "a vector drawing (SVG)"), (0, b"<?xml", "XML, maybe a vector drawing (SVG)"),
    (0, b"PK\x03\x04", "a ZIP archive"), (0, b"\x1f\x8b", "packed by gzip"), (0, b"\x93NUMPY", "a numpy file"),
    (0, b"<!doctype", "a web page"), (0, b"<html", "a web page"), (0, b"version https://git-lfs", "a Git LFS pointer"),
    (0, b"/9j/", "text in base64"), (0, b"iVBORw0K", "text in base64"), (0, b"data:", "a data URL"),
)  # fmt: skip
_CURES = {
    _CAMERA: "develop it to JPEG, PNG or TIFF first",
    "a video": Spelled(
        "give its frames as pictures, fusioner_rt.video.frames(path) reads them",
        "name the file itself, which is read as a video",
    ),
    "a web page": "download the picture itself",
    "a Git LFS pointer": "fetch the content: git lfs pull",
    "a numpy file": Spelled("pass numpy.load(file)", "save it as PNG"),
    "a ZIP archive": "unpack it",
    "packed by gzip": "unpack it",
    "text in base64": Spelled("pass base64.b64decode(text)", "decode it: base64 -d"),
    "a data URL": Spelled(
        "pass base64.b64decode of what follows its comma", "decode what follows its comma: base64 -d"
    ),
}


def suffixes() -> frozenset[str]:
    """Suffixes of the files in a folder that count as pictures, also of those that cannot be read."""
    from PIL import Image

    taught = set(_taught())
    return SUFFIXES | _RAW | _OTHER | {suffix for suffix, name in Image.EXTENSION.items() if name in taught}


def readable() -> list[str]:
    """Names of the formats that are opened: Pillow's own that are safe, then those it was taught by other packages."""
    from PIL import Image

    Image.init()
    return [*(name for name in _OWN if name in Image.OPEN), *_taught()]


def teach(head: bytes) -> None:
    """Register what reads a file that begins with `head`, where Pillow does not read it and a package for it is installed."""
    kind = _kind(head)
    for name in _PLUGINS[kind][1] if kind in _PLUGINS else ():
        if _is_read(kind):
            return
        try:
            module = import_module(name)
            if register := getattr(module, "register_heif_opener", None):
                register()
        except Exception as error:  # missing, or broken: the picture's own error says what to install
            if is_shortage(error):
                raise


def holds_video(head: bytes) -> bool:
    """Whether a file that begins with `head` is MP4, Matroska, AVI or of their kin."""
    return _kind(head) == "a video"


def unread(head: bytes, raw: bool) -> tuple[str, str]:
    """What is found in a file that no reader takes, and the cure. head: how it begins. raw: it is a camera's raw file."""
    if not head:
        return "is empty, not a picture", "fetch or export it again"
    kind = _CAMERA if raw else _kind(head)
    if not kind and head[:4] in TIFF:
        return (
            "this TIFF is broken, or of a kind that is not understood, as grey of 10 bits or colour of 32",
            "save it with 8 or 16 bits a channel, or as PNG",
        )
    if not kind:
        return (
            "the content is not a picture that is understood (JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, "
            "...), whatever its name says",
            "convert it to one of these",
        )
    if kind not in _PLUGINS:
        return f"this is {kind}, not a picture that is read", _CURES.get(kind, _CONVERT)
    if _is_read(kind):
        return f"this {kind} picture is broken, or of a kind that is not understood", "fetch or export it again"
    return f"this is {kind}, which is not read without another package", f"pip install {_PLUGINS[kind][2]}"


def is_raw(head: bytes, name: str, image: "Image | None" = None) -> bool:
    """Whether a file is a camera's raw one. head: how it begins.

    image: what Pillow opened, which of such a file is a small preview; None where it opened nothing.
    """
    named = Path(name).suffix.lower() in _RAW or _kind(head) == _CAMERA
    if image is None:
        return named
    if image.format != "TIFF":
        return False
    tags = image.tag_v2  # type: ignore[attr-defined]
    dng_version, subfile_type, sub_files = 50706, 254, 330
    return named or dng_version in tags or (tags.get(subfile_type, 0) & 1 == 1 and sub_files in tags)


def _taught() -> list[str]:
    from PIL import Image

    return [
        name
        for name, (factory, _) in Image.OPEN.items()
        if not str(getattr(factory, "__module__", "")).startswith("PIL.")
    ]


def _is_read(kind: str) -> bool:
    from PIL import Image, features

    name = _PLUGINS[kind][0]
    return name in _taught() or (name in Image.OPEN and features.check(name.lower()) is True)


def _kind(head: bytes) -> str:
    if head[:1] in (b" ", b"\t", b"\r", b"\n", b"\xef", b"<"):  # text
        head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        head = head.lower() if head.startswith(b"<") else head
    kinds = (kind for offset, start, kind in _SIGNATURES if head.startswith(start, offset))
    return next(kinds, "")
