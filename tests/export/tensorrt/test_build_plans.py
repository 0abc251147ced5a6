"""TensorRT takes the graphs as they are. TensorRT-RTX builds without a GPU, so where it is installed it is asked."""

import json
import sys

import onnx
import pytest
from onnx import TensorProto, helper

from export import add_plans, build_engine
from export.onnx import shared_weights
from export.onnx.half_precision import PrecisionNotReached
from export.tensorrt import build_plans
from export.tensorrt.build_plans import Network, PlanOptions, Target
from export.tensorrt.report import NetworkNotDescribed, compare, count
from fusioner_rt import plans
from fusioner_rt.bundle import Bundle, read_manifest
from fusioner_rt.cures import build_command
from fusioner_rt.errors import BackendUnavailable, OutputUnwritable, UsageError
from fusioner_rt.tensorrt import versions

RTX = "tensorrt-rtx"


@pytest.fixture(scope="module")
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def copy_graphs(folder, to):
    for name in (*(f"{graph}.onnx" for graph in build_plans.PLANNED), shared_weights.FILE):
        (to / name).write_bytes((folder / name).read_bytes())


def test_a_missing_flavour_is_said_with_the_command_that_installs_it(monkeypatch):
    for flavour, module in versions.MODULES.items():
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(BackendUnavailable, match=f"pip install {flavour}$"):
            versions.load(flavour)
        with pytest.raises(build_plans.TensorRTMissing, match=f"pip install {flavour}, or build with"):
            build_plans.load(flavour)
    assert build_plans.choose("auto") == "onnxruntime"


def test_a_folder_called_tensorrt_is_not_taken_for_it(tmp_path, monkeypatch):
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendUnavailable, match="is not TensorRT; install it"):
        versions.load("tensorrt")


def test_a_version_that_lacks_the_calls_made_is_refused_with_the_oldest_that_has_them(trt, monkeypatch):
    monkeypatch.setattr(trt, "__version__", "1.6.9")
    with pytest.raises(BackendUnavailable, match=r"version 1\.6\.9 is installed, 1\.7 or newer is needed"):
        versions.load(RTX)
    monkeypatch.setattr(trt, "__version__", "1.10.0.2")  # numbers, not letters
    versions.load(RTX)


def test_targets_are_read_from_gpu_names_and_without_any_tensorrt_rtx_builds_one_for_all():
    named = build_plans.targets(PlanOptions(RTX, "sm_80,sm_120,sm_80"))
    assert named == [Target("8.0", ("8.0",)), Target("12.0", ("12.0",))]
    assert build_plans.targets(PlanOptions(RTX)) == [Target("8.0+")]
    assert Target("12.0").file("text", RTX) == "text.tensorrt-rtx-sm_120.plan"
    assert Target("8.0+").file("text", "tensorrt") == "text.tensorrt-sm_80_plus.plan"


def test_full_tensorrt_builds_for_the_gpu_that_is_here_and_says_so_where_there_is_none(monkeypatch):
    monkeypatch.setattr(build_plans, "this_gpu", lambda: None)
    with pytest.raises(build_plans.TensorRTMissing, match="no GPU is visible here"):
        build_plans.targets(PlanOptions("tensorrt"))
    monkeypatch.setattr(build_plans, "this_gpu", lambda: "8.9")
    assert build_plans.targets(PlanOptions("tensorrt")) == [Target("8.9")]
    assert build_plans.targets(PlanOptions("tensorrt", hardware_compatible=True)) == [Target("8.0+")]
    monkeypatch.setattr(build_plans, "this_gpu", lambda: "7.5")
    with pytest.raises(UsageError, match=r"begin at compute capability 8\.0, this GPU has 7\.5"):
        build_plans.targets(PlanOptions("tensorrt", hardware_compatible=True))


def test_what_is_said_of_its_gpus_is_what_tensorrt_rtx_lists(trt):
    assert list(plans.LISTED) == versions.known_capabilities(trt)
    assert build_plans.PORTABLE == "8.0, 8.6, 8.9, 12.0, 12.1"


def test_fp32_is_refused_below_8_0_and_fp16_is_not(trt):
    build_plans.check(PlanOptions(RTX, "sm_75", precision="fp16"))
    with pytest.raises(UsageError, match="known to compute zeros"):
        build_plans.check(PlanOptions(RTX, "sm_75", precision="fp32"))


