import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusioner_rt import Session
from fusioner_rt.bundle import Bundle, find_bundle, locate_bundle, write_manifest
from fusioner_rt.cli import main
from fusioner_rt.cures import build_command, plans_command
from fusioner_rt.errors import (
    BundleFileAltered,
    BundleFileMissing,
    BundleMissing,
    BundleVersionUnknown,
    FusionerError,
    ManifestInvalid,
    UsageError,
)
from fusioner_rt.manifest import GRAPHS, MANIFEST, KernelsEntry
from fusioner_rt.manifest_document import with_digest
from fusioner_rt.preprocess import Preprocessing


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "copy")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(with_digest(manifest)))


def refused(folder: Path, kind: type[FusionerError], *says: str) -> None:
    with pytest.raises(kind) as caught:
        Bundle.open(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in (*says, build_command(folder)):
        assert part in message


def test_a_whole_bundle_opens(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert isinstance(bundle.preprocessing, Preprocessing)
    assert bundle.tokenizer.is_file()
    assert all(bundle.graph(name).is_file() for name in GRAPHS)
    assert bundle.words.min <= bundle.words.opt <= bundle.words.max


def test_a_manifest_names_every_file_and_opens_again(copy: Path) -> None:
    old = json.loads((copy / MANIFEST).read_text())
    (copy / "sub").mkdir()
    (copy / "sub" / "extra.bin").write_bytes(b"12345")
    new = write_manifest(copy, {**old, "name": "renamed", "format_version": 99, "files": {"gone": {}}})
    assert new["files"]["sub/extra.bin"]["bytes"] == 5
    assert set(new["files"]) == {*old["files"], "sub/extra.bin"}
    assert MANIFEST not in new["files"]
    assert Bundle.open(copy).name == "renamed"


@pytest.mark.parametrize(
    "name", [f"{graph}.onnx" for graph in GRAPHS] + ["weights.bin", "decoder_up_1.onnx", "tokenizer.json"]
)
def test_a_missing_a_flipped_and_a_cut_file_are_each_named(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    (copy / name).unlink()
    refused(copy, BundleFileMissing, name, "missing")
    (copy / name).write_bytes(content[:-1])
    refused(copy, BundleFileAltered, name, f"{len(content) - 1} bytes")
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    refused(copy, BundleFileAltered, name, "sha256")


def test_a_newer_format_says_to_update(copy: Path) -> None:
    edit(copy, lambda manifest: manifest.update(format_version=2))
    refused(copy, BundleVersionUnknown, "format version 2", "reads version 1", "update fusioner-rt")
    edit(copy, lambda manifest: manifest.update(format_version="old"))
    refused(copy, BundleVersionUnknown, "'old'")


def test_a_version_is_judged_before_anything_else(copy: Path) -> None:
    (copy / MANIFEST).write_text(json.dumps({"format": "fusioner-rt bundle", "format_version": 2}))
    refused(copy, BundleVersionUnknown)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": "other"}', "\xff\xfe"])
def test_manifests_that_are_none(copy: Path, content: str) -> None:
    (copy / MANIFEST).write_bytes(content.encode("latin-1"))
    refused(copy, ManifestInvalid, MANIFEST)


KERNELS = {"abi": "text.onnx", "features": ["float16"], "targets": ["sm_80"]}
"""Any file of the bundle stands for the record, which is read by the launcher alone."""


def test_kernels_may_be_left_out(copy: Path) -> None:
    edit(copy, lambda manifest: manifest.update(kernels=KERNELS))
    assert Bundle.open(copy).kernels == KernelsEntry(copy / "text.onnx", ("float16",), ("sm_80",))
    edit(copy, lambda manifest: manifest.pop("kernels"))
    assert Bundle.open(copy).kernels is None
    with Session(copy, cache=False) as session:
        assert session.segment(np.zeros((40, 50, 3), np.uint8), "cat, dog").labels.shape == (40, 50)


EMPTY = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("files"),
        lambda m: m.update(files=[]),
        lambda m: m["files"].pop("text.onnx"),
        lambda m: m["files"].update({"text.onnx": "hash"}),
        lambda m: m["files"].update({"../outside": EMPTY}),
        lambda m: m["files"].update({"/etc/hostname": EMPTY}),
        lambda m: m["files"].update({"sub/../../outside": EMPTY}),
        lambda m: m["files"].update({"C:outside": EMPTY}),
        lambda m: m["files"].update({"nul\0": EMPTY}),
        lambda m: m["files"].update({"half a pair \ud800": EMPTY}),
        lambda m: m["profiles"]["words"].update(max=float("inf")),
        lambda m: m["graphs"].pop("mask_labels"),
        lambda m: m["graphs"]["mask_tiles"].pop("file"),
        lambda m: m["graphs"]["mask_tiles"].update(file="../outside.onnx"),
        lambda m: m.update(kernels=None),
        lambda m: m.update(kernels={**KERNELS, "abi": "kernels/absent.json"}),
        lambda m: m.update(kernels={**KERNELS, "targets": [80]}),
        lambda m: m.update(kernels={"abi": "text.onnx"}),
        lambda m: m["profiles"]["words"].pop("max"),
        lambda m: m["profiles"]["batch"].update(max="many"),
        lambda m: m["preprocessing"].update(resample="magic"),
        lambda m: m.update(templates=["no place"]),
        lambda m: m.pop("precision"),
        lambda m: m.pop("temperature"),
        lambda m: m.pop("engines"),
        lambda m: m["graphs"].pop("image"),
        lambda m: m["graphs"]["image"].update(weights=None),
        lambda m: m["graphs"]["image_fusion"]["inputs"].pop("words"),
        lambda m: m["graphs"]["image_fusion"]["inputs"].update(words=["float32", ["B", "K", "t"]]),
        lambda m: m["known_answer"].pop("step"),
        lambda m: m.update(tokenizer=None),
    ],
)
def test_manifests_with_a_field_missing_or_malformed(copy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(copy, change)
    refused(copy, ManifestInvalid)


READ_BY_NO_SESSION = {"sha256", "format_version", "built_with", "gates", "kernels", "known_answer"}
"""Records, entries that bundles may be built without, and what is checked before any entry."""


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where a JSON document holds a value, inner ones too."""
    for key, inner in value.items() if isinstance(value, dict) else []:
        yield (*path, key)
        yield from places(inner, (*path, key))


def test_whatever_a_session_reads_may_not_be_missing_or_of_another_kind(copy: Path) -> None:
    """Every entry in turn is left out, and is put to null; the error names it."""
    whole = json.loads((copy / MANIFEST).read_text())
    read = [
        path for path in places(whole)
        if path[0] not in READ_BY_NO_SESSION | {"files"} and (path[0] != "model" or path[1:2] == ("decoder",) or not path[1:])
        and path[-1] not in ("weights", "fp16_weight_share", "format") and (path[0] != "graphs" or len(path) < 4)
    ]  # fmt: skip
    assert len(read) > 60
    for path in read:
        for missing in (True, False):
            changed = json.loads(json.dumps(whole))
            holder = changed
            for key in path[:-1]:
                holder = holder[key]
            if missing:
                del holder[path[-1]]
            else:
                holder[path[-1]] = None
            with pytest.raises(ManifestInvalid) as caught:
                Bundle.of(copy, changed)
            assert str(path[-1]) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["graphs"].pop("decoder_first"), "graphs.decoder_first is missing"),
        (lambda m: m["graphs"].pop("decoder_up_1"), "graphs.decoder_up_1 is missing"),
        (lambda m: m["graphs"].pop("decoder_scores"), "graphs.decoder_scores is missing"),
        (lambda m: m["graphs"]["text"].update(inputs={}), "graphs.text.inputs is {}, a tensor at least was expected"),
        (lambda m: m["model"].pop("decoder"), "model.decoder is missing"),
        (lambda m: m.update(temperature=0), "temperature is 0, a number from 1e-06 to 1e+06 was expected"),
        (lambda m: m.update(temperature=float("nan")), "temperature is NaN, a number from 1e-06 to 1e+06 was expected"),
        (lambda m: m.update(temperature="hot"), "temperature is \"hot\", a number from 1e-06 to 1e+06 was expected"),
        (lambda m: m.update(precision="fp8"), "precision is \"fp8\", one of fp32, fp16 was expected"),
        (lambda m: m.update(scoring="max"), "scoring is \"max\", one of sigmoid, softmax was expected"),
        (lambda m: m.update(engines={}), "engines is {}, a list was expected"),
        (lambda m: m.update(name=5), "name is 5, text was expected"),
        (lambda m: m["tokenizer"].update(max_tokens=0), "tokenizer.max_tokens is 0, a whole number from 1 to 4096 was expected"),
        (lambda m: m["profiles"]["words"].update(max=-1), "profiles.words.max is -1, a whole number from 1"),
        (lambda m: m["profiles"]["words"].update(min=70), "min <= opt <= max was expected"),
        (lambda m: m["preprocessing"].pop("mean"), "preprocessing.mean is missing"),
        (lambda m: m["preprocessing"].update(std=[1, 2]), "preprocessing.std is [1, 2], a list of 3 was expected"),
        (lambda m: m.update(graphs=["x" * 900]), "graphs is [\"" + "x" * 58 + "…, an object was expected"),
        (lambda m: m.update(engines=[{}]), "engines[0].compute_capability is missing"),
        (lambda m: m["tokenizer"].update(file="/etc/passwd"), "there is no /etc/passwd in files"),
        (lambda m: m["graphs"]["text"].update(file="../text.onnx"), "there is no ../text.onnx in files"),
        (lambda m: m.update(temperature=10**400), "temperature is 1000"),
    ],
)  # fmt: skip
def test_a_manifests_error_names_the_entry_and_what_was_expected(
    copy: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    edit(copy, change)
    refused(copy, ManifestInvalid, says)


@pytest.mark.parametrize("arguments", [{"bundle": 5}, {"threads": "2"}, {"threads": 0}])
def test_arguments_of_another_kind(tiny_bundle: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="; give "):
        Session(**{"bundle": tiny_bundle, **arguments})


def test_folders_without_a_bundle(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        refused(folder, BundleMissing, "name another")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleMissing, match="not a folder"):
        Bundle.open(tmp_path / "file")


def test_the_cure_builds_the_users_model_again_as_it_was_but_for_what_is_cured(copy: Path) -> None:
    def settings(manifest: dict[str, Any]) -> None:
        manifest["profiles"]["words"]["max"] = 77
        manifest["profiles"]["batch"]["max"] = 3
        manifest["profiles"]["size"] = {"min": 32, "opt": 64, "max": 96}

    edit(copy, settings)
    build = "python export/build_engine.py --checkpoint CHECKPOINT"
    limits = "--sizes 32,64,96 --max-words 77 --max-batch 3"
    assert build_command(copy) == f"{build} {limits} --out {copy}"
    assert build_command(copy, max_words=99) == f"{build} {limits.replace('77', '99')} --out {copy}"
    assert build_command(copy, sizes="32,64,512") == f"{build} {limits.replace('96', '512')} --out {copy}"
    edit(copy, lambda manifest: manifest.update(precision="fp16"))
    assert build_command(copy) == f"{build} --fp16 {limits} --out {copy}"
    assert build_command(copy, precision="fp32") == f"{build} {limits} --out {copy}"
    for content in ("{", "[]", '{"format": "fusioner-rt bundle", "format_version": 1, "profiles": 3}', "\xff"):
        (copy / MANIFEST).write_bytes(content.encode("latin-1"))
        assert build_command(copy) == f"{build} --fp16 --out {copy}"
    spaced = copy.rename(copy.with_name("two words"))
    assert build_command(spaced).endswith(f"--out '{spaced}'")


def a_bundle(folder: Path) -> Path:
    """What is found as a bundle: a folder with a manifest."""
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text("{}")
    return folder


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is an empty one, of a user who has fetched nothing."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "empty"


def make_checkout(folder: Path) -> None:
    (folder / "export").mkdir()
    (folder / "export/build_engine.py").touch()


@pytest.mark.parametrize("place", ["engines/demo", "models/demo/bundle", "models/demo"])
def test_the_demonstration_alone_is_rebuilt_from_the_default_checkpoint(place: str, empty: Path) -> None:
    make_checkout(empty)
    for folder in (Path(place), empty / place):
        assert build_command(folder) == f"python export/build_engine.py --fp16 --out {folder}"
    assert "--checkpoint CHECKPOINT" in build_command(empty / place / "mine")
    assert "--checkpoint CHECKPOINT" in build_command(empty / "mine" / "demo")


def test_where_a_bundle_is_looked_for(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleMissing, match="FUSIONER_ENGINE"):
        find_bundle()
    fetched = a_bundle(empty.parent / "data/fusioner-rt/bundles/demo")
    assert find_bundle() == fetched
    for place in ("models/demo/bundle", "engines/demo"):  # later ones win over earlier
        a_bundle(Path(place))
        assert find_bundle() == Path(place)
    monkeypatch.setenv("FUSIONER_ENGINE", "/from/environment")
    assert find_bundle() == Path("/from/environment")
    monkeypatch.setenv("FUSIONER_ENGINE", "demo")
    assert find_bundle() == fetched
    assert "FUSIONER_ENGINE names it: demo" in locate_bundle().why
    assert find_bundle("named") == Path("named")


def test_of_fetched_bundles_the_first_by_name_is_meant_and_the_demonstration_last(empty: Path) -> None:
    places = {name: a_bundle(empty.parent / "data/fusioner-rt/bundles" / name) for name in ("zebra", "demo", "cats")}
    found = locate_bundle()
    assert found.folder == places["cats"]
    assert "there are also zebra, demo, by their names" in found.why
    for name, place in places.items():
        assert find_bundle(name) == place


def test_a_folder_with_one_bundle_in_it_stands_for_that(empty: Path) -> None:
    bundle = a_bundle(Path("models/demo/bundle"))
    (bundle.parent / "checkpoint").mkdir()
    a_bundle(bundle.parent / ".hidden")
    for given in ("models/demo", Path("models/demo"), "models/demo/", bundle, bundle / MANIFEST):
        assert find_bundle(given) == bundle
    assert "the one bundle in models/demo" in locate_bundle("models/demo").why
    assert find_bundle("models") == Path("models")  # two levels are not searched
    a_bundle(bundle.parent / "another")
    with pytest.raises(BundleMissing, match="several bundles: another, bundle; name one, such as models/demo/another"):
        find_bundle("models/demo")
    assert find_bundle(bundle) == bundle


def test_a_name_is_a_path_where_there_is_such_a_path(empty: Path) -> None:
    fetched = a_bundle(empty.parent / "data/fusioner-rt/bundles/demo")
    assert find_bundle("demo") == fetched
    assert find_bundle("./demo") == Path("demo")
    Path("demo").mkdir()
    assert find_bundle("demo") == Path("demo")


@pytest.mark.parametrize("name", ["", "x" * 5000, "nul\0", "a/b/../c", "https://host/demo.zip"])
def test_names_of_no_folder_are_errors_of_one_line(name: str, empty: Path) -> None:
    with pytest.raises(FusionerError) as caught:
        Bundle.open(find_bundle(name))
    assert "\n" not in str(caught.value)


def test_messages_name_the_scripts_of_a_checkout_only_where_they_are(
    empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> str:
        assert main(["info", *arguments]) == BundleMissing.exit_code
        return capsys.readouterr().err

    a_bundle(empty.parent / "data/fusioner-rt/bundles/demo").rename(empty.parent / "data/fusioner-rt/bundles/mine")
    assert "(there are: mine)" in said("--engine", "absent")
    (empty.parent / "data").rename(empty.parent / "gone")
    (empty / "checkpoint").mkdir()
    (empty / "checkpoint/config.json").touch()
    (empty / "a.tar.gz").touch()
    for arguments in ((), ("--engine", "absent"), ("--engine", str(empty))):
        message = said(*arguments)
        assert "python export" not in message
        for cure in ("--engine DIR", "pip install ./models/demo", "fusioner-rt fetch URL"):
            assert cure in message
    assert "fusioner-rt fetch a.tar.gz" in said("--engine", "a.tar.gz")
    elsewhere = f"in a checkout of fusioner-rt, python export/build_engine.py --checkpoint {empty}/checkpoint --fp16"
    assert elsewhere in said("--engine", "checkpoint")
    assert build_command(Path("mine")).startswith("in a checkout of fusioner-rt, python export/build_engine.py")
    assert build_command(Path("mine")).endswith(f" --out {empty}/mine")
    assert plans_command(Path("mine"), "tensorrt").startswith(
        f"in a checkout of fusioner-rt, python export/add_plans.py {empty}/"
    )
    make_checkout(empty)
    assert "or build it: python export/build_engine.py --fp16 --out engines/demo" in said()
    assert plans_command(Path("mine"), "tensorrt") == "python export/add_plans.py mine --backend tensorrt"


def test_a_folder_that_the_environment_names_in_vain_is_called_so(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSIONER_ENGINE", "gone")
    with pytest.raises(BundleMissing, match=r"gone: there is no such folder.*change or unset FUSIONER_ENGINE"):
        Session()


def test_a_damaged_bundle_that_was_fetched_is_fetched_again(tiny_bundle: Path, empty: Path) -> None:
    folder = shutil.copytree(tiny_bundle, empty.parent / "data/fusioner-rt/bundles/tiny")
    (folder / "text.onnx").write_bytes(b"")
    with pytest.raises(BundleFileAltered, match="fetch it again: fusioner-rt fetch URL --force"):
        Bundle.open(find_bundle("tiny"))


def test_a_manifest_of_lists_in_lists_without_end_is_no_json(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("[" * 100_000)
    refused(tmp_path, ManifestInvalid, "is not JSON")
