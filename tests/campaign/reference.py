"""What a bundle must answer: pictures and words that several kinds ask, and results in a form that can be compared."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from fusioner_rt import Segmentation, Session
from fusioner_rt.bundle import read_manifest, write_manifest
from fusioner_rt.errors import FusionerError

from .cases import Bench

WORDS = ("cat", "sofa", "green grass", "person", "dining table")


def quick(bench: Bench) -> Path:
    """A copy of the bundle with two templates, not dozens: new words cost little. No case changes it."""

    def copy() -> Path:
        folder = bench.folder.parent / f"{bench.folder.name.rpartition('-')[0]}.bundle"
        shutil.copytree(bench.bundle, folder)
        manifest = read_manifest(folder)
        write_manifest(folder, {**manifest, "templates": manifest["templates"][:2]})
        return folder

    made: Path = bench.once("quick", copy)
    return made


def pictures() -> list[np.ndarray]:
    """(H, W, 3) uint8 each: waves and noise, of several sizes and aspect ratios."""
    return [_waves(seed, *size) for seed, size in enumerate(((96, 128), (151, 97), (64, 64), (240, 320), (33, 200)))]


def _waves(seed: int, height: int, width: int) -> np.ndarray:
    made = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 20
    waves = [np.sin(y * made.uniform(-1, 1) * 3 + x * made.uniform(-1, 1) * 3 + made.uniform(0, 6)) for _ in range(3)]
    return np.clip(np.stack(waves, -1) * 90 + 128 + made.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def fingerprint(result: Segmentation | list[Segmentation]) -> str:
    """A digest of all that a result says, bit for bit: labels, confidence, words and probabilities."""
    digest = hashlib.sha256()
    for one in result if isinstance(result, list) else [result]:
        digest.update(repr(one.words).encode())
        for array in (one.labels, one.confidence, one.probabilities):
            if array is not None:
                digest.update(repr((array.dtype, array.shape)).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def answers(session: Session) -> str:
    """A fingerprint of calls that use every graph of a bundle, and its tokenizer and templates."""
    first, second, third, *_ = pictures()
    called = [
        session.segment(first, WORDS[:3], probabilities=True),
        session.segment([second, third], WORDS[:2], mode="independent", threshold=0.3),
        session.segment(first, WORDS[1:3], size=(40, 50), background=WORDS[3]),
    ]
    return hashlib.sha256("".join(map(fingerprint, called)).encode()).hexdigest()


def open_and_answer(bundle: Any, **options: Any) -> str | FusionerError:
    """`answers` of a bundle, or the error it gives instead. Options: of the session."""
    try:
        with Session(bundle, cache=False, threads=1, backend="onnxruntime-cpu", **options) as session:
            return answers(session)
    except FusionerError as error:
        return error
