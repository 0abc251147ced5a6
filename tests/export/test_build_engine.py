"""The build is a command people meet first: it writes a whole bundle or nothing, and says what it did."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export import build_engine, gates
from export.build_engine import Options
from fusioner_rt.bundle import Bundle
from fusioner_rt.errors import OutputUnwritable, UsageError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "export" / "build_engine.py"


def test_a_bundle_is_what_its_contract_says(tiny_bundle, tiny_bundle_fp16):
    for folder, precision in ((tiny_bundle, "fp32"), (tiny_bundle_fp16, "fp16")):
        bundle = Bundle.open(folder)
        manifest = bundle.manifest
        assert bundle.precision == precision
        assert bundle.name == folder.name
        assert set(manifest["files"]) == {p.name for p in folder.iterdir()} - {"manifest.json"}
        assert manifest["model"]["width"] == 32
        assert manifest["temperature"] == 0.07
        assert manifest["engines"] == []
        assert manifest["profiles"]["words"] == {"min": 1, "opt": 20, "max": 64}
        assert manifest["profiles"]["size"] == {"min": 32, "opt": 96, "max": 1024}
        assert manifest["preprocessing"]["multiple"] == 32
        assert manifest["preprocessing"]["side"] == 96
        assert manifest["gates"]["parity"]["mask_agreement"] >= 0.995
        assert set(manifest["built_with"]) == {"fusioner_rt", "torch", "onnx", "onnxruntime"}
        shares = [manifest["graphs"][graph]["fp16_weight_share"] for graph in ("text", "image_fusion")]
        assert all(share > 0.99 for share in shares) if precision == "fp16" else shares == [0, 0]
        assert manifest["graphs"]["mask_labels"]["inputs"]["rows"] == ["int64", [2]]
        assert manifest["graphs"]["mask_labels"]["outputs"]["labels"] == ["uint16", ["B", "R", "W"]]


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (gates.BatchFailed("planted"), gates.BatchFailed),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), OutputUnwritable),
    ],
)
def test_a_build_that_fails_leaves_the_older_bundle_and_nothing_else(
    tiny_checkpoint, tiny_bundle, picture_folder, tmp_path, monkeypatch, traced_once, failure, raised
):
    out = tmp_path / "engines" / "tiny"
    shutil.copytree(tiny_bundle, out)
    before = snapshot(out.parent)

    def fail(*_):
        raise failure

    monkeypatch.setattr(gates, "batch", fail)
    with pytest.raises(raised):
        build_engine.build(Options(tiny_checkpoint, out, backend="onnxruntime", pictures=picture_folder), shown=False)
    assert snapshot(out.parent) == before
    assert [p.name for p in out.parent.iterdir()] == ["tiny"]


def test_a_good_build_replaces_the_older_bundle_and_ends_with_a_table(
    tiny_checkpoint, tiny_bundle, picture_folder, tmp_path, traced_once, capsys
):
    out = tmp_path / "tiny"
    shutil.copytree(tiny_bundle, out)
    (out / "left over").write_text("from an older build")
    arguments = ["--checkpoint", str(tiny_checkpoint), "--out", str(out), "--pictures", str(picture_folder)]
    limits = ["--max-words", "5", "--max-batch", "1", "--sizes", "64,96,128"]
    assert build_engine.main([*arguments, *limits, "--backend", "onnxruntime"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]
    assert not (out / "left over").exists()
    manifest = Bundle.open(out).manifest
    assert manifest["profiles"] == {
        "words": {"min": 1, "opt": 5, "max": 5}, "batch": {"min": 1, "opt": 1, "max": 1},
        "size": {"min": 64, "opt": 96, "max": 128},
    }  # fmt: skip
    assert manifest["preprocessing"]["longest"] == 128
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-7].split()[0] == "file"
    assert "mask agreement" in lines[-7]
    assert [line.split()[0] for line in lines[-6:]] == [f"{name}.onnx" for name in manifest["graphs"]]


def test_a_folder_that_is_not_a_bundle_is_never_replaced(tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert build_engine.main(["--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path)]) == 86
    message = capsys.readouterr().err
    assert "holds something other than an engine bundle" in message
    assert message.count("\n") == 1
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_forgotten_checkpoint_does_not_put_the_demonstration_model_over_another(
    tiny_checkpoint, tiny_bundle, tmp_path, monkeypatch, capsys
):
    out, root = tmp_path / "engines" / "mine", tmp_path / "checkout"
    shutil.copytree(tiny_bundle, out)
    shutil.copytree(tiny_checkpoint, root / "models" / "demo" / "checkpoint")
    other = json.loads((root / "models/demo/checkpoint/config.json").read_text())
    other["model"]["temperature"] = 0.1
    (root / "models/demo/checkpoint/config.json").write_text(json.dumps(other))
    monkeypatch.setattr(build_engine, "ROOT", root)
    before = snapshot(out.parent)
    assert build_engine.main(["--out", str(out), "--backend", "onnxruntime"]) == UsageError.exit_code
    assert "bundle of another model" in capsys.readouterr().err
    assert snapshot(out.parent) == before


def test_an_input_that_cannot_be_read_is_not_blamed_on_the_output(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise PermissionError(13, "Permission denied", "/elsewhere/photos")

    monkeypatch.setattr(gates, "gate_pictures", fail)
    arguments = ["--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "tiny"), "--backend", "onnxruntime"]
    assert build_engine.main(arguments) == 89
    assert "/elsewhere/photos: cannot be read" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--checkpoint", "nowhere"], 71, "config.json is missing"),
        (["--sizes", "30,96,1024"], 2, "multiples of 32"),
        (["--sizes", "96,64,1024"], 2, "ascending"),
        (["--pictures", "nowhere"], 85, "--pictures DIR"),
        (["--backend", "tensorrt"], 87, "pip install tensorrt"),
        (["--backend", "onnxruntime", "--for", "sm_86"], 2, "leave --for out"),
        (["--max-words", "70000"], 2, "65535 at most"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_a_code_of_its_own(
    tiny_checkpoint, tmp_path, capsys, monkeypatch, arguments, code, says
):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    out = tmp_path / "engines" / "tiny"
    assert build_engine.main(["--checkpoint", str(tiny_checkpoint), "--out", str(out), *arguments]) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("build_engine: ")
    assert says in error
    assert not out.exists()
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize(
    "arguments", [["--max-words", "0"], ["--sizes", "1,2"], ["--for", "ada"], ["--for", "sm_9"], ["--backend", "magic"]]
)
def test_a_malformed_argument_is_a_usage_error(arguments):
    with pytest.raises(SystemExit) as stopped:
        build_engine.parse(arguments)
    assert stopped.value.code == UsageError.exit_code


def test_the_output_is_named_after_the_model():
    assert build_engine.parse([]).out == Path("engines/demo")
    assert build_engine.parse(["--checkpoint", "runs/mine"]).out == Path("engines/mine")


def test_help_teaches_from_any_folder(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, SCRIPT, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "examples:" in done.stdout
    assert "--fp16" in done.stdout


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_build_leaves_nothing_behind(tiny_checkpoint, tmp_path, sent, code):
    out = tmp_path / "engines" / "tiny"
    command = [sys.executable, SCRIPT, "--checkpoint", tiny_checkpoint, "--out", out, "--backend", "onnxruntime"]
    # A shell's background jobs are deaf to interrupts, and their children inherit it.
    hearing = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hearing) as process:
        while not (list(out.parent.glob(".tiny.unfinished-*")) if out.parent.exists() else []):
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(1)  # into the work
        process.send_signal(sent)
        process.communicate(timeout=60)
    assert process.returncode == code
    assert list(out.parent.iterdir()) == []


def test_the_manifest_is_plain_json_that_names_what_was_proved(tiny_bundle_fp16):
    manifest = json.loads((tiny_bundle_fp16 / "manifest.json").read_text())
    parity = manifest["gates"]["parity"]
    for output in ("embeddings", "features", "refined"):
        assert 0 < parity[output]["error"] <= parity[output]["allowed"]
    assert parity["mask_head_error"] < 1e-5
    assert parity["pictures"] >= 1
    assert manifest["gates"]["batch"]["pictures"] == 3
    assert manifest["gates"]["words"]["mask_agreement"] >= 0.995


def test_a_missing_library_is_one_line_with_the_command_that_installs_it(
    tiny_checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "onnx", None)
    out = tmp_path / "engines" / "tiny"
    assert build_engine.main(["--checkpoint", str(tiny_checkpoint), "--out", str(out)]) == 90
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "onnx is not installed" in error
    assert "-e '.[cpu,export,train]'" in error
    assert list(out.parent.iterdir()) == []
