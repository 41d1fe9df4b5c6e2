"""What is checked: one variant, planned and built as a trial would, on a tiny backbone and a few drawn flowers."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path

from flowers_bench.contract.host import Host, Registered
from flowers_bench.contract.step import Step
from flowers_bench.util.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowers_bench.contract.dataset import Dataset
    from flowers_bench.contract.technique import Part
    from flowers_bench.models.layers import Output
    from flowers_bench.plan.request import TrialPlan
    from flowers_bench.training.build import Parts
    from flowers_bench.training.loop import Training

#: pytest leaves this module's functions out of tracebacks: the plugin is to be looked at.
__tracebackhide__ = True

#: Small networks to check with: the first one that fits is taken, transformers first where the default one is one.
CONVOLUTIONAL, TRANSFORMER = "test_resnet", "test_vit"
#: A tiny trial: 4 classes of 32 px, batches of 16 that P x K and episodes divide, two epochs.
TINY = {
    "data.species": 4,
    "data.train": 8,
    "data.val": 4,
    "data.test": 8,
    "data.size": 32,
    "image_size": 32,
    "batch_size": 16,
    "epochs": 2,
    "warmup_epochs": 0,
}
#: Options of the samplers that the defaults of a part would make too large for four classes, of which one may be held out.
TINY_SAMPLING = {"n_way": 3, "k_shot": 2, "n_query": 2, "episodes_per_epoch": 2, "eval_way": 4, "eval_shot": 2}


class Nonconformance(AssertionError):
    """A check failed. The text says what was found and what to change."""


@dataclass(frozen=True)
class Subject:
    """One `technique/variant` under check.

    Attributes:
        host: where everything is registered.
        label: `technique/variant`.
        files: plugin files that the trial's process must load, too.
        backbone: a timm model's name, or None for one of the tiny ones.
        settings: `--set` values beside the tiny ones.
        store: where techniques that build on finished trials find them; None: an empty one.
    """

    host: Host
    label: str
    files: Sequence[Path] = ()
    backbone: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    store: Path | None = None

    @functools.cached_property
    def planned(self) -> TrialPlan:
        """Plan the tiny trial. Raises `UsageError` as a run's planning does."""
        errors: list[UsageError] = []
        for name in [self.backbone] if self.backbone else self._backbones():
            try:
                return self._plan(name)
            except UsageError as error:
                errors.append(error)
        raise errors[0]

    def _backbones(self) -> list[str]:
        import timm

        technique, _, variant = self.label.partition("/")
        value = self.host.techniques[technique].value
        default = value.variants[variant].backbone or value.backbone
        known = timm.is_model(default)
        transformer = known and "vision_transformer" in timm.models.model_entrypoint(default).__module__
        return [TRANSFORMER, CONVOLUTIONAL] if transformer else [CONVOLUTIONAL, TRANSFORMER]

    def _plan(self, backbone: str) -> TrialPlan:
        from flowers_bench.plan.planning import plan
        from flowers_bench.plan.request import Request

        settings = {**TINY, **{k: v for k, v in TINY_SAMPLING.items() if k in self._options()}, **self.settings}
        request = Request(
            [self.label],
            "petals",
            user_cache_path("flowers-bench"),
            seeds=1,
            backbone=backbone,
            weights="none",
            settings={key: str(value) for key, value in settings.items()},
            store=self.store,
            shots=self._shots(),
        )
        (planned,) = plan(self.host, request, self.files)
        return planned

    def parts(self) -> list[Part]:
        """List the parts that it names, of those that are registered."""
        name, _, variant_name = self.label.partition("/")
        technique = self.host.techniques[name].value
        variant = technique.variants[variant_name]
        loss = self.host.losses.get(variant.loss or technique.loss)
        tables: Sequence[tuple[Mapping[str, Registered[Any]], str | None]] = (
            (self.host.models, variant.model or technique.model),
            (self.host.losses, variant.loss or technique.loss),
            (self.host.augmentations, variant.augmentation or technique.augmentation),
            (self.host.predictors, variant.predictor or (loss.value.predictor if loss else None)),
            (self.host.steps, variant.step or technique.step),
        )
        return [table[part].value for table, part in tables if part is not None and part in table]

    def _options(self) -> set[str]:
        return {option for part in self.parts() for option in part.options}

    def _shots(self) -> int | None:
        """Leave images without labels to a step that needs some: half of them."""
        needed = any(isinstance(part, Step) and part.unlabelled for part in self.parts())
        return TINY["data.train"] // 2 if needed else None

    @functools.cached_property
    def data(self) -> Dataset:
        """Load the trial's dataset."""
        from flowers_bench.data.reopen import DataPlace, load_dataset

        return load_dataset(self.host, self.planned.trial, DataPlace.of(self.planned.run))

    def model(self, backbone: str | None = None) -> nn.Module:
        """Build the model alone: on the trial's backbone with its options, or on another backbone with its part's
        default options."""
        from flowers_bench.contract.technique import ModelContext
        from flowers_bench.models.backbones import Backbone
        from flowers_bench.models.weights import Weights
        from flowers_bench.training.finished import TrialFinder

        trial = self.planned.trial
        part, classes, size = self.host.models[trial.model].value, self.data.num_classes, trial.recipe.image_size
        values = part.option_values(self.settings if backbone else trial.options)
        source = Backbone(backbone or trial.backbone, Weights(), classes, size)
        names, finder = self.data.class_names, TrialFinder(self.store, trial.dataset, self.files)
        return part.build(
            ModelContext(
                source,
                classes,
                size,
                values,
                trial.dataset,
                self.store,
                class_names=names,
                finder=finder,
                descriptions=self.data.descriptions,
            )
        )

    def build(self) -> Parts:
        """Build the parts on the CPU, newly initialised from the trial's seed."""
        import torch

        from flowers_bench.training.build import Places, build_parts

        places, data = Places.of(self.planned.run), self.data
        trial, cpu = self.planned.trial, torch.device("cpu")
        return build_parts(self.host, trial, places, data.class_names, cpu, data.descriptions, data.val)[0]

    def rows(self) -> Any:
        """Draw one batch with the loss's sampler, as row numbers of the training split (N,)."""
        import numpy as np

        from flowers_bench.data.samplers import SAMPLERS

        trial = self.planned.trial
        sampler = SAMPLERS[trial.sampler]
        rng = np.random.default_rng(0)
        return next(iter(sampler(self.data.train.labels, trial.recipe.batch_size, trial.options, rng)))

    def batch(self, parts: Parts) -> tuple[Tensor, Tensor]:
        """Make that batch without augmentation: images (N, 3, S, S) as the model takes them, and targets.

        The targets are labels (N,), or shares (N, C) where the loss needs soft targets.
        """
        import torch
        import torch.nn.functional as F

        from flowers_bench.data.pixels import evaluation_transform

        rows, transform = self.rows(), evaluation_transform(self.planned.trial.recipe.image_size)
        images = parts.normalize(torch.stack([transform(self.data.train.images[int(i)]) for i in rows]))
        labels = torch.from_numpy(self.data.train.labels[rows])
        if "soft_targets" in self.host.losses[self.planned.trial.loss].value.needs:
            return images, F.one_hot(labels, self.data.num_classes).float()
        return images, labels

    def augmented(self, parts: Parts, seed: int) -> tuple[Tensor, Tensor]:
        """Make the same batch as training sees it; `seed` seeds torch, and what is drawn by parameters."""
        import torch

        from flowers_bench.data.drawing import ByParameters

        rows, given, size = self.rows(), self.data.train.images, self.planned.trial.recipe.image_size
        torch.manual_seed(seed)
        if parts.parameters is None:
            drawn = torch.stack([parts.image_transform(given[int(i)]) for i in rows])
        else:
            drawn = ByParameters.seeded(given, parts.parameters, size, seed, "augment").draw(rows, epoch=1)
        images = parts.normalize(drawn)
        labels = torch.from_numpy(self.data.train.labels[rows])
        return parts.batch_transform(images, labels) if parts.batch_transform else (images, labels)

    def train(self, parts: Parts, batches: Sequence[tuple[Tensor, Tensor]], lr: float = 3e-3) -> list[float]:
        """Take one training step on each batch, and give the loss of each."""
        return list(self.steps(parts, batches, lr))

    def steps(self, parts: Parts, batches: Iterable[tuple[Tensor, Tensor]], lr: float) -> Iterator[float]:
        """Take one training step on each batch, and give the loss after each: a generator."""
        import contextlib

        from flowers_bench.contract.technique import Recipe
        from flowers_bench.models.layers import train_mode
        from flowers_bench.training.distributed import ALONE
        from flowers_bench.training.optimizer import build_optimizer
        from flowers_bench.training.steps import Images, Trained, TrainingBatch

        if not any(p.requires_grad for p in parts.model.parameters()):
            return
        recipe = Recipe(lr=lr, weight_decay=0.0)
        optimizer = build_optimizer(recipe, parts.model, parts.criterion, parts.step)
        trained = Trained(
            model=parts.model,
            criterion=parts.criterion,
            step=parts.step,
            forward=parts.model,
            second_view=parts.loss_sees_second,
            recipe=recipe,
            optimizer=optimizer,
            average=None,
            ranks=ALONE,
            autocast=contextlib.nullcontext,
            seed=0,
        )
        for images, targets in batches:
            train_mode(parts.model)
            mirrored, more = images.flip(-1), parts.unlabelled
            repeated = [view.repeat(more, 1, 1, 1) for view in (images, mirrored)] if more else [None, None]
            read = Images(images, mirrored, *repeated) if parts.draws_images else Images()
            batch = TrainingBatch(trained, images, targets, len(images), read, (1, 0, 1))
            batch.report(parts.step(batch))
            yield trained.losses.mean()

    def output(self, parts: Parts, images: Tensor) -> Output:
        """Compute what the loss is given for images (N, 3, S, S): with their mirror images as second view, where it needs one."""
        output: Output = parts.model(images)
        if parts.loss_sees_second:
            output.second = parts.model(images.flip(-1))
        return output

    def training(self, folder: Path, stop: bool = False) -> Training:
        """Set up the whole training of the trial, kept in a new folder, on newly built parts; `stop` interrupts it after an
        epoch."""
        from flowers_bench.store.folder import Store
        from flowers_bench.training.loop import Training

        kept = Store(folder).prepare(self.planned.trial, self.planned.run)
        data = self.data
        return Training(
            self.planned.trial,
            self.build(),
            data.train,
            data.val,
            kept,
            stop_requested=lambda: stop,
            unlabelled=data.unlabelled,
        )


@contextlib.contextmanager
def other_generators(seed: int) -> Iterator[None]:
    """Seed the generators of Python and numpy, which no trial restores, and put them back afterwards."""
    import numpy as np

    kept, kept_numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(kept)
        np.random.set_state(kept_numpy)


def require(condition: object, text: str) -> None:
    """Raise `Nonconformance` with the text unless the condition holds."""
    if not condition:
        raise Nonconformance(text)
