"""What a reader does with the page, in a real browser: look, choose, press, find, send, keep and print."""

from __future__ import annotations

import csv
import io
import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import outcomes, store_trial
from watched import DESK, PHONE, Watched

from flowers_bench.cli.report import report
from flowers_bench.report.leaderboard import Leaderboard
from flowers_bench.report.text import latex
from flowers_bench.store.folder import Store, TrialFolder

SHOWN = ".group:not([hidden])"


@pytest.fixture
def meadow(watched: Watched) -> Watched:
    """The page with the group of three techniques, two seeds each, with images."""
    watched.page.locator(".groups a", has_text="meadow").click()
    watched.page.locator(f"{SHOWN} .board", has_text="wise/plain").wait_for()
    return watched


@pytest.fixture(scope="module")
def crowd_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of fourteen techniques that are nearly as accurate and costly as each other."""
    root = tmp_path_factory.mktemp("crowd")
    for number in range(14):
        accuracy, seconds = 0.7 + 0.004 * number, 60.0 + 2 * (number % 5)
        store_trial(root / "runs", f"crowded/variant-{number}", 0, outcomes(0, accuracy), seconds=seconds)
    report(root / "runs", root / "report.html")
    return root / "report.html"


@pytest.fixture
def crowd(browser: Any, crowd_file: Path) -> Iterator[Watched]:
    watched = Watched(browser, crowd_file, DESK)
    yield watched
    watched.page.context.close()


def predicted(folder: TrialFolder) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Keys, labels and predicted classes of the test images."""
    scores = folder.scores()
    return scores.keys, scores.labels, scores.logits.argmax(1)


def by_name(runs: Path) -> dict[str, list[TrialFolder]]:
    """The trials of the group of three techniques."""
    found: dict[str, list[TrialFolder]] = {}
    for folder in Store(runs).finished():
        if folder.config().dataset.name == "meadow":
            found.setdefault(folder.labels()[0].text, []).append(folder)
    return found


def votes(folders: list[TrialFolder]) -> np.ndarray:
    """Whether the class that most seeds name, the first's where they all differ, is right."""
    labels = predicted(folders[0])[1]
    each = np.stack([predicted(folder)[2] for folder in sorted(folders, key=lambda folder: folder.config().seed)])
    counts = np.stack([(each == label).sum(0) for label in range(labels.max() + 1)])
    most = counts.max(0)
    earliest = [next(c for c in column if counts[c, i] == most[i]) for i, column in enumerate(each.T)]
    return np.asarray(earliest) == labels


def test_the_first_screen_has_the_answer_and_the_picture(browser: Any, page_file: Path) -> None:
    watched = Watched(browser, page_file, {"width": 1440, "height": 900})
    for place in (".headline", "[data-plot=cost] svg", ".board"):
        watched.page.locator(f"{SHOWN} {place}").wait_for()
    tops = [watched.page.locator(f"{SHOWN} {one}").bounding_box() for one in (".headline", "[data-plot=cost] svg")]
    assert all(box["y"] + box["height"] < 900 for box in tops)
    assert watched.page.locator(f"{SHOWN} .board").bounding_box()["y"] > max(box["y"] for box in tops)
    watched.page.set_viewport_size(PHONE)
    order = [
        watched.page.locator(f"{SHOWN} {one}").bounding_box()["y"] for one in (".headline", ".picture", ".words ul")
    ]
    assert order == sorted(order)
    watched.page.context.close()


def test_cost_stands_beside_accuracy_and_the_name_stays(meadow: Watched) -> None:
    board = meadow.page.locator(f"{SHOWN} .board")
    heads = [text.strip(" ↓") for text in board.locator("thead th:visible").all_inner_texts()]
    assert heads[1:6] == ["technique", "top-1 %", "95 % interval", "training time", "peak memory"]
    meadow.page.locator(f"{SHOWN} .all-columns").check()
    assert board.locator("thead th:visible").count() > len(heads) + 5
    name = board.locator("tbody th").first
    before = name.bounding_box()["x"]
    scrolled = board.evaluate("(t) => { t.parentElement.scrollLeft = 300; return t.parentElement.scrollLeft; }")
    assert scrolled > 100
    assert name.bounding_box()["x"] == pytest.approx(before, abs=25)


