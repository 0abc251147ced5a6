"""The bundle's known answer finds out backends that agree with themselves and compute something else."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import emulated_gpu
import numpy as np
import pytest
from emulated_gpu import EmulatedGpu, plan
from made_pictures import scene

from fusioner_rt import Session, known_answer
from fusioner_rt.bundle import Bundle, write_manifest
from fusioner_rt.doctor import examine
from fusioner_rt.errors import AnswerWrong, ManifestInvalid
from fusioner_rt.manifest import MANIFEST
from fusioner_rt.onnx.executor import OnnxRuntimeExecutor

VERSIONS = {"tensorrt": "11.4.0.106", "tensorrt-rtx": emulated_gpu.VERSION}
Outputs = dict[str, np.ndarray]


def zeros(found: Outputs) -> Outputs:
    return {name: np.zeros_like(array) for name, array in found.items()}


def the_first_picture_for_all(found: Outputs) -> Outputs:
    return {name: np.repeat(array[:1], len(array), axis=0) for name, array in found.items()}


def two_words_swapped(found: Outputs) -> Outputs:
    order = [1, 0, *range(2, found["refined"].shape[1])][: found["refined"].shape[1]]
    return {**found, "refined": found["refined"][:, order]}


def no_numbers(found: Outputs) -> Outputs:
    return {name: np.full_like(array, np.nan) for name, array in found.items()}


def as_it_is(found: Outputs) -> Outputs:
    return found


def engines(monkeypatch: pytest.MonkeyPatch, folder: Path, flavour: str, change: Callable[[Outputs], Outputs]) -> Any:
    """The emulated GPU and TensorRT, whose engines write what `change` makes of the right outputs."""
    gpu = EmulatedGpu(folder)
    module = emulated_gpu.install(monkeypatch, gpu, flavour, VERSIONS[flavour])
    deserialize = module.Runtime.deserialize_cuda_engine

    def changed(self: Any, content: bytes) -> Any:
        engine = deserialize(self, content)
        right = engine.session

        class Changed:
            get_inputs, get_outputs = right.get_inputs, right.get_outputs

            def run(self, names: Any, inputs: Outputs) -> list[np.ndarray]:
                every = [output.name for output in right.get_outputs()]
                found = dict(zip(every, right.run(every, inputs), strict=True))
                return list((change(found) if "refined" in found else found).values())

        engine.session = Changed()
        return engine

    monkeypatch.setattr(module.Runtime, "deserialize_cuda_engine", changed)
    return gpu


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle with plans of both flavours."""
    copy = tmp_path / "planned"
    shutil.copytree(tiny_bundle, copy)
    for flavour, version in VERSIONS.items():
        plan(copy, "image_fusion", flavour, version, "8.0")
    return copy


CHANGES = [zeros, the_first_picture_for_all, two_words_swapped, no_numbers]


@pytest.mark.parametrize(
    ("flavour", "change"),
    [
        *(("tensorrt-rtx", change) for change in CHANGES),
        ("tensorrt", zeros),
        *(pytest.param("tensorrt", change, marks=pytest.mark.slow) for change in CHANGES[1:]),
    ],
)
def test_an_engine_that_computes_something_else_fails_its_rung(
    folder: Path, monkeypatch: pytest.MonkeyPatch, flavour: str, change: Callable[[Outputs], Outputs]
) -> None:
    gpu = engines(monkeypatch, folder, flavour, change)
    with pytest.raises(
        AnswerWrong, match=r"its cosines of '.*are off by .* are allowed in fp32; build its plans again"
    ):
        Session(folder, flavour, cache=False)
    assert not gpu.memory
    (rung,) = (rung for rung in examine(folder).rungs if rung.name == flavour)
    assert (rung.works, rung.exit_code) == (False, AnswerWrong.exit_code)
    with Session(folder, cache=False) as session:
        assert session.backend.effective == "onnxruntime-cpu"
        reason = dict(session.backend.passed_over)[flavour]
        assert f"add_plans.py {folder} --backend {flavour}, or choose another backend" in reason
        assert ("picture 2" in reason and "in a batch of 3" in reason) == (change is the_first_picture_for_all)


@pytest.mark.parametrize("flavour", VERSIONS)
def test_a_right_engine_passes_and_leaves_no_buffers_and_no_note(
    folder: Path, monkeypatch: pytest.MonkeyPatch, flavour: str
) -> None:
    engines(monkeypatch, folder, flavour, as_it_is)
    with Session(folder, flavour, cache=False) as session:
        assert session.backend.effective == flavour
        assert session.backend.unproved is None
        assert not session._executor._pipelines._idle
        session.segment(scene(61, 93), "cat")


