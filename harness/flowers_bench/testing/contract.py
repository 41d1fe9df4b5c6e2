"""The checks: each takes a subject and raises `Nonconformance` with what to change, or whatever the plugin raises."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.contract.predictor import CLASSIFIER
from flowers_bench.contract.step import USUAL
from flowers_bench.testing.subject import (
    CONVOLUTIONAL,
    TRANSFORMER,
    Nonconformance,
    Subject,
    other_generators,
    require,
)
from flowers_bench.util.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from flowers_bench.contract.step import Batch
    from flowers_bench.contract.technique import Need
    from flowers_bench.models.layers import Output
    from flowers_bench.training.build import Parts
    from flowers_bench.training.loop import Training

_LOOK = "look for a division by zero, a root, norm or logarithm of zero, or weights that nobody initialised."
_FLOAT = "the model should calculate in float32 what needs it (x.float())."


def can_be_planned(subject: Subject) -> None:
    """Check that names, options, needs and recipe fit together."""
    technique, _, variant = subject.label.partition("/")
    value = subject.host.techniques[technique].value
    baseline = value.variants[variant].baseline
    require(
        baseline is None or baseline in value.variants,
        f"its baseline {baseline!r} is no variant of {technique}: the variants are {', '.join(value.variants)}.",
    )
    require(value.default in value.variants, f"the default variant {value.default!r} of {technique} does not exist.")
    require("\n" not in value.summary, "its summary has several lines: `flowers-bench list` shows one.")
    try:
        _ = subject.planned
    except UsageError as error:
        raise Nonconformance(
            f"it cannot be run on a tiny dataset with {subject.backbone or 'a tiny backbone'}: {error} Mend the technique; or, "
            "where it needs another network or an option, give --backbone and --set."
        ) from error


def outputs_have_their_shapes(subject: Subject) -> None:
    """Check that logits are (N, C) and the embedding (N, D), both float32 and finite, and what else the model says it
    provides."""
    import torch

    from flowers_bench.models.layers import Output, train_mode

    trial, model = subject.planned.trial, subject.model()
    provides = subject.host.models[trial.model].value.provides
    images = torch.randn(8, 3, trial.recipe.image_size, trial.recipe.image_size)
    train_mode(model)
    training = model(images)
    model.eval()
    with torch.inference_mode():
        evaluating = model(images)
    for output, mode in ((training, "training"), (evaluating, "evaluation")):
        require(
            isinstance(output, Output),
            f"the model returned {type(output).__name__} in {mode}: return flowers_bench.nn.Output(logits, embedding).",
        )
        n, classes = len(images), subject.data.num_classes if "logits" in provides else 0
        require(
            output.logits.shape == (n, classes),
            f"logits in {mode} are {tuple(output.logits.shape)}, not {(n, classes)}: "
            + (
                "give one score per class, or leave 'logits' out of `provides`."
                if classes
                else "its `provides` lacks 'logits'; add it."
            ),
        )
        require(
            output.embedding.ndim == 2 and len(output.embedding) == n and output.embedding.shape[1] > 0,
            f"the embedding in {mode} is {tuple(output.embedding.shape)}, not ({n}, D): pool it to one vector per image.",
        )
        for name in ("logits", "embedding"):
            value = getattr(output, name)
            require(value.dtype == torch.float32, f"{name} in {mode} is {value.dtype}: return float32.")
            require(
                bool(value.isfinite().all()), f"{name} in {mode} has NaN or infinity at the initial weights: {_LOOK}"
            )
    require(
        "class_embedding" not in provides or evaluating.embedding.shape[1] == subject.data.num_classes,
        f"it provides class_embedding, but its embedding has {evaluating.embedding.shape[1]} dimensions: make it one per class, "
        "or leave 'class_embedding' out of `provides`.",
    )
    require(
        "teacher" not in provides or training.teacher is None or training.teacher.shape == training.logits.shape,
        "its teacher's logits do not have the shape of its own: give one score per class.",
    )


def loss_is_a_finite_scalar(subject: Subject) -> None:
    """Check the loss on an augmented batch, as training sees it: a finite scalar, with a gradient if anything is
    trainable."""
    from flowers_bench.models.layers import train_mode

    parts = subject.build()
    images, targets = subject.augmented(parts, 0)
    train_mode(parts.model)
    loss = parts.criterion(subject.output(parts, images), targets)
    require(loss.ndim == 0, f"the loss has shape {tuple(loss.shape)}: average it to a scalar.")
    require(bool(loss.isfinite()), f"the loss is {loss.item()} at the initial weights: {_LOOK}")
    if any(p.requires_grad for p in parts.model.parameters()):
        require(loss.requires_grad, "the loss has no gradient: do not detach, and do not compute it in no_grad().")


def gradients_reach_every_trainable_parameter(subject: Subject) -> None:
    """Check that four steps give every trainable parameter a gradient: what starts at zero may hold back the others for
    one step."""
    parts = subject.build()
    named = _trainable(parts.model, parts.criterion) | _trainable_of_step(parts)
    reached: set[str] = set()

    def look(name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        if bool(parameter.grad.count_nonzero()):
            require(bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite: {_LOOK}")
            reached.add(name)

    for name, parameter in named.items():  # a step may compute several gradients, of which the last alone would be left
        parameter.register_post_accumulate_grad_hook(partial(look, name))
    subject.train(parts, [subject.batch(parts)] * 4)
    missing = sorted(set(named) - reached)
    require(
        not missing,
        f"no gradient reaches {_some(missing)}: use it in forward, or remove it, or freeze it with requires_grad_(False).",
    )


def _trainable(model: nn.Module, criterion: object) -> dict[str, nn.Parameter]:
    """Give the trainable parameters of model and loss by name, but for those without elements, such as zero prompts."""
    from torch import nn

    named = dict(model.named_parameters())
    if isinstance(criterion, nn.Module):
        named |= {f"loss.{name}": parameter for name, parameter in criterion.named_parameters()}
    return {name: parameter for name, parameter in named.items() if parameter.requires_grad and parameter.numel()}


def _trainable_of_step(parts: Parts) -> dict[str, nn.Parameter]:
    from torch import nn

    if not isinstance(parts.step, nn.Module):
        return {}
    models = {id(parameter) for parameter in parts.model.parameters()}  # a step may hold the model
    own = parts.step.named_parameters()
    return {f"step.{name}": p for name, p in own if p.requires_grad and p.numel() and id(p) not in models}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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
        f"frozen, but changed by training: {_some(moved)}. Do not override train() or write to them in forward; "
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
        f"two trainings with one seed differ ({_some(different) or 'in their losses'}): draw random numbers from torch's global "
        "generator only, not from random, numpy or a time.",
    )


def evaluation_does_not_depend_on_the_batch(subject: Subject) -> None:
    """Check that an image's output is the same whatever images are beside it, and if it is alone."""
    import torch

    parts = subject.build()
    subject.train(parts, [subject.batch(parts)])
    images, _ = subject.batch(parts)
    parts.model.eval()
    with torch.inference_mode():
        together = parts.model(images)
        beside = parts.model(torch.cat([images[:1], images[1:].flip(0) * 0.5]))
        alone = parts.model(images[:1])
    for name in ("logits", "embedding"):
        expected = getattr(together, name)[:1]
        for other in (beside, alone):
            require(
                torch.allclose(expected, getattr(other, name)[:1], rtol=1e-3, atol=1e-4),
                f"the {name} of an image depend on the images beside it: in evaluation use no statistics of the batch.",
            )


