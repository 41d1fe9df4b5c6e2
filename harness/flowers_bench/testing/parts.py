"""Checks of losses, augmentations, predictors and steps: that they are what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowers_bench.contract.predictor import CLASSIFIER
from flowers_bench.contract.step import USUAL
from flowers_bench.testing.shared import LOOK, require_scalar
from flowers_bench.testing.subject import Nonconformance, Subject, require

if TYPE_CHECKING:
    from torch import Tensor

    from flowers_bench.contract.drawing import DrawsParameters
    from flowers_bench.contract.step import Batch
    from flowers_bench.models.layers import Output
    from flowers_bench.training.build import Parts

#: pytest leaves this module's functions out of tracebacks: the plugin is to be looked at.
__tracebackhide__ = True


def loss_says_what_it_needs(subject: Subject) -> None:
    """Check that the loss reads nothing of the output that its `needs` leave out, and takes the targets that they
    allow.

    A loss that takes both kinds of targets has the same value for labels (N,) and for one-hot shares (N, C).
    """
    import torch
    import torch.nn.functional as F

    from flowers_bench.models.layers import Output, train_mode

    loss = subject.host.losses[subject.planned.trial.loss].value
    parts = subject.build()
    images, targets = subject.batch(parts)
    train_mode(parts.model)
    with torch.no_grad():
        full = subject.output(parts, images)
    # What it does not say that it reads is NaN, or missing.
    readable = Output(
        full.logits if loss.needs & {"logits", "cosines"} else full.logits * torch.nan,
        full.embedding if loss.needs & {"embedding", "class_embedding"} else full.embedding * torch.nan,
        full.teacher if "teacher" in loss.needs else None,
        full.more,
        full.second,
    )
    _require_finite(parts.criterion, readable, targets, loss.name, "it reads something that its `needs` do not name")
    if not loss.needs & {"hard_targets", "soft_targets"}:
        soft = F.one_hot(targets, subject.data.num_classes) * 0.8 + 0.2 / subject.data.num_classes
        _require_finite(parts.criterion, full, soft, loss.name, "it fails on soft targets (N, C): add 'hard_targets'")
        certain = F.one_hot(targets, subject.data.num_classes).float()
        whole, shares = (_seeded(parts.criterion, full, target) for target in (targets, certain))
        require(
            torch.allclose(whole, shares, rtol=1e-4, atol=1e-5),
            f"loss {loss.name!r} is {whole.item():.6g} with labels (N,) and {shares.item():.6g} with the same labels as shares "
            "(N, C), each 1 for its class: they mean the same. Mend one, or add 'hard_targets' to `needs`.",
        )


def _seeded(criterion: Callable[[Output, Tensor], Tensor], output: Output, target: Tensor) -> Tensor:
    import torch

    torch.manual_seed(0)
    return criterion(output, target)


def _require_finite(
    criterion: Callable[[Output, Tensor], Tensor], output: Output, target: Tensor, name: str, meaning: str
) -> None:
    try:
        loss = criterion(output, target)
    except Exception as error:
        raise Nonconformance(f"loss {name!r}: {meaning} ({type(error).__name__}: {error}).") from error
    require_scalar(loss)
    value = loss.item()
    require(value == value, f"loss {name!r}: {meaning}: logits, embedding or teacher. Add it to `needs`.")


def augmentation_keeps_its_word(subject: Subject) -> None:
    """Check that uint8 images of any size become (3, S, S), that the input is not changed, and that targets are of the
    declared kind."""
    import torch

    parts = subject.build()
    size = subject.planned.trial.recipe.image_size
    augmentation = subject.host.augmentations[subject.planned.trial.augmentation].value
    for height, width in ((size, size), (size // 2, size // 2 + 5), (3 * size, 2 * size)):
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        before = image.clone()
        found = parts.image_transform(image)
        require(
            found.dtype == torch.uint8 and found.shape == (3, size, size),
            f"augmentation {augmentation.name!r} made {found.dtype} {tuple(found.shape)} of an image {(3, height, width)}: "
            f"return uint8 (3, {size}, {size}).",
        )
        require(torch.equal(image, before), f"augmentation {augmentation.name!r} writes to the image that it is given.")
    if parts.parameters is not None:
        _parameters_keep_their_word(augmentation.name, parts.parameters, size)
    images, targets = subject.augmented(parts, 0)
    n, classes = len(images), subject.data.num_classes
    require(
        images.shape == (n, 3, size, size) and images.is_floating_point(),
        f"`batch` of augmentation {augmentation.name!r} returned images {images.dtype} {tuple(images.shape)}: return them as float "
        f"({n}, 3, {size}, {size}).",
    )
    if "soft_targets" in augmentation.provides and targets.ndim == 2:
        require(
            targets.shape == (n, classes) and torch.allclose(targets.float().sum(1), torch.ones(n), atol=1e-4),
            f"augmentation {augmentation.name!r} provides soft targets, but they are {tuple(targets.shape)}, or do not sum to 1: "
            f"return {(n, classes)}, the shares of each image's classes.",
        )
    else:
        require(
            targets.shape == (n,) and targets.dtype == torch.int64,
            f"augmentation {augmentation.name!r} returned targets {targets.dtype} {tuple(targets.shape)}: return the labels "
            "(N,), or say that it provides 'soft_targets'.",
        )


def _parameters_keep_their_word(name: str, parameters: DrawsParameters, size: int) -> None:
    """Check that parameters can be drawn by, and that those of an image do not depend on its neighbours."""
    import numpy as np
    import torch

    from flowers_bench.data.drawing import parameters_of
    from flowers_bench.ops import draw

    given = [
        torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        for height, width in ((size, size), (1, 9), (40, 3))
    ]
    numbers = np.random.default_rng(0).random((len(given), parameters.numbers))
    try:
        together = draw(given, parameters_of(parameters, given, numbers), size)
        alone = [draw([g], parameters_of(parameters, [g], numbers[i : i + 1]), size)[0] for i, g in enumerate(given)]
    except (IndexError, ValueError) as error:
        raise Nonconformance(f"`parameters` of augmentation {name!r}: {error}.") from error
    require(
        torch.equal(together, torch.stack(alone)),
        f"`parameters` of augmentation {name!r} make others for an image in a batch than for it alone: let each row depend on its own "
        "size and numbers.",
    )


def predictor_keeps_its_word(subject: Subject) -> None:
    """Check that the predictor's scores are float32 (Q, C) and finite, the same whatever images are beside one, also for
    training images, that it writes to nothing that it is given, and that they can be exported if it says so."""
    import torch

    parts = subject.build()
    evaluator, predictor = parts.evaluator, parts.evaluator.predictor
    if predictor.name == CLASSIFIER.name:
        return
    if evaluator.views is not None:
        _require_views(subject, parts, predictor.name)
    features = evaluator.features(parts.model, subject.data.train)
    before, kept = features.output.each(torch.clone), features.labels.clone()
    queries = evaluator.forward(parts.model, subject.data.test.images)
    score = predictor.fit(evaluator.context, features)
    rows = torch.arange(len(kept)).flip(0)
    for given, at, kind in ((queries, None, "test"), (before.each(lambda value: value[rows]), rows, "training")):
        asked = given.each(torch.clone)
        _require_scores(
            subject, score(asked, at), len(given.embedding), f"predictor {predictor.name!r} on {kind} images"
        )
        require(
            torch.equal(asked.embedding, given.embedding) and torch.equal(asked.logits, given.logits),
            f"predictor {predictor.name!r} writes to the output that it is asked about: work on a copy.",
        )
        _require_independence(score, given, at, f"predictor {predictor.name!r} on {kind} images")
    require(
        torch.equal(features.output.embedding, before.embedding) and torch.equal(features.labels, kept),
        f"predictor {predictor.name!r} writes to the features that it is fitted on: work on a copy.",
    )
    if predictor.exportable:
        _require_exportable(score, queries, predictor.name)


def _require_views(subject: Subject, parts: Parts, name: str) -> None:
    """Check that each view is of every image, in the model's size, that images are left as they are, and none takes part in
    another's views."""
    import torch

    evaluator, size = parts.evaluator, parts.evaluator.image_size
    assert evaluator.views is not None
    images = next(iter(evaluator.batches(subject.data.test.images)))[:3]
    before = images.clone()
    views = evaluator.views(images)
    require(
        len(views) > 0 and all(view.shape == (len(images), 3, size, size) for view in views),
        f"predictor {name!r} made views {[tuple(view.shape) for view in views]} of images {tuple(images.shape)}: return "
        f"tensors of shape {(len(images), 3, size, size)}.",
    )
    require(torch.equal(images, before), f"predictor {name!r} writes to the images that it makes views of.")
    alone = evaluator.views(images[1:2])
    require(
        len(alone) == len(views) and all(torch.equal(one, view[1:2]) for one, view in zip(alone, views, strict=True)),
        f"predictor {name!r}: the views of an image depend on the images beside it, or on chance. Take them image by image.",
    )