def test_a_phone_shows_rows_as_cards(browser: Any, page_file: Path) -> None:
    watched = Watched(browser, page_file, PHONE)
    page = watched.page
    page.locator(".groups a", has_text="meadow").click()
    rows = page.locator(f"{SHOWN} .board tbody tr")
    rows.first.wait_for()
    boxes = [row.bounding_box() for row in rows.all()]
    assert all(box["width"] <= 390 for box in boxes)
    assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"]
    label = "(c) => getComputedStyle(c, '::before').content"
    assert rows.first.locator("td.number:visible").evaluate_all(f"(all) => all.map({label})")[:2] == [
        '"top-1 %"',
        '"training time"',
    ]
    first = page.locator(f"{SHOWN} .board tbody th").all_inner_texts()
    page.locator(f"{SHOWN} .sort-by").select_option(label="technique")
    assert page.locator(f"{SHOWN} .board tbody th").all_inner_texts() == sorted(first, key=str.lower)
    page.context.close()


def test_disagreements_are_those_of_the_stored_predictions(meadow: Watched, runs: Path) -> None:
    stored = by_name(runs)
    good, plain = votes(stored["wise/good"]), votes(stored["wise/plain"])
    only, other = int((good & ~plain).sum()), int((plain & ~good).sum())
    assert only > 18 > other  # so that some are shown at once, and some when asked for
    heads = meadow.page.locator(f"{SHOWN} .differences h4")
    assert heads.all_inner_texts() == [
        f"Only wise/good is right: {only} images",
        f"Only wise/plain is right: {other} image{'' if other == 1 else 's'}",
    ]
    first = meadow.page.locator(f"{SHOWN} .differences section").first
    assert first.locator("li").count() == 18
    first.get_by_role("button", name=f"Show all {only}").click()
    sure = [int(re.search(r"(\d+) % sure", text)[1]) for text in first.locator("figcaption").all_inner_texts()]
    assert len(sure) == only
    assert sure == sorted(sure, reverse=True)
    keys = set(first.locator(".enlarge").evaluate_all("(all) => all.map((b) => b.dataset.image)"))
    assert keys == {key for key, one in zip(predicted(stored["wise/good"][0])[0], good & ~plain, strict=True) if one}


def test_a_cell_of_the_comparison_opens_its_disagreement(meadow: Watched) -> None:
    matrix = meadow.page.locator(f"{SHOWN} .matrix")
    matrix.locator("tbody tr").nth(1).locator(".pair").first.click()  # the second row, minus the first
    menus = [meadow.page.locator(f"{SHOWN} select.{name}") for name in "ab"]
    assert [menu.input_value() for menu in menus] == ["1", "0"]
    assert meadow.page.locator(f"{SHOWN} .differences h4").first.inner_text().startswith("Only wise/plain is right")
    assert menus[0].evaluate("(m) => m === document.activeElement")
    assert menus[0].bounding_box()["y"] < DESK["height"]


def test_a_cell_of_the_confusion_matrix_opens_its_images(meadow: Watched, runs: Path) -> None:
    folders = by_name(runs)["wise/good"]
    keys, labels, _ = predicted(folders[0])
    each = np.stack([predicted(folder)[2] for folder in folders])
    mistaken = {key for key, label, named in zip(keys, labels, each.T, strict=True) if label == 0 and set(named) == {1}}
    page = meadow.page
    canvas = page.locator(f"{SHOWN} .heat canvas")
    canvas.scroll_into_view_if_needed()
    canvas.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    section = page.locator(f"{SHOWN} .differences section")
    assert "rose, taken for </script>" in section.locator("h4").inner_text()
    shown = set(section.locator(".enlarge").evaluate_all("(all) => all.map((b) => b.dataset.image)"))
    assert mistaken
    assert mistaken <= shown
    assert section.locator("h4").inner_text().endswith(f": {len(shown)} images")
    page.get_by_role("button", name="Back to all on which the two disagree").click()
    assert page.locator(f"{SHOWN} .differences section").count() == 2


def test_an_image_is_enlarged_with_what_all_take_it_for(meadow: Watched, runs: Path) -> None:
    page = meadow.page
    button = page.locator(f"{SHOWN} .differences .enlarge").first
    key = button.get_attribute("data-image")
    small = button.locator("img").bounding_box()["width"]
    button.press("Enter")
    dialog = page.locator("#enlarged")
    assert dialog.locator("img").bounding_box()["width"] > 2 * small
    assert key in dialog.inner_text()
    lines = [line.split("\t") for line in dialog.locator("tbody").inner_text().splitlines()]
    for name, _, _, seeds in lines:
        folders = by_name(runs)[name]
        right = [
            predicted(f)[2][place] == predicted(f)[1][place] for f in folders for place in [f.scores().keys.index(key)]
        ]
        assert seeds == f"{sum(right)} of 2"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert button.evaluate("(b) => b === document.activeElement")


