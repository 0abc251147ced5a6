"""One server for the tests: the demonstration bundle as every kind of model that the command writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tritonclient import grpc, http

from export import triton_repository
from fusioner_rt import Session
from tests.triton.server import Server

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "models/demo/bundle"
ENGINE = '''\
"""Stands for Triton's ONNX Runtime backend, which the wheel's server lacks: the same file, run by the same library."""

from pathlib import Path

import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.graph = onnxruntime.InferenceSession(str(Path(args["model_repository"]) / "1/model.onnx"))

    def execute(self, requests):
        responses = []
        for request in requests:
            arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            outputs = self.graph.run(["features", "refined"], arrays)
            tensors = [pb_utils.Tensor(*pair) for pair in zip(["features", "refined"], outputs)]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
'''


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models `demo`, `demo_stream`, `demo_engines` and its steps, and `raw`, which takes pixels."""
    folder = tmp_path_factory.mktemp("triton") / "models"
    own = ["--max-wait", "50", "--queue", "200", "--cache"]
    assert triton_repository.main([str(BUNDLE), str(folder), "--stream", "--engines", *own]) == 0
    own = ["--name", "raw", "--pixels", "--in-place", "--words", "zeppelin"]
    assert triton_repository.main([str(BUNDLE), str(folder), *own]) == 0
    engine = folder / "demo_image_fusion"
    (engine / "1/model.py").write_text(ENGINE)
    config = (engine / "config.pbtxt").read_text()
    (engine / "config.pbtxt").write_text(config.replace('platform: "onnxruntime_onnx"', 'backend: "python"'))
    return folder


@pytest.fixture(scope="session")
def word_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's folder of word vectors, empty before it starts."""
    return tmp_path_factory.mktemp("words")


@pytest.fixture(scope="session")
def server(repository: Path, word_cache: Path) -> Iterator[Server]:
    models, cache = ("demo", "demo_stream", "demo_engines", "raw"), "--cache-config=local,size=104857600"
    with Server(repository, cache, models=models, FUSIONER_CACHE=str(word_cache)) as running:
        yield running


@pytest.fixture(scope="session")
def over_http(server: Server) -> Iterator[http.InferenceServerClient]:
    with http.InferenceServerClient(server.http, concurrency=16) as client:
        yield client


@pytest.fixture(scope="session")
def over_grpc(server: Server) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture(scope="session")
def session() -> Iterator[Session]:
    with Session(BUNDLE, cache=False) as opened:
        yield opened
