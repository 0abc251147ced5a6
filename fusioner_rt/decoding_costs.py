"""What decoding costs beyond a picture's pixels, told from its file before anything is decoded."""

import os
import re
import struct
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_FREE_SCANS = 16  # encoders write 10 to 12
_BY_PYTHON = 20
_COMMENT = 500  # pixels that one in a PPM's text costs
_PPM_TEXT = "ppm_plain"
_PPM_DECODERS = ("ppm", _PPM_TEXT)
_FREE_WIDTH = 8  # pixels; each row costs something of its own
_TILE_EDGES = (322, 323)  # tags of TIFF
_FREE_BLOCK = 256  # pixels; encoders write blocks of 1,024 and more
_SOS, _EOI = 0xDA, 0xD9
_SOT, _SOD, _COD, _COC = 0xFF90, 0xFF93, 0xFF52, 0xFF53
_NEXT_MARKER = re.compile(rb"\xff+([^\x00\xff\x01\xd0-\xd8])", re.DOTALL)  # stuffing and restarts lie within a scan

# libtiff's own limit is 100 scans, for each strip of a TIFF in JPEG's compression. It reads this when it decodes.
os.environ.setdefault("LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER", str(_FREE_SCANS))


def times(image: "Image", stream: IO[bytes]) -> tuple[float, str]:
    """How many times an opened picture costs what its pixels alone do, at least 1, and why.

    stream: the file, whose position is kept.
    """
    return max(_of_its_format(image, stream), (_FREE_WIDTH / image.width, f"in rows of {image.width}"), (1.0, ""))


def _of_its_format(image: "Image", stream: IO[bytes]) -> tuple[float, str]:
    """A progressive JPEG's scans each pass over all pixels, and a few bytes make one. JPEG 2000 keeps a record of each block,
    however small. libtiff decodes a whole tile, however little of it the picture shows. Some PPM are decoded by Python's
    loops, which move what follows each of their comments.
    """
    tile = next(iter(getattr(image, "tile", ())), None)
    if image.format in ("JPEG", "MPO"):
        scans = jpeg_scans(_content(stream))
        return scans / _FREE_SCANS, f"in {scans} scans"
    if image.format == "JPEG2000":
        smallest = _smallest_block(_content(stream))
        return _FREE_BLOCK / smallest, f"in blocks of {smallest} pixels"
    if image.format == "TIFF" and tile and tile[0] == "libtiff":
        width, height = (image.tag_v2.get(tag) for tag in _TILE_EDGES)  # type: ignore[attr-defined]
        if isinstance(width, int) and isinstance(height, int):
            return width * height / (image.width * image.height), f"in tiles of {width}x{height}"
    if image.format == "PPM" and tile and tile[0] in _PPM_DECODERS:
        comments = _content(stream).count(b"#") if tile[0] == _PPM_TEXT else 0
        return _BY_PYTHON + _COMMENT * comments / (image.width * image.height), "as text, or of an odd range"
    return 1.0, ""


def _content(stream: IO[bytes]) -> bytes:
    place = stream.tell()
    stream.seek(0)
    content = stream.read()
    stream.seek(place)
    return content


def jpeg_scans(content: bytes) -> int:
    """The number of scans of a JPEG up to its end; what is embedded or follows does not count."""
    if content.count(b"\xff\xda") <= _FREE_SCANS:  # far faster
        return 1
    scans, place = 0, 2
    while found := _NEXT_MARKER.search(content, place):
        marker, place = found[1][0], found.end()
        scans += marker == _SOS
        if marker == _EOI or place + 2 > len(content):
            break
        place += max(2, int.from_bytes(content[place : place + 2], "big"))
    return scans


def _smallest_block(content: bytes) -> int:
    """Pixels of the smallest code block or precinct that a JPEG 2000's headers ask for, those of its tiles too."""
    place = content.find(b"\xff\x4f\xff\x51") + 2
    smallest, tile_part = 1 << 30, 0
    while 2 <= place <= len(content) - 4:
        marker, length = struct.unpack_from(">HH", content, place)
        segment = content[place + 4 : place + 2 + length]
        if marker == _SOT and len(segment) >= 8:
            tile_part = place + struct.unpack_from(">I", segment, 2)[0]
        elif marker in (_COD, _COC):
            style = segment[5:] if marker == _COD else segment[2:]
            exponents = [(style[1] & 15) + (style[2] & 15) + 4] if len(style) > 2 else []
            # a precinct's edges at each resolution, the lowest first; one there covers four of the pixels of the next
            exponents += [
                (size & 15) + (size >> 4) + 2 * max(0, style[0] - index) for index, size in enumerate(style[5:])
            ]
            smallest = min([smallest, *(1 << exponent for exponent in exponents)])
        if marker == _SOD:  # its data follow
            if tile_part <= place:
                break
            place = tile_part
        elif length < 2:
            break
        else:
            place += 2 + length
    return smallest


def tags_overlap(stream: IO[bytes]) -> bool:
    """Whether the values of a TIFF's or EXIF's first directory hold more bytes than there are: some lie in each other.

    Pillow reads each by itself, so that a megabyte of tags may become a hundred gigabytes.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(16)
    order = ">" if head[:2] == b"MM" else "<"
    big = head[2:4] in (b"+\0", b"\0+")
    if len(head) < 16:
        return False
    first = struct.unpack_from(f"{order}Q" if big else f"{order}L", head, 8 if big else 4)[0]
    if first >= size:
        return False
    stream.seek(first)
    count = int.from_bytes(stream.read(8 if big else 2), "big" if order == ">" else "little")
    entry = struct.Struct(f"{order}HHQQ" if big else f"{order}HHLL")
    entries = stream.read(min(count, 1 << 16) * entry.size)
    entries = entries[: len(entries) // entry.size * entry.size]
    return sum(_BYTES.get(kind, 1) * length for _, kind, length, _ in entry.iter_unpack(entries)) > size + len(entries)


_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # by type; 1 of all others
