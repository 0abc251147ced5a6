"""A picture encoded once is the picture: whatever words, sizes and neighbours it meets later, its masks are the same."""

import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pictures import encoded as file_of
from made_pictures import scene
from PIL import Image

from fusioner_rt import EncodedPicture, Segmentation, Session
from fusioner_rt.bundle import Bundle, write_manifest
from fusioner_rt.errors import BundleFileAltered, ManifestInvalid, PictureMissing, SizeOutsideProfile, UsageError
from fusioner_rt.executor_interface import untimed
from fusioner_rt.manifest import MANIFEST
from fusioner_rt.manifest_document import with_digest

WORDS = ["cat", "red sofa", "tree", "sky"]
CLOSE = 1e-5  # between two ways of computing one probability in float32


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def session(request: pytest.FixtureRequest, tiny_bundle: Path, tiny_bundle_fp16: Path) -> Iterator[Session]:
    with Session(tiny_bundle if request.param == "fp32" else tiny_bundle_fp16, cache=False) as opened:
        yield opened


def run_whole(session: Session) -> None:
    """As ONNX Runtime runs a bundle on a GPU: image_fusion in the place of its parts."""
    session._executor._in_parts, session._executor._decoder = False, None  # type: ignore[attr-defined]


def without(folder: Path, *parts: str) -> None:
    """A bundle loses the graphs whose names begin so."""
    manifest = json.loads((folder / MANIFEST).read_text())
    lost = [name for name in manifest["graphs"] if name != "image_fusion" and name.startswith(parts)]
    assert lost
    for name in lost:
        (folder / manifest["graphs"].pop(name)["file"]).unlink()
    if "decoder" in parts:
        manifest["model"]["decoder"] = []
    write_manifest(folder, manifest)


def same(one: Segmentation, other: Segmentation) -> None:
    assert one.words == other.words
    assert (one.threshold, one.mode) == (other.threshold, other.mode)
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.confidence, other.confidence)
    np.testing.assert_array_equal(one.picture, other.picture)
    assert (one.probabilities is None) == (other.probabilities is None)
    if one.probabilities is not None:
        np.testing.assert_array_equal(one.probabilities, other.probabilities)


def agree(one: Segmentation, other: Segmentation, allowed: float = CLOSE) -> None:
    """Equal but for pixels whose two best words, or word and threshold, tie within rounding."""
    np.testing.assert_allclose(one.confidence, other.confidence, atol=allowed, rtol=0)
    assert (one.labels == other.labels).mean() > 0.995


options = st.fixed_dictionaries({
    "words": st.lists(st.sampled_from(WORDS), min_size=1, unique=True),
    "size": st.none() | st.tuples(st.integers(1, 90), st.integers(1, 90)),
    "threshold": st.sampled_from([0.0, 0.5, 0.6]),
    "mode": st.sampled_from(["joint", "independent"]),
    "probabilities": st.booleans(),
})  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 150), width=st.integers(1, 150), seed=st.integers(0, 9), calls=st.lists(options, min_size=1, max_size=3))  # fmt: skip
def test_an_encoded_picture_has_the_masks_of_the_picture_bit_by_bit(
    session: Session, height: int, width: int, seed: int, calls: list[dict[str, Any]]
) -> None:
    picture = scene(height, width, seed)
    encoded = session.encode(picture)
    for call in calls:
        same(session.segment(encoded, **call), session.segment(picture, **call))


