"""Draw any store's figures for a paper, as SVG and PDF: accuracy against cost, learning curves, the matrix of all comparisons."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowers_bench.plan.suites import Figure
from flowers_bench.report.comparison_text import family_words
from flowers_bench.report.drawings import Drawing, Panel, draw_curves
from flowers_bench.report.leaderboard import COMPARED, Group, Leaderboard
from flowers_bench.util.files import file_name

SUFFIXES = (".svg", ".pdf")
#: So many rows have a learning curve: more lines cannot be told apart.
CURVES = 8


@dataclass(frozen=True)
class StoreFigure:
    """A figure of one table, and its files; if there are none, `why` says the reason."""

    title: str
    files: tuple[Path, ...]
    why: str = ""


def draw_store(board: Leaderboard, directory: Path) -> list[StoreFigure]:
    """Write the figures of each table to `directory`, each as SVG and PDF."""
    taken: set[str] = set()
    return [
        _saved(f"{kind} of {group.title}", drawing, directory, _stem(kind, group, taken))
        for group in board.groups
        for kind, drawing in _drawings(group)
    ]


def _drawings(group: Group) -> Iterator[tuple[str, Drawing | str]]:
    yield "cost", draw_cost(group)
    yield "curves", _curves(group)
    yield "matrix", draw_matrix(group)


def _stem(kind: str, group: Group, taken: set[str]) -> str:
    stem = file_name(f"{kind}-{group.rows[0].config.dataset.name}")
    number = 1
    while (found := stem if number == 1 else f"{stem}-{number}") in taken:
        number += 1
    taken.add(found)
    return found


def _saved(title: str, drawing: Drawing | str, directory: Path, stem: str) -> StoreFigure:
    if isinstance(drawing, str):
        return StoreFigure(title, (), drawing)
    files = tuple(directory / f"{stem}{suffix}" for suffix in SUFFIXES)
    for suffix, path in zip(SUFFIXES, files, strict=True):
        replace(drawing, suffix=suffix).save(path)
    return StoreFigure(title, files)


def draw_cost(group: Group) -> Drawing | str:
    """Draw test accuracy, with its interval, against the time of one training, on a logarithmic axis.

    Returns:
        The drawing, or the reason why there is none.
    """
    rows = [(row, seconds) for row in group.rows if (seconds := row.mean("cost", "seconds"))]
    if not rows:
        return "no time was measured"
    overs = "; ".join(sorted({row.top1.over for row, _ in rows}))
    canvas = _canvas(group, f"Points: mean over seeds; bars: 95 % intervals over {overs}", 7, 4.4)
    axes = canvas.subplots()
    for place, (row, seconds) in enumerate(rows):
        share, low, high = (100 * value for value in (row.top1.value, row.top1.low, row.top1.high))
        axes.errorbar(
            [seconds],
            [share],
            [[share - low], [high - share]],
            fmt="o",
            capsize=2,
            label=row.name,
            color=f"C{place % 10}",
        )
    axes.set_xscale("log")
    axes.set_xlabel("time of one training, seconds")
    axes.set_ylabel("test top-1, %")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return Drawing(canvas, ".svg")


def _curves(group: Group) -> Drawing | str:
    rows = tuple(row for row in group.rows if row.trials[0].trained)[:CURVES]
    if not rows:
        return "nothing was trained by epochs"
    labels = tuple(row.trials[0].label.text for row in rows)
    figure = Figure(
        name="curves", title=f"Learning curves: {group.rows[0].config.dataset.name}", draw="curves", technique=labels
    )
    return draw_curves(Panel(figure, rows, group.title))


def draw_matrix(group: Group) -> Drawing | str:
    """Draw row minus column in points for the rows that were compared; bold where a difference is claimed, with a frame where
    they are within the margin.

    Returns:
        The drawing, or the reason why there is none.
    """
    rows = group.rows[:COMPARED]
    pairs = {pair.ids: pair for pair in group.compared.pairs}
    if not pairs:
        return "no two rows can be compared"
    side = 1.6 + 0.62 * len(rows)
    caption = f"Row minus column, points of test top-1; bold: a claimed difference; ≈: within the margin. {family_words(group.compared)}"
    canvas = _canvas(group, caption, max(6.0, side + 1.5), max(3.5, side))
    axes = canvas.subplots()
    largest = max(abs(pair.difference.value) for pair in pairs.values()) or 1.0
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            pair = pairs.get((one.id, other.id)) or pairs.get((other.id, one.id))
            if pair is None:
                continue
            value = (1 if pair.ids[0] == one.id else -1) * pair.difference.value + 0.0
            shade = min(1.0, abs(value) / largest) if pair.claimed else 0.0
            colour = (
                (1 - 0.5 * shade, 1 - 0.2 * shade, 1 - 0.5 * shade)
                if value > 0
                else (1 - 0.2 * shade, 1 - 0.5 * shade, 1 - 0.5 * shade)
            )
            axes.fill([j, j + 1, j + 1, j], [i, i, i + 1, i + 1], color=colour, edgecolor="0.8")
            text = f"{'≈ ' if pair.within else ''}{100 * value:+.1f}"
            weight = "bold" if pair.claimed else "normal"
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=7, fontweight=weight)
    names = [row.name for row in rows]
    places = [place + 0.5 for place in range(len(rows))]
    axes.set(xlim=(0, len(rows)), ylim=(len(rows), 0), aspect="equal")
    axes.set_xticks(places, names, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(places, names, fontsize=7)
    return Drawing(canvas, ".svg")


def _canvas(group: Group, caption: str, width: float, height: float) -> Any:
    """Make an empty drawing whose caption says what was measured."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), layout="constrained")
    notes: Sequence[str] = [f"Note: {note}" for note in group.notes]
    text = ". ".join([group.title, caption, *notes])
    canvas.supxlabel(textwrap.fill(text, int(width * 15)), fontsize=7, color="0.3")
    return canvas
