"""TensorRT plans of a bundle's graphs, for TensorRT 10.3 and later and for TensorRT-RTX, another module with the same calls.

Networks are strongly typed: a plan computes in the types that the ONNX graph has (export/onnx/half_precision.py), so there
is no precision flag here. TensorRT 10 has that mode as an option, TensorRT 11 has no other. Plans are plain plan files.
What differs between versions is in fusioner_rt/tensorrt/versions.py.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from export.onnx import small_weights
from export.onnx.half_precision import HALVES, LEAST_HALF_SHARE, PrecisionNotReached
from export.tensorrt import report
from export.tensorrt.profiles import Shapes, distinct
from export.tensorrt.progress import Progress, monitor, run
from fusioner_rt.atomic_files import unwritable, write_atomically
from fusioner_rt.errors import BackendUnavailable, FusionerError, UsageError
from fusioner_rt.plans import LISTED
from fusioner_rt.tensorrt import versions
from fusioner_rt.tensorrt.versions import MODULES

PORTABLE = ", ".join(one for one in LISTED if float(one) >= 8)
"""The compute capabilities that TensorRT-RTX's plan for many GPUs is for, in words."""
PLANNED = ("text", "image_fusion")
"""The mask head has kernels of its own on a GPU."""


class TensorRTMissing(FusionerError):
    """The TensorRT flavour asked for is not installed, or cannot be loaded."""

    exit_code = 87
    is_input = False


class TensorRTRefused(FusionerError):
    """TensorRT does not take a graph, or builds no engine from it."""

    exit_code = 88
    is_input = False


@dataclass(frozen=True)
class PlanOptions:
    """What the command line says of plans.

    flavour: a key of MODULES, or "onnxruntime": no plans. build_for: "sm_80,sm_89". profiles: of
    export.tensorrt.profiles.NAMES, none for the default. precision: "fp16", "bf16" or "fp32", what the graphs claim.
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
    """The GPUs that one plan is built for.

    label: their compute capability, "8.9", or "8.0+" for that and later (with TensorRT-RTX for those that it lists).
    named: the compute capabilities to name to TensorRT.
    """

    label: str
    named: tuple[str, ...] = ()

    def file(self, graph: str, flavour: str) -> str:
        return f"{graph}.{flavour}-sm_{self.label.replace('.', '').replace('+', '_plus')}.plan"


def load(flavour: str, needed: bool = False) -> ModuleType:
    """The flavour's Python module. needed: there is no doing without it. Raises TensorRTMissing."""
    try:
        return versions.load(flavour)
    except BackendUnavailable as error:
        if needed:
            raise TensorRTMissing(error.found, error.cure, subject=error.subject) from None
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


def check(options: PlanOptions, needed: bool = False) -> None:
    """needed: there is no doing without plans. Raises TensorRTMissing or UsageError where `add_plans` could not do what is asked of it."""
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
    trt = load(flavour, needed)
    known = versions.known_capabilities(trt)
    for target in targets(options):
        _check_precision(options, target)
        for capability in target.named:
            if capability not in known:
                raise UsageError(
                    f"{flavour} {trt.__version__} builds ahead of time for {', '.join(map(_sm, known))}",
                    "choose of these, or leave --for out: that plan runs on those from sm_80 on",
                    subject=f"--for {_sm(capability)}",
                )


