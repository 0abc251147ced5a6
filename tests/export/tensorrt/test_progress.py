"""A plan's build tells how far it is, and stops when it is asked to: exceptions and signals never cross TensorRT's C++."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.onnx import model_graphs
from export.tensorrt.build_plans import Network, Target, TensorRTRefused
from export.tensorrt.progress import Progress, monitor, run
from training import checkpoint

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")


def profiles():
    return [{"input_ids": [(1, 1), (2, 4), (4, 8)], "attention_mask": [(1, 1), (2, 4), (4, 8)]}]


@st.composite
def phases(draw, depth=0):
    """(steps, the child phase within each step or None): a tree as TensorRT reports it."""
    steps = draw(st.integers(1, 3))
    children = [draw(st.none() | phases(depth + 1)) if depth < 3 else None for _ in range(steps)]
    return steps, children


def walk(progress, tree, name, parent, seen):
    steps, children = tree
    progress.start(name, parent, steps)
    seen.append(progress.done)
    for step, child in enumerate(children):
        if child:
            walk(progress, child, f"{name}.{step}", name, seen)
        assert progress.step(name, step)
        seen.append(progress.done)
    progress.finish(name)
    seen.append(progress.done)


@given(phases())
def test_what_is_done_rises_from_0_to_1_whatever_the_phases(tree):
    seen = [0.0]
    walk(Progress(), tree, "build", None, seen)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert max(seen[:-2], default=0) <= 1.0


def test_half_of_a_child_in_one_of_four_steps_is_an_eighth():
    progress = Progress()
    progress.start("build", None, 4)
    progress.start("tactics", "build", 2)
    progress.step("tactics", 0)
    assert progress.done == 1 / 8
    progress.finish("tactics")
    assert progress.done == 1 / 4
    progress.step("unknown", 3)  # a phase that was never announced changes nothing
    assert progress.done == 1 / 4


def test_phases_side_by_side_never_make_it_fall():
    progress = Progress()
    progress.start("build", None, 2)
    for name in ("one", "other"):
        progress.start(name, "build", 4)
    progress.step("one", 1)
    assert progress.done == 1 / 4
    progress.step("other", 0)
    assert progress.done == 1 / 4


def test_tensorrt_reports_its_phases_while_it_builds(trt, tiny_bundle):
    network, told = Network(trt, tiny_bundle / "text.onnx"), []

    class Spied(Progress):
        def start(self, name, parent, steps):
            super().start(name, parent, steps)
            told.append((name, parent, self.done, threading.current_thread().name))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.tensorrt.build_plans.Progress", Spied)
        assert network.build(profiles(), Target("8.0+"))
    assert told[0][1] is None
    assert {parent for _, parent, *_ in told[1:]} <= {name for name, *_ in told}
    assert [done for *_, done, _ in told] == sorted(done for *_, done, _ in told)
    assert {thread for *_, thread in told} == {"tensorrt-build"}


def test_what_fails_in_the_monitor_stops_the_build_and_is_raised_after_it(trt, tiny_bundle):
    network = Network(trt, tiny_bundle / "text.onnx")

    class Broken(Progress):
        def step(self, name, step):
            raise ZeroDivisionError("planted")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.tensorrt.build_plans.Progress", Broken)
        with pytest.raises(ZeroDivisionError, match="planted"):
            network.build(profiles(), Target("8.0+"))
    assert network.build(profiles(), Target("8.0+"))  # the network can still be built


def test_a_build_that_is_told_to_stop_gives_no_plan(trt, tiny_bundle):
    network = Network(trt, tiny_bundle / "text.onnx")

    class Cancelled(Progress):
        def __init__(self):
            super().__init__()
            self.cancelled = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.tensorrt.build_plans.Progress", Cancelled)
        with pytest.raises(TensorRTRefused, match=r"builds no engine from text\.onnx"):
            network.build(profiles(), Target("8.0+"))


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_waits_for_the_build_to_stop_and_is_raised_then(monkeypatch, raised):
    progress, ended = Progress(), threading.Event()

    def build():
        for _ in range(500):
            if not progress.step("build", 0):
                time.sleep(0.3)  # TensorRT cleaning up
                ended.set()
                return
            time.sleep(0.01)

    def interrupted(futures, timeout):
        monkeypatch.undo()
        raise raised

    monkeypatch.setattr("concurrent.futures.wait", interrupted)
    with pytest.raises(raised):
        run(build, progress, "plan", shown=False)
    assert ended.is_set()


def test_the_bar_shows_what_is_left_where_somebody_watches(trt, capsys, monkeypatch):
    progress = Progress()

    def build():
        progress.start("build", None, 4)
        for step in range(4):
            progress.step("build", step)
            time.sleep(0.3)
        return "plan"

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run(build, progress, "text plan, 8.0+", shown=True) == "plan"
    shown = capsys.readouterr().err
    assert "text plan, 8.0+" in shown
    assert "left" in shown
    assert run(build, Progress(), "text plan", shown=False) == "plan"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("runs", [True, False])
def test_an_interrupt_while_the_builds_thread_starts_stops_the_build(monkeypatch, runs):
    """Of a thread whose start was interrupted nobody else knows that it runs."""
    from export.tensorrt import progress as module

    progress, ended, start = Progress(), threading.Event(), threading.Thread.start

    def build():
        while not progress.cancelled:
            time.sleep(0.01)
        ended.set()

    def interrupted(thread):
        if thread.name == "tensorrt-build":
            if runs:
                start(thread)
            raise KeyboardInterrupt
        start(thread)

    monkeypatch.setattr(module, "_BEGINS", 0.2)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(build, progress, "text plan", shown=False)
    assert progress.cancelled
    assert ended.is_set() == runs


def test_the_monitor_is_tensorrts_own_kind(trt):
    told = monitor(trt, Progress())
    assert isinstance(told, trt.IProgressMonitor)
    assert told.step_complete("unknown", 1) is True


WORK = """
import sys, onnx
from export import build_engine
from export.onnx import model_graphs
from export.tensorrt import build_plans
from export.tensorrt.progress import Progress
traced = sys.argv.pop(1)
model_graphs.text_graph = lambda model: onnx.load(traced + "/text.onnx")  # what is interrupted comes after the tracing
parts = ("image", "fusion", "decoder")
model_graphs.picture_graphs = lambda model: {name: onnx.load(f"{traced}/{name}.onnx") for name in parts}
class Endless(Progress):  # holds the build at its first step until somebody cancels it
    def step(self, name, step):
        import time
        print("building", flush=True)
        while not self.cancelled:
            time.sleep(0.05)
        return super().step(name, step)
build_plans.Progress = Endless
sys.exit(build_engine.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interrupted_plan_leaves_nothing_behind(
    trt, tiny_checkpoint, traced_once, picture_folder, tmp_path, sent, code
):
    model = checkpoint.load(tiny_checkpoint)
    for name, graph in {"text": model_graphs.text_graph(model), **model_graphs.picture_graphs(model)}.items():
        onnx.save_model(graph, tmp_path / f"{name}.onnx")
    out = tmp_path / "engines" / "tiny"
    command = [sys.executable, "-c", WORK, tmp_path, "--checkpoint", tiny_checkpoint, "--out", out]
    command += ["--kernels", "none", "--backend", "tensorrt-rtx", "--pictures", picture_folder, "--max-batch", "1"]
    hearing = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hearing, env=environment
    ) as process:
        line = process.stdout.readline()
        assert line == "building\n", process.stderr.read()
        process.send_signal(sent)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()  # one that hangs fails this test and does not hold up the others
    assert process.returncode == code, errors
    assert not out.parent.exists()
    assert "Traceback" not in errors
    assert "Fatal" not in errors
