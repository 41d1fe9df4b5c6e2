"""Run planned trials, and print what came out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.markup import escape

from flowers_bench.cli.damage import told
from flowers_bench.cli.exit_codes import FAILED, INTERRUPTED
from flowers_bench.cli.options import RunOptions
from flowers_bench.cli.progress import TrialProgress, messages
from flowers_bench.store.records import DatasetFacts
from flowers_bench.training.events import Ended, Event
from flowers_bench.util.errors import Unreadable, UsageError
from flowers_bench.util.text import printable

if TYPE_CHECKING:
    from flowers_bench.executors.local import OnEvent, Outcome
    from flowers_bench.plan.planning import TrialPlan
    from flowers_bench.store.folder import Store, TrialFolder
    from flowers_bench.store.remote import Pusher

AGAIN = "interrupted; run the same command again to continue"


def execute(planned: Sequence[TrialPlan], asked: RunOptions, timeout: float, format: str) -> int:
    """Run what is not finished yet, with progress, then print the leaderboard of this plan's trials."""
    from flowers_bench.measure.hardware import kernel_in_use
    from flowers_bench.report.leaderboard import Leaderboard
    from flowers_bench.report.names import distinct_names
    from flowers_bench.report.text import markdown, print_text
    from flowers_bench.store.folder import Store, config_of, read_each

    store = Store(asked.out)
    _announce(planned, asked.store)
    kernel_in_use()  # compiled, or said to be missing, here and not in a trial's log
    folders = [store.folder(item.trial.id) for item in planned]
    finished_before = sum(folder.finished() for folder in folders)
    todo, unfit = prepared(planned, store, stress=asked.stress, track=asked.trackers)
    if finished_before:
        unmeasured = len(todo) + len(unfit) - (len(planned) - finished_before)
        rest = f"; {unmeasured} of them are still to be measured under stress" if unmeasured else ""
        messages.print(f"{finished_before} of {len(planned)} trials are finished already{rest}")
    names = distinct_names([config_of(item.trial) for item in planned])
    labels = {item.trial.id: f"{name} seed {item.trial.seed}" for name, item in zip(names, planned, strict=True)}
    with _pusher(asked) as pusher, TrialProgress(labels, len(todo)) as progress:

        def on_event(folder: TrialFolder, event: Event) -> None:
            progress.on_event(folder, event)
            if pusher and isinstance(event, Ended) and event.state == "done":
                pusher.push(folder)

        outcomes = run_all(todo, on_event, timeout, asked)
    contents = read_each(folder for folder in dict.fromkeys(folders) if folder.path.is_dir())
    damaged = told(list({str(error): error for error in (*unfit, *contents.damaged)}.values()))
    if contents.finished and format == "md":
        print(markdown(Leaderboard.of(contents.finished)))
    elif contents.finished:
        print_text(Leaderboard.of(contents.finished))
    _print_total([*contents.finished, *contents.unfinished])
    if was_interrupted(todo, outcomes):
        messages.print(AGAIN)
        return INTERRUPTED
    unpushed = pusher.failed if pusher else {}
    for trial_id, error in unpushed.items():
        messages.print(
            f"trial {trial_id} was not pushed, run the same command again: {error}", markup=False, style="red"
        )
    return FAILED if unpushed or any(outcome.state == "failed" for outcome in outcomes) else damaged


def _pusher(asked: RunOptions) -> contextlib.AbstractContextManager[Pusher | None]:
    from flowers_bench.store.remote import Pusher

    return Pusher(asked.remote) if asked.remote else contextlib.nullcontext()


def run_all(folders: Sequence[TrialFolder], on_event: OnEvent, timeout: float, asked: RunOptions) -> Sequence[Outcome]:
    """How each trial ended, on this machine or on a cluster."""
    from flowers_bench.executors import local, ray

    if asked.executor == "local" or not folders:
        return local.run_all(folders, on_event, timeout, asked.jobs)
    cluster = ray.Cluster(asked.address, asked.threads_of_a_trial or 1, asked.gpus)
    return ray.run_all(folders, on_event, timeout, cluster)


def was_interrupted(folders: Sequence[TrialFolder], outcomes: Sequence[Outcome]) -> bool:
    """Whether a trial of `run_all` was stopped, or was not begun any more."""
    return len(outcomes) < len(folders) or any(outcome.state == "interrupted" for outcome in outcomes)


def prepared(
    planned: Sequence[TrialPlan], store: Store, *, stress: bool = False, track: Sequence[str] = ()
) -> tuple[list[TrialFolder], list[Unreadable]]:
    """The folders of those where something is left to do, each once; and why others cannot be run: their files are damaged,
    or lead elsewhere."""
    todo: list[TrialFolder] = []
    unfit: list[Unreadable] = []
    for item in {item.trial.id: item for item in planned}.values():
        folder = store.folder(item.trial.id)
        if folder.finished():  # its process may have been killed right after the result was there
            with contextlib.suppress(OSError, UsageError):  # not to be written to, or damaged: said by who needs it
                folder.discard_leftovers()
        try:
            if not folder.complete(stress=stress):
                run = replace(item.run, command=sys.argv[1:], stress=stress, track=list(track))
                todo.append(store.prepare(item.trial, run))
        except Unreadable as error:
            unfit.append(error)
    return todo, unfit


def _print_total(folders: Sequence[TrialFolder]) -> None:
    from flowers_bench.measure.cost import total_cost
    from flowers_bench.report.formatting import duration

    total = total_cost(folders)
    failed = f", {total.failed} of them failed," if total.failed else ""
    messages.print(f"these {total.trials} trials{failed} took {duration(total.seconds)} in all", markup=False)


def _announce(planned: Sequence[TrialPlan], out: str) -> None:
    datasets: dict[str, list[DatasetFacts]] = {}  # splits of one dataset may differ in their training images alone
    for item in planned:
        data = DatasetFacts.read(item.trial.dataset)
        name = f"{data.name}, {data.n_val} val, {data.n_test} test, {data.resolution}"
        datasets.setdefault(name, []).append(data)
    for alike in datasets.values():
        _announce_dataset(alike)
    notes = [f"  note: {note}" for item in planned for note in item.notes]
    for line in dict.fromkeys([*map(_in_one_line, planned), *notes]):
        messages.print(printable(line), markup=False)
    messages.print(f"{len(planned)} trials, store {out}", markup=False)


def _in_one_line(item: TrialPlan) -> str:
    trial, recipe = item.trial, item.trial.recipe
    how = (
        f"at most {recipe.epochs} epochs, {recipe.optimizer} lr {recipe.lr:g}, batch {recipe.batch_size}"
        if item.trains
        else f"nothing trained, predicts by {trial.predictor}"
    )
    return f"{trial.label}: {trial.backbone}, weights {trial.weights['name']}, {recipe.image_size} px, {how}"


def _announce_dataset(alike: Sequence[DatasetFacts]) -> None:
    data = alike[0]
    sizes = ", ".join(map(str, dict.fromkeys(one.n_train for one in alike)))
    messages.print(
        f"[bold]{escape(printable(data.name))}[/bold]: {data.classes} classes, {sizes} train / {data.n_val} val / {data.n_test} test, "
        f"{data.resolution}, split {data.split_checksum[:8]}"
    )
    for note in data.notes:
        messages.print(printable(f"  note: {note}"), markup=False)
