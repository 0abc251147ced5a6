"""TensorRT plans of a bundle's graphs, for TensorRT 10.3 and later and TensorRT-RTX alike: same calls, another module.

Networks are strongly typed: the plan computes in the types the ONNX graph has (export/onnx/half_precision.py), so there is no
precision flag here. TensorRT 10 asks for that mode, TensorRT 11 knows no other. Plans are plain plan files. What differs
between versions is in fusioner_rt/tensorrt/versions.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from export.onnx.half_precision import HALVES, LEAST_HALF_SHARE, PrecisionNotReached
from export.tensorrt import profiles as tensorrt_profiles
from export.tensorrt import report as tensorrt_report
from export.tensorrt.progress import Progress, monitor, run
from fusioner_rt.errors import BackendUnavailable, FusionerError, UsageError
from fusioner_rt.files import unwritable, write_atomically
from fusioner_rt.plans import LISTED
from fusioner_rt.tensorrt import versions as tensorrt_library
from fusioner_rt.tensorrt.versions import MODULES

PORTABLE = ", ".join(one for one in LISTED if float(one) >= 8)
"""What TensorRT-RTX's plan for many GPUs is for, in words."""
PLANNED = ("text", "image_fusion")
"""The mask head has kernels of its own on a GPU."""


class TensorRTMissing(FusionerError):
    """The TensorRT flavour asked for is not installed, or cannot be loaded."""

    exit_code = 87


class TensorRTRefused(FusionerError):
    """TensorRT does not take a graph, or builds no engine from it."""

    exit_code = 88


@dataclass(frozen=True)
class PlanOptions:
    """What the command line says of plans.

    flavour: a key of MODULES, or "onnxruntime": no plans. build_for: "sm_80,sm_89". profiles: of
    tensorrt_profiles.NAMES, none for the default. precision: "fp16", "bf16" or "fp32", what the graphs claim.
    """

    flavour: str
    build_for: str | None = None
    profiles: tuple[str, ...] = ()
    timing_cache: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    precision: str = "fp32"


@dataclass(frozen=True)
class Target:
    """What one plan is built for. label: "8.9", that one alone, or "8.0+", that and later, of TensorRT-RTX those that it
    lists; named: to TensorRT."""

    label: str
    named: tuple[str, ...] = ()

    def file(self, graph: str, flavour: str) -> str:
        return f"{graph}.{flavour}-sm_{self.label.replace('.', '').replace('+', '_plus')}.plan"


def load(flavour: str) -> ModuleType:
    """The flavour's Python module. Raises TensorRTMissing."""
    try:
        return tensorrt_library.load(flavour)
    except BackendUnavailable as error:
        raise TensorRTMissing(
            error.found, f"{error.cure}, or build with --backend onnxruntime", subject=error.subject
        ) from None


def choose(asked: str) -> str:
    """`auto` becomes tensorrt where it is installed and a GPU is visible, else onnxruntime."""
    if asked != "auto":
        return asked
    try:
        load("tensorrt")
    except TensorRTMissing:
        return "onnxruntime"
    return "tensorrt" if this_gpu() else "onnxruntime"


def this_gpu() -> str | None:
    """The compute capability of the first visible GPU, such as "8.9", or None."""
    from fusioner_rt.gpu.driver import Device

    try:
        device = Device()
    except FusionerError:  # no driver, no GPU, or no cuda-bindings: PyTorch may bring its own
        try:
            import torch
        except ImportError:
            return None
        return "{}.{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else None
    capability = "{}.{}".format(*device.capability)
    device.close()
    return capability


