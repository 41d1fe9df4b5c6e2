"""`flowers-bench start FOLDER`: from a folder of photographs to an answer and a report, with what suits data and machine."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.cli.execute import (
    AGAIN,
    at_once,
    name_again,
    prepared,
    print_results,
    run_shown,
    was_interrupted,
)
from flowers_bench.cli.exit_codes import FAILED, INTERRUPTED
from flowers_bench.cli.options import RunOptions
from flowers_bench.cli.progress import messages, track
from flowers_bench.util.errors import UsageError
from flowers_bench.util.text import counted, printable

if TYPE_CHECKING:
    from flowers_bench.contract.host import Host
    from flowers_bench.data.survey import Survey
    from flowers_bench.plan.request import Loaded, TrialPlan
    from flowers_bench.plan.starter import Network, Starter, StarterSet
    from flowers_bench.store.folder import Store

REPORT = "report.html"


@dataclass(frozen=True)
class StartOptions:
    """The command line of `start`.

    Attributes:
        weights: what each network starts from; none to look for some.
        yes: whether nothing is asked.
    """

    folder: Path
    store: str
    weights: Sequence[str]
    backbone: str | None
    seeds: int
    data_dir: Path | None
    yes: bool

    @property
    def run_options(self) -> RunOptions:
        """The same for the parts of `run` that do the work."""
        return RunOptions.parse(store=self.store, data_dir=self.data_dir, seeds=self.seeds)


def start(options: StartOptions, timeout: float = 86400) -> int:
    """Look at the folder, choose, estimate, ask, run in the order of cost, and print the answer; return the exit code.

    Raises:
        UsageError: something is wrong with the folder, its images or the options, or there is nobody to ask; nothing has been
            trained then.
    """
    from flowers_bench.contract.host import discover
    from flowers_bench.data.hashes import remember_contents
    from flowers_bench.data.pixels import stored_side
    from flowers_bench.data.survey import survey
    from flowers_bench.plan.starter import SIDE, choose, find_networks, measure_rates
    from flowers_bench.store.mirror import is_url

    if is_url(options.store):
        raise UsageError(
            "start needs a run store that is a folder: its report is written there. Give --store a folder."
        )
    host = discover()
    _refuse_dataset(host, options.folder)
    found = survey(options.folder, stored_side(SIDE), track)
    _say(f"{options.folder}", *(f"  {text}" for text in found.sentences()))
    networks = find_networks(options.weights, options.backbone)
    for network in networks:
        _say(f"network {network.backbone}, {network.image_size} px, weights: {network.origin}")
    rates = [measure_rates(network, found.classes, options.seeds) for network in networks]
    chosen = choose(host, found, networks, rates, options.seeds)
    _tell(chosen, options, found)
    _refuse_full_disk(chosen, options)
    if not _agreed(options.yes):
        _say("nothing was run")
        return 0
    remember_contents(options.folder, options.run_options.cache, found.looked)
    try:
        return _run(host, chosen, options, timeout)
    except KeyboardInterrupt:
        messages.print(AGAIN)
        return INTERRUPTED


def _refuse_dataset(host: Host, folder: Path) -> None:
    if str(folder) in host.datasets and not folder.is_dir():
        raise UsageError(
            f"start takes a folder of photographs; {folder} is a dataset with a name: flowers-bench --plugin deformable --data "
            f"{folder}"
        )


def _say(*lines: str) -> None:
    for line in lines:
        messages.print(printable(line), markup=False)


def _tell(chosen: StarterSet, options: StartOptions, found: Survey) -> None:
    """Say what would be run, how long it takes, and why so."""
    from flowers_bench.plan.starter import MEASURING, OVERHEAD
    from flowers_bench.report.formatting import duration, memory
    from flowers_bench.report.table import Table, layout

    head = ("technique", "network", "about", "what it is")
    body = tuple((one.label, one.network.backbone, duration(one.seconds), one.why) for one in chosen.chosen)
    table = Table(f"what suits them, {counted(options.seeds, 'seed')} each:", head, body, 2, (), ("what it is",))
    _say(*layout(table, messages.width if messages.is_terminal else None))
    for one in chosen.left_out:
        command = " ".join(["flowers-bench", *_command([one], options)])
        _say(
            f"left out: {one.label} on {one.network.backbone} would take {duration(one.seconds)} here; to run it: {command}"
        )
    for note in chosen.notes:
        _say(f"note: {note}")
    disk = f"{memory(chosen.cache_bytes)} for decoded photographs, {memory(chosen.store_bytes)} for trained networks"
    if chosen.download_bytes:
        disk += f", {memory(chosen.download_bytes)} to download"
    _say(
        f"at most {duration(chosen.seconds)}, {duration(chosen.decoding)} of it to decode {counted(found.total, 'photograph')} once; "
        f"disk: {disk}",
        "  (images x epochs at the speed that this machine had just now on noise, every epoch forward and back through the whole "
        f"network, and for each training {OVERHEAD:g} s, more on a busy machine, and {MEASURING} images; frozen layers and early ends make it less)",
    )


def _refuse_full_disk(chosen: StarterSet, options: StartOptions) -> None:
    from flowers_bench.report.formatting import memory

    needed = ((options.run_options.cache, chosen.cache_bytes), (Path(options.store), chosen.store_bytes))
    for place, size in needed:
        there = next(parent for parent in (place.absolute(), *place.absolute().parents) if parent.exists())
        free = shutil.disk_usage(there).free
        if free < size:
            name = "--data-dir" if place == options.run_options.cache else "--store"
            raise UsageError(
                f"{there} has {memory(free)} free, and {memory(size)} are needed. Choose another place with {name}."
            )


def _agreed(yes: bool) -> bool:
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask whether to run this: say --yes")
    import typer

    return typer.confirm("run it?", default=True, err=True)


def _command(starters: Sequence[Starter], options: StartOptions) -> list[str]:
    """Write the arguments of `run` that do the same for techniques of one network; they are stored with each trial."""
    network = starters[0].network
    places = [] if options.data_dir is None else ["--data-dir", str(options.data_dir)]
    side = [part for key, value in _settings(network).items() for part in ("--set", f"{key}={value}")]
    return [
        *("--plugin", ",".join(one.label for one in starters), "--data", str(options.folder)),
        *("--backbone", network.backbone, "--weights", network.weights, "--seeds", str(options.seeds), *side),
        *("--store", options.store, *places),
    ]


def _settings(network: Network) -> dict[str, str]:
    """Give what a network's trials set: the side of its images, where it is not the usual one."""
    from flowers_bench.contract.technique import Recipe

    return {} if network.image_size == Recipe().image_size else {"image_size": str(network.image_size)}


