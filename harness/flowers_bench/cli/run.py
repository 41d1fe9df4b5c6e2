"""`flowers-bench run`: plan trials, search recipes, run the trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowers_bench.cli.decide import decide
from flowers_bench.cli.execute import AGAIN, compile_kernels, execute, name_again, prepared, run_all, was_interrupted
from flowers_bench.cli.exit_codes import FAILED, INTERRUPTED
from flowers_bench.cli.options import LONGEST, RunOptions, check_devices, check_executor
from flowers_bench.cli.progress import TrialProgress, messages, track
from flowers_bench.contract.host import Host, Registered, discover
from flowers_bench.executors.local import begin_importing
from flowers_bench.util.errors import TrialDisturbed, TrialFailed, UsageError, unknown_name
from flowers_bench.util.text import printable

if TYPE_CHECKING:
    from flowers_bench.contract.dataset import Dataset
    from flowers_bench.executors.local import Outcome
    from flowers_bench.plan.request import Loaded, Request, TrialPlan
    from flowers_bench.store.records import SearchFacts


def run(options: RunOptions, format: str, timeout: float) -> int:
    """Run what the options say, and return the exit code: 0 all done, 1 a trial failed, 130 interrupted.

    Args:
        timeout: seconds that one trial may take.

    Raises:
        UsageError: something is wrong in the options; nothing has been trained then.
    """
    if format not in ("text", "md"):
        raise unknown_name("format", format, ("text", "md"))
    # These mistakes are refused before planning, which may download data.
    if not 1 <= timeout <= LONGEST:
        raise UsageError(f"--timeout {timeout:g}: expected seconds, from 1 to {LONGEST:g}.")
    check_executor(options)
    check_devices(options)
    if options.remote:
        options.remote.pull()
    if options.suite is not None and options.techniques:
        raise UsageError("a suite names its techniques itself; beside it, --plugin takes plugin files only: ./mine.py")
    if options.suite is None and not options.plugin_files and not options.techniques:
        raise UsageError(
            "--plugin is empty or missing: name a technique (`flowers-bench list` shows them), or a suite: run study-small; or let "
            "flowers-bench start FOLDER choose for your photographs"
        )
    if options.executor == "local":
        begin_importing()
    host = discover(options.plugin_files)
    host.refuse_unfit_trackers(options.trackers)
    for status in host.broken():
        text = f"warning: plugin {status.name} ({status.origin}) is broken and skipped: {status.error}"
        messages.print(printable(text), markup=False)
    try:
        if options.suite is not None:
            return _run_suite(host, options, options.suite, format, timeout)
        return _run_techniques(host, options, format, timeout)
    except KeyboardInterrupt:
        messages.print(AGAIN)
        return INTERRUPTED


def _run_techniques(host: Host, options: RunOptions, format: str, timeout: float) -> int:
    from flowers_bench.plan.planning import one_by_one, plan
    from flowers_bench.plan.request import Loaded, in_order
    from flowers_bench.plan.suites import swept

    base = _request(options)
    for key in options.sweeps:
        if key in options.factors.given() or key in options.settings:
            raise UsageError(f"--sweep {key}: this is given a single value too. Leave that out.")
    techniques = [name for item in options.techniques for name in _named(host, item)]
    for file in options.plugin_files:
        own = _techniques_of(host, file, needed=not options.techniques)
        if not {name.partition("/")[0] for name in techniques} & set(own):  # else it is named already, as it is meant
            techniques += own
    _refuse_divided_search(base.search, options)
    every_shots: list[int | None] = [*options.shots] or [None]
    base = replace(base, floor=not options.sweeps and not options.plugin_files)
    requests = [
        request
        for shots in every_shots
        for request in swept(host, replace(base, techniques=techniques, shots=shots), options.sweeps)
    ]
    loaded = Loaded()
    found = [plan(host, request, options.plugin_files, track, loaded) for request in requests]
    if base.search:
        single = [one for request in requests for one in one_by_one(host, request)]
        found = _searched(host, single, options, timeout, loaded)
    code = _execute_shard(
        in_order(item for items in found for item in items), options, format, timeout, list(loaded.datasets.values())
    )
    return code if all(found) else code or FAILED


def _run_suite(host: Host, options: RunOptions, name: str, format: str, timeout: float) -> int:
    from flowers_bench.plan.request import Loaded, in_order
    from flowers_bench.plan.suites import overridden, plan_suite, read_suite, with_found
    from flowers_bench.report.published import beside_reported, print_reported
    from flowers_bench.store.folder import Store

    if options.sweeps:
        raise UsageError("--sweep goes with --plugin; in a suite, write the list of values into its file.")
    given = {key: [value] for key, value in {**options.factors.given(), **options.settings}.items()}
    suite = overridden(read_suite(name), given, options.seeds, options.shots, options.search)
    _refuse_divided_search(max(table.search for table in suite.tables), options)
    messages.print(printable(f"suite {suite.path}: {suite.summary}"), markup=False)
    loaded = Loaded()
    tables = plan_suite(host, suite, _request(options), options.plugin_files, track, loaded)
    requests = [request for table in tables for request in table.requests if request.search]
    found = _searched(host, requests, options, timeout, loaded) if requests else []
    tables = with_found(tables, found)
    code = _execute_shard(in_order(item for table in tables for item in table.planned), options, format, timeout)
    rows = beside_reported(tables, Store(options.out))
    if rows:
        print_reported(rows, suite.source, format)
    return code if all(found) else code or FAILED


def _request(options: RunOptions) -> Request:
    """Make the request that all trials share; its techniques are added later."""
    from flowers_bench.plan.request import Request

    factors = options.factors
    return Request(
        [],
        data=factors.data or "petals",
        backbone=factors.backbone,
        weights=factors.weights,
        loss=factors.loss,
        augmentation=factors.augmentation,
        predictor=factors.predictor,
        step=factors.step,
        cache_dir=options.cache,
        seeds=options.seeds or 3,
        settings=options.settings,
        store=options.out,
        search=options.search or 0,
        jobs=options.jobs or 1,
        threads=options.threads_of_a_trial,
        devices=options.devices,
        device=options.device,
    )


def _techniques_of(host: Host, file: Path, *, needed: bool) -> list[str]:
    """List the techniques that a plugin file registers. Raises `UsageError` if it is broken, or registers none where one is
    `needed`."""
    status = host.plugins[file.stem]
    if status.error:
        raise UsageError(f"plugin {file} is broken: {status.error}")
    found = [name for name, registered in host.techniques.items() if registered.plugin == file.stem]
    if needed and not found:
        raise UsageError(
            f"plugin {file} registers no technique. Name one to use its parts with, such as  --plugin {file},transfer/scratch"
            f"{_parts_of(host, file)}"
        )
    return found


def _parts_of(host: Host, file: Path) -> str:
    """Write the options that take what a file registers, the first of each kind."""
    tables: Mapping[str, Mapping[str, Registered[Any]]] = {
        "data": host.datasets,
        "loss": host.losses,
        "augmentation": host.augmentations,
        "predictor": host.predictors,
        "step": host.steps,
        "set optimizer": host.optimizers,
        "set schedule": host.schedules,
    }
    found = {
        option: name
        for option, table in tables.items()
        for name in [name for name, registered in table.items() if registered.plugin == file.stem][:1]
    }
    return "".join(f" --{o}={n}" if o.startswith("set ") else f" --{o} {n}" for o, n in found.items())


def _named(host: Host, item: str) -> list[str]:
    """Name the technique that an item of `--plugin` means: of `./mine.py/wide`, the file's technique of that name, or the variant of
    that name of the only technique that has it."""
    if ".py/" not in item:
        return [item]
    stem, _, name = item.partition(".py/")
    file = Path(f"{stem}.py")
    techniques = _techniques_of(host, file, needed=True)
    if name.partition("/")[0] in techniques:
        return [name]
    found = [f"{one}/{name}" for one in techniques if name in host.techniques[one].value.variants]
    if len(found) == 1:
        return found
    known = [f"{one}/{variant}" for one in techniques for variant in host.techniques[one].value.variants]
    if found:
        raise UsageError(f"--plugin {item}: {' and '.join(found)} have that name. Say --plugin {file}/{found[0]}")
    raise unknown_name(f"variant of {file}", name, known)


def _refuse_divided_search(configurations: int, options: RunOptions) -> None:
    if configurations and options.shard.count > 1:
        raise UsageError(
            "a search tries one configuration after the other, which --shard cannot divide. Use --jobs, or leave the search "
            "out with --search 0."
        )


def _searched(
    host: Host,
    requests: Sequence[Request],
    options: RunOptions,
    timeout: float,
    loaded: Loaded,
) -> list[list[TrialPlan]]:
    """Search for each request, and plan the trials of its best configuration.

    The list is empty, and a message says why, if no configuration could be trained or the search was disturbed.
    """
    from flowers_bench.plan.search import search
    from flowers_bench.plan.suites import distinct_requests
    from flowers_bench.report.names import distinct_names
    from flowers_bench.store.folder import Store

    store = Store(options.out).of_searches()
    longest = max(request.search for request in requests)

    def run_round(number: int, planned: Sequence[TrialPlan]) -> Sequence[Outcome]:
        name_again(planned, store)
        compile_kernels(planned)
        todo, unfit = prepared(planned, store)
        if unfit:  # a search without this configuration would be another search
            raise unfit[0]
        if todo:
            messages.print(f"search: configuration {number} of {longest}")
        names = distinct_names([item.described() for item in planned])
        labels = {item.trial.id: name for name, item in zip(names, planned, strict=True)}
        with TrialProgress(labels, len(todo)) as progress:
            outcomes = run_all(todo, progress.on_event, timeout, options, options.jobs or 1)
        if was_interrupted(todo, outcomes):
            raise KeyboardInterrupt
        return outcomes

    found: list[list[TrialPlan]] = []
    searches = search(host, requests, options.plugin_files, run_round, loaded)
    for name, one in zip(distinct_requests(requests), searches, strict=True):
        try:
            found.append(one.best())
            messages.print(printable(f"{name}: {_in_words(found[-1][0].run.search)}"), markup=False)
        except (TrialFailed, TrialDisturbed) as error:
            found.append([])
            messages.print(printable(f"{name}: {error}"), markup=False, style="red")
    return found


def _in_words(about: SearchFacts | None) -> str:
    from flowers_bench.report.formatting import duration, percent

    assert about is not None  # `Search.best` sets it
    settings = ", ".join(f"{key}={value}" for key, value in about.settings.items()) or "nothing to search"
    tried, different = about.configurations, len(about.trials)
    notes = [f"{different} different"] if different < tried else []
    notes += [f"{about.failed} could not be trained"] if about.failed else []
    beside = f" ({', '.join(notes)})" if notes else ""
    return (
        f"{settings}; validation top-1 {percent(about.val_top1)} %, best of {tried} configurations{beside} "
        f"in {duration(about.seconds)}"
    )


def _execute_shard(
    planned: Sequence[TrialPlan], options: RunOptions, format: str, timeout: float, datasets: Sequence[Dataset] = ()
) -> int:
    if not planned:  # no search found a configuration; messages have said so
        return FAILED
    if options.decide:
        return decide(planned, options, options.decide, timeout, format)
    chosen = planned[options.shard.indices]
    if not chosen:
        messages.print(f"shard {options.shard} has no trial: there are fewer trials than shards")
        return 0
    return execute(chosen, options, timeout, format, datasets)
