"""The page for everyone: by keyboard alone, by ear, on a phone, in the dark."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from driven_page import Page
from selenium.webdriver.common.keys import Keys

_SPEC = importlib.util.find_spec("axe_playwright_python")
assert _SPEC is not None
assert _SPEC.origin is not None
AXE = next(Path(_SPEC.origin).parent.rglob("axe.min.js")).read_text()


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong, one line each."""
    page.cdp("Runtime.evaluate", expression=AXE)
    found = page.js("return axe.run(document, {resultTypes: ['violations']}).then(({violations}) => violations)")
    return [f"{one['id']}: {[node['target'] for node in one['nodes']]}" for one in found]


def focused(page: Page) -> str:
    return str(page.js("return document.activeElement.getAttribute('aria-label') ?? document.activeElement.id"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_is_wrong_for_axe_and_nothing_is_wider_than_the_window(page: Page, width: int, scheme: str) -> None:
    page.open(width=width, height=740, scheme=scheme)
    assert violations(page) == []
    page.one("#samples button").click()
    page.until(lambda: page.found("cat", "sofa"))
    page.js("document.querySelector('#problem').hidden = false")
    page.js("document.querySelector('#problem-found').textContent = 'Something is wrong. '.repeat(9)")
    assert violations(page) == []
    assert page.js("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    ends = {
        button.accessible_name: button.rect["x"] + button.rect["width"]
        for button in page.all("button")
        if button.is_displayed()
    }
    assert {name: end for name, end in ends.items() if end > width} == {}
    page.js("document.querySelector('#help').showModal()")
    assert violations(page) == []
    dark = sum(map(int, page.one("body").value_of_css_property("background-color")[5:-4].split(","))) < 3 * 64
    assert dark == (scheme == "dark")


def test_the_keyboard_alone_leads_from_loading_to_masks_and_back(page: Page) -> None:
    def tab_to(label: str) -> None:
        for _ in range(60):
            if label in focused(page):
                break
            page.press(Keys.TAB)
        assert label in focused(page)
        outline = page.js("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or label == "word"  # the field's box shows it

    tab_to("A cat")
    page.press(Keys.ENTER)
    page.until(lambda: page.found("cat", "sofa"))
    assert page.text("#said") == "cat.jpg: cat 79 %, sofa not found"

    page.press("w", *"nose", Keys.ENTER)
    page.until(lambda: page.found("cat", "sofa", "nose"))
    page.press(Keys.BACKSPACE)
    page.until(lambda: page.found("cat", "sofa"))
    page.press(Keys.ARROW_LEFT)
    assert focused(page) == "sofa"
    page.press("g")
    page.until(lambda: page.found("cat | sofa"))
    assert focused(page) == "Group cat, sofa"
    page.press("u")
    page.until(lambda: page.found("cat", "sofa"))
    page.press(Keys.ARROW_RIGHT, Keys.DELETE)
    page.until(lambda: page.found("cat"))

    tab_to("Hide cat")
    page.press(Keys.SPACE)
    assert page.painted() == 0
    page.press(Keys.SPACE, "]")
    assert page.text("#threshold-said") == "55 %"
    page.press("h")
    assert page.painted() == 0
    page.press("h", "?")
    page.until(lambda: page.one("#help").is_displayed())
    page.press(Keys.ESCAPE)
    assert not page.one("#help").is_displayed()

    tab_to("Picture with masks")
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert not page.one("#crosshair").get_property("hidden")
    assert page.text("#said").startswith("cat ")


def test_keys_may_be_switched_off(page: Page) -> None:
    page.press("?")
    page.until(lambda: page.one("#help").is_displayed())
    page.one("#keys-on").click()
    page.press(Keys.ESCAPE, "?")
    assert not page.one("#help").is_displayed()


def test_who_wants_no_motion_sees_none(page: Page) -> None:
    page.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    page.js("document.querySelector('#busy').hidden = false")
    assert page.js("return getComputedStyle(document.querySelector('#busy'), '::after').animationName") == "none"


def test_in_the_colours_of_the_system_focus_and_what_is_pressed_are_seen(page: Page) -> None:
    page.one("#samples button").click()
    page.until(lambda: page.found("cat", "sofa"))
    page.cdp("Emulation.setEmulatedMedia", features=[{"name": "forced-colors", "value": "active"}])

    def style(selector: str, name: str) -> str:
        return str(
            page.js("return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, name)
        )

    page.one("#word").click()
    assert style(".words", "outlineStyle") == "solid"
    before = style(".hide", "backgroundColor")
    page.one(".hide").click()
    assert style(".hide", "backgroundColor") != before


def test_why_a_token_is_asked_for_again_belongs_to_its_field(page: Page) -> None:
    assert page.one("#token-value").get_attribute("aria-describedby") == "token-said"
