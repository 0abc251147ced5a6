"""What a bundle may do to who opens it: nothing. It is whole and within bounds, or one error says what is wrong."""

import contextlib
import copy
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_pictures import scene

from fusioner_rt import Session
from fusioner_rt import bundle as bundle_module
from fusioner_rt.bundle import Bundle, read_manifest, write_manifest
from fusioner_rt.cures import build_command
from fusioner_rt.errors import (
    BundleFileAltered,
    BundleFileMissing,
    BundleMissing,
    FusionerError,
    GraphUnusable,
    ManifestInvalid,
)
from fusioner_rt.gpu.kernel_launcher import Record
from fusioner_rt.manifest import MANIFEST
from fusioner_rt.manifest_document import with_digest
from fusioner_rt.onnx.loaded_graphs import LoadedGraphs
from fusioner_rt.onnx.runtime import OnnxRuntime

ROOT = Path(__file__).parents[2]


@pytest.fixture
def a_minute() -> Iterator[None]:
    """A test that waits for a pipe fails."""

    def over(number: int, frame: Any) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.fixture
def light(made_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made_bundle, tmp_path / "light")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(with_digest(manifest)))


def refused(folder: Path, kind: type[FusionerError], *says: str) -> str:
    with pytest.raises(kind) as caught:
        Bundle.open(folder)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    assert len(message) < 1500
    for part in says:
        assert part in message
    return message


def labels_of(folder: Path) -> np.ndarray:
    with Session(folder, backend="onnxruntime-cpu", cache=False) as session:
        return session.segment(scene(61, 93), "cat, dog").labels


# Links


