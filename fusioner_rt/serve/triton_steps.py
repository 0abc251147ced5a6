"""What stands before and after an engine that Triton runs by itself: the first and last step of an ensemble (docs/triton.md).

The engine is `image_fusion`, as a plan or an ONNX graph. Prompts, preprocessing and the mask head with groups, background words
and thresholds are the runtime's own code, so that these steps are models of the Python backend.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..check_finite import check_finite
from ..executor_interface import Request
from ..onnx.loaded_graphs import LoadedGraphs
from ..onnx.runtime import OnnxRuntime
from ..results.segmentation import Segmentation
from ..words.cache import TextCache, default_folder
from ..words.encoder import TextEncoder
from ..words.owners import Thresholds, labels_of_names
from ..words.parse import check_count, parse_words
from . import v2
from .errors import RequestInvalid
from .request import SegmentRequest
from .triton import Job, Model


class _Step(Model, ABC):
    """A step: each request by itself, since the engine between them is what is batched."""

    def open(self) -> None:
        self._bundle = Bundle.open(self.bundle, plans=False)
        self._graphs = LoadedGraphs(self._bundle, OnnxRuntime("onnxruntime-cpu", self.threads))

    def finalize(self) -> None:
        self._graphs.close()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request, in order."""
        return [self._response(given) for given in requests]

    def _response(self, given: Any) -> Any:
        try:
            return self.answer(given)
        except Exception as error:
            return self.failed(error, given.request_id())

    @abstractmethod
    def answer(self, given: Any) -> Any:
        """The response to one request. Raises FusionerError."""

    def tensors(self, arrays: Mapping[str, np.ndarray]) -> Any:
        return self.response([self.server.Tensor(name, array) for name, array in arrays.items()])


class Prepare(_Step):
    """PICTURE and options to pixels (B, 3, h, w) and words (B, K, t), float32, and ASKED, what the last step is to know."""

    def open(self) -> None:
        super().open()
        self._bundle = self._bundle.with_input_side(self.input_size)
        given = self.parameters.get("cache")
        cache = TextCache(Path(given) if given else default_folder())
        self._text = TextEncoder(self._bundle, lambda: self._graphs("text"), cache)
        self._text.load()

    def answer(self, given: Any) -> Any:
        job, bundle = self.read(given), self._bundle
        if job.asked.window != "whole" or (job.asked.mode != "joint" and bundle.scoring != "softmax"):
            raise RequestInvalid(
                "an engine by itself fuses words jointly, in whole pictures", "ask the model of the whole way"
            )
        words = parse_words(job.asked.words, job.asked.background)
        check_count(words, bundle.words.max, bundle.folder)
        sizes = {picture.shape[:2] for picture in job.pictures}
        inputs = {bundle.input_size(height, width, "PICTURE") for height, width in sizes}
        if len(inputs) > 1 or (len(sizes) > 1 and not job.asked.size):
            raise RequestInvalid("the pictures have different sizes", "send them in requests of their own", "PICTURE")
        pixels = np.stack([bundle.preprocessing(picture, *inputs) for picture in job.pictures])
        vectors = self._text.encode_words(words, bundle.templates).vectors
        asked = json.dumps({**job.asked.options, "size": job.asked.size or job.pictures[0].shape[:2]})
        count = len(pixels)
        return self.tensors(
            {
                "pixels": pixels,
                "words": np.repeat(vectors[None], count, axis=0),
                "ASKED": np.array([[asked]] * count, object),
            }
        )


class Masks(_Step):
    """The engine's features (B, h, w, d) and refined (B, K, d), float32, and ASKED, to LABELS, CONFIDENCE, SHARES and NAMES.

    NAMES is what the whole way calls WORDS: in an ensemble an output has no input's name.
    """

    def open(self) -> None:
        super().open()
        self._head = self._graphs.mask_head(self.threads)
        self._graphs.load_mask_head()

    def finalize(self) -> None:
        self._head.close()
        super().finalize()

    def answer(self, given: Any) -> Any:
        found = {tensor.name(): tensor.as_numpy() for tensor in given.inputs()}
        features, refined = found["features"], found["refined"]
        asked = json.loads(found["ASKED"].ravel()[0])
        size = asked.pop("size")
        job = Job(
            0, given.request_id(), SegmentRequest(**asked, size=tuple(size)), [], tuple(given.requested_output_names())
        )
        results = [self._result(job.asked, features[n : n + 1], refined[n : n + 1]) for n in range(len(features))]
        return self.tensors({name: v2.output(_INNER.get(name, name), results, rows=True) for name in job.outputs})

    def _result(self, asked: SegmentRequest, features: np.ndarray, refined: np.ndarray) -> Segmentation:
        words = parse_words(asked.words, asked.background)
        thresholds = Thresholds(asked.threshold, words, self._bundle.threshold)
        maps = self._head.maps(features, refined)
        check_finite(self._bundle, *maps)
        assert asked.size is not None
        made = self._head.answer(*maps, asked.size, Request(refined[0], thresholds.least, "joint", False))
        labels = thresholds.apply(labels_of_names(made.labels, words), made.confidence)
        picture = np.broadcast_to(np.uint8(0), (*asked.size, 3))  # of what no output shows
        return Segmentation(words.names, labels, made.confidence, picture, {}, thresholds.given, "joint")


_INNER = {"NAMES": "WORDS"}
