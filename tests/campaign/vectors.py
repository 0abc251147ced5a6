"""Files of word vectors: cut, altered, of other formats, or signed by a hostile author; an error, or vectors that words may have.

A file that was changed under its digest must be refused. Under a right digest it is another author's: what it holds in place
of a word's vector is passed over, and a session that reads it answers with probabilities.
"""

import hashlib
import json
import os
from pathlib import Path
from random import Random

import numpy as np

from fusioner_rt import Session
from fusioner_rt.errors import FusionerError, WordVectorsInvalid
from fusioner_rt.words.cache import TextCache, encode_entry
from fusioner_rt.words.vectors_file import read_vectors, write_vectors

from .cases import Bench, Case
from .reference import WORDS, pictures, quick


def case(number: int, random: Random, bench: Bench) -> Case:
    pristine: bytes = bench.once("pristine", lambda: _exported(bench))
    file = bench.folder / "fleet.vectors"
    file.write_bytes(pristine)
    if random.random() < 0.5:
        what = _tampered(file, random)
        altered = not file.is_file() or file.stat().st_size > len(pristine) * 2 or file.read_bytes() != pristine
        return Case(lambda: _refused(file, altered), f"{what}{' (altered)' if altered else ''}")
    what = _signed(file, random)
    opened = number % 20 == 0
    return Case(lambda: _sane(quick(bench) if opened else None, file), what)


def _exported(bench: Bench) -> bytes:
    file = bench.folder.parent / "pristine.vectors"
    with Session(quick(bench), cache=False, threads=1, backend="onnxruntime-cpu") as session:
        session.export_words(file, WORDS)
    return file.read_bytes()


def _tampered(file: Path, random: Random) -> str:
    content = bytearray(file.read_bytes())
    place = random.randrange(len(content))
    kind = random.choice(
        ("flipped", "overwritten", "cut", "longer", "swapped", "text", "huge", "piped", "linked", "gone")
    )
    if kind == "flipped":
        content[place] ^= 1 << random.randrange(8)
    elif kind == "overwritten":
        length = random.randint(1, 300)
        content[place : place + length] = random.randbytes(len(content[place : place + length]))
    elif kind == "cut":
        del content[place:]
    elif kind == "longer":
        content += random.randbytes(random.randint(1, 1000))
    elif kind == "swapped":
        content = content[place:] + content[:place]
    elif kind == "text":
        content = bytearray(random.choice((b"", b"cat\nsofa\n", b"\xff\xd8\xff\xe0", json.dumps([1] * 1000).encode())))
    file.unlink()
    if kind == "huge":
        with file.open("wb") as stream:
            stream.truncate(random.choice((1 << 28, 1 << 34, 1 << 40)))
    elif kind == "piped":
        os.mkfifo(file)
    elif kind == "linked":
        file.symlink_to(random.choice(("/dev/zero", "/dev/full", "/dev/null", file.name, "nowhere", "..")))
    elif kind != "gone":
        file.write_bytes(content)
    return f"{kind} at {place}"


def _refused(file: Path, altered: bool) -> str | None:
    try:
        read_vectors(file)
    except WordVectorsInvalid:
        return None if altered else "it is as it was written, and it is refused"
    return "it is altered, and it is read" if altered else None


def _signed(file: Path, random: Random) -> str:
    """What a hostile author writes, under right digests."""
    if random.random() < 0.4:
        content = bytearray(file.read_bytes()[:-32])
        start = content.index(b"\n") + 1
        for _ in range(random.randint(1, 4)):
            place = random.choice(
                (random.randrange(start, len(content)), start + random.randrange(4), start + 36 + random.randrange(4))
            )
            content[place] = random.choice((0, 1, 127, 255, random.randrange(256)))
        if random.random() < 0.3:
            del content[random.randrange(start, len(content)) :]
        file.write_bytes(content + hashlib.sha256(content).digest())
        return "signed bytes"
    made = np.random.default_rng(random.randrange(1 << 30))
    entries = {}
    for key in read_vectors(file):
        width = random.choice((384, 384, 0, 1, 24, 100_000))
        vector = made.normal(size=width).astype(np.float32) * np.float32(random.choice((0, 1, 1e-30, 1e30)))
        vector[:1] = random.choice((np.nan, np.inf, 1, 0))
        header = random.choice(
            ({"shape": [width], "word": "cat", "prompts": 2, "graph": "g", "precision": "fp32"}, {"shape": [width]}, {},
             {"shape": [width], "word": "\x1b[31m" * 1000, "prompts": "x", "graph": None, "precision": []})
        )  # fmt: skip
        entries[key] = random.choice((encode_entry(header, vector), random.randbytes(random.randrange(200)), b""))
    write_vectors(file, entries)
    return "signed entries"


def _sane(bundle: Path | None, file: Path) -> str | None:
    try:
        cache = TextCache(file)
        cache.words()
        for key in read_vectors(file):
            vector = cache.get(key)
            if vector is not None and not abs(np.linalg.norm(vector.astype(float)) - 1) < 0.01:
                return "it gives what is no word's vector"
        TextCache(file.parent / "folder").take(file)
    except WordVectorsInvalid:
        pass
    if bundle is None:
        return None
    try:
        with Session(bundle, cache=file, threads=1, backend="onnxruntime-cpu") as session:
            result = session.segment(pictures()[0], WORDS[:3])
    except FusionerError:
        return None
    good = np.isfinite(result.confidence).all() and result.confidence.min() >= 0 and result.confidence.max() <= 1
    return None if good else "a session that reads it answers with what is no probability"
