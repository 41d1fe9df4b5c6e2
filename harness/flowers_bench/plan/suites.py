"""Grids of trials: `--sweep` on the command line, and suites, which are TOML files of `[[trials]]` tables.

Any factor in a table may be a list; the table then stands for every combination of its lists. The whole suite is planned
before anything is trained, and messages name the line of a mistake. The `[[figures]]` tables say which figures
`flowers-bench figures` draws from the finished trials.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from flowers_bench.contract.dataset import Progress, silent
from flowers_bench.contract.host import Host, Registered
from flowers_bench.contract.technique import RECIPE_FIELDS, Part, Recipe
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Loaded, Request, TrialPlan
from flowers_bench.store.identity import Label
from flowers_bench.util.errors import UsageError, unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: The suites that come with the package.
BUILT_IN = Path(__file__).parent / "built_in"
#: Keys of a table that are fields of a `Request`, not settings; each may be a list.
FACTORS = ("technique", "data", "backbone", "weights", "loss", "augmentation", "predictor", "step", "shots")
#: Keys of a table that are counts, one for the whole table: smallest, largest and default value.
COUNTS = {"seeds": (1, 1000, 3), "search": (0, 10000, 0)}
#: Keys of a table that are one text for the whole table: its label, its baseline's label, and the name of its recipe.
TEXTS = ("name", "baseline", "recipe")
_TOP = ("summary", "source", "defaults", "recipes", "trials", "figures")
_REPORTED = ("row", "top1")


@dataclass(frozen=True)
class PublishedResult:
    """The result that a publication reports for a row.

    Attributes:
        row: the name of the row in the publication.
        top1: test accuracy in percent.
    """

    row: str
    top1: float


@dataclass(frozen=True)
class Figure:
    """A figure that a suite draws from its finished trials.

    Attributes:
        name: stem of the file names.
        title: what the figure shows.
        technique: labels of the rows in the figure: `NAME/VARIANT`, or the name that the suite gives them.
        draw: `curves` over epochs, `sweep` over a factor, or `pictures` that the techniques drew.
        factor: the recipe field or option of a sweep; else None.
    """

    name: str
    title: str
    technique: tuple[str, ...]
    draw: str
    factor: str | None = None


#: Kinds of figures.
DRAWN = ("curves", "sweep", "pictures")


@dataclass(frozen=True)
class Table:
    """One `[[trials]]` table, with defaults filled in.

    Attributes:
        values: factors and settings, each a list of at least one value.
        seeds: how many seeds; they count from 0.
        search: how many configurations to try for each combination; 0 runs the recipes as they are.
        reported: the published result to show beside the measured one, or None.
        line: line of the table's header, from 1.
        lines: line of each key.
        name: label of the trials, `NAME/VARIANT`, where `{KEY}` stands for a key's value; None for the technique's variant.
        baseline: label of the row that the trials are compared with; only with `name`.
        recipe: fields that replace the variant's own.
    """

    values: Mapping[str, Sequence[Any]]
    seeds: int
    search: int
    reported: PublishedResult | None
    line: int
    lines: Mapping[str, int]
    name: str | None = None
    baseline: str | None = None
    recipe: Mapping[str, object] = field(default_factory=dict)

    def label(self, cell: Mapping[str, str]) -> Label | None:
        """Make the label of the trials of one combination; None if they are called as the technique's variant.

        Raises:
            UsageError: the name has a `{KEY}` that the table does not have.
        """
        if self.name is None:
            return None
        for key in re.findall(r"\{(.*?)\}", self.name):
            if key not in cell:
                raise unknown_name("key in name", key, cell)
        return Label.of(re.sub(r"\{(.*?)\}", lambda found: cell[found[1]], self.name), self.baseline)

    def cells(self) -> Iterable[dict[str, str]]:
        """Make every combination of the values, as text by key."""
        for combination in itertools.product(*self.values.values()):
            yield dict(zip(self.values, map(str, combination), strict=True))


@dataclass(frozen=True)
class Suite:
    """A suite as its file says it; names are not resolved yet.

    Attributes:
        path: the file.
        source: the publication that reported results come from.
        tables: the `[[trials]]` tables, in the file's order.
        figures: the `[[figures]]` tables, in the file's order.
        recipes: the fields of each `[recipes.NAME]` table, by name.
    """

    path: Path
    summary: str
    source: str
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...] = ()
    recipes: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def error(self, line: int, problem: object) -> UsageError:
        """Make the error for a mistake in the file: its line and what is wrong."""
        return UsageError(f"{self.path}, line {line}: {problem}")


@dataclass(frozen=True)
class PlannedTable:
    """The trials of a table: with its recipes as they are, or, after `with_found`, with the recipes that a search chose.

    Attributes:
        requests: one for each combination.
    """

    table: Table
    requests: tuple[Request, ...]
    planned: tuple[TrialPlan, ...]


def read_suite(name: str) -> Suite:
    """Read the suite of that name or in that file.

    Raises:
        UsageError: there is no such suite, the file is not TOML, or a key or value is not allowed; the message has the line.
    """
    path = _find(name)
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError is raised for a number with thousands of digits too
        raise UsageError(f"{path}: {error}") from error  # the message of tomllib has the line
    lines = _lines(text)
    suite = Suite(path, str(content.get("summary", "")), str(content.get("source", "")), ())
    for key in content:
        if key not in _TOP:
            raise suite.error(lines.top.get(key, 1), unknown_name("key", key, _TOP))
    defaults, tables = content.get("defaults", {}), content.get("trials", [])
    if not isinstance(defaults, dict):
        raise suite.error(lines.top.get("defaults", 1), "defaults must be a table: [defaults]")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise suite.error(lines.top.get("trials", 1), "a suite names its trials in at least one [[trials]] table.")
    if len(lines.tables) != len(tables):
        raise suite.error(1, "write each table of trials with a header line of its own: [[trials]].")
    suite = replace(suite, recipes=_recipes(suite, content.get("recipes", {}), lines))
    found = [_table(suite, defaults, *item) for item in zip(tables, lines.tables, strict=True)]
    return replace(suite, tables=tuple(found), figures=_figures(suite, content.get("figures", []), lines))


def _recipes(suite: Suite, content: Any, lines: _Lines) -> Mapping[str, Mapping[str, object]]:
    """Read a suite's recipes by name: tables, or the name of another suite whose recipes are used."""
    at = lines.top.get("recipes", 1)
    if isinstance(content, str):
        return _of_another(suite, "recipes", content, at).recipes
    if not isinstance(content, dict) or not all(isinstance(fields, dict) for fields in content.values()):
        raise suite.error(at, 'expected [recipes.NAME] tables, or recipes = "the name of a suite that has the same"')
    for name, fields_of_it in content.items():
        try:
            Recipe().changed(**fields_of_it)
        except UsageError as error:
            raise suite.error(at, f"recipe {name}: {error}") from error
    return content


