"""Word vectors as one file, which many processes may read at once: what `fusioner-rt words --export` writes.

    magic · number of words · of each, in the order of the keys: key · length of its entry · entry · … · sha256 of all before it

Numbers are 4 bytes, little-endian; a key is 32 bytes. An entry holds the bytes of a word's file in the cache folder, its own
sha256 among them. The same words make the same bytes. A file is read whole and closed; nothing is written beside it.
"""

import hashlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from ..atomic_files import write_result
from ..errors import Spelled, UsageError, WordVectorsInvalid
from ..regular_files import read_regular

SUFFIX = ".vectors"
LARGEST = 128 << 20
"""Bytes of a file."""

_KIND = b"fusioner-rt vectors "
_MAGIC = _KIND + b"1\n"
_KEY, _DIGEST = 32, 32  # bytes
_WRITE_ONE = Spelled("name one that session.export_words wrote", "name one that fusioner-rt words --export FILE wrote")
WRITE_AGAIN = Spelled(
    "copy it again, or write it again with session.export_words",
    "copy it again, or write it again: fusioner-rt words --export FILE",
)


def is_vectors_file(place: Path) -> bool:
    """Whether a cache is a file, not a folder: one that lies there, or by its name should."""
    return os.path.isfile(place) or (place.name.endswith(SUFFIX) and not os.path.exists(place))


def write_vectors(path: Path, entries: Mapping[str, bytes]) -> None:
    """Write entries, by the keys of `cache_key`, at once or not at all. Raises OutputUnwritable, UsageError."""
    body = bytearray(_MAGIC + struct.pack("<I", len(entries)))
    for key, entry in sorted(entries.items()):
        body += bytes.fromhex(key) + struct.pack("<I", len(entry)) + entry
    if len(body) + _DIGEST > LARGEST:
        raise UsageError(
            f"{len(entries)} words take {len(body) + _DIGEST} bytes, a file of word vectors has at most {LARGEST}",
            "write fewer into it",
            subject=path,
        )
    body += hashlib.sha256(body).digest()
    write_result(path, lambda stream: stream.write(body))


def read_vectors(path: Path) -> dict[str, bytes]:
    """The entries by key; what is in them is not looked at. Raises WordVectorsInvalid."""
    try:
        content = read_regular(path, LARGEST)
    except FileNotFoundError:
        raise WordVectorsInvalid("there is no such file of word vectors", _WRITE_ONE, path) from None
    except OSError as error:
        raise WordVectorsInvalid(f"cannot be read ({error.strerror or error})", _WRITE_ONE, path) from None
    except ValueError:
        raise WordVectorsInvalid(
            f"has more than the {LARGEST} bytes of a file of word vectors", _WRITE_ONE, path
        ) from None
    if not content.startswith(_MAGIC):
        found = "is of another version than 1, which this fusioner-rt reads" if content.startswith(_KIND) else "is none"
        raise WordVectorsInvalid(f"{found}, a file of word vectors was expected", _WRITE_ONE, path)
    body = memoryview(content)[:-_DIGEST]
    if hashlib.sha256(body).digest() != content[-_DIGEST:]:
        raise WordVectorsInvalid("was cut short or altered: its content is not what its sha256 says", WRITE_AGAIN, path)
    try:
        return _parsed(body[len(_MAGIC) :])
    except (ValueError, struct.error):
        raise WordVectorsInvalid("its words do not lie as they should", WRITE_AGAIN, path) from None


def _parsed(body: memoryview) -> dict[str, bytes]:
    """body: what lies between magic and digest. Raises ValueError, struct.error."""
    (count,), place, last = struct.unpack_from("<I", body), 4, b""
    entries: dict[str, bytes] = {}
    for _ in range(count):  # each takes bytes, so that a wrong count ends the loop
        (length,) = struct.unpack_from("<I", body, place + _KEY)
        key, start = bytes(body[place : place + _KEY]), place + _KEY + 4
        entries[key.hex()] = entry = bytes(body[start : start + length])
        if key <= last or len(entry) < length:
            raise ValueError
        last, place = key, start + length
    if place != len(body):
        raise ValueError
    return entries
