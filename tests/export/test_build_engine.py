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
from full_disk import contents

from export import build_engine, compile_kernels, gates
from export.build_engine import Options
from fusioner_rt.bundle import Bundle, read_manifest
from fusioner_rt.errors import OutputUnwritable, UsageError
from kernels import compile as kernel_compiler
from kernels import variants

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "export" / "build_engine.py"


def test_a_bundle_is_what_its_contract_says(tiny_bundle, tiny_bundle_fp16):
    for folder, precision in ((tiny_bundle, "fp32"), (tiny_bundle_fp16, "fp16")):
        bundle = Bundle.open(folder)
        manifest = read_manifest(folder)
        assert bundle.precision == precision
        assert bundle.name == folder.name
        assert set(manifest["files"]) == set(names(folder)) - {"manifest.json"}
        assert manifest["kernels"] == {"abi": "kernels/abi.json", "features": ["float32"], "targets": ["sm_80"]}
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


def names(folder):
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def snapshot(folder):
    return {name: (folder / name).read_bytes() for name in names(folder)}


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
    options = Options(tiny_checkpoint, out, backend="onnxruntime", pictures=picture_folder, kernels="sm_80")
    with pytest.raises(raised):
        build_engine.build(options, shown=False)
    assert snapshot(out.parent) == before
    assert [p.name for p in out.parent.iterdir()] == ["tiny"]


def test_a_good_build_replaces_the_older_bundle_and_ends_with_a_table(
    tiny_checkpoint, tiny_bundle, picture_folder, tmp_path, traced_once, capsys
):
    out = tmp_path / "tiny"
    shutil.copytree(tiny_bundle, out)
    arguments = ["--checkpoint", str(tiny_checkpoint), "--out", str(out), "--pictures", str(picture_folder)]
    limits = ["--max-words", "5", "--max-batch", "1", "--sizes", "64,96,128"]
    assert build_engine.main([*arguments, *limits, "--backend", "onnxruntime", "--kernels", "none"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]
    manifest = read_manifest(Bundle.open(out).folder)
    assert manifest["profiles"] == {
        "words": {"min": 1, "opt": 5, "max": 5}, "batch": {"min": 1, "opt": 1, "max": 1},
        "size": {"min": 64, "opt": 96, "max": 128},
    }  # fmt: skip
    assert manifest["preprocessing"]["longest"] == 128
    assert "kernels" not in manifest
    assert not (out / "kernels").exists()
    files = [*(f"{name}.onnx" for name in manifest["graphs"]), "weights.bin", "known_answer.npz"]
    head, *rows = capsys.readouterr().out.strip().splitlines()[-len(files) - 1 :]
    assert head.split()[0] == "file"
    assert "mask agreement" in head
    assert [row.split()[0] for row in rows] == files


def test_a_folder_that_is_not_a_bundle_is_never_replaced(tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert build_engine.main(["--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path)]) == 86
    message = capsys.readouterr().err
    assert "holds something other than an engine bundle" in message
    assert message.count("\n") == 1
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"manifest.json": '{"name": "PWA"}', "index.html": "precious"}, "something other than an engine bundle"),
        ({"manifest.json": "[]", "src/app.js": "precious"}, "something other than an engine bundle"),
        ({"manifest.json": "// mine\n{}"}, "something other than an engine bundle"),
        ({"NOTES.md": "mine"}, "holds NOTES.md, which would be removed"),
        ({"kernels/sm_80/mine.cubin": "mine", "a/b/c.txt": "mine"}, "holds a/b/c.txt, kernels/sm_80/mine.cubin, which"),
    ],
)
def test_a_file_that_is_none_of_the_bundles_stops_a_build_before_it_begins(
    tiny_checkpoint, tiny_bundle, tmp_path, capsys, files, names
):
    out = tmp_path / "w"
    if "manifest.json" not in files:
        shutil.copytree(tiny_bundle, out)
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(content)
    before = snapshot(out)
    assert build_engine.main(["--checkpoint", str(tiny_checkpoint), "--out", str(out)]) in (50, 86)
    message = capsys.readouterr().err
    assert names in message
    assert message.count("\n") == 1
    assert snapshot(out) == before


