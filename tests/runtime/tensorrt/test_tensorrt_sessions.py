"""Sessions on TensorRT without a GPU: on the emulated one (emulated_gpu.py), against the CPU backend."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import emulated_gpu
import numpy as np
import pytest
from emulated_gpu import EmulatedGpu, plan
from made_pictures import scene

from fusioner_rt import Session
from fusioner_rt.bundle import write_manifest
from fusioner_rt.errors import (
    BackendUnavailable,
    CudaFailed,
    DeviceArrayInvalid,
    FusionerError,
    GpuMemoryShort,
    GraphUnusable,
    KernelsUnusable,
    PlanForAnotherGpu,
    PlanForAnotherVersion,
    PlanUnusable,
    SizeOutsideProfile,
    UsageError,
)
from fusioner_rt.results.segmentation import Segmentation

WORDS = ["cat", "tree", "red car"]


@pytest.fixture
def gpu(planned: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedGpu]:
    gpu = EmulatedGpu(planned)
    emulated_gpu.install(monkeypatch, gpu)
    yield gpu
    assert not gpu.wrong


@pytest.fixture
def session(planned: Path, gpu: EmulatedGpu) -> Any:
    with Session(planned, backend="tensorrt-rtx", cache=False) as session:
        yield session


def agree(ours: Any, theirs: Any) -> None:
    """The GPU's maps are rounded otherwise than the CPU's: labels but for ties, confidence to the last digits."""
    np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=2e-5)
    assert (ours.labels == theirs.labels).mean() > 0.999
    assert ours.words == theirs.words


def test_an_encoded_picture_is_kept_as_it_is_for_a_plan_that_runs_all_in_one(session: Session, planned: Path) -> None:
    pictures = [scene(61, 93, seed) for seed in range(3)]
    encoded = session.encode(pictures)
    for one, picture in zip(encoded, pictures, strict=True):
        np.testing.assert_array_equal(one.encoded, picture)
    for options in ({}, {"mode": "independent"}, {"probabilities": True, "size": (40, 50)}):
        ours, theirs = (session.segment(given, WORDS, **options) for given in (encoded, pictures))  # type: ignore[call-overload]
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one.labels, other.labels)
            np.testing.assert_array_equal(one.confidence, other.confidence)
    with Session(planned, backend="onnxruntime-cpu", cache=False) as cpu:
        with pytest.raises(UsageError, match="by the backend tensorrt-rtx, this session's is onnxruntime-cpu"):
            cpu.segment(encoded[0], WORDS)
        with pytest.raises(UsageError, match="by the backend onnxruntime-cpu, this session's is tensorrt-rtx"):
            session.segment(cpu.encode(pictures[0]), WORDS)


def test_masks_are_those_of_the_cpu(planned: Path, session: Session) -> None:
    assert session.backend.effective == "tensorrt-rtx"
    pictures = [scene(61, 93), scene(50, 50, 2), scene(61, 93, 3), scene(96, 96, 4)]
    with Session(planned, backend="onnxruntime-cpu", cache=False) as cpu:
        for options in ({}, {"size": (40, 31)}, {"threshold": 0.6}, {"mode": "independent"}, {"probabilities": True}):
            for ours, theirs in zip(
                session.segment(pictures, WORDS, **options), cpu.segment(pictures, WORDS, **options), strict=True
            ):
                agree(ours, theirs)
                np.testing.assert_array_equal(ours.picture, theirs.picture)
                if options.get("probabilities"):
                    np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=2e-5)
                elif "probabilities" not in options:
                    assert ours.probabilities is None
    assert session.text_encoder_calls == len(WORDS)


def test_a_steady_state_launches_one_graph_and_allocates_nothing(session: Session, gpu: EmulatedGpu) -> None:
    frames = [scene(61, 93, seed) for seed in range(4)]
    session.set_vocabulary(WORDS)
    for frame in frames[:2]:
        session.segment(frame)
    gpu.calls.clear()
    gpu.order.clear()
    for frame in frames:
        session.segment(frame)
    called = [name for name in gpu.calls if not name.startswith(("cuCtx", "cuPointer"))]
    # the recording, the label map behind it, and labels, confidence and the flag of finite maps to the host
    assert called == ["cuGraphLaunch", "cuLaunchKernel", *["cuMemcpyDtoHAsync"] * 3, "cuStreamSynchronize"] * 4
    assert [what for what, _ in gpu.order] == ["launch", "kernel"] * 4


def test_results_are_the_page_locked_memory_itself_until_much_of_it_is_held(session: Session, gpu: EmulatedGpu) -> None:
    session.set_vocabulary(WORDS)

    def locked(array: np.ndarray) -> bool:
        return gpu._is_pinned(array.ctypes.data, array.nbytes)

    results = [session.segment(scene(61, 93, seed)) for seed in range(3)]
    assert all(locked(result.labels) and locked(result.confidence) for result in results)
    session._executor._machinery.pinned._max_bytes = 0
    more = [session.segment(scene(61, 93, seed)) for seed in range(3)]
    assert not any(locked(result.labels) or locked(result.confidence) for result in more)
    for result, other in zip(results, more, strict=True):
        np.testing.assert_array_equal(result.labels, other.labels)
        np.testing.assert_array_equal(result.confidence, other.confidence)
    part = results[0].confidence[3:, 4]
    kept = part.copy()
    del results, result
    for seed in range(5, 9):
        session.segment(scene(61, 93, seed))
    np.testing.assert_array_equal(part, kept)  # a view of it holds it too


def test_results_on_the_host_outlive_their_session(planned: Path, gpu: EmulatedGpu) -> None:
    with Session(planned, backend="tensorrt-rtx", cache=False) as session:
        result = session.segment(scene(61, 93), WORDS)
        kept = result.labels.copy(), result.confidence.copy()
    assert len(gpu.pinned) == 2
    np.testing.assert_array_equal(result.labels, kept[0])
    np.testing.assert_array_equal(result.confidence, kept[1])
    del result
    assert not gpu.pinned
    assert gpu.retained == 0


def test_new_words_are_uploaded_once(session: Session, gpu: EmulatedGpu) -> None:
    frame = scene(61, 93)
    for words in (WORDS, ["a", "b", "c"]):
        session.set_vocabulary(words)
        for _ in range(2):
            session.segment(frame)
        gpu.calls.clear()
        session.segment(frame)
        assert "cuMemcpyHtoDAsync" not in gpu.calls
    session.set_vocabulary(["d", "e", "f"])
    session.segment(frame)
    assert "cuMemcpyHtoDAsync" in gpu.calls


def test_a_shape_is_recorded_when_it_comes_again(session: Session, gpu: EmulatedGpu) -> None:
    session.set_vocabulary("cat")
    gpu.order.clear()
    for _ in range(3):
        session.segment(scene(61, 93))
    kinds = [what for what, _ in gpu.order if what in ("kernel", "engine", "launch")]
    # two passes of the resize, the engine, two kernels to low-resolution maps: run, then recorded and launched as one;
    # and the label map after them
    steps = ["kernel", "kernel", "engine", "kernel", "kernel"]
    assert kinds == [*steps, "kernel", *steps, *["launch", "kernel"] * 2]
    assert len({stream for what, stream in gpu.order if what in ("kernel", "engine", "launch")}) == 1


def test_thresholds_that_alternate_share_one_recording(planned: Path, session: Session, gpu: EmulatedGpu) -> None:
    session.set_vocabulary(WORDS)
    frame = scene(61, 93)
    launches, before = [], session._executor._pipelines.made
    with Session(planned, backend="onnxruntime-cpu", cache=False) as cpu:
        for threshold in (0.5, 0.7, 0.5, 0.6, 0.7, 0.5):
            gpu.order.clear()
            ours = session.segment(frame, threshold=threshold)
            agree(ours, cpu.segment(frame, WORDS, threshold=threshold))
            launches.append([what for what, _ in gpu.order].count("launch"))
    assert launches == [0, 1, 1, 1, 1, 1]
    assert session._executor._pipelines.made == before + 1


@pytest.mark.parametrize(("which", "says"), [("recordable", "INVALIDATED"), ("engine_recordable", "could not run it")])
def test_what_cannot_be_recorded_is_launched_step_by_step_and_said(
    planned: Path, session: Session, gpu: EmulatedGpu, which: str, says: str
) -> None:
    setattr(gpu, which, False)
    with Session(planned, backend="onnxruntime-cpu", cache=False) as cpu:
        for _ in range(3):
            agree(session.segment(scene(61, 93), WORDS), cpu.segment(scene(61, 93), WORDS))
    assert any("CUDA graphs are not used" in note and says in note for note in session.notes)


def test_threads_share_a_session_and_get_what_one_would(session: Session) -> None:
    frames = [scene(61, 93, seed) for seed in range(24)]
    session.set_vocabulary(WORDS)
    alone = [session.segment(frame) for frame in frames]
    found: dict[int, Any] = {}

    def work(start: int) -> None:
        for index in range(start, len(frames), 6):
            found[index] = session.segment(frames[index])

    threads = [threading.Thread(target=work, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, result in enumerate(alone):
        np.testing.assert_array_equal(found[index].labels, result.labels)
        np.testing.assert_array_equal(found[index].confidence, result.confidence)


def test_closing_gives_all_memory_back(planned: Path, gpu: EmulatedGpu) -> None:
    with Session(planned, backend="tensorrt-rtx", cache=False) as session:
        session.segment([scene(61, 93), scene(50, 50)], WORDS)
        session.segment(scene(50, 50), WORDS, mode="independent")
        assert gpu.memory
        assert gpu.pinned
    gpu.expect_nothing_left()
    with pytest.raises(UsageError, match="closed"):
        session.segment(scene(50, 50), WORDS)


def test_after_load_text_what_the_cpu_does_reads_no_file(planned: Path, gpu: EmulatedGpu, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(planned, tmp_path / "bundle"))
    with Session(folder, backend="tensorrt-rtx", cache=False) as session:
        session.load_text()
        for graph in folder.glob("*.onnx"):
            graph.unlink()
        assert session.segment(scene(50, 50), WORDS, mode="independent").labels.shape == (50, 50)


def test_pictures_of_many_sizes_share_contexts_of_few(session: Session, gpu: EmulatedGpu) -> None:
    session.set_vocabulary("cat")
    made = []
    create = session._executor._machinery.engine._engine.create_execution_context
    session._executor._machinery.engine._engine.create_execution_context = lambda *given: (
        made.append(given) or create(*given)
    )
    before = session._executor._pipelines.made
    for index in range(40):
        session.segment(scene(60 + index % 20, 60 + index % 20))
    assert session._executor._pipelines.made == before + 40
    assert len(made) == 16  # as many as paths are kept, all of one input size


def test_paths_are_bounded_and_the_least_used_goes(session: Session, gpu: EmulatedGpu) -> None:
    session.set_vocabulary("cat")
    sizes = [(40, 40 + index) for index in range(20)]
    paths = session._executor._pipelines
    before = paths.made
    for size in sizes:
        session.segment(scene(50, 50), size=size)
    assert paths.made == before + 20
    assert len(paths._idle) == 16
    session.segment(scene(50, 50), size=sizes[-1])
    session.segment(scene(50, 50), size=sizes[4])
    assert paths.made == before + 20
    session.segment(scene(50, 50), size=sizes[0])
    assert paths.made == before + 21


def test_a_gpu_that_cannot_run_the_plan_is_passed_over_when_the_session_opens(planned: Path, gpu: EmulatedGpu) -> None:
    """As with a driver too old for the kernels: found by running a picture, not by the first that a user gives."""
    gpu.failing = "cuLibraryLoadData"
    with Session(planned, cache=False) as session:
        assert session.backend.effective == "onnxruntime-cpu"
        assert "does not load it" in dict(session.backend.passed_over)["tensorrt-rtx"]
    assert not gpu.memory
    with pytest.raises(KernelsUnusable, match=r"does not load it .*; update the driver, or choose another backend"):
        Session(planned, backend="tensorrt-rtx", cache=False)


def test_with_too_little_memory_idle_paths_go_then_the_size_is_told(session: Session, gpu: EmulatedGpu) -> None:
    session.set_vocabulary("cat")
    for width in (40, 41, 42):
        session.segment(scene(50, 50), size=(40, width))
    gpu.free = 1000
    session.segment(scene(50, 50), size=(40, 43))
    assert len(session._executor._pipelines._idle) < 5
    gpu.free = 0
    with pytest.raises(GpuMemoryShort, match=r"1 x 1 words on 1 pictures of 900x900 need \d+ MiB, GPU 0 .* fewer"):
        session.segment(scene(900, 900), size=(4000, 4000))
    gpu.free = 1 << 30
    session.segment(scene(50, 50), size=(40, 40))


def test_a_shape_outside_the_plan_names_its_limits_and_the_rebuild(
    planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((planned / "manifest.json").read_text())
    manifest["engines"] = []
    write_manifest(planned, manifest)
    narrow = {"pixels": [[1, 3, 32, 32], [1, 3, 96, 96], [1, 3, 96, 96]], "words": [[1, 1, 24], [1, 2, 24], [1, 2, 24]]}
    wide = {"pixels": [[1, 3, 32, 32], [1, 3, 96, 96], [2, 3, 96, 96]], "words": [[1, 1, 24], [1, 2, 24], [2, 2, 24]]}
    plan(planned, "image_fusion", profiles=[narrow, wide])
    gpu = EmulatedGpu(planned)
    emulated_gpu.install(monkeypatch, gpu)
    with Session(planned, backend="tensorrt-rtx", cache=False) as session:
        session.segment([scene(50, 50), scene(50, 50, 2)], "cat, tree")
        says = (
            r"asked for pixels 1x3x96x96, words 1x3x24.*words 1x1..2x24 or .*--backend tensorrt-rtx --profiles any-size"
        )
        with pytest.raises(SizeOutsideProfile, match=says):
            session.segment(scene(50, 50), "cat, tree, sofa")
        assert any("words are encoded on the CPU" in note for note in session.notes)


def test_values_that_are_not_finite_are_found_out(session: Session, gpu: EmulatedGpu) -> None:
    maps = gpu.maps_kernel

    def overflowing(pictures: int, *values: Any) -> None:
        maps(pictures, *values)
        emulated_gpu.at(values[-7], (1,), "float32")[:] = np.nan
        emulated_gpu.at(values[-5], (1,), "int32")[:] = 0

    gpu.maps_kernel = overflowing
    for mode in ("joint", "independent"):
        with pytest.raises(GraphUnusable, match=r"not finite.*without --fp16"):
            session.segment(scene(50, 50), WORDS, mode=mode)


@pytest.mark.parametrize(
    ("more", "kind", "says"),
    [
        (
            {"version": "1.6.0.1"},
            PlanForAnotherVersion,
            r"built with version 1\.6\.0\.1, and 1\.7\.1\.116 is installed",
        ),
        ({"capability": "8.9"}, PlanForAnotherGpu, r"built for compute capability 8\.9, and GPU 0 .* has 8\.0"),
        ({"diagnostics": 1}, PlanForAnotherVersion, "was built with another version than 1"),
        ({"diagnostics": 2}, PlanForAnotherGpu, "for other GPUs"),
        ({"diagnostics": 16}, GpuMemoryShort, "more memory than this GPU has"),
        ({"diagnostics": 32}, PlanUnusable, "no plan, or a damaged one"),
        ({"diagnostics": 64}, PlanUnusable, "diagnostics 64"),
        ({"dtypes": {"pixels": "float16"}}, PlanUnusable, "pixels float16.*manifest says pixels float32"),
    ],
)
def test_plans_that_do_not_fit_are_told_apart(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict, kind: type[Exception], says: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    plan(folder, "image_fusion", **more)
    gpu = EmulatedGpu(folder)
    emulated_gpu.install(monkeypatch, gpu)
    with pytest.raises(kind, match=f"{says}.*"):
        Session(folder, backend="tensorrt-rtx", cache=False)
    assert not gpu.memory
    with Session(folder, cache=False) as session:
        assert session.backend.effective == "onnxruntime-cpu"
        assert "tensorrt-rtx" in dict(session.backend.passed_over)


@pytest.mark.parametrize(
    ("capability", "says"),
    [
        ((8, 9), r"build plans for it: .*--backend tensorrt-rtx$"),
        (
            (9, 0),
            r"lists 7\.5, .*12\.1 and not 9\.0: .*\(pip install tensorrt\) .* tensorrt, or choose onnxruntime-cuda$",
        ),
    ],
)
def test_tensorrt_rtx_is_asked_on_every_gpu_and_where_it_refuses_what_runs_there_is_named(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], says: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    plan(folder, "image_fusion")
    emulated_gpu.install(monkeypatch, EmulatedGpu(folder, capability))
    Session(folder, backend="tensorrt-rtx", cache=False).close()  # it takes what it does not list, if it says so
    (file,) = folder.glob("*.plan")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"diagnostics": 2}))
    write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    with pytest.raises(PlanForAnotherGpu, match=f"was built for other GPUs than this one; .*{says}"):
        Session(folder, backend="tensorrt-rtx", cache=False)


def test_a_plan_that_runs_and_is_not_the_best_for_this_gpu_is_noted(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    plan(folder, "image_fusion", validity="SUBOPTIMAL")
    emulated_gpu.install(monkeypatch, EmulatedGpu(folder))
    with Session(folder, backend="tensorrt-rtx", cache=False) as session:
        session.segment(scene(61, 93), "cat")
        (note,) = (note for note in session.notes if "suboptimal" in note)
        assert note.endswith(
            f"build plans for it: python export/add_plans.py {folder} --backend tensorrt-rtx --for sm_80"
        )


def test_a_plan_that_is_none_is_refused_in_tensorrts_own_words(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    plan(folder, "image_fusion", flavour="tensorrt", version="11.4.0.106")
    (broken,) = folder.glob("*.plan")
    broken.write_bytes(b"no plan")
    write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    emulated_gpu.install(monkeypatch, EmulatedGpu(folder), "tensorrt", "11.4.0.106")
    with pytest.raises(
        PlanUnusable,
        match=r"does not load it \(magicTag == expected failed\); build it again: .*add_plans.py .* --backend tensorrt",
    ):
        Session(folder, backend="tensorrt", cache=False)


def test_a_plan_larger_than_the_free_memory_is_refused_before_it_is_loaded(planned: Path, gpu: EmulatedGpu) -> None:
    gpu.free = 1 << 20
    with pytest.raises(GpuMemoryShort, match=r"needs about 256 MiB, GPU 0 .* has 1 MiB free.*nvidia-smi"):
        Session(planned, backend="tensorrt-rtx", cache=False)


def test_what_tensorrt_rtx_compiles_is_kept_between_sessions(planned: Path, gpu: EmulatedGpu, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with Session(planned, backend="tensorrt-rtx", cache=folder) as session:
        session.segment(scene(50, 50), "cat")
    (kept,) = folder.glob("tensorrt-rtx-*.cache")
    assert kept.read_bytes().startswith(b"compiled")
    kept.write_bytes(b"of another driver")
    with Session(planned, backend="tensorrt-rtx", cache=folder) as session:
        session.segment(scene(50, 50), "cat")
        assert not session.notes
    assert kept.read_bytes().startswith(b"compiled")


@pytest.mark.parametrize("call", ["cuGraphInstantiate", "cuMemHostAlloc", "cuEventCreate", "cuLaunchKernel"])
def test_a_call_that_fails_leaves_nothing_behind(session: Session, gpu: EmulatedGpu, call: str) -> None:
    session.set_vocabulary("cat")
    session._executor._machinery.pinned.trim()
    before = {*gpu.memory, *gpu.pinned}
    gpu.failing = call
    if call == "cuGraphInstantiate":
        for _ in range(2):
            session.segment(scene(50, 50))
        assert any(call in note for note in session.notes)
        return
    with pytest.raises(CudaFailed, match=call):
        session.segment(scene(50, 50))
    gpu.failing = ""
    session._executor._machinery.pinned.trim()
    assert {*gpu.memory, *gpu.pinned} == before
    session.segment(scene(50, 50))


class OnGpu:
    """An array of another library in the emulated memory, filled by a stream's work where one is named."""

    def __init__(
        self, gpu: EmulatedGpu, array: np.ndarray, stream: int | None = None, strides: Any = None, fixed: bool = False
    ) -> None:
        self.pointer = gpu.lay(array, {1: 0}.get(stream, stream) if stream is not None else None)
        self.shape, self.dtype = array.shape, array.dtype
        self.__cuda_array_interface__ = {
            "version": 3, "shape": array.shape, "typestr": array.dtype.str, "data": (self.pointer, fixed),
            "strides": strides, "stream": stream,
        }  # fmt: skip

    def array(self) -> np.ndarray:
        return emulated_gpu.at(self.pointer, self.shape, self.dtype.name)