def _require_scores(subject: Subject, scores: Tensor, images: int, whose: str) -> None:
    import torch

    expected = (images, subject.data.num_classes)
    require(
        scores.shape == expected,
        f"{whose} gave scores {tuple(scores.shape)}, not {expected}: give one for each image and class.",
    )
    require(scores.dtype == torch.float32, f"{whose} gave {scores.dtype} scores: return float32.")
    require(bool(scores.isfinite().all()), f"{whose} gave scores that are NaN or infinite: {LOOK}")


def _require_independence(
    score: Callable[[Output, Tensor | None], Tensor], given: Output, rows: Tensor | None, whose: str
) -> None:
    import torch

    together = score(given, rows)
    for chosen in (torch.arange(len(together)).flip(0), torch.arange(1)):
        part = score(given.each(lambda value, chosen=chosen: value[chosen]), None if rows is None else rows[chosen])  # type: ignore[misc]
        require(
            torch.allclose(part, together[chosen], rtol=1e-3, atol=1e-4),
            f"{whose}: the scores of an image depend on the images beside it, or on their order. Take them row by row.",
        )


def _require_exportable(score: Callable[[Output, Tensor | None], Tensor], queries: Output, name: str) -> None:
    import torch
    from torch import nn

    from flowers_bench.models.layers import Output

    class Scores(nn.Module):
        def forward(self, logits: Tensor, embedding: Tensor) -> Tensor:
            return score(Output(logits, embedding), None)

    batch = torch.export.Dim("batch")
    few, all_ = ((value[:n].clone() for value in (queries.logits, queries.embedding)) for n in (2, None))
    try:
        with torch.no_grad():
            program = torch.export.export(Scores(), tuple(few), dynamic_shapes=({0: batch}, {0: batch})).module()
            found = program(*all_)
    except Exception as error:
        raise Nonconformance(
            f"predictor {name!r} cannot be exported ({type(error).__name__}: {str(error).strip().splitlines()[0]:.200}): compute "
            "with torch, without Python's `if` on values; or say exportable=False."
        ) from error
    require(
        torch.allclose(found, score(queries, None), rtol=1e-3, atol=1e-4),
        f"predictor {name!r} gives other scores once exported: keep what it computes in tensors.",
    )


