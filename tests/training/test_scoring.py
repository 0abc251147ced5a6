from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fusioner_rt
from kernels import reference
from training import checkpoint, scoring, windows
from training.data import DataError, MaskFolder, PictureMasks
from training.feature_cache import FeatureCache
from training.model import Fusioner

SIZE = tuple[int, int]


@pytest.fixture
def data(shapes: Path) -> MaskFolder:
    return MaskFolder(shapes)


@pytest.fixture
def model(tiny_checkpoint: Path) -> Fusioner:
    return checkpoint.load(tiny_checkpoint)


@pytest.fixture
def vectors(model: Fusioner, data: MaskFolder) -> torch.Tensor:
    return model.word_vectors(data.words)


@pytest.fixture
def cache(model: Fusioner, data: MaskFolder, tmp_path: Path) -> FeatureCache:
    made = FeatureCache(tmp_path / "cache", data, model.image_encoder, "x", model.preprocessing())
    made.fill(data.names("val"), (False,))
    return made


def size_of(data: PictureMasks, name: str) -> SIZE:
    height, width = data.mask(name).shape
    return height, width


def knowing(data: PictureMasks) -> scoring.Predictor:
    """A perfect predictor, except that an absent word gets the lower half of the background."""

    def predict(name: str, asked: list[int], size: SIZE) -> np.ndarray:
        truth = data.mask(name)
        labels = np.zeros(size, np.uint16)
        for n, index in enumerate(asked, 1):
            labels[truth == index] = n
            if not (truth == index).any():
                lower = np.arange(size[0])[:, None] >= size[0] // 2
                labels[(truth == 0) & lower] = n
        return labels

    return predict


def test_all_words_cost_what_known_words_forgive(data: MaskFolder) -> None:
    names, classes = data.names("val"), [1, 2, 3]
    known = scoring.score(knowing(data), data, names, classes)
    everything = scoring.score(knowing(data), data, names, classes, words="all")
    assert known.mean(classes) == 100
    assert everything.mean(classes) < 100
    assert all(everything.iou(index) <= known.iou(index) for index in classes)
    assert (known.pictures == everything.pictures).all(), "a class counts the pictures that show it in both"


def test_known_words_ask_for_present_classes_and_all_words_for_every_one(data: MaskFolder) -> None:
    names = data.names("val")
    asked: dict[str, list[list[int]]] = {"known": [], "all": []}
    for words, seen in asked.items():

        def predict(name: str, indices: list[int], size: SIZE, seen: list[list[int]] = seen) -> np.ndarray:
            seen.append(indices)
            return np.zeros(size, np.uint16)

        scoring.score(predict, data, names, [3, 1], words=words)
    shown = [sorted({1, 3} & set(scoring.present(data.mask(name)))) for name in names]
    assert asked["known"] == [indices for indices in shown if indices]
    assert asked["all"] == [[3, 1]] * len(names)


def test_everything_has_the_recall_of_all_and_the_precision_of_its_share(data: MaskFolder) -> None:
    names = data.names("val")
    result = scoring.score(scoring.everything, data, names, [1, 2, 3], words="all")
    pixels = sum(int((data.mask(name) >= 0).sum()) for name in names)
    for index in (1, 2, 3):
        assert result.recall(index) == 100
        assert result.precision(index) == pytest.approx(100 * result.wanted[index] / pixels)


def test_one_word_is_scored_alike_in_both_modes(
    data: MaskFolder, model: Fusioner, cache: FeatureCache, vectors: torch.Tensor
) -> None:
    joint, alone = (scoring.fusioner(model, cache, vectors, 0.5, mode) for mode in ("joint", "independent"))
    for name in data.names("val"):
        size = size_of(data, name)
        for word in (1, 2, 3):
            assert np.array_equal(joint(name, [word], size), alone(name, [word], size))


def test_independent_mode_picks_the_most_probable_of_words_fused_alone(
    data: MaskFolder, model: Fusioner, cache: FeatureCache, vectors: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 2)  # three words: a full chunk and a rest
    predict = scoring.fusioner(model, cache, vectors, 0.4, "independent")
    for name in data.names("val"):
        size = size_of(data, name)
        with torch.no_grad():
            tokens = cache.tokens([cache.get(name)])
            maps = [reference.score_maps(*model.fuse(tokens, vectors[[i]][None])) for i in (3, 1, 2)]
            alone = [reference.probabilities(*m, size, model.config.temperature)[0, 0].numpy() for m in maps]
        probabilities = np.stack(alone)
        wanted = windows.resolve(probabilities, 0.4)
        found = predict(name, [3, 1, 2], size)
        assert np.array_equal(found[decided(probabilities, 0.4)], wanted[decided(probabilities, 0.4)])
        assert decided(probabilities, 0.4).mean() > 0.99


