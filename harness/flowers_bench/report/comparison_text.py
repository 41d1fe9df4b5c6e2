"""A comparison in plain sentences, in the terminal, and as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from flowers_bench.measure.statistics import ALPHA, MOST_SEEDS
from flowers_bench.report import formatting as numbers
from flowers_bench.report import robustness as stress
from flowers_bench.report.aggregate import FarSeed
from flowers_bench.report.comparison import Comparison, Pair, Refusal, Sequential
from flowers_bench.report.formatting import duration, inert, markdown_cell, p_equals, p_value, percent, points_interval
from flowers_bench.report.robustness import UnderStress
from flowers_bench.report.table import Table, markdown_lines, print_lines, print_table, stdout
from flowers_bench.util.text import counted

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
    "p of {margin} points apart (Holm)",
    "time ratio",
)


def sentence(pair: Pair) -> str:
    """Say in one sentence what may be claimed about a pair: better, the same within the margin, or neither, and then what
    it would take."""
    n = pair.difference.n_images
    basis = f"{len(pair.seeds)} seeds x {n} images"
    if pair.agree:
        basis = f"{len(pair.seeds)} seeds that agree on all {n} images"
    if pair.one_seed:
        basis = f"one seed, {n} images: nothing is claimed about the techniques"
    if pair.sequential:
        basis += f"; {sequential_words(pair.sequential)}"
    return f"{_claim(pair)}{_cost(pair)} ({basis})"


def sequential_words(found: Sequential) -> str:
    """Say that seeds were added until it was decided, and what that took."""
    late = f"; {found.late} trials were finished before the plan was made" if found.late else ""
    return (
        f"sequential: look {found.looks} of {found.planned} up to {found.seeds_max} seeds, "
        f"{counted(found.pairs, 'pair')}, {duration(found.seconds)} of training; the interval is that of a fixed number "
        f"of seeds{late}"
    )


def _claim(pair: Pair) -> str:
    value, low, high = (100 * x for x in (pair.difference.value, pair.difference.low, pair.difference.high))
    interval = points_interval(pair.difference.low, pair.difference.high)
    if pair.one_seed and pair.p_holm < ALPHA:
        return (
            f"this training of {pair.first} was right {'more' if value > 0 else 'less'} often than this training of "
            f"{pair.second} on these images: {value:+.1f} points {interval}; {what_would_help(pair)}"
        )
    near = f", and within {points(pair.margin)} of it" if pair.within else ""
    if pair.claimed and value > 0:
        return f"{pair.first} is better than {pair.second} by {value:.1f} points [{low:.1f}, {high:.1f}]{near}"
    if pair.claimed:
        return f"{pair.first} is worse than {pair.second} by {-value:.1f} points [{-high:.1f}, {-low:.1f}]{near}"
    if pair.within:
        return f"{pair.first} is within {points(pair.margin)} of {pair.second}: {value:+.1f} points {interval}"
    among = ""
    if pair.sequential:
        among = f" ({p_equals(min(pair.p_holm, pair.p_within_holm))} over all looks and pairs)"
    elif pair.p < ALPHA:
        among = f" ({p_equals(pair.p)} is not enough among {pair.among} pairs)"
    elif pair.p_within < ALPHA and not pair.one_seed:
        among = f" ({p_equals(pair.p_within)} of being further apart is not enough among {pair.among} pairs)"
    nor = "" if pair.one_seed else f", nor that they are within {points(pair.margin)}"
    return (
        f"no difference can be claimed between {pair.first} and {pair.second}{nor}: {value:+.1f} points "
        f"{interval}{among}; {what_would_help(pair)}"
    )


def points(share: float) -> str:
    """Write a share as points: `1.0 points`, and two decimals where one would hide some of it."""
    number = 100 * share
    return f"{number:.1f} points" if round(number, 1) == round(number, 6) else f"{number:.3g} points"


def what_would_help(pair: Pair) -> str:
    """Say how many seeds, or that more test images, would decide a pair that is not decided."""
    if pair.sequential:
        images = f"it takes more test images, not more seeds, to see {points(pair.margin)}"
        if pair.sequential.outcome == "images":
            return images
        over = pair.sequential.looks == pair.sequential.planned
        return "undecided at the last look" if over else "not decided yet: run the same command again"
    if pair.at_chance:
        return "neither is shown to be better than guessing: train longer, or on more images"
    if pair.needed is None:
        return "what another seed would change is not known, run at least 3"
    effect, low, high = points(pair.margin), pair.needed.low, pair.needed.high
    if not pair.needed.images_suffice or pair.agree:
        return f"to see {effect} it takes more test images, not more seeds"
    if low is None:
        return f"to see {effect} it takes more than {MOST_SEEDS} seeds, or more test images"
    if high is not None and high <= len(pair.seeds):
        return f"{effect} would probably have been seen"
    if high is None:
        seeds = f"{low} seeds or more, perhaps over {MOST_SEEDS},"
    else:
        seeds = f"{low} to {high} seeds" if low < high else f"{low} seeds"
    return f"to see {effect} it takes {seeds} in all, as far as {len(pair.seeds)} seeds can tell (level {p_value(pair.level)})"


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
        p_value(pair.p_within_holm),
        "-" if pair.time_ratio is None else f"{pair.time_ratio:.2f}",
    )


def _listed_p(values: Sequence[float]) -> str:
    if len(values) <= 3:
        return ", ".join(map(p_value, values))
    return f"{p_value(min(values))} to {p_value(max(values))}"


def sentences(comparison: Comparison) -> list[str]:
    """Say one sentence for each pair, and below it what else differs between the two rows, and which seeds lie far off."""
    lines = []
    for pair in comparison.pairs:
        lines.append(sentence(pair))
        if pair.differing:
            lines.append(f"  not the technique alone: {', '.join(pair.differing)}")
        lines += [f"  {far_off(far)}" for far in pair.far_seeds]
    return lines + [refusal(refused) for refused in comparison.refused]


def far_off(far: FarSeed) -> str:
    """Say of a seed that it lies far off from all others, and what follows."""
    others = percent(far.low) if percent(far.low) == percent(far.high) else f"{percent(far.low)} to {percent(far.high)}"
    return (
        f"seed {far.seed} of {far.row} lies far off: {percent(far.top1)} %, the others {others} %; the interval presumes "
        "that such seeds are not rare"
    )


def refusal(refused: Refusal) -> str:
    """Say why a pair is not compared."""
    return f"{refused.first} and {refused.second} cannot be compared: {'; '.join(refused.reasons)}"


def footnotes(comparison: Comparison) -> list[str]:
    """Say how the numbers in the table were computed."""
    overs = sorted({pair.difference.over for pair in comparison.pairs})
    return [
        "differences in points of test top-1 accuracy, first minus second; intervals: 95 % each, not adjusted for the number "
        f"of pairs, over {'; '.join(overs)}",
        f"p: from the same distribution as the interval, McNemar's with one seed; {family_words(comparison)}; claimed below "
        f"{ALPHA}, with two seeds or more",
        "McNemar exact: one per seed, about those two trained networks alone; images won and lost: mean over seeds",
    ]


def family_words(comparison: Comparison) -> str:
    """Say which pairs are adjusted together."""
    tests = counted(comparison.tests, "pair")
    fixed = f"Holm: adjusted for {tests}, {comparison.family}" if comparison.tests else ""
    planned = sum(pair.sequential is not None for pair in comparison.pairs)
    sequential = f"{planned} sequential, adjusted for the looks and pairs of their plan" if planned else ""
    return "; ".join(filter(None, (fixed, sequential)))


def _table(comparison: Comparison) -> Table:
    margin = f"{100 * comparison.pairs[0].margin:g}"
    head = tuple(column.format(margin=margin) for column in COLUMNS)
    return Table("", head, tuple(map(cells, comparison.pairs)), 2, tuple(footnotes(comparison)))


def narrow(comparison: Comparison) -> Table:
    """Make the table of what one looks at first: differences with intervals, what may be claimed, and the cost."""
    body = tuple(
        (
            pair.first,
            pair.second,
            f"{100 * pair.difference.value:+.1f} {points_interval(pair.difference.low, pair.difference.high)}",
            _claim_word(pair),
            p_value(pair.p_holm),
            "-" if pair.time_ratio is None else f"{pair.time_ratio:.2f}",
        )
        for pair in comparison.pairs
    )
    head = ("first", "second", "difference", "claimed", "p (Holm)", "time ratio")
    notes = [note for note in footnotes(comparison) if not note.startswith("McNemar")]
    return Table("", head, body, 2, tuple(notes), ("time ratio", "p (Holm)"))


def _claim_word(pair: Pair) -> str:
    if pair.claimed:
        return "better" if pair.difference.value > 0 else "worse"
    return "within" if pair.within else "one seed" if pair.one_seed else "-"


def print_text(
    comparison: Comparison, stressed: Sequence[UnderStress] = (), *, title: str = "", wide: bool = False
) -> None:
    """Print the sentences, then the table; then both for changed images, for the pairs that were measured on them."""
    console = stdout()
    if title:
        print_lines([title, ""], console)
    print_lines(sentences(comparison), console)
    console.print()
    print_table(_table(comparison) if wide else narrow(comparison), console)
    for found in stressed:
        console.print()
        print_lines(stress.sentences(found), console)
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


def csv_text(comparison: Comparison, stressed: Sequence[UnderStress] = (), others: Sequence[Comparison] = ()) -> str:
    """Write one CSV line for each pair, in full precision; refused pairs have ids, names and reasons only.

    Results on changed images are not included. The pairs of `others` follow.
    """
    stream = io.StringIO()
    records = [record for one in (comparison, *others) for record in _records(one)]
    writer = csv.DictWriter(
        stream, fieldnames=list(dict.fromkeys(key for r in records for key in r)), lineterminator="\n"
    )
    writer.writeheader()
    for record in records:
        flat = {key: " ".join(map(str, value)) if isinstance(value, list) else value for key, value in record.items()}
        writer.writerow({key: inert(value) for key, value in flat.items()})
    return stream.getvalue().rstrip("\n")


def json_text(comparison: Comparison, stressed: Sequence[UnderStress] = (), others: Sequence[Comparison] = ()) -> str:
    """Write a JSON list of pairs, in full precision; refused pairs have ids, names and reasons only.

    Pairs that were measured on changed images have a field `stress`. The pairs of `others` follow.
    """
    under = {found.ids: stress.records(found) for found in stressed}
    records = _records(comparison)
    for pair, record in zip(comparison.pairs, records, strict=False):  # the records of refused pairs come after these
        if pair.ids in under:
            record["stress"] = under[pair.ids]
    return numbers.json_text([*records, *(record for one in others for record in _records(one))])


def _records(comparison: Comparison) -> list[dict[str, object]]:
    found: list[dict[str, object]] = [
        {
            **_names(pair),
            "sentence": sentence(pair),
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
            "margin": pair.margin,
            "p_within": pair.p_within,
            "p_within_holm": pair.p_within_holm,
            "within": pair.within,
            "pairs": pair.among,
            "family": comparison.family,
            "seeds_paired": pair.twins,
            "seeds_agree": pair.agree,
            "time_ratio": pair.time_ratio,
            "seeds_needed_low": pair.needed.low if pair.needed else None,
            "seeds_needed_high": pair.needed.high if pair.needed else None,
            "images_suffice": pair.needed.images_suffice if pair.needed else None,
            "sequential": vars(pair.sequential) if pair.sequential else None,
            "far_seeds": [far_off(far) for far in pair.far_seeds],
            "differing": list(pair.differing),
        }
        for pair in comparison.pairs
    ]
    return found + [{**_names(refused), "refused": list(refused.reasons)} for refused in comparison.refused]


def _names(pair: Pair | Refusal) -> dict[str, str]:
    """Give both rows' names, which are for people, and their ids, by which programs find a row in every export."""
    return {"first": pair.first, "second": pair.second, "first_row": pair.ids[0], "second_row": pair.ids[1]}


FORMATS: dict[str, Callable[..., str]] = {"md": markdown, "csv": csv_text, "json": json_text}
