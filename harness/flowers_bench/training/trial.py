"""A trial's life inside its own process, from top to bottom: data, parts, training, the test split once, the result."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from flowers_bench.contract.host import discover
from flowers_bench.data.reopen import load_dataset
from flowers_bench.measure.cost import parameter_counts, peak_memory, peak_of_all, training_cost
from flowers_bench.measure.hardware import environment
from flowers_bench.store.folder import SCHEMA_VERSION, TrialFolder
from flowers_bench.store.identity import does_not_match, trial_from_config
from flowers_bench.store.mirror import trust_cache
from flowers_bench.training.build import build_parts
from flowers_bench.training.distributed import ALONE, Ranks
from flowers_bench.training.frozen_prefix import start_from_prefix
from flowers_bench.training.loop import Training
from flowers_bench.training.observers import Observers
from flowers_bench.training.precision import refuse_undefined_gradients
from flowers_bench.training.process import Emit, interrupt_flag, prepare_process
from flowers_bench.training.test_split import measure_splits, measure_validation, prediction_cost


def run_trial(folder: TrialFolder, emit: Emit, ranks: Ranks = ALONE) -> None:
    """Run, or continue, the trial in `folder`; writes `result.json` last.

    Args:
        ranks: this process among those that do it together. Those that do not lead train along, and that is all.

    Raises:
        PeerLost: another of the ranks is gone.
        TrialFailed: no result can be had.
        TrialDisturbed: its checkpoint cannot be used.
        Interrupted: stopped after an epoch by SIGINT.
        UsageError: data, weights or plugins are not what the plan saw.
    """
    started = time.perf_counter()
    if not ranks.is_main:
        emit = _unheard
    config, run = folder.config(), folder.run()
    trial = trial_from_config(config)
    if trial.id != config["id"]:
        raise does_not_match(config, trial.id)
    cache = Path(run["cache_dir"])
    trust_cache(cache)  # a teacher in a mirror there may have its weights to fetch still
    device = prepare_process(run, ranks.count)
    host = discover([Path(path) for path in run["plugin_files"]])
    host.tracking = run.get("track", ())
    dataset = load_dataset(host, trial, run)
    parts, backbone = build_parts(host, trial, run, device)
    image = parts.normalize.blank(trial.recipe.image_size)
    refuse_undefined_gradients(parts.model, image, trial.recipe.precision)
    dataset, prefix = start_from_prefix(trial, parts, dataset, cache, emit)
    stop = interrupt_flag()
    training = Training(trial, parts, dataset.train, dataset.val, folder.path, emit, stop, ranks=ranks)
    if not ranks.is_main:
        training.run(lambda record: None)
        ranks.all_gather(peak_memory(device))
        return

    observers = Observers(host, folder.described(), run, emit)
    observers.tell("trial_started")
    setup_seconds = time.perf_counter() - started

    def on_epoch(record: dict[str, Any]) -> None:
        folder.write_history(training.history)
        emit({"event": "epoch", **record})
        observers.tell("epoch_finished", epoch=record)

    model = training.run(on_epoch)
    _, *others = ranks.all_gather(peak_memory(device))
    # Once more: killed between the last checkpoint and its line of history, a continuation runs no epoch.
    folder.write_history(training.history)

    emit({"event": "testing"})
    fit_started = time.perf_counter()
    predict = parts.evaluator.fit(model, dataset.train)
    test_started = time.perf_counter()
    cost = {
        **parameter_counts(model),
        **training_cost(training.history, training.best_epoch, test_started - fit_started),
        **peak_of_all([peak_memory(device), *others]),
    }
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "id": trial.id,
        "seed": trial.seed,
        "best_epoch": training.best_epoch,
    }
    if trial.protocol.report == "none":  # of a search
        folder.finish({**result, "val": measure_validation(parts, predict, dataset.val), "cost": cost})
        return
    measured = measure_splits(trial, parts, predict, dataset)
    folder.write_predictions(measured.predictions)
    cost |= {
        **({"search_seconds": run["search"]["seconds"]} if run.get("search") else {}),
        "setup_seconds": setup_seconds,
        "test_seconds": time.perf_counter() - test_started,
        **prediction_cost(trial, parts, predict, dataset),
        "prefix_cache": prefix,
    }
    result |= {
        "stopped_early": len(training.history) < trial.recipe.epochs,
        **measured.figures,
        "cost": cost,
        "weights_report": backbone.report.facts(),
        "class_names": list(dataset.class_names),
        "hardware": {**environment(device), "devices": ranks.count},
    }
    observers.draw(model, parts.normalize, dataset, folder.path / "figures")
    observers.tell("trial_finished", result=result)
    folder.finish(result)


def _unheard(event: dict[str, Any]) -> None:
    pass
