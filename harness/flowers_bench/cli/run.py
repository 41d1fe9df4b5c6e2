"""`flowers-bench run`: plan, execute, print."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from platformdirs import user_cache_path
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flowers_bench.cli import FAILED, INTERRUPTED
from flowers_bench.errors import UsageError, printable, unknown_name
from flowers_bench.host import Host, discover

if TYPE_CHECKING:
    from flowers_bench.data.dataset import Dataset
    from flowers_bench.executors.local import OnEvent, Outcome
    from flowers_bench.remote import Pusher, RemoteStore
    from flowers_bench.store import Store, TrialFolder
    from flowers_bench.suite import Planned, Request

T = TypeVar("T")
#: Of `--timeout`, in seconds: a year.
LONGEST = 366 * 86400
AGAIN = "interrupted; run the same command again to continue"
EXECUTORS = ("local", "ray")
messages = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Asked:
    """The command line of `run`.

    Attributes:
        suite: name or file, or None where `plugin` names techniques.
        factors: data, backbone, weights, loss and augmentation, as far as given.
        settings, sweeps: `KEY=VALUE` and `KEY=V1,V2` texts.
        shard: `I/N`.
        search: how many configurations to try for each technique; 0: the recipes as they are.
        threads: of each trial, or None where not given.
        devices: that each trial is divided among.
        executor: `local` or `ray`; with the latter, `address` of its cluster and `gpus` of each trial.
        store: folder or URL.
        shots: `K1,K2`, or empty for the whole training split.
        stress: whether to measure on changed test images too.
        track: names of trackers, with commas.
    """

    suite: str | None
    plugin: str
    factors: Mapping[str, str]
    seeds: int | None
    settings: Sequence[str]
    sweeps: Sequence[str]
    data_dir: Path | None
    store: str
    jobs: int
    shard: str
    search: int = 0
    threads: int | None = None
    executor: str = "local"
    address: str | None = None
    gpus: float | None = None
    shots: str = ""
    stress: bool = False
    track: str = ""
    devices: int = 1

    @property
    def cache(self) -> Path:
        """Where downloads and caches lie."""
        return self.data_dir or user_cache_path("flowers-bench")

    @cached_property
    def remote(self) -> RemoteStore | None:
        """The store at a URL, if that is where results go."""
        from flowers_bench.remote import RemoteStore, is_url

        return RemoteStore(self.store, self.cache) if is_url(self.store) else None

    @property
    def out(self) -> Path:
        """The folder where trials run: the store, or the mirror of the one at a URL."""
        return self.remote.mirror if self.remote else Path(self.store)

    @property
    def threads_of_a_trial(self) -> int | None:
        """As asked for; on a cluster, else `OMP_NUM_THREADS` or 1; None leaves it to the plan."""
        from flowers_bench.suite import threads_of_environment

        return self.threads or (None if self.executor == "local" else threads_of_environment() or 1)

    @property
    def trackers(self) -> list[str]:
        """The names in `track`, each once."""
        return list(dict.fromkeys(name.strip() for name in self.track.split(",") if name.strip()))


def run(asked: Asked, format: str, timeout: float) -> int:
    """Returns the exit code: 0 done, 1 a trial failed, 130 interrupted. Raises `UsageError` before anything trains."""
    if format not in ("text", "md"):
        raise unknown_name("format", format, ("text", "md"))
    # Refused before anything is planned, which may take a download.
    if not 1 <= timeout <= LONGEST:
        raise UsageError(f"--timeout {timeout:g}: expected seconds, from 1 to {LONGEST:g}.")
    parse_shard(asked.shard)
    check_executor(asked)
    check_devices(asked)
    if asked.remote:
        asked.remote.pull()
    files, names = split_plugins(asked.plugin)
    if asked.suite is not None and names:
        raise UsageError("a suite names its techniques itself; beside it, --plugin takes plugin files only: ./mine.py")
    if asked.suite is None and not files and not names:
        raise UsageError(
            "--plugin is empty or missing: name a technique (`flowers-bench list` shows them), or a suite: run study-small"
        )
    _refuse_beside_search(asked)
    host = discover(files)
    host.refuse_unfit_trackers(asked.trackers)
    for status in host.broken():
        text = f"warning: plugin {status.name} ({status.origin}) is broken and skipped: {status.error}"
        messages.print(printable(text), markup=False)
    if asked.suite is not None:
        return _run_suite(host, files, asked, asked.suite, format, timeout)
    names += [name for file in files for name in _techniques_of(host, file)]
    request = _request(names, asked)
    if asked.search:
        return _search(host, files, request, asked, format, timeout)
    return _execute_part(_plan(host, files, request, asked), asked, format, timeout)


def _refuse_beside_search(asked: Asked) -> None:
    if not asked.search:
        return
    if asked.suite is not None or asked.sweeps or asked.shots:
        raise UsageError(
            "--search finds a recipe for each technique of --plugin: it goes with neither a suite nor --sweep nor --shots."
        )
    if asked.shard != "1/1":
        raise UsageError("--search tries one configuration after the other, which --shard cannot divide. Use --jobs.")


def _request(names: Sequence[str], asked: Asked) -> Request:
    from flowers_bench.suite import Request

    factors: dict[str, Any] = {"data": "petals", **asked.factors}
    return Request(
        names,
        cache_dir=asked.cache,
        seeds=asked.seeds or 3,
        settings=parse_settings(asked.settings),
        store=asked.out,
        jobs=asked.jobs,
        threads=asked.threads_of_a_trial,
        devices=asked.devices,
        **factors,
    )


def _plan(host: Host, files: Sequence[Path], request: Request, asked: Asked) -> list[Planned]:
    from flowers_bench.grid import plan_sweep
    from flowers_bench.suite import in_order, plan

    sweep = parse_sweeps(asked.sweeps)
    for key in sweep:
        if key in asked.factors or key in request.settings:
            raise UsageError(f"--sweep {key}: this is given a single value too. Leave that out.")
    loaded: dict[Any, Dataset] = {}
    requests = [replace(request, shots=shots) for shots in parse_shots(asked.shots)]
    plans = [
        plan_sweep(host, one, sweep, files, _track, loaded) if sweep else plan(host, one, files, _track, loaded)
        for one in requests
    ]
    return in_order(item for found in plans for item in found)


def _search(host: Host, files: Sequence[Path], request: Request, asked: Asked, format: str, timeout: float) -> int:
    """Find each technique's recipe on validation, then run that with all seeds."""
    from flowers_bench.environment import kernel_in_use
    from flowers_bench.errors import TrialFailed
    from flowers_bench.search import search, store_of_search

    store = store_of_search(asked.out)
    kernel_in_use()  # compiled, or said to be missing, here and not in a trial's log

    def run_round(number: int, planned: Sequence[Planned]) -> None:
        todo = _prepared(planned, store)
        if todo:
            messages.print(f"search: configuration {number} of {asked.search}")
        with TrialProgress({item.trial.id: item.trial.label for item in planned}, len(todo)) as progress:
            outcomes = _run_all(todo, progress.on_event, timeout, asked)
        if len(outcomes) < len(todo) or any(outcome.state == "interrupted" for outcome in outcomes):
            raise KeyboardInterrupt

    try:
        planned = search(host, request, files, asked.search, run_round, _track)
    except KeyboardInterrupt:
        messages.print(AGAIN)
        return INTERRUPTED
    except TrialFailed as error:
        messages.print(printable(str(error)), markup=False, style="red")
        return FAILED
    for about in {item.trial.label: (item.trial.label, item.run["search"]) for item in planned}.values():
        messages.print(_found(*about), markup=False)
    return execute(planned, asked, timeout, format)