def _run(host: Host, chosen: StarterSet, options: StartOptions, timeout: float) -> int:
    """Run one technique after the other, the cheapest first; say after each what can be said, and keep the report fresh."""
    from flowers_bench.executors.local import begin_importing
    from flowers_bench.plan.request import Loaded, in_order
    from flowers_bench.store.folder import Store

    store, loaded = Store(Path(options.store)), Loaded()
    began = time.monotonic()
    begin_importing()
    done: list[TrialPlan] = []
    failed = False
    for place, starter in enumerate(chosen.chosen):
        planned = _planned(host, starter, options, loaded)
        siblings = [one for one in chosen.chosen if one.network == starter.network]
        left = sum(one.seconds for one in chosen.chosen[place:])
        failed = _train(planned, starter, store, options, _command(siblings, options), left, timeout) or failed
        done = in_order([*done, *planned])
        if place + 1 < len(chosen.chosen):
            _interim(done, store, time.monotonic() - began)
            _write_report(options)
    code = print_results(done, store, options.store, "text", reported=True)
    _write_report(options)
    return FAILED if failed else code


def _planned(host: Host, starter: Starter, options: StartOptions, loaded: Loaded) -> list[TrialPlan]:
    from flowers_bench.plan.planning import plan
    from flowers_bench.plan.request import Request

    network: Network = starter.network
    request = Request(
        [starter.label],
        data=str(options.folder),
        cache_dir=options.run_options.cache,
        seeds=options.seeds,
        backbone=network.backbone,
        weights=network.weights,
        settings=_settings(network),
        store=Path(options.store),
    )
    return plan(host, request, [], track, loaded)


def _train(
    planned: Sequence[TrialPlan],
    starter: Starter,
    store: Store,
    options: StartOptions,
    command: Sequence[str],
    left: float,
    timeout: float,
) -> bool:
    """Run the trials that are not finished; say whether one failed. Raises `KeyboardInterrupt` if they were interrupted."""
    from flowers_bench.report.formatting import duration

    jobs, planned = at_once(planned, options.run_options)
    named = name_again(planned, store)
    todo, unfit = prepared(planned, store, command=command)
    if unfit:
        raise unfit[0]
    if todo:
        _say(
            f"{starter.label} on {starter.network.backbone}: {counted(len(todo), 'training')}; at most {duration(left)} left in all"
        )
    outcomes, _ = run_shown(planned, todo, named, timeout, options.run_options, jobs)
    if was_interrupted(todo, outcomes):
        raise KeyboardInterrupt
    return any(outcome.state == "failed" for outcome in outcomes)


def _interim(done: Sequence[TrialPlan], store: Store, seconds: float) -> None:
    """Say what can be said so far."""
    from flowers_bench.report.answer import answers
    from flowers_bench.report.formatting import duration
    from flowers_bench.report.leaderboard import Leaderboard
    from flowers_bench.store.folder import read_each

    folders = [folder for item in done if (folder := store.folder(item.trial.id)).finished()]
    contents = read_each(folders)
    if contents.finished:
        labels = {item.trial.id: item.labels for item in done}
        board = Leaderboard.of(contents.finished, labels, states=contents.states)
        for answer in answers(board):
            _say(f"so far, after {duration(seconds)}:", *(f"  {text}" for text in answer.sentences()))


def _write_report(options: StartOptions) -> None:
    from flowers_bench.cli.report import write_report

    write_report(Path(options.store), Path(options.store) / REPORT, store=options.store)
    _say(f"report: {Path(options.store) / REPORT}")
