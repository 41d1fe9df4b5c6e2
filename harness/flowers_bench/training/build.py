"""The parts of a trial, built from its seed: model, loss, augmentation, evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowers_bench.contract.host import Host
from flowers_bench.contract.technique import Augmentation, AugmentationContext, Loss, LossContext, Model, ModelContext
from flowers_bench.data.pixels import Normalizer
from flowers_bench.models.backbones import Backbone, mean_and_std
from flowers_bench.models.layers import Output
from flowers_bench.models.predictors import gives_probabilities
from flowers_bench.models.weights import Weights
from flowers_bench.store.identity import Trial, derive_seed
from flowers_bench.training.evaluation import Evaluator
from flowers_bench.training.frozen_prefix import CachedActivations
from flowers_bench.util.errors import UsageError
from flowers_bench.util.files import file_sha256


@dataclass
class Parts:
    """What is trained, built.

    Attributes:
        model: images to `Output`.
        criterion: `Output` and target to a scalar.
        image_transform: uint8 (3, H, W) to uint8 (3, S, S).
        stored: activations of the training images in these versions, where training starts from them.
        views: how many fixed versions of each training image there are; None: `image_transform` draws anew.
        drawing: what decides them: the augmentation, its options, its plugin's code.
        batch_transform: (float images, labels) to (images, targets), or None.
        normalize: uint8 batch to what the model takes.
        evaluator: predicts whole splits.
        probabilities: whether softmax of what it predicts is meant as such.
    """

    model: nn.Module
    criterion: Callable[[Output, Tensor], Tensor]
    image_transform: Callable[[Tensor], Tensor]
    batch_transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    normalize: Normalizer
    evaluator: Evaluator
    probabilities: bool = True
    views: int | None = None
    drawing: Mapping[str, Any] = field(default_factory=dict)
    stored: CachedActivations | None = None


def build_parts(host: Host, trial: Trial, run: Mapping[str, Any], device: torch.device) -> tuple[Parts, Backbone]:
    """Build what is trained, initialised from the trial's seed, on `device`.

    Returns:
        the parts; and the backbone, which says how its weights met the model.

    Raises:
        UsageError: the weights file is not what the plan saw, or a part refuses its options.
    """
    num_classes, size = int(trial.dataset["classes"]), trial.recipe.image_size
    backbone = Backbone(trial.backbone, _weights(trial, run), num_classes, size)
    torch.manual_seed(derive_seed(trial.seed, "initialisation"))
    model = _build_model(host, trial, run, backbone)
    backbone.load_beyond()
    model = model.to(device).to(memory_format=torch.channels_last)
    normalize = Normalizer(*mean_and_std(model), device)
    loss: Loss = host.find("loss", host.losses, trial.loss).value
    dim = _embedding_dim(model, normalize.blank(size))
    criterion = loss.build(LossContext(num_classes, dim, loss.option_values(trial.options)))
    if isinstance(criterion, nn.Module):
        criterion = criterion.to(device)
    found = host.find("augmentation", host.augmentations, trial.augmentation)
    augmentation: Augmentation = found.value
    context = AugmentationContext(size, num_classes, augmentation.option_values(trial.options))
    code = host.plugins[found.plugin].code
    parts = Parts(
        model,
        criterion,
        batch_transform=augmentation.batch(context) if augmentation.batch else None,
        image_transform=augmentation.image(context),
        normalize=normalize,
        evaluator=Evaluator(trial.predictor, trial.options, num_classes, size, normalize),
        probabilities=gives_probabilities(trial.predictor, loss.probabilities),
        views=augmentation.views(context) if augmentation.views else None,
        drawing={"augmentation": trial.augmentation, "options": dict(context.options), "code": code},
    )
    return parts, backbone


def _weights(trial: Trial, run: Mapping[str, Any]) -> Weights:
    path = Path(run["weights_path"]) if run["weights_path"] else None
    weights = Weights(trial.weights["name"], trial.weights["sha256"], path)
    if path is not None and path.is_file() and file_sha256(path) != weights.sha256:
        raise UsageError(f"weights file {path} changed since this trial was planned. Run the command again.")
    return weights


def _build_model(host: Host, trial: Trial, run: Mapping[str, Any], backbone: Backbone) -> nn.Module:
    part: Model = host.find("model", host.models, trial.model).value
    store = Path(run["store"]) if run.get("store") else None
    values = part.option_values(trial.options)
    files = [Path(path) for path in run["plugin_files"]]
    size = trial.recipe.image_size
    return part.build(ModelContext(backbone, backbone.num_classes, size, values, trial.dataset, store, files))


def _embedding_dim(model: nn.Module, image: Tensor) -> int:
    """D, by running one image (1, 3, S, S)."""
    with torch.inference_mode():
        output = model.eval()(image)
    return int(output.embedding.shape[1])
