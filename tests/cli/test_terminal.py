"""Tables in a real terminal: they fit it, and no word of them is broken."""

from __future__ import annotations

import re
from collections.abc import Sequence
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


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stored")
    for place, (label, accuracy) in enumerate(LABELS.items()):
        weights = {"name": f"tf_efficientnet_lite{place}", "sha256": None}
        for seed in range(2):
            correct = outcomes(100 * place + seed, accuracy)
            store_trial(root / "runs", label, seed, correct, weights=weights, seconds=3.0 * 40**place)
    return root


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
