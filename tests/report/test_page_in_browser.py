"""The page in a real browser: quiet, usable by keyboard, accessible, on a phone, in light and dark, with many trials."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import outcomes, store_trial
from watched import DESK, PHONE, Watched

from flowers_bench.cli.report import report

#: The side of the drawn images: no picture is made larger than it is stored.
DRAWN_SIDE = 32


def test_everything_is_drawn_without_trouble(watched: Watched) -> None:
    for link in watched.page.locator(".groups a").all():
        link.click()
        watched.draw_all()
        assert watched.page.locator(".group:not([hidden])").count() == 1
    assert watched.trouble == []


def test_hostile_names_show_as_text(watched: Watched) -> None:
    watched.page.locator(".groups a", has_text="meadow").click()
    watched.draw_all()
    page = watched.page
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0
    hostile = "<img src=x onerror=window.hacked=1>"
    assert hostile in page.locator(".group:not([hidden]) .board").inner_text()
    assert hostile in page.locator(".group:not([hidden]) .explorer").inner_text()
    assert "<img src=x" in " ".join(page.locator("[data-plot=curves] .legendtext").all_text_contents())
    assert page.locator(".command code", has_text=hostile).count() > 0


def test_axe_finds_nothing(watched: Watched) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = watched.page
    page.locator(".groups a", has_text="meadow").click()
    watched.draw_all()
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    page.locator(".group:not([hidden]) .all-columns").check()
    page.locator(".group:not([hidden]) .enlarge").first.click()
    assert axe.Axe().run(page).response["violations"] == []
    page.keyboard.press("Escape")
    for scheme, size in (("light", DESK), ("dark", DESK), ("dark", PHONE)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size(size)
        found = axe.Axe().run(page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found] == [], (scheme, size)


def test_a_phone_scrolls_in_one_direction_only(browser: Any, page_file: Path) -> None:
    watched = Watched(browser, page_file, PHONE)
    watched.draw_all()
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 390
    watched.page.context.close()


def test_sorting_by_keyboard(watched: Watched) -> None:
    watched.page.locator(".groups a", has_text="meadow").click()
    board = watched.page.locator(".group:not([hidden]) .board")
    names = board.locator("tbody th")
    first = names.all_inner_texts()
    assert first[0] == "wise/good"
    head = board.get_by_role("button", name="top-1 %")
    head.focus()
    watched.page.keyboard.press("Enter")
    assert names.all_inner_texts() == first[::-1]
    assert board.locator("th[aria-sort=ascending]").inner_text().startswith("top-1 %")
    board.get_by_role("button", name="technique").press("Space")
    assert names.all_inner_texts() == sorted(first, key=str.lower)


def test_every_control_is_reached_by_tab(watched: Watched) -> None:
    watched.page.locator(".groups a", has_text="garden").click()
    wanted = watched.page.evaluate(
        "[...document.querySelectorAll('button, select, input, summary, a[href]')]"
        ".filter((e) => e.checkVisibility() && !e.closest('details:not([open]) > :not(summary)')).length"
    )
    watched.page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(4 * wanted):
        watched.page.keyboard.press("Tab")
        mark = "(window.marks ??= new Map(), marks.set(document.activeElement, marks.get(document.activeElement) ?? marks.size), marks.get(document.activeElement))"
        reached.add(watched.page.evaluate(mark))
    tags = watched.page.evaluate(
        "[...marks.keys()].filter((e) => e.matches('button, select, input, summary, a[href]')).length"
    )
    assert tags == wanted


def test_ticked_rows_are_drawn(watched: Watched) -> None:
    watched.page.locator(".groups a", has_text="meadow").click()
    watched.draw_all()
    curves = watched.page.locator(".group:not([hidden]) [data-plot=curves]")
    before = curves.evaluate("(e) => e.data.length")
    watched.page.locator(".group:not([hidden]) .draw").first.press("Space")
    assert curves.evaluate("(e) => e.data.length") == before - 2
    watched.page.locator(".group:not([hidden]) .curve").select_option("train_loss")
    assert curves.evaluate("(e) => e.data.at(-1).y[0]") == 2.0


def test_the_explorer_follows_its_menu(watched: Watched) -> None:
    watched.page.locator(".groups a", has_text="meadow").click()
    explorer = watched.page.locator(".group:not([hidden]) .explorer")
    before = explorer.inner_text()
    assert explorer.locator("img").first.evaluate("(i) => i.decode().then(() => i.naturalWidth)") == DRAWN_SIDE
    watched.page.locator(".group:not([hidden]) .explore").select_option("2")
    assert explorer.inner_text() != before


def test_the_confusion_matrix_is_read_by_keyboard(watched: Watched) -> None:
    page = watched.page
    page.locator(".groups a", has_text="meadow").click()
    heat = page.locator(".group:not([hidden]) .heat")
    canvas, cell = heat.locator("canvas"), heat.locator(".cell")
    canvas.scroll_into_view_if_needed()
    canvas.focus()
    assert cell.inner_text().startswith("rose is recognised: ")
    group = page.locator(".group:not([hidden])").get_attribute("data-group")
    rows = page.evaluate("(id) => JSON.parse(document.getElementById('data').textContent)[id].rows", group)
    share = rows[0]["per_class"][0][1]
    assert cell.inner_text() == f"rose is recognised: {int(100 * share + 0.5)} %"  # halves go up there
    page.keyboard.press("ArrowRight")
    assert cell.inner_text().startswith("rose taken for </script>")
    page.keyboard.press("End")
    page.keyboard.press("PageDown")
    last = cell.inner_text()
    assert "is recognised" in last
    painted = "(c) => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    assert canvas.evaluate(painted) > 3

    def repainted_after(change: Callable[[], object]) -> None:
        """Waits until the picture is another one: a page is told of such changes some time after they are made."""
        before = canvas.evaluate("(c) => c.toDataURL()")
        change()
        page.wait_for_function("([c, before]) => c.toDataURL() !== before", arg=[canvas.element_handle(), before])

    repainted_after(lambda: page.locator(".group:not([hidden]) .explore").select_option("2"))
    repainted_after(lambda: page.emulate_media(color_scheme="dark"))
    repainted_after(lambda: page.emulate_media(color_scheme="light"))
    assert watched.trouble == []


def test_stress_levels_are_named(watched: Watched) -> None:
    watched.page.locator(".groups a", has_text="meadow").click()
    watched.draw_all()
    ticks = watched.page.locator("[data-plot=stress][data-kind=rotation] .xtick text").all_text_contents()
    assert ticks[0] == "none"
    assert "<img src=x" in ticks[1]


def test_kinds_of_change_keep_their_order_and_share_a_legend(watched: Watched) -> None:
    watched.page.locator(".groups a", has_text="meadow").click()
    card = watched.page.locator(".group:not([hidden])")
    kinds = card.locator("[data-plot=stress]").evaluate_all("(plots) => plots.map((plot) => plot.dataset.kind)")
    assert kinds == ["rotation", "blur"]
    assert card.locator(".legend li").all_inner_texts() == ["wise/good"]
    card.locator(".draw").first.press("Space")
    assert card.locator(".legend li").count() == 0


def test_costs_have_axes_in_words(watched: Watched) -> None:
    watched.page.locator(".groups a", has_text="meadow").click()
    watched.draw_all()
    card = watched.page.locator(".group:not([hidden])")
    plot, menu = card.locator("[data-plot=cost]"), card.locator("select.cost")
    found = {}
    for key in menu.locator("option").evaluate_all("(options) => options.map((option) => option.value)"):
        menu.select_option(key)
        found[key] = plot.locator(".xtitle").text_content()
        ticks = plot.locator(".xtick text").all_text_contents()
        assert ticks
        assert all(float(tick.replace(",", "")) for tick in ticks)
    assert found["seconds"] == "training time, s"
    assert found["search_seconds"] == "search time, minutes"
    assert found["data_wait_share"] == "waiting for data, %"
    assert found["peak_rss_bytes"] == "peak memory, MiB"


def test_the_theme_can_be_chosen(watched: Watched) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = watched.page.evaluate(colour)
    button = watched.page.locator("#theme")
    button.press("Enter")
    assert watched.page.evaluate(colour) == light
    button.press("Enter")
    assert watched.page.evaluate(colour) != light
    assert button.inner_text() == "Theme: dark"


def test_a_link_to_a_row_opens_it(watched: Watched) -> None:
    watched.page.locator(".groups a", has_text="meadow").click()
    watched.page.locator(".group:not([hidden]) .board tbody th a").first.click()
    watched.page.locator(".group:not([hidden]) details.row[open] .command").first.wait_for()


@pytest.mark.slow
def test_five_hundred_trials_open_in_a_second(browser: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(167):
        for seed in range(3):
            accuracy = 0.5 + 0.4 * rng.random()
            store_trial(tmp_path / "runs", f"technique{number // 10}/variant{number}", seed, outcomes(seed, accuracy))
    report(tmp_path / "runs", tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 1.5e6
    page = browser.new_context(viewport=DESK).new_page()
    session = page.context.new_cdp_session(page)
    session.send(
        "Performance.enable", {"timeDomain": "threadTicks"}
    )  # of the processor: others may use the machine, too
    page.goto((tmp_path / "report.html").as_uri())
    spent = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}["TaskDuration"]
    assert 0.01 < spent < 1
    page.context.close()
    watched = Watched(browser, tmp_path / "report.html", DESK)
    watched.draw_all()
    assert watched.trouble == []


def test_points_and_intervals_are_drawn_where_the_numbers_are(watched: Watched) -> None:
    """The drawing is read back: equal distances on the axis are equal numbers, and each point lies within its interval."""
    watched.page.locator(".groups a", has_text="meadow").click()
    watched.draw_all()
    found = watched.page.evaluate(
        """() => {
          const plot = document.querySelector(".group:not([hidden]) [data-plot=cost]");
          const ticks = [...plot.querySelectorAll("text[text-anchor=end]")].filter((t) => /^[\\d.]+$/.test(t.textContent))
            .map((t) => [Number(t.textContent), Number(t.getAttribute("y")) - 4]);
          const points = [...plot.querySelectorAll("circle.point")].map((c) => [Number(c.getAttribute("cy")), c.textContent]);
          const bars = [...plot.querySelectorAll("path.interval")].map((p) => p.getAttribute("d").match(/,(-?[\\d.]+)V(-?[\\d.]+)$/).slice(1).map(Number));
          return { ticks, points, bars };
        }"""
    )
    (first, top), (second, bottom) = found["ticks"][0], found["ticks"][-1]
    number = lambda place: first + (place - top) * (second - first) / (bottom - top)  # noqa: E731
    assert len(found["points"]) == len(found["bars"]) == 3
    for (place, words), bar in zip(found["points"], found["bars"], strict=True):
        said = float(re.search(r"(\d+\.\d) %", words)[1])
        assert number(place) == pytest.approx(said, abs=0.06)
        assert min(bar) <= place <= max(bar)


def test_all_plots_are_on_paper(watched: Watched) -> None:
    plots = watched.page.locator(".group:not([hidden]) .plot")
    assert plots.locator("svg.main-svg").count() < plots.count()
    watched.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert plots.locator("svg.main-svg").count() == plots.count()
