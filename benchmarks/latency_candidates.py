"""The ways from pictures and words to label maps that benchmarks/latency.py compares.

eager           PyTorch, the model written the straightforward way: every feature upsampled, normalised, multiplied;
                word vectors are kept between calls
eager-uncached  the same, words encoded in every call: what keeping their vectors is worth
compile         torch.compile of eager, for the shapes of the cell
ort             pixels and word vectors to labels as one ONNX graph in ONNX Runtime, the naive head inside
openvino        the same graph in OpenVINO, for the shapes of the cell, float32
openvino-bf16   the same with OpenVINO's own leave to compute in bfloat16
ours            fusioner_rt.Session.segment
ours-words      the same for a picture that was encoded before, with other words than in the last call
ours-uncached   the same in a process that finds no word's vector on disk: for cold starts
ours-ort        on a GPU: the same on ONNX Runtime's CUDA, not on TensorRT
kernels         on a GPU: the network in PyTorch, the mask head of kernels/ (Triton)
clipseg         transformers' CLIPSeg of similar encoder size, random weights, its own input of 352²: another model

Each is built from a job and then called: pictures in, label maps out, preparation of the picture included and done by
the same code for all. Nothing here is imported at the top that a candidate does not need: a process holds one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency_models import MODELS, Files, picture
from fusioner_rt.errors import UsageError

TITLES = {
    "eager": "PyTorch eager", "eager-uncached": "PyTorch eager, words encoded in every call",
    "compile": "torch.compile", "ort": "ONNX Runtime, one graph", "openvino": "OpenVINO, one graph",
    "openvino-bf16": "OpenVINO, one graph, bfloat16", "ours": "ours", "ours-words": "ours, other words, picture encoded",
    "ours-ort": "ours on ONNX Runtime's CUDA", "ours-uncached": "ours, words encoded by the process",
    "kernels": "PyTorch eager with our kernels", "clipseg": "CLIPSeg",
}  # fmt: skip
THRESHOLD = 0.5
CLIPSEG_SIDE = 352
LIBRARIES_BYTES = 350_000_000
"""What a candidate's process takes beside its model."""

Labels = tuple[np.ndarray, np.ndarray]  # (B, H, W) of any integer dtype; (B, H, W) float32 confidence


@dataclass(frozen=True)
class Job:
    """A candidate in a cell: `batch` pictures of picture² pixels, label maps of output², `words` words."""

    candidate: str
    model: str
    picture: int
    output: int
    words: int
    batch: int
    precision: str
    device: str
    threads: int
    work: str

    @property
    def files(self) -> Files:
        return Files(Path(self.work), self.model, self.device)

    def names(self) -> list[str]:
        """The words, without importing what lists them."""
        return list(self.files.facts()["words"][: self.words])

    def vectors(self) -> np.ndarray:
        """(K, t) float32."""
        vectors: np.ndarray = np.load(self.files.words)[: self.words]
        return vectors


@dataclass
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
    if job.candidate == "ort":
        return _onnxruntime(job)
    if job.candidate.startswith("openvino"):
        return _openvino(job)
    return _clipseg(job) if job.candidate == "clipseg" else _torch(job)


def pictures(job: Job) -> list[np.ndarray]:
    return [picture(job.picture, index) for index in range(job.batch)]


def needs(job: Job) -> int:
    """Bytes at the peak, from the algorithm and not from a counter: what decides whether a cell is run.

    Weights are in memory twice, as they lie in their file and as a library lays them out for its products. Naive heads hold every feature at output size twice, before and after normalising, or once beside the K maps.
    In one graph they are there in more copies, of layouts that operators ask for: of 9.5 GB so worked out, ONNX Runtime took
    18.4 and OpenVINO 13.5.
    """
    pixels, d, k = job.batch * job.output**2, MODELS[job.model].channels, job.words
    item = 2 if job.device == "cuda" and job.precision == "fp16" else 4
    weights = int(job.files.facts()["parameter_bytes"])
    process = LIBRARIES_BYTES + 2 * weights
    if job.candidate == "kernels":
        return process + 16 * pixels
    if job.candidate.startswith("ours"):  # the text graph, a part of the weights, is not loaded for words in the cache
        return LIBRARIES_BYTES + weights * 5 // 4 + 16 * pixels
    if job.candidate == "clipseg":
        return process + 8 * pixels * k + 24 * pixels + 4 * job.batch * k * CLIPSEG_SIDE**2 * 4
    copies = {"ort": 2.0, "openvino": 1.5, "openvino-bf16": 1.5}.get(job.candidate, 1.0)
    return process + int(copies * item * pixels * max(2 * d, d + 3 * k)) + 24 * pixels


