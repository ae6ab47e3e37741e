"""A browser for the pages that people open, and what went wrong while it showed them."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    sync_playwright is None or CHROMIUM is None,
    reason="needs Playwright (pip install -r requirements-dev.txt) and Chromium (apt-get install chromium)")


# of this package, not of the session: while it is open its thread has an event loop, which other tests would meet
@pytest.fixture(scope="package")
def browser():
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visits(NamedTuple):
    """Opens pages; ``complaints`` are what went wrong in any of them, and all that they asked a network for."""

    browser: object
    complaints: list[str]

    def open(self, path: Path, **options):
        """Return a page, loaded; ``options`` are those of a browser context, such as ``color_scheme``."""
        page, complaints = self.browser.new_context(**options).new_page(), self.complaints
        page.on("console", lambda told: complaints.append(told.text) if told.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url:.80} {request.failure}"))
        page.on("request", lambda request: None if request.url.startswith(("data:", path.as_uri()))
                else complaints.append(f"requested: {request.url:.80}"))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(path.as_uri())
        return page


@pytest.fixture
def visits(browser):
    yield Visits(browser, [])
    for context in browser.contexts:
        context.close()
