"""Run planned trials, and print their results."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.markup import escape

from flowers_bench.cli.damage import print_damaged
from flowers_bench.cli.exit_codes import FAILED, INTERRUPTED
from flowers_bench.cli.options import RunOptions
from flowers_bench.cli.progress import TrialProgress, messages
from flowers_bench.store.records import DatasetFacts
from flowers_bench.training.events import Ended, Event
from flowers_bench.util.errors import Unreadable, UsageError
from flowers_bench.util.text import counted, printable

if TYPE_CHECKING:
    from flowers_bench.contract.dataset import Dataset
    from flowers_bench.executors.local import OnEvent, Outcome
    from flowers_bench.plan.request import TrialPlan
    from flowers_bench.store.folder import Store, TrialFolder

AGAIN = "interrupted; run the same command again to continue"


def execute(
    planned: Sequence[TrialPlan], options: RunOptions, timeout: float, format: str, datasets: Sequence[Dataset] = ()
) -> int:
    """Run the trials that are not finished, with progress; then print the leaderboard of all of them; return the exit code.

    Args:
        datasets: what the trials were planned with; what is known of their test images is shown with the results.
    """
    from flowers_bench.store.folder import Store

    store = Store(options.out)
    jobs, planned = at_once(planned, options)
    announce(planned, options.store)
    named = name_again(planned, store)
    compile_kernels(planned)
    folders = [store.folder(item.trial.id) for item in planned]
    finished_before = sum(folder.finished() for folder in folders)
    todo, unfit = prepared(planned, store, stress=options.stress, track=options.trackers)
    if finished_before:
        unmeasured = len(todo) + len(unfit) - (len(planned) - finished_before)
        rest = f"; {unmeasured} of them {_are(unmeasured)} still to be measured under stress" if unmeasured else ""
        messages.print(
            f"{finished_before} of {counted(len(planned), 'trial')} {_are(finished_before)} finished already{rest}"
        )
    outcomes, pushed = run_shown(planned, todo, named, timeout, options, jobs)
    damaged = print_results(planned, store, options.store, format, unfit, datasets)
    if was_interrupted(todo, outcomes):
        messages.print(AGAIN)
        return INTERRUPTED
    return FAILED if not pushed or any(outcome.state == "failed" for outcome in outcomes) else damaged


def progress_labels(planned: Sequence[TrialPlan]) -> dict[str, str]:
    """Give what the progress calls each trial, by the trial's id."""
    from flowers_bench.report.names import distinct_names

    names = distinct_names([item.described() for item in planned])
    return {item.trial.id: f"{name} seed {item.trial.seed}" for name, item in zip(names, planned, strict=True)}


def at_once(planned: Sequence[TrialPlan], options: RunOptions) -> tuple[int, Sequence[TrialPlan]]:
    """Give how many trials run at once on this machine, as asked or as suits them, and the plan with their threads."""
    from flowers_bench.plan.threads import side_by_side

    if options.jobs is not None or options.executor != "local" or options.devices > 1:
        return options.jobs or 1, planned
    jobs, planned = side_by_side(planned)
    if jobs > 1:
        messages.print(
            f"small networks: {jobs} trials at once, one thread each; their times are taken side by side (--jobs 1: one by one)",
            markup=False,
        )
    return jobs, planned


def print_results(
    planned: Sequence[TrialPlan],
    store: Store,
    place: str,
    format: str,
    unfit: Sequence[Unreadable] = (),
    datasets: Sequence[Dataset] = (),
    *,
    reported: bool = False,
) -> int:
    """Print the leaderboard of the trials that are finished, accuracy by what the `datasets` know of their test images, what
    all took, and the answer; name damaged and `unfit` trials; return the exit code.

    Args:
        place: what the user calls the store.
        reported: whether the page is written already, and need not be advised.
    """
    from flowers_bench.report.answer import answers, markdown_lines
    from flowers_bench.report.answer import print_text as print_answers
    from flowers_bench.report.factors import factor_tables
    from flowers_bench.report.leaderboard import Leaderboard
    from flowers_bench.report.text import markdown, print_text
    from flowers_bench.store.folder import read_each

    folders = dict.fromkeys(store.folder(item.trial.id) for item in planned)
    contents = read_each(folder for folder in folders if folder.path.is_dir())
    damaged = print_damaged(list({str(error): error for error in (*unfit, *contents.damaged)}.values()))
    if contents.finished:
        labels = {item.trial.id: item.labels for item in planned}
        board = Leaderboard.of(contents.finished, labels, states=contents.states)
        known = factor_tables(board, datasets)
        found = answers(board, contents.unfinished, place)
        if format == "md":
            print(markdown(board, known, found))
            print("\n".join(markdown_lines(found, place)))
        else:
            print_text(board, known, found)
            print()
            print_answers(found, place, reported=reported)
    _print_total([*contents.finished, *contents.unfinished])
    return damaged