def state_dict_goes_round(subject: Subject) -> None:
    """Check that weights saved as safetensors and loaded into a newly built model give the same outputs."""
    from safetensors.torch import load_file

    from flowers_bench.training.loop import save_weights

    trained, fresh = subject.build(), subject.build()
    subject.train(trained, [subject.batch(trained)] * 2)
    with tempfile.TemporaryDirectory() as folder:
        save_weights(trained.model, Path(folder) / "weights.safetensors")
        fresh.model.load_state_dict(load_file(Path(folder) / "weights.safetensors"))
    require(
        _same_outputs(subject, trained.model, fresh.model),
        "a model with the saved weights gives other outputs: something that it learns is neither a parameter nor a "
        "persistent buffer. Register it (register_buffer).",
    )


def _same_outputs(subject: Subject, first: nn.Module, second: nn.Module) -> bool:
    import torch

    images, _ = subject.batch(subject.build())
    with torch.inference_mode():
        a, b = first.eval()(images), second.eval()(images)
    return torch.equal(a.logits, b.logits) and torch.equal(a.embedding, b.embedding)


def can_be_copied(subject: Subject) -> None:
    """Check that the model can be copied, as the moving average of the weights (`ema_decay`) does."""
    parts = subject.build()
    try:
        copied = copy.deepcopy(parts.model)
    except Exception as error:
        raise Nonconformance(
            f"copy.deepcopy of the model raised {type(error).__name__}: {error}. Keep open files, generators, locks and "
            "tensors with a gradient history out of the module."
        ) from error
    require(
        _same_outputs(subject, parts.model, copied),
        "a copy of the model gives other outputs: it must not refer to modules or tensors of the original, as a closure does.",
    )


