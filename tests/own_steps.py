"""A plugin for tests, as a single file: steps, losses, optimisers and schedules of every kind, and a model that unfreezes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flowers_bench import (
    Augmentation,
    AugmentationContext,
    Batch,
    Loss,
    LossContext,
    Model,
    ModelContext,
    Optimizer,
    OptimizerContext,
    Option,
    Recipe,
    Schedule,
    Step,
    StepContext,
    Technique,
    Variant,
    hookimpl,
)

FLOWERS_BENCH_API = 2


def own_usual(batch: Batch) -> Any:
    """What the host's usual step does."""
    loss = batch.loss()
    batch.backward(loss)
    batch.update()
    return loss


def with_images(batch: Batch) -> Any:
    """The same, by its own images."""
    loss = batch.loss(batch.images)
    batch.backward(loss)
    batch.update()
    return loss


def build_sharp(context: StepContext) -> Callable[[Batch], Any]:
    """Two passes and one update: sharpness-aware minimisation (Foret et al. 2021)."""
    import torch

    rho = context.options.number("rho")

    @contextlib.contextmanager
    def moved(parameters: Sequence[Any]) -> Iterator[None]:
        graded = [p for p in parameters if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in graded]).norm() + 1e-12
        before = [p.detach().clone() for p in graded]
        with torch.no_grad():
            for parameter in graded:
                parameter += rho * parameter.grad / norm
        yield
        with torch.no_grad():
            for parameter, value in zip(graded, before, strict=True):
                parameter.copy_(value)

    def sharp(batch: Batch) -> Any:
        loss = batch.loss()
        batch.backward(loss)
        with moved(batch.parameters):
            batch.backward(batch.loss())
        batch.update()
        return loss

    return sharp