def compile_kernels(planned: Sequence[TrialPlan]) -> None:
    """Compile what the trials compute with, or say that it cannot be: here, and not in a trial's log and time."""
    from flowers_bench.data.drawing import compile_operator
    from flowers_bench.measure.hardware import kernel_in_use

    with ThreadPoolExecutor() as pool:  # the compilers run side by side: each library alone leaves cores idle
        compiled: list[Future[object]] = [pool.submit(kernel_in_use)]
        if any(item.draws for item in planned):
            compiled.append(pool.submit(compile_operator))
    for one in compiled:
        one.result()


def run_shown(
    planned: Sequence[TrialPlan],
    todo: Sequence[TrialFolder],
    named: Sequence[TrialFolder],
    timeout: float,
    options: RunOptions,
    jobs: int,
) -> tuple[Sequence[Outcome], bool]:
    """Run the trials in `todo` as `run_all` does, with progress and the time left; where the store is at a URL, push each that
    ends, and those in `named`.

    Args:
        planned: all trials that the run is about.

    Returns:
        The outcome of each; and whether all that should be at the URL is there, which is said where it is not.
    """
    from flowers_bench.report.remaining import Pace
    from flowers_bench.store.remote import Pusher

    with TrialProgress(progress_labels(planned), len(todo), Pace(todo, jobs)) as progress:
        if options.remote is None:
            return run_all(todo, progress.on_event, timeout, options, jobs), True
        with Pusher(options.remote) as pusher:
            for folder in named:
                pusher.push(folder)

            def push_what_ends(folder: TrialFolder, event: Event) -> None:
                progress.on_event(folder, event)
                if isinstance(event, Ended) and event.state == "done":
                    pusher.push(folder)

            outcomes = run_all(todo, push_what_ends, timeout, options, jobs)
    for trial_id, error in pusher.failed.items():
        messages.print(
            f"trial {trial_id} was not pushed, run the same command again: {error}", markup=False, style="red"
        )
    return outcomes, not pusher.failed


def run_all(
    folders: Sequence[TrialFolder], on_event: OnEvent, timeout: float, options: RunOptions, jobs: int
) -> Sequence[Outcome]:
    """Run the trials on this machine or on a cluster, and give the outcome of each.

    Args:
        timeout: seconds that one trial may take.
        jobs: how many trials run at once on this machine.

    Raises:
        UsageError: a precision that one asks for is not to be had here. On a cluster, its nodes tell.
    """
    from flowers_bench.executors import local, ray

    if options.executor == "local" or not folders:
        _refuse_unsupported(folders, options.device)
        return local.run_all(folders, on_event, timeout, jobs)
    cluster = ray.Cluster(options.address, options.threads_of_a_trial or 1, options.gpus)
    return ray.run_all(folders, on_event, timeout, cluster)


def _refuse_unsupported(folders: Sequence[TrialFolder], device: str | None) -> None:
    precisions = {folder.config().recipe.precision or "float32" for folder in folders}
    if precisions == {"float32"}:
        return
    from flowers_bench.training.precision import refuse_unsupported
    from flowers_bench.training.process import choose_device

    chosen = choose_device(device)
    if chosen.type != "cuda":  # what a GPU can do is asked in the trial's process, which will use it
        for precision in precisions:
            refuse_unsupported(precision, chosen)


def was_interrupted(folders: Sequence[TrialFolder], outcomes: Sequence[Outcome]) -> bool:
    """Tell whether a trial of `run_all` was interrupted, or was not started because of an interruption."""
    return len(outcomes) < len(folders) or any(outcome.state == "interrupted" for outcome in outcomes)


def name_again(planned: Sequence[TrialPlan], store: Store) -> list[TrialFolder]:
    """Add the names in this plan to finished trials that do not have them yet, and print these trials.

    Returns:
        The folders of the trials that got a name.
    """
    from flowers_bench.store.index import Index

    named: list[TrialFolder] = []
    index = Index(store.root)
    for item in planned:
        folder = store.folder(item.trial.id)
        if not folder.finished():
            continue
        found = index.known(folder.path)
        if found and {label.text for label in item.labels} <= set(found.labels):
            continue
        try:
            before = folder.labels()
            folder.refuse_links()
            new = folder.add_labels(item.labels)
        except (
            OSError,
            UsageError,
        ):  # read-only or damaged: reported where it matters; the table shows the new name anyway
            continue
        if new:
            named.append(folder)
            new_names, known = (" = ".join(label.text for label in labels) for labels in (new, before))
            messages.print(
                printable(f"{new_names} seed {item.trial.seed}: same trial as {known}, not trained again"), markup=False
            )
    return named