def decided(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """(H, W) bool: pixels whose label does not depend on float32 rounding."""
    ordered = np.sort(np.concatenate([probabilities, np.zeros((1, *probabilities.shape[1:]))]), axis=0)
    return (ordered[-1] - ordered[-2] > 1e-6) & (abs(ordered[-1] - threshold) > 1e-6)


@pytest.mark.parametrize("mode", ["joint", "independent"])
def test_a_model_with_one_window_labels_as_it_does_the_whole_picture(
    mode: str, data: MaskFolder, model: Fusioner, cache: FeatureCache, vectors: torch.Tensor
) -> None:
    from fusioner_rt.decode_picture import decode

    crops = scoring.fusioner_crops(model, vectors, mode)  # type: ignore[arg-type]
    sliding = scoring.sliding(crops, data, 0.5, scale=1)
    whole = scoring.fusioner(model, cache, vectors, 0.5, mode)  # type: ignore[arg-type]
    for name in data.names("val"):
        size = size_of(data, name)
        probabilities = crops(decode(data.picture(name)), [1, 2, 3])
        sure = decided(probabilities, 0.5)
        assert np.array_equal(sliding(name, [1, 2, 3], size)[sure], windows.resolve(probabilities, 0.5)[sure])
        # The cache rounds features to float16; only labels decided by a thousandth of probability may change.
        rounded = np.sort(np.concatenate([probabilities, np.full((1, *size), 0.5)]), axis=0)
        far = rounded[-1] - rounded[-2] > 5e-3
        assert np.array_equal(sliding(name, [1, 2, 3], size)[far], whole(name, [1, 2, 3], size)[far])
        assert far.any()


@pytest.mark.parametrize("mode", ["joint", "independent"])
def test_a_bundle_with_one_window_labels_as_it_does_the_whole_picture(
    mode: str, data: MaskFolder, tiny_bundle: Path
) -> None:
    with fusioner_rt.Session(tiny_bundle, cache=False) as session:
        crops = scoring.deployed_crops(session, data, mode)  # type: ignore[arg-type]
        sliding = scoring.sliding(crops, data, 0.5, scale=1)
        whole = scoring.deployed(session, data, 0.5, mode)  # type: ignore[arg-type]
        for name in data.names("val"):
            size, asked = size_of(data, name), [2, 3, 1]
            probabilities = session.segment(
                data.picture(name), [data.words[i] for i in asked], mode=mode, probabilities=True
            ).probabilities
            assert probabilities is not None
            sure = decided(probabilities, 0.5)
            assert sure.mean() > 0.99
            assert np.array_equal(sliding(name, asked, size)[sure], whole(name, asked, size)[sure])


def test_a_mask_of_another_size_than_its_picture_is_named(
    data: MaskFolder, model: Fusioner, vectors: torch.Tensor
) -> None:
    name = data.names("val")[0]
    Image.fromarray(np.ones((5, 7), np.uint8)).save(data.mask_file(name))
    sliding = scoring.sliding(scoring.fusioner_crops(model, vectors), data)
    with pytest.raises(DataError, match="7×5 pixels, its picture 96×96"):
        scoring.score(sliding, data, [name], [1])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("words", ["known", "all"])
def test_checkpoint_and_bundle_score_alike(
    words: str, precision: str, data: MaskFolder, model: Fusioner, cache: FeatureCache, vectors: torch.Tensor,
    tiny_bundle: Path, tiny_bundle_fp16: Path,
) -> None:  # fmt: skip
    names, classes = data.names("val"), [1, 2, 3]
    ours = scoring.score(scoring.fusioner(model, cache, vectors), data, names, classes, words=words)
    with fusioner_rt.Session(tiny_bundle if precision == "fp32" else tiny_bundle_fp16, cache=False) as session:
        deployed = scoring.score(scoring.deployed(session, data), data, names, classes, words=words)
    assert ours.mean(classes) == pytest.approx(deployed.mean(classes), abs=0.3)
    assert ours.found[1:].sum() > 0, "a model that finds nothing would agree with anything"
