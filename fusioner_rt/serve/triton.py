"""Models of NVIDIA Triton Inference Server's Python backend: the service's contract, run by that server (docs/triton.md).

`export/triton_repository.py` writes the folders in which the server finds them. Inputs and outputs are those of `v2`, with a row
for every picture. They are no parameters: the server's response cache looks at inputs alone.
"""

import asyncio
import importlib
import json
import traceback
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..argument_checks import shown
from ..cpu_cores import cores
from ..errors import FusionerError
from ..results.segmentation import Segmentation
from ..session import Session
from . import problem, request, v2
from .errors import RequestInvalid
from .pictures import decoded
from .request import SegmentRequest

_SIZES = "give the input SIZE, such as 480x640, or send them in requests of their own"


@dataclass(frozen=True, eq=False)
class Job:
    """A request of the server. pictures: (H, W, 3) uint8 each, or None where `on_device` is a (B, H, W, 3) tensor in GPU memory.

    outputs: the names that are asked for. place: of the request among those of its call.
    """

    place: int
    id: str
    asked: SegmentRequest
    pictures: list[np.ndarray]
    outputs: tuple[str, ...]
    on_device: Any = None

    @property
    def pixels(self) -> int:
        """Of its label maps."""
        sizes = [self.asked.size or picture.shape[:2] for picture in self.pictures]
        return sum(height * width for height, width in sizes)


class Model:
    """What the models share: parameters of their configuration, reading requests, errors."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """args: as the server gives them. Raises its TritonModelException, with the text of what kept the model from opening."""
        self.server: Any = importlib.import_module(
            "triton_python_backend_utils"
        )  # there is one within the server alone
        self.name, self.config = args["model_name"], json.loads(args["model_config"])
        given = self.config.get("parameters", {})
        self.parameters = {name: value["string_value"] for name, value in given.items()}
        self.folder = Path(args["model_repository"])
        self.max_words = int(self.parameters.get("max_words", 1000))
        self.max_pixels = int(self.parameters.get("max_pixels", 40_000_000))
        try:
            if args["model_instance_kind"] == "GPU" and args["model_instance_device_id"] != "0":
                raise RequestInvalid(
                    f"an instance is for GPU {args['model_instance_device_id']}, and a session takes the first that its process sees",
                    "run a server for each GPU, with CUDA_VISIBLE_DEVICES or docker's --gpus device=N",
                    "instance_group",
                )
            self.open()
        except FusionerError as error:
            raise self.server.TritonModelException(f"{type(error).__name__}: {error}") from None

    def open(self) -> None:
        """Open what the model needs. Raises FusionerError."""

    def finalize(self) -> None:
        """Free it."""

    @property
    def bundle(self) -> Path:
        """The bundle's folder: in the model's, or elsewhere."""
        return self.folder / self.parameters["bundle"]

    @property
    def threads(self) -> int:
        """CPU threads of an instance: its share of the cores, which all instances together fill."""
        if given := self.parameters.get("threads"):
            return int(given)
        count = sum(group["count"] for group in self.config.get("instance_group", []))
        return max(1, cores() // max(1, count))

    @property
    def input_size(self) -> int | None:
        """As `Session` takes it; None is the bundle's own."""
        given = self.parameters.get("input_size")
        return int(given) if given else None

    def read(self, given: Any, place: int = 0) -> Job:
        """A request of the server, its pictures decoded. Raises RequestInvalid, TooManyWords, and errors of pictures."""
        for name in json.loads(given.parameters() or "{}"):
            raise RequestInvalid(
                f"there is no parameter {shown(name)}",
                f"give an input: {', '.join(v2.OPTIONS)}. The server's response cache does not see parameters",
            )
        inputs = {tensor.name(): tensor for tensor in given.inputs()}
        fields = {}
        for name in filter(inputs.__contains__, v2.OPTIONS):
            array = inputs[name].as_numpy()
            fields[v2.OPTIONS[name]] = v2.option(name, array.ravel().tolist(), array.shape)
        asked = request.parse(fields, self.max_words, self.max_pixels)
        outputs = tuple(given.requested_output_names())
        if len(kinds := inputs.keys() & {"PICTURE", "PIXELS"}) != 1:
            found = "two kinds of pictures" if kinds else "no picture"
            raise RequestInvalid(
                f"the request holds {found}", "give the input PICTURE, or PIXELS where the model has it"
            )
        tensor = inputs[name := min(kinds)]
        if not tensor.is_cpu():
            return Job(place, given.request_id(), asked, [], outputs, tensor)
        array = tensor.as_numpy()
        pictures = array.ravel().tolist() if name == "PICTURE" else list(array)
        found_pictures = [decoded(picture, self.max_pixels, name) for picture in pictures]
        return Job(place, given.request_id(), asked, found_pictures, outputs)

    def failed(self, error: Exception, request_id: str) -> Any:
        """The response that tells an error: its kind, what was found, what to do."""
        known = problem.as_known(error)
        told, codes = problem.document(known, request_id), self.server.TritonError
        if not known.is_input:
            trace = "".join(traceback.format_exception(error))
            self.server.Logger.log_error(f"{self.name}, request {request_id or 'without id'}: {trace}")
        code = codes.INVALID_ARG if told["status"] < 500 else codes.INTERNAL
        code = {501: codes.UNSUPPORTED, 503: codes.UNAVAILABLE}.get(told["status"], code)
        return self.response(error=codes(f"{type(known).__name__}: {told['detail']}", code))

    def response(self, tensors: Sequence[Any] = (), error: Any = None) -> Any:
        return self.server.InferenceResponse(output_tensors=list(tensors), error=error)

    def stacked(self, job: Job, results: Sequence[Segmentation]) -> Any:
        """The response of a request's results. Raises RequestInvalid for sizes that differ."""
        v2.check_stackable(results, job.outputs, _SIZES)
        return self.response([self.server.Tensor(name, v2.output(name, results, rows=True)) for name in job.outputs])


