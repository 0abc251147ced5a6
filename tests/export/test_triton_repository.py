"""The command that writes models for Triton Inference Server. The server itself: tests/triton."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tritonclient
from documented import blocks_of
from google.protobuf import text_format

from export import triton_configs, triton_repository
from fusioner_rt.bundle import Bundle, read_manifest, write_manifest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def model_config() -> Any:
    """The server's own message of a configuration, of its client. Its package `grpc` would want gRPC, which is not needed."""
    (folder,) = tritonclient.__path__
    spec = importlib.util.spec_from_file_location("model_config_pb2", Path(folder) / "grpc/model_config_pb2.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelConfig


@pytest.fixture
def written(made_bundle: Path, tmp_path: Path, model_config: Any) -> Callable[..., dict[str, Any]]:
    """Writes a repository of a bundle that is not run, and reads every configuration in it."""

    def write(*options: str, bundle: Path = made_bundle) -> dict[str, Any]:
        assert triton_repository.main([str(bundle), str(tmp_path / "models"), *options]) == 0
        return {
            file.parent.name: text_format.Parse(file.read_text(), model_config())
            for file in (tmp_path / "models").glob("*/config.pbtxt")
        }

    return write


def tensors(fields: Any) -> dict[str, tuple[int, list[int], bool]]:
    return {one.name: (one.data_type, list(one.dims), getattr(one, "optional", False)) for one in fields}


def test_every_configuration_is_a_message_of_the_server(written: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    configs = written(
        "--stream", "--engines", "--instances", "3", "--max-wait", "2.5", "--queue", "7", "--deadline", "4"
    )
    assert set(configs) == {
        "demo",
        *(f"demo_{one}" for one in ("stream", "prepare", "image_fusion", "masks", "engines")),
    }
    for name, config in configs.items():
        assert config.name == name
    demo = configs["demo"]
    assert (demo.backend, demo.max_batch_size, demo.response_cache.enable) == ("python", 8, False)
    assert demo.dynamic_batching.max_queue_delay_microseconds == 2500
    policy = demo.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (7, 4_000_000)
    assert [(group.count, group.kind) for group in demo.instance_group] == [(3, demo.instance_group[0].KIND_CPU)]
    assert [one.name for one in demo.input if not one.optional] == ["PICTURE", "WORDS"]
    assert {one.name for one in demo.input if one.optional} == {"BACKGROUND", "THRESHOLD", "MODE", "WINDOW", "SIZE"}
    assert demo.parameters["bundle"].string_value == "bundle"
    assert configs["demo_stream"].model_transaction_policy.decoupled
    assert configs["demo_stream"].parameters["model"].string_value == "demo"


def test_the_warm_ups_files_are_what_the_server_reads(written: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    warmup = written("--words", "dog, straße")["demo"].model_warmup[0]
    read = {}
    for name, given in warmup.inputs.items():
        content = (tmp_path / "models/demo/warmup" / given.input_data_file).read_bytes()
        assert int.from_bytes(content[:4], "little") == len(content) - 4
        read[name] = content[4:]
    assert read["PICTURE"] == (ROOT / "docs/pictures/cat.jpg").read_bytes()
    assert read["WORDS"].decode() == "dog, straße"


def test_the_ensembles_steps_fit_each_other(written: Callable[..., dict[str, Any]]) -> None:
    """As the server checks it: every tensor has one type and shape, whichever model names it, and each is made before it is taken."""
    configs = written("--engines")
    ensemble = configs["demo_engines"]
    known = tensors(ensemble.input)
    for step in ensemble.ensemble_scheduling.step:
        model = configs[step.model_name]
        assert model.max_batch_size >= ensemble.max_batch_size
        taken, given = tensors(model.input), tensors(model.output)
        assert set(step.input_map) == set(taken)
        for inner, outer in step.input_map.items():
            assert known[outer][:2] == taken[inner][:2]
        for inner, outer in step.output_map.items():
            assert outer not in known
            known[outer] = given[inner]
    assert {name: known[name] for name in tensors(ensemble.output)} == tensors(ensemble.output)


def test_pixels_and_the_cache_are_had_where_they_are_asked_for(written: Callable[..., dict[str, Any]]) -> None:
    demo = written("--pixels")["demo"]
    assert not demo.response_cache.enable
    assert tensors(demo.input)["PIXELS"][1:] == ([-1, -1, 3], True)
    assert tensors(demo.input)["PICTURE"][2]
    assert "FORCE_CPU_ONLY_INPUT_TENSORS" not in demo.parameters
    on_gpu = written("--pixels", "--kind", "gpu")["demo"]
    assert on_gpu.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value == "no"
    assert written("--cache")["demo"].response_cache.enable


def planned(bundle: Path, folder: Path, flavour: str) -> Path:
    """A copy of a bundle whose manifest lists a plan of image_fusion with two profiles, and its file."""
    folder.mkdir()
    for file in [bundle / "manifest.json", *Bundle.open(bundle).files]:
        place = folder / file.relative_to(bundle)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    manifest = read_manifest(folder)
    (folder / "fused.plan").write_bytes(b"plan")
    manifest["engines"] = [
        {"file": "fused.plan", "graph": "image_fusion", "flavour": flavour, "version": "10.16.1", "compute_capability": "9.0",
         "version_compatible": False, "precision": "fp16", "layers": {}, "profiles": [
             {"name": name, "inputs": {"pixels": [[1, 3, 320, 320]] * 2 + [[most, 3, 640, 640]],
                                       "words": [[1, 20, 384]] * 2 + [[most, 64, 384]]}}
             for name, most in (("latency", 1), ("throughput", 4))]}
    ]  # fmt: skip
    write_manifest(folder, manifest)
    return folder


def test_where_there_are_plans_instances_are_for_the_gpu_and_the_engine_is_the_plan(
    written: Callable[..., dict[str, Any]], made_bundle: Path, tmp_path: Path
) -> None:
    bundle = planned(made_bundle, tmp_path / "planned", "tensorrt")
    configs = written("--engines", bundle=bundle)
    (group,) = configs["demo"].instance_group
    assert (group.kind, list(group.gpus)) == (group.KIND_GPU, [0])
    engine = configs["demo_image_fusion"]
    assert engine.platform == "tensorrt_plan"
    assert list(engine.instance_group[0].profile) == ["0", "1"]
    assert engine.max_batch_size == configs["demo_engines"].max_batch_size == 4
    assert (tmp_path / "models/demo_image_fusion/1/model.plan").read_bytes() == b"plan"
    lines = (tmp_path / "models/demo/requirements.txt").read_text().splitlines()
    assert "tensorrt==10.16.1" in lines
    assert any(line.startswith("cuda-core==") for line in lines)
    assert "--gpus" in (tmp_path / "models/demo/README.md").read_text()
    cpu = written("--engines", "--kind", "cpu", bundle=bundle)
    assert cpu["demo"].instance_group[0].kind == group.KIND_CPU
    engine = cpu["demo_image_fusion"]
    assert (engine.platform, engine.instance_group[0].kind) == ("onnxruntime_onnx", group.KIND_CPU)
    assert {file.name for file in (tmp_path / "models/demo_image_fusion/1").iterdir()} == {"model.onnx", "weights.bin"}


def test_a_plan_of_tensorrt_rtx_is_none_for_the_server(
    written: Callable[..., dict[str, Any]], made_bundle: Path, tmp_path: Path
) -> None:
    engine = written("--engines", bundle=planned(made_bundle, tmp_path / "planned", "tensorrt-rtx"))[
        "demo_image_fusion"
    ]
    assert engine.platform == "onnxruntime_onnx"
    folder = tmp_path / "models/demo_image_fusion/1"
    assert {file.name for file in folder.iterdir()} == {"model.onnx", "weights.bin"}


def test_the_repository_holds_all_that_a_server_needs(written: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """model.py finds the runtime beside it, in a Python that knows of no other; what it imports needs no package of the service."""
    written("--stream", "--engines")
    program = """
import runpy, sys
sys.meta_path.insert(0, type("None", (), {"find_spec": staticmethod(lambda name, *_: (_ for _ in ()).throw(ImportError(name))
    if name.split(".")[0] in ("starlette", "uvicorn", "prometheus_client", "torch") else None)}))
made = runpy.run_path(sys.argv[1])["TritonPythonModel"]
print(made.__name__, sys.modules["fusioner_rt"].__file__)
"""
    packages = [path for path in sys.path if path.endswith("-packages")]
    for name, kind in (
        ("demo", "TritonPythonModel"),
        ("demo_stream", "TritonStreamModel"),
        ("demo_prepare", "Prepare"),
        ("demo_masks", "Masks"),
    ):
        folder = tmp_path / "models" / name
        done = subprocess.run(
            [sys.executable, "-S", "-c", program, str(folder / "1/model.py")], cwd=tmp_path, capture_output=True, text=True,
            env={"PYTHONPATH": ":".join(packages)},
        )  # fmt: skip
        assert done.stdout.split() == [kind, str(folder / "runtime/fusioner_rt/__init__.py")], done.stderr
    Bundle.open(tmp_path / "models/demo/bundle")


def test_models_of_others_stay_and_ours_are_replaced(
    written: Callable[..., dict[str, Any]], made_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "models/other/config.pbtxt"
    other.parent.mkdir(parents=True)
    other.write_text('name: "other"')
    written()
    left = tmp_path / "models/demo/bundle/left"
    (tmp_path / "models/demo/runtime/fusioner_rt/__pycache__").mkdir()
    (tmp_path / "models/demo/runtime/fusioner_rt/__pycache__/session.cpython-311.pyc").write_bytes(b"compiled")
    config = written("--queue", "9")["demo"]  # what Python compiled there is no one's
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 9
    left.write_text("mine")
    assert triton_repository.main([str(made_bundle), str(tmp_path / "models")]) == 50
    assert "holds bundle/left, which would be removed" in capsys.readouterr().err
    assert left.read_text() == "mine"
    assert triton_repository.main([str(made_bundle), str(tmp_path / "models"), "--name", "other"]) == 2
    assert other.read_text() == 'name: "other"'
    assert not list((tmp_path / "models").glob(".*"))


def test_a_bundle_can_be_named_by_its_path(
    written: Callable[..., dict[str, Any]], made_bundle: Path, tmp_path: Path
) -> None:
    config = written("--in-place", "--name", "mine-1.b")["mine-1.b"]
    assert config.parameters["bundle"].string_value == str(made_bundle.resolve())
    assert not (tmp_path / "models/mine-1.b/bundle").exists()


def test_the_docker_run_line_shows_the_server_its_files_and_other_machines_nothing(
    written: Callable[..., dict[str, Any]], made_bundle: Path, tmp_path: Path
) -> None:
    spaced = tmp_path / "a bundle"
    spaced.symlink_to(made_bundle)
    aside = tmp_path / "of its own"
    shutil.copytree(made_bundle, aside)
    for options, bundle, wanted in (
        ((), spaced, ["$PWD:/models"]),
        (("--in-place",), spaced, ["$PWD:/models", f"{made_bundle.resolve()}:{made_bundle.resolve()}:ro"]),
        (("--in-place",), aside, ["$PWD:/models", f"{aside.resolve()}:{aside.resolve()}:ro"]),
    ):
        written(*options, bundle=bundle)
        (script,) = blocks_of((tmp_path / "models/demo/README.md").read_text(), "sh")
        line = shlex.split(script)
        values = [(one, line[place + 1]) for place, one in enumerate(line) if one in ("-v", "-p")]
        assert [value for one, value in values if one == "-v"] == wanted
        ports = [value for one, value in values if one == "-p"]
        assert ports == [f"127.0.0.1:{port}:{port}" for port in (8000, 8001, 8002)]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--name", "a/b"], 2, "is no model's name"),
        (["--max-wait", "x"], 2, "is no number of milliseconds"),
        (["--max-batch", "9"], 2, "at most 8 pictures together"),
        (["--cache", "--pixels"], 2, "looks at bytes and not at shapes"),
        (["--words", ""], 20, ""),
        (["--picture", "missing.jpg"], 10, "missing.jpg"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(
    made_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    try:
        found = triton_repository.main([str(made_bundle), str(tmp_path / "models"), *arguments])
    except SystemExit as ended:
        found = int(str(ended.code))
    assert found == code
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "models").exists()


def test_a_bundle_that_is_not_whole_is_not_written(
    made_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = planned(made_bundle, tmp_path / "bundle", "tensorrt")
    (bundle / "fused.plan").write_bytes(b"nalp")
    assert triton_repository.main([str(bundle), str(tmp_path / "models")]) == 34
    assert not (tmp_path / "models").exists()


def test_text_that_needs_care_is_read_back(model_config: Any) -> None:
    text = 'a "quoted" \\ word, ß and 🐈\n'
    made = triton_configs.pbtxt({"name": text, "max_batch_size": 3, "response_cache": {"enable": False}})
    read = text_format.Parse(made, model_config())
    assert (read.name, read.max_batch_size, read.response_cache.enable) == (text, 3, False)


def test_the_readme_tells_the_name_and_starts_a_server_with_a_cache_where_the_model_has_one(
    written: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    written("--name", "mine", "--cache")
    readme = (tmp_path / "models/mine/README.md").read_text()
    (line,) = blocks_of(readme, "sh")
    assert "--cache-config local,size=" in line
    assert "/models/mine/requirements.txt" in line
    (client,) = blocks_of(readme, "python")
    assert len(client.splitlines()) <= 10
    written("--name", "mine")
    assert "--cache-config" not in (tmp_path / "models/mine/README.md").read_text()