@pytest.mark.parametrize("kernel", ["resize_columns_kernel", "maps_kernel"])
def test_a_kernel_that_does_nothing_fails_the_rung(folder: Path, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    """The pictures go the whole way, from their bytes on; new memory holds no numbers."""
    gpu = engines(monkeypatch, folder, "tensorrt-rtx", as_it_is)
    monkeypatch.setattr(gpu, kernel, lambda *_: None)
    with pytest.raises(AnswerWrong, match="of the bundle's known answer"):
        Session(folder, "tensorrt-rtx", cache=False)


def test_wrong_labels_over_right_cosines_are_told_by_their_share(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = engines(monkeypatch, folder, "tensorrt-rtx", as_it_is)
    right = gpu.labels_kernel

    def shifted(pictures: int, scores: int, gram: int, labels: int, confidence: int, *rest: Any) -> None:
        right(pictures, scores, gram, labels, confidence, *rest)
        mask = emulated_gpu.at(labels, (pictures, rest[3], rest[4]), "uint16")
        mask[:] = np.roll(mask, 5, axis=2)

    monkeypatch.setattr(gpu, "labels_kernel", shifted)
    with pytest.raises(
        AnswerWrong, match=r"its labels of picture 1 .* differ in .*% of the pixels, 1\.\d+% is allowed"
    ):
        Session(folder, "tensorrt-rtx", cache=False)


def test_onnx_runtime_on_a_gpu_is_compared_too(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Halved(OnnxRuntimeExecutor):
        """As on a GPU whose words come out wrong."""

        def maps(self, group: Any, request: Any) -> Any:
            return [(scores / 2, gram) for scores, gram in super().maps(group, request)]

    monkeypatch.setattr(
        "fusioner_rt.open_backend.open_graphs",
        lambda bundle, threads: (Halved(bundle, "onnxruntime-cpu", threads), "CUDA"),
    )
    with Session(tiny_bundle, "onnxruntime", cache=False) as session:
        assert session.backend.effective == "onnxruntime-cpu"
        (reason,) = dict(session.backend.passed_over).values()
        assert reason.startswith("its cosines of ")
        assert reason.endswith("are allowed in fp32; choose another backend")


def test_the_cpu_path_gives_its_own_answer_again(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    answer, cpu = known_answer.read(bundle), OnnxRuntimeExecutor(bundle, "onnxruntime-cpu", 1)
    assert cpu.max_group >= len(answer.pictures) >= 3
    assert len(answer.words) >= 4
    known_answer.compare(bundle, answer, cpu, "onnxruntime-cpu")
    cpu.close()


def test_a_bundle_without_an_answer_runs_on_the_cpu_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["known_answer"]
    (folder / "known_answer.npz").unlink()
    write_manifest(folder, manifest)
    gpu = engines(monkeypatch, folder, "tensorrt-rtx", as_it_is)
    with pytest.raises(ManifestInvalid, match="has no known answer; rebuild it: "):
        Session(folder, "tensorrt-rtx", cache=False)
    assert not gpu.memory
    Session(folder, "onnxruntime-cpu", cache=False).close()


def test_a_plan_too_narrow_for_the_answer_runs_and_says_so(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "narrow"
    shutil.copytree(tiny_bundle, folder)
    shapes = {"pixels": [[1, 3, 32, 32], [1, 3, 96, 96], [1, 3, 96, 96]], "words": [[1, 1, 24], [1, 3, 24], [1, 3, 24]]}
    plan(folder, "image_fusion", profiles=[shapes])
    engines(monkeypatch, folder, "tensorrt-rtx", as_it_is)
    with Session(folder, "tensorrt-rtx", cache=False) as session:
        assert any("known answer" in note and "--profiles any-size" in note for note in session.notes)


def test_a_plan_of_bfloat16_is_held_to_the_bounds_of_bfloat16(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    for entry in manifest["engines"]:
        entry["precision"] = "bf16"
    write_manifest(folder, manifest)
    bundle = Bundle.open(folder)
    assert known_answer.precision_of(bundle, "tensorrt") == "bf16"
    assert known_answer.precision_of(bundle, "onnxruntime-cuda") == "fp32"


@pytest.mark.parametrize("how", ["text", "pickle", "cut", "words", "bounds"])
def test_what_is_no_known_answer_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    manifest, path = json.loads((folder / MANIFEST).read_text()), folder / "known_answer.npz"
    whole = path.read_bytes()
    if how == "pickle":
        arrays = dict(np.load(io.BytesIO(whole)))
        np.savez(path, **{**arrays, "pictures": np.array([{}], dtype=object)})
    elif how == "words":
        manifest["known_answer"]["words"].pop()
    elif how == "bounds":
        del manifest["known_answer"]["bounds"]
    else:
        path.write_bytes(b"no answer" if how == "text" else whole[: len(whole) // 2])
    write_manifest(folder, manifest)
    gpu = engines(monkeypatch, folder, "tensorrt-rtx", as_it_is)
    says = r"manifest\.json: known_answer\.bounds" if how == "bounds" else r"known_answer\.npz: is no known answer"
    with pytest.raises(ManifestInvalid, match=rf"{says} .*; rebuild it: "):
        Session(folder, "tensorrt-rtx", cache=False)
    assert not gpu.memory


def test_an_answer_without_bounds_in_the_precision_of_a_backend_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    gpu = engines(monkeypatch, folder, "tensorrt-rtx", as_it_is)
    precision = known_answer.precision_of(Bundle.open(folder), "tensorrt-rtx")
    del manifest["known_answer"]["bounds"][precision]
    write_manifest(folder, manifest)
    says = f"has no bounds in {precision}, .* tensorrt-rtx computes in; rebuild it: "
    with pytest.raises(ManifestInvalid, match=says):
        Session(folder, "tensorrt-rtx", cache=False)
    assert not gpu.memory


def test_an_answer_that_the_manifest_does_not_list_is_malformed(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["known_answer"]["file"] = "other.npz"
    write_manifest(folder, manifest)
    with pytest.raises(ManifestInvalid, match=r"other\.npz in files"):
        Bundle.open(folder)
