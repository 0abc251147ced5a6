"""The page in a browser, and services to load it from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

ROOT = Path(__file__).parents[2]
MOST_WORDS = 12
PICTURES = ROOT / "docs/pictures"


class Page:
    """The page in a browser."""

    def __init__(self, driver: webdriver.Chrome, address: str, downloads: Path) -> None:
        self.driver, self.address, self.downloads = driver, address, downloads

    def open(self, address: str | None = None, width: int = 1280, height: int = 860, scheme: str = "light") -> None:
        """Load it anew in a window of that size."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.cdp("Emulation.setDeviceMetricsOverride", **metrics)
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.driver.get(address or self.address)
        self.until(lambda: len(self.all("#samples button")) == 3)

    def cdp(self, command: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """What stands there, whether it is seen or not."""
        return str(self.one(selector).get_property("textContent"))

    def press(self, *keys: str) -> None:
        """Keys as a person presses them, wherever the focus is."""
        for key in keys:
            webdriver.ActionChains(self.driver).send_keys(key).perform()

    def until(self, holds: Callable[[], Any], seconds: float = 30) -> Any:
        """What `holds` returns once it is true."""
        end = time.monotonic() + seconds
        while True:
            failed: BaseException | None = None
            try:
                if found := holds():
                    return found
            except Exception as error:
                failed = error
            if time.monotonic() > end:
                seen = " ".join(self.text("body").split())
                raise AssertionError(f"waited {seconds} s in vain; the page says: {seen}") from failed
            time.sleep(0.02)

    def drop(self, path: Path) -> None:
        """A file from a file manager, as the browser itself gets it."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.cdp("Input.dispatchDragEvent", type=kind, x=300, y=300, data=data)

    def add_words(self, text: str) -> None:
        self.one("#word").send_keys(text + Keys.ENTER)

    def found(self, *words: str) -> bool:
        """Whether the masks of these words are there, and nothing is awaited."""
        names = [name.get_property("textContent") for name in self.all(".result .name")]
        return names == list(words) and not self.one("#busy").is_displayed()

    def painted(self) -> int:
        """Pixels that masks cover."""
        return int(
            self.js(
                """return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
                const canvas = document.querySelector("#masks");
                const context = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
                context.drawImage(canvas, 0, 0);
                const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
                let count = 0;
                for (let at = 3; at < pixels.length; at += 4) count += pixels[at] > 0;
                done(count);
                })))"""
            )
        )

    def requests(self) -> int:
        """How many this page has made of the service."""
        return len(self.js("return performance.getEntriesByType('resource').filter(({name}) => name.includes('/v1/'))"))

    def received(self) -> int:
        """Bytes that the browser got for this page, headers included: the page, its files and answers."""
        return int(
            self.js(
                """return ["navigation", "resource"].flatMap((type) => performance.getEntriesByType(type))
                .reduce((sum, { transferSize }) => sum + transferSize, 0)"""
            )
        )

    def saved(self, button: str, ending: str) -> Path:
        """The file that a button downloads."""
        self.one(button).click()
        return self.until(lambda: next(self.downloads.glob(f"*{ending}"), None))

    def complaints(self) -> list[str]:
        """What the console shows but for requests that were refused."""
        logged = [entry["message"] for entry in self.driver.get_log("browser")]
        return [message for message in logged if "Failed to load resource" not in message]


def chromium(profile: Path) -> webdriver.Chrome:
    """Debian's Chromium, with a camera that it draws itself. profile: an empty folder."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--lang=en",
        f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))


@contextmanager
def served(*arguments: str, **environment: str) -> Iterator[str]:
    """The address of a service of its own."""
    command = [
        sys.executable,
        "-m",
        "fusioner_rt",
        "serve",
        "--engine",
        "models/demo/bundle",
        "--port",
        "0",
        *arguments,
    ]
    service = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert service.stderr is not None
    try:
        told = ""
        while not (address := re.search(r"http://\S+", told)):
            line = service.stderr.readline()
            assert line, f"the service did not start: {told}"
            told += line
        threading.Thread(target=service.stderr.read, daemon=True).start()  # so that its log never blocks it
        yield address[0] + "/"
    finally:
        service.terminate()
        assert service.wait(20) == 0
