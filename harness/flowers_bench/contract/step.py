"""What happens with a batch: what a plugin registers for it, what it is given, and the usual step, which is the host's.

A step says how losses are computed and gradients taken, as often as it likes. Seeds, learning rates, ranks, precision, clipping,
averaging and time stay with the host. Nothing here imports torch: the heavy work happens inside `build`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from flowers_bench.contract.options import Options, ReadsOptions
from flowers_bench.contract.technique import Part
from flowers_bench.util.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowers_bench.models.layers import Output


class Batch(Protocol):
    """One batch of N images while it is trained on. With several ranks everything here is the whole batch on each of them.

    Attributes:
        images: augmented and normalised, float32 (N, 3, S, S), also mixed where the augmentation mixes. A step that reads them,
            here or by `output(images)`, registers with `uses_images=True`.
        targets: class indices int64 (N,), or shares (N, C) where the augmentation mixes.
        second: the same images by the augmentation's `second`, (N, 3, S, S); None where it has none.
        unlabelled: U * N images without labels, (U * N, 3, S, S), with U the step's `unlabelled`; None where that is 0.
        unlabelled_second: the same by the augmentation's `second`; None where there is either none.
        epoch: from 1.
        step: within the epoch, from 0.
        steps: how many the epoch has.
        progress: how much of the training is behind this step, from 0 to below 1.
        parameters: everything that is trained now, of model, loss and step; after `backward` each has `grad`, or None.
    """

    @property
    def images(self) -> Tensor: ...  # noqa: D102
    @property
    def targets(self) -> Tensor: ...  # noqa: D102
    @property
    def second(self) -> Tensor | None: ...  # noqa: D102
    @property
    def unlabelled(self) -> Tensor | None: ...  # noqa: D102
    @property
    def unlabelled_second(self) -> Tensor | None: ...  # noqa: D102
    @property
    def epoch(self) -> int: ...  # noqa: D102
    @property
    def step(self) -> int: ...  # noqa: D102
    @property
    def steps(self) -> int: ...  # noqa: D102
    @property
    def progress(self) -> float: ...  # noqa: D102
    @property
    def parameters(self) -> Sequence[nn.Parameter]: ...  # noqa: D102

    def output(self, images: Tensor | None = None) -> Output:
        """Compute what the model gives for images (M, 3, S, S), any number of them, or for the batch's own if None: under the
        recipe's precision, divided among the ranks, then in float32."""
        ...

    def loss(self, images: Tensor | None = None, targets: Tensor | None = None) -> Tensor:
        """Compute the trial's loss, a scalar in float32, of such an output and the batch's targets, or the given ones."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Set every gradient to that of a scalar, summed over the ranks; what was there before is gone. Raises `TrialFailed`
        where the scalar is not finite: on a GPU at the next step, or after the last one, before anything is written."""
        ...

    def update(self) -> None:
        """Update the weights: clip the gradients, let the optimiser step, add to the average, each as the recipe says."""
        ...


@dataclass(frozen=True)
class StepContext(ReadsOptions):
    """What a step's `build` receives.

    Attributes:
        class_names: C names, index = label.
        embedding_dim: D, the length of the model's embedding.
        image_size: side of the square input, in pixels.
        options: the step's options, every one with a value.
        model: what will be trained, with its initial weights, on its device. A step may copy it (an average of the weights, a
            momentum encoder) and read it; it is run by `Batch.output`, never directly.
    """

    class_names: Sequence[str]
    embedding_dim: int
    image_size: int
    options: Options
    model: nn.Module

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.class_names)


@dataclass(frozen=True)
class Step(Part):
    """What happens with each batch.

    Attributes:
        build: makes the function from a `Batch` to the loss that is reported, a scalar; it calls `backward` and `update` itself. A
            `nn.Module` may have state: it is saved and resumed. Its parameters, if any, are trained as the loss's are.
        unlabelled: how many images without labels a batch has for each one with, or the name of the step's option that says
            how many; the dataset must have some, or `--shots` leave some out.
        uses_images: whether it reads images, and not `Batch.output()` and `Batch.loss()` alone. If not, frozen first layers are
            computed once per image.
    """

    build: Callable[[StepContext], Callable[[Batch], Tensor]] = field(kw_only=True)
    unlabelled: int | str = field(default=0, kw_only=True)
    uses_images: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.unlabelled, str) and self.unlabelled not in self.options:
            raise UsageError(
                f"step {self.name!r}: unlabelled={self.unlabelled!r} is none of its options. Name one, or give a number."
            )

    def unlabelled_for(self, options: Options) -> int:
        """Give how many images without labels a batch has for each one with, where the step's options have these values."""
        return options.integer(self.unlabelled) if isinstance(self.unlabelled, str) else self.unlabelled

    @property
    def draws_images(self) -> bool:
        """Whether a batch must have images, rather than what frozen first layers gave for them."""
        return self.uses_images or bool(self.unlabelled) or "second_view" in self.needs


def take_usual_step(batch: Batch) -> Tensor:
    """Run over the batch once, forward and backward, and update once."""
    loss = batch.loss()
    batch.backward(loss)
    batch.update()
    return loss


#: What nearly every technique does with a batch.
USUAL = Step("usual", "one pass, one update", build=lambda context: take_usual_step, uses_images=False)
