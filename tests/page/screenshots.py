"""Photographs the page for the docs: python tests/page/screenshots.py writes docs/serve/*.jpg."""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path

from driven_page import ROOT, Page, chromium, served
from PIL import Image
from selenium.webdriver import ActionChains

SHOWN = {  # width, height, colour scheme, number of the sample
    "wide": (1360, 900, "light", 1),
    "dark": (1360, 900, "dark", 0),
    "phone": (360, 800, "light", 0),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as profile, served() as address:
        driver = chromium(Path(profile))
        page = Page(driver, address, Path(profile))
        for name, (width, height, scheme, sample) in SHOWN.items():
            for _ in range(2):  # the second one times known words
                page.open(width=width, height=height, scheme=scheme)
                page.all("#samples button")[sample].click()
                page.until(lambda: page.all(".result") and not page.one("#busy").is_displayed())
            page.js("document.activeElement.blur()")
            if width > 600:
                ActionChains(driver).move_to_element(page.one("#frame")).perform()
            page.painted()
            png = base64.b64decode(page.cdp("Page.captureScreenshot", format="png")["data"])
            Image.open(io.BytesIO(png)).convert("RGB").save(ROOT / f"docs/serve/{name}.jpg", quality=84, optimize=True)
        driver.quit()


if __name__ == "__main__":
    main()
