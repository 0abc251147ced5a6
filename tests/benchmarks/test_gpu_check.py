"""The check of a GPU, through the emulated driver: its steps pass, planted faults are found by the step they are in, and
the kit runs from a folder of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu_check, gpu_kit, gpu_proofs, gpu_steps
from fusioner_rt import Session
from fusioner_rt.decode_picture import decode
from fusioner_rt.errors import BundleMissing, OutputUnwritable, UsageError

ROOT = Path(__file__).parents[2]
EMULABLE = [name for name, step in gpu_steps.STEPS.items() if step.emulable]


def check(
    *arguments: str, bundle: Path | None = None, paths: tuple[Path, ...] = (), script: Path | None = None
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the command; returns it and its rows by step."""
    command = [sys.executable, str(script or ROOT / "benchmarks" / "gpu_check.py"), *arguments]
    if bundle:
        command += ["--bundle", str(bundle)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "CUDA_VISIBLE_DEVICES": ""}
    folder = (script or ROOT / "x").parent.parent
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return done, {row["step"]: row for row in rows}


@pytest.mark.parametrize(
    "steps", [["cubins", "engines"], pytest.param(list(gpu_steps.STEPS), marks=pytest.mark.slow)], ids=["two", "all"]
)
def test_every_step_that_needs_no_gpu_passes_through_the_emulated_driver(
    steps: list[str], tiny_bundle_fp16: Path, tmp_path: Path
) -> None:
    record = tmp_path / "records" / "gpu.jsonl"
    done, rows = check("--emulated", "--steps", ",".join(steps), "--json", str(record), bundle=tiny_bundle_fp16)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(rows) == steps
    for name, row in rows.items():
        expected = "ok" if name in EMULABLE else "skipped"
        assert row["verdict"] == expected, row
    assert rows["cubins"]["error"] <= rows["cubins"]["allowed"]
    assert rows["cubins"]["features"] == ["float32"]
    assert rows["cubins"]["bundle_holds_no"] == ["float16", "masks", "probabilities"]
    assert rows["engines"]["tensorrt-rtx"]["agreement"] > 0.99
    assert rows["engines"]["tensorrt-rtx"]["recorded"]
    assert [json.loads(line) for line in record.read_text().splitlines()] == list(rows.values())
    assert "kept in" in done.stdout


FAULTS = """
import sys
if any("gpu_check" in argument for argument in sys.argv):
    sys.path[:0] = [{emulation!r}, {root!r}]
    import dataclasses, os, time
    import emulated_gpu
    from benchmarks import gpu_steps, stand_in_engine
    def replace(name, **changed):
        gpu_steps.STEPS[name] = dataclasses.replace(gpu_steps.STEPS[name], **changed)
    replace("ptx", run=lambda where: time.sleep(600), seconds=4)
    replace("preprocess", run=lambda where: os._exit(11))
    labels = emulated_gpu.EmulatedGpu.labels_kernel
    def wrong(self, pictures, scores, gram, out, *rest):
        labels(self, pictures, scores, gram, out, *rest)
        emulated_gpu.at(out, (1,), "uint16")[:] = 7
    if "cubins" in sys.argv:
        emulated_gpu.EmulatedGpu.labels_kernel = wrong
    upload = stand_in_engine.Memory.upload
    if "path" in sys.argv:
        stand_in_engine.Memory.upload = lambda self, array, *more: upload(self, 0 * array, *more)
"""


VERDICTS = {"cubins": "failed", "ptx": "timeout", "preprocess": "failed", "path": "failed", "versions": "ok"}


@pytest.mark.parametrize(
    "steps",
    [["preprocess", "path", "versions"], pytest.param(list(VERDICTS), marks=pytest.mark.slow)],
    ids=["three", "all"],
)
def test_a_fault_fails_the_step_it_is_in_and_no_other(steps: list[str], tiny_bundle_fp16: Path, tmp_path: Path) -> None:
    """A kernel that writes a wrong label, a step that hangs, one that dies, an engine of zeros."""
    faults = FAULTS.format(emulation=str(ROOT / "tests" / "emulation"), root=str(ROOT))
    (tmp_path / "sitecustomize.py").write_text(faults)
    done, rows = check("--emulated", "--steps", ",".join(steps), bundle=tiny_bundle_fp16, paths=(tmp_path,))
    assert done.returncode == 1
    assert {name: row["verdict"] for name, row in rows.items()} == {name: VERDICTS[name] for name in steps}
    for step, says in (
        ("cubins", "labels differ that no rounding explains"),
        ("ptx", "did not end within 4 seconds"),
        ("preprocess", "ended with 11 and no result"),
        ("path", "of the labels are the CPU's"),
    ):
        assert step not in steps or says in rows[step]["why"], rows[step]