def _found(label: str, about: Mapping[str, Any]) -> str:
    from flowers_bench.report.numbers import duration, percent

    settings = ", ".join(f"{key}={value}" for key, value in about["settings"].items()) or "nothing to search"
    return (
        f"{label}: {settings}; validation top-1 {percent(about['val_top1'])} %, best of {about['configurations']} "
        f"configurations in {duration(about['seconds'])}"
    )


def _run_suite(host: Host, files: Sequence[Path], asked: Asked, name: str, format: str, timeout: float) -> int:
    from flowers_bench.grid import overridden, plan_suite, read_suite
    from flowers_bench.report.reported import beside_reported, print_reported
    from flowers_bench.store import Store
    from flowers_bench.suite import Request, in_order

    if asked.shots:
        raise UsageError("--shots goes with --plugin, not with a suite.")
    if asked.sweeps:
        raise UsageError("--sweep goes with --plugin; in a suite, write the list of values into its file.")
    suite = overridden(read_suite(name), {**asked.factors, **parse_settings(asked.settings)}, asked.seeds)
    messages.print(printable(f"suite {suite.path}: {suite.summary}"), markup=False)
    base = Request(
        [],
        "petals",
        asked.cache,
        1,
        store=asked.out,
        jobs=asked.jobs,
        threads=asked.threads_of_a_trial,
        devices=asked.devices,
    )
    tables = plan_suite(host, suite, base, files, _track)
    code = _execute_part(in_order(item for table in tables for item in table.planned), asked, format, timeout)
    rows = beside_reported(tables, Store(asked.out))
    if rows:
        print_reported(rows, suite.source, format)
    return code