def _of_another(suite: Suite, what: str, name: str, line: int) -> Suite:
    """Read the suite whose recipes or figures this one uses.

    Raises:
        UsageError: there is no such suite, or it uses this one's in turn.
    """
    try:
        return read_suite(name)
    except RecursionError as error:
        raise suite.error(line, f"{what} = {name!r} leads back to this suite.") from error


def _figures(suite: Suite, content: Any, lines: _Lines) -> tuple[Figure, ...]:
    """Read a suite's figures: tables, or the name of another suite whose figures are used."""
    at = lines.top.get("figures", 1)
    if isinstance(content, str):
        return _of_another(suite, "figures", content, at).figures
    if not isinstance(content, list) or not all(isinstance(table, dict) for table in content):
        raise suite.error(at, 'expected [[figures]] tables, or figures = "the name of a suite that has the same"')
    return tuple(_figure(suite, table, *where) for table, where in zip(content, lines.figures, strict=False))


def _figure(suite: Suite, table: Mapping[str, Any], line: int, lines: Mapping[str, int]) -> Figure:
    # The values may be of any TOML type until they are checked here.
    known = [f.name for f in fields(Figure)]
    for key in table:
        if key not in known:
            raise suite.error(lines.get(key, line), unknown_name("key", key, known))
    draw, wanted = table.get("draw"), ["name", "title", "technique", "draw"]
    if draw not in DRAWN:
        raise suite.error(lines.get("draw", line), unknown_name("draw", str(draw), DRAWN))
    for key in [*wanted, *(["factor"] if draw == "sweep" else [])]:
        if key not in table:
            raise suite.error(line, f"this figure has no {key}. Needed: {', '.join(wanted)}; a sweep: factor.")
    techniques = table["technique"] if isinstance(table["technique"], list) else [table["technique"]]
    texts = [*techniques, *(value for key, value in table.items() if key != "technique")]
    if not techniques or not all(isinstance(text, str) for text in texts):
        raise suite.error(line, "a figure's values are text; technique may be a list.")
    if not re.fullmatch(r"[\w][\w.-]*", table["name"]):
        raise suite.error(lines.get("name", line), f"name = {table['name']!r}: letters, digits, '.', '-' and '_' only.")
    return Figure(table["name"], table["title"], tuple(techniques), draw, table.get("factor"))