def test_pictures_in_gpu_memory_give_masks_in_gpu_memory(session: Session, gpu: EmulatedGpu) -> None:
    frames = np.stack([scene(61, 93, seed) for seed in range(3)])
    session.set_vocabulary(WORDS)
    for given, size in ((frames, None), (frames[0], (30, 40))):
        hosted = session.segment(list(frames) if given is frames else given, size=size)
        found = session.segment_on_device(OnGpu(gpu, given, stream=7), size=size, stream=55)
        assert found.words == tuple(WORDS)
        for index, host in enumerate(hosted if given is frames else [hosted]):
            labels, confidence = (
                array.numpy() if given is not frames else array.numpy()[index]
                for array in (found.labels, found.confidence)
            )
            np.testing.assert_array_equal(labels, host.labels)
            np.testing.assert_array_equal(confidence, host.confidence)
        interface = found.labels.__cuda_array_interface__
        assert (interface["typestr"], interface["shape"], interface["stream"]) == (
            "<u2",
            labels.shape if given is not frames else (3, 61, 93),
            55,
        )
        assert found.labels.__dlpack_device__() == (2, 0)


def test_frames_in_gpu_memory_stay_there_in_a_stream(session: Session, gpu: EmulatedGpu) -> None:
    frames = [scene(61, 93, seed) for seed in range(4)]
    given: list[Any] = [OnGpu(gpu, frame) for frame in frames]
    given[2] = frames[2]  # from the host, as frames may come
    session.set_vocabulary(WORDS)
    expected = [session.segment(frame).labels for frame in frames]
    for seen, one, labels in zip(session.stream(given), given, expected, strict=True):
        assert (seen.error, seen.dropped) == (None, 0)
        assert seen.frame is one or seen.index == 2
        found: Any = seen.result.labels  # type: ignore[union-attr]
        np.testing.assert_array_equal(found if seen.index == 2 else found.numpy(), labels)
    for options, says in (
        ({"steady": 0.5}, "in the host's memory"),
        ({"probabilities": True}, "probabilities not kept"),
        ({"mode": "independent"}, "fused jointly"),
        ({"channels": "bgr"}, "RGB alone"),
    ):
        with pytest.raises(UsageError, match=says):
            next(session.stream(given, **options))  # type: ignore[arg-type]


