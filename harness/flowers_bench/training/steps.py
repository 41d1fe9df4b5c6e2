"""What a step is given: the batch, with the passes, gradients and updates that the host does for it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowers_bench.contract.technique import Recipe
from flowers_bench.models.layers import Output
from flowers_bench.store.identity import derive_seed
from flowers_bench.training.average import Average
from flowers_bench.training.distributed import Ranks
from flowers_bench.util.errors import TrialFailed, UsageError


@dataclass(frozen=True)
class Trained:
    """What all steps of a training have in common.

    Attributes:
        model, criterion, step: what may have parameters that are trained.
        forward: the model, or what follows its stored activations.
        second_view: whether the loss is given the model's output for the second view.
        average: of the weights, where the recipe asks for one, on the main rank.
        autocast: makes the context of forward passes.
        seed: the trial's.
    """

    model: nn.Module
    criterion: Callable[[Output, Tensor], Tensor]
    step: object
    forward: Callable[[Tensor], Output]
    second_view: bool
    recipe: Recipe
    optimizer: torch.optim.Optimizer
    average: Average | None
    ranks: Ranks
    autocast: Callable[[], contextlib.AbstractContextManager[Any]]
    seed: int

    def own_parameters(self) -> list[nn.Parameter]:
        """List the trained parameters that are not the model's: each rank has their whole gradient."""
        models = {id(parameter) for parameter in self.model.parameters()}  # a step may hold the model
        modules = [part for part in (self.criterion, self.step) if isinstance(part, nn.Module)]
        found = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
        return [parameter for key, parameter in found.items() if key not in models]


@dataclass(frozen=True)
class Images:
    """Further images of a batch, whole and normalised; each None where there are none."""

    whole: Tensor | None = None
    second: Tensor | None = None
    unlabelled: Tensor | None = None
    unlabelled_second: Tensor | None = None


class TrainingBatch:
    """A `flowers_bench.Batch`.

    Args:
        trained: what is trained on it.
        inputs: this rank's share of what `trained.forward` takes.
        targets: those of the whole batch.
        size: N, how many images the whole batch has.
        images: those that the step or the loss may read; with whole None, it said that it reads none.
        at: epoch, from 1; step, from 0; steps of the epoch.
    """

    def __init__(
        self, trained: Trained, inputs: Tensor, targets: Tensor, size: int, images: Images, at: tuple[int, int, int]
    ) -> None:
        self._trained, self._inputs, self.targets, self.size = trained, inputs, targets, size
        self._images, self._passes = images, 0
        self._checked: tuple[Tensor, float] | None = None
        self.epoch, self.step, self.steps = at

    @property
    def progress(self) -> float:
        """How much of the training is behind this step."""
        return (self.epoch - 1 + self.step / self.steps) / self._trained.recipe.epochs

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """Everything that is trained now."""
        own = self._trained.own_parameters()
        return [*(p for p in self._trained.model.parameters() if p.requires_grad), *own]

    @property
    def images(self) -> Tensor:
        """The whole batch's images. Raises `UsageError` where the step said that it reads none."""
        if self._images.whole is None:
            raise UsageError(
                "the step reads images, but says uses_images=False: leave that out where it is registered."
            )
        return self._images.whole

    @property
    def second(self) -> Tensor | None:
        """The second view of the images."""
        return self._images.second

    @property
    def unlabelled(self) -> Tensor | None:
        """The images without labels."""
        return self._images.unlabelled

    @property
    def unlabelled_second(self) -> Tensor | None:
        """The second view of the images without labels."""
        return self._images.unlabelled_second

    def output(self, images: Tensor | None = None) -> Output:
        """Compute what the model gives, as `flowers_bench.Batch` says."""
        trained, ranks = self._trained, self._trained.ranks
        if images is not None and self._images.whole is None:
            _ = self.images  # says what is wrong
        count = self.size if images is None else len(images)
        # Whether gradients are summed over the ranks is decided by the batch, for all that it passes through the model.
        divided = ranks.divides(self.size)
        inputs = self._inputs if images is None else images[ranks.share(count)] if divided else images
        number, self._passes = self._passes, self._passes + 1
        seed = derive_seed(trained.seed, "rank", ranks.rank, self.epoch, self.step, *([number] if number else []))
        with trained.autocast():
            if divided and ranks.divides(count):
                output = ranks.forward(trained.forward, inputs, count, seed)
            else:
                output = trained.forward(inputs)
        if divided and not ranks.divides(count):  # every rank has the whole gradient, and they will be summed
            output = output.each(lambda value: value.detach() + (value - value.detach()) / ranks.count)
        return output.widened()

    def loss(self, images: Tensor | None = None, targets: Tensor | None = None) -> Tensor:
        """Compute the trial's loss, as `flowers_bench.Batch` says."""
        output = self.output(images)
        if images is None and self._trained.second_view:
            output.second = self.output(self.second)
        # The loss is computed in float32 and outside of autocast, which on a processor computes a softmax in bfloat16.
        return self._trained.criterion(output, self.targets if targets is None else targets)

    def backward(self, loss: Tensor) -> None:
        """Set the gradients, as `flowers_bench.Batch` says."""
        trained = self._trained
        self.value_of(loss)
        trained.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained.ranks.all_reduce_gradients(self.size, trained.model, trained.own_parameters())

    def value_of(self, loss: Tensor) -> float:
        """Read the scalar, once for each. Raises `TrialFailed` if it is none, or not finite."""
        if self._checked is None or self._checked[0] is not loss:
            if loss.numel() != 1:
                raise TrialFailed(f"the loss has shape {tuple(loss.shape)}: average it to a scalar.")
            self._checked = loss, float(loss.detach())
        value = self._checked[1]
        if not math.isfinite(value):
            raise TrialFailed(
                f"the loss is {value} at epoch {self.epoch}, step {self.step + 1} of {self.steps}. The last good checkpoint is "
                "kept; a lower learning rate usually helps:  --set lr=..."
            )
        return value

    def update(self) -> None:
        """Update the weights, as `flowers_bench.Batch` says."""
        trained = self._trained
        if trained.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, trained.recipe.clip_norm)
        trained.optimizer.step()
        if trained.average is not None:
            trained.average.update()