def test_a_harmed_manifest_is_built_over_unless_another_file_lies_beside_it(
    tiny_checkpoint, tiny_bundle, picture_folder, tmp_path, traced_once, capsys
):
    out = tmp_path / "tiny"
    shutil.copytree(tiny_bundle, out)
    (out / "manifest.json").write_text("{")
    (out / "mine.txt").write_text("mine")
    command = ["--checkpoint", str(tiny_checkpoint), "--out", str(out), "--pictures", str(picture_folder)]
    command += ["--backend", "onnxruntime", "--kernels", "sm_80", "--max-words", "5", "--max-batch", "1"]
    assert build_engine.main(command) == 50
    assert "holds mine.txt" in capsys.readouterr().err
    assert (out / "mine.txt").read_text() == "mine"
    (out / "mine.txt").unlink()
    assert build_engine.main(command) == 0
    Bundle.open(out)


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
        (["--kernels", "sm_88"], 2, "or some of sm_75,sm_80,sm_86,sm_87,sm_89,sm_90,sm_100,sm_110,sm_120"),
        (["--kernels", "sm_80,"], 2, "expected all, none, or some of"),
        (["--kernels", "all,half"], 2, "and beside them any of float16,masks,probabilities"),
        (["--kernels", "none,masks"], 2, "expected all, none, or some of"),
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
    assert not out.parent.exists()


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
    assert not out.parent.exists()


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
    monkeypatch.delitem(sys.modules, "export.build_bundle", raising=False)  # which an earlier build has loaded
    out = tmp_path / "engines" / "tiny"
    assert build_engine.main(["--checkpoint", str(tiny_checkpoint), "--out", str(out)]) == 90
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "onnx is not installed" in error
    assert "-e '.[cpu,export,train]'" in error
    assert not out.parent.exists()


@pytest.fixture
def command(tiny_checkpoint, picture_folder, tmp_path, traced_once):
    """Arguments of a build of the tiny model to tmp_path/engines/tiny."""
    out = tmp_path / "engines" / "tiny"
    arguments = ["--checkpoint", tiny_checkpoint, "--pictures", picture_folder, "--out", out, "--max-batch", "1"]
    return [str(argument) for argument in [*arguments, "--backend", "onnxruntime"]]


@pytest.mark.parametrize(
    ("extras", "features"),
    [([], ["float32"]), (["masks", "float16"], ["float16", "float32"])],
    ids=["what sessions launch", "more"],
)
def test_kernels_for_two_gpus_are_files_that_manifest_and_record_agree_on(command, tmp_path, capsys, extras, features):
    out = tmp_path / "engines" / "tiny"
    assert build_engine.main([*command, "--fp16", "--kernels", ",".join(["sm_90", *extras, "sm_80"])]) == 0
    manifest = read_manifest(Bundle.open(out).folder)
    assert manifest["kernels"] == {
        "abi": "kernels/abi.json", "features": features, "targets": ["sm_80", "sm_90"],
    }  # fmt: skip
    record = json.loads((out / "kernels/abi.json").read_text())
    assert record["abi_version"] == 2
    assert set(record["compiled_with"]["ptxas"]) == {"sm_80", "sm_90"}
    assert set(record["kernels"]) == set(variants.shipped(extras))
    launches = [launch for kernel in record["kernels"].values() for launch in kernel["targets"].values()]
    launches += [kernel["ptx"] for kernel in record["kernels"].values()]
    files = {f"kernels/{launch['file']}" for launch in launches}
    assert len(files) == len(launches) == 3 * len(record["kernels"])
    assert {*files, "kernels/abi.json"} == {name for name in manifest["files"] if name.startswith("kernels/")}
    for launch in launches:
        content = (out / "kernels" / launch["file"]).read_bytes()
        assert launch["symbol"].encode() in content
        assert content.startswith(b"\x7fELF") == launch["file"].endswith(".cubin")
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line.startswith(f"kernels/ ({len(files) + 1} files)")
    assert ("fp16, fp32" if "float16" in features else " fp32 ") in line
    assert line.endswith("sm_80, sm_90")


