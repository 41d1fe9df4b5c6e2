"""Draws docs/report.png anew, the first screen of a report on photographs: `python docs/generate_picture.py`, or another file after that.

Needs Chromium and playwright (`pip install ".[test]"`).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from flowers_bench.cli.report import write_report

TARGET = Path(__file__).with_name("report.png")
#: What `flowers-bench start` and a shorter fine-tuning stored of photographs of 17 flowers, without the networks and the photographs.
RUNS = Path(__file__).parents[1] / "benchmarks" / "results" / "flowers17-start"
#: Width and height of the picture, in pixels.
SCREEN = {"width": 1280, "height": 800}


def first_screen(store: Path) -> bytes:
    """Give a PNG of what a reader of the store's report sees first."""
    browsers = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, browsers)), None)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        page_file = Path(place) / "report.html"
        write_report(store, page_file, store="runs")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport=SCREEN, color_scheme="light", reduced_motion="reduce")
        page.goto(page_file.as_uri())
        page.locator(".group:not([hidden]) [data-plot=cost] svg").wait_for()
        taken = page.screenshot()
        browser.close()
    return taken


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.write_bytes(first_screen(RUNS))