def runs_under_autocast(subject: Subject) -> None:
    """Check that loss and gradients are finite in bfloat16, as `--set precision=bfloat16` trains."""
    import torch

    from flowers_bench.models.layers import train_mode

    parts = subject.build()
    images, targets = subject.augmented(parts, 0)
    train_mode(parts.model)
    with torch.autocast("cpu", torch.bfloat16):
        output = subject.output(parts, images)
    loss = parts.criterion(output.widened(), targets)
    require(bool(loss.isfinite()), f"the loss of outputs under bfloat16 autocast is {loss.item()}: {_FLOAT}")
    if not loss.requires_grad:
        return
    loss.backward()
    for name, parameter in _trainable(parts.model, parts.criterion).items():
        if parameter.grad is not None:
            require(
                bool(parameter.grad.isfinite().all()), f"the gradient of {name} under bfloat16 is not finite: {_FLOAT}"
            )


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
        value = criterion(output, target).item()
    except Exception as error:
        raise Nonconformance(f"loss {name!r}: {meaning} ({type(error).__name__}: {error}).") from error
    require(value == value, f"loss {name!r}: {meaning}: logits, embedding or teacher. Add it to `needs`.")


def model_says_what_it_needs(subject: Subject) -> None:
    """Check that, of the two tiny backbones, the model takes those that its `needs` allow, and refuses others by
    `UsageError`."""
    model = subject.host.models[subject.planned.trial.model].value
    lacking: dict[str, set[Need]] = {CONVOLUTIONAL: {"tokens"}, TRANSFORMER: {"conv3x3", "stages"}}
    refused = {backbone: _refuses(subject, backbone) for backbone in lacking}
    if all(refused.values()):
        return  # it needs more than either has: --backbone names what it was checked with
    for backbone, reason in refused.items():
        named = model.needs & lacking[backbone]
        require(
            not reason or bool(named),
            f"model {model.name!r} refuses the backbone {backbone} ({reason}), which its `needs` do not foretell: add "
            f"{' or '.join(repr(need) for need in sorted(lacking[backbone]))}.",
        )
        require(
            bool(reason) or not named - {"stages"},  # some transformers have stages, too
            f"model {model.name!r} says that it needs {', '.join(sorted(named))}, but takes the backbone {backbone}, which has "
            "none: raise flowers_bench.UsageError there, or remove the need.",
        )


def _refuses(subject: Subject, backbone: str) -> str:
    """Say why the model cannot be built on that backbone; empty text if it can."""
    import torch

    name = subject.planned.trial.model
    try:
        with torch.device("meta"):
            subject.model(backbone)
    except UsageError as error:
        return str(error)
    except Exception as error:
        raise Nonconformance(
            f"model {name!r} on backbone {backbone} raised {type(error).__name__}: {error}. For a backbone that does not "
            "fit, raise flowers_bench.UsageError with what is missing and which backbones have it."
        ) from error
    return ""


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


def predictor_keeps_its_word(subject: Subject) -> None:
    """Check that the predictor's scores are float32 (Q, C) and finite, the same whatever images are beside one, also for
    training images, that it writes to nothing that it is given, and that they can be exported if it says so."""
    import torch

    parts = subject.build()
    evaluator, predictor = parts.evaluator, parts.evaluator.predictor
    if predictor.name == CLASSIFIER.name:
        return
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


def _require_scores(subject: Subject, scores: Tensor, images: int, whose: str) -> None:
    import torch

    expected = (images, subject.data.num_classes)
    require(
        scores.shape == expected,
        f"{whose} gave scores {tuple(scores.shape)}, not {expected}: give one for each image and class.",
    )
    require(scores.dtype == torch.float32, f"{whose} gave {scores.dtype} scores: return float32.")
    require(bool(scores.isfinite().all()), f"{whose} gave scores that are NaN or infinite: {_LOOK}")


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


def begin_epoch_depends_on_its_arguments_alone(subject: Subject) -> None:
    """Check that a part which is told of epoch 3 is the same whether it was told of those before or not."""
    import torch

    from flowers_bench.training.epochs import begin_epoch, has_begin_epoch

    every, last = subject.build(), subject.build()
    if not any(map(has_begin_epoch, every.changing())):
        return
    for epoch in (1, 2, 3):
        begin_epoch(every.changing(), epoch, 4, 0)
    begin_epoch(last.changing(), 3, 4, 0)
    differing = sorted(
        name for name, value in plain_attributes(every).items() if plain_attributes(last).get(name) != value
    )
    frozen = [[p.requires_grad for p in parts.model.parameters()] for parts in (every, last)]
    states = [list(parts.model.state_dict().values()) for parts in (every, last)]
    require(
        not differing
        and frozen[0] == frozen[1]
        and all(map(torch.equal, *states))
        and _same_outputs(subject, every.model, last.model),
        f"after begin_epoch(3, 4) it is another if begin_epoch(1, 4) and (2, 4) came before ({_some(differing) or 'weights or what is frozen'}): "
        "a trial that was killed continues with the epoch that it was in. Set everything from the two arguments.",
    )


