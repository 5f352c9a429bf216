"""A headless Chromium for the two checks, or a message that says what to install."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from selenium import webdriver

DESKTOP, PHONE = (1280, 900), (390, 844)


def missing() -> str:
    """Return what to install for a browser check, or an empty text where everything is here."""
    absent = "Chromium" if not _browser() else "chromedriver" if not shutil.which("chromedriver") else ""
    return f"SKIPPED, no page was opened: {absent} is missing. On Debian: apt-get install chromium chromium-driver" \
        if absent else ""


def _browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """Yield a browser that keeps the messages of its console; :func:`missing` says beforehand whether there is one."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(_browser())
    for switch in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        opened.set_script_timeout(120)
        opened.set_window_size(*DESKTOP)
        yield opened
    finally:
        opened.quit()


def resize(browser: webdriver.Chrome, size: tuple[int, int]) -> None:
    """Give the page exactly ``size``; a window cannot be made as narrow as a phone."""
    width, height = size
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE})


def console_errors(browser: webdriver.Chrome) -> list[str]:
    """Return and forget the errors of the console."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