def test_with_arrays_of_the_callers_a_call_on_the_gpu_allocates_nothing(session: Session, gpu: EmulatedGpu) -> None:
    session.set_vocabulary(WORDS)
    frame = OnGpu(gpu, scene(61, 93))
    out = OnGpu(gpu, np.zeros((61, 93), np.uint16)), OnGpu(gpu, np.zeros((61, 93), np.float32))
    for _ in range(2):
        session.segment_on_device(frame, stream=55, out=out)
    gpu.calls.clear()
    gpu.order.clear()
    session.segment_on_device(frame, stream=55, out=out)
    assert not {"cuMemAlloc", "cuMemHostAlloc", "cuStreamSynchronize", "cuCtxSynchronize"} & set(gpu.calls)
    # buffers wait for their last user, the picture is resized from where it lies, one launch, the label map is written
    # where it shall lie, the buffers are marked
    assert gpu.order == [(what, 55) for what in ("wait", "kernel", "kernel", "launch", "kernel", "record")]
    gpu.finish(55)
    np.testing.assert_array_equal(out[0].array(), session.segment(scene(61, 93)).labels)


def test_a_producers_stream_is_waited_for(session: Session, gpu: EmulatedGpu) -> None:
    session.set_vocabulary(WORDS)
    host = session.segment(scene(50, 50))
    session.segment_on_device(OnGpu(gpu, scene(50, 50)), stream=55)
    gpu.order.clear()
    found = session.segment_on_device(OnGpu(gpu, scene(50, 50), stream=7), stream=55)
    assert gpu.order[:2] == [("record", 7), ("wait", 55)]
    np.testing.assert_array_equal(found.labels.numpy(), host.labels)
    gpu.order.clear()
    found = session.segment_on_device(OnGpu(gpu, scene(50, 50), stream=1))  # 1: the default stream, whose handle is 0
    assert gpu.order[0] == ("wait", 0)
    np.testing.assert_array_equal(found.labels.numpy(), host.labels)