def _find(name: str) -> Path:
    if name.endswith(".toml"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UsageError(f"suite {name}: no such file.")
        return path
    known = {path.stem: path for path in BUILT_IN.glob("*.toml")}
    if name not in known:
        raise unknown_name("suite", name, [*known, "a file ending in .toml"])
    return known[name]


@dataclass(frozen=True)
class _Lines:
    """Line numbers, which `tomllib` does not give: of keys before the first table, of defaults, and of each table in a list."""

    top: dict[str, int]
    defaults: dict[str, int]
    tables: list[tuple[int, dict[str, int]]]
    figures: list[tuple[int, dict[str, int]]]


def _lines(text: str) -> _Lines:
    found = _Lines({}, {}, [], [])
    keys = found.top
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[\s*(trials|figures)\s*\]\]", line):
            keys = {}
            (found.tables if header[1] == "trials" else found.figures).append((number, keys))
        elif header := re.match(r"\s*\[\s*\"?([\w-]+)", line):
            found.top.setdefault(header[1], number)
            keys = found.defaults if header[1] == "defaults" else {}
        elif key := re.match(r"\s*(?:\"([^\"]+)\"|([\w-]+))[\s.\w-]*=", line):
            keys.setdefault(key[1] or key[2], number)
    return found


def _table(
    suite: Suite, defaults: Mapping[str, Any], own: Mapping[str, Any], where: tuple[int, dict[str, int]]
) -> Table:
    # The values may be of any TOML type until they are checked here.
    line, lines = where
    values = {**defaults, **own}
    if "technique" not in values:
        raise suite.error(line, 'these trials have no technique. Say: technique = "NAME/VARIANT"')
    counts = {key: values.pop(key, default) for key, (_, _, default) in COUNTS.items()}
    for key, count in counts.items():
        low, high, _ = COUNTS[key]
        if type(count) is not int or not low <= count <= high:
            raise suite.error(lines.get(key, line), f"{key} = {count!r}: expected how many, from {low} to {high}.")
    texts = {key: values.pop(key, None) for key in TEXTS}
    for key, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise suite.error(lines.get(key, line), f"{key} = {text!r}: expected a text.")
    for key in ("name", "baseline"):
        if texts[key] is not None and not re.fullmatch(r"[^/]+/[^/]+", texts[key]):
            raise suite.error(
                lines.get(key, line), f'{key} = {texts[key]!r}: expected "NAME/VARIANT", such as "mine/wide".'
            )
    if texts["baseline"] and not texts["name"]:
        raise suite.error(lines.get("baseline", line), "baseline goes with name: a variant has a baseline of its own.")
    recipe = texts.pop("recipe")
    if recipe is not None and recipe not in suite.recipes:
        raise suite.error(lines.get("recipe", line), unknown_name("recipe", recipe, suite.recipes))
    reported = values.pop("reported", None)
    factors = {key: value if isinstance(value, list) else [value] for key, value in values.items()}
    for key, choices in factors.items():
        if not choices or not all(isinstance(choice, (str, int, float, bool)) for choice in choices):
            raise suite.error(lines.get(key, line), f"{key} = {values[key]!r}: expected a value, or a list of values.")
    for shots in factors.get("shots", ()):
        if type(shots) is not int or shots < 1:
            raise suite.error(lines.get("shots", line), f"shots = {shots!r}: expected images of each class, from 1.")
    own_recipe = suite.recipes[recipe] if recipe is not None else {}
    table = Table(factors, **counts, reported=None, line=line, lines=lines, **texts, recipe=own_recipe)
    if reported is None:
        return table
    at = lines.get("reported", line)
    if not isinstance(reported, dict) or set(reported) != set(_REPORTED):
        raise suite.error(at, 'expected reported = {row = "its name", top1 = 88.16}')
    if not isinstance(reported["top1"], (int, float)) or not 0 <= reported["top1"] <= 100:
        raise suite.error(at, f"top1 = {reported['top1']!r}: expected a percentage.")
    if len(list(table.cells())) > 1:
        raise suite.error(at, "a reported result belongs to one configuration, and this table has several.")
    return replace(table, reported=PublishedResult(str(reported["row"]), float(reported["top1"])))


