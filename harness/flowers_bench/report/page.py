"""Render the HTML report: one page that contains everything and loads nothing from elsewhere.

This module and those beside it compute the content; `page.html` is the layout, `page.css` its look, and the files of `SCRIPTS`
make it answer.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.resources import files
from types import MappingProxyType
from typing import TypedDict

from flowers_bench import __version__
from flowers_bench.contract.technique import in_use
from flowers_bench.measure.hardware import describe_hardware
from flowers_bench.measure.statistics import Interval
from flowers_bench.report.aggregate import Finished, Row
from flowers_bench.report.answer import DEFAULT_STORE, Answer, Step, answers
from flowers_bench.report.comparison import Comparison, Pair
from flowers_bench.report.comparison_text import family_words, far_off, points, sentence
from flowers_bench.report.disagreement import VOTES_BUDGET, Disagreement, Kept, Votes
from flowers_bench.report.explorer import MATRICES_BUDGET, Explored, Matrices, explore, hardest
from flowers_bench.report.formatting import duration, p_value, percent, percent_interval, plain, points_interval
from flowers_bench.report.kept_page import page_parts
from flowers_bench.report.leaderboard import COMPARED, Group, Leaderboard
from flowers_bench.report.measures import COSTS, QUALITY, SPEEDS, Kind, Measure, kinds
from flowers_bench.report.names import distinct_names
from flowers_bench.report.pictures import FIGURES_BUDGET, IMAGES_BUDGET, Examples, Picture, figures
from flowers_bench.report.plots import CURVES, Series, ShotsCurve, Sweep, shots_series, sweeps
from flowers_bench.report.robustness import sentences, table, under_stress
from flowers_bench.report.shots import Family, families
from flowers_bench.report.table import Table
from flowers_bench.report.text import latex
from flowers_bench.store.folder import TrialFolder
from flowers_bench.util.errors import Unreadable
from flowers_bench.util.text import printable

#: The page's scripts, in the order in which they need each other.
SCRIPTS = ("dom.js", "plot.js", "tables.js", "heat.js", "disagreement.js", "page.js")
#: The costs that stand beside the accuracy; the others are shown when asked for.
BESIDE = ("seconds", "peak_rss_bytes", "peak_cuda_bytes")
#: How many rows the plots show before the reader chooses others.
DRAWN = 6
#: Nested facts as a list of names and values, both text.
Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Machine:
    """An environment of trials; two of them differ in more than the load."""

    number: int
    shown: str
    facts: Facts


@dataclass(frozen=True)
class PageTrial:
    """One trial of a row; all fields are text, except the seed and the number of its machine. `store` is empty where there is
    but one."""

    id: str
    seed: int
    test: str
    val: str
    epochs: str
    time: str
    machine: int
    load: str
    command: str
    store: str


@dataclass(frozen=True)
class PageRow:
    """One row; `costs` has by key the mean over seeds, and the text for it."""

    id: str
    name: str
    backbone: str
    weights: str
    seeds: int
    top1: Interval
    accuracy: str
    per_class: Interval
    val: float | None
    costs: dict[str, tuple[float | None, str]]
    facts: Facts
    trials: list[PageTrial]


@dataclass(frozen=True)
class KindTable:
    """A table of the measures of one kind; `body` has the place of each row in its group, its name and its cells."""

    title: str
    note: str
    head: list[str]
    body: list[tuple[int, str, list[str]]]


@dataclass(frozen=True)
class Cell:
    """A cell of the comparison matrix, row minus column; `strength` of its colour in percent, 0 if no difference is claimed;
    `within` says of which margin it may be claimed that the two are within it, or is empty."""

    value: str
    interval: str
    p: str
    claimed: bool
    within: str
    one_seed: bool
    side: str
    strength: int


@dataclass(frozen=True)
class Matrix:
    """The comparison matrix; a cell is None if the pair must not be compared; `family` is what claims are adjusted for."""

    names: list[str]
    body: list[list[Cell | None]]
    pairs: int
    family: str
    one_seed: bool


@dataclass(frozen=True)
class StressedPair:
    """A row compared with its baseline on changed images."""

    sentences: list[str]
    table: Table


@dataclass(frozen=True)
class Unfinished:
    """A trial without a result, and the reason."""

    id: str
    name: str
    seed: int
    why: str


class Axis(TypedDict):
    """The axis of a plot against a cost; values are divided by `unit`, whose name is `words`."""

    key: str
    title: str
    axis: str
    unit: float
    words: str


class RowData(Series, Explored):
    """The data of a row for the page's script; `votes` are about the group's images, `seeds` is how many there are."""

    votes: Votes
    seeds: int


class GroupData(TypedDict):
    """The data of a group for the page's script."""

    shots: dict[str, list[ShotsCurve]] | None
    rows: list[RowData]
    classes: Sequence[str]
    costs: list[Axis]
    curves: dict[str, str]
    images: dict[str, str]
    sweeps: list[Sweep]
    drawn: int
    kept: Kept
    latex: str