def _stage(stages: dict[str, float], synchronise: Callable[[], None] | None = None) -> Any:
    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if synchronise:
            synchronise()
        stages[name] = (time.perf_counter() - start) * 1000

    return timed


def _prepared(job: Job) -> Callable[[list[np.ndarray]], np.ndarray]:
    """Pictures to (B, 3, h, w) float32, by the code that `ours` runs too."""
    how = job.files.preprocessing()
    size = how.input_size(job.picture, job.picture)
    return lambda pictures: np.stack([how(one, size) for one in pictures])


def _ours(job: Job) -> Candidate:
    import onnxruntime

    import fusioner_rt

    backend = (
        "onnxruntime-cpu" if job.device == "cpu" else "onnxruntime-cuda" if job.candidate == "ours-ort" else "auto"
    )
    cache: Any = False if job.candidate == "ours-uncached" else Path(job.work) / "words"
    session = fusioner_rt.Session(job.files.bundle(job.precision), backend, cache, job.threads)
    names, size = job.names(), (job.output, job.output)
    session.set_vocabulary(names)
    stages: dict[str, float] = {}
    candidate = Candidate(
        lambda _: (np.empty(0), np.empty(0)), stages, {"onnxruntime": onnxruntime.__version__},
        f"backend {session.backend.effective}",
    )  # fmt: skip

    def told(results: Any) -> Labels:
        results = results if isinstance(results, list) else [results]
        stages.clear()
        for result in results:
            for stage, ms in result.timing.items():
                if stage != "total":
                    stages[stage] = stages.get(stage, 0.0) + ms
        return np.stack([one.labels for one in results]), np.stack([one.confidence for one in results])

    def single(pictures: list[np.ndarray]) -> Labels:
        result = session.segment(pictures[0] if len(pictures) == 1 else pictures, size=size)
        if len(pictures) > 1:
            return told(result)
        stages.clear()
        stages.update({stage: ms for stage, ms in result.timing.items() if stage != "total"})
        return result.labels[None], result.confidence[None]

    if job.candidate != "ours-words":
        candidate.call = single
        return candidate

    encoded: list[Any] = []
    vocabularies = [names, names[::-1]]
    session.set_vocabulary(vocabularies[1])  # both are in the cache

    def words_alone(pictures: list[np.ndarray]) -> Labels:
        if not encoded:
            encoded.extend(session.encode(one) for one in pictures)
        vocabularies.append(vocabularies.pop(0))  # the first call has the words in their order
        return told([session.segment(one, vocabularies[-1], size) for one in encoded])

    candidate.call = words_alone
    return candidate


def _torch(job: Job) -> Candidate:
    import torch
    from torch.nn import functional as F

    from training import checkpoint

    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    model = checkpoint.load(job.files.checkpoint).to(device)
    prepared, names = _prepared(job), job.names()
    kept = torch.from_numpy(job.vectors()).to(device)
    temperature, size = model.config.temperature, (job.output, job.output)
    stages: dict[str, float] = {}
    stage = _stage(stages, torch.cuda.synchronize if device.type == "cuda" else None)
    half = job.precision == "fp16" and device.type == "cuda"
    torch.backends.cudnn.allow_tf32 = half  # float32 must be float32

    def head(features: Any, refined: Any) -> tuple[Any, Any]:
        upsampled = F.interpolate(features.movedim(-1, 1), size=size, mode="bilinear", align_corners=False)
        cosine = torch.einsum("bdhw,bkd->bkhw", F.normalize(upsampled, dim=1), F.normalize(refined, dim=-1))
        confidence, label = torch.sigmoid(cosine / temperature).max(dim=1)
        return torch.where(confidence > THRESHOLD, label + 1, 0), confidence

    def whole(pixels: Any, words: Any) -> tuple[Any, Any]:
        return head(*model(pixels, words))

    if job.candidate == "kernels":
        from kernels import mask_head

        def head(features: Any, refined: Any) -> tuple[Any, Any]:
            scores, gram = mask_head.score_maps(features, refined)
            found: tuple[Any, Any] = mask_head.resolve(scores, gram, size, temperature, THRESHOLD, torch.float16)
            return found

    compiled = torch.compile(whole, dynamic=False) if job.candidate == "compile" else None

    @torch.inference_mode()
    def call(pictures: list[np.ndarray]) -> Labels:
        with stage("preprocess"):
            pixels = torch.from_numpy(prepared(pictures)).to(device)
        with stage("text"):
            words = model.word_vectors(names) if job.candidate == "eager-uncached" else kept
            words = words.expand(len(pictures), -1, -1)
        with torch.autocast(device.type, torch.float16, enabled=half):
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

    return Candidate(call, stages, {"torch": torch.__version__}, parameter_bytes=_parameter_bytes(model))


