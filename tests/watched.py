"""A page in a browser, and what it complained about or asked the network for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


class Watched:
    """A page and whatever it complained about or asked the network for."""

    def __init__(self, browser: Any, file: Path | str, viewport: dict[str, int]) -> None:
        self.page = browser.new_context(reduced_motion="reduce", viewport=viewport).new_page()
        self.trouble: list[str] = []
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("console", lambda m: self.trouble.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else self.trouble.append(r.url))
        self.page.goto(file if isinstance(file, str) else file.as_uri())

    def draw_all(self) -> None:
        """Bring every plot of the shown group into view, so that it is drawn."""
        # A click on a group's name shows it a moment later.
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        for plot in self.page.locator(".group:not([hidden]) .plot").all():
            plot.scroll_into_view_if_needed()
            plot.locator("svg.main-svg").first.wait_for()