def test_steps_end_with_the_budget(tiny_bundle_fp16: Path) -> None:
    done, rows = check("--emulated", "--steps", "versions,cubins", "--budget", "4", bundle=tiny_bundle_fp16)
    assert done.returncode == 0
    assert {row["verdict"] for row in rows.values()} == {"skipped"}
    assert "the 4 seconds of --budget are over" in rows["cubins"]["why"]


@pytest.mark.parametrize("kind", ["smooth", pytest.param("random", marks=pytest.mark.slow)])
def test_times_are_of_replays_over_buffers_that_no_cache_holds(
    tiny_bundle_fp16: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The emulated marks are half a millisecond apart, whatever lies between them."""
    import emulated_gpu

    from benchmarks import gpu_timing
    from fusioner_rt.gpu.driver import Device
    from fusioner_rt.gpu.kernel_launcher import Kernels

    gpu = emulated_gpu.EmulatedGpu(tiny_bundle_fp16)
    emulated_gpu.install(monkeypatch, gpu)
    monkeypatch.setattr(gpu_timing, "COLD_BYTES", 20_000)
    device = Device()
    kernels = Kernels(tiny_bundle_fp16 / "kernels", device)
    case = gpu_proofs.MaskCase("float32", 5, 1, (5, 7), 16, (37, 43))
    row = gpu_steps.timed_mask_head(kernels, case, kind)
    kernels.close()
    device.close()
    assert gpu_timing.rotations(37 * 43 * 6) == 3
    assert gpu_timing.rotations(5 * 7 * 16 * 4) == 9  # bytes of the features
    assert (row["stage_1_us"], row["stage_2_us"], row["copy_us"]) == tuple(round(500 / n, 2) for n in (9, 3, 3))
    assert row["over_copy"] == 1
    assert gpu.order.count(("launch", gpu.order[-1][1])) >= 11
    assert not gpu.memory
    assert not gpu.events
    assert not gpu.wrong


def test_without_a_gpu_one_line_says_so() -> None:
    done, rows = check()
    assert done.returncode == 40
    assert not rows
    assert done.stderr.startswith("gpu_check: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps", "cubins,nothing", "--emulated"], "--steps nothing: unknown; choose of versions, cubins"),
        (["--budget", "0", "--emulated"], "--budget 0.0: give seconds"),
        (["--library", "docs", "--emulated"], "--library docs: holds no parts of a library"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(arguments) == UsageError.exit_code
    assert says in capsys.readouterr().err


def test_a_bundle_that_is_none_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--emulated", "--bundle", "docs"]) == BundleMissing.exit_code
    assert "docs: holds no manifest.json" in capsys.readouterr().err


def test_the_list_tells_what_every_step_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(gpu_steps.STEPS)
    assert all(line.endswith("?") or "what is here" in line for line in lines)


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_the_definition_in_numpy_is_the_one_in_torch(scoring: str) -> None:
    import torch

    from kernels import reference

    case = gpu_proofs.MaskCase("float32", 5, 2, (5, 7), 16, (37, 123))
    features, words = case.inputs()
    maps = gpu_proofs.score_maps(features, words, np.float64)
    ours = gpu_proofs.probabilities(*maps, case.size, scoring)
    theirs = reference.probabilities(
        *reference.score_maps(torch.from_numpy(features).double(), torch.from_numpy(words).double()), case.size,
        gpu_proofs.TEMPERATURE, scoring,
    )  # fmt: skip
    np.testing.assert_allclose(ours, theirs, atol=1e-5)  # of which the first stage is in float32


def test_bfloat16_is_float32_cut_short() -> None:
    values = np.array([1.0, -3.14159, 1e-20, 65504.0], np.float32)
    rounded = gpu_proofs.rounded(values, "bfloat16")
    assert np.array_equal((gpu_proofs.as_bytes(rounded, "bfloat16").astype(np.uint32) << 16).view(np.float32), rounded)
    assert np.abs(rounded / values - 1).max() < 2**-7


@pytest.mark.slow  # CI makes one: make gpu-kit
def test_the_kit_is_small_and_runs_from_a_folder_of_its_own(tiny_bundle_fp16: Path, tmp_path: Path) -> None:
    kit = tmp_path / "somewhere" / "kit"
    size = gpu_kit.build(tiny_bundle_fp16, kit)
    assert size == (tmp_path / "somewhere" / "kit.tar.xz").stat().st_size <= gpu_kit.MAX_BYTES
    script = kit / "gpu_check.py"
    done, _ = check("--list", script=script)
    assert done.returncode == 0, done.stderr
    done, _ = check(script=script)
    assert done.returncode == 40, done.stderr
    found = subprocess.run(
        [sys.executable, "-c", "import benchmarks.gpu_check as c, fusioner_rt; print(c.ROOT, fusioner_rt.__file__)"],
        cwd=kit, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert found.split() == [str(kit), str(kit / "fusioner_rt" / "__init__.py")]
    # its bundle knows the words that it asks for, and has no text model
    picture = decode(kit / "pictures" / "cat.jpg")[:90, :90]
    assert (kit / "bundle" / "text.onnx").read_text() == gpu_kit.LEFT_OUT
    with (
        Session(kit / "bundle", "onnxruntime-cpu", cache=kit / "words") as lean,
        Session(tiny_bundle_fp16, "onnxruntime-cpu", cache=False) as whole,
    ):
        ours, theirs = (session.segment(picture, gpu_steps.WORDS) for session in (lean, whole))
        assert lean.text_encoder_calls == 0
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    # another takes its place, but not that of what was measured with it
    measured = kit / "gpu-H200-2026.jsonl"
    measured.write_text("{}")
    with pytest.raises(OutputUnwritable, match=r"holds gpu-H200-2026\.jsonl, which would be removed: no kit has it"):
        gpu_kit.build(tiny_bundle_fp16, kit)
    measured.unlink()
    gpu_kit.build(tiny_bundle_fp16, kit)
    assert {path.name for path in kit.parent.iterdir()} == {"kit", "kit.tar.xz"}


@pytest.mark.parametrize("name", ["precious", "gpu_check.py"])
def test_a_folder_of_something_else_is_no_kit(name: str, tiny_bundle_fp16: Path, tmp_path: Path) -> None:
    out = tmp_path / "kit"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(UsageError, match="something other than a kit"):
        gpu_kit.build(tiny_bundle_fp16, out)
    assert (out / name).read_text() == "mine"
    (tmp_path / "new.tar.xz").write_text("mine")
    with pytest.raises(UsageError, match=r"new\.tar\.xz holds something other than a kit"):
        gpu_kit.build(tiny_bundle_fp16, tmp_path / "new")


def test_a_library_in_parts_is_put_together_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lzma
    import tarfile

    monkeypatch.setattr(gpu_kit, "PART_BYTES", 1000)
    source = tmp_path / "module" / "library.so"
    source.parent.mkdir()
    source.write_bytes(np.random.default_rng(0).bytes(3500))
    parts = tmp_path / "parts"
    parts.mkdir()
    with gpu_kit._Parts(parts / "library.tar.xz") as written:
        with lzma.open(written, "wb") as packed, tarfile.open(fileobj=packed, mode="w|") as archive:
            archive.add(source.parent, arcname="module")
        assert len(written.written) >= 4
    assert all(part.stat().st_size <= 1000 for part in written.written)
    (parts / "library.tar.xz.part01").rename(tmp_path / "missing")
    with pytest.raises(UsageError, match="parts are not whole"):
        gpu_check._paths(parts, tmp_path)
    (tmp_path / "missing").rename(parts / "library.tar.xz.part01")
    paths = gpu_check._paths(parts, tmp_path)
    assert paths[0] == str(ROOT)
    assert (Path(paths[1]) / "module" / "library.so").read_bytes() == source.read_bytes()