class LikeTorch(OnGpu):
    """Names no stream, as PyTorch's arrays; asked by DLPack, it makes the consumer's stream wait for its own."""

    def __init__(self, gpu: EmulatedGpu, array: np.ndarray, stream: int) -> None:
        super().__init__(gpu, array, stream)
        del self.__cuda_array_interface__["stream"]
        self.__cuda_array_interface__["version"] = 2
        self.gpu, self.stream, self.asked = gpu, stream, []

    def __dlpack__(self, *, stream: int) -> object:
        self.asked.append(stream)
        mark = self.stream, self.gpu.given[self.stream]
        self.gpu.submit({1: 0}.get(stream, stream), emulated_gpu.Work("wait", lambda: None, after=(mark,)))
        return object()


@pytest.mark.parametrize(("stream", "told"), [(55, 55), (0, 1)])
def test_a_producer_that_names_no_stream_is_asked_by_dlpack_to_be_waited_for(
    session: Session, gpu: EmulatedGpu, stream: int, told: int
) -> None:
    session.set_vocabulary(WORDS)
    given = LikeTorch(gpu, scene(50, 50), 7)
    out = LikeTorch(gpu, np.zeros((50, 50), np.uint16), 7), LikeTorch(gpu, np.zeros((50, 50), np.float32), 7)
    session.segment_on_device(given, stream=stream, out=out)
    gpu.finish(stream)
    host = session.segment(scene(50, 50))
    np.testing.assert_array_equal(out[0].array(), host.labels)
    np.testing.assert_array_equal(out[1].array(), host.confidence)
    assert [array.asked for array in (given, *out)] == [[told]] * 3