def check(options: PlanOptions) -> None:
    """Raises TensorRTMissing or UsageError where `add_plans` could not do what is asked of it."""
    flavour = options.flavour
    if options.build_for and flavour != "tensorrt-rtx":
        raise UsageError(
            f"--for {options.build_for} is for --backend tensorrt-rtx", f"this build is for {flavour}, leave --for out"
        )
    asked = {
        "--profiles": options.profiles, "--timing-cache": options.timing_cache,
        "--hardware-compatible": options.hardware_compatible, "--version-compatible": options.version_compatible,
        "--bf16": options.precision == "bf16",
    }  # fmt: skip
    if flavour not in MODULES:
        for option in (option for option, value in asked.items() if value):
            raise UsageError(
                f"{option} is for TensorRT plans, and this build makes none (--backend {flavour})",
                f"add --backend tensorrt or --backend tensorrt-rtx, or leave {option} out",
            )
        return
    if flavour == "tensorrt-rtx":
        for option, why in (
            ("--timing-cache", "it times no kernels while building, and compiles them on the GPU it runs on"),
            ("--hardware-compatible", f"without --for one plan runs on all that it lists from 8.0 on, {PORTABLE}"),
            ("--version-compatible", "each of its releases loads its own plans alone"),
        ):
            if asked[option]:
                raise UsageError(f"{option} is for --backend tensorrt", f"of TensorRT-RTX, {why}: leave {option} out")
    trt = load(flavour)
    known = tensorrt_library.known_capabilities(trt)
    for target in targets(options):
        if options.precision == "bf16" and float(target.label.rstrip("+")) < 8:
            raise UsageError(
                f"GPUs of compute capability {target.label} have no bfloat16, those from 8.0 on do",
                "use --fp16",
                subject="--bf16",
            )
        if flavour == "tensorrt-rtx" and options.precision == "fp32" and float(target.label.rstrip("+")) < 8:
            # pytorch/TensorRT issue 4643: with shapes that vary, which these are, all outputs are zeros
            raise UsageError(
                "TensorRT-RTX is known to compute zeros there from graphs of fp32",
                "build with --fp16, or leave it out and run the bundle with onnxruntime-cuda",
                subject=f"--for {_sm(target.label)}",
            )
        for capability in target.named:
            if capability not in known:
                raise UsageError(
                    f"{flavour} {trt.__version__} builds ahead of time for {', '.join(map(_sm, known))}",
                    "choose of these, or leave --for out: that plan runs on those from sm_80 on",
                    subject=f"--for {_sm(capability)}",
                )


def targets(options: PlanOptions) -> list[Target]:
    """What to build plans for. Raises TensorRTMissing where this machine's GPU is meant and there is none."""
    if options.build_for:
        numbers = (name.removeprefix("sm_") for name in options.build_for.split(","))
        return [Target(label, (label,)) for label in dict.fromkeys(f"{n[:-1]}.{n[-1]}" for n in numbers)]
    if options.flavour == "tensorrt-rtx":
        return [Target("8.0+")]
    capability = this_gpu()
    if capability is None:
        raise TensorRTMissing(
            "no GPU is visible here, and it builds on the GPU it builds for",
            "build there, or use --backend tensorrt-rtx, which needs none, or --backend onnxruntime",
            subject=f"--backend {options.flavour}",
        )
    if not options.hardware_compatible:
        return [Target(capability)]
    if float(capability) < 8:
        raise UsageError(
            f"plans for several kinds of GPU begin at compute capability 8.0, this GPU has {capability}",
            "leave it out",
            subject="--hardware-compatible",
        )
    return [Target("8.0+")]