class TritonPythonModel(Model):
    """The whole way: files or pixels and words to labels, by a `Session`. The server calls its methods."""

    def open(self) -> None:
        given = self.parameters
        self._session: Session | None = Session(
            self.bundle, backend=given.get("backend", "auto"), cache=given.get("cache"), threads=self.threads,
            input_size=self.input_size, max_pixels=self.max_pixels,
        )  # fmt: skip
        self._session.load_text()  # no later call reads a file of the bundle
        effective, log = self._session.backend, self.server.Logger
        log.log_info(f"{self.name} runs {self._session.bundle.folder} by {effective.effective}: {effective.why}")
        for note in self._session.notes:
            log.log_warn(f"{self.name}: {note}")

    def is_ready(self) -> bool:
        """Whether requests can be run; servers of 2026 and later ask."""
        return self._session is not None

    def finalize(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request, in order. Those that ask for the same run as one call; an error is its request's alone."""
        responses: list[Any] = [None] * len(requests)
        alike: dict[str, list[Job]] = {}
        for place, given in enumerate(requests):
            try:
                if given.is_cancelled():
                    codes = self.server.TritonError
                    responses[place] = self.response(error=codes("the request was cancelled", codes.CANCELLED))
                    continue
                job = self.read(given, place)
                if job.on_device is None:
                    alike.setdefault(job.asked.batch_key, []).append(job)
                else:
                    responses[place] = self._on_device(job)
            except Exception as error:
                responses[place] = self.failed(error, given.request_id())
        for jobs in alike.values():
            for part in _parts(jobs, self.max_pixels):
                for job, results in self._results(part):
                    try:
                        if isinstance(results, Exception):
                            raise results
                        responses[job.place] = self.stacked(job, results)
                    except Exception as error:
                        responses[job.place] = self.failed(error, job.id)
        return responses

    def _results(self, jobs: Sequence[Job]) -> list[tuple[Job, list[Segmentation] | Exception]]:
        """Jobs that ask for the same, as one call; where that fails, each by itself."""
        assert self._session is not None
        try:
            pictures: list[Any] = [picture for job in jobs for picture in job.pictures]
            left = iter(self._session.segment(pictures, **jobs[0].asked.options))
            return [(job, [next(left) for _ in job.pictures]) for job in jobs]
        except Exception as error:
            if len(jobs) == 1:
                return [(jobs[0], error)]
        return [pair for job in jobs for pair in self._results([job])]

    def _on_device(self, job: Job) -> Any:
        """Pixels in GPU memory to labels there; shares alone cross to the host, where they are asked for."""
        assert self._session is not None
        asked = job.asked
        if asked.mode != "joint" or asked.window != "whole":
            raise RequestInvalid("pixels in GPU memory are run jointly and whole", "send them in host memory", "PIXELS")
        made = self._session.segment_on_device(
            job.on_device, asked.words, size=asked.size, threshold=asked.threshold, background=asked.background
        )
        on_device = {"LABELS": made.labels, "CONFIDENCE": made.confidence}
        on_host = {"WORDS": np.array([list(made.words)] * made.labels.shape[0], object)}
        if "SHARES" in job.outputs or not on_device.keys() & set(
            job.outputs
        ):  # the server waits for what is on the device
            on_host["SHARES"] = _shares(made.labels.numpy(), len(made.words))
        return self.response(
            [
                self.server.Tensor.from_dlpack(name, on_device[name]) if name in on_device
                else self.server.Tensor(name, on_host[name])
                for name in job.outputs
            ]
        )  # fmt: skip


def _shares(labels: np.ndarray, words: int) -> np.ndarray:
    """labels: (B, H, W). Returns (B, words) float32, each word's share of the pixels."""
    counts = [np.bincount(one.ravel(), minlength=words + 1)[1:] / one.size for one in labels]
    return np.array(counts, np.float32)


def _parts(jobs: Sequence[Job], most: int) -> list[list[Job]]:
    """Jobs in their order, in parts whose label maps have at most `most` pixels together: a call holds them all."""
    parts: list[list[Job]] = []
    taken = 0
    for job in jobs:
        if not parts or taken + job.pixels > most:
            parts.append([])
            taken = 0
        parts[-1].append(job)
        taken += job.pixels
    return parts


class TritonStreamModel(Model):
    """Decoupled: a request with N pictures gives N responses, each as soon as those before it are sent, errors among them.

    Each picture is asked of the model that the parameter `model` names, in the same server: its queue, batches and cache serve
    both. Its session is the only one.
    """

    async def execute(self, requests: Sequence[Any]) -> None:
        await asyncio.gather(*map(self._serve, requests))

    async def _serve(self, given: Any) -> None:
        sender = given.get_response_sender()
        try:
            async for response in self._responses(given, sender):
                sender.send(response)
        except Exception as error:
            sender.send(self.failed(error, given.request_id()))
        finally:
            sender.send(flags=self.server.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def _responses(self, given: Any, sender: Any) -> AsyncIterator[Any]:
        """In the pictures' order; a few are at hand at once, so that they may share a batch."""
        inputs = {tensor.name(): tensor.as_numpy() for tensor in given.inputs()}
        files = inputs.pop("PICTURE").ravel()
        options = [self.server.Tensor(name, array.reshape(1, -1)) for name, array in inputs.items()]
        waiting: deque[Any] = deque()
        try:
            for file in files:
                if sender.is_cancelled():
                    return
                picture = self.server.Tensor("PICTURE", np.array([[file]], object))
                asked = self.server.InferenceRequest(
                    model_name=self.parameters["model"], inputs=[picture, *options],
                    requested_output_names=list(given.requested_output_names()), request_id=given.request_id(),
                )  # fmt: skip
                waiting.append(asyncio.ensure_future(asked.async_exec()))
                if len(waiting) >= int(self.parameters["at_once"]):
                    yield self._passed_on(await waiting.popleft())
            while waiting:
                yield self._passed_on(await waiting.popleft())
        finally:
            for one in waiting:
                one.cancel()

    def _passed_on(self, response: Any) -> Any:
        return (
            self.response(error=response.error()) if response.has_error() else self.response(response.output_tensors())
        )