def test_results_of_a_stream_are_written_where_those_before_lay_and_nothing_is_allocated(
    session: Session, gpu: EmulatedGpu
) -> None:
    session.set_vocabulary(WORDS)
    frames = [OnGpu(gpu, scene(61, 93, seed)) for seed in range(4)]
    for frame in frames[:2]:
        first = session.segment_on_device(frame, stream=55).labels.array.pointer
    gpu.calls.clear()
    for frame in frames:
        found = session.segment_on_device(frame, stream=55)
        with contextlib.suppress(Exception):  # as PyTorch's from_dlpack on that stream
            found.labels.__dlpack__(stream=55)
        assert found.labels.array.pointer == first
        del found
    assert not {"cuMemAlloc", "cuMemAllocAsync", "cuMemFree", "cuMemHostAlloc"} & set(gpu.calls)


@pytest.mark.parametrize(
    "share", [lambda array: array.__cuda_array_interface__, lambda array: array.__dlpack__(stream=77)]
)
def test_a_result_that_others_read_is_not_written_over(
    session: Session, gpu: EmulatedGpu, share: Callable[[Any], Any]
) -> None:
    """Of the streams on which they read it nobody tells."""
    session.set_vocabulary(WORDS)
    frame = OnGpu(gpu, scene(61, 93))
    pointers = []
    for _ in range(5):
        found = session.segment_on_device(frame, stream=55)
        with contextlib.suppress(Exception):
            share(found.labels)
        pointers.append(found.labels.array.pointer)
        del found
    assert len(set(pointers)) == 5
    # beyond the pool's size it is freed, for which CUDA waits for all readers
    session._executor._machinery.results._max_bytes = 61 * 93 * 12
    before = len(gpu.memory)
    for _ in range(20):
        share_me = session.segment_on_device(frame, stream=55)
        with contextlib.suppress(Exception):
            share(share_me.labels)
        del share_me
    assert len(gpu.memory) <= before


def test_memory_that_others_still_read_is_freed_after_their_work(session: Session, gpu: EmulatedGpu) -> None:
    """Freeing what was allocated in a stream's order waits for nothing by itself."""
    session.set_vocabulary(WORDS)
    found = on_gpu(session, gpu, scene(61, 93), 55)
    pointer, read = found.labels.__cuda_array_interface__["data"][0], []
    reader = emulated_gpu.Work(
        "read", lambda: read.append(emulated_gpu.at(pointer, (61, 93), "uint16").copy()), ((pointer, 61 * 93 * 2),),
        after=((55, gpu.given[55]),),
    )  # fmt: skip
    gpu.submit(77, reader)
    del found
    assert session._executor._machinery.results.trim()
    assert len(read) == 1
    np.testing.assert_array_equal(read[0], session.segment(scene(61, 93)).labels)


def test_without_memory_pools_of_the_driver_results_are_allocated_as_all_else(planned: Path, gpu: EmulatedGpu) -> None:
    gpu.has_pools = False
    with Session(planned, backend="tensorrt-rtx", cache=False) as session:
        session.set_vocabulary(WORDS)
        found = session.segment_on_device(OnGpu(gpu, scene(61, 93)), stream=55)
        np.testing.assert_array_equal(found.labels.numpy(), session.segment(scene(61, 93)).labels)
    assert "cuMemAllocAsync" not in gpu.calls


@pytest.mark.parametrize("which", ["picture", "labels", "confidence"])
def test_arrays_at_odd_addresses_go_through_a_copy(session: Session, gpu: EmulatedGpu, which: str) -> None:
    """As a row of a larger array has: the kernels load 16 bytes at once."""
    session.set_vocabulary(WORDS)
    host = session.segment(scene(61, 93))

    def laid(name: str, array: np.ndarray) -> Any:
        whole = OnGpu(gpu, np.concatenate([np.zeros(4, np.uint8), array.view(np.uint8).ravel()]))
        if name != which:
            return OnGpu(gpu, array)
        pointer = whole.pointer + 4
        whole.__cuda_array_interface__.update(shape=array.shape, typestr=array.dtype.str, data=(pointer, False))
        whole.pointer, whole.shape, whole.dtype = pointer, array.shape, array.dtype
        return whole

    frame = laid("picture", scene(61, 93))
    out = laid("labels", np.zeros((61, 93), np.uint16)), laid("confidence", np.zeros((61, 93), np.float32))
    for _ in range(3):
        session.segment_on_device(frame, stream=55, out=out)
    gpu.finish(55)
    np.testing.assert_array_equal(out[0].array(), host.labels)
    np.testing.assert_array_equal(out[1].array(), host.confidence)


NAMED: list[dict[str, Any]] = [
    {"words": [["cat", "tree"], "red car"], "threshold": 0.3},
    {"words": "cat, tree", "background": "red car, sky", "threshold": 0.0},
    {"words": [["cat", "tree"], "red car"], "threshold": {"tree": 0.45, "red car": 0.0}, "background": "common"},
    {"words": WORDS, "threshold": {"tree": 0.2, "cat": 0.4}},
]
"""Words that are not the names, or names with thresholds of their own."""


@pytest.mark.parametrize("asked", NAMED)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_groups_background_words_and_thresholds_of_words_are_those_of_segment(
    session: Session, gpu: EmulatedGpu, asked: dict[str, Any], dtype: type
) -> None:
    """The first call runs step by step, the second records, the third launches the recording."""
    for seed in range(3):
        frames = np.stack([scene(61, 93, seed), scene(61, 93, seed + 10)])
        out = OnGpu(gpu, np.zeros((2, 61, 93), np.uint16)), OnGpu(gpu, np.zeros((2, 61, 93), dtype))
        found = session.segment_on_device(OnGpu(gpu, frames), stream=55, out=out, **asked)
        gpu.finish(55)
        for index, host in enumerate(session.segment(list(frames), **asked)):
            assert found.words == host.words
            np.testing.assert_array_equal(out[1].array()[index], host.confidence.astype(dtype))
            same = out[0].array()[index] == host.labels
            # rounding to half precision makes a confidence the threshold, or carries it over
            near = [host.confidence.astype(np.float16) == np.float16(t) for t in (0.2, 0.4, 0.45, 0.5)]
            assert (same | (np.any(near, axis=0) & (dtype == np.float16))).all()
            assert len(np.unique(host.labels)) > 1