def resumes_to_the_same_bits(subject: Subject) -> None:
    """Check that a training that was stopped after its first epoch, and continued by newly built parts, ends as one that was
    not."""
    import torch
    from torch import nn

    from flowers_bench.training.process import Interrupted

    def state(training: Training) -> dict[str, Tensor]:
        named = {"model": training.parts.model, "loss": training.parts.criterion, "step": training.parts.step}
        modules = {name: part for name, part in named.items() if isinstance(part, nn.Module)}
        return {f"{name}.{key}": value for name, part in modules.items() for key, value in part.state_dict().items()}

    with tempfile.TemporaryDirectory() as folder:
        whole = subject.training(Path(folder) / "whole")
        before = plain_attributes(whole.parts)
        whole.run(lambda record: None)
        after = plain_attributes(whole.parts)
        first = subject.training(Path(folder) / "halves", stop=True)
        with contextlib.suppress(Interrupted):
            first.run(lambda record: None)
        second = subject.training(Path(folder) / "halves")
        second.run(lambda record: None)
    expected, found = state(whole), state(second)
    different = sorted(name for name, value in expected.items() if not torch.equal(value, found[name]))
    losses = [[record.train_loss for record in training.history] for training in (whole, second)]
    counters = sorted(name for name, value in after.items() if before.get(name) != value)
    cause = (
        f"{_some(counters)} changed while it trained, and {'are' if len(counters) > 1 else 'is'} no part of a checkpoint: make it a "
        "buffer (register_buffer), or set it in begin_epoch(epoch, epochs)."
        if counters
        else "keep what it learns in parameters and buffers of what `build` returns, and draw from torch's global generator only."
    )
    require(
        not different and losses[0] == losses[1],
        f"stopped after an epoch and continued, it ends with other numbers ({_some(different) or 'its losses'}): {cause}",
    )


def plain_attributes(parts: Parts) -> dict[str, str]:
    """Write what built parts keep in Python: attributes of modules and objects, and what functions enclose, by name."""
    from torch import nn

    internal = set(vars(nn.Module()))
    found: dict[str, str] = {}
    named = {"model": parts.model, "loss": parts.criterion, "step": parts.step, "image": parts.image_transform}
    named |= {"batch": parts.batch_transform, "second": parts.second_transform}
    for name, part in named.items():
        modules = part.named_modules() if isinstance(part, nn.Module) else [("", part)]
        for path, owner in modules:
            values = dict(getattr(owner, "__dict__", {}))
            code, cells = getattr(owner, "__code__", None), getattr(owner, "__closure__", None) or ()
            values |= {n: c.cell_contents for n, c in zip(code.co_freevars, cells, strict=True)} if code else {}
            for key, value in values.items():
                if _is_plain(value) and key not in internal:
                    found[".".join(filter(None, (name, path, key)))] = repr(value)
    return found


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple, set)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return isinstance(value, (bool, int, float, str))


def runs_in_a_process_of_its_own(subject: Subject) -> None:
    """Check a whole trial as the executor runs it, from plan to result, and that its stored weights load again."""
    import torch

    from flowers_bench.executors.local import run_all
    from flowers_bench.store.folder import Store
    from flowers_bench.training.trained import load_trained

    with tempfile.TemporaryDirectory() as folder:
        trial = Store(Path(folder)).prepare(subject.planned.trial, replace(subject.planned.run, command=[]))
        (outcome,) = run_all([trial], lambda folder, event: None, timeout=600)
        log = trial.log_path.read_text(errors="replace")[-2000:] if outcome.state != "done" else ""
        require(outcome.state == "done", f"the trial {outcome.state}: {outcome.reason}\n{log}")
        load_trained(trial, torch.device("cpu"), subject.files, subject.store)


CHECKS: Sequence[Callable[[Subject], None]] = (
    can_be_planned,
    outputs_have_their_shapes,
    loss_is_a_finite_scalar,
    gradients_reach_every_trainable_parameter,
    what_is_frozen_stays_bit_equal,
    overfits_one_batch,
    repeats_with_its_seed,
    evaluation_does_not_depend_on_the_batch,
    state_dict_goes_round,
    can_be_copied,
    runs_under_autocast,
    loss_says_what_it_needs,
    model_says_what_it_needs,
    augmentation_keeps_its_word,
    predictor_keeps_its_word,
    step_keeps_its_word,
    begin_epoch_depends_on_its_arguments_alone,
    resumes_to_the_same_bits,
    runs_in_a_process_of_its_own,
)
