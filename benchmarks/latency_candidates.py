"""The ways from pictures and words to label maps that benchmarks/latency.py compares.

eager           PyTorch, the model written the straightforward way: every feature upsampled, normalised, multiplied;
                word vectors are kept between calls
eager-uncached  the same, words encoded in every call: what keeping their vectors is worth
compile         torch.compile of eager, for the shapes of the cell
ort             pixels and word vectors to labels as one ONNX graph in ONNX Runtime, the naive head inside
openvino        the same graph in OpenVINO, for the shapes of the cell, float32
openvino-bf16   the same, where OpenVINO may compute in bfloat16
ort-scores      one graph whose scores are computed at the features' resolution and upsampled: cheaper, and approximate
openvino-scores the same graph in OpenVINO: the strongest peer
ours            fusioner_rt.Session.segment
ours-words      the same for a picture that was encoded before, with other words than in the last call
ours-uncached   the same in a process that finds no word's vector on disk: for cold starts
ours-ort        on a GPU: the same on ONNX Runtime's CUDA, not on TensorRT
kernels         on a GPU: the network in PyTorch, the mask head of kernels/ (Triton)
clipseg         transformers' CLIPSeg of similar encoder size, random weights, its own input of 352²: another model

A candidate is built from a job and then called: pictures in, label maps out. The same code prepares the picture for all.
A process holds one candidate, so that nothing is imported at the top which one of them does not need.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency_models import MODELS, ROOT, THRESHOLD, Files, parameter_bytes, picture
from fusioner_rt.errors import UsageError
from fusioner_rt.preprocess import Preprocessing

TITLES = {
    "eager": "PyTorch eager", "eager-uncached": "PyTorch eager, words encoded in every call",
    "compile": "torch.compile", "ort": "ONNX Runtime, one graph", "openvino": "OpenVINO, one graph",
    "openvino-bf16": "OpenVINO, one graph, bfloat16", "ort-scores": "ONNX Runtime, scores upsampled",
    "openvino-scores": "OpenVINO, scores upsampled", "ours": "ours", "ours-words": "ours, other words, picture encoded",
    "ours-ort": "ours on ONNX Runtime's CUDA", "ours-uncached": "ours, words encoded by the process",
    "kernels": "PyTorch eager with our kernels", "clipseg": "CLIPSeg",
}  # fmt: skip
APPROXIMATE = ("ort-scores", "openvino-scores")
"""Candidates whose cosines are not those of the model: their labels are compared with float64's, and may differ."""
CLIPSEG_SIDE = 352
LIBRARIES_BYTES = 350_000_000
"""What a candidate's process takes beside its model."""

Labels = tuple[np.ndarray, np.ndarray]  # (B, H, W) of any integer dtype; (B, H, W) float32 confidence


@dataclass(frozen=True)
class Cell:
    """`batch` pictures of picture² pixels to label maps of output² pixels, for `words` words."""

    model: str
    picture: int
    output: int
    words: int
    batch: int
    precision: str


@dataclass(frozen=True)
class Job(Cell):
    """A candidate in a cell."""

    candidate: str
    device: str
    threads: int
    work: str

    @property
    def files(self) -> Files:
        return Files(Path(self.work), self.model, self.device)

    @property
    def half(self) -> bool:
        """Whether PyTorch computes in float16."""
        return self.device == "cuda" and self.precision == "fp16"

    def names(self) -> list[str]:
        """The words, without importing what lists them."""
        return list(self.files.facts()["words"][: self.words])

    def vectors(self) -> np.ndarray:
        """(K, t) float32."""
        vectors: np.ndarray = np.load(self.files.words)[: self.words]
        return vectors

    def pictures(self) -> list[np.ndarray]:
        return [picture(self.picture, index) for index in range(self.batch)]


@dataclass(frozen=True)
class Candidate:
    """call: pictures to labels and confidence. stages: milliseconds of the last call by stage.

    versions: of the libraries it ran on. note: said in its row. parameter_bytes: of PyTorch's models.
    """

    call: Callable[[list[np.ndarray]], Labels]
    stages: dict[str, float]
    versions: dict[str, str]
    note: str = ""
    parameter_bytes: int = 0


def open_candidate(job: Job) -> Candidate:
    """Loads libraries and weights, and runs nothing. Raises what loading raises."""
    if job.candidate.startswith("ours"):
        return _ours(job)
    if job.candidate in ("ort", "ort-scores"):
        return _onnxruntime(job)
    if job.candidate.startswith("openvino"):
        return _openvino(job)
    return _clipseg(job) if job.candidate == "clipseg" else _torch(job)


