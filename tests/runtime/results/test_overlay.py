"""Overlays: their size, their colours, and that masks can be seen on any picture."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_pictures import scene
from PIL import Image

from fusioner_rt import Segmentation
from fusioner_rt.errors import UsageError
from fusioner_rt.results import legend
from fusioner_rt.results.colours import _FIRST, _PALETTE, word_colours
from fusioner_rt.results.legend import percent

ROOT = Path(__file__).parents[3]
TWELVE = (
    "person",
    "flag",
    "helmet",
    "rocket",
    "space suit",
    "hair",
    "face",
    "glove",
    "hand",
    "window",
    "badge",
    "wall",
)


def result(labels: np.ndarray, words: tuple[str, ...], picture: np.ndarray | None = None) -> Segmentation:
    labels = labels.astype(np.uint16)
    picture = scene(*labels.shape) if picture is None else picture
    return Segmentation(words, labels, np.ones(labels.shape, np.float32), picture, {}, 0.5, "joint")


def blocks(height: int, width: int, words: tuple[str, ...], seed: int = 0) -> Segmentation:
    """Random blocks of labels, of some of the words."""
    random = np.random.default_rng(seed)
    some = random.choice(len(words) + 1, random.integers(1, len(words) + 2), replace=False)
    coarse = random.choice(some, (-(-height // 9), -(-width // 9)))
    return result(coarse.repeat(9, axis=0).repeat(9, axis=1)[:height, :width], words)


def lab(colours: Any) -> np.ndarray:
    """(..., 3) CIE L*a*b* under D65 of sRGB 0..255."""
    linear = np.asarray(colours, float) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])  # fmt: skip
    xyz = linear @ to_xyz.T / (0.95047, 1, 1.08883)
    x, y, z = np.moveaxis(np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116), -1, 0)
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1)


sides = st.sampled_from(("below", "right"))
edges = st.one_of(st.integers(1, 40), st.integers(41, 700))
lists = st.sampled_from(
    (
        ("cat",),
        TWELVE,
        tuple(f"thing {n}" for n in range(300)),
        ("a very long phrase " * 10, "猫", "Straße"),
        TWELVE[:4],
    )
)


@given(edges, edges, lists, sides, st.booleans(), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_a_legend_takes_at_most_a_third_and_its_size_tells_nothing_of_what_was_found(
    height: int, width: int, words: tuple[str, ...], side: Any, resize: bool, seed: int
) -> None:
    drawn = blocks(height, width, words, seed).overlay(legend=side, resize=resize)
    nothing = result(np.zeros((height, width)), words).overlay(legend=side, resize=resize)
    everything = result(np.arange(height * width).reshape(height, width) % (len(words) + 1), words)
    assert drawn.size == nothing.size == everything.overlay(legend=side, resize=resize).size

    if drawn.size == (width, height):
        return  # no room
    enlarge = max(1, -(-320 // max(height, width))) if resize else 1
    height, width = height * enlarge, width * enlarge
    along = side == "below"
    strip = drawn.size[along] - (width, height)[along]
    assert strip * 3 <= (width, height)[along]
    assert strip * drawn.size[not along] * 3 <= height * width
    assert drawn.size[not along] == (max(width, 240) if along else height)
    assert drawn.size[along] % 2 == 0


@pytest.mark.parametrize(
    ("size", "side"),
    [((300, 451), "below"), ((300, 451), "right"), ((5, 7), "below"), ((7, 5), "right"), ((40, 2000), "below"),
     ((40, 2000), "right"), ((2000, 40), "below")],
)  # fmt: skip
def test_ordinary_tiny_wide_and_narrow_pictures_have_legends(size: tuple[int, int], side: Any) -> None:
    found = blocks(*size, ("cat", "sofa", "wall"))
    assert found.overlay(legend=side).size[side == "below"] > found.overlay(legend=False).size[side == "below"]


@given(edges, edges, st.booleans())
@settings(deadline=None, max_examples=20)
def test_without_a_legend_an_overlay_has_the_label_maps_size(height: int, width: int, outlines: bool) -> None:
    assert blocks(height, width, TWELVE).overlay(legend=False, outlines=outlines).size == (width, height)


def test_a_huge_picture_has_a_legend_that_grows_with_it() -> None:
    labels = np.zeros((2100, 2800), np.uint16)
    labels[900:2000, 800:2500] = 1
    drawn = result(labels, ("cat", "sofa"), np.full((75, 100, 3), 90, np.uint8)).overlay()
    strip = np.asarray(drawn)[2100:]
    assert strip.shape[0] > 70
    assert (strip == word_colours(["cat", "sofa"])[0]).all(axis=2).sum() >= 55**2


def test_texts_stay_where_they_are_from_frame_to_frame() -> None:
    labels = np.zeros((400, 500), np.uint16)
    frames = []
    for rows in (0, 1, 40, 399):
        labels[:rows] = 2
        frames.append(np.asarray(result(labels, TWELVE).overlay())[400:])
    moved = np.any([(frame != frames[0]).any(axis=2) for frame in frames], axis=0)
    (form,) = [legend._form(TWELVE, (500, 400), "below")]
    assert form is not None
    assert form.places is not None
    (left, top), (right, _) = form.places[1:3]
    rows, columns = np.flatnonzero(moved.any(axis=1)), np.flatnonzero(moved.any(axis=0))
    assert rows.min() >= top - form.text // 4
    assert rows.max() <= top + form.text * 5 // 4
    assert columns.min() >= left
    assert columns.max() < right


def test_where_not_all_words_fit_those_that_were_found_are_listed() -> None:
    words = tuple(f"thing {n}" for n in range(400))
    labels = np.zeros((300, 400), np.uint16)
    labels[:100], labels[200:] = 371, 400
    strip = np.asarray(result(labels, words).overlay())[300:]
    for colour in word_colours(words)[[370, 399]]:
        assert (strip == colour).all(axis=2).any()


@pytest.mark.parametrize("size", [(250, 300), (384, 254), (40, 2000)])
def test_small_legends_show_whole_words_before_they_show_shares(size: tuple[int, int]) -> None:
    words = ("shirt", "skirt", "shoes", "hair", "skin", "bag")
    form = legend._form(words, size, "right")
    if form is not None:
        assert [legend._fitted(word, 1, form.text, form.widest - form.reserved)[0] for word in words] == list(words)
        assert form.places


def test_words_that_no_font_can_draw_lose_their_accents_or_are_called_by_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(legend, "_WIDE_FONTS", ())
    for cached in (legend._font_of, legend._fitted):
        cached.cache_clear()
    try:
        assert legend._fitted("猫", 3, 14, 200)[0] == "word 3"
        assert legend._fitted("naïve café-table", 3, 14, 200)[0] == "naive cafe-table"
    finally:
        for cached in (legend._font_of, legend._fitted):
            cached.cache_clear()


def test_a_long_word_is_cut_to_fit_without_trying_every_length() -> None:
    font, measured = legend._font("", 14), []

    class Counting:
        def getlength(self, text: str) -> float:
            measured.append(text)
            return font.getlength(text)

    text = "a long word " * 400
    for width in (40, 100, 300):
        measured.clear()
        cut = legend._shorten(text, Counting(), width)  # type: ignore[arg-type]
        assert len(measured) < 20
        assert text.startswith(cut.removesuffix("..."))
        assert font.getlength(cut) <= width
        assert font.getlength(f"{text[: len(cut) - 2]}...") > width
    assert legend._shorten("cat", Counting(), 300) == "cat"  # type: ignore[arg-type]


names = st.lists(st.text(st.characters(categories=["L"]), min_size=1, max_size=6), min_size=1, max_size=40)
names = names.map(lambda words: list({legend_word.casefold(): legend_word for legend_word in words}.values()))


@given(names, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_a_words_colour_depends_on_no_order_and_no_case(words: list[str], random: Any) -> None:
    colours = dict(zip(words, word_colours(words).tolist(), strict=True))
    shuffled = random.sample(words, len(words))
    assert word_colours(shuffled).tolist() == [colours[word] for word in shuffled]
    assert word_colours(["RED Car", "cat"]).tolist() == word_colours(["red car", "Cat"]).tolist()


def test_a_words_colour_is_the_same_in_every_process_and_its_own_when_alone() -> None:
    # Recorded: a change here changes the colours of everybody's reports.
    assert word_colours(["cat"]).tolist() == [[34, 153, 0]]
    assert word_colours(["person", "cat", "sofa"]).tolist() == [[238, 34, 102], [34, 153, 0], [119, 119, 255]]


def test_another_word_seldom_changes_the_colours_of_the_others() -> None:
    random = np.random.default_rng(0)
    changed = own = 0
    for _ in range(300):
        *words, other = (f"thing {n}" for n in random.choice(5000, 13, replace=False))
        colours = word_colours(words)
        own += sum(np.array_equal(word_colours([word])[0], colour) for word, colour in zip(words, colours, strict=True))
        changed += (word_colours([*words, other])[:-1] != colours).any(axis=1).sum()
    assert own / 3600 > 0.8
    assert changed / 3600 < 0.04


def test_words_of_a_list_do_not_look_alike() -> None:
    def nearest(colours: Any) -> float:
        there = lab(colours)
        return float((np.linalg.norm(there[:, None] - there, axis=2) + 999 * np.eye(len(there))).min())

    assert nearest(_FIRST) > 15
    assert nearest(_PALETTE) > 11
    assert lab(_PALETTE)[:, 0].min() > 52
    many = word_colours([f"thing {n}" for n in range(300)])
    assert nearest(many[:32]) > 0
    assert nearest(word_colours([f"thing {n}" for n in range(32)])) > 15
    assert len({tuple(colour) for colour in many.tolist()}) == 300
    assert word_colours([]).shape == (0, 3)


def test_given_colours_are_taken_and_the_others_keep_away_from_them() -> None:
    words = [f"thing {n}" for n in range(30)]
    for colour in word_colours(words):
        given = word_colours(words, {" Thing  4": tuple(colour), "no such word": "red"})
        assert given[4].tolist() == colour.tolist()
        assert (given == colour).all(axis=1).sum() == 1
    assert word_colours(["cat", "dog"], {"cat": "#f00", "dog": "blue"}).tolist() == [[255, 0, 0], [0, 0, 255]]


def test_label_maps_have_the_words_colours() -> None:
    found = blocks(50, 60, TWELVE)
    image = found.label_image(palette=True)
    palette = np.array(image.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(palette[1:13], word_colours(TWELVE))


def test_a_mask_is_painted_at_the_strength_asked_and_the_rest_left_alone() -> None:
    labels = np.zeros((400, 400), np.uint16)
    labels[100:200, 100:200] = 2
    found = result(labels, ("cat", "sofa"))
    inside, outside = np.s_[110:190, 110:190], np.ones((400, 400), bool)
    outside[95:205, 95:205] = False
    colour = word_colours(found.words)[1].astype(float)
    for alpha in (0, 0.25, 0.5, 1):
        drawn = np.asarray(found.overlay(alpha=alpha))[:400]
        np.testing.assert_array_equal(drawn[outside], found.picture[outside])
        np.testing.assert_allclose(drawn[inside], found.picture[inside] * (1 - alpha) + alpha * colour, atol=1.5)
    np.testing.assert_array_equal(found.overlay(outlines=True), found.overlay(alpha=0))


channel = st.integers(0, 255)
rgb = st.tuples(channel, channel, channel)


@given(rgb, st.one_of(st.none(), rgb), st.booleans())
@example((34, 120, 30), (34, 120, 30), False)
@example((90, 90, 90), None, True)
@example((40, 40, 40), (0, 0, 0), True)
@example((0, 0, 0), (60, 0, 0), False)
@example((150, 150, 150), (130, 130, 130), True)
@settings(deadline=None, max_examples=60)
def test_a_masks_outline_stands_out_from_any_picture(ground: Any, colour: Any, outlines: bool) -> None:
    labels = np.zeros((60, 60), np.uint16)
    labels[20:40, 10:50], labels[7, 7] = 1, 1
    found = result(labels, ("grass",), np.full((60, 60, 3), ground, np.uint8))
    chosen = {} if colour is None else {"grass": colour}
    drawn = np.asarray(found.overlay(legend=False, outlines=outlines, colours=chosen))
    lightness = np.abs(lab(drawn) - lab(ground))[..., 0]
    # Inner and outer line differ by 45 or more, so that one of them differs by half of it from whatever they lie on.
    for row, column in ((20, 30), (39, 30), (30, 10), (30, 49), (7, 7)):
        assert lightness[row - 1 : row + 2, column - 1 : column + 2].max() > 22
    assert not outlines or (drawn[26:34, 16:44] == ground).all()


def test_a_mask_of_the_whole_picture_has_an_outline_too() -> None:
    drawn = np.asarray(result(np.ones((40, 50)), ("sky",)).overlay(legend=False, outlines=True))
    colour = word_colours(["sky"])[0]
    for side in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
        assert (side == colour).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 7), st.integers(0, 99))
@settings(deadline=None)
def test_outlines_are_as_thick_as_asked(height: int, width: int, thickness: int, seed: int) -> None:
    from fusioner_rt.results.overlay import _edges

    index = np.random.default_rng(seed).integers(0, 3, (height, width)) // 2
    edge = _edges(index, thickness, closed=False)
    thin = _edges(index, 1, closed=False)
    reach = thickness - 1
    expected = np.zeros_like(edge)
    for row, column in zip(*np.nonzero(thin), strict=True):
        expected[max(0, row - reach) : row + thickness, max(0, column - reach) : column + thickness] = True
    np.testing.assert_array_equal(edge, expected)


def test_one_mask_at_a_time() -> None:
    found = blocks(330, 400, TWELVE, seed=3)
    index = int(found.labels.max()) - 1
    word = TWELVE[index]
    one = result(np.where(found.labels == index + 1, index + 1, 0), TWELVE, found.picture)
    np.testing.assert_array_equal(found.overlay(words=word, legend=False), one.overlay(legend=False))
    np.testing.assert_array_equal(found.overlay(words=[word.upper()]), found.overlay(words=f" {word} "))
    np.testing.assert_array_equal(found.overlay(words="wall, hand"), found.overlay(words=["hand", "wall"]))
    np.testing.assert_array_equal(found.overlay(words=TWELVE), found.overlay())


def test_more_words_than_a_palette_holds() -> None:
    words = tuple(f"thing {n}" for n in range(300))
    labels = np.zeros((330, 330), np.uint16)
    labels[50:100, 50:100], labels[200:250, 50:100] = 300, 255
    drawn = np.asarray(result(labels, words).overlay(alpha=1))
    np.testing.assert_array_equal(drawn[75, 75], word_colours(words)[299])
    np.testing.assert_array_equal(drawn[225, 75], word_colours(words)[254])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"legend": "left"}, "legend is 'left'; give \"below\""),
        ({"legend": True}, "legend is True"),
        ({"legend": None}, "legend is None"),
        ({"legend": np.zeros(2)}, "legend is array"),
        ({"alpha": 1.1}, "alpha is 1.1; give 0 to 1"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": "0.5"}, "alpha is '0.5'"),
        ({"alpha": True}, "alpha is True"),
        ({"alpha": None}, "alpha is None"),
        ({"alpha": 1j}, "alpha is 1j"),
        ({"alpha": np.zeros(2)}, "alpha is array"),
        ({"outlines": "no"}, "outlines is 'no'"),
        ({"resize": 2}, "resize is 2"),
        ({"words": "dog"}, "words: 'dog' is none of the words; give of cat, sofa"),
        ({"words": ["cat", "dog"]}, "'dog' is none of the words"),
        ({"words": []}, "no word is named"),
        ({"words": 3}, "words: 3 names no words"),
        ({"words": [3]}, "names no words"),
        ({"colours": ["red"]}, "colours were given as list"),
        ({"colours": {1: "red"}}, "colours name 1 as a word"),
        ({"colours": {"cat": "rouge"}}, "colours: 'rouge' for 'cat' is no colour"),
        ({"colours": {"cat": (1, 2)}}, "is no colour"),
        ({"colours": {"cat": (1, 2, 256)}}, "is no colour"),
        ({"colours": {"cat": (0.5, 0, 0)}}, "is no colour"),
        ({"colours": {"cat": "#ff000080"}}, "is no colour"),
        ({"colours": {"cat": 7}}, "is no colour"),
    ],
)
def test_wrong_arguments_are_one_line(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        result(np.ones((4, 6)), ("cat", "sofa")).overlay(**wrong)
    assert "\n" not in str(error.value)


def test_saving_takes_an_overlays_arguments_where_it_writes_one(tmp_path: Path) -> None:
    found = blocks(330, 400, TWELVE)
    for name in ("a.jpg", "a.webp", "a.overlay.png"):
        assert Image.open(found.save(tmp_path / name, legend=False)).size == (400, 330)
    with pytest.raises(UsageError, match="legend"):
        found.save(tmp_path / "a.png", legend=False)


def test_percentages_never_call_something_nothing() -> None:
    assert [percent(share) for share in (0, 1e-6, 0.012, 0.0999, 0.345, 1)] == [
        "0.0%", "<0.1%", "1.2%", "10.0%", "34%", "100%",
    ]  # fmt: skip


def commands() -> Iterator[tuple[str, str]]:
    page = (ROOT / "docs" / "overlays.md").read_text()
    yield from re.findall(r"^```(python|sh)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def test_the_page_runs(tmp_path: Path) -> None:
    for name in ("docs", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    for language, block in commands():
        there = f"PATH={Path(sys.executable).parent}:/usr/bin:/bin"
        run = [sys.executable, "-c", block] if language == "python" else ["env", there, "sh", "-ec", block]
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "cat.overlay.png").width == 451
    assert Image.open(tmp_path / "output" / "cat.overlay.jpg").width > 451


def test_where_words_do_not_all_fit_those_with_most_pixels_are_listed() -> None:
    words = tuple(f"word{n:02}" for n in range(30))
    shares = np.linspace(0.0001, 0.06, 30)
    form = legend._Form("below", (240, 40), 11, 6, True)
    shown, _ = legend._some(words, shares, form)
    assert shown
    assert shown == sorted(shown)
    assert set(shown) == set(range(30 - len(shown), 30))


def test_a_picture_without_room_for_a_legend_is_not_enlarged() -> None:
    narrow = blocks(300, 40, ["cat", "sofa"])
    assert narrow.overlay(legend="right").size == (40, 300)