class Network:
    """A graph as TensorRT read it. Several plans may be built from it.

    layers: as tensorrt_report.layer_list has them. Raises TensorRTRefused with all that the parser has to say.
    """

    def __init__(self, trt: ModuleType, graph: Path) -> None:
        self.trt, self.name = trt, graph.name
        self._log = tensorrt_library.error_log(trt)
        self._log.take()
        self._builder = trt.Builder(self._log.logger)
        self.definition = self._builder.create_network(tensorrt_library.network_flags(trt))
        self._parser = trt.OnnxParser(self.definition, self._log.logger)  # holds the weights
        if not self._parser.parse_from_file(str(graph)) or not self.definition.num_outputs:
            errors = [self._parser.get_error(index) for index in range(self._parser.num_errors)]
            raise TensorRTRefused(f"{_name(trt)} does not accept {self.name}: {_explained(errors, _said(self._log))}")
        self.layers = tensorrt_report.layer_list(self.definition)

    def prove(self, precision: str) -> None:
        """Raises PrecisionNotReached where a graph that claims fp16 or bf16 was read as something else."""
        if precision not in HALVES:
            return
        dtype = {"fp16": "float16", "bf16": "bfloat16"}[precision]
        share = tensorrt_report.product_share(tensorrt_report.count(self.layers), dtype)
        if share < LEAST_HALF_SHARE:
            raise PrecisionNotReached(
                f"{_name(self.trt)} read {share:.0%} of {self.name}'s products as {precision}, "
                f"{LEAST_HALF_SHARE:.0%} are needed",
                f"build without --{precision}, or with another TensorRT",
            )

    def build(
        self,
        profiles: Sequence[tensorrt_profiles.Shapes],
        target: Target,
        *,
        timings: TimingCache | None = None,
        hardware_compatible: bool = False,
        version_compatible: bool = False,
        title: str = "plan",
        shown: bool = False,
    ) -> bytes:
        """A plan. profiles: in the order they are to have in it. title: of the bar, if `shown`.

        Raises TensorRTRefused, and what interrupts the caller once the build has stopped.
        """
        trt = self.trt
        progress = Progress()
        config = self._builder.create_builder_config()
        for shapes in profiles:
            profile = self._builder.create_optimization_profile()
            for name, (least, usual, most) in shapes.items():
                profile.set_shape(name, least, usual, most)
            if config.add_optimization_profile(profile) < 0:
                raise TensorRTRefused(f"{_name(trt)} does not take the profile {shapes}: {self._log.take()}")
        tensorrt_library.set_capabilities(trt, config, list(target.named))
        tensorrt_library.require_own_memory(trt, config)
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default: what the graph keeps in float32 is kept for its digits
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector's report names types
        if hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if timings:
            timings.lend(trt, config)
        config.progress_monitor = told = monitor(trt, progress)
        self._log.take()
        plan = run(lambda: self._builder.build_serialized_network(self.definition, config), progress, title, shown)
        del told  # TensorRT has no share in it, and needs it until here
        if plan is None:
            raise TensorRTRefused(f"{_name(trt)} builds no engine from {self.name}: {self._log.take()}")
        if timings:
            timings.keep(config)
        return bytes(plan)


