"""Show a suite's rows beside the results that a publication reports for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowers_bench.plan.suites import PlannedTable, PublishedResult
from flowers_bench.report.aggregate import Configuration, Row, build_row, search_budget
from flowers_bench.report.formatting import percent, percent_interval
from flowers_bench.report.kept_trials import load_each
from flowers_bench.report.names import distinct_names
from flowers_bench.report.table import Table, markdown_lines, print_table, stdout
from flowers_bench.store.folder import Store, read_each

COLUMNS = (
    "reported as",
    "technique/variant",
    "data",
    "backbone",
    "weights",
    "seeds",
    "n",
    "test top-1 %",
    "95 % interval",
    "reported %",
)

#: What a narrow terminal leaves out.
SPARE = ("n", "seeds", "weights", "backbone", "data")


@dataclass(frozen=True)
class Beside:
    """A reported result, and the row that was measured here, or None as long as none of its trials is finished."""

    reported: PublishedResult
    name: str
    row: Row | None


def beside_reported(tables: Sequence[PlannedTable], store: Store) -> list[Beside]:
    """Pair each table that has a reported result with the row of its finished trials in the store."""
    found = []
    wanted = [(item, item.table.reported) for item in tables if item.table.reported]
    # After a search that found nothing, no trial is planned, and only the request is known.
    names = iter(distinct_names([item.planned[0].described() for item, _ in wanted if item.planned]))
    for item, reported in wanted:
        name = next(names) if item.planned else item.requests[0].title
        labels = {planned.trial.id: planned.labels for planned in item.planned}
        folders = (folder for folder in map(store.folder, labels) if folder.finished())
        trials = load_each(read_each(folders).finished, labels)
        row = build_row(name, Configuration.of(trials)) if trials else None
        found.append(Beside(reported, name, row))
    return found


def cells(line: Beside) -> tuple[str, ...]:
    """Render one line as cells, in the order of `COLUMNS`."""
    reported = f"{line.reported.top1:.2f}"
    row = line.row
    if row is None:
        return (line.reported.row, line.name, *["-"] * 6, "not finished", reported)
    return (
        line.reported.row,
        line.name,
        row.config.dataset.name,
        row.config.backbone,
        row.config.weights.name,
        str(len(row.seeds)),
        str(len(row.keys)),
        percent(row.top1.value),
        percent_interval(row.top1.low, row.top1.high),
        reported,
    )


def notes(lines: Sequence[Beside], source: str) -> list[str]:
    """Write the notes that must stand below the table."""
    found = [f"reported: {source}"] if source else []
    overs = sorted({line.row.top1.over for line in lines if line.row})
    if overs:
        found.append(f"n: test images; intervals: 95 %, over {'; '.join(overs)}")
    budgets = sorted({budget for line in lines if line.row and (budget := search_budget(line.row.config))})
    if budgets:
        found.append(f"recipes searched: {'; '.join(budgets)}")
    if any(line.row is None or line.row.config.dataset.name != "flowers102" for line in lines):
        found.append(
            "measured and reported numbers are of different data, backbones or weights where the columns say so: "
            "what can be compared is the order of the rows, not the numbers"
        )
    return found


def print_reported(lines: Sequence[Beside], source: str, format: str) -> None:
    """Print the table to stdout; `format` is `text` or `md`."""
    title = "Measured here, beside what was reported"
    table = Table(title, COLUMNS, tuple(map(cells, lines)), 5, tuple(notes(lines, source)), SPARE)
    if format == "md":
        print("\n".join(markdown_lines(table)))
    else:
        print_table(table, stdout())