def overridden(
    suite: Suite,
    given: Mapping[str, Sequence[Any]],
    seeds: int | None = None,
    shots: Sequence[int] = (),
    search: int | None = None,
) -> Suite:
    """Replace factors, settings and counts of the suite with those of the command line.

    Another `data` drops the suite's `data.KEY` options, which belong to its own dataset. Other `shots` drop the reported
    results, which were measured with another number of images.
    """
    given = {**given, "shots": shots} if shots else given
    tables = []
    for table in suite.tables:
        kept = {k: v for k, v in table.values.items() if not ("data" in given and k.startswith("data."))}
        tables.append(
            replace(
                table,
                values={**kept, **given},
                seeds=table.seeds if seeds is None else seeds,
                search=table.search if search is None else search,
                reported=None if shots else table.reported,
            )
        )
    return replace(suite, tables=tuple(tables))


def plan_suite(
    host: Host,
    suite: Suite,
    request: Request,
    files: Sequence[Path],
    progress: Progress = silent,
    loaded: Loaded | None = None,
) -> list[PlannedTable]:
    """Plan the trials of every table.

    Args:
        request: has the folders; its factors are the defaults for tables that do not name them.
        loaded: as in `plan`.

    Raises:
        UsageError: a key is unknown, a technique does not have that option, or a combination does not fit; the message
            has the line.
    """
    loaded = loaded or Loaded()
    return [_planned(host, suite, table, request, files, progress, loaded) for table in suite.tables]


def _planned(
    host: Host,
    suite: Suite,
    table: Table,
    request: Request,
    files: Sequence[Path],
    progress: Progress,
    loaded: Loaded,
) -> PlannedTable:
    known = _known_keys(host)
    for key in table.values:
        if key not in known:
            raise suite.error(table.lines.get(key, table.line), unknown_name("key", key, known))
    base = replace(request, seeds=table.seeds, search=table.search, recipe=table.recipe)
    requests: list[Request] = []
    planned: list[TrialPlan] = []
    for cell in table.cells():
        label = _label(host, suite, table, cell)
        try:
            requests.append(of_cell(host, replace(base, label=label), cell))
            planned += plan(host, requests[-1], files, progress, loaded)
        except UsageError as error:
            raise suite.error(_line_of(table, cell, str(error)), error) from error
    return PlannedTable(table, tuple(requests), tuple(planned))


