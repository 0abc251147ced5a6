import gc
import io
import itertools
import re
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_pictures import scene
from PIL import Image

from fusioner_rt import Segmentation, Session
from fusioner_rt.errors import (
    BackendUnavailable,
    BundleFileAltered,
    BundleFileMissing,
    BundleMissing,
    FusionerError,
    GraphUnusable,
    PictureInvalid,
    PictureMissing,
    PlanMissing,
    SessionClosed,
    SizeOutsideProfile,
    TemplatesInvalid,
    TooManyWords,
    UsageError,
    WordsInvalid,
)
from fusioner_rt.results.segmentation import STAGES
from fusioner_rt.session import _Groups

WORDS = ["cat", "red sofa", "tree"]
CLOSE = 1e-5  # between two ways of computing one probability in float32; see ALLOWED in test_mask_bands.py


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Iterator[Session]:
    with Session(tiny_bundle, cache=False) as opened:
        yield opened


def agree(one: Segmentation, other: Segmentation) -> None:
    """Equal but for pixels whose two best words, or word and threshold, tie within rounding."""
    np.testing.assert_allclose(one.confidence, other.confidence, atol=CLOSE, rtol=0)
    assert (one.labels == other.labels).mean() > 0.995


def test_a_result_has_the_pictures_size_and_says_what_it_holds(session: Session, picture: np.ndarray) -> None:
    result = session.segment(picture, WORDS, probabilities=True)
    assert result.words == tuple(WORDS)
    assert result.labels.shape == result.confidence.shape == (61, 93)
    assert result.labels.dtype == np.uint16
    assert result.confidence.dtype == np.float32
    assert result.probabilities is not None
    assert result.probabilities.shape == (3, 61, 93)
    np.testing.assert_allclose(result.probabilities.max(axis=0), result.confidence, atol=CLOSE, rtol=0)
    np.testing.assert_array_equal(result.picture, picture)
    assert tuple(result.timing) == STAGES
    assert result.timing["total"] == pytest.approx(sum(result.timing[stage] for stage in STAGES[:-1]), abs=0.01)
    assert session.segment(picture, WORDS).probabilities is None