def needed_bytes(job: Job) -> int:
    """Memory at the peak, from the algorithm and not from a counter. It decides whether a cell is run.

    Weights are in memory twice: as they lie in their file, and as a library lays them out for its products. Naive heads
    hold every feature at output size twice, before and after normalising, or once beside the K maps. One graph holds
    them in more copies, of layouts that operators ask for: where this gives 9.5 GB for one copy, ONNX Runtime took 18.4
    and OpenVINO 13.5.
    """
    pixels, d, k = job.batch * job.output**2, MODELS[job.model].channels, job.words
    weights = int(job.files.facts()["parameter_bytes"])
    process = LIBRARIES_BYTES + 2 * weights
    if job.candidate == "kernels":
        return process + 16 * pixels
    if job.candidate.startswith("ours"):  # the text graph, a part of the weights, is not loaded for words in the cache
        return LIBRARIES_BYTES + weights * 5 // 4 + 16 * pixels
    if job.candidate == "clipseg":
        return process + 8 * pixels * k + 24 * pixels + 4 * job.batch * k * CLIPSEG_SIDE**2 * 4
    if job.candidate in APPROXIMATE:
        return process + 3 * 4 * pixels * k + 24 * pixels
    copies = {"ort": 2.0, "openvino": 1.5, "openvino-bf16": 1.5}.get(job.candidate, 1.0)
    item = 2 if job.half else 4
    return process + int(copies * item * pixels * max(2 * d, d + 3 * k)) + 24 * pixels


def _ours(job: Job) -> Candidate:
    import onnxruntime

    import fusioner_rt

    on_gpu = "onnxruntime-cuda" if job.candidate == "ours-ort" else "auto"
    backend = "onnxruntime-cpu" if job.device == "cpu" else on_gpu
    cache: Any = False if job.candidate == "ours-uncached" else Path(job.work) / "words"
    session = fusioner_rt.Session(job.files.bundle(job.precision), backend, cache, job.threads)
    names, size = job.names(), (job.output, job.output)
    session.set_vocabulary(names)
    stages: dict[str, float] = {}

    def read(results: list[Any]) -> Labels:
        stages.clear()
        for result in results:
            for stage, ms in result.timing.items():
                if stage != "total":
                    stages[stage] = stages.get(stage, 0.0) + ms
        if len(results) == 1:
            return results[0].labels[None], results[0].confidence[None]
        return np.stack([one.labels for one in results]), np.stack([one.confidence for one in results])

    def whole(pictures: list[np.ndarray]) -> Labels:
        return read(
            session.segment(pictures, size=size) if len(pictures) > 1 else [session.segment(*pictures, size=size)]
        )

    encoded: list[Any] = []
    vocabularies = [names, names[::-1]]

    def words_alone(pictures: list[np.ndarray]) -> Labels:
        if not encoded:
            encoded.extend(session.encode(one) for one in pictures)
        vocabularies.append(vocabularies.pop(0))  # the first call has the words in their order
        return read([session.segment(one, vocabularies[-1], size) for one in encoded])

    if job.candidate == "ours-words":
        session.set_vocabulary(vocabularies[1])  # both are in the cache
    call = words_alone if job.candidate == "ours-words" else whole
    return Candidate(
        call, stages, {"onnxruntime": onnxruntime.__version__}, f"backend {session.backend.effective}"
    )  # fmt: skip


def naive_head(size: tuple[int, int], temperature: float) -> Callable[[Any, Any], tuple[Any, Any]]:
    """PyTorch's: features (B, h, w, d) and words (B, K, d) to labels (B, H, W) int64 and confidence (B, H, W)."""
    import torch
    from torch.nn import functional as F

    def head(features: Any, words: Any) -> tuple[Any, Any]:
        # the view is channels-last, which torch interpolates and normalises faster than contiguous planes
        upsampled = F.interpolate(features.movedim(-1, 1), size=size, mode="bilinear", align_corners=False)
        upsampled = F.normalize(upsampled, dim=1)
        cosine = torch.einsum("bdhw,bkd->bkhw", upsampled, F.normalize(words, dim=-1))
        confidence, label = torch.sigmoid(cosine / temperature).max(dim=1)
        return torch.where(confidence > THRESHOLD, label + 1, 0), confidence

    return head


