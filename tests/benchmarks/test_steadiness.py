"""The benchmark of steadiness: its clips, its rows, and the page that has the record's tables."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from documented import blocks_of
from PIL import Image

from benchmarks import command, machine, steadiness
from fusioner_rt.errors import UsageError

PAGE = (machine.ROOT / "docs/steadiness.md").read_text()
RECORD = machine.ROOT / "docs/records/steadiness.jsonl"
PICTURES = ("cat", "coffee")


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """Two sequences of two frames, of docs/pictures, each with a disc as its object and a stripe that nobody knows."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classes.txt").write_text("background\ncat\ncup\n")
    rows, columns = np.mgrid[:72, :128]
    for number, name in enumerate(PICTURES, start=1):
        picture = Image.open(machine.ROOT / f"docs/pictures/{name}.jpg").resize((128, 72))
        for frame, shift in (("00000", 0), ("00012", 6)):
            picture.save(tmp_path / f"images/{name}_{frame}.jpg")
            mask = np.where((rows - 36) ** 2 + (columns - 60 - shift) ** 2 < 400, number, 0).astype(np.uint8)
            mask[:, :3] = steadiness.IGNORED
            Image.fromarray(mask).save(tmp_path / f"masks/{name}_{frame}.png")
    return tmp_path


def test_sequences_are_read_with_their_class_and_their_times(davis: Path) -> None:
    cat, coffee = steadiness.sequences(davis)
    assert (cat.name, cat.word, coffee.word) == ("cat", "cat", "cup")
    seconds, picture, truth = coffee.frame(1)
    assert (seconds, picture.shape, set(np.unique(truth))) == (0.5, (72, 128, 3), {0, 1, steadiness.IGNORED})


@pytest.mark.parametrize("kind", [kind for kind in steadiness.KINDS if kind != "apart"])
def test_masks_move_with_what_they_are_of(davis: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a picture that is its mask, white on black, every frame is its mask, but for the noise and the blur at its edge."""
    monkeypatch.setattr(steadiness, "NOISE", 1.0)
    one, other = steadiness.sequences(davis)
    truth = one.middle[2]
    white = (truth == 1).astype(np.uint8)[..., None].repeat(3, axis=2) * 255
    monkeypatch.setattr(steadiness.Sequence, "middle", (0.0, white, truth))
    frames = list(steadiness.clip(kind, one, other, 0, 7))
    assert [seconds for seconds, _, _ in frames] == [index / 24 for index in range(7)]
    for _, picture, mask in frames:
        assert picture.shape == (60, 106, 3)
        if kind != "object":  # whose background is white in the middle
            assert ((picture[..., 1] > 127) != (mask == 1)).mean() < 0.01
    moved = {mask.tobytes() for _, _, mask in frames}
    assert len(moved) == (1 if kind == "still" else 7 if kind in ("pan", "object") else len(moved))
    again = steadiness.clip(kind, one, other, 0, 7)
    assert all(np.array_equal(first[1], second[1]) for first, second in zip(frames, again, strict=True))


def test_a_row_per_kind_and_amount_and_one_of_the_cost(
    davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "steadiness.jsonl"
    bundle = str(machine.ROOT / "models/demo/bundle")
    assert steadiness.main([str(davis), "--engine", bundle, "--frames", "3", "--json", str(record)]) == 0
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(row["clip"], row.get("amount")) for row in rows] == [
        *[(kind, amount) for kind in steadiness.KINDS for amount in steadiness.AMOUNTS],
        ("cost", None),
    ]
    for row in rows[:-1]:
        assert row["clips"] == 2
        assert 0 <= row["iou"] <= 100
        assert row["flips"] >= 0
    apart = rows[0]
    assert apart["true_flips"] == pytest.approx(2 * changed(davis), abs=1e-4)  # in half a second
    assert {"machine", "commit", "date", "onnxruntime", "numpy"} <= rows[-1].keys()
    assert steadiness.main(["--from", str(record)]) == 0
    assert capsys.readouterr().out == printed


def changed(davis: Path) -> float:
    first, second = (np.asarray(Image.open(davis / f"masks/cat_{frame}.png")) for frame in ("00000", "00012"))
    return float((first != second).mean())


def test_what_is_no_folder_of_frames_is_refused(
    davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (davis / "masks").iterdir():
        path.unlink()
    for folder, said in ((davis, "no sequence of two frames"), (tmp_path / "none", "no classes.txt")):
        assert steadiness.main([str(folder)]) == UsageError.exit_code
        assert said in capsys.readouterr().err
    for wrong in ([], [str(davis), "--frames", "1"]):
        with pytest.raises(SystemExit) as stopped:
            steadiness.main(wrong)
        assert stopped.value.code == UsageError.exit_code


def test_the_page_has_the_records_tables_and_the_command_that_makes_them() -> None:
    rows = command.read(RECORD, "steadiness")
    assert {row["clip"] for row in rows} == {*steadiness.KINDS, "cost"}
    assert steadiness.table(rows) in PAGE
    (line,) = [
        line for block in blocks_of(PAGE, "sh") for line in block.splitlines() if "benchmarks.steadiness" in line
    ]
    assert shlex.split(line)[:3] == ["python", "-m", "benchmarks.steadiness"]


def test_at_the_recommended_amount_labels_are_steadier_and_no_worse() -> None:
    """What docs/steadiness.md says of half."""
    by = {(row["clip"], row["amount"]): row for row in command.read(RECORD, "steadiness") if row["clip"] != "cost"}
    for kind in steadiness.KINDS:
        off, on = by[kind, 0.0], by[kind, 0.5]
        assert on["flips"] < off["flips"]
        assert on["iou"] > off["iou"] - 0.1
    assert 15 * by["still", 0.5]["flips"] < by["still", 0.0]["flips"]