def test_a_gpu_tensorrt_rtx_does_not_know_is_refused_before_the_work(trt):
    build_plans.check(PlanOptions(RTX, "sm_80,sm_120"))
    with pytest.raises(UsageError, match=r"sm_89.*sm_120"):
        build_plans.check(PlanOptions(RTX, "sm_99"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--timing-cache", "t"], "--timing-cache is for --backend tensorrt; of TensorRT-RTX, it times no kernels"),
        (
            ["--hardware-compatible"],
            "without --for one plan runs on all that it lists from 8.0 on, 8.0, 8.6, 8.9, 12.0, 12.1: leave",
        ),
        (["--version-compatible"], "each of its releases loads its own plans alone"),
        (["--for", "sm_87"], "builds ahead of time for sm_75, sm_80"),
        (
            ["--for", "sm_89,sm_75"],
            "--for sm_75: TensorRT-RTX is known to compute zeros there from graphs of fp32; build with --fp16, or",
        ),
        (["--for", "sm_89,sm_75", "--bf16"], "GPUs of compute capability 7.5 have no bfloat16"),
    ],
)
def test_what_tensorrt_rtx_has_not_is_refused_by_name(trt, tiny_checkpoint, tmp_path, capsys, arguments, says):
    command = ["--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "tiny"), "--backend", RTX]
    assert build_engine.main([*command, *arguments]) == UsageError.exit_code
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option", [["--profiles", "latency"], ["--bf16"], ["--timing-cache", "t"], ["--version-compatible"]]
)
def test_options_of_plans_are_refused_where_none_are_built(tiny_checkpoint, tmp_path, capsys, option):
    command = ["--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "tiny"), "--backend", "onnxruntime"]
    assert build_engine.main([*command, *option]) == UsageError.exit_code
    assert f"{option[0]} is for TensorRT plans, and this build makes none" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--fp8", "--int8"])
def test_eight_bits_are_refused_with_the_reason_and_what_is_offered(option, capsys):
    assert build_engine.main([option]) == UsageError.exit_code
    error = capsys.readouterr().err
    assert f"{option} is not offered: 8 bits need scales measured" in error
    assert "use --fp16 or --bf16" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("precision", ["fp16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_tensorrt_rtx_builds_both_precisions_for_two_gpus_and_one_plan_for_all(trt, precision, request, tmp_path):
    folder = request.getfixturevalue("tiny_bundle_fp16" if precision == "fp16" else "tiny_bundle")
    manifest = manifest_of(folder)
    copy_graphs(folder, tmp_path)
    seconds = {}
    for gpus in ("sm_80,sm_89", None):
        seconds |= build_plans.add_plans(tmp_path, manifest, PlanOptions(RTX, gpus, precision=precision))
    assert {(e["graph"], e["compute_capability"]) for e in manifest["engines"]} == {
        (graph, label) for graph in build_plans.PLANNED for label in ("8.0", "8.9", "8.0+")
    }
    for engine in manifest["engines"]:
        assert (tmp_path / engine["file"]).stat().st_size > 100_000
        assert seconds[engine["file"]] > 0
        assert engine["precision"] == precision
        assert engine["version"] == manifest["built_with"][RTX] == trt.__version__


def test_a_built_bundle_records_profiles_layers_and_report_of_every_plan(
    trt, tiny_checkpoint, picture_folder, tmp_path, traced_once, capsys
):
    out = tmp_path / "tiny"
    command = ["--checkpoint", tiny_checkpoint, "--out", out, "--pictures", picture_folder, "--kernels", "none"]
    options = ["--fp16", "--backend", RTX, "--profiles", "latency,any-size", "--max-batch", "2"]
    assert build_engine.main([str(argument) for argument in [*command, *options]]) == 0
    manifest = read_manifest(Bundle.open(out).folder)
    assert [engine["graph"] for engine in manifest["engines"]] == list(build_plans.PLANNED)
    for engine in manifest["engines"]:
        described = manifest["graphs"][engine["graph"]]["inputs"]
        assert engine["compute_capability"] == "8.0+"
        assert engine["version_compatible"] is False
        for profile in engine["profiles"]:
            assert set(profile["inputs"]) == set(described)
            for name, (_, dimensions) in described.items():
                least, usual, most = profile["inputs"][name]
                for length, *bounds in zip(dimensions, least, usual, most, strict=True):
                    assert bounds == sorted(bounds)
                    assert isinstance(length, str) or set(bounds) == {length}
        report = json.loads((out / engine["report"]).read_text())
        assert count(report["network"]) == engine["layers"]
        assert (report["engine"] is None) == bool(report["engine_missing"])
        if build_plans.this_gpu() is None:
            assert "no GPU is visible here" in report["engine_missing"]
        assert set(engine["layers"]["matrix_multiply"]) == {"float16"}
        assert set(engine["layers"]["softmax"]) == set(engine["layers"]["normalization"]) == {"float32"}
    names = {engine["graph"]: [p["name"] for p in engine["profiles"]] for engine in manifest["engines"]}
    assert names == {"text": ["latency"], "image_fusion": ["latency", "any-size"]}  # a text plan needs no second one
    printed = capsys.readouterr().out
    assert "layers of the plans by kind and type:\n  text: matrix_multiply" in printed
    assert "\n  image_fusion: convolution" in printed


def test_bf16_is_in_the_plans_alone_and_proved_beside_pytorchs_own(
    trt, tiny_checkpoint, picture_folder, tmp_path, traced_once
):
    out = tmp_path / "tiny"
    command = ["--checkpoint", tiny_checkpoint, "--out", out, "--pictures", picture_folder, "--kernels", "none"]
    options = ["--bf16", "--backend", RTX, "--max-batch", "1"]
    assert build_engine.main([str(argument) for argument in [*command, *options]]) == 0
    manifest = read_manifest(Bundle.open(out).folder)
    assert manifest["precision"] == "fp32"
    assert {graph["fp16_weight_share"] for graph in manifest["graphs"].values()} == {0}
    for engine in manifest["engines"]:
        bf16 = engine["graph"] == "image_fusion"  # vectors of words are cached for every backend, and stay fp32
        assert engine["precision"] == ("bf16" if bf16 else "fp32")
        assert set(engine["layers"]["matrix_multiply"]) == {"bfloat16" if bf16 else "float32"}
        assert set(engine["layers"]["softmax"]) == {"float32"}
    assert build_command(out).split()[2:5] == ["--checkpoint", "CHECKPOINT", "--bf16"]
    assert add_plans.main([str(out), "--backend", RTX]) == 2  # it has no proof of bf16
    proved = manifest["gates"]["parity_bf16"]
    for output in ("features", "refined"):
        fp32 = manifest["gates"]["parity"][output]["error"]
        assert 100 * fp32 < proved[output]["error"] <= proved[output]["allowed"]  # it is bf16 that was run
    assert proved["pytorch_mask_agreement"] < 1
    bounds = manifest["known_answer"]["bounds"]  # the graphs' precision, and the plans'
    assert bounds.keys() == {"fp32", "bf16"}
    assert 100 * bounds["fp32"]["mean"] < bounds["bf16"]["mean"]
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == []


def odd_graph(path, *nodes, outputs=("y",)):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 4])
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "odd", [value], made)
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def test_every_operator_tensorrt_lacks_is_named_with_its_node_and_a_cure(trt, tmp_path):
    nodes = [
        helper.make_node("Det", ["x"], ["y"], name="det_0"),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Bernoulli", ["r"], ["z"], name="noise"),
    ]
    file = odd_graph(tmp_path / "odd.onnx", *nodes, outputs=("y", "z"))
    with pytest.raises(build_plans.TensorRTRefused) as refused:
        Network(trt, file)
    message = str(refused.value)
    assert message.startswith(f"TensorRT-RTX {trt.__version__} does not accept odd.onnx: ")
    assert "node det_0 (Det): UNSUPPORTED_NODE, node noise (Bernoulli): UNSUPPORTED_NODE: write it with" in message
    assert "\n" not in message


