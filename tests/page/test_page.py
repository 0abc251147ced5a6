"""The page as people use it: pictures, words, masks, downloads, the camera, errors."""

from __future__ import annotations

import itertools
import json
import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from driven_page import MOST_WORDS, PICTURES, ROOT, Page, served
from PIL import Image
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from fusioner_rt import Segmentation, Session
from fusioner_rt.results import rle
from fusioner_rt.results.colours import word_colours

CAT = PICTURES / "cat.jpg"


@pytest.fixture(scope="session")
def exact() -> Segmentation:
    with Session(ROOT / "models/demo/bundle") as session:
        return session.segment(CAT, "cat, sofa", threshold=0.5)


@pytest.fixture
def cat(page: Page) -> Page:
    """The page with masks."""
    page.drop(CAT)
    page.add_words("cat, sofa")
    page.until(lambda: page.found("cat", "sofa"))
    return page


def test_a_dropped_picture_and_words_become_masks_in_the_words_own_colours(cat: Page, exact: Segmentation) -> None:
    shares = [row.get_property("textContent") for row in cat.all(".result .share")]
    assert shares == [f"{exact.shares[0]:.0%}".replace("%", " %"), "not found"]
    red, green, blue = word_colours(["cat", "sofa"])[0]
    assert cat.one(".result .dot").value_of_css_property("background-color") == f"rgba({red}, {green}, {blue}, 1)"
    assert cat.text(".result .score") == f"score {exact.scores[0]:.2f}"
    pixels = cat.js("return [document.querySelector('#masks').width, document.querySelector('#masks').height]")
    assert cat.painted() / (pixels[0] * pixels[1]) == pytest.approx(exact.shares[0], abs=0.01)
    assert cat.one("#canvases").get_attribute("aria-label") == "cat.jpg: cat 79 %, sofa not found"


def test_the_threshold_moves_masks_and_figures_without_a_request(cat: Page) -> None:
    before, requests = cat.painted(), cat.requests()
    slider = cat.one("#threshold")
    slider.send_keys(Keys.END)
    assert 0 < cat.painted() < before
    slider.send_keys(Keys.HOME)
    pixels = cat.js("return document.querySelector('#masks').width * document.querySelector('#masks').height")
    assert cat.painted() == pixels  # every pixel has a best word
    cat.one("#opacity").send_keys(Keys.HOME)
    assert cat.painted() == 0
    assert cat.requests() == requests


def test_masks_are_hidden_and_isolated(cat: Page) -> None:
    whole = cat.painted()
    cat.one(".hide").click()
    assert cat.painted() == 0
    assert cat.one(".hide").get_attribute("aria-pressed") == "true"
    cat.one(".hide").click()
    assert cat.painted() == whole
    cat.all(".isolate")[1].click()  # the sofa, which has no pixel
    assert cat.painted() == 0
    cat.all(".isolate")[0].click()
    assert cat.painted() == whole


def test_other_words_cost_no_second_picture(cat: Page) -> None:
    requests = cat.requests()
    cat.add_words("nose")
    cat.until(lambda: cat.found("cat", "sofa", "nose"))
    assert cat.requests() == requests + 1
    sent = cat.js("return performance.getEntriesByType('resource').map(({name}) => name.split('/').pop())")
    assert sent.count("encode") == 1


def test_words_are_joined_and_split(cat: Page) -> None:
    cat.one(".group").click()
    cat.all(".group")[1].click()
    cat.until(lambda: cat.found("cat | sofa"))
    assert [chip.text.strip("×\n") for chip in cat.all(".chip")] == ["cat | sofa"]
    cat.one(".split").click()
    cat.until(lambda: cat.found("cat", "sofa"))
    chips = cat.all(".chip")
    ActionChains(cat.driver).drag_and_drop(chips[1], chips[0]).perform()
    cat.until(lambda: cat.found("cat | sofa"))
    cat.one(".chip .gone").click()
    cat.until(lambda: not cat.all(".result"))
    assert cat.painted() == 0