def test_a_width_the_kernels_cannot_load_is_said_and_leaves_them_out(command, tmp_path, monkeypatch, capsys):
    unfit = compile_kernels.unfit
    assert unfit(32) is unfit(512) is None
    monkeypatch.setattr(compile_kernels, "unfit", lambda width: unfit(width + 1))
    assert build_engine.main(command) == 0
    assert "the model's width 33 is not a multiple of 16" in capsys.readouterr().out.splitlines()[-1]
    assert "kernels" not in read_manifest(tmp_path / "engines" / "tiny")
    assert not (tmp_path / "engines" / "tiny" / "kernels").exists()


def test_where_triton_does_not_exist_a_bundle_has_no_kernels_and_on_linux_it_is_a_missing_library(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert build_engine.main(command) == 90
    assert "package triton is not installed" in capsys.readouterr().err
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(sys, "platform", "win32")
        elsewhere.delitem(sys.modules, "triton")
        elsewhere.setattr(compile_kernels.importlib.util, "find_spec", lambda name: None)
        assert "not available on win32" in str(compile_kernels.without("all"))
    assert build_engine.main([*command, "--kernels", "none"]) == 0


def test_tritons_interpreter_is_refused_before_anything_is_built(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert build_engine.main(command) == UsageError.exit_code
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err
    assert not (tmp_path / "engines").exists()


def test_an_interrupt_between_two_kernels_leaves_the_older_bundle(command, tiny_bundle, tmp_path, monkeypatch, capsys):
    out = tmp_path / "engines" / "tiny"
    shutil.copytree(tiny_bundle, out)
    before, choose, calls = snapshot(out.parent), kernel_compiler.choose, []

    def interrupted(*job):
        calls.append(job)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return choose(*job)

    monkeypatch.setattr(kernel_compiler, "choose", interrupted)
    assert build_engine.main([*command, "--kernels", "sm_80"]) == 130
    assert snapshot(out.parent) == before
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]


def test_a_place_where_triton_cannot_keep_its_work_is_named_with_the_cure(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    kernel_compiler.choose.cache_clear()
    with pytest.raises(compile_kernels.KernelsNotCompiled, match=f"{tmp_path / 'cache'}.*TRITON_CACHE_DIR"):
        compile_kernels.add(tmp_path, "sm_80")


def test_an_assembler_that_fails_is_said_in_one_line(tmp_path, monkeypatch):
    assembler = tmp_path / "ptxas"
    assembler.write_text("""#!/bin/sh
[ "$1" = --version ] && echo "Cuda compilation tools, release 12.8, V12.8.93"
""")
    assembler.chmod(0o755)
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(assembler))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    kernel_compiler.choose.cache_clear()
    with pytest.raises(compile_kernels.KernelsNotCompiled, match=r"does not compile.*--kernels none") as raised:
        compile_kernels.add(tmp_path, "sm_80")
    assert "\n" not in str(raised.value)


def test_what_a_killed_build_left_goes_with_the_next_which_says_so(command, tiny_bundle, tmp_path, capsys):
    out = tmp_path / "engines" / "tiny"
    shutil.copytree(tiny_bundle, out)
    older = contents(out)
    with subprocess.Popen([sys.executable, SCRIPT, *command], stderr=subprocess.DEVNULL) as process:
        while not (left := list(out.parent.glob(".tiny.unfinished-*"))):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert contents(out) == older
    assert build_engine.main([*command, "--kernels", "none"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "note:" in line and "killed" in line]
    assert said == [f"build_engine: note: {left[0]} is removed: a process that was killed left it"]
    assert list(out.parent.iterdir()) == [out]
    assert contents(out) != older
