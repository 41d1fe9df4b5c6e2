"""Tables in a real terminal: they fit it, and no word of them is broken."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from rich.cells import cell_len
from stored import outcomes, store_trial
from terminal import in_terminal

from flowers_bench.report.published import COLUMNS as REPORTED
from flowers_bench.report.published import SPARE
from flowers_bench.report.table import Table, layout

LABELS = {
    "linear-probe/logistic": 0.925,
    "deformable/plain-pretrained": 0.93,
    "knn/k5": 0.8,
    "multiscale-vgg/frozen": 0.6,
}


def stored(root: Path, labels: Mapping[str, float]) -> Path:
    """A store of two seeds of each label, which is right so often; each from weights of its own."""
    for place, (label, accuracy) in enumerate(labels.items()):
        weights = {"name": f"tf_efficientnet_lite{place}", "sha256": None}
        for seed in range(2):
            correct = outcomes(100 * place + seed, accuracy)
            store_trial(root / "runs", label, seed, correct, weights=weights, seconds=3.0 * 40 ** min(place, 3))
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(tmp_path_factory.mktemp("stored"), LABELS)


def whole_words(lines: Sequence[str], words: Sequence[str]) -> None:
    """Fail unless each of these words stands whole on some line."""
    missing = [word for word in words if not any(word in line for line in lines)]
    assert not missing, (missing, "\n".join(lines))


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_the_leaderboard_fits(store: Path, columns: int) -> None:
    shown = in_terminal("leaderboard", columns=columns, cwd=store)
    assert shown.code == 0
    assert max(map(cell_len, shown.lines)) <= columns
    parts = [part for label in LABELS for part in (label.split("/")[0] + "/", label.split("/")[1])]
    whole_words(shown.lines, [*parts, "test", "top-1", "best", "time", "memory", "[90.", "1.0 GiB", "3.0 s"])
    assert "backbone resnet18, 2 seeds" in " ".join(shown.text.split())
    rows = [line for line in shown.lines if "GiB" in line]
    assert len(rows) == len(LABELS), "each technique is one row with all its numbers"
    assert all(
        re.search(r"\d+\.\d \[\d+\.\d, \d+\.\d\] +(best|[-+]\d+\.\d \[[-+]\d+\.\d, [-+]\d+\.\d\])", row) for row in rows
    )
    if columns == 120:
        whole_words(shown.lines, list(LABELS))


@pytest.fixture(scope="module", params=[1, 2, 10])
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    labels = {f"technique-{number}/plain": 0.95 - number / 50 for number in range(request.param)}
    return request.param, stored(tmp_path_factory.mktemp("rows"), labels)


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_headings_take_two_lines_at_most(rows: tuple[int, Path], columns: int) -> None:
    count, root = rows
    lines = in_terminal("leaderboard", columns=columns, cwd=root).lines
    rule = next(place for place, line in enumerate(lines) if line.startswith("──"))
    title = next(place for place, line in enumerate(lines) if line.endswith("2 seeds"))
    head = lines[title + 1 : rule]
    assert len(head) <= 2, "\n".join(lines)
    whole_words(head, ["variant", "test top-1 %", "to the", "best", "time", "memory"])
    assert sum("GiB" in line for line in lines) == count


@pytest.mark.parametrize("columns", [80, 100, 120])
@pytest.mark.parametrize("command", [["leaderboard", "--wide"], ["compare"], ["compare", "--wide"], ["answer"]])
def test_everything_else_fits_too(store: Path, command: list[str], columns: int) -> None:
    shown = in_terminal(*command, columns=columns, cwd=store)
    assert shown.code == 0
    commands = [line for line in shown.lines if "flowers-bench " in line]  # they are for copying
    assert max(cell_len(line) for line in shown.lines if line not in commands) <= columns
    names = [part for label in LABELS for part in label.split("/")]
    whole_words(shown.lines, names)
    if "--wide" in command and command[0] == "leaderboard":
        whole_words(shown.lines, ["trainable:", "parameters:"] if columns < 170 else ["trainable", "parameters"])


def test_without_a_terminal_nothing_is_wrapped(flowers_bench, store: Path) -> None:
    done = flowers_bench("leaderboard", "--store", str(store / "runs"))
    lines = [line for line in done.stdout.splitlines() if "GiB" in line]
    assert [line.split()[0] for line in lines] == sorted(LABELS, key=lambda label: -LABELS[label])
    assert done.stdout == flowers_bench("leaderboard", "--out", str(store / "runs")).stdout


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_reported_rows_fit(columns: int) -> None:
    row = ("3. frozen VGG-16", "multiscale-vgg/frozen", "flowers102", "vgg16_bn", "vgg16_bn.tv_in1k", "3", "6149")
    table = Table("Measured here", REPORTED, ((*row, "81.2", "[80.1, 82.3]", "83.10"),), 5, (), SPARE)
    lines = layout(table, columns)
    assert max(map(cell_len, lines)) <= columns
    whole_words(lines, ["multiscale-vgg/", "frozen", "81.2", "[80.1, 82.3]", "83.10", "reported"])
    left_out = [column for column in SPARE if not any(column in re.split(r"\s+", line) for line in lines[:4])]
    if left_out:
        assert lines[-1].startswith("left out, as the terminal is narrow: ") or any(
            "left out" in line for line in lines
        )


def test_a_word_longer_than_the_terminal_is_not_broken() -> None:
    long = "w" * 90
    table = Table("", ("name", "number"), ((f"a {long}", "1"),), 1, ())
    assert f"{long}" in [line.strip() for line in layout(table, 60)]


def test_wide_letters_are_measured_as_they_are_shown() -> None:
    lines = layout(Table("", ("name", "n"), (("薔薇/赤", "1"), ("rose", "22")), 1, ()), 80)
    assert len({cell_len(line) for line in lines}) == 1


@pytest.mark.parametrize(("width", "lines"), [(80, 2), (38, 2), (37, 3)])
def test_a_heading_takes_three_lines_only_where_there_is_no_room(width: int, lines: int) -> None:
    head = layout(Table("", ("name", "to the best"), (("x" * 30, "best"),), 1, ()), width)[:-2]
    assert len(head) == lines, head
    assert " ".join(line.removeprefix("name").strip() for line in head) == "to the best"
    assert max(map(cell_len, head)) <= width
