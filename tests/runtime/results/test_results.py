import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_pictures import scene
from PIL import Image

from fusioner_rt import Segmentation
from fusioner_rt.atomic_files import write_atomically
from fusioner_rt.errors import OutputUnwritable, UsageError
from fusioner_rt.results import rle


def result(height: int, width: int, words: int, seed: int = 0, absent: int = 0) -> Segmentation:
    """Random blocks of labels; the last `absent` words have no pixels."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, words - absent + 1, (-(-height // 4), -(-width // 4)))
    labels = np.kron(coarse, np.ones((4, 4), int))[:height, :width].astype(np.uint16)
    confidence = random.random((height, width), np.float32)
    names = tuple(f"word {number}" for number in range(1, words + 1))
    return Segmentation(names, labels, confidence, scene(height, width), {"total": 1.0}, 0.5, "joint")


def decompress(text: str) -> list[int]:
    """The runs behind `rle.compress`."""
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        group = ord(character) - 48
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value, shift = 0, 0
    return counts


def mask_of(counts: list[int], height: int, width: int) -> np.ndarray:
    """The (H, W) bool mask behind `rle.run_lengths`."""
    assert sum(counts) == height * width
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape((height, width), order="F")


sizes = st.integers(1, 24)


@given(sizes, sizes, st.integers(1, 5), st.integers(0, 99))
@settings(deadline=None)
def test_masks_scores_shares_and_coco_tell_one_story(height: int, width: int, words: int, seed: int) -> None:
    found = result(height, width, words, seed, absent=seed % 2)
    assert found.masks.shape == (words, height, width)
    assert found.masks.dtype == bool
    for k in range(words):
        mask = found.labels == k + 1
        np.testing.assert_array_equal(found.masks[k], mask)
        assert found.shares[k] == mask.mean()
        assert found.scores[k] == pytest.approx(found.confidence[mask].mean() if mask.any() else 0, abs=1e-6)

    for compressed in (False, True):
        annotations = found.to_coco(image_id=7, first_id=3, compressed=compressed)
        assert [entry["category_id"] for entry in annotations] == (np.flatnonzero(found.shares) + 1).tolist()
        assert [entry["id"] for entry in annotations] == list(range(3, 3 + len(annotations)))
        for entry in annotations:
            counts = entry["segmentation"]["counts"]
            mask = mask_of(decompress(counts) if compressed else counts, *entry["segmentation"]["size"])
            np.testing.assert_array_equal(mask, found.masks[entry["category_id"] - 1])
            x, y, w, h = entry["bbox"]
            assert mask[y : y + h, x : x + w].sum() == mask.sum() == entry["area"]
            assert mask[y].any()
            assert mask[:, x].any()
            assert mask[y + h - 1].any()
            assert mask[:, x + w - 1].any()
            assert entry["category"] == found.words[entry["category_id"] - 1]
            assert entry["image_id"] == 7
        json.dumps(annotations)


@pytest.mark.parametrize(
    ("name", "form"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP"), ("a.overlay.png", "PNG")]
)
def test_overlays_are_written_by_name(tmp_path: Path, name: str, form: str) -> None:
    found = result(330, 400, 3)
    image = Image.open(found.save(tmp_path / name))
    assert image.format == form
    assert image.size == found.overlay().size


def test_arrays_read_back_without_pickle(tmp_path: Path) -> None:
    found = result(20, 30, 3)
    with np.load(found.save(tmp_path / "a.npz"), allow_pickle=False) as arrays:
        assert arrays["words"].tolist() == list(found.words)
        for name in ("labels", "confidence", "scores"):
            np.testing.assert_array_equal(arrays[name], getattr(found, name))
        assert "probabilities" not in arrays


def test_names_that_do_not_say_what_to_write(tmp_path: Path) -> None:
    for name in ("mask", "mask.yaml", "mask.pkl"):
        with pytest.raises(UsageError, match=r"\.npz"):
            result(4, 4, 1).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.json", "a.npz", "a.txt", "a.labelme.json"])
def test_folders_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(OutputUnwritable, match="choose a folder"):
            result(4, 4, 1).save(folder / name)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")

    def fail(stream: object) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_jpeg_cannot_be_that_tall(tmp_path: Path) -> None:
    with pytest.raises(OutputUnwritable, match=r"\.overlay\.png"):
        result(65_501, 1, 1).save(tmp_path / "a.jpg")


def test_overlays_at_another_size_than_the_pictures_and_with_any_letters() -> None:
    found = result(350, 420, 3)
    words = ("Straße", "猫", "a very long phrase " * 20)
    other = Segmentation(words, found.labels, found.confidence, scene(61, 93), {}, 0.5, "joint")
    assert other.overlay().width == 420


def test_a_result_describes_itself() -> None:
    assert repr(result(8, 4, 2, seed=1)).startswith("<Segmentation 4x8: ")


masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(masks)
def test_runs_give_the_mask_back(mask: np.ndarray) -> None:
    counts = rle.run_lengths(mask)
    np.testing.assert_array_equal(mask_of(counts, *mask.shape), mask)
    assert sum(counts[1::2]) == mask.sum()
    assert all(counts[1:])  # only the first run of zeros may be empty


@given(st.lists(st.integers(0, 2**40), max_size=40))
def test_text_gives_the_runs_back(counts: list[int]) -> None:
    assert decompress(rle.compress(counts)) == counts


def test_runs_go_down_the_columns_and_start_with_zeros() -> None:
    assert rle.run_lengths(np.array([[0, 1, 1], [0, 0, 1]], bool)) == [2, 1, 1, 2]
    assert rle.run_lengths(np.array([[1, 0]], bool)) == [0, 1, 1]


def test_text_is_cocos() -> None:
    # Worked by hand from the format: five bits a character from '0', the sixth says "more", from the fourth run on
    # the difference to two before. 16 needs two characters because its fifth bit would read as a minus sign.
    assert rle.compress([1, 3]) == "13"
    assert rle.compress([16]) == "`0"
    assert rle.compress([6, 1, 40, 4, 5, 4]) == "61X13mN0"