def test_the_pixel_under_the_pointer_says_its_word(cat: Page, exact: Segmentation) -> None:
    frame = cat.one("#frame")
    for right, down in ((0.5, 0.5), (0.95, 0.1), (0.9, 0.6), (0.1, 0.9)):
        offset = [round((part - 0.5) * frame.rect[edge]) for part, edge in ((right, "width"), (down, "height"))]
        ActionChains(cat.driver).move_to_element_with_offset(frame, *offset).perform()
        at = int(down * exact.labels.shape[0]), int(right * exact.labels.shape[1])
        word, probability = re.fullmatch(r"(.+) <?([\d.]+) %", cat.text("#tip")).groups()  # type: ignore[union-attr]
        assert word == ("cat" if exact.labels[at] else "at best cat")
        assert float(probability) == pytest.approx(100 * exact.confidence[at], abs=4)  # the masks shown are larger


def test_the_label_map_has_the_picture_s_own_size_and_the_session_s_pixels(cat: Page, exact: Segmentation) -> None:
    file = cat.saved("#save-labels", "cat.labels.png")
    assert np.array_equal(np.asarray(Image.open(file)), exact.labels)


def test_the_coco_document_holds_the_masks(cat: Page, exact: Segmentation) -> None:
    document = json.loads(cat.saved("#save-coco", "cat.coco.json").read_text())
    height, width = exact.labels.shape
    assert document["images"] == [{"id": 1, "width": width, "height": height, "file_name": "cat.jpg"}]
    assert document["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "sofa"}]
    (entry,) = document["annotations"]
    (own,) = exact.to_coco(compressed=True)
    assert entry == own
    assert entry["segmentation"]["counts"] == rle.compress(rle.run_lengths(exact["cat"]))


def test_the_overlay_is_the_picture_with_its_masks(cat: Page, exact: Segmentation) -> None:
    overlay = Image.open(cat.saved("#save-overlay", "cat.overlay.jpg"))
    assert (overlay.format, overlay.size) == ("JPEG", (exact.labels.shape[1], exact.labels.shape[0]))
    inside = exact.labels == 1
    tinted = 0.45 * exact.picture[inside] + 0.55 * word_colours(["cat", "sofa"])[0]
    pixels = np.asarray(overlay, np.float64)
    assert np.abs(pixels[inside] - tinted).mean() < 6  # JPEG and the edges, which are denser
    assert np.abs(pixels[~inside] - exact.picture[~inside]).mean() < 6


def test_a_text_file_is_refused_in_sentences(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    page.drop(tmp_path / "notes.txt")
    page.until(lambda: page.one("#problem").is_displayed())
    assert page.one("#empty").is_displayed()
    assert page.text("#problem-found").endswith(".")
    assert page.text("#problem-cure").endswith(".")
    assert page.text("#problem-id").startswith("Request ")
    page.one("#problem-close").click()
    page.one("#file").send_keys(str(CAT))
    page.add_words("cat")
    page.until(lambda: page.found("cat"))
    assert not page.one("#problem").is_displayed()
    page.drop(tmp_path / "notes.txt")
    page.until(lambda: page.one("#problem").is_displayed())
    assert page.found("cat")  # what was there stays
    page.add_words("sofa")
    page.until(lambda: page.found("cat", "sofa"))


def test_a_sample_that_cannot_be_loaded_is_an_error_that_is_shown(page: Page) -> None:
    page.cdp("Network.enable")
    page.cdp("Network.setBlockedURLs", urls=["*samples/cat.jpg"])
    try:
        page.one("#samples button").click()
        page.until(lambda: page.one("#problem").is_displayed())
        assert page.text("#problem-found") == "The service does not answer."
    finally:
        page.cdp("Network.setBlockedURLs", urls=[])
    page.one("#samples button").click()
    page.until(lambda: page.found("cat", "sofa"))


def test_a_camera_that_is_not_allowed_yet_has_no_frame_to_keep(page: Page) -> None:
    page.js("navigator.mediaDevices.getUserMedia = () => new Promise(() => {})")
    page.press("c", "k")
    page.js("return new Promise((done) => setTimeout(done, 300))")
    assert not page.one("#problem").is_displayed()
    assert page.one("#camera").get_attribute("aria-pressed") == "true"
    page.press("c")
    page.one("#file").send_keys(str(CAT))
    page.add_words("cat")
    page.until(lambda: page.found("cat"))


def test_too_many_words_are_refused_and_fewer_work(cat: Page) -> None:
    cat.add_words(", ".join(f"thing {number}" for number in range(MOST_WORDS - 1)))
    cat.until(lambda: f"at most {MOST_WORDS}" in cat.text("#problem-found"))
    cat.one("#word").send_keys(Keys.BACKSPACE)
    cat.until(lambda: len(cat.all(".result")) == MOST_WORDS)
    assert not cat.one("#problem").is_displayed()


def test_words_and_names_are_text_and_never_markup(page: Page, tmp_path: Path) -> None:
    picture = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    picture.write_bytes(CAT.read_bytes())
    page.drop(picture)
    page.add_words("<b>cat</b>")
    page.until(lambda: page.found("<b>cat</b>") or page.one("#problem").is_displayed())
    assert not page.all("#chips b, #results b, img[src=x]")
    assert page.text(".chip .text") == "<b>cat</b>"


def test_a_picture_is_pasted(page: Page) -> None:
    origin = page.address.rstrip("/")
    page.cdp("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"], origin=origin)
    page.js(
        """const canvas = document.createElement("canvas");
        const bitmap = await createImageBitmap(await (await fetch("page/samples/cat.jpg")).blob());
        [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
        canvas.getContext("2d").drawImage(bitmap, 0, 0);
        const png = await new Promise((done) => canvas.toBlob(done));
        await navigator.clipboard.write([new ClipboardItem({"image/png": png})]);"""
    )
    page.one("#word").click()
    ActionChains(page.driver).key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()
    page.add_words("cat")
    page.until(lambda: page.found("cat"))
    assert page.one("#canvases").get_attribute("aria-label").startswith("pasted.png: cat 79 %")


def test_a_turned_photograph_is_upright(page: Page, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° to be shown
    Image.open(CAT).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    assert page.one("#lens").get_attribute("capture") == "environment"
    page.one("#lens").send_keys(str(tmp_path / "phone.jpg"))
    page.add_words("cat")
    page.until(lambda: page.found("cat"))
    sizes = page.js(
        "return ['picture', 'masks'].map((id) => document.getElementById(id)).map((c) => c.width / c.height)"
    )
    assert sizes == pytest.approx([451 / 300] * 2, rel=0.01)
    assert page.text(".result .share") == "79 %"


def test_what_the_browser_cannot_read_has_masks_nevertheless(page: Page, tmp_path: Path) -> None:
    Image.open(CAT).save(tmp_path / "scan.tiff")
    page.drop(tmp_path / "scan.tiff")
    page.add_words("cat")
    page.until(lambda: page.found("cat"))
    assert page.text(".result .share") == "79 %"
    assert page.painted() > 0
    assert "cannot show" in page.text("#notes")


def test_the_camera_shows_masks_and_its_rate_with_one_request_at_a_time(page: Page) -> None:
    page.add_words("cat")
    page.one("#camera").click()
    page.until(lambda: "frames per second" in page.text("#rate") and page.found("cat"))
    hide = page.one(".hide")
    hide.click()
    before = page.requests()
    page.until(lambda: page.requests() > before + 3)
    assert hide.get_attribute("aria-pressed") == "true"  # frames take no row away
    times = page.js(
        """return performance.getEntriesByType("resource").filter(({name}) => name.endsWith("/v1/segment"))
        .map(({startTime, responseEnd}) => [startTime, responseEnd])"""
    )
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))
    page.one("#snap").click()
    page.until(lambda: page.one("#save").is_displayed() and page.found("cat"))
    assert not page.one("#rate").is_displayed()
    assert page.one("#canvases").get_attribute("aria-label").startswith("camera.jpg: cat")


def test_a_token_is_asked_for_and_a_forgotten_picture_is_sent_again(page: Page) -> None:
    with served("--handles", "1", FUSIONER_TOKEN="open-sesame") as address:
        page.open(address)
        page.until(lambda: page.one("#token").is_displayed())
        page.press(*"wrong", Keys.ENTER)
        page.until(lambda: "not the right one" in page.text("#token-said"))
        page.press(*"open-sesame", Keys.ENTER)
        page.until(lambda: not page.one("#token").is_displayed())
        page.drop(CAT)
        page.add_words("cat")
        page.until(lambda: page.found("cat"))
        request = urllib.request.Request(address + "v1/encode", CAT.read_bytes(), method="POST")
        request.add_header("Content-Type", "image/jpeg")
        request.add_header("Authorization", "Bearer open-sesame")
        urllib.request.urlopen(request).close()  # takes the one place there is
        page.add_words("sofa")
        page.until(lambda: page.found("cat", "sofa"))
        sent = page.js("return performance.getEntriesByType('resource').map(({name}) => name.split('/').pop())")
        assert sent.count("encode") == 2