def test_names_change_between_calls_on_one_recording_and_nothing_is_allocated(
    session: Session, gpu: EmulatedGpu
) -> None:
    frame = OnGpu(gpu, scene(61, 93))
    out = OnGpu(gpu, np.zeros((61, 93), np.uint16)), OnGpu(gpu, np.zeros((61, 93), np.float32))
    asked: list[dict[str, Any]] = [
        {"words": WORDS, "threshold": 0.3}, {"words": ["cat|tree", "red car"], "threshold": 0.3},
        {"words": ["cat", "tree|red car"], "threshold": 0.3}, {"words": "cat, tree", "background": "red car"},
        {"words": WORDS, "threshold": {"cat": 0.35}}, {"words": WORDS, "threshold": {"cat": 0.25}},
    ]  # fmt: skip
    for one in asked[:2] * 2:
        session.segment_on_device(frame, stream=55, out=out, **one)
    gpu.finish(55)
    for one in [*asked, *asked[::-1]]:
        host = session.segment(scene(61, 93), **one)
        gpu.calls.clear()
        session.segment_on_device(frame, stream=55, out=out, **one)
        assert not {"cuMemAlloc", "cuMemAllocAsync", "cuMemHostAlloc", "cuStreamSynchronize"} & set(gpu.calls)
        gpu.finish(55)
        np.testing.assert_array_equal(out[0].array(), host.labels)
    gpu.calls.clear()
    session.segment_on_device(frame, stream=55, out=out, **asked[0])
    plain = [call for call in gpu.calls if call.startswith("cuMemcpy")]
    session.segment_on_device(frame, stream=55, out=out, **asked[1])
    gpu.calls.clear()
    session.segment_on_device(frame, stream=55, out=out, **asked[1])
    assert [call for call in gpu.calls if call.startswith("cuMemcpy")] == plain  # tables are copied when they change


def test_results_of_names_at_addresses_no_kernel_takes_go_through_a_copy(session: Session, gpu: EmulatedGpu) -> None:
    whole = OnGpu(gpu, np.zeros(61 * 93 + 1, np.uint16)), OnGpu(gpu, np.zeros(61 * 93 + 1, np.float32))
    for array in whole:
        array.__cuda_array_interface__ |= {"shape": (61, 93), "data": (array.pointer + array.dtype.itemsize, False)}
    session.segment_on_device(OnGpu(gpu, scene(61, 93)), stream=55, out=whole, **NAMED[0])
    gpu.finish(55)
    np.testing.assert_array_equal(
        whole[0].array()[1:].reshape(61, 93), session.segment(scene(61, 93), **NAMED[0]).labels
    )


def test_a_bundle_built_before_names_were_known_says_how_to_build_it_again(planned: Path, gpu: EmulatedGpu) -> None:
    record = json.loads((planned / "kernels/abi.json").read_text())
    record["kernels"] = {name: entry for name, entry in record["kernels"].items() if not name.startswith("names.")}
    (planned / "kernels/abi.json").write_text(json.dumps(record))
    write_manifest(planned, json.loads((planned / "manifest.json").read_text()))
    with Session(planned, backend="tensorrt-rtx", cache=False) as session:
        assert not session.notes
        for asked in NAMED:
            gpu.calls.clear()
            with pytest.raises(
                KernelsUnusable, match=r"built before groups, .*: python export/build_engine\.py .*segment"
            ):
                session.segment_on_device(OnGpu(gpu, scene(61, 93)), stream=55, **asked)
            assert "cuLaunchKernel" not in gpu.calls
        found = session.segment_on_device(OnGpu(gpu, scene(61, 93)), WORDS, stream=55)
        np.testing.assert_array_equal(found.labels.numpy(), session.segment(scene(61, 93), WORDS).labels)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda gpu: scene(50, 50), "picture is a ndarray in host memory"),
        (lambda gpu: "photo.jpg", "picture is a str; give an array in GPU memory"),
        (lambda gpu: OnGpu(gpu, scene(50, 50).astype(np.float32)), r"picture is float32 \(50, 50, 3\)"),
        (lambda gpu: OnGpu(gpu, scene(50, 50)[..., 0]), r"picture is uint8 \(50, 50\)"),
        (lambda gpu: OnGpu(gpu, scene(50, 50), strides=(3, 150, 1)), "make it contiguous"),
        (
            lambda gpu: OnGpu(gpu, np.stack([scene(50, 50)] * 5)),
            "5 pictures; the bundle was built for 4.*--max-batch 5",
        ),
    ],
)
def test_other_arrays_are_refused(session: Session, gpu: EmulatedGpu, make: Callable[..., Any], says: str) -> None:
    session.set_vocabulary(WORDS)
    with pytest.raises(DeviceArrayInvalid, match=says):
        session.segment_on_device(make(gpu))


def test_a_bundle_that_scores_by_softmax_has_its_kernels_asked_for(planned: Path, gpu: EmulatedGpu) -> None:
    write_manifest(planned, {**json.loads((planned / "manifest.json").read_text()), "scoring": "softmax"})
    with pytest.raises(KernelsUnusable, match=r"holds no kernel softmax_labels\.float32\.few, only"):
        Session(planned, backend="tensorrt-rtx", cache=False)


def test_results_of_another_shape_are_refused(session: Session, gpu: EmulatedGpu) -> None:
    out = OnGpu(gpu, np.zeros((61, 93), np.uint16)), OnGpu(gpu, np.zeros((61, 92), np.float32))
    with pytest.raises(
        DeviceArrayInvalid, match=r"confidence of out is float32 \(61, 92\); give float32 or float16 \(61, 93\)"
    ):
        session.segment_on_device(OnGpu(gpu, scene(61, 93)), WORDS, out=out)


def test_the_cpu_takes_no_gpu_arrays(tiny_bundle: Path) -> None:
    with (
        Session(tiny_bundle, backend="onnxruntime-cpu", cache=False) as session,
        pytest.raises(BackendUnavailable, match=r"needs a backend that works in GPU memory.*doctor"),
    ):
        session.segment_on_device(scene(50, 50), "cat")


def on_gpu(session: Session, gpu: EmulatedGpu, picture: np.ndarray, stream: int, **options: Any) -> Any:
    """Results that are still to come."""
    return session.segment_on_device(OnGpu(gpu, picture), stream=stream, **options)


def test_a_callers_stream_works_on_buffers_that_are_ready(session: Session, gpu: EmulatedGpu) -> None:
    """A new path's tables are uploaded by its own stream, which a caller's does not wait for."""
    session.set_vocabulary(WORDS)
    found = on_gpu(session, gpu, scene(61, 93), 55)
    np.testing.assert_array_equal(found.labels.numpy(), session.segment(scene(61, 93)).labels)


def test_streams_that_share_buffers_take_turns(session: Session, gpu: EmulatedGpu) -> None:
    """The second call records, the third changes the words, the fourth the threshold: nothing is done before the end."""
    asked = [(1, WORDS, 0.5), (2, WORDS, 0.5), (3, ["dog", "sky", "sea"], 0.5), (4, WORDS, 0.6), (5, WORDS, 0.6)]
    for words in (WORDS, ["dog", "sky", "sea"]):
        session.set_vocabulary(words)
    given = [OnGpu(gpu, scene(61, 93, seed)) for seed, _, _ in asked]
    found = [
        session.segment_on_device(picture, words, threshold=threshold, stream=55 + index % 3)
        for index, (picture, (_, words, threshold)) in enumerate(zip(given, asked, strict=True))
    ]
    gpu.finish_all()
    for result, (seed, words, threshold) in zip(found, asked, strict=True):
        host = session.segment(scene(61, 93, seed), words, threshold=threshold)
        np.testing.assert_array_equal(result.labels.numpy(), host.labels)
        np.testing.assert_array_equal(result.confidence.numpy(), host.confidence)


