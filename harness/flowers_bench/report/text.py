"""Write the leaderboard to the terminal, and as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from rich.console import Console

from flowers_bench.measure.statistics import Interval
from flowers_bench.report import formatting as numbers
from flowers_bench.report.aggregate import Row
from flowers_bench.report.answer import Answer
from flowers_bench.report.comparison_text import family_words, far_off, sentence
from flowers_bench.report.formatting import (
    count,
    duration,
    inert,
    latex_cell,
    percent,
    percent_interval,
    points_interval,
    size,
)
from flowers_bench.report.leaderboard import Group, Leaderboard
from flowers_bench.report.measures import EVERYTHING, KINDS, Measure, coarser, kinds
from flowers_bench.report.shots import families
from flowers_bench.report.table import Table, markdown_lines, print_table, stdout
from flowers_bench.store.folder import TrialFolder
from flowers_bench.util.text import counted, printable

COLUMNS = (
    "technique/variant",
    "backbone",
    "weights",
    "seeds",
    "test top-1 %",
    "95 % interval",
    "mean per class %",
    "val top-1 %",
    "trainable",
    "parameters",
    "training time",
    "peak memory",
)


def cells(row: Row) -> tuple[str, ...]:
    """Render one row as cells, in the order of `COLUMNS`."""
    return (
        row.name,
        row.config.backbone,
        row.config.weights.name,
        str(len(row.seeds)),
        percent(row.top1.value),
        percent_interval(row.top1.low, row.top1.high),
        _interval(row.metrics["mean_per_class"]),
        percent(row.mean("val", "top1")),
        count(row.mean("cost", "trainable_parameters")),
        count(row.mean("cost", "parameters")),
        _time(row),
        _memory(row),
    )


def _interval(found: Interval) -> str:
    return f"{percent(found.value)} {percent_interval(found.low, found.high)}"


def _time(row: Row) -> str:
    """Write the time of one training; and of the search for its recipe, if there was one."""
    searched = row.mean("cost", "search_seconds")
    return duration(row.mean("cost", "seconds")) + (f" + {duration(searched)} search" if searched else "")


def _memory(row: Row) -> str:
    """Write the peak memory of the process; and of the GPU's allocator, if a GPU was used."""
    device = row.mean("cost", "peak_cuda_bytes")
    return size(row.mean("cost", "peak_rss_bytes")) + (f" + {size(device)} GPU" if device else "")


def footnotes(group: Group, answer: Answer | None = None) -> list[str]:
    """Write what must stand below every table: differences, what intervals are over, notes, hardware.

    Args:
        answer: what stands beside the table already says what it says.
    """
    overs = sorted({row.top1.over for row in group.rows})
    said = answer.told if answer else frozenset()
    lines = [sentence(pair) for pair in group.told if pair.ids not in said]
    if lines and not said:
        lines.append(f"claims: {family_words(group.compared)}")
    far = [far_off(found) for row in group.rows if (found := row.far_seed)]
    lines += [text for text in (*group.same, *far) if answer is None or text not in (*answer.same, *answer.far)]
    lines.append(
        f"intervals: 95 % each, not adjusted, over {'; '.join(overs)}; the test split was read once, by the checkpoint chosen "
        "on validation"
    )
    lines += [f"note: {note}" for note in group.notes]
    lines += [f"measured on: {hardware}" for hardware in group.hardware]
    return lines


def tables(board: Leaderboard, found: Sequence[Answer] = (), *, wide: bool = True) -> Iterator[Table]:
    """Make all tables, in order; no table has two kinds of accuracy.

    Args:
        found: the answer of each group, which is shown beside the tables and not repeated in them; or none.
        wide: whether the table of accuracies has all columns, or those that one chooses by, and accuracy at coarser names is shown.
    """
    for group, answer in itertools.zip_longest(board.groups, found):
        notes = tuple(footnotes(group, answer))
        if wide:
            yield Table(group.title, COLUMNS, tuple(map(cells, group.rows)), 3, notes)
        else:
            yield narrow(group, notes)
        for kind in kinds(group.rows) if wide else KINDS:
            rows = kind.rows(group.rows)
            if rows:
                measures = kind.shown(rows)
                head = ("technique/variant", "backbone", "seeds", *(measure.title for measure in measures))
                body = tuple(_kind_cells(row, measures) for row in rows)
                title = f"{group.title}: {kind.title.lower()}"
                found_table = Table(title, head, body, 2, (kind.note,), ("seeds", "backbone"))
                yield found_table if wide else _without_constants(found_table)
    for family in dict.fromkeys(families(board).values()):
        yield family.table()


