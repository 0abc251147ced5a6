"""The same 40 pictures and words by every way there is: labels are equal, bit for bit.

`Session`, the HTTP service by /v1 and by the Open Inference Protocol, a real Triton Inference Server by HTTP and gRPC, Ray Data
and Ray Serve. All with one thread a picture, so that no rounding differs (docs/cpu.md). The server runs in the environment of
`make triton`.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image
from pycocotools import mask as coco_masks
from served_by_ray import served_by_ray
from service_client import Client, Running
from tritonclient import grpc, http

import fusioner_rt.ray
from fusioner_rt import Session
from fusioner_rt.serve.settings import Settings

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "models/demo/bundle"
WORDS, BACKGROUND = "cat, sofa|couch, person|man, cup, rocket", "wall, table"
COUNT = 40
SERVER = """
import sys
from pathlib import Path
from tests.triton.server import served
with served(Path(sys.argv[1]), Path(sys.argv[2]), "--name", "demo", "--instances", "2") as server:
    print(server.http, server.grpc, flush=True)
    sys.stdin.read()
"""
Labels = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    """Files by name: parts of the photographs, of many sizes and three formats."""
    random = np.random.default_rng(20)
    photographs = [Image.open(path).convert("RGB") for path in sorted((ROOT / "docs/pictures").glob("*.jpg"))]
    files = {}
    for number in range(COUNT):
        photograph = photographs[number % len(photographs)]
        width, height = (int(random.integers(edge // 3, edge + 1)) for edge in photograph.size)
        left, top = photograph.width - width, photograph.height - height
        left, top = int(random.integers(left + 1)), int(random.integers(top + 1))
        part = photograph.crop((left, top, left + width, top + height))
        kind = ("JPEG", "PNG", "WEBP")[number % 3]
        stream = io.BytesIO()
        part.resize((max(1, width * 2 // 3), max(1, height * 2 // 3))).save(stream, kind)
        files[f"{number:02}.{kind.lower()}"] = stream.getvalue()
    return files


def by_session(pictures: Mapping[str, bytes]) -> Labels:
    with Session(BUNDLE, backend="onnxruntime-cpu", threads=1) as session:
        session.set_vocabulary(WORDS, background=BACKGROUND)
        return {name: session.segment(io.BytesIO(file)).labels for name, file in pictures.items()}


def by_route(client: Client, pictures: Mapping[str, bytes]) -> Labels:
    """By /v1/segment, as PNG."""
    found = {}
    for name, file in pictures.items():
        query = f"words={WORDS}&background={BACKGROUND}".replace(" ", "%20").replace("|", "%7C")
        reply = client.post(f"/v1/segment?{query}", file, Accept="image/png")
        assert reply.status == 200, reply.body
        found[name] = np.asarray(Image.open(io.BytesIO(reply.body)))
    return found


def by_protocol(module: Any, address: str, pictures: Mapping[str, bytes]) -> Labels:
    """By the Open Inference Protocol: module and address of a client of Triton's."""

    def texts(name: str, *values: bytes) -> Any:
        tensor = module.InferInput(name, [1, len(values)], "BYTES")
        tensor.set_data_from_numpy(np.array([values], object))
        return tensor

    words = [word.strip().encode() for word in WORDS.split(",")]
    with module.InferenceServerClient(address) as client:
        found = {}
        for name, file in pictures.items():
            given = [texts("PICTURE", file), texts("WORDS", *words), texts("BACKGROUND", BACKGROUND.encode())]
            found[name] = client.infer("demo", given).as_numpy("LABELS")[0]
        return found


def by_ray_data(pictures: Mapping[str, bytes]) -> Labels:
    rows = [{"name": name, "bytes": file} for name, file in pictures.items()]
    given = ray.data.from_items(rows, override_num_blocks=4)
    masks = fusioner_rt.ray.segment(given, BUNDLE, WORDS, background=BACKGROUND, actors=1)
    found = {}
    for row in masks.take_all():
        assert row["error"] is None
        labels = np.zeros(row["size"], np.uint16)
        for number, counts in enumerate(row["rle"], 1):
            labels[coco_masks.decode({"size": list(row["size"]), "counts": counts.encode()}).astype(bool)] = number
        found[row["name"]] = labels
    return found


@contextmanager
def service() -> Iterator[Running]:
    running = Running(Settings(engines={"demo": str(BUNDLE)}, loopback=True))
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def tritonserver(folder: Path) -> Iterator[list[str]]:
    """Its addresses for HTTP and gRPC."""
    command = [str(ROOT / ".venv-triton/bin/python"), "-c", SERVER, str(BUNDLE), str(folder / "models")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield next(line for line in process.stdout if line.startswith("127.")).split()
        finally:
            process.stdin.close()


def test_labels_are_the_same_by_session_service_triton_and_ray(pictures: dict[str, bytes], tmp_path: Path) -> None:
    expected = by_session(pictures)
    assert len(expected) == COUNT
    assert len({labels.shape for labels in expected.values()}) > COUNT // 2
    assert len(np.unique(np.concatenate([labels.ravel() for labels in expected.values()]))) >= 5  # words, and none
    found: dict[str, Labels] = {}
    with service() as running:
        found["service"] = by_route(running, pictures)
        found["service, protocol"] = by_protocol(http, f"{running.host}:{running.port}", pictures)
    with tritonserver(tmp_path) as (over_http, over_grpc):
        found["tritonserver, HTTP"] = by_protocol(http, over_http, pictures)
        found["tritonserver, gRPC"] = by_protocol(grpc, over_grpc, pictures)
    found["Ray Data"] = by_ray_data(pictures)
    with served_by_ray({"demo": BUNDLE}, num_cpus=1) as deployed:
        found["Ray Serve"] = by_route(deployed, pictures)
    for way, labels in found.items():
        assert labels.keys() == expected.keys(), way
        assert [name for name, own in expected.items() if not np.array_equal(own, labels[name])] == [], way
