import io
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_pictures import encoded, png_header, scene
from PIL import Image

import fusioner_rt
from fusioner_rt import Session
from fusioner_rt.atomic_files import writable_place
from fusioner_rt.bundle import write_manifest
from fusioner_rt.cli import main
from fusioner_rt.errors import OutputUnwritable
from fusioner_rt.ladder import CHOICES
from fusioner_rt.manifest import MANIFEST


@pytest.fixture(autouse=True)
def no_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(scene(61, 93)).save(path, quality=95)
    return path


Fails = Callable[..., str]


@pytest.fixture
def fails(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run `segment` and expect failure: returns the single line on stderr."""

    def run(picture: object, code: int, words: str = "cat, sofa", engine: Path = tiny_bundle, **options: object) -> str:
        extra = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        out = [] if "out" in options else ["--out", str(tmp_path / "out")]
        assert main(["segment", str(picture), "--words", words, "--engine", str(engine), *out, *extra]) == code
        said = capsys.readouterr()
        assert said.out == ""
        (line,) = said.err.splitlines()
        assert line.startswith("fusioner-rt: ")
        return line

    return run


def test_a_picture_becomes_one_line_and_an_overlay(
    tiny_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    command = ["segment", str(photo), "--words", "cat, sofa", "--engine", str(tiny_bundle), "--out", str(out)]
    assert main([*command, "--labels", "--threshold", "0"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    (line,) = said.out.splitlines()
    assert line.startswith(f"{photo}: ")
    assert "%" in line
    assert str(out / "photo.overlay.jpg") in line
    assert Image.open(out / "photo.overlay.jpg").width >= 93
    labels = np.asarray(Image.open(out / "photo.labels.png"))
    assert labels.shape == (61, 93)
    assert set(np.unique(labels)) <= {1, 2}
    assert main([*command, "--threshold", "1"]) == 0
    assert "none of the words" in capsys.readouterr().out


def test_the_overlay_is_drawn_as_asked(
    tiny_bundle: Path, photo: Path, tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(scene(330, 400)).save(photo)
    command = ["segment", str(photo), "--words", "cat, sofa", "--engine", str(tiny_bundle), "--out", str(tmp_path)]
    sizes, drawn = [], []
    for asked in ([], ["--legend", "none"], ["--legend", "right"], ["--legend", "none", "--alpha", "0"]):
        assert main([*command, "--threshold", "0", *asked]) == 0
        image = Image.open(tmp_path / "photo.overlay.jpg")
        sizes.append(image.size)
        drawn.append(np.asarray(image))
    assert sizes[1] == sizes[3] == (400, 330)
    assert sizes[0][0] == 400 < sizes[2][0]
    assert sizes[0][1] > 330 == sizes[2][1]
    assert not np.array_equal(drawn[1], drawn[3])
    assert main([*command, "--threshold", "0", "--legend", "none", "--outlines"]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "photo.overlay.jpg")), drawn[3])
    capsys.readouterr()
    assert "--alpha is 1.5; give 0 to 1" in fails(photo, 2, alpha=1.5)


def test_a_folder_is_done_but_for_its_bad_files(
    tiny_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for copy in ("a.jpg", "deeper/a.jpg", "z.png"):
        shutil.copy(photo, folder / copy)
    (folder / "broken.jpg").write_text("text")
    (folder / "readme.txt").write_text("not offered as a picture")
    (folder / ".hidden.jpg").write_text("nor is this")
    coco = tmp_path / "all.json"
    command = ["segment", str(folder), "--words", "cat, sofa", "--engine", str(tiny_bundle), "--json", str(coco)]
    command += ["--out", str(folder / "deeper" / ".." / "results"), "--threshold", "0", "--size", "20x30"]
    for _ in range(2):  # the second time, the results of the first lie in the folder and are not taken for pictures
        assert main(command) == 11
        said = capsys.readouterr()
        assert [line.split(":")[0] for line in said.out.splitlines()] == [
            str(folder / name) for name in ("a.jpg", "deeper/a.jpg", "z.png")
        ]
        broken, summary = said.err.splitlines()
        assert "broken.jpg" in broken
        assert "1 of 4 pictures failed" in summary
    assert sorted(path.name for path in (folder / "results").iterdir()) == [
        "a-2.overlay.jpg", "a.overlay.jpg", "z.overlay.jpg",
    ]  # fmt: skip
    whole = json.loads(coco.read_text())
    assert [image["file_name"] for image in whole["images"]] == [
        str(folder / name) for name in ("a.jpg", "deeper/a.jpg", "z.png")
    ]
    assert {(image["width"], image["height"]) for image in whole["images"]} == {(30, 20)}
    identifiers = [entry["id"] for entry in whole["annotations"]]
    assert identifiers == list(range(1, len(identifiers) + 1))
    assert len(identifiers) >= 3


def test_polygons_and_label_files_for_other_tools(
    tiny_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = photo.parent, tmp_path / "out"
    (folder / "deeper").mkdir()
    shutil.copy(photo, folder / "deeper")
    command = ["segment", str(folder), "--words", "cat, sofa", "--engine", str(tiny_bundle), "--threshold", "0"]
    command += ["--out", str(out), "--yolo", "--labelme", "--labels", "--json", str(out / "masks.json")]
    assert main([*command, "--instances", "--polygons", "1.5"]) == 0
    assert capsys.readouterr().out.count("labels/photo") == 2
    with Session(tiny_bundle, cache=False) as session:
        results = [session.segment(path, "cat, sofa", threshold=0) for path in sorted(folder.rglob("photo.jpg"))]
    wanted = fusioner_rt.to_coco(results, polygons=True, tolerance=1.5, instances=True)
    assert json.loads((out / "masks.json").read_text()) == wanted
    for name, result in zip(("photo", "photo-2"), results, strict=True):
        for file, ending in ((out / f"{name}.labelme.json", ".labelme.json"), (out / "labels" / f"{name}.txt", ".txt")):
            assert file.read_bytes() == result.save(out / f"own{ending}", tolerance=1.5).read_bytes()
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{name}.labels.png")), result.labels)
    assert '0: "cat"' in (out / "data.yaml").read_text()
    assert main([*command, "--polygons"]) == 0
    assert json.loads((out / "masks.json").read_text()) == fusioner_rt.to_coco(results, polygons=True)


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        (["--polygons"], "add --json FILE, --labelme or --yolo"),
        (["--instances"], "add --json FILE"),
        (["--polygons", "-1", "--yolo"], "give a number of pixels"),
    ],
)
def test_options_of_polygons_that_mean_nothing(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], cure: str
) -> None:
    command = ["segment", str(photo), "--words", "cat", "--out", str(tmp_path / "out"), *options]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert cure in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inside", [True, False])
def test_results_may_lie_beside_the_pictures(
    tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    folder = photo.parent
    shutil.copy(photo, folder / "a.overlaid.jpg")
    if inside:
        monkeypatch.chdir(folder)
        folder = Path(".")
    for _ in range(2):  # the second time, its own results lie beside the pictures
        command = ["segment", str(folder), "--words", "cat", "--engine", str(tiny_bundle), "--out", str(folder)]
        assert main([*command, "--labels"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(":")[0] for line in lines] == [
            str(folder / name) for name in ("a.overlaid.jpg", "photo.jpg")
        ]
    shutil.copy(photo, photo.parent / "results-of-others.overlay.jpg")
    command = ["segment", str(folder), "--words", "cat", "--engine", str(tiny_bundle), "--out", str(folder / "other")]
    assert main(command) == 0
    assert "results-of-others" in capsys.readouterr().out


def test_files_whose_suffix_says_picture_fail_each_where_they_cannot_be_read(
    tiny_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pillow_heif", "pi_heif"):
        monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)  # type: ignore[arg-type]
    for name, content in (("b.heic", b"\0\0\0\x18ftypheic" + bytes(16)), ("c.NEF", b"II*\0"), ("d.txt", b"")):
        (tmp_path / name).write_bytes(content)
    out = ["--out", str(tmp_path / "out")]
    assert main(["segment", str(tmp_path), "--words", "cat", "--engine", str(tiny_bundle), *out]) == 11
    said = capsys.readouterr()
    assert said.out.startswith(f"{photo}: ")
    heic, raw, summary = said.err.splitlines()
    assert f"{tmp_path / 'b.heic'}: this is HEIC" in heic
    assert "pip install pillow-heif" in heic
    assert f"{tmp_path / 'c.NEF'}: this is a camera's raw file" in raw
    assert "2 of 3 pictures failed" in summary


def test_of_an_animated_picture_a_note_says_that_its_first_frame_is_taken(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Image.fromarray(scene(20, 30, seed)) for seed in range(3)]
    path = tmp_path / "dance.gif"
    path.write_bytes(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    for _ in range(2):
        command = ["segment", str(path), "--words", "cat", "--engine", str(tiny_bundle), "--out", str(tmp_path / "out")]
        assert main(command) == 0
        assert capsys.readouterr().err.splitlines() == [
            f"fusioner-rt: note: {path}: holds several frames or pages; the first one is taken"
        ]


@pytest.mark.parametrize("before", [True, False])
def test_a_picture_from_stdin_is_called_stdin(
    tiny_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, before: bool,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    names = ["-", "--words", "cat"] if before else ["--words", "cat", "-"]
    with photo.open() as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        coco = ["--json", str(tmp_path / "all.json"), "--threshold", "0"]
        assert main(["segment", *names, "--engine", str(tiny_bundle), "--out", str(out), *coco]) == 0
    assert capsys.readouterr().out.startswith("stdin: ")
    assert [path.name for path in out.iterdir()] == ["stdin.overlay.jpg"]
    assert json.loads((tmp_path / "all.json").read_text())["images"][0]["file_name"] == "stdin"


@pytest.mark.parametrize("before", [True, False])
def test_a_pattern_in_quotes_names_what_the_shell_would_have(
    tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str], before: bool
) -> None:
    (photo.parent / "deeper").mkdir()
    shutil.copy(photo, photo.parent / "deeper" / "other.jpg")
    pattern = str(photo.parent / "**" / "*.jpg")
    names = [pattern, "--words", "cat"] if before else ["--words", "cat", pattern]
    assert main(["segment", *names, "--engine", str(tiny_bundle), "--out", str(photo.parent / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(photo.parent / "deeper" / "other.jpg"), str(photo)]


def test_an_overlay_that_jpeg_cannot_hold_is_png_and_stops_no_run(
    tiny_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(scene(65_501, 1)).save(tmp_path / "a-tall.png")
    pictures = [str(tmp_path / "a-tall.png"), str(photo)]
    out = tmp_path / "out"
    assert main(["segment", *pictures, "--words", "cat", "--engine", str(tiny_bundle), "--out", str(out)]) == 0
    tall, other = capsys.readouterr().out.splitlines()
    assert str(out / "a-tall.overlay.png") in tall
    assert str(out / "photo.overlay.jpg") in other
    assert sorted(path.name for path in out.iterdir()) == ["a-tall.overlay.png", "photo.overlay.jpg"]


def test_failures_of_different_kinds_have_a_code_of_their_own(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.jpg").write_text("text")
    pictures = [str(tmp_path / "text.jpg"), str(tmp_path / "absent.jpg")]
    out = ["--out", str(tmp_path / "out")]
    assert main(["segment", *pictures, "--words", "cat", "--engine", str(tiny_bundle), *out]) == 60
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_bad_pictures(fails: Fails, tmp_path: Path, photo: Path) -> None:
    assert "check the path" in fails(tmp_path / "absent.jpg", 10)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    assert "fetch or export it again" in fails(cut, 11)
    text = tmp_path / "text.jpg"
    text.write_text("text")
    assert "convert it" in fails(text, 11)
    huge = tmp_path / "huge.png"
    huge.write_bytes(png_header(60_000, 60_000))
    assert "shrink" in fails(huge, 12)
    (tmp_path / "empty").mkdir()
    assert "no pictures in this folder" in fails(tmp_path / "empty", 2)
    assert "nothing is fetched from the network" in fails("https://example.org/a.jpg", 10)
    assert "no picture has such a name" in fails(tmp_path / "*.webp", 2)
    floats = tmp_path / "floats.tiff"
    floats.write_bytes(encoded(Image.new("F", (2, 2)), "TIFF"))
    assert "convert it to 8-bit RGB" in fails(floats, 11)


@pytest.mark.parametrize(
    ("words", "says"),
    [("", "give at least one"), ("cat,,sofa", "remove it"), ("cat, sofa, cat", "give each word once")],
)
def test_bad_words(fails: Fails, photo: Path, words: str, says: str) -> None:
    assert says in fails(photo, 20, words=words)


def test_too_many_words(fails: Fails, photo: Path, changed_bundle: Callable[..., Path]) -> None:
    folder = changed_bundle(profiles={"words": {"min": 1, "opt": 1, "max": 2}})
    assert f"--max-words 3 --max-batch 4 --out {folder}" in fails(photo, 21, words="a, b, c", engine=folder)


def test_bad_bundles(fails: Fails, photo: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    build, limits = "python export/build_engine.py --checkpoint CHECKPOINT", "--sizes .* --max-words 64 --max-batch 4"
    unknown = f"{build} --fp16 --out"
    engine = shutil.copytree(tiny_bundle, tmp_path / "engine")
    cure = f"{build} {limits} --out {engine}"
    assert unknown in fails(photo, 30, engine=tmp_path / "nowhere")

    graph = engine / "image_fusion.onnx"
    content = bytearray(graph.read_bytes())
    graph.unlink()
    line = fails(photo, 33, engine=engine)
    assert "image_fusion.onnx" in line
    assert re.search(cure, line)

    content[len(content) // 3] ^= 64
    graph.write_bytes(content)
    line = fails(photo, 34, engine=engine)
    assert "image_fusion.onnx" in line
    assert re.search(cure, line)

    manifest = json.loads((engine / MANIFEST).read_text())
    (engine / MANIFEST).write_text(json.dumps({**manifest, "format_version": 2}))
    assert "update fusioner-rt" in fails(photo, 32, engine=engine)
    (engine / MANIFEST).write_text("{")
    assert unknown in fails(photo, 31, engine=engine)


def test_outputs_that_cannot_be_written(fails: Fails, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written (it is a file); choose a folder" in fails(photo, 50, out=tmp_path / "file")
    assert "choose a folder" in fails(photo, 50, out=tmp_path / "file" / "below")
    assert "choose a folder" in fails(photo, 50, out=tmp_path, json=tmp_path / "file" / "all.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_annotations_go_through_a_pipe_and_a_link(
    tiny_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, link, target = (tmp_path / name for name in ("pipe", "link.json", "target.json"))
    os.mkfifo(pipe)
    link.symlink_to(target)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    for place in (pipe, link):
        command = ["segment", str(photo), "--words", "cat", "--engine", str(tiny_bundle), "--out", str(tmp_path)]
        assert main([*command, "--json", str(place)]) == 0
    reader.join(10)
    assert read == [target.read_text()]
    assert pipe.is_fifo()
    assert link.is_symlink()


def test_a_device_is_written_to_wherever_its_folder_may_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: Path) -> Path:
        raise AssertionError

    monkeypatch.setattr("fusioner_rt.atomic_files.writable_folder", never)
    assert writable_place(Path(os.devnull)) == Path(os.devnull)


def test_bad_options(fails: Fails, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "within 0..1" in fails(photo, 2, threshold=3)
    assert "within 0..1" in fails(photo, 2, threshold="nan")
    assert "480x640" in fails(photo, 2, size="large")
    assert "at least 1" in fails(photo, 2, size="0x5")
    assert "holds no TensorRT plan" in fails(photo, 37, backend="tensorrt")
    with pytest.raises(SystemExit) as stop:
        main(["segment", str(photo)])
    assert stop.value.code == 2
    assert "--words" in capsys.readouterr().err


def test_info_tells_machine_backend_and_bundle(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--engine", str(tiny_bundle)]) == 0
    said = capsys.readouterr().out
    for part in ("onnxruntime-cpu", "requested", "why", str(tiny_bundle), "words", "batch"):
        assert part in said
    assert main(["info", "--engine", str(tiny_bundle), "--json", "--backend", "onnxruntime-cpu"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["backend"]["requested"] == facts["backend"]["effective"] == "onnxruntime-cpu"
    assert facts["backend"]["passed_over"] == {}
    assert facts["bundle"]["kernels"] == "sm_80 (float32)"
    assert facts["bundle"]["plans"] == []


def test_info_tells_why_each_better_backend_was_passed_over_a_line_each(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", "--engine", str(tiny_bundle), "--json"]) == 0
    passed_over = json.loads(capsys.readouterr().out)["backend"]["passed_over"]
    assert list(passed_over) == ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"]
    assert all("; " in why and "\n" not in why for why in passed_over.values())
    assert main(["info", "--engine", str(tiny_bundle)]) == 0
    said = capsys.readouterr().out
    assert "  passed over  tensorrt: " in said
    for name, why in passed_over.items():
        assert f" {name}: {why}\n" in said


def test_info_lists_the_plans(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "planned"
    shutil.copytree(tiny_bundle, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    for number, (flavour, version, capability) in enumerate(
        (("tensorrt", "11.4.0.106", "8.9"), ("tensorrt-rtx", "1.7.1.116", "8.0+"))
    ):
        (folder / f"{number}.plan").touch()
        manifest["engines"].append(
            {"file": f"{number}.plan", "graph": "text", "flavour": flavour, "version": version,
             "compute_capability": capability, "version_compatible": False, "precision": "fp16"}
        )  # fmt: skip
    write_manifest(folder, manifest)
    assert main(["info", "--engine", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "plans        0.plan, TensorRT 11.4.0.106, for 8.9\n" in said
    assert "             1.plan, TensorRT-RTX 1.7.1.116, for 8.0, 8.6, 8.9, 12.0, 12.1\n" in said
    assert main(["info", "--engine", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["bundle"]["plans"]
    every = ("file", "graph", "flavour", "version", "compute_capability")
    assert told == [{name: entry[name] for name in every} for entry in manifest["engines"]]


@pytest.mark.parametrize("command", ["segment", "info"])
def test_help_names_every_backend(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in CHOICES)


def test_info_tells_for_which_gpus_the_bundle_has_kernels(
    changed_bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    kernels = {"abi": "text.onnx", "features": ["float16", "float32"], "targets": ["sm_86", "sm_89"]}
    assert main(["info", "--engine", str(changed_bundle(kernels=kernels))]) == 0
    assert "kernels      sm_86, sm_89 (float16, float32)" in capsys.readouterr().out


def test_info_says_that_the_cache_cannot_be_written(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for place, says in ((tmp_path / "cache", "none"), (tmp_path / "file" / "cache", "cannot be written")):
        assert main(["info", "--engine", str(tiny_bundle), "--cache", str(place), "--json"]) == 0
        assert says in json.loads(capsys.readouterr().out)["cache"]["notes"]


def test_words_are_listed_and_cleared(
    tiny_bundle: Path, photo: Path, tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main(["segment", str(photo), "--words", "cat, red sofa", "--engine", str(tiny_bundle), *out]) == 0
    capsys.readouterr()
    assert main(["words"]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("cat  (")
    assert second.startswith("red sofa  (")
    assert last.startswith("2 words")
    assert main(["words", "--clear"]) == 0
    assert capsys.readouterr().out.startswith("2 cached words removed")
    assert main(["words"]) == 0
    assert capsys.readouterr().out.startswith("0 words")


def test_a_cache_that_cannot_be_read_is_one_line(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", denied)
    assert main(["words"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{own_cache}: the cache folder cannot be read (Permission denied)" in line
    assert "--cache DIR" in line


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_a_file_name_that_is_no_text_is_printed_with_its_bytes_escaped(
    tiny_bundle: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    strange = os.fsdecode(b"caf\xe9.jpg")
    shutil.copy(photo, folder / strange)
    (folder / os.fsdecode(b"broken\xe9.jpg")).write_text("text")
    said, complained = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", said)
    monkeypatch.setattr(sys, "stderr", complained)
    out = tmp_path / "out"
    assert main(["segment", str(folder), "--words", "cat", "--engine", str(tiny_bundle), "--out", str(out)]) == 11
    for stream, name in ((said, b"caf\\udce9.jpg"), (complained, b"broken\\udce9.jpg")):
        stream.flush()
        assert name in stream.buffer.getvalue()  # type: ignore[attr-defined]
    done = os.fsdecode(b"caf\xe9.overlay.jpg")
    assert {path.name for path in out.iterdir()} == {done, "segment.partial"}  # the broken one may be tried again


def test_an_unwritable_cache_is_a_note(
    tiny_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    places = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "file" / "cache")]
    assert main(["segment", str(photo), "--words", "cat", "--engine", str(tiny_bundle), *places]) == 0
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("fusioner-rt: note: ")
    assert "FUSIONER_CACHE" in note


@pytest.mark.parametrize("command", [[], ["segment"]])
def test_help_teaches_by_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert 'fusioner-rt segment photo.jpg --words "cat, sofa"' in capsys.readouterr().out


def test_a_run_without_a_result_keeps_the_annotations_of_an_earlier_one(
    tiny_bundle: Path, photo: Path, tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks.json"
    command = ["segment", str(photo), "--words", "cat", "--engine", str(tiny_bundle), "--out", str(tmp_path / "out")]
    assert main([*command, "--json", str(masks)]) == 0
    capsys.readouterr()
    before = masks.read_bytes()
    fails(tmp_path / "nowhere.jpg", 10, json=masks)
    assert masks.read_bytes() == before


def test_a_folder_given_for_the_annotations_is_refused_before_any_work(
    photo: Path, tmp_path: Path, fails: Fails
) -> None:
    assert "is a folder; name a file in it" in fails(photo, 2, json=tmp_path, out=tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_results_replace_nothing_but_results(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, labels = tmp_path / "photo.jpg", tmp_path / "labels"
    Image.fromarray(scene(20, 30)).save(photo)
    before = photo.read_bytes()
    command = ["segment", str(photo), "--words", "cat", "--engine", str(tiny_bundle), "--out", str(tmp_path)]
    assert main([*command, "--json", str(photo)]) == 2
    assert "is one of the pictures" in capsys.readouterr().err
    assert photo.read_bytes() == before
    labels.mkdir()
    (labels / "photo.txt").write_text("0 0 0 1 0 1 1")
    assert main([*command, "--yolo"]) == OutputUnwritable.exit_code
    assert (labels / "photo.txt").read_text() == "0 0 0 1 0 1 1"
    (labels / "photo.txt").unlink()
    for _ in range(2):  # a second run replaces the first one's
        assert main([*command, "--yolo"]) == 0


def test_pictures_whose_names_differ_in_capitals_alone_have_results_of_their_own(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    for name in ("x.jpg", "X.jpg"):
        Image.fromarray(scene(20, 30)).save(tmp_path / name)
    out = tmp_path / "out"
    assert main(["segment", str(tmp_path), "--words", "cat", "--engine", str(tiny_bundle), "--out", str(out)]) == 0
    assert len({path.name.casefold() for path in out.iterdir()}) == 2