def _without_constants(table: Table) -> Table:
    """Leave out backbone and seeds where all rows have the same; the table above says which."""
    keep = [
        place
        for place, name in enumerate(table.head)
        if name not in ("backbone", "seeds") or len({line[place] for line in table.body}) > 1
    ]
    body = tuple(tuple(line[place] for place in keep) for line in table.body)
    left = sum(place < table.left for place in keep)
    return replace(table, head=tuple(table.head[place] for place in keep), body=body, left=left)


def narrow(group: Group, notes: tuple[str, ...]) -> Table:
    """Make the table that one chooses by: accuracy, distance to the best row, time and memory; what is the same in all rows
    stands in the title."""
    rows = group.rows
    facts = {
        "backbone": [row.config.backbone for row in rows],
        "weights": [row.config.weights.name for row in rows],
        "seeds": [str(len(row.seeds)) for row in rows],
    }
    varying = [key for key, values in facts.items() if len(set(values)) > 1]
    same = {key: values[0] for key, values in facts.items() if key not in varying}
    constant = [counted(int(text), "seed") if key == "seeds" else f"{key} {text}" for key, text in same.items()]
    body = tuple(
        (
            row.name,
            *(facts[key][place] for key in varying),
            _interval(row.top1),
            _to_best(group, row),
            _time(row),
            numbers.memory(row.mean("cost", "peak_rss_bytes"))
            + (f" + {numbers.memory(gpu)} GPU" if (gpu := row.mean("cost", "peak_cuda_bytes")) else ""),
        )
        for place, row in enumerate(rows)
    )
    head = ("technique/variant", *varying, "test top-1 %", "to the best", "time", "memory")
    left = 1 + sum(key != "seeds" for key in varying)
    return Table(", ".join([group.title, *constant]), head, body, left, notes, ("seeds", "weights", "backbone"))


def _to_best(group: Group, row: Row) -> str:
    """Write the row's accuracy minus that of the best row, in points, with its interval, where they were compared."""
    best = group.rows[0]
    pair = next((pair for pair in group.compared.pairs if {best.id, row.id} == set(pair.ids)), None)
    if row is best or pair is None:
        return "best" if row is best else "-"
    found, sign = pair.difference, 1 if pair.ids[0] == row.id else -1
    low, high = sorted((0.0 + sign * found.low, 0.0 + sign * found.high))
    return f"{0.0 + 100 * sign * found.value:+.1f} {points_interval(low, high)}"


def _kind_cells(row: Row, measures: Sequence[Measure]) -> tuple[str, ...]:
    return (row.name, row.config.backbone, str(len(row.seeds)), *(measure.text(row) for measure in measures))


def print_text(
    board: Leaderboard, more: Sequence[Table] = (), found: Sequence[Answer] = (), *, wide: bool = False
) -> None:
    """Print the tables, and then `more` tables, to stdout; `found` are the answers that follow them."""
    _print_tables((*tables(board, found, wide=wide), *more), stdout())


def text(board: Leaderboard, *, wide: bool = False) -> str:
    """Write the tables as `print_text` prints them."""
    console = stdout()
    with console.capture() as captured:
        _print_tables(tables(board, wide=wide), console)
    return captured.get()


def _print_tables(shown: Iterable[Table], console: Console) -> None:
    for place, table in enumerate(shown):
        if place:
            console.print()
        print_table(table, console)


def markdown(board: Leaderboard, more: Sequence[Table] = (), found: Sequence[Answer] = ()) -> str:
    """Write GitHub tables, and then `more` tables; `found` are the answers that follow them."""
    return "\n".join(line for table in (*tables(board, found), *more) for line in (*markdown_lines(table), ""))