def _kernels_head(size: tuple[int, int], temperature: float) -> Callable[[Any, Any], tuple[Any, Any]]:
    import torch

    from kernels import mask_head

    def head(features: Any, words: Any) -> tuple[Any, Any]:
        scores, gram = mask_head.score_maps(features, words)
        found: tuple[Any, Any] = mask_head.resolve(scores, gram, size, temperature, THRESHOLD, torch.float16)
        return found

    return head


def _torch(job: Job) -> Candidate:
    import torch

    from training import checkpoint

    torch.set_num_threads(job.threads)
    torch.backends.cudnn.allow_tf32 = job.half  # float32 must be float32
    model = checkpoint.load(job.files.checkpoint).to(job.device)
    prepared, names = _prepared(job), job.names()
    kept = torch.from_numpy(job.vectors()).to(job.device)
    make_head = _kernels_head if job.candidate == "kernels" else naive_head
    head = make_head((job.output, job.output), model.config.temperature)
    compiled = None
    if job.candidate == "compile":
        compiled = torch.compile(lambda pixels, words: head(*model(pixels, words)), dynamic=False)
    stages: dict[str, float] = {}
    stage = _stage(stages, torch.cuda.synchronize if job.device == "cuda" else None)

    @torch.inference_mode()
    def call(pictures: list[np.ndarray]) -> Labels:
        with stage("preprocess"):
            pixels = torch.from_numpy(prepared(pictures)).to(job.device)
        with stage("text"):
            words = model.word_vectors(names) if job.candidate == "eager-uncached" else kept
            words = words.expand(len(pictures), -1, -1)
        with torch.autocast(job.device, torch.float16, enabled=job.half):
            if compiled:
                with stage("graph"):
                    labels, confidence = compiled(pixels, words)
            else:
                with stage("image"):
                    tokens = model.encode(pixels)
                with stage("fusion"):
                    fused, refined = model.attend(tokens, words)
                with stage("decoder"):
                    features = model.decode(fused)
                with stage("mask_head"):
                    labels, confidence = head(features, refined)
        with stage("copy out"):
            arrays = labels.cpu().numpy(), confidence.float().cpu().numpy()
        return arrays

    return Candidate(call, stages, {"torch": torch.__version__}, parameter_bytes=parameter_bytes(model))


def _onnxruntime(job: Job) -> Candidate:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(_graph(job), options, ["CPUExecutionProvider"])
    return _one_graph(job, lambda inputs: session.run(["labels", "confidence"], inputs), onnxruntime)


def _openvino(job: Job) -> Candidate:
    import openvino

    core = openvino.Core()
    model = core.read_model(_graph(job))
    input_size = job.files.preprocessing().input_size(job.picture, job.picture)
    model.reshape({"pixels": [job.batch, 3, *input_size], "words": [job.batch, *job.vectors().shape]})
    options = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job.threads,
        "INFERENCE_PRECISION_HINT": "bf16" if job.candidate == "openvino-bf16" else "f32",
    }  # fmt: skip
    request = core.compile_model(model, "CPU", options).create_infer_request()

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = request.infer(inputs)
        return [found["labels"], found["confidence"]]

    return _one_graph(job, run, openvino)


def _graph(job: Job) -> Path:
    return job.files.monolith(job.precision, job.candidate in APPROXIMATE)


def _one_graph(job: Job, run: Callable[[dict[str, np.ndarray]], list[np.ndarray]], module: Any) -> Candidate:
    prepared = _prepared(job)
    words = np.repeat(job.vectors()[None], job.batch, axis=0)
    size = np.array([job.output, job.output], np.int64)
    stages: dict[str, float] = {}
    stage = _stage(stages)

    def call(pictures: list[np.ndarray]) -> Labels:
        with stage("preprocess"):
            pixels = prepared(pictures)
        with stage("graph"):
            labels, confidence = run({"pixels": pixels, "words": words, "size": size})
        return labels, confidence

    return Candidate(call, stages, {module.__name__: module.__version__})