def four(batch: Batch) -> Any:
    """Four updates for a batch, each on its images in another order of four tiles (as PMG's)."""
    import torch

    half = batch.images.shape[-1] // 2
    losses = []
    for turn in range(4):
        images = batch.images.roll((turn % 2 * half, turn // 2 * half), (2, 3))
        losses.append(batch.loss(images))
        batch.backward(losses[-1])
        batch.update()
    return torch.stack(losses).detach().sum()


def build_learned(context: StepContext) -> Any:
    """A step that is a module: a slow copy of the model that the logits are drawn to, by a learned temperature."""
    import copy

    import torch
    import torch.nn.functional as F
    from torch import nn

    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.ones(()))
            self.slow = copy.deepcopy(context.model).requires_grad_(False)
            self.fast = context.model
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

        def forward(self, batch: Batch) -> torch.Tensor:
            output = batch.output()
            with torch.no_grad():
                slow = self.slow(batch.images).logits
            pull = (F.log_softmax(output.logits * self.temperature, 1) - slow.log_softmax(1)).square().mean()
            loss = F.cross_entropy(output.logits, batch.targets) + pull
            batch.backward(loss)
            batch.update()
            self.seen += len(batch.images)
            for mine, other in zip(self.slow.parameters(), self.fast.parameters(), strict=True):
                mine.data.lerp_(other.data, 0.1)
            return loss

    return Learned()


def build_both(context: StepContext) -> Callable[[Batch], Any]:
    """Confident predictions on unlabelled images teach their second view."""
    import torch.nn.functional as F

    def both(batch: Batch) -> Any:
        assert batch.unlabelled is not None
        assert batch.unlabelled_second is not None
        assert len(batch.unlabelled) == 2 * len(batch.images)
        assert len(context.class_names) == 4
        sure, guess = batch.output(batch.unlabelled).logits.detach().softmax(1).max(1)
        other = F.cross_entropy(batch.output(batch.unlabelled_second).logits, guess, reduction="none")
        loss = batch.loss() + (other * (sure > 0.3)).mean()
        batch.backward(loss)
        batch.update()
        return loss

    return both


@hookimpl
def register_steps() -> list[Step]:
    return [
        Step("own-usual", "the usual one", build=lambda context: own_usual, uses_images=False),
        Step("with-images", "the usual one, by images", build=lambda context: with_images),
        Step("liar", "reads images and denies it", build=lambda context: with_images, uses_images=False),
        Step("sharp", "SAM", options={"rho": Option(0.05, "radius")}, build=build_sharp, uses_images=False),
        Step("four", "four updates", build=lambda context: four),
        Step("learned", "a module", build=build_learned),
        Step("both", "unlabelled", needs=frozenset({"second_view"}), build=build_both, unlabelled=2),
    ]


def build_twins(context: LossContext) -> Callable[..., Any]:
    """Cross-entropy, and distance between the views' embeddings, scaled by a learned weight."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(context.embedding_dim))
            self.names = len(context.class_names)

        def forward(self, output: Any, target: torch.Tensor) -> torch.Tensor:
            loss = F.cross_entropy(output.logits, target)
            if output.second is None:
                return loss
            assert not torch.equal(output.second.embedding, output.embedding)
            return loss + ((output.embedding - output.second.embedding) * self.weight).square().mean()

    return Twins()


@hookimpl
def register_losses() -> list[Loss]:
    return [
        Loss("twins", "of two views", needs=frozenset({"logits", "hard_targets", "second_view"}), build=build_twins)
    ]


def mirror(context: AugmentationContext) -> Callable[[Any], Any]:
    """Mirror an image or not."""
    import torch

    return lambda image: image.flip(-1) if torch.rand(()) < 0.5 else image


def noise(context: AugmentationContext) -> Callable[[Any], Any]:
    """Add noise to an image."""
    import torch

    return lambda image: (image.float() + torch.randn(image.shape) * 20).clamp(0, 255).to(torch.uint8)


@hookimpl
def register_augmentations() -> list[Augmentation]:
    return [Augmentation("views", "mirrored; noisy", image=mirror, second=noise)]


def build_thawing(context: ModelContext) -> Any:
    """Two layers, of which the first is frozen until the second epoch."""
    import torch
    from torch import nn

    from flowers_bench.nn import Output

    class Thawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 6, 3, 2), nn.Linear(6, context.num_classes)
            self.scale = 1.0
            self.begin_epoch(1, 1)

        def begin_epoch(self, epoch: int, epochs: int) -> None:
            self.first.requires_grad_(epoch > 1)
            self.scale = 1 + epoch / epochs  # which evaluation sees too

        def forward(self, images: torch.Tensor) -> Output:
            embedding = self.first(images).relu().mean((2, 3)) * self.scale
            return Output(self.last(embedding), embedding)

    return Thawing()


@hookimpl
def register_models() -> list[Model]:
    return [Model("thawing", "unfreezes", build=build_thawing)]


def build_heavy_ball(context: OptimizerContext, groups: Sequence[dict[str, Any]]) -> Any:
    """Momentum without Nesterov."""
    import torch

    return torch.optim.SGD(groups, momentum=context.options.number("ball"))


@hookimpl
def register_optimizers() -> list[Optimizer]:
    return [Optimizer("heavy-ball", "momentum", options={"ball": Option(0.5, "momentum")}, build=build_heavy_ball)]


@hookimpl
def register_schedules() -> list[Schedule]:
    return [
        Schedule("linear", "a straight line to zero", lambda progress, recipe: 1 - progress),
        Schedule("hill", "up and down", lambda progress, recipe: 1 - abs(2 * progress - 1), warms_up=True),
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    recipe = Recipe(lr=1e-2, epochs=3, batch_size=16, image_size=16, warmup_epochs=1)
    variants = {
        "plain": Variant("usual", step="usual"),
        "sharp": Variant("SAM", options={"rho": 0.1}, baseline="plain"),
        "flat": Variant("SAM without a radius", options={"rho": 0.0}),
        "four": Variant("four", step="four"),
        "learned": Variant("module", step="learned"),
        "both": Variant("unlabelled", step="both", augmentation="views"),
        "twins": Variant("two views", step="usual", loss="twins", augmentation="views"),
        "thawing": Variant("unfreezes", step="usual", model="thawing"),
    }
    return [
        Technique(
            "own", "for tests", (), "toy-net", "cross-entropy", "standard", recipe, variants, "sharp", step="sharp"
        )
    ]