def upsampled(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, d) to (H, W, d) float64 by bilinear interpolation between pixel centres, edges repeated."""
    for axis, wanted in enumerate(size):
        length = maps.shape[axis]
        place = np.clip((np.arange(wanted) + 0.5) * length / wanted - 0.5, 0, length - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, length - 1)
        part = (place - low).reshape([-1 if other == axis else 1 for other in range(3)])
        maps = maps.take(low, axis) * (1 - part) + maps.take(high, axis) * part
    return maps


def test_the_whole_path_is_what_the_paper_defines(session: Session) -> None:
    """Features upsampled, normalised, compared with every word, through a sigmoid: in float64, without the algebra."""
    picture = scene(47, 71, seed=5)
    result = session.segment(picture, WORDS, size=(33, 58), probabilities=True)
    vectors = session._encode_words(WORDS, None).vectors
    pixels = session.bundle.preprocessing(picture)[None]
    fused = session._executor._graphs("image_fusion")({"pixels": pixels, "words": vectors[None]})
    features = upsampled(fused["features"][0].astype(np.float64), (33, 58))
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    words = fused["refined"][0].astype(np.float64)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    cosines = np.moveaxis(features @ words.T, 2, 0)
    expected = 1 / (1 + np.exp(-cosines / session.bundle.temperature))
    assert result.probabilities is not None
    np.testing.assert_allclose(result.probabilities, expected, atol=CLOSE, rtol=0)
    winner = np.take_along_axis(cosines, np.maximum(result.labels.astype(int) - 1, 0)[None], axis=0)[0]
    assert (winner >= cosines.max(axis=0) - CLOSE)[result.labels > 0].all()
    np.testing.assert_array_equal(result.labels > 0, result.confidence > 0.5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 97), (301, 1), (2, 3), (7, 640), (33, 31)])
def test_any_size_and_aspect_ratio(session: Session, shape: tuple[int, int]) -> None:
    result = session.segment(scene(*shape), WORDS)
    assert result.labels.shape == shape
    assert np.isfinite(result.confidence).all()


@pytest.mark.parametrize("mode", ["joint", "independent"])
def test_the_size_asked_for_is_the_size_given(session: Session, picture: np.ndarray, mode: Any) -> None:
    result = session.segment(picture, WORDS, size=(17, 211), mode=mode, probabilities=True)
    assert result.labels.shape == result.confidence.shape == (17, 211)
    assert result.probabilities is not None
    assert result.probabilities.shape == (3, 17, 211)


def test_a_list_gives_what_its_pictures_give_alone_in_their_order(session: Session) -> None:
    shapes = [(61, 93), (93, 61), (61, 93), (40, 40), (122, 186), (61, 93), (61, 93), (61, 93)]
    pictures = [scene(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    together = session.segment(pictures, WORDS)
    assert [result.labels.shape for result in together] == shapes
    for picture, result in zip(pictures, together, strict=True):
        np.testing.assert_array_equal(result.picture, picture)
        agree(result, session.segment(picture, WORDS))
    assert session.segment([], WORDS) == []
    assert len(session.segment((pictures[0],), WORDS)) == 1


def test_on_a_cpu_pictures_run_one_by_one_and_words_in_batches_within_the_profile(
    changed_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed_bundle(profiles={"batch": {"min": 1, "opt": 1, "max": 3}})
    with Session(folder, cache=False) as session:
        graphs, encoded, fused = session._executor._graphs, [], []
        image, fusion = graphs("image"), graphs("fusion")

        def encode(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            encoded.append(len(inputs["pixels"]))
            return image(inputs)

        def fuse(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            fused.append((len(inputs["tokens"]), *inputs["words"].shape[:2]))
            return fusion(inputs)

        monkeypatch.setitem(graphs.graphs, "image", encode)
        monkeypatch.setitem(graphs.graphs, "fusion", fuse)
        session.segment([scene(50, 50, seed) for seed in range(7)], WORDS)
        assert encoded == [1] * 7
        assert fused == [(1, 1, 3)] * 7
        encoded.clear()
        fused.clear()
        session.segment(scene(50, 50), "a, b, c, d", mode="independent")
        assert encoded == [1]
        assert fused == [(1, 3, 1), (1, 1, 1)]


def test_independent_mode_is_each_word_alone(session: Session, picture: np.ndarray) -> None:
    result = session.segment(picture, WORDS, mode="independent", probabilities=True)
    alone = [session.segment(picture, [word], probabilities=True) for word in WORDS]
    assert result.probabilities is not None
    expected = np.concatenate([one.probabilities for one in alone])  # type: ignore[misc]
    np.testing.assert_allclose(result.probabilities, expected, atol=CLOSE, rtol=0)
    np.testing.assert_allclose(result.confidence, expected.max(axis=0), atol=CLOSE, rtol=0)
    highest = expected.max(axis=0)
    winner = np.take_along_axis(expected, np.maximum(result.labels.astype(int) - 1, 0)[None], axis=0)[0]
    assert (winner >= highest - CLOSE)[result.labels > 0].all()  # near 1 several words may round to one probability
    clear = np.abs(highest - 0.5) > CLOSE
    np.testing.assert_array_equal((result.labels > 0)[clear], (highest > 0.5)[clear])


def test_with_one_word_the_modes_agree(session: Session, picture: np.ndarray) -> None:
    agree(session.segment(picture, "cat"), session.segment(picture, "cat", mode="independent"))


@pytest.mark.parametrize("mode", ["joint", "independent"])
def test_permuting_the_words_permutes_the_masks(session: Session, picture: np.ndarray, mode: Any) -> None:
    straight = session.segment(picture, WORDS, mode=mode)
    turned = session.segment(picture, WORDS[::-1], mode=mode)
    assert (turned.masks[::-1] == straight.masks).mean() > 0.995
    np.testing.assert_allclose(turned.confidence, straight.confidence, atol=1e-4, rtol=0)


def test_a_higher_threshold_only_takes_pixels_away(session: Session, picture: np.ndarray) -> None:
    every, some, none = (session.segment(picture, WORDS, threshold=limit) for limit in (0.0, 0.6, 1.0))
    assert (every.labels > 0).all()
    assert not none.labels.any()
    np.testing.assert_array_equal(some.labels, np.where(some.confidence > np.float32(0.6), every.labels, 0))


def test_all_kinds_of_sources_give_one_result(session: Session, picture: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    results = session.segment([picture, Image.fromarray(picture), path, str(path), path.read_bytes()], WORDS)
    for result in results:
        np.testing.assert_array_equal(result.labels, results[0].labels)


@pytest.mark.parametrize("mode", ["whole", "encoded", "independent"])
def test_bgr_gives_the_masks_and_the_picture_of_rgb(
    tiny_bundle: Path, session: Session, picture: np.ndarray, tmp_path: Path, mode: str
) -> None:
    Image.fromarray(picture).save(tmp_path / "picture.png")
    frame = cv2.imread(str(tmp_path / "picture.png"))
    assert frame is not None
    with Session(tiny_bundle, cache=False, channels="bgr") as opened:
        for one, channels in ((opened, None), (session, "bgr")):
            given: Any = one.encode(frame, channels=channels) if mode == "encoded" else frame  # type: ignore[call-overload]
            how: Any = {"mode": "independent"} if mode == "independent" else {}
            result = one.segment(given, WORDS, channels=channels, **how)
            expected = session.segment(picture, WORDS, **how)
            np.testing.assert_array_equal(result.labels, expected.labels)
            np.testing.assert_array_equal(result.picture, picture)
        np.testing.assert_array_equal(opened.segment(picture, WORDS, channels="rgb").picture, picture)
        np.testing.assert_array_equal(opened.segment(tmp_path / "picture.png", WORDS).picture, picture)
        with pytest.raises(UsageError, match="takes RGB alone"):
            opened.segment_on_device(frame, WORDS)
        with pytest.raises(BackendUnavailable):
            opened.segment_on_device(frame, WORDS, channels="rgb")


def test_another_order_of_channels_is_refused_wherever_it_is_given(tiny_bundle: Path, session: Session) -> None:
    frame, wrong = scene(5, 7), "BGR"
    for call in (
        lambda: Session(tiny_bundle, channels=wrong),  # type: ignore[arg-type]
        lambda: session.segment(frame, WORDS, channels=wrong),  # type: ignore[call-overload]
        lambda: session.encode(frame, channels=wrong),  # type: ignore[call-overload]
        lambda: session.segment_on_device(frame, WORDS, channels=wrong),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError, match="channels is 'BGR'; choose 'rgb', or 'bgr'"):
            call()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_batch_gives_what_its_pictures_give_in_a_list(session: Session, count: int) -> None:
    batch = np.stack([scene(33, 45, seed) for seed in range(3)])[:count]
    expected = session.segment(list(batch), WORDS)
    for form in (batch, torch.from_numpy(batch)):
        results: Any = session.segment(form, WORDS)
        encoded: Any = session.encode(form)
        assert isinstance(results, list)
        assert isinstance(encoded, list)
        for one in (results, session.segment(encoded, WORDS)):
            assert len(one) == count
            for result, other, picture in zip(one, expected, batch, strict=True):
                np.testing.assert_array_equal(result.labels, other.labels)
                np.testing.assert_array_equal(result.picture, picture)


def test_a_batch_in_a_list_is_refused(session: Session) -> None:
    with pytest.raises(PictureInvalid, match="give a batch by itself"):
        session.segment([np.zeros((2, 5, 7, 3), np.uint8)], WORDS)


def test_an_exif_rotated_picture_has_upright_masks(session: Session, picture: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(np.rot90(picture)).save(stream, "PNG", exif=exif)
    agree(session.segment(stream.getvalue(), WORDS), session.segment(picture, WORDS))


def test_known_words_never_reach_the_text_encoder_again(tiny_bundle: Path, picture: np.ndarray) -> None:
    with Session(tiny_bundle) as first:
        one = first.segment(picture, WORDS)
        assert first.text_encoder_calls == len(WORDS)
        first.segment(picture, WORDS)
        first.segment(picture, "tree, cat")
        assert first.text_encoder_calls == len(WORDS)
        first.segment(picture, "tree, bird")
        assert first.text_encoder_calls == len(WORDS) + 1
    with Session(tiny_bundle) as second:
        two = second.segment(picture, WORDS)
        assert second.text_encoder_calls == 0
        assert "text" not in second._executor._graphs.graphs
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_array_equal(one.confidence, two.confidence)


@pytest.mark.parametrize("words", [["cat", "cat\u200b"], ["tree", "café", "cafe"], ["🦄 cat", "tree", "🐙 cat"]])
def test_words_that_the_text_encoder_cannot_tell_apart_are_refused(session: Session, words: list[str]) -> None:
    before = session.text_encoder_calls
    one, other = (repr(word) for word in words if word != "tree")
    with pytest.raises(WordsInvalid, match=f"{re.escape(one)} and {re.escape(other)} are the same.*leave one out"):
        session.set_vocabulary(words)
    assert session.text_encoder_calls == before


def test_a_word_has_one_vector_whatever_it_is_encoded_beside(tiny_bundle: Path) -> None:
    vectors = []
    for words in (["cat"], ["a very long word that pads the others", "cat"]):
        with Session(tiny_bundle, cache=False) as session:
            session.set_vocabulary(words)
            assert session._vocabulary is not None
            vectors.append(session._vocabulary.vectors[-1])
    np.testing.assert_array_equal(*vectors)
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-6)


def test_damaged_cache_entries_are_encoded_again(tiny_bundle: Path, picture: np.ndarray, own_cache: Path) -> None:
    with Session(tiny_bundle) as session:
        before = session.segment(picture, WORDS)
    paths = sorted(own_cache.iterdir())
    assert len(paths) == len(WORDS)
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:-40] + bytes(40))
    with Session(tiny_bundle) as session:
        after = session.segment(picture, WORDS)
        assert session.text_encoder_calls == 2
    np.testing.assert_array_equal(after.confidence, before.confidence)
    with Session(tiny_bundle) as session:
        session.segment(picture, WORDS)
        assert session.text_encoder_calls == 0


def test_a_cache_that_cannot_be_written_is_a_note_and_no_failure(
    tiny_bundle: Path, picture: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with Session(tiny_bundle, cache=tmp_path / "file" / "cache") as session:
        assert session.notes == []
        session.segment(picture, WORDS)
        session.segment(picture, WORDS)
        assert session.text_encoder_calls == len(WORDS)
        assert len(session.notes) == 1
        assert "cannot be written" in session.notes[0]


@pytest.mark.parametrize("held", [1 << 30, 0])
@pytest.mark.parametrize("name", ["text.onnx", "tokenizer.json", "mask_probabilities.onnx"])
def test_a_bundle_rebuilt_under_an_open_session_is_noticed_before_anything_of_it_is_cached(
    changed_bundle: Callable[..., Path],
    picture: np.ndarray,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    held: int,
) -> None:
    monkeypatch.setattr("fusioner_rt.bundle._MOST_IN_MEMORY", held)
    folder = changed_bundle()
    with Session(folder) as session:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b"\n")
        with pytest.raises(BundleFileAltered, match=f"{name}.*open the bundle again"):
            session.segment(picture, WORDS, probabilities=True)
        assert name == "mask_probabilities.onnx" or not list(own_cache.iterdir())
        (folder / name).unlink()
        with pytest.raises(BundleFileMissing, match=f"{name}.*open the bundle again"):
            session.segment(picture, WORDS, probabilities=True)
        (folder / name).write_bytes(content)
        session.segment(picture, WORDS, probabilities=True)


def test_templates_change_the_vectors_and_stay_with_the_vocabulary(session: Session, picture: np.ndarray) -> None:
    session.set_vocabulary(WORDS)
    assert session.words == tuple(WORDS)
    plain = session.segment(picture)
    agree(plain, session.segment(picture, WORDS))
    session.set_vocabulary(WORDS, ["a zebra crossing beside a {category}", "{category} quartz"])
    assert np.abs(session.segment(picture).confidence - plain.confidence).max() > 10 * CLOSE
    with pytest.raises(TemplatesInvalid):
        session.set_vocabulary(WORDS, ["no place for it"])
    assert session.words == tuple(WORDS)


def test_threads_share_a_session(tiny_bundle: Path) -> None:
    pictures = [scene(60 + 7 * seed, 80, seed) for seed in range(4)]
    vocabularies = ["cat, dog", "dog, cat, bird", "sky", "cat, tree"]
    with Session(tiny_bundle, cache=False) as session:
        results: dict[int, list[Segmentation]] = {index: [] for index in range(4)}

        def work(index: int) -> None:
            for _ in range(3):
                results[index].append(session.segment(pictures[index], vocabularies[index]))

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert session.text_encoder_calls == 5  # cat, dog, bird, sky, tree: each once
        for index in range(4):
            alone = session.segment(pictures[index], vocabularies[index])
            assert len(results[index]) == 3
            for result in results[index]:
                assert result.words == alone.words
                agree(result, alone)


def test_more_words_than_the_profile_allows(changed_bundle: Callable[..., Path], picture: np.ndarray) -> None:
    folder = changed_bundle(profiles={"words": {"min": 1, "opt": 1, "max": 2}})
    with Session(folder, cache=False) as session:
        session.segment(picture, "a, b")
        with pytest.raises(TooManyWords, match=f"--max-words 3 --max-batch 4 --out {folder}"):
            session.segment(picture, "a, b, c")
        assert session.text_encoder_calls == 2


def test_an_input_outside_the_profile(changed_bundle: Callable[..., Path]) -> None:
    folder = changed_bundle(
        profiles={"size": {"min": 64, "opt": 64, "max": 128}},
        preprocessing={"side": 64, "multiple": 32, "longest": 256},
    )
    with Session(folder, cache=False) as session:
        session.segment(scene(64, 64), "cat")
        with pytest.raises(SizeOutsideProfile, match="--sizes 32,64,256 "):
            session.segment(scene(10, 200), "cat")


def test_a_graph_that_computes_no_numbers_is_found_out(
    tiny_bundle: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(tiny_bundle, cache=False) as session:
        graph = session._executor._graphs("fusion")

        def overflowing(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            outputs = graph(inputs)
            outputs["fused"][0, 0, 0, 0] = np.inf
            return outputs

        monkeypatch.setitem(session._executor._graphs.graphs, "fusion", overflowing)
        with pytest.raises(GraphUnusable, match="without --fp16"):
            session.segment(picture, "cat")


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"words": ""}, WordsInvalid, "no words"),
        ({"words": None}, UsageError, "set_vocabulary"),
        ({"threshold": float("nan")}, UsageError, "within 0..1"),
        ({"threshold": 1.5}, UsageError, "within 0..1"),
        ({"mode": "both"}, UsageError, "joint or independent"),
        ({"size": (0, 5)}, UsageError, "at least 1"),
        ({"size": (5,)}, UsageError, "height and width"),
        ({"size": (2.5, 5)}, UsageError, "whole pixels"),
        ({"size": (100_000, 100_000)}, UsageError, "smaller"),
        ({"size": np.array([100_000, 100_000], np.int32)}, UsageError, "smaller"),
        ({"size": 512}, UsageError, "height and width"),
        ({"size": "512x512"}, UsageError, "height and width"),
        ({"threshold": "0.5"}, UsageError, "within 0..1"),
        ({"threshold": None}, UsageError, "within 0..1"),
    ],
)
def test_arguments_outside_their_meaning(
    tiny_bundle: Path, picture: np.ndarray, options: dict[str, Any], kind: type[FusionerError], says: str
) -> None:
    with Session(tiny_bundle, cache=False) as session, pytest.raises(kind, match=says):
        session.segment(picture, **{"words": "cat", **options})


def test_a_bad_picture_in_a_list_is_named(session: Session, picture: np.ndarray) -> None:
    with pytest.raises(PictureMissing, match=r"absent\.jpg"):
        session.segment([picture, "absent.jpg"], WORDS)


def test_sessions_that_cannot_be_opened(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlanMissing, match=r"holds no TensorRT plan.*--backend tensorrt$"):
        Session(tiny_bundle, backend="tensorrt")
    with pytest.raises(BackendUnavailable, match="'abacus' is unknown; choose one of auto, "):
        Session(tiny_bundle, backend="abacus")
    with pytest.raises(UsageError, match="threads"):
        Session(tiny_bundle, threads=0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleMissing):
        Session()


def test_a_closed_session_leaves_no_thread(tiny_bundle: Path, picture: np.ndarray) -> None:
    before = set(threading.enumerate())
    with Session(tiny_bundle, cache=False, threads=2) as session:
        session.segment(picture, "cat, dog", size=(700, 600))
        assert set(threading.enumerate()) - before
    assert not set(threading.enumerate()) - before


def test_a_closed_session_says_so(tiny_bundle: Path, picture: np.ndarray) -> None:
    with Session(tiny_bundle, cache=False, threads=1) as session:
        session.segment(picture, "cat")
        assert session.backend.effective == "onnxruntime-cpu"
    session.close()
    for use in (
        lambda: session.segment(picture, "cat"),
        lambda: session.segment([], "cat"),
        lambda: session.set_vocabulary("cat"),
    ):
        with pytest.raises(UsageError, match="closed"):
            use()


def test_a_result_keeps_its_picture_when_the_callers_array_takes_the_next(session: Session) -> None:
    frame = scene(61, 93)
    before = frame.copy()
    results = [session.segment(frame, WORDS), session.segment([frame], WORDS)[0], session.segment(frame[:30], WORDS)]
    results += [session.segment(torch.from_numpy(frame), WORDS), session.segment(frame[None], WORDS)[0]]  # type: ignore[index]
    frame[:] = 0
    for result in results:
        np.testing.assert_array_equal(result.picture, before[: len(result.picture)])


def test_probabilities_beyond_memory_are_refused_before_anything_is_computed(
    session: Session, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setitem(session._executor._graphs.graphs, "image", never)
        says = r"17 words at 8000x8000.* 4\.4 GB, at most 4 GB.*smaller size.*fewer words"
        with pytest.raises(UsageError, match=says):
            session.segment(picture, list("abcdefghijklmnopq"), size=(8000, 8000), probabilities=True)
    monkeypatch.setattr("fusioner_rt.session.KEPT_LIMIT", 2 * 3 * 61 * 93 * 4)
    session.segment([picture] * 2, WORDS, probabilities=True)
    with pytest.raises(UsageError, match="fewer pictures"):
        session.segment([picture] * 3, WORDS, probabilities=True)


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_list_holds_as_many_inputs_as_run(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, lanes: int) -> None:
    """Pictures of many input sizes: their inputs are run before all are decoded."""
    sizes = [(side, 200 - side) for side in range(40, 120, 10)] * 3
    with Session(tiny_bundle, "onnxruntime-cpu", cache=False, threads=2, lanes=lanes) as session:
        executor = session._executor.in_lanes() if lanes > 1 else session._executor
        events: list[str] = []
        graph, prepare = executor._graphs("image"), session._executor.prepare  # type: ignore[attr-defined]

        def encode(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            events.append("-" * len(inputs["pixels"]))
            return graph(inputs)  # type: ignore[no-any-return]

        def prepared(*arguments: Any) -> np.ndarray:
            events.append("+")
            return prepare(*arguments)

        monkeypatch.setitem(executor._graphs.graphs, "image", encode)  # type: ignore[attr-defined]
        monkeypatch.setattr(session._executor, "prepare", prepared)
        results = session.segment([scene(*size) for size in sizes], "cat")
    assert [result.labels.shape for result in results] == sizes
    story = "".join(events)
    held = [story[:end].count("+") - story[:end].count("-") for end in range(len(story) + 1)]
    assert 1 <= max(held) <= lanes
    assert held[-1] == 0


class BySize:
    """The part of an executor that groups are made by."""

    def group(self, waiting: int) -> int:
        return waiting


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 5), st.integers(1, 12))
def test_groups_hold_each_picture_once_and_no_more_wait_than_was_said(
    sizes: list[int], together: int, waiting: int
) -> None:
    groups = _Groups(BySize(), together)  # type: ignore[arg-type]
    run: list[dict[int, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusioner_rt.session._WAITING", waiting)
        for index, size in enumerate(sizes):
            run += groups.add(index, size)  # type: ignore[arg-type]
            assert index + 1 - sum(map(len, run)) < max(waiting, together)
    run += groups.rest()
    assert sorted(index for group in run for index in group) == list(range(len(sizes)))
    for group in run:
        assert 1 <= len(group) <= together
        assert len(set(group.values())) == 1


def test_closing_gives_every_graph_back(tiny_bundle: Path) -> None:
    session = Session(tiny_bundle, "onnxruntime-cpu", cache=False)
    session.segment(np.zeros((61, 93, 3), np.uint8), "cat, dog")
    graphs = [weakref.ref(graph) for graph in session._executor._graphs.graphs.values()]  # type: ignore[attr-defined]
    assert len(graphs) > 3
    session.close()
    gc.collect()
    assert not any(graph() for graph in graphs)


def test_the_networks_input_can_be_chosen_when_a_bundle_is_opened(tiny_bundle: Path, session: Session) -> None:
    rgb = scene(96, 160)
    own = session.bundle.preprocessing.side
    chosen = 64 if own != 64 else 96
    with Session(tiny_bundle, cache=False, input_size=chosen) as other:
        encoded = other.encode(rgb)
        expected = other.bundle.preprocessing.input_size(96, 160)
        assert encoded.input_size == expected != session.encode(rgb).input_size
        assert expected[0] * expected[1] == pytest.approx(chosen**2, rel=0.6)
        assert other.segment(rgb, WORDS).labels.shape == (96, 160)
        agree(other.segment(encoded, WORDS), other.segment(rgb, WORDS))
        with pytest.raises(UsageError, match="for another input_size"):
            session.segment(encoded, WORDS)
    with Session(tiny_bundle, cache=False, input_size=own) as same:
        agree(same.segment(rgb, WORDS), session.segment(rgb, WORDS))


@pytest.mark.parametrize("side", [0, -32, 31, 10**6, 64.0, "64", True])
def test_an_input_size_outside_the_profile_is_refused_with_what_it_takes(tiny_bundle: Path, side: Any) -> None:
    with pytest.raises(
        UsageError, match=r"input_size is .* takes whole numbers of \d+ to \d+; give one of those; its own"
    ):
        Session(tiny_bundle, cache=False, input_size=side)


def test_after_load_text_no_call_reads_the_bundle(changed_bundle: Callable[..., Path], picture: np.ndarray) -> None:
    folder = changed_bundle()
    with Session(folder, cache=False) as session:
        session.load_text()
        shutil.rmtree(folder)
        for mode, probabilities in itertools.product(("joint", "independent"), (False, True)):
            result = session.segment(
                picture, "cat, dog|wolf", mode=mode, probabilities=probabilities, background="common"
            )
            assert result.labels.shape == picture.shape[:2]
        assert session.segment(session.encode(picture), "cat", threshold={"cat": 0.1}).labels.shape == picture.shape[:2]
    with pytest.raises(SessionClosed):
        session.load_text()