def test_the_parsers_own_reason_is_kept(trt, tmp_path):
    node = helper.make_node("Resize", ["x", "", "", "n"], ["y"], name="shrink", antialias=1, mode="linear")
    sizes = helper.make_node("Constant", [], ["n"], value_ints=[1, 2, 2])
    with pytest.raises(build_plans.TensorRTRefused, match=r"node shrink \(Resize\): .*Antialiasing is not supported"):
        Network(trt, odd_graph(tmp_path / "odd.onnx", sizes, node))


def test_a_damaged_or_missing_graph_is_said_to_be_one(trt, tmp_path):
    (tmp_path / "text.onnx").write_bytes(b"hello")
    with pytest.raises(build_plans.TensorRTRefused, match=r"does not accept text\.onnx: .*build the bundle again"):
        Network(trt, tmp_path / "text.onnx")
    with pytest.raises(build_plans.TensorRTRefused, match=r"nowhere\.onnx"):
        Network(trt, tmp_path / "nowhere.onnx")


def test_a_graph_tensorrt_reads_as_fp32_is_not_called_fp16_or_bf16(trt, tiny_bundle, tiny_bundle_fp16):
    network = Network(trt, tiny_bundle / "image_fusion.onnx")
    network.prove("fp32")
    for claimed in ("fp16", "bf16"):
        with pytest.raises(
            PrecisionNotReached, match=f"read 0% of image_fusion.onnx's products as {claimed}.*--{claimed}"
        ):
            network.prove(claimed)
    half = Network(trt, tiny_bundle_fp16 / "image_fusion.onnx")
    half.prove("fp16")
    with pytest.raises(PrecisionNotReached):
        half.prove("bf16")


