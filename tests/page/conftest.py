"""The service with the demonstration bundle, and a real Chromium that looks at its page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from driven_page import MOST_WORDS, Page, served
from selenium import webdriver


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    with served("--max-words", str(MOST_WORDS)) as address:
        yield address


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--lang=en",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, address: str, tmp_path: Path) -> Iterator[Page]:
    """The page, loaded. In the end its console must be empty."""
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    page = Page(browser, address, downloads)
    page.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
    page.complaints()
    page.open()
    yield page
    assert page.complaints() == []
