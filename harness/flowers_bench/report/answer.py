"""The answer of a comparison: the best technique, those that cannot be told apart from it, the cheapest of these, and what is open.

Everything in it is claimed as `flowers-bench compare` claims it: by the pairs of the leaderboard's group, one family.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from flowers_bench.measure.hardware import describe_hardware
from flowers_bench.measure.statistics import ALPHA, Interval
from flowers_bench.report import formatting as numbers
from flowers_bench.report.aggregate import Row, protocol
from flowers_bench.report.comparison import Pair
from flowers_bench.report.comparison_text import (
    family_words,
    far_off,
    points,
    sequential_words,
    what_would_help,
)
from flowers_bench.report.formatting import duration, markdown_cell, percent, percent_interval, points_interval
from flowers_bench.report.leaderboard import Group, Leaderboard
from flowers_bench.report.table import print_lines, stdout
from flowers_bench.store.folder import TrialFolder
from flowers_bench.store.mirror import is_url
from flowers_bench.util.text import counted, printable

#: So many techniques are named in one sentence; the leaderboard has all.
NAMED = 6
#: The store that commands read where nothing is said.
DEFAULT_STORE = "runs"
_MORE_SEEDS = "more seeds, which may decide what is open"
#: Options of a stored command that a command for more seeds has in its own way; a value follows each.
_OWN = ("--seeds", "--shard", "--store", "--out")
#: No more seeds than these are advised.
MOST_PLANNED = 30


@dataclass(frozen=True)
class Standing:
    """A row as the answer speaks of it.

    Attributes:
        row: the row's id.
        name: all names of this training, with `=` between them.
        seconds: time of one training, mean over seeds; None if it was not measured.
        machines: what its trials ran on, in words.
        untrained: whether it is a network that has learned nothing: random weights, and no training.
        trial: the id of its seed that is best on validation.
    """

    row: str
    name: str
    top1: Interval
    seeds: int
    seconds: float | None
    machines: frozenset[str]
    untrained: bool
    trial: str

    @classmethod
    def of(cls, row: Row, names: Iterable[str]) -> Standing:
        """Describe the row; `names` are those of all rows that are the same trials."""
        chosen = max(row.trials, key=lambda trial: trial.result.val.top1)
        first = row.trials[0]
        # What is built of finished trials, as a soup is, has learned what they had.
        untrained = not first.trained and row.config.weights.name == "none" and not first.result.cost.inherited
        return cls(
            row=row.id,
            name=" = ".join(names),
            top1=row.top1,
            seeds=len(row.seeds),
            seconds=row.mean("cost", "seconds"),
            machines=frozenset(describe_hardware(trial.result.hardware) for trial in row.trials),
            untrained=untrained,
            trial=chosen.folder.id,
        )


@dataclass(frozen=True)
class Against:
    """Another row, beside the best one.

    Attributes:
        pair: what was compared; its `first` may be either.
        difference, low, high: accuracy of the best row minus that of this one, as shares, with the 95 % interval.
    """

    other: Standing
    pair: Pair
    difference: float
    low: float
    high: float

    @classmethod
    def of(cls, best: Standing, other: Standing, pair: Pair) -> Against:
        """Turn the pair so that the best row comes first."""
        found = pair.difference
        if pair.ids[0] == best.row:
            return cls(other, pair, found.value, found.low, found.high)
        return cls(other, pair, 0.0 - found.value, 0.0 - found.high, 0.0 - found.low)

    @property
    def verdict(self) -> str:
        """What may be claimed: they are `within` the margin, different or not; the best one is `better`, or `worse` on the
        seeds that both have; or it is `open`."""
        if self.pair.within:
            return "within"
        if self.pair.claimed:
            return "better" if self.difference > 0 else "worse"
        return "open"

    @property
    def words(self) -> str:
        """The name, and the difference with its interval."""
        untrained = ", a network that has learned nothing," if self.other.untrained else ""
        real = ", a claimed difference" if self.pair.within and self.pair.claimed else ""
        gap = f"{100 * self.difference:+.1f} points {points_interval(self.low, self.high)}"
        return f"{self.other.name}{untrained} ({gap}{real})"


@dataclass(frozen=True)
class Step:
    """A command that makes sense next, and what it is for."""

    command: str
    purpose: str


@dataclass(frozen=True)
class Answer:
    """What one table of comparable rows says to somebody who has to choose.

    Attributes:
        title: the title of the table.
        best: the row with the highest test accuracy.
        images: how many test images there are.
        guess: the share of right answers of whoever always names the most frequent class.
        against: the rows that the best one was compared with, in the table's order.
        apart: names of the other rows: not compared with it.
        at_chance: names of the rows that are not shown to be better than a guess, or than a network that has learned nothing.
        nothing_learned: whether the best one is among these.
        cheapest: of the best row and those that cannot be told apart from it, the one that trains in the shortest time; None
            if there is but one, if they ran on different machines, or if the best one is not shown to have learned
            anything.
        same: a sentence for rows that share trials.
        missing: a sentence for trials that are not in the answer.
        far: a sentence for each seed that lies far off, of the rows that the answer names.
        family: what the claims are adjusted for.
        steps: what to do next.
    """

    title: str
    best: Standing
    images: int
    guess: float
    against: tuple[Against, ...]
    apart: tuple[str, ...]
    at_chance: tuple[str, ...]
    nothing_learned: bool
    cheapest: Standing | None
    same: tuple[str, ...]
    missing: tuple[str, ...]
    far: tuple[str, ...]
    family: str
    steps: tuple[Step, ...]

    @classmethod
    def of(
        cls,
        group: Group,
        unfinished: Sequence[TrialFolder] = (),
        store: str = DEFAULT_STORE,
        stores: Mapping[str, str] = MappingProxyType({}),
    ) -> Answer:
        """Read the answer from a group.

        Args:
            unfinished: trials of the same store without a result; those of other groups are passed over.
            store: what the user calls the store, for the commands.
            stores: the same for trials of other stores, by the trial's id.
        """
        standings = _standings(group.rows)
        best, others = standings[0], standings[1:]
        pairs = {frozenset(pair.ids): pair for pair in group.compared.pairs}
        against = tuple(
            Against.of(best, other, pair) for other in others if (pair := pairs.get(frozenset((best.row, other.row))))
        )
        labels = group.rows[0].labels
        guess = float(np.bincount(labels).max() / len(labels))
        chance = _at_chance(standings, against, guess)
        named = {best.row, *(one.other.row for one in against)}
        found = cls(
            title=group.title,
            best=best,
            images=len(labels),
            guess=guess,
            against=against,
            apart=tuple(other.name for other in others if other.row not in named),
            at_chance=tuple(standing.name for standing in standings if standing.row in chance),
            nothing_learned=best.row in chance,
            cheapest=None if best.row in chance else _cheapest(best, against),
            same=group.same,
            missing=tuple(_missing(group, unfinished)),
            far=tuple(far_off(far) for row in group.rows if row.id in named and (far := row.far_seed)),
            family=family_words(group.compared) if against else "",
            steps=(),
        )
        steps = tuple(_steps(found, {row.id: row for row in group.rows}, store, stores))
        return replace(found, steps=steps)

    @property
    def alike(self) -> tuple[Against, ...]:
        """The rows that cannot be told apart from the best one, or are the same within the margin."""
        return tuple(one for one in self.against if one.verdict in ("within", "open"))

    @property
    def told(self) -> frozenset[tuple[str, str]]:
        """The ids of the pairs that the sentences are about."""
        return frozenset(one.pair.ids for one in self.against)

    def sentences(self) -> list[str]:
        """Say all of it, the most important first."""
        return [
            self._headline(),
            *self._better(),
            *self._within(),
            *self._open(),
            *self._cheap(),
            *self._chance(),
            *self._sequential(),
            *(f"{text[0].upper()}{text[1:]}." for text in self.far),
            *(f"{text}." for text in self.same),
            *self._apart(),
            *self.missing,
            *([f"Claims: {self.family}."] if self.family else []),
        ]

    def _headline(self) -> str:
        top1 = self.best.top1
        share = f"{percent(top1.value)} % {percent_interval(top1.low, top1.high)}"
        basis = f"{counted(self.best.seeds, 'seed')} x {self.images} test images"
        if self.nothing_learned:
            return (
                f"Nothing is shown to have learned anything: {self.best.name} has the highest test accuracy, {share} "
                f"({basis}), and who always names the most frequent class is right in {percent(self.guess)} %."
            )
        alone = "" if self.against or self.apart else "; nothing else was run that it can be compared with"
        return f"{self.best.name} has the highest test accuracy: {share} ({basis}){alone}."

    def _better(self) -> list[str]:
        better = [one for one in self.against if one.verdict == "better"]
        worse = [one for one in self.against if one.verdict == "worse"]
        found = []
        if better:
            all_ = len(better) == len(self.against) > 1 and not self.apart
            found.append(f"It is better than {'all others: ' if all_ else ''}{_listed(better)}.")
        if worse:
            found.append(f"On the seeds that both have, it is worse than {_listed(worse)}.")
        return found

    def _within(self) -> list[str]:
        within = [one for one in self.against if one.verdict == "within"]
        return [
            f"It is within {points(margin)} of {_listed([one for one in within if one.pair.margin == margin])}: the same for "
            "practical purposes."
            for margin in dict.fromkeys(one.pair.margin for one in within)
        ]

    def _open(self) -> list[str]:
        """Say from which rows it cannot be told apart, together for those of which the same would help."""
        found: dict[tuple[bool, str], list[Against]] = {}
        for one in self.against:
            if one.verdict == "open":
                chance = one.pair.one_seed and one.pair.p_holm < ALPHA
                found.setdefault((chance, _help(one.pair)), []).append(one)
        return [_open_words(chance, would_help, alike) for (chance, would_help), alike in found.items()]

    def _cheap(self) -> list[str]:
        if not self.alike or self.nothing_learned:
            return []
        if self.cheapest is None:
            return ["Which of these is the cheapest is not known: they ran on different machines."]
        took, best = duration(self.cheapest.seconds), duration(self.best.seconds)
        if self.cheapest.row == self.best.row:
            return [f"It is also the cheapest of these: {took} of training."]
        return [f"The cheapest of these is {self.cheapest.name}: {took} of training; {self.best.name} takes {best}."]

    def _chance(self) -> list[str]:
        others = [name for name in self.at_chance if name != self.best.name]
        if not others or self.nothing_learned:
            return []
        are = "is" if len(others) == 1 else "are"
        return [f"{', '.join(others)} {are} not shown to be better than a guess ({percent(self.guess)} %)."]

    def _sequential(self) -> list[str]:
        texts = dict.fromkeys(sequential_words(one.pair.sequential) for one in self.against if one.pair.sequential)
        return [f"Seeds were added until it was decided; {text}." for text in texts]

    def _apart(self) -> list[str]:
        return [f"Not compared with it: {_few(self.apart)}."] if self.apart else []


def answers(
    board: Leaderboard,
    unfinished: Sequence[TrialFolder] = (),
    store: str = DEFAULT_STORE,
    stores: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Answer, ...]:
    """Read one answer from each table; arguments are those of `Answer.of`."""
    return tuple(Answer.of(group, unfinished, store, stores) for group in board.groups)


def print_text(found: Sequence[Answer], store: str = DEFAULT_STORE, *, reported: bool = False) -> None:
    """Print the answers to stdout, and what to do next, `report` only if the page is not `reported` yet; commands are not
    broken, so that they can be copied."""
    console = stdout()
    for answer in found:
        print_lines([f"Answer: {answer.title}", *(f"  {sentence}" for sentence in answer.sentences()), ""], console)
    print_lines(["Next:"], console)
    for step in steps(found, store, reported=reported):
        print_lines([f"  {step.purpose}:"], console)
        console.print(f"    {printable(step.command)}", markup=False, soft_wrap=True)


def markdown_lines(found: Sequence[Answer], store: str = DEFAULT_STORE) -> list[str]:
    """Write the same in Markdown."""
    text = []
    for answer in found:
        text += [f"**Answer: {markdown_cell(answer.title)}**", ""]
        text += [f"- {markdown_cell(sentence)}" for sentence in answer.sentences()] + [""]
    text += ["Next:", ""]
    return text + [f"- {markdown_cell(step.purpose)}: {markdown_cell(step.command)}" for step in steps(found, store)]


def json_text(found: Sequence[Answer], store: str = DEFAULT_STORE) -> str:
    """Write a JSON list with a record for each answer."""
    return numbers.json_text([_record(answer, store) for answer in found])


def steps(found: Sequence[Answer], store: str, *, reported: bool = False) -> list[Step]:
    """List what makes sense next, each once: what the answers say, then the report of all unless it is `reported`."""
    beside = "" if store == DEFAULT_STORE else f" --store {shlex.quote(store)}"
    report = Step(f"flowers-bench report{beside} -o report.html", "one page: every pair, curves, cost, mistakes")
    own = [step for answer in found for step in answer.steps]
    return list({step.command: step for step in (own if reported else [*own, report])}.values())


def _record(answer: Answer, store: str) -> dict[str, object]:
    return {
        "group": answer.title,
        "best": _standing_record(answer.best),
        "test_images": answer.images,
        "guess": answer.guess,
        "nothing_learned": answer.nothing_learned,
        "at_chance": list(answer.at_chance),
        "compared": [
            {
                **_standing_record(one.other),
                "verdict": one.verdict,
                "claimed": one.pair.claimed,
                "difference": one.difference,
                "low": one.low,
                "high": one.high,
                "margin": one.pair.margin,
                "seeds_needed_low": one.pair.needed.low if one.pair.needed else None,
                "seeds_needed_high": one.pair.needed.high if one.pair.needed else None,
                "images_suffice": one.pair.needed.images_suffice if one.pair.needed else None,
            }
            for one in answer.against
        ],
        "not_compared": list(answer.apart),
        "cheapest": _standing_record(answer.cheapest) if answer.cheapest else None,
        "family": answer.family,
        "sentences": answer.sentences(),
        "next": [vars(step) for step in steps([answer], store)],
    }


def _standing_record(one: Standing) -> dict[str, object]:
    return {
        "row": one.row,
        "name": one.name,
        "test_top1": one.top1.value,
        "test_top1_low": one.top1.low,
        "test_top1_high": one.top1.high,
        "seeds": one.seeds,
        "seconds": one.seconds,
        "trial": one.trial,
    }


def _standings(rows: Sequence[Row]) -> list[Standing]:
    """Describe each row once, under all of its names."""
    names: dict[frozenset[str], list[str]] = {}
    for row in rows:
        names.setdefault(row.ids, []).append(row.name)
    first: dict[frozenset[str], Row] = {}
    for row in rows:
        first.setdefault(row.ids, row)
    return [Standing.of(row, names[ids]) for ids, row in first.items()]


def _at_chance(standings: Sequence[Standing], against: Sequence[Against], guess: float) -> set[str]:
    """Find the rows whose interval reaches down to a guess; and the best one, if a network that has learned nothing is among
    those that cannot be told apart from it."""
    found = {one.row for one in standings if one.top1.low <= guess}
    if any(one.other.untrained and one.verdict != "better" and not one.pair.one_seed for one in against):
        found.add(standings[0].row)
    return found | ({standings[0].row} if standings[0].untrained else set())


def _cheapest(best: Standing, against: Sequence[Against]) -> Standing | None:
    alike = [best, *(one.other for one in against if one.verdict in ("within", "open"))]
    if len(alike) == 1 or len({one.machines for one in alike}) > 1 or any(one.seconds is None for one in alike):
        return None
    return min(alike, key=lambda one: one.seconds or 0.0)


def _help(pair: Pair) -> str:
    among = ""
    if pair.sequential is None and pair.p < ALPHA and not pair.one_seed:
        among = f"{numbers.p_equals(pair.p)} is not enough among {counted(pair.among, 'pair')}; "
    return among + what_would_help(pair)


def _open_words(chance: bool, would_help: str, alike: Sequence[Against]) -> str:
    if chance:
        these = "this training" if len(alike) == 1 else "these trainings"
        return (
            f"This training of it was right more often than {these} of {_listed(alike)}, which claims nothing about the "
            f"techniques: {would_help}."
        )
    margin = alike[0].pair.margin
    nor = "" if alike[0].pair.one_seed else f", nor that they are within {points(margin)}"
    return f"No difference can be claimed between it and {_listed(alike)}{nor}; {would_help}."


def _listed(found: Sequence[Against]) -> str:
    return _few([one.words for one in found])


def _few(texts: Sequence[str]) -> str:
    rest = len(texts) - NAMED
    return ", ".join(texts[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _missing(group: Group, unfinished: Sequence[TrialFolder]) -> list[str]:
    """Say which trials of this group failed or are not finished."""
    own = protocol(group.rows[0].config)
    failed: dict[str, int] = {}
    waiting: dict[str, int] = {}
    for folder in unfinished:
        config = folder.described()
        if protocol(config) == own:
            counts = failed if folder.failure() else waiting
            counts[config.label] = counts.get(config.label, 0) + 1
    found = []
    for counts, why in ((failed, "failed"), (waiting, "not finished")):
        if counts:
            names = [f"{label} ({counted(number, 'trial')})" for label, number in counts.items()]
            found.append(f"Not in this answer, because they {'are ' if why != 'failed' else ''}{why}: {_few(names)}.")
    return found


def _steps(answer: Answer, rows: dict[str, Row], store: str, stores: Mapping[str, str]) -> Iterable[Step]:
    """List the commands for this group: more seeds where they would tell, and what one does with the technique chosen."""
    chosen = answer.cheapest or answer.best
    trial = next(t for t in rows[chosen.row].trials if t.folder.id == chosen.trial)
    place = stores.get(chosen.trial, store)
    beside = "" if place == DEFAULT_STORE else f" --store {shlex.quote(place)}"
    undecided = [one for one in answer.against if one.verdict == "open" and _seeds_tell(one.pair)]
    if undecided and not answer.nothing_learned:
        concerned = [rows[row] for row in dict.fromkeys(row for one in undecided for row in one.pair.ids)]
        ran = {tuple(_seedless(row.trials[0].run.command or ())) for row in concerned}
        commands = [
            _more_seeds(row, undecided, len(ran) > 1, stores.get(row.trials[0].folder.id, store)) for row in concerned
        ]
        for command in dict.fromkeys(filter(None, commands)):
            yield Step(command, _MORE_SEEDS)
    if answer.nothing_learned:
        return
    if trial.run.data_source == "petals":
        yield Step("flowers-bench start FOLDER", "the same question about your own photographs")
        return
    yield Step(f"flowers-bench predict {chosen.trial}{beside} PHOTO.jpg", f"what {chosen.name} sees in new photographs")
    yield Step(f"flowers-bench export {chosen.trial}{beside} --format onnx", "its model as one file")


def _seeds_tell(pair: Pair) -> bool:
    """Say whether more seeds could decide this pair."""
    if pair.sequential:
        return pair.sequential.outcome == "open"
    return pair.needed is None or (pair.needed.images_suffice and not pair.agree)


def _more_seeds(row: Row, undecided: Sequence[Against], several: bool, store: str) -> str | None:
    """Write the command that ran this row's first trial, so that it adds seeds; None if it is not stored.

    Args:
        several: whether other rows come from other commands; `--decide` is for the techniques of one.
    """
    command = row.trials[0].run.command
    if not command:
        return None
    if any(word.partition("=")[0] == "--decide" for word in command):
        return shlex.join(["flowers-bench", *command])
    more = ["--decide", f"{100 * undecided[0].pair.margin:g}"]
    if all(one.pair.one_seed for one in undecided):
        more = ["--seeds", "3"]
    elif several or is_url(store):
        needed = max(one.pair.needed.low or MOST_PLANNED if one.pair.needed else 3 for one in undecided)
        more = ["--seeds", str(min(MOST_PLANNED, max(needed, len(row.seeds) + 2)))]
    place = [] if store == DEFAULT_STORE else ["--store", store]
    return shlex.join(["flowers-bench", *_seedless(command), *more, *place])


def _seedless(command: Sequence[str]) -> list[str]:
    """Leave out of a command how many seeds it runs, and where it stores them."""
    kept, is_value = [], False
    for word in command:
        option = word.partition("=")[0] in _OWN
        if not option and not is_value:
            kept.append(word)
        is_value = option and "=" not in word
    return kept
