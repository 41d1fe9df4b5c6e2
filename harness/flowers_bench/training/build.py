"""The parts of a trial, built from its seed: model, loss, augmentation, evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from flowers_bench.contract.dataset import Images, Split
from flowers_bench.contract.drawing import DrawsParameters
from flowers_bench.contract.host import Host
from flowers_bench.contract.optimizer import SCHEDULES, OptimizerContext, Schedule
from flowers_bench.contract.predictor import Predictor, PredictorContext, ViewsContext
from flowers_bench.contract.step import Batch, Step, StepContext, take_usual_step
from flowers_bench.contract.technique import Augmentation, AugmentationContext, Loss, LossContext, Model, ModelContext
from flowers_bench.data.drawing import ByParameters
from flowers_bench.data.pixels import Augmented, Normalizer
from flowers_bench.models.backbones import Backbone, mean_and_std
from flowers_bench.models.layers import Output
from flowers_bench.models.weights import Weights
from flowers_bench.models.weights.files import read_metadata
from flowers_bench.models.weights.provenance import provenance_of
from flowers_bench.store.identity import Trial, derive_seed
from flowers_bench.store.records import Run
from flowers_bench.training.evaluation import Evaluator, Views
from flowers_bench.training.finished import TrialFinder
from flowers_bench.training.frozen_prefix import CachedActivations
from flowers_bench.training.optimizer import Make
from flowers_bench.training.validation import Validation
from flowers_bench.util.errors import UsageError
from flowers_bench.util.files import file_sha256


@dataclass
class Parts:
    """What is trained, built.

    Attributes:
        model: images to `Output`.
        criterion: `Output` and target to a scalar.
        image_transform: uint8 (3, H, W) to uint8 (3, S, S).
        parameters: what it does, stated as parameters by which images are drawn in its stead; None: it is not.
        stored: activations of the fixed versions of the training images, where training starts from them.
        views: how many fixed versions of each training image there are; None: `image_transform` draws anew.
        drawing: what determines these versions: the augmentation, its options, its plugin's code, its revision.
        batch_transform: (float images, labels) to (images, targets), or None.
        normalize: uint8 batch to what the model takes.
        evaluator: predicts whole splits.
        probabilities: whether softmax of what it predicts is meant as such.
        step: what happens with a batch; `unlabelled` images it gets for each labelled one.
        draws_images: whether step or loss read images, so that training cannot start behind frozen layers.
        second_transform: as `image_transform`, for a second view, where step or loss need one.
        loss_sees_second: whether the loss is given the model's output for it.
        make_optimizer: of a registered optimiser; None: the recipe names torch's or timm's.
        schedule: how the learning rate goes.
        inherited: finds, and knows, the finished trials that it builds on.
        validation: measured models while the model was built, where its `build` asked for that; None without images.
    """

    model: nn.Module
    criterion: Callable[[Output, Tensor], Tensor]
    image_transform: Callable[[Tensor], Tensor]
    batch_transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    normalize: Normalizer
    evaluator: Evaluator
    probabilities: bool = True
    views: int | None = None
    drawing: Mapping[str, object] = field(default_factory=dict)
    stored: CachedActivations | None = None
    step: Callable[[Batch], Tensor] = take_usual_step
    unlabelled: int = 0
    draws_images: bool = False
    second_transform: Callable[[Tensor], Tensor] | None = None
    loss_sees_second: bool = False
    parameters: DrawsParameters | None = None
    make_optimizer: Make | None = None
    schedule: Schedule = SCHEDULES[0]
    inherited: TrialFinder | None = None
    validation: Validation | None = None

    def changing(self) -> tuple[object, ...]:
        """Give every part that may have `begin_epoch`."""
        transforms = (self.image_transform, self.parameters, self.second_transform, self.batch_transform)
        return (self.model, self.criterion, self.step, *transforms)

    def augmented(self, images: Images, size: int) -> Augmented:
        """Give training images as the model sees them, `size` pixels wide: new versions each time, or fixed ones."""
        fixed = None
        if self.parameters is not None and self.views is not None:
            fixed = ByParameters.seeded(images, self.parameters, size, 0, "view", self.views)
        return Augmented(images, self.image_transform, self.views, fixed)


@dataclass(frozen=True)
class Places:
    """What a trial's parts are built from on this machine.

    Attributes:
        weights: the file of the initial weights.
        store: the run store, in which other finished trials are found.
        plugins: plugin files that the user named.
    """

    weights: Path | None
    store: Path | None
    plugins: Sequence[Path]

    @classmethod
    def of(cls, run: Run) -> Places:
        """Read the places from the trial's `run.json`."""
        weights, store = (Path(path) if path else None for path in (run.weights_path, run.store))
        return cls(weights, store, list(map(Path, run.plugin_files or ())))