@dataclass(frozen=True)
class PageGroup:
    """The content of a group for the page's text; `data` is for its script."""

    id: str
    title: str
    dataset: str
    notes: tuple[str, ...]
    hardware: tuple[str, ...]
    overs: list[str]
    verdicts: list[str]
    steps: tuple[Step, ...]
    rows: list[PageRow]
    common: Facts
    scale: Scale
    beside: list[Measure]
    costs: list[Measure]
    kinds: list[KindTable]
    learned: bool
    matrix: Matrix
    figures: list[Picture]
    hard: list[HardImage]
    missing: str | None
    sweeps: list[str]
    has_stress: bool
    stressed: list[StressedPair]
    shots: Table | None
    data: GroupData


@dataclass(frozen=True)
class Scale:
    """The smallest and the largest bound of the accuracies of all rows."""

    low: float
    high: float


@dataclass(frozen=True)
class HardImage:
    """A test image: its key, the name of its class, and the percentage of rows and seeds that classify it correctly."""

    key: str
    label: str
    share: str


def render(
    board: Leaderboard,
    unfinished: Sequence[TrialFolder],
    searched: Sequence[TrialFolder] = (),
    made: datetime | None = None,
    damaged: Sequence[Unreadable] = (),
    store: str = DEFAULT_STORE,
    live: str | None = None,
    stores: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Render the whole page as HTML text.

    Args:
        unfinished: trials without a result; the page lists them, and their time counts in the total.
        searched: trials of searches; their time counts in the total.
        made: the time that the page says it was made at; now, if None.
        damaged: why trials or pictures could not be read; the page lists it.
        store: what the user calls the store, for the commands.
        live: of a run that goes on, what is left of it in words; the page then loads itself again.
        stores: what the user calls the store of each trial, by the trial's id, where the page is of several stores.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Names from plugins, datasets and trials are always escaped: by autoescape in the text, and by `tojson` in the data.
    environment = Environment(
        loader=PackageLoader("flowers_bench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # keep the order of curves and of kinds of change
    machines = _machines(board)
    share = max(1, len(board.groups))
    curves = families(board)
    found = answers(board, unfinished, store, stores)
    groups = [
        _group(place, group, answer, machines, share, curves.get(place), stores)
        for place, (group, answer) in enumerate(zip(board.groups, found, strict=True))
    ]
    return environment.get_template("page.html").render(
        version=__version__,
        made=(made or datetime.now(timezone.utc)).strftime("%d %B %Y, %H:%M UTC"),
        groups=groups,
        data={group.id: group.data for group in groups},
        machines=list(machines.values()),
        unfinished=_unfinished(unfinished),
        damaged=[printable(str(error)) for error in damaged],
        total=_total(board, [*unfinished, *searched]),
        trials=len(_folders(board)),
        rows=sum(len(group.rows) for group in board.groups),
        live=live,
        css=_asset("page.css"),
        scripts="\n".join(map(_asset, SCRIPTS)),
    )


def _total(board: Leaderboard, others: Sequence[TrialFolder]) -> str | None:
    """Sum the time of all trials, including repeated attempts and the `others`; None if it was not recorded."""
    from flowers_bench.measure.total_cost import total_cost

    trials = (trial for group in board.groups for row in group.rows for trial in row.trials)
    spent = {trial.folder: trial.spent for trial in trials}  # each once, even if it has several names
    seconds = sum(spent.values()) + total_cost(others).seconds
    return duration(seconds) if seconds else None


def _folders(board: Leaderboard) -> list[TrialFolder]:
    """List the folders of the finished trials, each once, even if it has several names."""
    trials = (trial for group in board.groups for row in group.rows for trial in row.trials)
    return list(dict.fromkeys(trial.folder for trial in trials))


def _asset(name: str) -> str:
    return files("flowers_bench.report").joinpath(name).read_text(encoding="utf-8")


def _machines(board: Leaderboard) -> dict[str, Machine]:
    """Collect the environments that differ in more than the load, by `_machine_key`."""
    found: dict[str, Machine] = {}
    for trial in (trial for group in board.groups for row in group.rows for trial in row.trials):
        key = _machine_key(trial)
        if key not in found:
            shown = describe_hardware(trial.result.hardware)
            found[key] = Machine(len(found) + 1, shown, _flat(_without_load(trial)))
    return found


def _machine_key(trial: Finished) -> str:
    return json.dumps(_without_load(trial), sort_keys=True)


def _without_load(trial: Finished) -> dict[str, object]:
    return {key: value for key, value in trial.result.hardware.json().items() if key != "load_average"}


def _flat(values: Mapping[str, object], prefix: str = "") -> Facts:
    """Flatten nested values to names, with dots between the keys, and text."""
    found: Facts = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return found


def _group(
    place: int,
    group: Group,
    answer: Answer,
    machines: Mapping[str, Machine],
    groups: int,
    family: Family | None,
    stores: Mapping[str, str],
) -> PageGroup:
    rows = group.rows
    examples = Examples(rows[0].trials[0], IMAGES_BUDGET // groups)
    names = rows[0].trials[0].result.class_names
    hard, swept = hardest(rows), sweeps(rows)
    examples.want(image.key for image in hard)
    matrices = Matrices(MATRICES_BUDGET // groups)
    parts = page_parts(rows)
    explored = [explore(row, part["mistakes"], examples, matrices) for row, part in zip(rows, parts, strict=True)]
    disagreement = Disagreement.of(rows, VOTES_BUDGET // groups)
    examples.want(disagreement.kept["keys"])
    costs = [measure for measure in (*COSTS, *SPEEDS) if measure.measured(rows)]
    facts = [_facts(row) for row in rows]
    common = [fact for fact in facts[0] if len(rows) > 1 and all(fact in others for others in facts)]
    data: GroupData = {
        "shots": shots_series(family) if family else None,
        "rows": [
            RowData(**part["series"], **found, votes=votes, seeds=len(row.seeds))
            for row, part, found, votes in zip(rows, parts, explored, disagreement.votes, strict=True)
        ],
        "classes": names,
        "costs": [_axis(measure, rows) for measure in COSTS if measure.measured(rows)],
        "curves": {key: title for key, (title, _) in CURVES.items()},
        "images": examples.uris,
        "sweeps": swept,
        "drawn": DRAWN,
        "kept": disagreement.kept,
        "latex": latex(Leaderboard((group,))),
    }
    return PageGroup(
        id=f"g{place}",
        title=group.title,
        dataset=rows[0].config.dataset.name,
        notes=group.notes,
        hardware=group.hardware,
        overs=sorted({row.top1.over for row in rows}),
        verdicts=_verdicts(group, answer),
        steps=answer.steps,
        rows=[
            _row(f"g{place}r{i}", row, [fact for fact in own if fact not in common], machines, stores)
            for i, (row, own) in enumerate(zip(rows, facts, strict=True))
        ],
        common=common,
        scale=Scale(min(row.top1.low for row in rows), max(row.top1.high for row in rows)),
        beside=[measure for measure in costs if measure.key in BESIDE],
        costs=[measure for measure in costs if measure.key not in BESIDE],
        learned=any(trial.trained for row in rows for trial in row.trials),
        kinds=[found for kind in (QUALITY, *kinds(tuple(rows))) if (found := _kind(kind, rows))],
        matrix=_matrix(rows[:COMPARED], group.compared),
        figures=figures(rows, FIGURES_BUDGET // groups),
        hard=[HardImage(image.key, names[image.label], image.share) for image in hard],
        missing=examples.missing,
        sweeps=[sweep["factor"] for sweep in swept],
        has_stress=any(trial.result.stress for row in rows for trial in row.trials),
        stressed=_stressed(group),
        shots=family.table() if family else None,
        data=data,
    )


def _stressed(group: Group) -> list[StressedPair]:
    """Compare rows with their baselines on changed images, in sentences and tables."""
    rows = {row.id: row for row in group.rows}
    pairs = ([rows[i] for i in pair.ids] for pair in group.differences)
    found = [stressed for pair in pairs if (stressed := under_stress(*pair))]
    return [StressedPair(sentences(one), table(one)) for one in found[:COMPARED]]


def _verdicts(group: Group, answer: Answer) -> list[str]:
    """Give the sentences of the answer, and those about rows and their baselines that it does not speak of."""
    about = [sentence(pair) for pair in group.told if pair.ids not in answer.told]
    about += [text for row in group.rows if (far := row.far_seed) and (text := far_off(far)) not in answer.far]
    return [
        *answer.sentences(),
        *(
            f"{text[0].upper()}{text[1:]}."
            if text.startswith(("no difference", "this training", "seed "))
            else f"{text}."
            for text in about
        ),
    ]


def _accuracy(row: Row) -> str:
    return f"{percent(row.top1.value)} % {percent_interval(row.top1.low, row.top1.high)}"


def _facts(row: Row) -> Facts:
    """List everything that was set, by name."""
    config = row.config
    facts: dict[str, object] = {
        "weights": config.weights.json(),
        "model": config.model,
        "loss": config.loss,
        "augmentation": config.augmentation,
        "sampler": config.sampler,
        "predictor": config.predictor,
        **({"step": config.step} if config.step else {}),
        "options": config.options,
        "recipe": in_use(config.recipe.json(), trained=row.trials[0].trained),
        "code": config.code,
    }
    return _flat(facts)


def _row(
    identifier: str, row: Row, facts: Facts, machines: Mapping[str, Machine], stores: Mapping[str, str]
) -> PageRow:
    config = row.config
    return PageRow(
        id=identifier,
        name=row.name,
        backbone=config.backbone,
        weights=config.weights.name,
        seeds=len(row.seeds),
        top1=row.top1,
        accuracy=_accuracy(row),
        per_class=row.metrics["mean_per_class"],
        val=row.mean("val", "top1"),
        costs={m.key: (row.mean(*m.path), _cost_text(m, row)) for m in (*COSTS, *SPEEDS)},
        facts=facts,
        trials=[_trial(trial, machines, stores) for trial in row.trials],
    )


def _axis(measure: Measure, rows: Sequence[Row]) -> Axis:
    """Describe the axis of a plot against this cost."""
    largest = max(value for row in rows if (value := row.mean(*measure.path)) is not None)
    unit, words = measure.unit(largest)
    return {
        "key": measure.key,
        "title": measure.title,
        "axis": f"{measure.title.removesuffix(' %')}, {words}",
        "unit": unit,
        "words": words,
    }


def _cost_text(measure: Measure, row: Row) -> str:
    """Write a cost; a count of operations that leaves some out is marked as a lower bound with `≥`."""
    uncounted = measure.key == "flops" and any(trial.result.cost.flops_uncounted for trial in row.trials)
    return f"{'≥ ' if uncounted else ''}{measure.text(row)}"


def _trial(trial: Finished, machines: Mapping[str, Machine], stores: Mapping[str, str]) -> PageTrial:
    result = trial.result
    return PageTrial(
        id=trial.folder.id,
        seed=trial.config.seed,
        test=percent(result.test.top1),
        val=percent(result.val.top1),
        epochs=f"{result.best_epoch} of {result.cost.epochs}" if trial.trained else "none",
        time=duration(result.cost.seconds),
        machine=machines[_machine_key(trial)].number,
        load=plain(next(iter(result.hardware.load_average), None)),
        command=shlex.join(["flowers-bench", *(trial.run.command or ())]),
        store=stores.get(trial.folder.id, ""),
    )


def _kind(kind: Kind, rows: tuple[Row, ...]) -> KindTable | None:
    having = kind.rows(rows)
    if not having:
        return None
    measures = kind.shown(having)
    body = [(rows.index(row), row.name, [measure.text(row) for measure in measures]) for row in having]
    return KindTable(kind.title, kind.note, [measure.title for measure in measures], body)


def _matrix(rows: Sequence[Row], compared: Comparison) -> Matrix:
    """Build the comparison matrix: row minus column in points, with claimed differences marked."""
    pairs = {pair.ids: pair for pair in compared.pairs}
    largest = max((abs(pair.difference.value) for pair in compared.pairs), default=0) or 1.0
    ids = [row.id for row in rows]
    body = [[_cell(pairs.get((a, b)), pairs.get((b, a)), largest) for b in ids] for a in ids]
    one_seed = any(pair.one_seed for pair in compared.pairs)
    return Matrix([row.name for row in rows], body, len(pairs), family_words(compared), one_seed)


def _cell(pair: Pair | None, mirrored: Pair | None, largest: float) -> Cell | None:
    found = pair or mirrored
    if found is None:
        return None
    sign = 1 if pair else -1
    value = sign * found.difference.value
    low, high = sorted((sign * found.difference.low, sign * found.difference.high))
    return Cell(
        value=f"{100 * value:+.1f}",
        interval=points_interval(low, high),
        p=p_value(found.p_holm),
        claimed=found.claimed,
        within=f"within {points(found.margin)}" if found.within else "",
        one_seed=found.one_seed,
        side="won" if value > 0 else "lost",
        strength=round(8 + 42 * min(1.0, abs(value) / largest)) if found.claimed else 0,
    )


def _unfinished(folders: Sequence[TrialFolder]) -> list[Unfinished]:
    configs = [folder.described() for folder in folders]
    return [
        Unfinished(folder.id, name, config.seed, _how_far(folder, config.recipe.epochs))
        for folder, config, name in zip(folders, configs, distinct_names(configs), strict=True)
    ]


def _how_far(folder: TrialFolder, epochs: int) -> str:
    """Say why a trial has no result: it failed, or how far it is."""
    failure = folder.failure()
    if failure:
        return failure.error
    history = folder.history()
    if not history:
        return "not finished yet"
    return f"not finished yet: epoch {len(history)} of at most {epochs}, validation {percent(history[-1].val_top1)} %"
