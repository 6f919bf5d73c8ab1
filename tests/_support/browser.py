"""A headless Chromium for tests, by selenium; they skip with a reason where a part of it is missing."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest


def _program(*names):
    path = next((path for name in names if (path := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"needs {names[0]}")
    return path


class Browser:
    """A browser with one tab.

    Attributes:
        driver: selenium's.
    """

    def __init__(self, driver):
        self.driver = driver

    def display(self, width, scheme="light", height=900):
        """Have the page be so many CSS pixels wide, in the color scheme 'light' or 'dark'."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def press(self, key):
        """Press a key in what has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(key).perform()

    def wait(self, condition, seconds=30):
        """Wait until a function without arguments gives a true value; returns that."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, seconds, poll_frequency=0.05).until(lambda _: condition())

    def events(self):
        """(URLs that were requested, lines of the console) since the last call; violations of a policy are lines."""
        urls = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                urls.append(message["params"]["request"]["url"])
        return urls, [entry["message"] for entry in self.driver.get_log("browser")]


@contextlib.contextmanager
def browsing():
    """A `Browser`. The test skips where selenium, Chromium or its driver is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chromium, driver = _program("chromium", "chromium-browser", "google-chrome"), _program("chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    # The sandbox refuses to run as root, and containers have little shared memory.
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-first-run"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