def test_a_graph_that_another_stream_runs_is_not_destroyed(session: Session, gpu: EmulatedGpu) -> None:
    session.set_vocabulary(WORDS)
    given = OnGpu(gpu, scene(61, 93))
    found = [session.segment_on_device(given, threshold=t, stream=55) for t in (0.5, 0.5, 0.5, 0.7)]
    labels = [result.labels.numpy() for result in found]
    for threshold, mask in zip((0.5, 0.7), (labels[2], labels[3]), strict=True):
        np.testing.assert_array_equal(mask, session.segment(scene(61, 93), threshold=threshold).labels)


def test_results_outlive_their_session(planned: Path, gpu: EmulatedGpu) -> None:
    given = OnGpu(gpu, scene(61, 93))
    with Session(planned, backend="tensorrt-rtx", cache=False) as session:
        session.set_vocabulary(WORDS)
        host = session.segment(scene(61, 93))
        *others, found = (session.segment_on_device(given, stream=55) for _ in range(3))
        assert "launch" in [work.name for work in gpu.queued()]  # which closing waits for
    assert gpu.retained > 0
    np.testing.assert_array_equal(found.labels.numpy(), host.labels)
    np.testing.assert_array_equal(found.confidence.numpy(), host.confidence)
    assert len(gpu.memory) == 1 + 3 * 2
    del found, others, host
    assert list(gpu.memory) == [given.pointer]
    assert gpu.retained == 0
    assert not gpu.events


def test_results_that_nobody_keeps_are_freed_after_the_work_on_them(session: Session, gpu: EmulatedGpu) -> None:
    session.set_vocabulary(WORDS)
    given = OnGpu(gpu, scene(61, 93))
    session.segment_on_device(given, stream=55)
    before = len(gpu.memory)
    for _ in range(4):
        session.segment_on_device(given, stream=55)
    assert len(gpu.memory) == before


def test_a_reader_on_another_stream_waits_for_the_result(session: Session, gpu: EmulatedGpu) -> None:
    session.set_vocabulary(WORDS)
    host = session.segment(scene(61, 93))
    found = on_gpu(session, gpu, scene(61, 93), 55)
    for array, theirs in ((found.labels, host.labels), (found.confidence, host.confidence)):
        with contextlib.suppress(Exception):  # the capsule needs NVIDIA's library; the wait comes before it
            array.__dlpack__(stream=77)
        gpu.finish(77)
        np.testing.assert_array_equal(emulated_gpu.at(array.array.pointer, (61, 93), array.dtype.name), theirs)


def test_threads_on_streams_of_their_own_get_what_one_would(session: Session, gpu: EmulatedGpu) -> None:
    session.set_vocabulary(WORDS)
    alone = [session.segment(scene(61, 93, seed)).labels for seed in range(12)]
    given = [OnGpu(gpu, scene(61, 93, seed)) for seed in range(12)]
    found: dict[int, np.ndarray] = {}

    def work(start: int) -> None:
        for index in range(start, 12, 3):
            found[index] = session.segment_on_device(given[index], stream=55 + start).labels.numpy()

    together([functools.partial(work, start) for start in range(3)])
    for index, labels in enumerate(alone):
        np.testing.assert_array_equal(found[index], labels)