def test_a_plan_of_a_planted_fp32_graph_is_not_written_to_a_bundle_that_claims_fp16(
    trt, tiny_bundle, tiny_bundle_fp16, tmp_path
):
    copy_graphs(tiny_bundle_fp16, tmp_path)
    for name in ("image_fusion.onnx", shared_weights.FILE):
        (tmp_path / name).write_bytes((tiny_bundle / name).read_bytes())
    manifest = manifest_of(tiny_bundle_fp16)
    with pytest.raises(PrecisionNotReached, match="read 0% of image_fusion"):
        build_plans.add_plans(tmp_path, manifest, PlanOptions(RTX, precision="fp16"))
    assert [engine["graph"] for engine in manifest["engines"]] == ["text"]
    assert not list(tmp_path.glob("image_fusion*.plan"))


def test_the_parsed_network_is_the_graph_that_the_manifest_describes(trt, tiny_bundle, tiny_bundle_fp16):
    for folder in (tiny_bundle, tiny_bundle_fp16):
        for graph in build_plans.PLANNED:
            network = Network(trt, folder / f"{graph}.onnx").definition
            described = manifest_of(folder)["graphs"][graph]
            compare(network, described, graph)
            for side in ("inputs", "outputs"):
                for name, (dtype, shape) in described[side].items():
                    for planted in (
                        {"other": [dtype, shape]},
                        {name: ["float16", shape]},
                        {name: [dtype, [*shape, 1]]},
                        {name: [dtype, [*shape[:-1], 7 if isinstance(shape[-1], int) else shape[-1]]]},
                    ):
                        changed = {key: value for key, value in described[side].items() if key != name} | planted
                        if changed == described[side]:
                            continue
                        with pytest.raises(NetworkNotDescribed, match=f"{graph}: TensorRT read the {side}"):
                            compare(network, {**described, side: changed}, graph)


def test_a_manifest_that_describes_another_graph_stops_the_build(trt, tiny_bundle, tmp_path):
    copy_graphs(tiny_bundle, tmp_path)
    manifest = manifest_of(tiny_bundle)
    manifest["graphs"]["text"]["inputs"]["input_ids"][0] = "int32"
    with pytest.raises(NetworkNotDescribed, match=r"input_ids int64 .*manifest says .*input_ids int32"):
        build_plans.add_plans(tmp_path, manifest, PlanOptions(RTX))
    assert manifest["engines"] == []


def test_a_profile_tensorrt_does_not_take_is_refused(trt, tiny_bundle):
    network = Network(trt, tiny_bundle / "text.onnx")
    one = {"input_ids": [(1, 1), (2, 4), (4, 8)]}
    with pytest.raises(build_plans.TensorRTRefused, match="attention_mask"):
        network.build([one], Target("8.0+"))


@pytest.fixture
def configured(trt, tiny_bundle):
    """The configuration a plan was built with, as TensorRT holds it after."""

    class Recording:
        def __init__(self, builder):
            self.builder, self.config = builder, None

        def __getattr__(self, name):
            return getattr(self.builder, name)

        def create_builder_config(self):
            self.config = self.builder.create_builder_config()
            assert self.config.get_flag(trt.BuilderFlag.TF32)  # TensorRT's own default
            return self.config

    network = Network(trt, tiny_bundle / "text.onnx")
    network._builder = builder = Recording(network._builder)
    profile = {name: [(1, 1), (2, 4), (4, 8)] for name in ("input_ids", "attention_mask")}
    assert network.build([profile], Target("8.0+"))
    return builder.config


def test_what_is_float32_is_not_rounded_to_tf32(trt, configured):
    assert configured.get_flag(trt.BuilderFlag.TF32) is False


def test_a_plan_of_tensorrt_rtx_allocates_nothing_as_it_runs(trt, configured):
    assert configured.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION) is True


def test_a_tensorrt_that_has_no_such_flag_is_not_asked_for_it():
    class Full:
        class BuilderFlag:
            TF32 = 7

    versions.require_own_memory(Full, None)


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
def test_a_timing_cache_is_written_where_there_was_none_and_another_file_is_refused(trt, tmp_path):
    # TensorRT-RTX has the calls, and does nothing in them: full TensorRT alone is offered the option.
    config = trt.Builder(versions.error_log(trt).logger).create_builder_config()
    timings = build_plans.TimingCache(tmp_path / "new")
    timings.lend(trt, config)
    timings.keep(config)
    assert (tmp_path / "new").stat().st_size > 0
    (tmp_path / "letter").write_bytes(b"Dear reader, " * 40)
    with pytest.raises(UsageError, match="letter: is no timing cache of this TensorRT and GPU; name another file"):
        build_plans.TimingCache(tmp_path / "letter").lend(trt, config)
    assert (tmp_path / "letter").read_bytes() == b"Dear reader, " * 40
    with pytest.raises(OutputUnwritable):
        build_plans.TimingCache(tmp_path / "nowhere" / "new").keep(config)