def latex(board: Leaderboard) -> str:
    """Write LaTeX tables for a paper, with booktabs; the notes follow as comments."""
    lines = [r"% needs \usepackage{booktabs} and \usepackage[T1]{fontenc}"]
    for table in tables(board):
        lines += [r"\begin{table}", r"  \centering", rf"  \caption{{{latex_cell(table.title)}}}"]
        lines.append(rf"  \begin{{tabular}}{{{'l' * table.left}{'r' * (len(table.head) - table.left)}}}")
        lines += [r"    \toprule", _latex_line(table.head), r"    \midrule", *map(_latex_line, table.body)]
        lines += [
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            *(f"% {' '.join(printable(note).split())}" for note in table.notes),
            "",
        ]
    return "\n".join(lines).rstrip()


def _latex_line(line: Sequence[str]) -> str:
    """Write a row of a LaTeX table.

    If its text begins with `[` or `*`, LaTeX would read it as an argument of the line before: an empty group prevents that.
    """
    start = "{}" if line[0][:1] in ("[", "*") else ""
    return f"    {start}{' & '.join(map(latex_cell, line))} " + r"\\"


def csv_text(board: Leaderboard) -> str:
    """Write one CSV line for each row, in full precision, with the group in the first column."""
    stream = io.StringIO()
    records = _records(board)
    writer = csv.DictWriter(stream, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: inert(value) for key, value in record.items()} for record in records)
    return stream.getvalue().rstrip("\n")


def json_text(board: Leaderboard) -> str:
    """Write a JSON list of rows, with the same fields as `csv_text`."""
    return numbers.json_text(_records(board))


def _records(board: Leaderboard) -> list[dict[str, object]]:
    measures = (*EVERYTHING, *coarser(row for group in board.groups for row in group.rows))
    return [
        {
            "group": group.title,
            "row": row.id,
            "name": row.name,
            "trials": " ".join(trial.folder.id for trial in row.trials),
            "same_trials_as": " ".join(other.id for other in group.rows if other is not row and other.ids & row.ids),
            "backbone": row.config.backbone,
            "weights": row.config.weights.name,
            "seeds": len(row.seeds),
            "shots": row.config.protocol.shots,
            "test_top1": row.top1.value,
            "test_top1_low": row.top1.low,
            "test_top1_high": row.top1.high,
            "interval_over": row.top1.over,
            "n_test": row.top1.n_images,
            "mean_per_class": row.metrics["mean_per_class"].value,
            "mean_per_class_low": row.metrics["mean_per_class"].low,
            "mean_per_class_high": row.metrics["mean_per_class"].high,
            "val_top1": row.mean("val", "top1"),
            **{key: value for measure in measures for key, value in _numbers(measure, row)},
            "hardware": "; ".join(group.hardware),
        }
        for group in board.groups
        for row in group.rows
    ]


def _numbers(measure: Measure, row: Row) -> Iterator[tuple[str, float | None]]:
    yield measure.key, row.mean(*measure.path)
    if measure.interval:
        low, high = measure.bounds(row) or (None, None)
        yield f"{measure.key}_low", low
        yield f"{measure.key}_high", high
    if "ece" in measure.key:
        yield f"{measure.key}_if_calibrated", row.if_calibrated.get(measure.key)


FORMATS: dict[str, Callable[[Leaderboard], str]] = {
    "md": markdown,
    "latex": latex,
    "csv": csv_text,
    "json": json_text,
}


def trials_table(folders: Sequence[TrialFolder]) -> str:
    """Write one line for each finished trial: id, names, data, seed, test and validation accuracy."""
    lines = []
    for folder in folders:
        config, result = folder.config(), folder.result()
        names = " = ".join(label.text for label in folder.labels())
        lines.append(
            f"{folder.id}  {names:<28} {config.dataset.name:<14} {config.backbone:<20} seed {result.seed:<3} "
            f"test {percent(result.test.top1)} %  val {percent(result.val.top1)} %"
        )
    return printable("\n".join(lines))