def _check_precision(options: PlanOptions, target: Target) -> None:
    """Raises UsageError where GPUs below 8.0 do not compute in it."""
    if float(target.label.rstrip("+")) >= 8:
        return
    if options.precision == "bf16":
        raise UsageError(
            f"GPUs of compute capability {target.label} have no bfloat16, those from 8.0 on do",
            "use --fp16",
            subject="--bf16",
        )
    if options.flavour == "tensorrt-rtx" and options.precision == "fp32":
        # pytorch/TensorRT issue 4643: with shapes that vary, which these are, all outputs are zeros
        raise UsageError(
            "TensorRT-RTX is known to compute zeros there from graphs of fp32",
            "build with --fp16, or leave it out and run the bundle with onnxruntime-cuda",
            subject=f"--for {_sm(target.label)}",
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

    layers: as report.layer_list has them. Raises TensorRTRefused with all that the parser has to say.
    """

    def __init__(self, trt: ModuleType, graph: Path) -> None:
        self.trt, self.name = trt, graph.name
        self._log = versions.error_log(trt)
        self._log.take()
        self._builder = trt.Builder(self._log.logger)
        self.definition = self._builder.create_network(versions.network_flags(trt))
        self._parser = trt.OnnxParser(self.definition, self._log.logger)  # holds the weights
        if not self._parser.parse_from_file(str(graph)) or not self.definition.num_outputs:
            errors = [self._parser.get_error(index) for index in range(self._parser.num_errors)]
            raise TensorRTRefused(f"{_name(trt)} does not accept {self.name}: {_explained(errors, _said(self._log))}")
        self.layers = report.layer_list(self.definition)

    def prove(self, precision: str) -> None:
        """Raises PrecisionNotReached where a graph that claims fp16 or bf16 was read as something else."""
        if precision not in HALVES:
            return
        dtype = {"fp16": "float16", "bf16": "bfloat16"}[precision]
        share = report.product_share(report.count(self.layers), dtype)
        if share < LEAST_HALF_SHARE:
            raise PrecisionNotReached(
                f"{_name(self.trt)} read {share:.0%} of {self.name}'s products as {precision}, "
                f"{LEAST_HALF_SHARE:.0%} are needed",
                f"build without --{precision}, or with another TensorRT",
            )

    def build(
        self,
        profiles: Sequence[Shapes],
        target: Target,
        *,
        timings: TimingCache | None = None,
        hardware_compatible: bool = False,
        version_compatible: bool = False,
        title: str = "plan",
        shown: bool = False,
    ) -> bytes:
        """A plan. profiles: in the order that they get in it. title: of the progress bar, if `shown`.

        Raises TensorRTRefused, and what interrupts the caller once the build has stopped.
        """
        trt = self.trt
        progress = Progress()
        config = self._builder.create_builder_config()
        for shapes in profiles:
            profile = self._builder.create_optimization_profile()
            for name, (least, usual, largest) in shapes.items():
                profile.set_shape(name, least, usual, largest)
            if config.add_optimization_profile(profile) < 0:
                raise TensorRTRefused(
                    f"{_name(trt)} does not take the profile {shapes}: {self._log.take()}",
                    f"choose other --profiles or --sizes, or {_OTHERWISE}",
                )
        versions.set_capabilities(trt, config, list(target.named))
        versions.require_own_memory(trt, config)
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; the graph keeps in float32 what needs all its digits
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
        del told  # TensorRT holds no reference to it, and needs it until here
        if plan is None:
            raise TensorRTRefused(f"{_name(trt)} builds no engine from {self.name}: {self._log.take()}", _OTHERWISE)
        if timings:
            timings.keep(config)
        return bytes(plan)


class TimingCache:
    """A file with the times of kernels that TensorRT measured. Later builds begin with them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lend(self, trt: ModuleType, config: Any) -> None:
        """Give the file's times to a build. Raises UsageError where they are of another TensorRT or GPU, or the file is
        something else, and OutputUnwritable."""
        log = versions.error_log(trt)
        log.take()
        try:
            content = self._path.read_bytes() if self._path.exists() else b""
        except OSError as error:
            raise unwritable(self._path, error) from None
        try:
            cache = config.create_timing_cache(content)
            taken = cache is not None and config.set_timing_cache(cache, ignore_mismatch=False)
            taken = taken and not _said(log)  # some versions accept a cache that they could not read
        except (RuntimeError, TypeError):
            taken = False
        if not taken:
            raise UsageError(
                "is no timing cache of this TensorRT and GPU",
                "name another file, or delete it",
                subject=f"--timing-cache {self._path}",
            )

    def keep(self, config: Any) -> None:
        """Write the times of a build. Raises OutputUnwritable."""
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
        network = _network(trt, source)
        report.compare(network.definition, manifest["graphs"][graph], f"{_name(trt)}, {source.name}")
        precision = options.precision if graph in (sources or {}) else manifest["precision"]
        network.prove(precision)
        model = onnx.load(source, load_external_data=False)
        profiles = distinct(names, manifest, model)
        for target in chosen:
            file = target.file(graph, options.flavour)
            plan = network.build(
                list(profiles.values()), target, timings=timings, hardware_compatible=options.hardware_compatible,
                version_compatible=options.version_compatible, title=f"{graph} plan, {target.label}", shown=shown,
            )  # fmt: skip
            (folder / file).write_bytes(plan)
            engine, missing = report.inspected(trt, plan, gpu)
            layers = {"network": network.layers, "engine": engine, "engine_missing": missing}
            (folder / f"{file}.layers.json").write_text(json.dumps(layers, indent=1))
            manifest["engines"].append(
                {
                    "file": file, "graph": graph, "flavour": options.flavour, "version": trt.__version__,
                    "compute_capability": target.label, "version_compatible": options.version_compatible,
                    "precision": precision, "report": f"{file}.layers.json",
                    "layers": report.count(network.layers),
                    "profiles": [{"name": name, "inputs": shapes} for name, shapes in profiles.items()],
                }
            )  # fmt: skip
            seconds[file] = time.perf_counter() - start
            start = time.perf_counter()
    manifest["built_with"][options.flavour] = trt.__version__
    return seconds


def _network(trt: ModuleType, source: Path) -> Network:
    """TensorRT reads weights as floats alone."""
    coded = onnx.load(source, load_external_data=False)
    if not small_weights.has_codes(coded):
        return Network(trt, source)
    with tempfile.TemporaryDirectory() as folder:
        onnx.save_model(small_weights.whole(coded), Path(folder) / source.name)
        return Network(trt, Path(folder) / source.name)


def _name(trt: ModuleType) -> str:
    kind = "TensorRT-RTX" if trt.__name__ == MODULES["tensorrt-rtx"] else "TensorRT"
    return f"{kind} {trt.__version__}"


def _said(log: versions.ErrorLog) -> str:
    said = log.take()
    return "" if said == versions.NOTHING_SAID else said


def _sm(capability: str) -> str:
    return "sm_" + capability.replace(".", "")


_OTHERWISE = "use another version of TensorRT, or build with --backend onnxruntime"
_REWRITE = "write it with operators TensorRT has (export/onnx/model_graphs.py), or build with --backend onnxruntime"
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
    """Every parser error with its node, operator and cure, in one line. Errors with the same cure stand before it."""
    by_cure: dict[str, list[str]] = {}
    for error in errors:
        code, said = str(error.code().name), " ".join(error.desc().split())
        where = f"node {error.node_name() or error.node()} ({error.node_operator()}): " if error.node_operator() else ""
        what = code if said in ("", "false") else f"{said} [{code}]"
        by_cure.setdefault(_CURES.get(code, _OTHERWISE), []).append(where + what)
    if not by_cure:
        return f"{logged or 'it holds no graph'}; {_CURES['MODEL_DESERIALIZE_FAILED']}"
    return "; ".join(f"{', '.join(found)}: {cure}" for cure, found in by_cure.items())
