"""A trial's life inside its own process, from top to bottom: data, parts, training, the test split once, the result."""

from __future__ import annotations

import time
from dataclasses import replace

from flowers_bench.contract.host import discover
from flowers_bench.data.reopen import DataPlace, load_dataset
from flowers_bench.measure.cost import PeakMemory, training_cost
from flowers_bench.measure.hardware import environment
from flowers_bench.store.folder import TrialFolder
from flowers_bench.store.identity import does_not_match
from flowers_bench.store.mirror import trust_cache
from flowers_bench.store.reading import SCHEMA_VERSION
from flowers_bench.store.records import Epoch, Result, SearchedResult
from flowers_bench.training.build import Places, build_parts
from flowers_bench.training.distributed import ALONE, Ranks
from flowers_bench.training.events import Emit, EpochFinished, Event, Testing
from flowers_bench.training.loop import Training
from flowers_bench.training.observers import Observers
from flowers_bench.training.precision import refuse_undefined_gradients, refuse_unsupported
from flowers_bench.training.process import interrupt_flag, prepare_process
from flowers_bench.training.start import start_from_prefix
from flowers_bench.training.test_split import measure_splits, measure_validation, prediction_cost


def run_trial(folder: TrialFolder, emit: Emit, ranks: Ranks = ALONE) -> None:
    """Run, or continue, the trial in `folder`; write `result.json` last.

    Args:
        ranks: this process among those that train together. Those that are not the main one only train.

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
    trial = folder.trial()
    if trial.id != config.id:
        raise does_not_match(config.json(), trial.id)
    place, places = DataPlace.of(run), Places.of(run)
    trust_cache(place.cache)  # the weights of a teacher in a mirror there may still have to be downloaded
    device = prepare_process(run.threads, ranks.count, run.device)
    refuse_unsupported(trial.recipe.precision, device)
    host = discover(places.plugins)
    host.tracking = run.track or ()
    dataset = load_dataset(host, trial, place)
    described = dataset.descriptions if "descriptions" in host.models[trial.model].value.needs else ()
    parts, backbone = build_parts(host, trial, places, dataset.class_names, device, described, dataset.val)
    image = parts.normalize.blank(trial.recipe.image_size)
    refuse_undefined_gradients(parts.model, image, trial.recipe.precision)
    dataset, prefix = start_from_prefix(trial, parts, dataset, place.cache, emit)
    stop = interrupt_flag()
    training = Training(
        trial, parts, dataset.train, dataset.val, folder, emit, stop, ranks=ranks, unlabelled=dataset.unlabelled
    )
    if not ranks.is_main:
        training.run(lambda record: None)
        ranks.all_gather(PeakMemory.so_far(device))
        return

    observers = Observers(host, folder.described(), run, emit)
    observers.tell("trial_started")
    setup_seconds = time.perf_counter() - started

    def on_epoch(record: Epoch) -> None:
        folder.write_history(training.history)
        emit(EpochFinished(record))
        observers.tell("epoch_finished", epoch=record)

    model = training.run(on_epoch)
    _, *others = ranks.all_gather(PeakMemory.so_far(device))
    # Written once more: if the trial was killed between its last checkpoint and that epoch's line, no epoch is left to run.
    folder.write_history(training.history)

    emit(Testing())
    chosen_in = parts.validation.seconds if parts.validation else 0.0
    fit_started = time.perf_counter()
    predict = parts.evaluator.fit(model, dataset.train)
    test_started = time.perf_counter()
    peak = PeakMemory.of_all([PeakMemory.so_far(device), *others])
    cost = replace(
        training_cost(model, training.history, training.best_epoch, chosen_in + test_started - fit_started),
        peak_rss_bytes=peak.rss,
        peak_cuda_bytes=peak.cuda,
        inherited=(parts.inherited.inherited() if parts.inherited else None) or None,
    )
    if trial.protocol.report == "none":  # it is a trial of a search
        folder.finish(
            SearchedResult(
                schema_version=SCHEMA_VERSION,
                id=trial.id,
                seed=trial.seed,
                best_epoch=training.best_epoch,
                val=measure_validation(parts, predict, dataset.val),
                cost=cost,
            )
        )
        return
    measured = measure_splits(trial, parts, predict, dataset)
    folder.write_predictions(measured.predictions)
    test_seconds = time.perf_counter() - test_started
    flops, inference = prediction_cost(parts, predict, dataset)
    result = Result(
        schema_version=SCHEMA_VERSION,
        id=trial.id,
        seed=trial.seed,
        best_epoch=training.best_epoch,
        stopped_early=len(training.history) < trial.recipe.epochs,
        val=measured.val,
        test=measured.test,
        retrieval=measured.retrieval,
        temperature=measured.temperature,
        episodic=measured.episodic,
        mixed=measured.mixed,
        cost=replace(
            cost,
            search_seconds=run.search.seconds if run.search else None,
            setup_seconds=setup_seconds,
            test_seconds=test_seconds,
            flops=flops.counted,
            flops_uncounted=flops.uncounted,
            inference=inference,
            prefix_cache=prefix.json(),
        ),
        weights_report=backbone.report.facts(),
        class_names=list(dataset.class_names),
        descriptions=list(described) or None,
        hardware=environment(device, ranks.count, *how_trained(training)),
    )
    observers.draw(model, parts.normalize, dataset, folder.figures_path)
    observers.tell("trial_finished", result=result)
    folder.finish(result)


def how_trained(training: Training) -> tuple[str | None, str | None]:
    """Name the precision of a training, and what drew its images: None on a CPU, and each where there was nothing."""
    if not training.history:
        return None, None
    drawn = training.feeding if training.parts.normalize.device.type != "cpu" else None
    return training.trial.recipe.precision, drawn.value if drawn else None


def _unheard(event: Event) -> None:
    pass