def test_heads_of_the_matrices_are_turned_and_stay(crowd: Watched) -> None:
    page = crowd.page
    head, corner = page.locator(".matrix thead th span").first, page.locator(".matrix tbody th").first
    assert head.bounding_box()["height"] > 2 * head.bounding_box()["width"]
    before = corner.bounding_box()["x"], head.bounding_box()["y"]
    moved = page.locator(".matrix").evaluate(
        "(t) => { const s = t.parentElement; s.scrollIntoView(); s.scrollLeft = 200; s.scrollTop = 100; return [s.scrollLeft, s.scrollTop]; }"
    )
    assert min(moved) > 50
    place = page.locator(".matrix").evaluate("(t) => t.parentElement.getBoundingClientRect().top")
    assert corner.bounding_box()["x"] == pytest.approx(before[0], abs=12)
    assert head.bounding_box()["y"] >= place - 1


def test_classes_are_named_beside_the_confusion_matrix(meadow: Watched) -> None:
    for place in ("above", "beside"):
        names = meadow.page.locator(f"{SHOWN} .heat .{place} span")
        assert names.first.inner_text() == "rose"
        assert names.count() == 4
    canvas = meadow.page.locator(f"{SHOWN} .heat canvas")
    canvas.scroll_into_view_if_needed()
    canvas.focus()
    meadow.page.keyboard.press("ArrowDown")
    rows = meadow.page.locator(f"{SHOWN} .heat .beside span").all()
    cell = canvas.bounding_box()["height"] / 4
    assert [row.bounding_box()["height"] for row in rows] == pytest.approx([cell] * 4, abs=0.5)
    assert meadow.page.locator(f"{SHOWN} .heat .beside .at").all_inner_texts() == [rows[1].inner_text()]


def test_names_in_a_plot_cover_nothing(crowd: Watched) -> None:
    crowd.draw_all()
    boxes = crowd.page.evaluate(
        """() => {
          const plot = document.querySelector("[data-plot=cost]"), box = (e) => { const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
          return { names: [...plot.querySelectorAll(".name")].map(box), points: [...plot.querySelectorAll(".point")].map(box), frame: box(plot) };
        }"""
    )
    names = boxes["names"]
    assert len(boxes["points"]) == 14
    assert 2 <= len(names) < 14
    apart = lambda a, b: a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]  # noqa: E731
    for place, name in enumerate(names):
        assert all(apart(name, other) for other in [*names[:place], *boxes["points"]])
        assert boxes["frame"][0] <= name[0] < name[2] <= boxes["frame"][2] + 1


def kept(watched: Watched, press: Callable[[], object]) -> tuple[str, bytes]:
    with watched.page.expect_download() as caught:
        press()
    return caught.value.suggested_filename, Path(caught.value.path()).read_bytes()


def test_every_table_is_kept_as_csv(meadow: Watched) -> None:
    page = meadow.page
    scrolls = page.locator(f"{SHOWN} .scroll:has(table)").count()
    assert page.locator(f"{SHOWN} .csv").count() == scrolls > 5
    board = page.locator(f"{SHOWN} [id$=-board] .csv").first
    name, content = kept(meadow, board.click)
    assert name == "meadow-leaderboard.csv"
    lines = list(csv.reader(io.StringIO(content.decode())))
    assert lines[0][:4] == ["technique", "top-1 %", "95 % interval", "training time"]
    assert [line[0] for line in lines[1:]] == page.locator(f"{SHOWN} .board tbody th").all_inner_texts()
    assert float(lines[1][1]) == pytest.approx(0.8, abs=0.05)
    assert lines[1][3] == "90"
    assert "backbone" in lines[0]
    _, content = kept(meadow, page.locator(f"{SHOWN} [id$=-compare] .csv").click)
    lines = list(csv.reader(io.StringIO(content.decode())))
    assert lines[0][1:] == [line[0] for line in lines[1:]]
    assert re.match(r"'?\+\d+\.\d \[", lines[1][2])


def test_every_plot_is_kept_as_svg_and_png(meadow: Watched) -> None:
    page = meadow.page
    for kind in ("svg", "png"):
        assert page.locator(f"{SHOWN} button.{kind}").count() == page.locator(f"{SHOWN} .plot").count()
    name, content = kept(meadow, page.locator(f"{SHOWN} .picture button.svg").click)
    assert name == "meadow-cost.svg"
    drawing = ET.fromstring(content)
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    points = drawing.findall(".//{http://www.w3.org/2000/svg}circle")
    assert len(points) == 3
    name, content = kept(meadow, page.locator(f"{SHOWN} .picture button.png").click)
    assert name == "meadow-cost.png"
    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">II", content[16:24]) == (2 * int(drawing.get("width")), 2 * int(drawing.get("height")))
    assert meadow.trouble == []