def _execute_part(planned: Sequence[Planned], asked: Asked, format: str, timeout: float) -> int:
    part = planned[parse_shard(asked.shard)]
    if not part:
        messages.print(f"shard {asked.shard} has no trial: there are fewer trials than shards")
        return 0
    return execute(part, asked, timeout, format)


def check_executor(asked: Asked) -> None:
    """Raises `UsageError` for an unknown executor, for options of another one, and where Ray is not installed."""
    if asked.executor not in EXECUTORS:
        raise unknown_name("executor", asked.executor, EXECUTORS)
    if asked.executor == "ray":
        from flowers_bench.executors.ray import require_ray

        require_ray()
        if asked.jobs > 1:
            raise UsageError(
                "--jobs is for one machine. On a cluster, --threads and --gpus say how much a trial takes."
            )
    elif asked.address is not None or asked.gpus is not None:
        raise UsageError("--address and --gpus go with --executor ray.")


def check_devices(asked: Asked) -> None:
    """Raises `UsageError` where there are too few devices for each trial, or where something else divides them."""
    if asked.devices == 1:
        return
    if asked.executor != "local":
        raise UsageError(
            "--devices is for one machine; a trial on a Ray cluster takes one device (--gpus). Use one of them."
        )
    if asked.jobs > 1:
        raise UsageError(
            "--jobs gives this machine to several trials, --devices to one. Use one of them; for many trials --jobs is the "
            "quicker."
        )
    from flowers_bench.executors.devices import refuse_missing

    refuse_missing(asked.devices)


def parse_shard(text: str) -> slice:
    """`2/4` to every fourth trial from the second on: shards of one command share nothing and leave nothing out."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UsageError(f"--shard {text}: expected I/N with I from 1 to N, such as --shard 2/4.")
    return slice(int(index) - 1, None, int(count))


def parse_shots(text: str) -> list[int | None]:
    """`1,2,5` to `[1, 2, 5]`, and an empty text to `[None]`: all training images."""
    values = [value.strip() for value in text.split(",")] if text else []
    if not all(value.isdecimal() and int(value) > 0 for value in values) or len(set(map(int, values))) < len(values):
        raise UsageError(f"--shots {text}: expected different whole numbers from 1, such as --shots 1,2,5,10.")
    return [*sorted(map(int, values))] if values else [None]


def split_plugins(text: str) -> tuple[list[Path], list[str]]:
    """`a,b/c,./mine.py` to plugin files and technique names."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    files = [Path(item) for item in items if item.endswith(".py")]
    return files, [item for item in items if not item.endswith(".py")]


def _techniques_of(host: Host, file: Path) -> list[str]:
    status = host.plugins[file.stem]
    if status.error:
        raise UsageError(f"plugin {file} is broken: {status.error}")
    found = [name for name, registered in host.techniques.items() if registered.plugin == file.stem]
    if not found:
        raise UsageError(f"plugin {file} registers no technique. Name one to use its parts with: --plugin {file},NAME")
    return found


def parse_settings(settings: Sequence[str]) -> dict[str, str]:
    """`["lr=3e-4"]` to `{"lr": "3e-4"}`; refuses what has no `=` and what is given twice."""
    found: dict[str, str] = {}
    for item in settings:
        key, equals, value = item.partition("=")
        if not equals or not key or not value:
            raise UsageError(f"--set {item}: expected KEY=VALUE, such as --set lr=3e-4.")
        if key in found:
            raise UsageError(f"--set {key} is given twice.")
        found[key.strip()] = value.strip()
    return found


