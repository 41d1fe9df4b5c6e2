"""Checks of a model alone: what it gives, keeps and needs."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.testing.shared import FLOAT, LOOK, require_scalar, same_outputs, trainable
from flowers_bench.testing.subject import CONVOLUTIONAL, TRANSFORMER, Nonconformance, Subject, require
from flowers_bench.util.errors import UsageError

if TYPE_CHECKING:
    from flowers_bench.contract.technique import Need

#: pytest leaves this module's functions out of tracebacks: the plugin is to be looked at.
__tracebackhide__ = True


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
                bool(value.isfinite().all()), f"{name} in {mode} has NaN or infinity at the initial weights: {LOOK}"
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
        same_outputs(subject, trained.model, fresh.model),
        "a model with the saved weights gives other outputs: something that it learns is neither a parameter nor a "
        "persistent buffer. Register it (register_buffer).",
    )


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
        same_outputs(subject, parts.model, copied),
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
    require_scalar(loss)
    require(bool(loss.isfinite()), f"the loss of outputs under bfloat16 autocast is {loss.item()}: {FLOAT}")
    if not loss.requires_grad:
        return
    loss.backward()
    for name, parameter in trainable(parts.model, parts.criterion).items():
        if parameter.grad is not None:
            require(
                bool(parameter.grad.isfinite().all()), f"the gradient of {name} under bfloat16 is not finite: {FLOAT}"
            )


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