class TimingCache:
    """What TensorRT measured of kernels, in a file that later builds begin with: read if it is there, written after."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lend(self, trt: ModuleType, config: Any) -> None:
        """Raises UsageError where the file is something else, or of another TensorRT or GPU; OutputUnwritable."""
        log = tensorrt_library.error_log(trt)
        log.take()
        try:
            content = self._path.read_bytes() if self._path.exists() else b""
        except OSError as error:
            raise unwritable(self._path, error) from None
        try:
            cache = config.create_timing_cache(content)
            taken = cache is not None and config.set_timing_cache(cache, ignore_mismatch=False)
            taken = taken and not _said(log)  # some versions take what they could not read
        except (RuntimeError, TypeError):
            taken = False
        if not taken:
            raise UsageError(
                "is no timing cache of this TensorRT and GPU",
                "name another file, or delete it",
                subject=f"--timing-cache {self._path}",
            )

    def keep(self, config: Any) -> None:
        content = bytes(config.get_timing_cache().serialize())
        try:
            write_atomically(self._path, lambda stream: stream.write(content))
        except OSError as error:
            raise unwritable(self._path, error) from None


def add_plans(
    folder: Path,
    manifest: dict[str, Any],
    options: PlanOptions,
    sources: Mapping[str, Path] | None = None,
    shown: bool = False,
) -> dict[str, float]:
    """Build PLANNED for every target, as files in `folder` and entries of manifest["engines"]; seconds by file.

    sources: ONNX files of graphs in another precision than the bundle's own. Beside a plan lies its report,
    FILE.layers.json: every layer of the parsed network with its type, and the engine inspector's list where a GPU here
    loads the plan.
    """
    trt, seconds = load(options.flavour), {}
    names = options.profiles or ("any-size",)
    timings = TimingCache(options.timing_cache) if options.timing_cache else None
    chosen, gpu = targets(options), this_gpu() is not None
    for graph in PLANNED:
        source, start = (sources or {}).get(graph, folder / manifest["graphs"][graph]["file"]), time.perf_counter()
        network = Network(trt, source)
        tensorrt_report.compare(network.definition, manifest["graphs"][graph], f"{_name(trt)}, {source.name}")
        precision = options.precision if graph in (sources or {}) else manifest["precision"]
        network.prove(precision)
        model = onnx.load(source, load_external_data=False)
        profiles = tensorrt_profiles.distinct(names, manifest, model)
        for target in chosen:
            file = target.file(graph, options.flavour)
            plan = network.build(
                list(profiles.values()), target, timings=timings, hardware_compatible=options.hardware_compatible,
                version_compatible=options.version_compatible, title=f"{graph} plan, {target.label}", shown=shown,
            )  # fmt: skip
            (folder / file).write_bytes(plan)
            engine, missing = tensorrt_report.inspected(trt, plan, gpu)
            report = {"network": network.layers, "engine": engine, "engine_missing": missing}
            (folder / f"{file}.layers.json").write_text(json.dumps(report, indent=1))
            manifest["engines"].append(
                {
                    "file": file, "graph": graph, "flavour": options.flavour, "version": trt.__version__,
                    "compute_capability": target.label, "version_compatible": options.version_compatible,
                    "precision": precision, "report": f"{file}.layers.json",
                    "layers": tensorrt_report.count(network.layers),
                    "profiles": [{"name": name, "inputs": shapes} for name, shapes in profiles.items()],
                }
            )  # fmt: skip
            seconds[file] = time.perf_counter() - start
            start = time.perf_counter()
    manifest["built_with"][options.flavour] = trt.__version__
    return seconds


def _name(trt: ModuleType) -> str:
    kind = "TensorRT-RTX" if trt.__name__ == MODULES["tensorrt-rtx"] else "TensorRT"
    return f"{kind} {trt.__version__}"


def _said(log: tensorrt_library.ErrorLog) -> str:
    said = log.take()
    return "" if said == tensorrt_library.NOTHING_SAID else said


def _sm(capability: str) -> str:
    return "sm_" + capability.replace(".", "")


_OTHERWISE = "use another version of TensorRT, or build with --backend onnxruntime"
_REWRITE = "write it with operators TensorRT has (export/onnx/graphs.py), or build with --backend onnxruntime"
_CURES = {
    "UNSUPPORTED_NODE": _REWRITE,
    "UNSUPPORTED_NODE_ATTR": _REWRITE,
    "UNSUPPORTED_NODE_INPUT": _REWRITE,
    "UNSUPPORTED_NODE_SHAPE": _REWRITE,
    "UNSUPPORTED_NODE_DYNAMIC": _REWRITE,
    "UNSUPPORTED_GRAPH": _REWRITE,
    "INVALID_NODE": _REWRITE,
    "UNSUPPORTED_NODE_DATATYPE": "keep its operator in float32 (FULL in export/onnx/half_precision.py), or build without --fp16 and --bf16",
    "MODEL_DESERIALIZE_FAILED": "the file is damaged or no ONNX graph: build the bundle again",
    "MEM_ALLOC_FAILED": "end what else uses memory, and build again",
}


def _explained(errors: Sequence[Any], logged: str) -> str:
    """Every parser error with its node, operator and cure, in one line; equal cures are said once, after the last."""
    by_cure: dict[str, list[str]] = {}
    for error in errors:
        code, said = str(error.code().name), " ".join(error.desc().split())
        where = f"node {error.node_name() or error.node()} ({error.node_operator()}): " if error.node_operator() else ""
        what = code if said in ("", "false") else f"{said} [{code}]"
        by_cure.setdefault(_CURES.get(code, _OTHERWISE), []).append(where + what)
    if not by_cure:
        return f"{logged or 'it holds no graph'}; {_CURES['MODEL_DESERIALIZE_FAILED']}"
    return "; ".join(f"{', '.join(found)}: {cure}" for cure, found in by_cure.items())