def step_keeps_its_word(subject: Subject) -> None:
    """Check that the step gives a scalar, updates the weights, and reads the images that it asks for."""
    import torch

    parts = subject.build()
    name, step, seen = subject.planned.trial.step, parts.step, _Seen()
    if name == USUAL.name or not any(p.requires_grad for p in parts.model.parameters()):
        return

    def watched(batch: Batch) -> Tensor:
        loss = step(seen.watching(batch))
        require(
            isinstance(loss, torch.Tensor) and loss.ndim == 0,
            f"step {name!r} returned {type(loss).__name__}: return the loss, a scalar tensor.",
        )
        return loss

    before = [parameter.detach().clone() for parameter in parts.model.parameters()]
    parts.step = watched
    subject.train(parts, [subject.batch(parts)])
    require(
        "update" in seen.read and "backward" in seen.read,
        f"step {name!r} does not call batch.backward(loss) and batch.update(): nothing is trained.",
    )
    after = list(parts.model.parameters())
    moved = any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    require(moved, f"step {name!r} leaves every weight as it was: put back what it moves before batch.update().")
    require(
        not parts.unlabelled or "unlabelled" in seen.read,
        f"step {name!r} asks for images without labels and does not read batch.unlabelled: leave `unlabelled` out.",
    )


class _Seen:
    """Notes what a step reads of its batch."""

    def __init__(self) -> None:
        self.read: set[str] = set()

    def watching(self, batch: Batch) -> Batch:
        read = self.read

        class Watched:
            def __getattr__(self, name: str) -> object:
                read.add(name)
                return getattr(batch, name)

        return Watched()  # type: ignore[return-value]
