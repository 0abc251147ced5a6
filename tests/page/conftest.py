"""The service with the demonstration bundle, and a real Chromium that looks at its page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from driven_page import MOST_WORDS, Page, chromium, served
from selenium import webdriver


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    with served("--max-words", str(MOST_WORDS)) as address:
        yield address


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver = chromium(tmp_path_factory.mktemp("chromium"))
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
