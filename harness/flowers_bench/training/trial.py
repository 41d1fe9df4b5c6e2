"""A trial's life inside its own process: data, parts, training, the test split once, and the result."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import os
import random
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from flowers_bench.contract.dataset import Dataset, Split
from flowers_bench.contract.host import Host, discover, discover_for
from flowers_bench.contract.pictures import FigureContext
from flowers_bench.contract.technique import AugmentationContext, LossContext, ModelContext
from flowers_bench.data.pixels import Augmented, Normalizer, evaluation_transform
from flowers_bench.data.reopen import reopen
from flowers_bench.data.samplers import held_out_classes
from flowers_bench.data.shots import few_shot
from flowers_bench.measure.cost import flops, parameter_counts, peak_memory, peak_of_all, training_cost
from flowers_bench.measure.episodic import episodic_accuracy
from flowers_bench.measure.hardware import environment
from flowers_bench.measure.inference import inference_cost
from flowers_bench.measure.quality import (
    fit_temperature,
    mixed_quality,
    probability_quality,
    quality,
    quality_by_class,
)
from flowers_bench.measure.retrieval import Retrieval
from flowers_bench.models.backbones import Backbone, check_backbone, mean_and_std
from flowers_bench.models.predictors import EVALUATION_BATCH, Evaluator, Fitted, gives_probabilities
from flowers_bench.models.weights import Weights
from flowers_bench.models.weights.files import read_tensors
from flowers_bench.models.weights.source import file_sha256
from flowers_bench.store.folder import SCHEMA_VERSION, TrialFolder, write_atomically, write_json
from flowers_bench.store.identity import Trial, derive_seed, does_not_match, trial_from_config
from flowers_bench.store.remote import trust_cache
from flowers_bench.store.schema import damaged
from flowers_bench.training.distributed import ALONE, Ranks
from flowers_bench.training.frozen_prefix import CachedActivations, Prefix, find_cut
from flowers_bench.training.loop import Emit, Parts, Training
from flowers_bench.training.precision import refuse_undefined_gradients
from flowers_bench.util.errors import TrialFailed, UsageError

#: So many test images at most are mixed to see which classes are found in them.
MIXED_SAMPLE = 1000


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
    trust_cache(Path(run["cache_dir"]))  # a teacher in a mirror there may have its weights to fetch still
    device = on_this_machine(run, ranks.count)
    host = discover([Path(path) for path in run["plugin_files"]])
    host.tracking = run.get("track", ())
    dataset = load_dataset(host, trial, run)
    parts, backbone = build_parts(host, trial, run, device)
    refuse_undefined_gradients(parts.model, blank_image(trial, parts), trial.recipe.precision)
    dataset, prefix = start_from_prefix(trial, parts, dataset, Path(run["cache_dir"]), emit)
    stop = interrupt_flag()
    training = Training(trial, parts, dataset.train, dataset.val, folder.path, emit, stop, ranks=ranks)
    if not ranks.is_main:
        training.run(lambda record: None)
        ranks.all_gather(peak_memory(device))
        return

    def tell(hook: str, **news: Any) -> None:
        _warn(emit, _observed(host, hook, trial=config, run=run, **news))

    tell("trial_started")
    setup_seconds = time.perf_counter() - started

    def on_epoch(record: dict[str, Any]) -> None:
        write_history(folder.path, training.history)
        emit({"event": "epoch", **record})
        tell("epoch_finished", epoch=record)

    model = training.run(on_epoch)
    _, *others = ranks.all_gather(peak_memory(device))
    # Once more: killed between the last checkpoint and its line of history, a continuation runs no epoch.
    write_history(folder.path, training.history)
    emit({"event": "testing"})
    fit_started = time.perf_counter()
    predict = parts.evaluator.fit(model, dataset.train)
    test_started = time.perf_counter()
    cost = {
        **parameter_counts(model),
        **training_cost(training.history, training.best_epoch, test_started - fit_started),
        **peak_of_all([peak_memory(device), *others]),
    }
    if trial.protocol.report == "none":
        _finish_searched(folder, trial, training, predict(dataset.val.images).logits, dataset.val, cost)
        return
    figures = _measure(trial, parts, predict, dataset, folder)
    figures["cost"] = {
        **cost,
        **({"search_seconds": run["search"]["seconds"]} if run.get("search") else {}),
        "setup_seconds": setup_seconds,
        "test_seconds": time.perf_counter() - test_started,
        **_prediction_cost(trial, parts, predict, dataset),
        "prefix_cache": prefix,
    }
    result = {
        "schema_version": SCHEMA_VERSION,
        "id": trial.id,
        "label": trial.label,
        "seed": trial.seed,
        "best_epoch": training.best_epoch,
        "stopped_early": len(training.history) < trial.recipe.epochs,
        **figures,
        "weights_report": backbone.report.facts(),
        "class_names": list(dataset.class_names),
        "hardware": {**environment(device), "devices": ranks.count},
    }
    _draw(host, config, parts, model, dataset, folder, emit)
    tell("trial_finished", result=result)
    write_json(folder.path / "environment.json", result["hardware"])
    (folder.path / "failure.json").unlink(missing_ok=True)
    write_json(folder.path / "result.json", result)
    folder.discard_leftovers()


def _unheard(event: dict[str, Any]) -> None:
    pass


def _finish_searched(
    folder: TrialFolder, trial: Trial, training: Training, logits: np.ndarray, val: Split, cost: dict[str, Any]
) -> None:
    """The result of a trial of a search: how good it is on validation, what it took, and nothing of the test split."""
    if not np.isfinite(logits).all():
        raise TrialFailed("the trained model gives non-finite scores on the val split.")
    result = {
        "schema_version": SCHEMA_VERSION,
        "id": trial.id,
        "label": trial.label,
        "seed": trial.seed,
        "best_epoch": training.best_epoch,
        "val": {"n": len(val), **quality(logits, np.asarray(val.labels), probabilities=training.parts.probabilities)},
        "cost": cost,
    }
    (folder.path / "failure.json").unlink(missing_ok=True)
    write_json(folder.path / "result.json", result)
    folder.discard_leftovers()


def on_this_machine(run: Mapping[str, Any], processes: int = 1) -> torch.device:
    """Make torch calculate reproducibly, with the threads that `run.json` allots, divided among the trial's `processes`;
    returns where it calculates."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product on CUDA: sums in one order
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Writing NaN into each new tensor finds reads of what was never written; on a GPU it is a kernel more for each.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.allow_tf32 = False  # a float32 convolution would keep ten bits of its factors
    if run.get("threads") or processes > 1:
        threads = int(run.get("threads") or torch.get_num_threads())
        torch.set_num_threads(max(1, threads // processes))
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_dataset(host: Host, trial: Trial, run: Mapping[str, Any]) -> Dataset:
    """The trial's dataset with the training images that its protocol allows, from the place noted in `run.json`. Raises `UsageError` if its content has changed."""
    dataset = reopen(host, run, trial.recipe.image_size, trial.data_options)
    if dataset.fingerprint != trial.dataset["fingerprint"]:
        raise UsageError(
            f"the images of dataset {dataset.name} changed since this trial was planned. Run the command again."
        )
    return few_shot(dataset, trial.protocol.shots, trial.seed)


def build_parts(host: Host, trial: Trial, run: Mapping[str, Any], device: torch.device) -> tuple[Parts, Backbone]:
    """Model, loss, augmentation and evaluator of a trial, initialised from its seed."""
    weights = Weights(
        trial.weights["name"],
        trial.weights["sha256"],
        Path(run["weights_path"]) if run["weights_path"] else None,
    )
    if weights.path is not None and weights.path.is_file() and file_sha256(weights.path) != weights.sha256:
        raise UsageError(f"weights file {weights.path} changed since this trial was planned. Run the command again.")
    num_classes, size = int(trial.dataset["classes"]), trial.recipe.image_size
    backbone = Backbone(trial.backbone, weights, num_classes, size)
    torch.manual_seed(derive_seed(trial.seed, "initialisation"))
    model_part = host.find("model", host.models, trial.model).value
    store = Path(run["store"]) if run.get("store") else None
    values = model_part.option_values(trial.options)
    files = [Path(path) for path in run["plugin_files"]]
    model = model_part.build(ModelContext(backbone, num_classes, size, values, trial.dataset, store, files))
    model = model.to(device).to(memory_format=torch.channels_last)
    normalize = Normalizer(*mean_and_std(model), device)
    loss_part = host.find("loss", host.losses, trial.loss).value
    context = LossContext(num_classes, embedding_dim(model, normalize, size), loss_part.option_values(trial.options))
    criterion = loss_part.build(context)
    if isinstance(criterion, nn.Module):
        criterion = criterion.to(device)
    found = host.find("augmentation", host.augmentations, trial.augmentation)
    augmentation = found.value
    augmenting = AugmentationContext(size, num_classes, augmentation.option_values(trial.options))
    drawing = {
        "augmentation": trial.augmentation,
        "options": dict(augmenting.options),
        "code": host.plugins[found.plugin].code,
    }
    evaluator = Evaluator(trial.predictor, trial.options, num_classes, size, normalize)
    batch = augmentation.batch(augmenting) if augmentation.batch else None
    probabilities = gives_probabilities(trial.predictor, loss_part.probabilities)
    image = augmentation.image(augmenting)
    views = augmentation.views(augmenting) if augmentation.views else None
    return Parts(model, criterion, image, batch, normalize, evaluator, probabilities, views, drawing), backbone


def start_from_prefix(
    trial: Trial, parts: Parts, dataset: Dataset, cache_dir: Path, emit: Emit
) -> tuple[Dataset, dict[str, Any]]:
    """Let training and evaluation start behind the model's frozen first layers, where it has some.

    Returns:
        the dataset, its images with activations that are stored under `cache_dir`; and what is used, for the result. It
        is completed while the trial runs.
    """
    size = trial.recipe.image_size
    cut = find_cut(parts.model, blank_image(trial, parts))
    if isinstance(cut, str):
        return dataset, {"until": None, "reason": cut}
    prefix = Prefix.of(
        cut,
        parts.model,
        parts.normalize,
        cache_dir / "activations",
        {"backbone": trial.backbone, "dataset": trial.dataset["fingerprint"], "image_size": size},
        lambda text: emit({"event": "storing", "text": text}),
    )
    evaluated = evaluation_transform(size)

    def named(name: str, split: Split) -> dict[str, Any]:
        return {"split": name, "keys": hashlib.sha256(json.dumps(list(split.keys)).encode()).hexdigest()}

    def stored(name: str, split: Split) -> Split:
        inputs = Augmented(split.images, evaluated)
        return replace(
            split,
            images=CachedActivations(prefix, split.images, inputs, {**named(name, split), "inputs": "evaluation"}),
        )

    given = dataset.train.images
    train, val, test = (stored(name, getattr(dataset, name)) for name in ("train", "val", "test"))
    dataset = replace(dataset, train=train, val=val, test=test)
    prefix.facts["training"] = parts.views is not None and parts.batch_transform is None
    if prefix.facts["training"]:
        exact = trial.recipe.precision == "float32"
        if parts.views == 1 and parts.image_transform == evaluated and exact:
            parts.stored = train.images  # type: ignore[assignment]
        else:
            inputs = Augmented(given, parts.image_transform, parts.views)
            identity = {**named("train", dataset.train), "inputs": dict(parts.drawing)}
            parts.stored = CachedActivations(prefix, given, inputs, identity, trial.recipe.precision)
    return dataset, prefix.facts


def load_trained(
    folder: TrialFolder, device: torch.device, plugins: Sequence[Path] = (), store: Path | None = None
) -> Parts:
    """The parts of a finished trial, its model with the trained weights and in evaluation mode. Leaves torch's random
    generator as it was.

    Args:
        plugins: files that the user named; see `discover_for`. Nothing is taken from `run.json`.
        store: where other trials that the model builds on are found; None: beside this one.

    Raises:
        UsageError: the trial is not finished, is damaged, or was run with a plugin file that was not named.
    """
    trial = trial_from_config(folder.config())
    if not folder.finished():
        raise UsageError(f"trial {folder.id} is not finished.")
    host = discover_for(trial.id, trial.code, plugins)
    check_backbone(trial.backbone)  # timm would also take a name that makes it ask the Hugging Face Hub
    places = {"weights_path": None, "store": str(store or folder.path.parent), "plugin_files": list(map(str, plugins))}
    with torch.random.fork_rng():
        parts, _ = build_parts(host, trial, places, device)
    path = folder.weights()
    try:
        parts.model.load_state_dict(read_tensors(path))
    except (RuntimeError, UsageError) as error:
        raise damaged(path, f"does not fit its trial: {str(error)[:200]}") from error
    parts.model.eval().requires_grad_(False)
    return parts


def blank_image(trial: Trial, parts: Parts) -> torch.Tensor:
    """One image (1, 3, S, S), as the model takes them."""
    size = trial.recipe.image_size
    return parts.normalize(torch.zeros(1, 3, size, size, dtype=torch.uint8))


def embedding_dim(model: nn.Module, normalize: Normalizer, image_size: int) -> int:
    """D, by running one blank image."""
    with torch.inference_mode():
        output = model.eval()(normalize(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)))
    return int(output.embedding.shape[1])


def _prediction_cost(trial: Trial, parts: Parts, predict: Fitted, dataset: Dataset) -> dict[str, Any]:
    """Arithmetic and speed of predicting one image, from the tensor that the model takes to its scores."""
    image = parts.normalize(evaluation_transform(trial.recipe.image_size)(dataset.test.images[0])[None])
    return {**flops(predict.scores, image), "inference": inference_cost(predict.scores, image)}


def _measure(trial: Trial, parts: Parts, predict: Fitted, dataset: Dataset, folder: TrialFolder) -> dict[str, Any]:
    """Validation once more with the chosen weights, then the test split, once; predictions are stored."""
    tables: list[pd.DataFrame] = []
    figures: dict[str, Any] = {}
    scores: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, split in (("val", dataset.val), ("test", dataset.test)):
        found = predict(split.images)
        if not (np.isfinite(found.logits).all() and np.isfinite(found.embeddings).all()):
            raise TrialFailed(f"the trained model gives non-finite scores on the {name} split.")
        scores[name] = found.logits, np.asarray(split.labels)
        figures[name] = {"n": len(split), **quality(*scores[name], probabilities=parts.probabilities)}
        tables.append(_prediction_table(name, split, found.logits))
    # What follows the test split's scores is no test accuracy over all classes, and stands under names of its own.
    if retrieved := Retrieval.of(found.embeddings, np.asarray(dataset.test.labels)):
        figures["retrieval"] = retrieved.figures()
        tables[-1] = tables[-1].assign(**retrieved.images)
    figures["test"].update(quality_by_class(*scores["test"]))
    figures["temperature"] = temperature = fit_temperature(*scores["val"])
    if temperature is not None:
        figures["test"]["calibrated"] = probability_quality(*scores["test"], temperature)
    table = pd.concat(tables, ignore_index=True)
    write_atomically(folder.path / "predictions.parquet", lambda path: table.to_parquet(path, index=False))
    if trial.sampler == "episodes":
        figures["episodic"] = _episodic(trial, found.embeddings, dataset)
    if parts.batch_transform is not None:
        figures["mixed"] = _mixed(trial, parts, predict, dataset.test)
    return figures


def _episodic(trial: Trial, embeddings: np.ndarray, dataset: Dataset) -> dict[str, Any]:
    """Few-shot accuracy of the test images, and of those of classes held out of training where there are enough."""
    labels, options = np.asarray(dataset.test.labels), trial.options
    n_way, k_shot = int(options.get("eval_way", 5)), int(options.get("eval_shot", 5))
    unseen = held_out_classes(np.unique(np.asarray(dataset.train.labels)), float(options.get("held_out", 0)))
    found = {}
    for name, classes in (("test", np.unique(labels)), ("held_out_classes", unseen)):
        rows = np.isin(labels, classes)
        if len(classes) >= n_way:
            rng = np.random.default_rng(derive_seed(trial.seed, "episodes", name))
            metric = str(options.get("distance", "euclidean"))
            found[name] = episodic_accuracy(embeddings[rows], labels[rows], n_way, k_shot, metric, rng)
    return found


def _mixed(trial: Trial, parts: Parts, predict: Fitted, test: Split) -> dict[str, Any]:
    """How many of the mixed classes are found in test images that are mixed as the training images were."""
    assert parts.batch_transform is not None
    order = np.random.default_rng(derive_seed(trial.seed, "mixed")).permutation(len(test))[:MIXED_SAMPLE]
    transform, labels = evaluation_transform(trial.recipe.image_size), np.asarray(test.labels)
    targets: list[torch.Tensor] = []

    def batches() -> Iterator[torch.Tensor]:
        for rows in np.array_split(order, -(-len(order) // EVALUATION_BATCH)):
            images = parts.normalize(torch.stack([transform(test.images[i]) for i in rows]))
            mixed, target = parts.batch_transform(images, torch.from_numpy(labels[rows]).to(images.device))  # type: ignore[misc]
            targets.append(target.cpu())
            yield mixed

    torch.manual_seed(derive_seed(trial.seed, "mixed"))
    logits = predict.batches(batches()).logits
    if targets[0].ndim == 1:  # whole labels: every image is still of one class
        return {}
    return {"n": len(order), **mixed_quality(logits, torch.cat(targets).numpy())}


def _prediction_table(name: str, split: Split, logits: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "split": name,
            "key": list(split.keys),
            "label": np.asarray(split.labels, dtype=np.int32),
            "prediction": logits.argmax(1).astype(np.int32),
            "logits": list(logits.astype(np.float32)),
        }
    )


def _draw(
    host: Host,
    config: dict[str, Any],
    parts: Parts,
    model: nn.Module,
    dataset: Dataset,
    folder: TrialFolder,
    emit: Emit,
) -> None:
    """Let plugins draw their figures; a failing figure is said and does not cost the result."""
    labels = np.asarray(dataset.test.labels)
    chosen = [int(np.flatnonzero(labels == c)[0]) for c in np.unique(labels)[:8]]
    transform = evaluation_transform(config["recipe"]["image_size"])
    images = torch.stack([transform(dataset.test.images[i]) for i in chosen])
    directory = folder.path / "figures"
    directory.mkdir(exist_ok=True)
    context = FigureContext(
        model.eval(), images, [int(labels[i]) for i in chosen], dataset.class_names, parts.normalize
    )
    _warn(emit, host.notify("trial_figures", trial=config, context=context, directory=directory))
    with contextlib.suppress(OSError):
        directory.rmdir()  # nothing was drawn


def write_history(folder: Path, history: list[dict[str, Any]]) -> None:
    """`history.jsonl`, atomically. What is not finite, such as the loss of scores that overflow on validation images, is null."""
    finite = [
        {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
        for record in history
    ]
    text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in finite)
    write_atomically(folder / "history.jsonl", lambda path: path.write_text(text), durable=False)


def interrupt_flag() -> Any:
    """A function that says whether SIGINT has come: the first lets the epoch finish, the second ends at once."""
    asked: list[int] = []

    def on_interrupt(signum: int, frame: object) -> None:
        if asked:
            os._exit(130)
        asked.append(signum)

    signal.signal(signal.SIGINT, on_interrupt)
    return lambda: bool(asked)


def _observed(host: Host, hook: str, **news: Mapping[str, Any]) -> list[str]:
    """Tell the observers; whatever they do with what they are told, or with random numbers, stays theirs."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        failures = host.notify(hook, **copy.deepcopy(news))
    random.setstate(states[0])
    np.random.set_state(states[1])
    return failures


def _warn(emit: Emit, failures: list[str]) -> None:
    for failure in failures:
        emit({"event": "warning", "text": failure})