def test_a_list_is_encoded_in_the_batches_it_is_segmented_in(session: Session) -> None:
    shapes = [(61, 93), (93, 61), (61, 93), (40, 40), (122, 186), (61, 93), (61, 93), (61, 93)]
    pictures = [scene(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    together = session.encode(pictures)
    assert all(isinstance(one, EncodedPicture) for one in together)
    for ours, theirs in zip(session.segment(together, WORDS), session.segment(pictures, WORDS), strict=True):
        same(ours, theirs)
    assert session.encode([]) == []
    assert len(session.encode((pictures[0],))) == 1


def test_encoded_pictures_stand_beside_others_in_a_list(tiny_bundle: Path) -> None:
    pictures = [scene(61, 93, seed) for seed in range(6)]
    with Session(tiny_bundle, cache=False) as session:
        mixed = [session.encode(one) if index % 2 else one for index, one in enumerate(pictures)]
        for mode in ("joint", "independent"):
            for one, picture in zip(session.segment(mixed, WORDS, mode=mode), pictures, strict=True):  # type: ignore[arg-type]
                agree(one, session.segment(picture, WORDS, mode=mode))  # type: ignore[call-overload]
        (kept,) = session.encode([mixed[1]])
        assert kept is mixed[1]
        assert session.encode(mixed[1]) is mixed[1]


def test_other_words_never_reach_the_image_encoder_and_a_picture_reaches_it_once(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, picture: np.ndarray
) -> None:
    with Session(tiny_bundle, cache=False) as session:
        graphs, seen = session._executor._graphs, []  # type: ignore[attr-defined]
        image = graphs("image")

        def counting(inputs: dict[str, np.ndarray]) -> Any:
            seen.append(len(inputs["pixels"]))
            return image(inputs)

        monkeypatch.setitem(graphs.graphs, "image", counting)
        encoded = session.encode(picture)
        assert seen == [1]
        for words in ("cat", WORDS):
            for mode in ("joint", "independent"):
                session.segment([encoded, encoded], words, mode=mode)  # type: ignore[call-overload]
        assert seen == [1]
        session.segment(picture, [*WORDS, "bird", "cup"], mode="independent")  # more words than pictures of a batch
        assert seen == [1, 1]
        assert "image_fusion" not in graphs.graphs


def test_times_tell_which_path_ran(session: Session, tiny_bundle: Path, picture: np.ndarray) -> None:
    plain, again = (session.segment(one, WORDS).timing for one in (picture, session.encode(picture)))
    parts = ("image", "fusion", "decoder")
    assert min(plain[stage] for stage in (*parts, "mask_head", "preprocess")) > 0
    assert plain["image_fusion"] == 0
    assert again["image"] == again["preprocess"] == again["decode"] == 0
    assert min(again[stage] for stage in ("fusion", "decoder", "mask_head")) > 0
    with Session(tiny_bundle, cache=False) as whole:
        run_whole(whole)
        timing = whole.segment(picture, WORDS).timing
    assert timing["image_fusion"] > 0
    assert not any(timing[part] for part in parts)


def test_the_whole_graph_gives_the_masks_of_its_parts_and_keeps_prepared_pictures(
    tiny_bundle: Path, picture: np.ndarray
) -> None:
    with Session(tiny_bundle, cache=False) as whole, Session(tiny_bundle, cache=False) as parts:
        run_whole(whole)
        encoded = whole.encode(picture)
        assert encoded.encoded.shape == (3, *encoded.input_size)
        for mode in ("joint", "independent"):
            ours = whole.segment(encoded, WORDS, mode=mode)  # type: ignore[call-overload]
            same(ours, whole.segment(picture, WORDS, mode=mode))  # type: ignore[call-overload]
            agree(ours, parts.segment(picture, WORDS, mode=mode))  # type: ignore[call-overload]


def test_a_model_without_a_decoder_runs_in_parts(tiny_bundle: Path, tmp_path: Path, picture: np.ndarray) -> None:
    """Here one that ends before its decoder; its features have fewer pixels, and go to the mask head as they are."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "bare")
    without(folder, "decoder")
    with Session(folder, cache=False) as session:
        timing = session.segment(picture, WORDS).timing
        assert timing["decoder"] == 0
        assert timing["fusion"] > 0
        vectors = session._encode_words(WORDS, None).vectors
        graphs = session._executor._graphs  # type: ignore[attr-defined]
        tokens = session.encode(picture).encoded
        found = graphs("fusion")({"tokens": tokens[None], "words": vectors[None]})
        scores, gram = session._executor._decode(found["fused"], found["refined"], untimed)  # type: ignore[attr-defined]
        assert scores.shape == (1, len(WORDS), *tokens.shape[:2])
        assert gram.shape == (1, 5, *tokens.shape[:2])


def test_threads_share_an_encoded_picture(session: Session) -> None:
    encoded = session.encode(scene(75, 110))
    vocabularies = [WORDS[:count] for count in (1, 2, 3, 4)] * 4
    expected = {len(words): session.segment(encoded, words) for words in vocabularies}
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda words: session.segment(encoded, words), vocabularies):
            same(result, expected[len(result.words)])


def test_sessions_of_one_bundle_share_encoded_pictures_which_outlive_them(
    tiny_bundle: Path, tmp_path: Path, picture: np.ndarray
) -> None:
    with Session(tiny_bundle, cache=False) as first:
        encoded = first.encode(picture)
        expected = first.segment(picture, WORDS)
    elsewhere = shutil.copytree(tiny_bundle, tmp_path / "elsewhere")
    (elsewhere / "note.txt").write_text("nothing that a picture goes through")
    write_manifest(elsewhere, json.loads((elsewhere / MANIFEST).read_text()))
    with Session(elsewhere, cache=False) as second:
        same(second.segment(encoded, WORDS), expected)


def test_pictures_of_another_bundle_or_backend_are_refused(
    tiny_bundle: Path, tiny_bundle_fp16: Path, changed_bundle: Callable[..., Path], picture: np.ndarray
) -> None:
    with Session(tiny_bundle, cache=False) as session, Session(tiny_bundle_fp16, cache=False) as half:
        ours, theirs = session.encode(picture), half.encode(picture)
        elsewhere = dataclasses.replace(ours, backend="onnxruntime-cuda")
        for one, says in ((theirs, "by another bundle"), (elsewhere, "by the backend onnxruntime-cuda, this .*-cpu")):
            for use in (
                lambda one=one: session.segment(one, WORDS),
                lambda one=one: session.segment([picture, one], WORDS),
                lambda one=one: session.encode(one),
            ):
                with pytest.raises(UsageError, match=f"{says}.*encode the picture with this session") as caught:
                    use()
                assert "\n" not in str(caught.value)
        smaller = changed_bundle(preprocessing={"side": 64, "multiple": 32, "longest": 256})
        with Session(smaller, cache=False) as other, pytest.raises(UsageError, match="by another bundle"):
            other.segment(ours, WORDS)
    with pytest.raises(UsageError, match="closed"):
        session.encode(picture)


def test_an_encoded_picture_cannot_be_changed_and_says_little(session: Session) -> None:
    frame = scene(61, 93)
    before = frame.copy()
    encoded = session.encode(frame)
    frame[:] = 0
    np.testing.assert_array_equal(encoded.picture, before)
    for array in (encoded.picture, encoded.encoded, session.segment(encoded, "cat").picture):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        encoded.picture = frame  # type: ignore[misc]
    high, wide = encoded.input_size
    assert repr(encoded) == f"<EncodedPicture 93x61, input {wide}x{high}>"
    one, other = session.encode([before, before])
    assert one.encoded.base is None, "a batch stays alive for one of its pictures"
    np.testing.assert_array_equal(one.encoded, other.encoded)


def test_what_can_be_segmented_can_be_encoded_and_what_cannot_is_named(
    session: Session, tmp_path: Path, changed_bundle: Callable[..., Path], picture: np.ndarray
) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    every = session.encode([picture, Image.fromarray(picture), path, str(path), file_of(Image.fromarray(picture))])
    for one in every:
        np.testing.assert_array_equal(one.picture, picture)
    with pytest.raises(PictureMissing, match=r"absent\.jpg"):
        session.encode([picture, "absent.jpg"])
    sizes = {"size": {"min": 64, "opt": 64, "max": 128}}
    folder = changed_bundle(profiles=sizes, preprocessing={"side": 64, "multiple": 32, "longest": 256})
    with Session(folder, cache=False) as narrow, pytest.raises(SizeOutsideProfile, match="--sizes 32,64,256 "):
        narrow.encode(scene(10, 200))


def test_an_error_about_an_encoded_picture_does_not_keep_it(session: Session, picture: np.ndarray) -> None:
    with pytest.raises(UsageError) as refused:
        session.encode(picture).check("another", session.bundle.picture_sha256)
    assert len(pickle.dumps(refused.value)) < 1000


def test_weights_that_lie_apart_are_checked_with_the_graph_that_refers_to_them(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "copy")
    bundle = Bundle.open(folder)
    assert bundle.graphs["text"].weights is None
    assert bundle.graphs["image"].weights == folder / "weights.bin"
    with Session(folder, cache=False) as session:
        content = bytearray((folder / "weights.bin").read_bytes())
        content[len(content) // 2] ^= 1
        (folder / "weights.bin").unlink()  # the session holds what it loaded of it
        (folder / "weights.bin").write_bytes(content)
        with pytest.raises(BundleFileAltered, match=r"weights\.bin.*open the bundle again"):
            session._executor._graphs("image_fusion")  # type: ignore[attr-defined]
    with pytest.raises(BundleFileAltered, match=r"weights\.bin"):
        Bundle.open(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["graphs"]["image"]["weights"] = "other.bin"
    (folder / MANIFEST).write_text(json.dumps(with_digest(manifest)))
    with pytest.raises(ManifestInvalid, match=r"other\.bin in files"):
        Bundle.open(folder)