def _onnxruntime(job: Job) -> Candidate:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(job.files.monolith(job.precision), options, ["CPUExecutionProvider"])
    return _one_graph(job, lambda inputs: session.run(["labels", "confidence"], inputs), onnxruntime)


def _openvino(job: Job) -> Candidate:
    import openvino

    core = openvino.Core()
    model = core.read_model(job.files.monolith(job.precision))
    vectors, how = job.vectors(), job.files.preprocessing()
    model.reshape({
        "pixels": [job.batch, 3, *how.input_size(job.picture, job.picture)], "words": [job.batch, *vectors.shape],
    })  # fmt: skip
    options = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job.threads,
        "INFERENCE_PRECISION_HINT": "bf16" if job.candidate == "openvino-bf16" else "f32",
    }  # fmt: skip
    compiled = core.compile_model(model, "CPU", options)
    request = compiled.create_infer_request()

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = request.infer(inputs)
        return [found["labels"], found["confidence"]]

    return _one_graph(job, run, openvino)


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
    """The picture is encoded once and its activations meet every word's embedding, which is kept between calls."""
    like = MODELS[job.model].clipseg
    if like is None:
        raise UsageError(
            f"no CLIPSeg with an encoder of the size of {job.model}'s was made", "compare with vits, vitb or vitl"
        )
    import torch

    from training.encoders.open_clip import define_torchvision_operators

    define_torchvision_operators()  # which CLIPSeg does not use, and its import asks for
    import transformers
    from torch.nn import functional as F
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    from fusioner_rt.preprocess import Preprocessing

    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    torch.manual_seed(0)
    layers = like.get("num_hidden_layers", 12)
    extract = [layers // 4, layers // 2, 3 * layers // 4]
    config = CLIPSegConfig(
        vision_config={"image_size": 224, "patch_size": 16, **like}, extract_layers=extract,
        conditional_layer=0, decoder_num_attention_heads=4, reduce_dim=64,
    )  # fmt: skip
    model = CLIPSegForImageSegmentation(config).eval().to(device)
    side = CLIPSEG_SIDE // model.config.vision_config.patch_size * model.config.vision_config.patch_size
    how = Preprocessing(side, 1, side, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    embeddings = torch.randn(job.words, config.projection_dim, device=device)
    stages: dict[str, float] = {}
    stage = _stage(stages, torch.cuda.synchronize if device.type == "cuda" else None)
    size = (job.output, job.output)

    @torch.inference_mode()
    def call(pictures: list[np.ndarray]) -> Labels:
        with stage("preprocess"):
            pixels = torch.from_numpy(np.stack([how(one, (side, side)) for one in pictures])).to(device)
        labels, confidences = [], []
        with torch.autocast(device.type, torch.float16, enabled=job.precision == "fp16" and device.type == "cuda"):
            with stage("image"):
                seen = model.clip.vision_model(pixels, output_hidden_states=True, interpolate_pos_encoding=True)
                kept = [seen.hidden_states[index + 1] for index in config.extract_layers]
            with stage("decoder"):
                for index in range(len(pictures)):
                    each = [one[index : index + 1].expand(job.words, -1, -1) for one in kept]
                    logits = model.decoder(each, embeddings).logits.reshape(1, job.words, side, side)
                    logits = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
                    confidence, label = torch.sigmoid(logits).max(dim=1)
                    labels.append(torch.where(confidence > THRESHOLD, label + 1, 0).cpu().numpy())
                    confidences.append(confidence.cpu().numpy())
        return np.concatenate(labels), np.concatenate(confidences)

    note = f"another model: random weights, input {side}²"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return Candidate(call, stages, versions, note, _parameter_bytes(model))


def _parameter_bytes(model: Any) -> int:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())