def _clipseg(job: Job) -> Candidate:
    """The picture is encoded once. Its activations meet every word's embedding, which is kept between calls."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(job.threads)
    model = _clipseg_model(job.model).to(job.device)
    import transformers  # which _clipseg_model prepares for

    patch = model.config.vision_config.patch_size
    side, size = CLIPSEG_SIDE // patch * patch, (job.output, job.output)
    how = Preprocessing(side, 1, side, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    embeddings = torch.randn(job.words, model.config.projection_dim, device=job.device)
    stages: dict[str, float] = {}
    stage = _stage(stages, torch.cuda.synchronize if job.device == "cuda" else None)

    @torch.inference_mode()
    def call(pictures: list[np.ndarray]) -> Labels:
        with stage("preprocess"):
            pixels = torch.from_numpy(np.stack([how(one, (side, side)) for one in pictures])).to(job.device)
        labels, confidences = [], []
        with torch.autocast(job.device, torch.float16, enabled=job.half):
            with stage("image"):
                seen = model.clip.vision_model(pixels, output_hidden_states=True, interpolate_pos_encoding=True)
                kept = [seen.hidden_states[index + 1] for index in model.config.extract_layers]
            with stage("decoder"):
                for index in range(len(pictures)):
                    each = [one[index : index + 1].expand(job.words, -1, -1) for one in kept]
                    logits = model.decoder(each, embeddings).logits.reshape(1, job.words, side, side)
                    logits = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
                    confidence, label = torch.sigmoid(logits).max(dim=1)
                    labels.append(torch.where(confidence > THRESHOLD, label + 1, 0).cpu().numpy())
                    confidences.append(confidence.cpu().numpy())
        return np.concatenate(labels), np.concatenate(confidences)

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    note = f"another model: random weights, input {side}²"
    return Candidate(call, stages, versions, note, parameter_bytes(model))


def _clipseg_model(name: str) -> Any:
    """CLIPSeg with random weights and an encoder of the named model's size. Raises UsageError where there is none."""
    like = MODELS[name].clipseg
    if like is None:
        raise UsageError(
            f"no CLIPSeg with an encoder of the size of {name}'s was made", "compare with vits, vitb or vitl"
        )
    import torch

    from training.encoders.open_clip import define_torchvision_operators

    define_torchvision_operators()  # which CLIPSeg does not use, and its import asks for
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    torch.manual_seed(0)
    layers = like.get("num_hidden_layers", 12)
    config = CLIPSegConfig(
        vision_config={"image_size": 224, "patch_size": 16, **like}, conditional_layer=0, reduce_dim=64,
        extract_layers=[layers // 4, layers // 2, 3 * layers // 4], decoder_num_attention_heads=4,
    )  # fmt: skip
    return CLIPSegForImageSegmentation(config).eval()


def _prepared(job: Job) -> Callable[[list[np.ndarray]], np.ndarray]:
    """Pictures to (B, 3, h, w) float32, by the code that `ours` runs too."""
    how = job.files.preprocessing()
    size = how.input_size(job.picture, job.picture)
    return lambda pictures: np.stack([how(one, size) for one in pictures])


def _stage(stages: dict[str, float], synchronise: Callable[[], None] | None = None) -> Any:
    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if synchronise:
            synchronise()
        stages[name] = (time.perf_counter() - start) * 1000

    return timed


def bytes_on_disk(job: Job) -> int:
    """The files of a candidate's model, for pictures and words. PyTorch's candidates tell `parameter_bytes` instead."""
    bundle = job.files.bundle(job.precision)
    files = [_graph(job), bundle / "text.onnx", bundle / "tokenizer.json"]
    if job.candidate.startswith("ours"):
        files = [file for file in bundle.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


_RUNTIME = ("numpy", "pillow", "tokenizers")
_DISTRIBUTIONS = {
    "torch": ("torch", "safetensors", *_RUNTIME), "ort": ("onnxruntime", *_RUNTIME), "openvino": ("openvino", *_RUNTIME),
    "ours": ("onnxruntime", *_RUNTIME), "clipseg": ("torch", "transformers", *_RUNTIME),
}  # fmt: skip


def installed_bytes(candidate: str) -> int | None:
    """The distributions that a candidate needs, and for ours the runtime. None where one is not installed."""
    from importlib.metadata import PackageNotFoundError

    kind = next((name for name in _DISTRIBUTIONS if candidate.startswith(name)), "torch")
    try:
        needed = set().union(*(_required(name) for name in _DISTRIBUTIONS[kind]))
        total = sum(_distribution_bytes(name) for name in needed)
    except PackageNotFoundError:
        return None
    if kind == "ours":
        total += sum(file.stat().st_size for file in (ROOT / "fusioner_rt").rglob("*.py"))
    return total


@cache
def _required(name: str) -> frozenset[str]:
    """A distribution and all it requires on this machine."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: set[str] = set()
    waiting = [canonicalize_name(name)]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        for text in requires(one) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    return frozenset(found)


@cache
def _distribution_bytes(name: str) -> int:
    from importlib.metadata import files

    return sum(path.stat().st_size for file in files(name) or () if (path := Path(str(file.locate()))).is_file())
