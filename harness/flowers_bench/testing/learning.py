"""Checks of training: that it learns, leaves alone what is frozen, and repeats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from flowers_bench.contract.predictor import CLASSIFIER
from flowers_bench.testing.shared import LOOK, require_scalar, some, trainable
from flowers_bench.testing.subject import Nonconformance, Subject, other_generators, require

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from flowers_bench.training.build import Parts

#: pytest leaves this module's functions out of tracebacks: the plugin is to be looked at.
__tracebackhide__ = True


def loss_is_a_finite_scalar(subject: Subject) -> None:
    """Check the loss on an augmented batch, as training sees it: a finite scalar, with a gradient if anything is
    trainable."""
    from flowers_bench.models.layers import train_mode

    parts = subject.build()
    images, targets = subject.augmented(parts, 0)
    train_mode(parts.model)
    loss = parts.criterion(subject.output(parts, images), targets)
    require_scalar(loss)
    require(bool(loss.isfinite()), f"the loss is {loss.item()} at the initial weights: {LOOK}")
    if any(p.requires_grad for p in parts.model.parameters()):
        require(loss.requires_grad, "the loss has no gradient: do not detach, and do not compute it in no_grad().")


def gradients_reach_every_trainable_parameter(subject: Subject) -> None:
    """Check that four steps give every trainable parameter a gradient: what starts at zero may hold back the others for
    one step."""
    parts = subject.build()
    named = trainable(parts.model, parts.criterion) | _trainable_of_step(parts)
    reached: set[str] = set()

    def look(name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        if bool(parameter.grad.count_nonzero()):
            require(bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite: {LOOK}")
            reached.add(name)

    for name, parameter in named.items():  # a step may compute several gradients, of which the last alone would be left
        parameter.register_post_accumulate_grad_hook(partial(look, name))
    subject.train(parts, [subject.batch(parts)] * 4)
    missing = sorted(set(named) - reached)
    require(
        not missing,
        f"no gradient reaches {some(missing)}: use it in forward, or remove it, or freeze it with requires_grad_(False).",
    )


def _trainable_of_step(parts: Parts) -> dict[str, nn.Parameter]:
    from torch import nn

    if not isinstance(parts.step, nn.Module):
        return {}
    models = {id(parameter) for parameter in parts.model.parameters()}  # a step may hold the model
    own = parts.step.named_parameters()
    return {f"step.{name}": p for name, p in own if p.requires_grad and p.numel() and id(p) not in models}


def what_is_frozen_stays_bit_equal(subject: Subject) -> None:
    """Check that training leaves frozen parameters as they are, and the buffers of modules all of whose parameters are
    frozen."""
    import torch

    parts = subject.build()
    before = {name: value.clone() for name, value in parts.model.state_dict().items()}
    frozen = {name for name, p in parts.model.named_parameters() if not p.requires_grad}
    for name, module in parts.model.named_modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            frozen |= {f"{name}.{buffer}".lstrip(".") for buffer, _ in module.named_buffers()}
    subject.train(parts, [subject.batch(parts)] * 3, lr=0.05)
    after = parts.model.state_dict()
    moved = sorted(name for name in frozen & set(before) if not torch.equal(before[name], after[name]))
    require(
        not moved,
        f"frozen, but changed by training: {some(moved)}. Do not override train() or write to them in forward; "
        "flowers_bench.nn.freeze keeps whole modules, statistics included.",
    )


def overfits_one_batch(subject: Subject) -> None:
    """Check that it can learn one batch by heart, judged by its own predictor."""
    import numpy as np

    from flowers_bench.contract.dataset import Split
    from flowers_bench.measure.quality import correct_in_top_k

    rows = subject.rows()
    labels = subject.data.train.labels[rows]
    top1 = 0.0
    losses: list[float] = []
    for lr, steps in ((3e-3, 300), (0.3, 300)):  # a linear head on features that nobody trained needs the larger rate
        parts, losses = subject.build(), []
        evaluator, truth = parts.evaluator, labels
        if evaluator.predictor.name != CLASSIFIER.name:  # fitted on the batch: an episode lacks classes
            classes, truth = np.unique(labels, return_inverse=True)
            context = replace(evaluator.context, class_names=[subject.data.class_names[c] for c in classes])
            evaluator = replace(evaluator, context=context)
        split = Split([subject.data.train.images[int(i)] for i in rows], truth, [f"{i}" for i in rows])
        if "teacher" in subject.host.losses[subject.planned.trial.loss].value.needs:
            _teach(parts.model, labels, subject.data.num_classes)
        for loss in subject.steps(parts, _changing_places(*subject.batch(parts), labels, steps), lr):
            losses.append(loss)
            if len(losses) % 10 == 0:
                logits = evaluator.fit(parts.model, split)(split.images).logits
                top1 = float(correct_in_top_k(logits, truth).mean())
                if top1 == 1.0:
                    return
    if losses:  # none: it has nothing to train
        raise Nonconformance(
            f"after {len(losses)} steps on one batch it predicts {100 * top1:.0f} % of it; the loss went from {losses[0]:.3g} to "
            f"{losses[-1]:.3g}. Something between images and loss does not learn: look for a detach, a saturated or wrongly "
            "scaled output, or dropout that hides everything."
        )


def _changing_places(
    images: Tensor, targets: Tensor, labels: np.ndarray, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the batch `steps` times, with the images of each class in another order each time.

    An episode asks about the last images of a class only, and knows the mean of the others, which could lie anywhere.
    """
    import numpy as np

    rng, order = np.random.default_rng(0), np.arange(len(labels))
    places = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    for _ in range(steps):
        for own in places:
            order[own] = rng.permutation(own)
        yield images[order], targets


def _teach(model: nn.Module, labels: np.ndarray, num_classes: int) -> None:
    """Replace the teacher's logits by the batch's labels.

    The real teacher may be wrong, or say the same of every image: who learns from it alone could not be judged.
    """
    import torch
    import torch.nn.functional as F

    right = 10.0 * F.one_hot(torch.from_numpy(labels), num_classes)
    model.register_forward_hook(lambda module, inputs, output: replace(output, teacher=right))


def repeats_with_its_seed(subject: Subject) -> None:
    """Check that two trainings of one seed agree bit for bit although Python's and NumPy's generators differ."""
    import torch

    states, losses = [], []
    for other in (1, 2):
        with other_generators(other):
            parts = subject.build()
            losses.append(subject.train(parts, [subject.augmented(parts, seed) for seed in range(2)]))
            states.append(parts.model.state_dict())
    different = [name for name, value in states[0].items() if not torch.equal(value, states[1][name])]
    require(
        not different and losses[0] == losses[1],
        f"two trainings with one seed differ ({some(different) or 'in their losses'}): draw random numbers from torch's global "
        "generator only, not from random, numpy or a time.",
    )