def parse_sweeps(sweeps: Sequence[str]) -> dict[str, list[str]]:
    """`["prompt_length=5,10"]` to `{"prompt_length": ["5", "10"]}`; refuses empty and repeated values."""
    found = {}
    for item in sweeps:
        key, equals, text = (part.strip() for part in item.partition("="))
        values = [value.strip() for value in text.split(",")]
        if not equals or not key or not all(values):
            raise UsageError(f"--sweep {item}: expected KEY=V1,V2,..., such as --sweep prompt_length=5,10,25.")
        if key in found or len(set(values)) < len(values):
            raise UsageError(f"--sweep {item}: {key if key in found else 'a value'} is given twice.")
        if key in ("technique", "seeds"):
            raise UsageError(f"--sweep {key}: say --plugin A,B or --seeds N.")
        found[key] = values
    return found


def _track(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    from rich.progress import track

    return track(items, description=description, total=total, console=messages)


def execute(planned: Sequence[Planned], asked: Asked, timeout: float, format: str) -> int:
    """Run what is not finished yet, with progress, then print the leaderboard of this plan's trials."""
    from flowers_bench.environment import kernel_in_use
    from flowers_bench.report.leaderboard import Leaderboard
    from flowers_bench.report.text import markdown, print_text
    from flowers_bench.store import Store

    store = Store(asked.out)
    _announce(planned, asked.store)
    kernel_in_use()  # compiled, or said to be missing, here and not in a trial's log
    folders = [store.folder(item.trial.id) for item in planned]
    finished_before = sum(folder.finished() for folder in folders)
    todo = _prepared(planned, store, stress=asked.stress, track=asked.trackers)
    if finished_before:
        unmeasured = len(todo) - (len(planned) - finished_before)
        rest = f"; {unmeasured} of them are still to be measured under stress" if unmeasured else ""
        messages.print(f"{finished_before} of {len(planned)} trials are finished already{rest}")
    labels = {item.trial.id: f"{item.trial.label} seed {item.trial.seed}" for item in planned}
    with _pusher(asked) as pusher, TrialProgress(labels, len(todo)) as progress:

        def on_event(folder: TrialFolder, event: dict[str, Any]) -> None:
            progress.on_event(folder, event)
            if pusher and event["event"] == "done":
                pusher.push(folder)

        outcomes = _run_all(todo, on_event, timeout, asked)
    finished = [folder for folder in folders if folder.finished()]
    if finished and format == "md":
        print(markdown(Leaderboard.of(finished)))
    elif finished:
        print_text(Leaderboard.of(finished))
    _print_total(folders)
    if len(outcomes) < len(todo) or any(outcome.state == "interrupted" for outcome in outcomes):
        messages.print(AGAIN)
        return INTERRUPTED
    unpushed = pusher.failed if pusher else {}
    for trial_id, error in unpushed.items():
        messages.print(
            f"trial {trial_id} was not pushed, run the same command again: {error}", markup=False, style="red"
        )
    return FAILED if unpushed or any(outcome.state == "failed" for outcome in outcomes) else 0


def _pusher(asked: Asked) -> contextlib.AbstractContextManager[Pusher | None]:
    from flowers_bench.remote import Pusher

    return Pusher(asked.remote) if asked.remote else contextlib.nullcontext()


def _run_all(folders: Sequence[TrialFolder], on_event: OnEvent, timeout: float, asked: Asked) -> Sequence[Outcome]:
    from flowers_bench.executors import local, ray

    if asked.executor == "local" or not folders:
        return local.run_all(folders, on_event, timeout, asked.jobs)
    cluster = ray.Cluster(asked.address, asked.threads_of_a_trial or 1, asked.gpus)
    return ray.run_all(folders, on_event, timeout, cluster)


def _prepared(
    planned: Sequence[Planned], store: Store, *, stress: bool = False, track: Sequence[str] = ()
) -> list[TrialFolder]:
    """The folders of those where something is left to do, each once."""
    todo = {}
    for item in planned:
        folder = store.folder(item.trial.id)
        if folder.finished():  # its process may have been killed right after the result was there
            with contextlib.suppress(OSError, UsageError):  # not to be written to, or damaged: said by who needs it
                folder.discard_leftovers()
        if not folder.complete(stress=stress):
            todo[item.trial.id] = item
    more = {"command": sys.argv[1:], "stress": stress, "track": list(track)}
    return [store.prepare(item.trial, {**item.run, **more}) for item in todo.values()]


def _print_total(folders: Sequence[TrialFolder]) -> None:
    from flowers_bench.measure.cost import total_cost
    from flowers_bench.report.numbers import duration

    total = total_cost(folders)
    failed = f", {total['failed']} of them failed" if total["failed"] else ""
    messages.print(f"these {total['trials']} trials{failed} took {duration(total['seconds'])} in all", markup=False)


def _announce(planned: Sequence[Planned], out: str) -> None:
    first = planned[0].trial
    data = first.dataset
    messages.print(
        f"[bold]{escape(printable(data['name']))}[/bold]: {data['classes']} classes, {_train_sizes(planned)} train / {data['n_val']} val / {data['n_test']} test, "
        f"{data['resolution']}, split {data['split_checksum'][:8]}"
    )
    for note in data["notes"]:
        messages.print(printable(f"  note: {note}"), markup=False)
    lines = [
        f"{trial.label}: {trial.backbone}, weights {trial.weights['name']}, {trial.recipe.image_size} px, at most "
        f"{trial.recipe.epochs} epochs, {trial.recipe.optimizer} lr {trial.recipe.lr:g}, batch {trial.recipe.batch_size}"
        for trial in (item.trial for item in planned)
    ]
    for line in dict.fromkeys(lines):
        messages.print(printable(line), markup=False)
    messages.print(f"{len(planned)} trials, store {out}", markup=False)


def _train_sizes(planned: Sequence[Planned]) -> str:
    return ", ".join(map(str, dict.fromkeys(item.trial.dataset["n_train"] for item in planned)))


class TrialProgress:
    """Bars on stderr: trials in all, and of each that runs the steps of its epoch with images/s and time left."""

    def __init__(self, labels: dict[str, str], total: int) -> None:
        self._labels = labels
        self._total = total
        self._running: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=messages,
        )

    def __enter__(self) -> TrialProgress:
        self._progress.start()
        self._trials = self._progress.add_task("trials", total=self._total, note="")
        return self

    def __exit__(self, *exc: object) -> None:
        for task in self._running.values():
            self._progress.remove_task(task)
        self._progress.stop()

    def on_event(self, folder: TrialFolder, event: dict[str, Any]) -> None:
        """Show one event of a trial."""
        label = self._labels[folder.id]
        kind = event["event"]
        if kind == "step":
            self._progress.update(
                self._bar(folder),
                description=f"{label} epoch {event['epoch']}",
                total=event["steps"],
                completed=event["step"],
                note=f"{event['rate']:.0f} images/s",
            )
        elif kind == "epoch":
            messages.print(
                f"{label} epoch {event['epoch']}: loss {event['train_loss']:.3f}, val top-1 {100 * event['val_top1']:.1f} %, "
                f"{event['seconds']:.1f} s",
                markup=False,
            )
        elif kind in ("starting", "testing"):
            self._progress.update(self._bar(folder), description=f"{label} {kind}", total=None, note="")
        elif kind == "stress":
            self._progress.update(
                self._bar(folder),
                description=f"{label} under stress",
                total=event["of"],
                completed=event["done"],
                note=event["kind"],
            )
        elif kind == "waiting":
            messages.print(f"{label} {event['reason']}", markup=False)
        elif kind == "storing":
            messages.print(f"{label}: {event['text']}", markup=False)
        elif kind == "warning":
            messages.print(printable(f"warning: {event['text']}"), markup=False)
        elif kind == "resumed":
            messages.print(f"{label}: continues after epoch {event['epoch']}", markup=False)
        elif kind == "failed":
            messages.print(printable(f"{label} FAILED: {event['reason']}"), markup=False, style="red")
        if kind in ("done", "failed"):
            self._progress.advance(self._trials)
        if kind in ("done", "failed", "interrupted") and folder.id in self._running:
            self._progress.remove_task(self._running.pop(folder.id))

    def _bar(self, folder: TrialFolder) -> TaskID:
        if folder.id not in self._running:
            self._running[folder.id] = self._progress.add_task("", total=None, note="")
        return self._running[folder.id]