def test_a_bundle_of_links_opens_and_gives_the_same_masks(tiny_bundle: Path, tmp_path: Path) -> None:
    """As Hugging Face's cache has it: every file of snapshots/ is a link into blobs/, where it has another name."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1f0c"
    blobs.mkdir()
    files = [path for path in tiny_bundle.rglob("*") if path.is_file()]
    for number, path in enumerate(files):
        shutil.copyfile(path, blobs / f"{number:064x}")
        link = snapshot / path.relative_to(tiny_bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / f"{number:064x}", link.parent))
    (tmp_path / "linked").symlink_to(snapshot, target_is_directory=True)
    expected = labels_of(tiny_bundle)
    np.testing.assert_array_equal(labels_of(snapshot), expected)
    np.testing.assert_array_equal(labels_of(tmp_path / "linked"), expected)


# What is hashed is what is loaded


def test_a_file_that_changes_right_after_it_was_hashed_is_not_what_is_loaded(
    folder: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = labels_of(tiny_bundle)
    check, replaced = Bundle._check, set()

    def check_and_replace(self: Bundle, file: Path, content: Any) -> None:
        check(self, file, content)
        if file not in replaced:
            replaced.add(file)
            file.rename(file.with_name(f"{file.name}.old"))
            file.write_bytes(b"another")

    with Session(folder, backend="onnxruntime-cpu", cache=False) as unused:
        assert unused.bundle.graphs["image"].weights
    monkeypatch.setattr(Bundle, "_check", check_and_replace)
    monkeypatch.setattr(
        bundle_module.Bundle, "read_weights", _once(Bundle.read_weights)
    )  # the graphs that share weights.bin would find it replaced
    np.testing.assert_array_equal(labels_of(folder), expected)
    assert {"image.onnx", "fusion.onnx", "weights.bin", "text.onnx", "tokenizer.json"} <= {one.name for one in replaced}


def _once(read: Callable[[Bundle, Path], Any]) -> Callable[[Bundle, Path], Any]:
    kept: dict[Path, Any] = {}

    def once(self: Bundle, file: Path) -> Any:
        if file not in kept:
            kept[file] = read(self, file)
        return kept[file]

    return once


def test_large_weights_are_mapped_and_give_the_same_masks(
    folder: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = labels_of(tiny_bundle)
    monkeypatch.setattr(bundle_module, "_MOST_IN_MEMORY", 0)
    np.testing.assert_array_equal(labels_of(folder), expected)
    with Session(folder, backend="onnxruntime-cpu", cache=False):
        assert (
            str(folder / "weights.bin") not in Path("/proc/self/maps").read_text()
        )  # ONNX Runtime has copied what it needs
    bundle = Bundle.open(folder)
    weights = bundle.graphs["image"].weights
    assert weights is not None
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleFileAltered, match="open the bundle again"):
        bundle.read_weights(weights)


def test_kernels_are_read_as_they_were_hashed_and_no_others(folder: Path) -> None:
    bundle = Bundle.open(folder)
    record = Record(bundle.kernels_folder, bundle.read)
    assert record.names
    abi = bundle.kernels_folder / "abi.json"
    abi.write_bytes(abi.read_bytes().replace(b"sm_80", b"sm_90"))
    with pytest.raises(BundleFileAltered, match=r"abi\.json"):
        Record(bundle.kernels_folder, bundle.read)
    (folder / "kernels/other.cubin").write_bytes(b"code")
    with pytest.raises(BundleFileMissing, match="is not in the manifest"):
        bundle.read(folder / "kernels/other.cubin")


# Weights in other files


def _external(folder: Path, name: str, location: str) -> None:
    """One tensor of a graph lies in another file, and the bundle lists all files as they are."""
    model = onnx.load(folder / f"{name}.onnx", load_external_data=False)
    tensor = next(one for one in model.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL)
    next(entry for entry in tensor.external_data if entry.key == "location").value = location
    (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    write_manifest(folder, json.loads((folder / MANIFEST).read_text()))


@pytest.mark.parametrize(
    "location", ["other.bin", "../other.bin", "/etc/passwd", "", "sub/../weights.bin", "*/_ORT_MEM_ADDR_/*"]
)
def test_a_graph_that_keeps_weights_in_a_file_that_its_entry_does_not_list_is_refused(
    folder: Path, location: str
) -> None:
    (folder / "other.bin").write_bytes((folder / "weights.bin").read_bytes())
    (folder.parent / "other.bin").write_bytes((folder / "weights.bin").read_bytes())
    _external(folder, "image", location)
    with pytest.raises(
        GraphUnusable, match=r"image\.onnx: keeps .* in the file .*, weights were expected in .* weights\.bin"
    ):
        Session(folder, backend="onnxruntime-cpu", cache=False)


def test_a_graph_without_weights_in_its_entry_has_none_elsewhere(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["graphs"]["image"].pop("weights"))
    with pytest.raises(GraphUnusable, match="the manifest lists for it, none"):
        Session(folder, backend="onnxruntime-cpu", cache=False)


def test_weights_in_an_inner_graph_or_a_constant_are_refused(folder: Path) -> None:
    """ONNX Runtime would read those by itself."""
    whole = onnx.load(folder / "mask_scores.onnx")
    outside = onnx.numpy_helper.from_array(np.ones(300, np.float32), "outside")
    outside.ClearField("raw_data")
    outside.data_location = onnx.TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="weights.bin")
    constant = onnx.helper.make_node("Constant", [], ["constant"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(outside)
    inner = onnx.helper.make_graph([], "inner", [], [], [outside])
    branch = onnx.helper.make_node("If", ["condition"], ["made"], then_branch=inner, else_branch=inner)
    edit(folder, lambda manifest: manifest["graphs"]["mask_scores"].update(weights="weights.bin"))
    for node in (constant, branch):
        model = copy.deepcopy(whole)
        model.graph.node.append(node)
        (folder / "mask_scores.onnx").write_bytes(model.SerializeToString())
        write_manifest(folder, json.loads((folder / MANIFEST).read_text()))
        graphs = LoadedGraphs(Bundle.open(folder), OnnxRuntime("onnxruntime-cpu"))
        with pytest.raises(GraphUnusable, match="keeps outside in the file"):
            graphs("mask_scores")


def test_weights_that_do_not_fit_their_file_are_refused(folder: Path) -> None:
    whole = (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").write_bytes(whole[: len(whole) // 2])
    write_manifest(folder, json.loads((folder / MANIFEST).read_text()))
    with pytest.raises(GraphUnusable, match=r"is not at \d+ of weights\.bin"):
        Session(folder, backend="onnxruntime-cpu", cache=False)


# The manifest's digest


def test_one_changed_letter_of_a_template_is_found(light: Path) -> None:
    text = (light / MANIFEST).read_text()
    (light / MANIFEST).write_text(text.replace('"a bad photo of the {category}."', '"a bed photo of the {category}."'))
    refused(light, BundleFileAltered, MANIFEST, "its content is not what was written", build_command(light))
    assert "--sizes" not in build_command(light)  # nothing is taken from such a manifest


def test_a_manifest_without_its_digest_is_refused(light: Path) -> None:
    manifest = json.loads((light / MANIFEST).read_text())
    for digest, kind in ((None, ManifestInvalid), ("0" * 64, BundleFileAltered), (5, BundleFileAltered)):
        manifest["sha256"] = digest
        kept = {name: value for name, value in manifest.items() if value is not None}
        (light / MANIFEST).write_text(json.dumps(kept))
        refused(light, kind, "sha256", build_command(light))


def test_the_digest_is_of_the_content_and_not_of_its_spelling(light: Path) -> None:
    manifest = json.loads((light / MANIFEST).read_text())
    reversed_ = dict(reversed(manifest.items()))
    (light / MANIFEST).write_text(json.dumps(reversed_, indent=7, ensure_ascii=True))
    assert Bundle.open(light).name == manifest["name"]


def test_the_command_of_the_docs_writes_the_digest_of_a_manifest_edited_by_hand(light: Path) -> None:
    manifest = json.loads((light / MANIFEST).read_text())
    (light / MANIFEST).write_text(json.dumps({**manifest, "name": "mine"}))
    refused(light, BundleFileAltered)
    page = (ROOT / "docs/bundle.md").read_text()
    command = next(line for line in page.splitlines() if "write_manifest" in line and line.startswith("python -c"))
    assert "'engines/mine'" in command
    python, *rest = shlex.split(command.replace("engines/mine", str(light)))
    assert python == "python"
    subprocess.run([sys.executable, *rest], check=True, cwd=ROOT, timeout=60)
    assert Bundle.open(light).name == "mine"


# Files that are none


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


@pytest.mark.usefixtures("a_minute")
@pytest.mark.parametrize("make", [_pipe, _device, _socket, Path.mkdir])
@pytest.mark.parametrize("name", [MANIFEST, "text.onnx", "weights.bin", "tokenizer.json", "kernels/abi.json"])
def test_what_is_no_regular_file_is_refused_at_once(
    light: Path, name: str, make: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    (light / name).unlink()
    make(light / name)
    kind = BundleMissing if name == MANIFEST else BundleFileMissing
    message = refused(light, kind, name, "a regular file was expected")
    assert "rebuild it" in message or name == MANIFEST
    assert build_command(light)
    with pytest.raises(FusionerError):
        Session(light)


@pytest.mark.usefixtures("a_minute")
@pytest.mark.parametrize("make", [_pipe, _device, _socket])
def test_a_bundles_folder_that_is_none_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "bundle")
    refused(tmp_path / "bundle", BundleMissing, "is not a folder")


@pytest.mark.usefixtures("a_minute")
def test_a_file_that_turns_into_a_pipe_under_a_session_is_refused(folder: Path) -> None:
    with Session(folder, backend="onnxruntime-cpu", cache=False) as session:
        (folder / "text.onnx").unlink()
        os.mkfifo(folder / "text.onnx")
        with pytest.raises(BundleFileMissing, match="a named pipe, a regular file was expected"):
            session.segment(scene(20, 30), "cat")


@pytest.mark.usefixtures("a_minute")
def test_a_manifest_without_end_is_not_read_whole(light: Path) -> None:
    with open(light / MANIFEST, "r+b") as stream:
        stream.truncate(1 << 40)  # of holes
    refused(light, ManifestInvalid, f"it has more than {16 << 20} bytes")


# Bounds


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["files"]["text.onnx"].pop("sha256"), "files.text.onnx.sha256 is missing"),
        (lambda m: m["files"]["text.onnx"].update(sha256="0" * 63), "files.text.onnx.sha256 is"),
        (lambda m: m["files"]["text.onnx"].update(bytes=-1), "files.text.onnx.bytes is -1, a whole number from 0 to"),
        (lambda m: m["tokenizer"].update(max_tokens=-1), "tokenizer.max_tokens is -1, a whole number from 1 to 4096"),
        (lambda m: m["tokenizer"].update(max_tokens=2**64), f"tokenizer.max_tokens is {2**64}, a whole number from 1"),
        (lambda m: m["profiles"]["batch"].update(max=0), "profiles.batch.max is 0, a whole number from 1 to 65535"),
        (lambda m: m["profiles"]["batch"].update(max=-5), "profiles.batch.max is -5"),
        (lambda m: m["profiles"]["words"].update(max=65536), "profiles.words.max is 65536, a whole number from 1 to 65535"),
        (lambda m: m["profiles"]["size"].update(max=10**9), "profiles.size.max is 1000000000"),
        (lambda m: m["preprocessing"].update(side=10**9), "preprocessing.side is 1000000000, a whole number from 1 to 65536"),
        (lambda m: m["preprocessing"].update(std=[1e-300, 1, 1]), "preprocessing.std[0] is 1e-300, a number from 1e-06"),
        (lambda m: m.update(templates=["a {category}"] * 3000), "templates has 3000 items, at most 1000 were expected"),
        (lambda m: m.update(templates=["a {category}" + "a" * 10_000_000]), "templates[0] is \"a {category}aaa"),
        (lambda m: m.update(temperature=1e-300), "temperature is 1e-300, a number from 1e-06 to 1e+06"),
        (lambda m: m.update(threshold=float("inf")), "threshold is Infinity, a number from 0 to 1 was expected"),
        (lambda m: m.update(threshold=float("nan")), "threshold is NaN, a number from 0 to 1 was expected"),
        (lambda m: m.update(name="n" * 1001), "text of at most 1000 characters was expected"),
        (lambda m: m["model"].update(decoder=[8] * 17), "model.decoder has 17 items, at most 16"),
        (lambda m: m["graphs"]["text"]["outputs"].update(embeddings=["float32", ["N", {}]]),
         "graphs.text.outputs.embeddings[1][1] is {}, a whole number from 0"),
        (lambda m: m.update(files={str(n): 0 for n in range(20_001)}), "files has 20001 entries, at most 20000"),
        (lambda m: m["known_answer"].update(step=2**70), "known_answer.step is"),
        (lambda m: m["known_answer"]["bounds"]["fp16"].update(mean=-1), "bounds.fp16.mean is -1, a number from 0"),
        (lambda m: m.update(gates=json.loads("[" * 500 + "]" * 500)), "gates holds more than 32 lists and objects"),
    ],
)  # fmt: skip
def test_numbers_texts_and_lists_have_bounds(
    light: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    edit(light, change)
    start = time.thread_time()
    refused(light, ManifestInvalid, says)
    build_command(light)
    assert time.thread_time() - start < 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"gates": ' + "[" * 3000 + "]" * 3000 + "}", "deep"),
        ('{"a": ' * 3000 + "1" + "}" * 3000, "deep"),
        ('{"format": "fusioner-rt bundle", "format": "fusioner-rt bundle"}', "'format' is in it twice"),
        ('{"x": ' + "9" * 5000 + "}", "is not JSON"),
    ],
)
def test_json_that_is_none_of_ours(light: Path, content: str, says: str) -> None:
    (light / MANIFEST).write_text(content)
    if sys.version_info < (3, 12) or says != "deep":
        refused(light, ManifestInvalid, says)
    else:
        refused(light, ManifestInvalid)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_manifest_of_another_encoding_than_utf_8_is_refused(light: Path, encoding: str) -> None:
    text = (light / MANIFEST).read_text(encoding="utf-8")
    (light / MANIFEST).write_text(text, encoding=encoding)
    refused(light, ManifestInvalid, "is not JSON")


@pytest.mark.parametrize("version", [True, 1.0, [1], "1", None, 10**4000, "v" * 10_000])
def test_a_version_of_another_kind_is_unknown(light: Path, version: Any) -> None:
    edit(light, lambda manifest: manifest.update(format_version=version))
    with pytest.raises(FusionerError, match="format version") as caught:
        Bundle.open(light)
    assert len(str(caught.value)) < 600


LEAVES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**64, -(10**30), 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "x", "{category}",
    "../x", "/dev/zero", "a\0b", "\ud800", "fp16", "x" * 2000, [], {}, [[]], [1, 2, 3], {"min": 1}, {"": ""}, ["text", [1]],
]  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in inner:
        yield (*path, key)
        yield from _places(held, (*path, key))


DEMONSTRATION = json.loads((ROOT / "models/demo/bundle" / MANIFEST).read_text())
PLACES = list(_places(DEMONSTRATION))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_the_manifest_parses_or_is_a_known_error_and_soon(tmp_path: Path, data: st.DataObject) -> None:
    manifest = copy.deepcopy(DEMONSTRATION)
    for place in data.draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3)):
        holder: Any = manifest
        try:
            for key in place[:-1]:
                holder = holder[key]
            if data.draw(st.booleans()):
                holder[place[-1]] = data.draw(
                    st.sampled_from(LEAVES) | st.integers() | st.floats() | st.text(max_size=20)
                )
            else:
                del holder[place[-1]]
        except (LookupError, TypeError):  # an earlier change took what held it
            continue
    (tmp_path / MANIFEST).write_text(json.dumps(with_digest(manifest)))
    start = time.thread_time()
    with contextlib.suppress(FusionerError):
        Bundle.of(tmp_path, read_manifest(tmp_path)).input_size(480, 640, "picture")
    build_command(tmp_path)
    assert time.thread_time() - start < 1