def build_parts(
    host: Host,
    trial: Trial,
    places: Places,
    class_names: Sequence[str],
    device: torch.device,
    descriptions: Sequence[str] = (),
    val: Split | None = None,
) -> tuple[Parts, Backbone]:
    """Build what is trained, initialised from the trial's seed, on `device`.

    Args:
        class_names: C names, index = label.
        descriptions: C texts, for models that need them.
        val: the validation split, for models that choose by it; None where the model's values do not matter.

    Returns:
        the parts; and the backbone, which says how its weights met the model.

    Raises:
        UsageError: the weights file is not what the plan saw, or a part refuses its options.
    """
    num_classes, size = int(trial.dataset["classes"]), trial.recipe.image_size
    backbone = Backbone(trial.backbone, _weights(trial, places.weights), num_classes, size)
    torch.manual_seed(derive_seed(trial.seed, "initialisation"))
    finder = TrialFinder(places.store, trial.dataset, places.plugins)
    validation = Validation(val, size, device) if val is not None else None
    model = _build_model(host, trial, backbone, class_names, descriptions, finder, validation)
    backbone.load_beyond()
    model = model.to(device).to(memory_format=torch.channels_last)
    normalize = Normalizer(*mean_and_std(model), device)
    loss: Loss = host.find("loss", host.losses, trial.loss).value
    dim = _embedding_dim(model, normalize.blank(size))
    criterion = loss.build(LossContext(num_classes, dim, loss.option_values(trial.options), class_names))
    if isinstance(criterion, nn.Module):
        criterion = criterion.to(device)
    step: Step = host.find("step", host.steps, trial.step).value
    of_step = step.option_values(trial.options)
    stepping = step.build(StepContext(class_names, dim, size, of_step, model))
    if isinstance(stepping, nn.Module):
        stepping = stepping.to(device)
    found = host.find("augmentation", host.augmentations, trial.augmentation)
    augmentation: Augmentation = found.value
    context = AugmentationContext(size, num_classes, augmentation.option_values(trial.options))
    drawing = {
        "augmentation": trial.augmentation,
        "options": dict(context.options),
        "code": host.plugins[found.plugin].code,
        # Like a trial's id: what is stored by the first revision stays valid.
        **({} if augmentation.revision == 1 else {"revision": augmentation.revision}),
    }
    predictor: Predictor = host.find("predictor", host.predictors, trial.predictor).value
    predicting = PredictorContext(class_names, predictor.option_values(trial.options))
    sees_second = "second_view" in loss.needs
    wants_second = sees_second or "second_view" in step.needs
    parts = Parts(
        model,
        criterion,
        batch_transform=augmentation.batch(context) if augmentation.batch else None,
        image_transform=augmentation.image(context),
        normalize=normalize,
        evaluator=Evaluator(predictor, predicting, size, normalize, _views(predictor, predicting, size)),
        probabilities=predictor.gives_probabilities(loss.probabilities),
        views=augmentation.views(context) if augmentation.views else None,
        parameters=augmentation.parameters(context) if augmentation.parameters else None,
        drawing=drawing,
        step=stepping,
        unlabelled=step.unlabelled_for(of_step),
        draws_images=step.draws_images or sees_second,
        second_transform=augmentation.second(context) if augmentation.second and wants_second else None,
        loss_sees_second=sees_second,
        make_optimizer=_make_optimizer(host, trial),
        schedule=host.find("schedule", host.schedules, trial.recipe.schedule).value,
        inherited=finder,
        validation=validation,
    )
    return parts, backbone


def _views(predictor: Predictor, context: PredictorContext, size: int) -> Views | None:
    return predictor.views(ViewsContext(size, context.options)) if predictor.views else None


def _make_optimizer(host: Host, trial: Trial) -> Make | None:
    if trial.recipe.optimizer not in host.optimizers:
        return None
    optimizer = host.optimizers[trial.recipe.optimizer].value
    return partial(optimizer.build, OptimizerContext(trial.recipe, optimizer.option_values(trial.options)))


def _weights(trial: Trial, path: Path | None) -> Weights:
    name, sha256 = trial.weights["name"], trial.weights["sha256"]
    if path is None or not path.is_file():
        return Weights(name, sha256, path)
    if file_sha256(path) != sha256:
        raise UsageError(f"weights file {path} changed since this trial was planned. Run the command again.")
    return Weights(name, sha256, path, provenance_of(path, read_metadata(path)))


def _build_model(
    host: Host,
    trial: Trial,
    backbone: Backbone,
    class_names: Sequence[str],
    descriptions: Sequence[str],
    finder: TrialFinder,
    validation: Validation | None,
) -> nn.Module:
    part: Model = host.find("model", host.models, trial.model).value
    values, size = part.option_values(trial.options), trial.recipe.image_size
    return part.build(
        ModelContext(
            backbone,
            backbone.num_classes,
            size,
            values,
            trial.dataset,
            finder.store,
            finder.plugin_files,
            class_names,
            finder,
            descriptions,
            validation,
        )
    )


def _embedding_dim(model: nn.Module, image: Tensor) -> int:
    """Measure D, the length of an embedding, by running one image (1, 3, S, S)."""
    with torch.inference_mode():
        output = model.eval()(image)
    return int(output.embedding.shape[1])