def together(works: list[Callable[[], Any]]) -> None:
    """Each in a thread of its own, all of which end."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("call", ["cuLaunchKernel", "cuEventRecord"])
def test_a_call_that_fails_behind_a_launch_destroys_nothing_in_use(
    session: Session, gpu: EmulatedGpu, call: str
) -> None:
    session.set_vocabulary(WORDS)
    given = OnGpu(gpu, scene(61, 93))
    for _ in range(3):
        session.segment_on_device(given, stream=55)
    gpu.before["cuGraphLaunch"] = lambda: setattr(gpu, "failing", call)
    with pytest.raises(CudaFailed, match=call):
        session.segment_on_device(given, stream=55)
    gpu.before.clear()
    gpu.failing = ""
    found = session.segment_on_device(given, stream=55)
    np.testing.assert_array_equal(found.labels.numpy(), session.segment(scene(61, 93)).labels)


@pytest.mark.parametrize("step", ["upload", "resize", "engine", "maps_kernel"])
def test_a_recording_that_gives_other_masks_is_not_used(planned: Path, gpu: EmulatedGpu, step: str) -> None:
    """A step that is missing leaves what the call before it left, so only a picture that no step has seen tells."""
    gpu.replay_wrong = step
    with (
        Session(planned, backend="tensorrt-rtx", cache=False) as session,
        Session(planned, backend="onnxruntime-cpu", cache=False) as cpu,
    ):
        assert gpu.left_out > 0
        for seed in range(3):
            agree(session.segment(scene(61, 93, seed), WORDS), cpu.segment(scene(61, 93, seed), WORDS))
        (note,) = (note for note in session.notes if "CUDA graphs are not used" in note)
        assert "other masks" in note


def test_opening_records_and_keeps_no_note(session: Session, gpu: EmulatedGpu) -> None:
    assert "launch" in [what for what, _ in gpu.order]
    assert not session.notes


@pytest.mark.parametrize("call", ["cuPointerGetAttribute", "cuLaunchKernel"])
def test_whatever_fails_in_a_recording_is_done_step_by_step(session: Session, gpu: EmulatedGpu, call: str) -> None:
    """A failed look at an address is a DeviceArrayInvalid, not a CudaFailed."""
    session.set_vocabulary(WORDS)
    first = session.segment(scene(61, 93))
    gpu.failing_in_recordings = call
    for _ in range(2):
        np.testing.assert_array_equal(session.segment(scene(61, 93)).labels, first.labels)
    assert any("CUDA graphs are not used" in note for note in session.notes)
    assert not gpu.recorders


def test_what_was_compiled_is_kept_when_it_has_run(planned: Path, gpu: EmulatedGpu, tmp_path: Path) -> None:
    folder = tmp_path / "kept"

    def kept() -> int:
        return sum(len(path.read_bytes()) for path in folder.glob("tensorrt-rtx-*.cache"))

    with Session(planned, backend="tensorrt-rtx", cache=folder) as session:
        session.set_vocabulary(WORDS)
        sizes = [kept()]
        for picture in (scene(61, 93), scene(50, 50)):
            session.segment(picture)
            sizes.append(kept())
        assert 0 < sizes[0] < sizes[1] < sizes[2]
        for _ in range(2):  # on the GPU nobody waits: the second call, which records, knows that the first is done
            on_gpu(session, gpu, scene(50, 93), 55)
        assert kept() > sizes[2]


@pytest.mark.parametrize("fails", [True, False])
def test_a_cache_that_gives_nothing_or_fails_stops_no_session(
    planned: Path, gpu: EmulatedGpu, tmp_path: Path, fails: bool
) -> None:
    def serialized(contexts: int) -> None:
        if fails:
            raise RuntimeError("Internal: cannot serialize")

    gpu.serialized = serialized
    with Session(planned, backend="tensorrt-rtx", cache=tmp_path / "kept") as session:
        session.segment(scene(50, 50), WORDS)
        assert any("cannot serialize" in note for note in session.notes) == fails
    assert not list((tmp_path / "kept").glob("tensorrt-rtx-*.cache"))
    assert gpu.retained == 0


@pytest.mark.parametrize("call", ["cuGraphExecDestroy", "cuMemFreeHost", "cuEventDestroy", "cuStreamSynchronize"])
def test_a_path_that_cannot_be_closed_keeps_no_other_open(planned: Path, gpu: EmulatedGpu, call: str) -> None:
    with Session(planned, backend="tensorrt-rtx", cache=False) as session:
        session.set_vocabulary("cat")
        for size in ((40, 40), (40, 41)):
            for _ in range(2):
                session.segment(scene(50, 50), size=size)
        gpu.failing = call
    assert not session._executor._pipelines._idle
    assert not gpu.memory
    assert gpu.contexts == gpu.retained == 0
    session.close()


@pytest.mark.parametrize("device", [False, True])
def test_a_gpu_that_is_lost_tells_its_caller_and_lets_the_session_end(
    planned: Path, gpu: EmulatedGpu, device: bool
) -> None:
    given = OnGpu(gpu, scene(61, 93))

    def call() -> Any:
        return session.segment_on_device(given, stream=55) if device else session.segment(scene(61, 93))

    def lose() -> None:
        with session:
            gpu.failing = "everything"
            call()

    session = Session(planned, backend="tensorrt-rtx", cache=False)
    session.set_vocabulary(WORDS)
    kept = [call() for _ in range(3)]
    with pytest.raises(FusionerError, match="ILLEGAL_ADDRESS") as told:
        lose()
    assert "cuStreamWaitEvent" not in str(told.value)  # the first call that failed, not one of those that clear up
    assert not session._executor._pipelines._idle
    assert gpu.contexts == 0
    with pytest.raises(UsageError, match="closed"):
        call()
    session.close()
    del kept
    assert gpu.retained == 0


def test_an_error_of_the_callers_own_is_not_hidden_by_a_lost_gpu(session: Session, gpu: EmulatedGpu) -> None:
    def lose() -> None:
        with session:
            gpu.failing = "everything"
            raise KeyError

    session.segment(scene(50, 50), WORDS)
    with pytest.raises(KeyError):
        lose()


def test_results_that_may_only_be_read_are_refused(session: Session, gpu: EmulatedGpu) -> None:
    session.set_vocabulary(WORDS)
    given = OnGpu(gpu, scene(61, 93), fixed=True)  # of a picture that is right
    for fixed in ("labels", "confidence"):
        out = (
            OnGpu(gpu, np.zeros((61, 93), np.uint16), fixed=fixed == "labels"),
            OnGpu(gpu, np.zeros((61, 93), np.float32), fixed=fixed == "confidence"),
        )
        with pytest.raises(DeviceArrayInvalid, match=f"{fixed} of out is read-only"):
            session.segment_on_device(given, out=out)
    session.segment_on_device(given)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_arrays_on_another_gpu_are_refused(session: Session, gpu: EmulatedGpu, which: int) -> None:
    session.set_vocabulary(WORDS)
    given = OnGpu(gpu, scene(61, 93))
    out = OnGpu(gpu, np.zeros((61, 93), np.uint16)), OnGpu(gpu, np.zeros((61, 93), np.float32))
    gpu.owners[(given, *out)[which].pointer] = 1
    name = ("picture", "labels of out", "confidence of out")[which]
    with pytest.raises(DeviceArrayInvalid, match=f"{name} lies on GPU 1; expected memory of GPU 0"):
        session.segment_on_device(given, out=out)
    gpu.owners.clear()
    session.segment_on_device(given, out=out)


@pytest.mark.parametrize("call", ["cuStreamCreate", "cuMemAlloc", "engine", "cuMemcpyDtoHAsync", "cuStreamDestroy"])
def test_closing_while_words_are_encoded_waits_or_is_told(planned: Path, gpu: EmulatedGpu, call: str) -> None:
    session = Session(planned, backend="tensorrt-rtx", cache=False)
    begun, go = threading.Event(), threading.Event()
    outcome: list[Any] = []

    def hold() -> None:
        if threading.current_thread().name == "encodes" and not begun.is_set():
            begun.set()
            go.wait(30)

    def encode() -> None:
        try:
            outcome.append(session.segment(scene(50, 50), ["words", "never", "seen"]))
        except Exception as error:
            outcome.append(error)

    gpu.before[call] = hold
    encodes = threading.Thread(target=encode, name="encodes", daemon=True)
    closes = threading.Thread(target=session.close, daemon=True)
    encodes.start()
    assert begun.wait(30)
    closes.start()
    closes.join(0.1)
    go.set()
    for thread in (encodes, closes):
        thread.join(30)
        assert not thread.is_alive()
    (found,) = outcome
    assert isinstance(found, (Segmentation, UsageError)), repr(found)
    assert not gpu.memory
    assert not gpu.pinned
    assert gpu.retained == 0


def test_a_text_plan_that_does_not_load_is_tried_once(
    planned: Path, gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusioner_rt.tensorrt import open_plans

    with Session(planned, backend="tensorrt-rtx", cache=False) as session:
        tried = []

        def refuse(*given: Any) -> Any:
            tried.append(given)
            raise PlanUnusable("no")

        monkeypatch.setattr(open_plans, "Engine", refuse)
        session.set_vocabulary(WORDS)
        session.set_vocabulary("dog, lamp")
        assert len(tried) == 1
        assert session.notes == ["words are encoded on the CPU: no"]


def test_a_context_that_tells_no_workspace_though_its_profile_needs_some_is_refused(
    planned: Path, gpu: EmulatedGpu
) -> None:
    gpu.workspace = 0  # TensorRT's answer where it fails; without an error the plan would write over other memory
    with pytest.raises(PlanUnusable, match=r"tells no size of the memory .* needs up to 12345 bytes.*build it again"):
        Session(planned, backend="tensorrt-rtx", cache=False)
    assert not gpu.memory


def test_a_plan_that_needs_no_workspace_runs(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    plan(folder, "image_fusion", workspace=0)
    gpu = EmulatedGpu(folder)
    gpu.workspace = 0
    emulated_gpu.install(monkeypatch, gpu)
    with Session(folder, backend="tensorrt-rtx", cache=False) as session:
        session.segment(scene(61, 93), WORDS)
