"""Pages as people see them: headless Chromium through Selenium, and the data in a page as numbers.

Skips where either is missing. `apt-get install chromium chromium-driver` and `pip install selenium` bring them.
"""

import base64
import json
import re
import shutil
from contextlib import contextmanager

import numpy as np
import pytest

WIDE, NARROW = 1280, 390
_NUMBERS = {"f16": "<f2", "u1": "<u1", "u2": "<u2", "u4": "<u4"}


def page_data(html):
    """The data that a page carries."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def unpacked(packed):
    """The array of `ddfnet.pages.pack.pack`."""
    values = np.frombuffer(base64.b64decode(packed["data"]), _NUMBERS[packed["type"]]).reshape(packed["shape"])
    return values.astype(np.float64) * packed["scale"] if packed["type"] == "f16" else values


@contextmanager
def chromium():
    """A driver whose pages may touch nothing but files."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def visit(browser, path, *, width=WIDE, dark=False):
    """Opens a file as a window of this width shows it; fails for an error of its scripts, and where it is wider than
    the window."""
    from selenium.webdriver.support.ui import WebDriverWait

    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(path.resolve().as_uri())
    ready = "return document.documentElement.dataset.ready === 'true'"
    WebDriverWait(browser, 60).until(lambda browser: browser.execute_script(ready), "the page's scripts did not end")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    no_errors(browser)


def no_errors(browser):
    """No error on the console, and no request but for the page itself."""
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    requests = browser.execute_script("return performance.getEntriesByType('resource').map((r) => r.name)")
    assert [name for name in requests if not name.startswith("data:")] == []


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def click(browser, element):
    """A click in the middle of the window, where nothing covers the element."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    element.click()
