"""A comparison in plain sentences, in the terminal, and as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from flowers_bench.report import formatting as numbers
from flowers_bench.report import robustness as stress
from flowers_bench.report.comparison import ALPHA, Comparison, Pair, Refusal
from flowers_bench.report.formatting import inert, markdown_cell, p_value, points_interval
from flowers_bench.report.robustness import UnderStress
from flowers_bench.report.table import Table, markdown_lines, print_table, stdout
from flowers_bench.util.text import printable

COLUMNS = (
    "first",
    "second",
    "difference",
    "95 % interval",
    "images won",
    "images lost",
    "McNemar exact",
    "p",
    "p (Holm)",
    "time ratio",
)


def sentence(pair: Pair, pairs: int = 1) -> str:
    """Say in one sentence what may be claimed about a pair, if `pairs` pairs were compared at once."""
    n = pair.difference.n_images
    basis = f"{len(pair.seeds)} seeds x {n} images"
    if pair.one_seed:
        basis = f"one seed, {n} images: nothing is claimed about the techniques"
    return f"{_claim(pair, pairs)}{_cost(pair)} ({basis})"


def _claim(pair: Pair, pairs: int) -> str:
    value, low, high = (100 * x for x in (pair.difference.value, pair.difference.low, pair.difference.high))
    if pair.one_seed and pair.p_holm < ALPHA:
        return (
            f"this training of {pair.first} was right {'more' if value > 0 else 'less'} often than this training of "
            f"{pair.second} on these images: {value:+.1f} points "
            f"{points_interval(pair.difference.low, pair.difference.high)}; {_what_would_help(pair)}"
        )
    if pair.claimed and value > 0:
        return f"{pair.first} is better than {pair.second} by {value:.1f} points [{low:.1f}, {high:.1f}]"
    if pair.claimed:
        return f"{pair.first} is worse than {pair.second} by {-value:.1f} points [{-high:.1f}, {-low:.1f}]"
    among = f" (p = {p_value(pair.p)} is not enough among {pairs} pairs)" if pair.p < ALPHA else ""
    return (
        f"no difference can be claimed between {pair.first} and {pair.second}: {value:+.1f} points "
        f"{points_interval(pair.difference.low, pair.difference.high)}{among}; {_what_would_help(pair)}"
    )


def _what_would_help(pair: Pair) -> str:
    if pair.one_seed:
        return "what another seed would change is not known, run at least 3"
    if pair.seeds_needed is None:
        return "to see 1 point, more seeds alone would not be enough: it takes more test images"
    more = pair.seeds_needed - len(pair.seeds)
    if more <= 0:
        return "1 point would probably have been seen"
    return f"about {more} more seed{'s' if more > 1 else ''} would be needed to see 1 point"


def _cost(pair: Pair) -> str:
    return "" if pair.time_ratio is None else f"; {pair.first} costs {pair.time_ratio:.1f}x the training time"


def cells(pair: Pair) -> tuple[str, ...]:
    """Render one pair as cells, in the order of `COLUMNS`."""
    return (
        pair.first,
        pair.second,
        f"{100 * pair.difference.value:+.1f}",
        points_interval(pair.difference.low, pair.difference.high),
        f"{pair.won:.0f}",
        f"{pair.lost:.0f}",
        _listed_p(pair.mcnemar),
        p_value(pair.p),
        p_value(pair.p_holm) + (" (one seed)" if pair.one_seed else ""),
        "-" if pair.time_ratio is None else f"{pair.time_ratio:.2f}",
    )


def _listed_p(values: Sequence[float]) -> str:
    if len(values) <= 3:
        return ", ".join(map(p_value, values))
    return f"{p_value(min(values))} to {p_value(max(values))}"


def sentences(comparison: Comparison) -> list[str]:
    """Say one sentence for each pair, and below it what else differs between the two rows."""
    lines = []
    for pair in comparison.pairs:
        lines.append(sentence(pair, len(comparison.pairs)))
        if pair.differing:
            lines.append(f"  not the technique alone: {', '.join(pair.differing)}")
    return lines + [refusal(refused) for refused in comparison.refused]


def refusal(refused: Refusal) -> str:
    """Say why a pair is not compared."""
    return f"{refused.first} and {refused.second} cannot be compared: {'; '.join(refused.reasons)}"


def footnotes(comparison: Comparison) -> list[str]:
    """Say how the numbers in the table were computed."""
    overs = sorted({pair.difference.over for pair in comparison.pairs})
    return [
        f"differences in points of test top-1 accuracy, first minus second; intervals: 95 %, over {'; '.join(overs)}",
        "p: from the same distribution as the interval, McNemar's with one seed; Holm: adjusted for all pairs of this "
        f"comparison; claimed below {ALPHA}, with two seeds or more",
        "McNemar exact: one per seed, about those two trained networks alone; images won and lost: mean over seeds",
    ]


def _table(comparison: Comparison) -> Table:
    return Table("", COLUMNS, tuple(map(cells, comparison.pairs)), 2, tuple(footnotes(comparison)))


def print_text(comparison: Comparison, stressed: Sequence[UnderStress] = ()) -> None:
    """Print the sentences, then the table; then both for changed images, for the pairs that were measured on them."""
    console = stdout()
    for line in sentences(comparison):
        console.print(printable(line), markup=False, soft_wrap=True)
    print_table(_table(comparison), console)
    for found in stressed:
        console.print()
        for line in stress.sentences(found):
            console.print(printable(line), markup=False, soft_wrap=True)
        print_table(stress.table(found), console)


def markdown(comparison: Comparison, stressed: Sequence[UnderStress] = ()) -> str:
    """Write sentences, a GitHub table and footnotes; then the same for changed images."""
    lines = [
        f"- {markdown_cell(line)}" if line[0] != " " else f"  {markdown_cell(line)}" for line in sentences(comparison)
    ]
    lines += ["", *markdown_lines(_table(comparison))]
    for found in stressed:
        lines += ["", *(f"- {markdown_cell(line)}" for line in stress.sentences(found)), ""]
        lines += markdown_lines(stress.table(found))
    return "\n".join(lines)


def csv_text(comparison: Comparison, stressed: Sequence[UnderStress] = ()) -> str:
    """Write one CSV line for each pair, in full precision; refused pairs have ids, names and reasons only.

    Results on changed images are not included.
    """
    stream = io.StringIO()
    records = _records(comparison)
    writer = csv.DictWriter(
        stream, fieldnames=list(dict.fromkeys(key for r in records for key in r)), lineterminator="\n"
    )
    writer.writeheader()
    for record in records:
        flat = {key: " ".join(map(str, value)) if isinstance(value, list) else value for key, value in record.items()}
        writer.writerow({key: inert(value) for key, value in flat.items()})
    return stream.getvalue().rstrip("\n")


def json_text(comparison: Comparison, stressed: Sequence[UnderStress] = ()) -> str:
    """Write a JSON list of pairs, in full precision; refused pairs have ids, names and reasons only.

    Pairs that were measured on changed images have a field `stress`.
    """
    under = {found.ids: stress.records(found) for found in stressed}
    records = _records(comparison)
    for pair, record in zip(comparison.pairs, records, strict=False):  # the records of refused pairs come after these
        if pair.ids in under:
            record["stress"] = under[pair.ids]
    return numbers.json_text(records)


def _records(comparison: Comparison) -> list[dict[str, object]]:
    found: list[dict[str, object]] = [
        {
            **_names(pair),
            "sentence": sentence(pair, len(comparison.pairs)),
            "difference": pair.difference.value,
            "low": pair.difference.low,
            "high": pair.difference.high,
            "interval_over": pair.difference.over,
            "seeds": list(pair.seeds),
            "images": pair.difference.n_images,
            "won": pair.won,
            "lost": pair.lost,
            "mcnemar_p": list(pair.mcnemar),
            "p": pair.p,
            "p_holm": pair.p_holm,
            "claimed": pair.claimed,
            "time_ratio": pair.time_ratio,
            "seeds_needed_for_1_point": pair.seeds_needed,
            "differing": list(pair.differing),
        }
        for pair in comparison.pairs
    ]
    return found + [{**_names(refused), "refused": list(refused.reasons)} for refused in comparison.refused]


def _names(pair: Pair | Refusal) -> dict[str, str]:
    """Give both rows' names, which are for people, and their ids, by which programs find a row in every export."""
    return {"first": pair.first, "second": pair.second, "first_row": pair.ids[0], "second_row": pair.ids[1]}


FORMATS: dict[str, Callable[..., str]] = {"md": markdown, "csv": csv_text, "json": json_text}