def prepared(
    planned: Sequence[TrialPlan],
    store: Store,
    *,
    stress: bool = False,
    track: Sequence[str] = (),
    command: Sequence[str] | None = None,
) -> tuple[list[TrialFolder], list[Unreadable]]:
    """Prepare the folders of trials that are not complete, each once.

    Args:
        command: what is stored as the command that runs the trial; what the user typed, if None.

    Returns:
        These folders; and errors for trials that cannot run, because their files are damaged or are links to elsewhere.
    """
    from flowers_bench.plan.request import in_order
    from flowers_bench.store.index import Index

    index = Index(store.root)
    todo: list[TrialFolder] = []
    unfit: list[Unreadable] = []
    for item in in_order(planned):
        folder = store.folder(item.trial.id)
        found = index.known(folder.path)
        if folder.finished():  # its process may have been killed after it wrote the result, before it removed the rest
            with contextlib.suppress(OSError, UsageError):  # read-only or damaged: reported where it matters
                folder.discard_leftovers(searched=found.searched if found else None)
        if found and found.finished and (found.stressed or not stress):
            continue
        try:
            if not folder.complete(stress=stress):
                run = replace(item.run, command=list(command or sys.argv[1:]), stress=stress, track=list(track))
                todo.append(store.prepare(item.trial, run, item.labels))
        except Unreadable as error:
            unfit.append(error)
    return todo, unfit


def _print_total(folders: Sequence[TrialFolder]) -> None:
    from flowers_bench.measure.total_cost import total_cost
    from flowers_bench.report.formatting import duration

    total = total_cost(folders)
    took = f"took {duration(total.seconds)} in all"
    if total.trials == 1:
        messages.print(f"this trial {'failed and ' if total.failed else ''}{took}", markup=False)
        return
    failed = f", {total.failed} of them failed," if total.failed else ""
    messages.print(f"these {total.trials} trials{failed} {took}", markup=False)


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def announce(planned: Sequence[TrialPlan], out: str) -> None:
    """Print what will be run: the data, a line for each technique, and how many trials."""
    datasets: dict[str, list[DatasetFacts]] = {}  # splits of one dataset may differ only in their training images
    for item in planned:
        data = DatasetFacts.read(item.trial.dataset)
        name = f"{data.name}, {data.n_val} val, {data.n_test} test, {data.resolution}"
        datasets.setdefault(name, []).append(data)
    for alike in datasets.values():
        _announce_dataset(alike)
    notes = [f"  note: {note}" for item in planned for note in item.notes]
    for line in dict.fromkeys([*map(_in_one_line, planned), *notes]):
        messages.print(printable(line), markup=False)
    messages.print(f"{counted(len(planned), 'trial')}, store {out}", markup=False)
    named = sum(len(item.labels) for item in planned) - len(planned)
    if named:
        messages.print(
            f"{named} more would be the same trainings under other names (=): each is trained once", markup=False
        )


def _in_one_line(item: TrialPlan) -> str:
    trial, recipe = item.trial, item.trial.recipe
    how = (
        f"at most {counted(recipe.epochs, 'epoch')}, {recipe.optimizer} lr {recipe.lr:g}, batch {recipe.batch_size}{_probed(item)}"
        if item.trains
        else f"nothing trained, predicts by {trial.predictor}"
    )
    return f"{item.label}: {trial.backbone}, weights {trial.weights['name']}, {recipe.image_size} px, {how}{_precision(item)}"


def _probed(item: TrialPlan) -> str:
    return ", from a linear probe" if item.trial.recipe.classifier_start == "probe" else ""


def _precision(item: TrialPlan) -> str:
    """Say what is not computed in float32."""
    recipe = item.trial.recipe
    if not item.trains or recipe.precision == "float32":
        return ""
    chosen = ", epochs chosen in it" if recipe.validation_precision == "training" else ""
    return f", trained in {recipe.precision}{chosen}"


def _announce_dataset(alike: Sequence[DatasetFacts]) -> None:
    data = alike[0]
    sizes = ", ".join(map(str, dict.fromkeys(one.n_train for one in alike)))
    messages.print(
        f"[bold]{escape(printable(data.name))}[/bold]: {data.classes} classes, {sizes} train / {data.n_val} val / {data.n_test} test, "
        f"{data.resolution}, split {data.split_checksum[:8]}"
    )
    for note in data.notes:
        messages.print(printable(f"  note: {note}"), markup=False)