def _label(host: Host, suite: Suite, table: Table, cell: Mapping[str, str]) -> Label | None:
    """Make the label that the table gives to the trials of a combination, or None.

    Raises:
        UsageError: the label is that of a registered variant.
    """
    line = table.lines.get("name", table.line)
    try:
        label = table.label(cell)
    except UsageError as error:
        raise suite.error(line, error) from error
    registered = host.techniques.get(label.technique) if label else None
    if label and registered and label.variant in registered.value.variants:
        raise suite.error(line, f"name = {table.name!r}: {label.text} is a variant that {registered.plugin} registers.")
    return label


def with_found(tables: Sequence[PlannedTable], found: Sequence[Sequence[TrialPlan]]) -> list[PlannedTable]:
    """Replace the trials of tables with a search by the trials in `found`: one list for each of their requests, in order."""
    each = iter(found)
    return [
        replace(table, planned=tuple(item for _ in table.requests for item in next(each)))
        if table.table.search
        else table
        for table in tables
    ]


def _known_keys(host: Host) -> set[str]:
    tables: Sequence[Mapping[str, Registered[Part]]] = (
        host.models,
        host.losses,
        host.augmentations,
        host.predictors,
        host.steps,
        host.optimizers,
    )
    options = {name for table in tables for entry in table.values() for name in entry.value.options}
    data = {f"data.{name}" for entry in host.datasets.values() for name in entry.value.options}
    return {*FACTORS, *COUNTS, *TEXTS, "reported", *RECIPE_FIELDS, *options, *data}


def _line_of(table: Table, cell: Mapping[str, str], problem: str) -> int:
    """Find the line of the key that the problem names, or whose value it names; else the line of the table's header."""
    wrong = re.split(r"Did you mean|[Vv]alid", problem)[0]  # the names that follow are not the mistake
    words = set(re.findall(r"[\w./-]*\w", wrong)) | set(re.findall(r"[\w.-]*\w", wrong))
    # Keys that are named come before keys whose value is named, and settings before factors: the message
    # `freeze: mixing/mixup has no such option` is about freeze.
    keys = sorted(cell, key=lambda key: (key not in words, key in FACTORS))
    for key in keys:
        if key in table.lines and (key in words or words & {cell[key], *cell[key].split("/")}):
            return table.lines[key]
    return table.line


def of_cell(host: Host, request: Request, cell: Mapping[str, str]) -> Request:
    """Make the request for one combination. In a grid, a bare technique name means its default variant without baseline."""
    base, _, variant = cell["technique"].partition("/")
    technique = host.find("technique", host.techniques, base).value
    name = f"{base}/{technique.variant(variant or None)[0]}"
    settings = {key: value for key, value in cell.items() if key not in FACTORS}
    return replace(
        request,
        techniques=[name],
        data=cell.get("data", request.data),
        backbone=cell.get("backbone", request.backbone),
        weights=cell.get("weights", request.weights),
        loss=cell.get("loss", request.loss),
        augmentation=cell.get("augmentation", request.augmentation),
        predictor=cell.get("predictor", request.predictor),
        step=cell.get("step", request.step),
        shots=int(cell["shots"]) if "shots" in cell else request.shots,
        settings={**request.settings, **settings},
    )


def swept(host: Host, request: Request, sweep: Mapping[str, Sequence[str]]) -> list[Request]:
    """Make a request for each technique and each combination of the swept settings or factors, such as `backbone`.

    If nothing is swept, this is the request itself, in which bare technique names bring their baselines along.
    """
    if not sweep:
        return [request]
    grid = Table({"technique": list(request.techniques), **sweep}, request.seeds, request.search, None, 1, {})
    return [of_cell(host, request, cell) for cell in grid.cells()]


def distinct_requests(requests: Sequence[Request]) -> list[str]:
    """Name requests of one technique each: by the technique, followed by the settings in which the requests differ."""
    facts = [{**{key: getattr(one, key) for key in FACTORS[1:]}, **one.settings} for one in requests]
    differing = [key for key in dict.fromkeys(itertools.chain(*facts)) if len({str(own.get(key)) for own in facts}) > 1]
    return [
        " ".join([one.title, *(f"{key}={own[key]}" for key in differing if own.get(key) is not None)])
        for one, own in zip(requests, facts, strict=True)
    ]