def test_the_leaderboard_is_kept_as_latex(meadow: Watched, runs: Path) -> None:
    name, content = kept(meadow, meadow.page.locator(f"{SHOWN} .latex").click)
    assert name == "meadow-leaderboard.tex"
    group = next(group for group in Leaderboard.of(Store(runs).finished()).groups if group.title.startswith("meadow"))
    assert content.decode() == latex(Leaderboard((group,)))


def test_what_one_sees_is_in_the_address(meadow: Watched, browser: Any) -> None:
    page = meadow.page
    page.locator(f"{SHOWN} select.cost").select_option("parameters")
    page.locator(f"{SHOWN} .draw").first.uncheck()
    page.locator(f"{SHOWN} .explore").select_option("2")
    page.locator(f"{SHOWN} .board").get_by_role("button", name="training time").click()
    page.locator(f"{SHOWN} .all-columns").check()
    page.locator(f"{SHOWN} .matrix tbody tr").nth(2).locator(".pair").nth(1).click()
    page.locator("#theme").click()
    page.locator("#find").fill("onerror")  # the third row
    look = """() => { const s = document.querySelector(".group:not([hidden])"); return [
      s.id, ...[".cost", ".explore", "select.a", "select.b"].map((q) => s.querySelector(q).value),
      [...s.querySelectorAll(".draw")].map((box) => box.checked), s.querySelector(".all-columns").checked,
      [...s.querySelectorAll(".board tbody tr")].map((tr) => [tr.hidden, tr.dataset.row]), document.getElementById("find").value,
      document.documentElement.dataset.theme, s.querySelector(".board [aria-sort]").textContent.trim()]; }"""
    seen = page.evaluate(look)
    assert seen[1:5] == ["parameters", "2", "2", "1"]
    other = Watched(browser, page.url, DESK)
    assert other.page.evaluate(look) == seen
    assert other.page.url == page.url
    assert other.trouble == []
    other.page.goto(page.url.partition("?")[0] + "?cost=nonsense&a=ffff&cell=900-900&sort=99up&rows=zz&theme=blue")
    assert other.trouble == []
    other.page.context.close()


def test_find_filters_tables_plots_and_menus(meadow: Watched) -> None:
    page = meadow.page
    meadow.draw_all()
    page.locator("#find").fill("wise plain")
    assert page.locator(f"{SHOWN} .board tbody tr:visible th").all_inner_texts() == ["wise/plain"]
    assert page.locator(f"{SHOWN} [data-plot=cost] circle.point").count() == 1
    assert page.locator(f"{SHOWN} .matrix tbody tr:visible").count() == 1
    assert page.locator(f"{SHOWN} [id$=-trials] details[data-row]:visible").count() == 1
    assert page.locator(f"{SHOWN} .explore").input_value() == "1"
    assert page.locator("#found").inner_text().startswith("1 row")
    page.locator("#find").fill("rose")  # a class: the techniques stay
    assert page.locator(f"{SHOWN} .board tbody tr:visible").count() == 3
    captions = page.locator(f"{SHOWN} .gallery li:visible figcaption").all_inner_texts()
    assert captions
    assert all("rose" in text for text in captions)
    page.locator("#find").fill("there is no such thing")
    assert page.locator("#found").inner_text() == "nothing found"
    assert page.locator(f"{SHOWN} .board tbody tr:visible").count() == 3
    page.locator("#find").fill("")
    assert page.locator(f"{SHOWN} .gallery li:visible").count() > len(captions)


def test_the_whole_page_is_printed_in_light(watched: Watched) -> None:
    page = watched.page
    page.emulate_media(color_scheme="dark", media="print")
    whole = """() => [[...document.querySelectorAll(".group")].every((g) => g.checkVisibility()),
      [...document.querySelectorAll("details")].every((d) => d.open),
      [...document.querySelectorAll(".plot")].every((p) => p.querySelector("svg")), getComputedStyle(document.documentElement).getPropertyValue("--card").trim(),
      Math.max(...[...document.querySelectorAll(".scroll")].map((s) => s.scrollHeight - s.clientHeight)) <= 1]"""
    before = page.evaluate(whole)
    assert before[:3] == [False, False, False]
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(whole) == [True, True, True, "#ffffff", True]
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(whole)[:2] == before[:2]
    pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf()))
    assert pages > 5  # three groups, each with all of its cards
