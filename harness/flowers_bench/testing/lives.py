"""Checks of a whole training: interrupted, by epochs, in a process of its own, on two ranks."""

from __future__ import annotations

import contextlib
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.testing.shared import same_outputs, some
from flowers_bench.testing.subject import Subject, require

if TYPE_CHECKING:
    from torch import Tensor

    from flowers_bench.contract.technique import Recipe
    from flowers_bench.executors.local import Outcome
    from flowers_bench.store.folder import TrialFolder
    from flowers_bench.training.build import Parts
    from flowers_bench.training.loop import Training

#: pytest leaves this module's functions out of tracebacks: the plugin is to be looked at.
__tracebackhide__ = True


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
        and same_outputs(subject, every.model, last.model),
        f"after begin_epoch(3, 4) it is another if begin_epoch(1, 4) and (2, 4) came before ({some(differing) or 'weights or what is frozen'}): "
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
        f"{some(counters)} changed while it trained, and {'are' if len(counters) > 1 else 'is'} no part of a checkpoint: make it a "
        "buffer (register_buffer), or set it in begin_epoch(epoch, epochs)."
        if counters
        else "keep what it learns in parameters and buffers of what `build` returns, and draw from torch's global generator only."
    )
    require(
        not different and losses[0] == losses[1],
        f"stopped after an epoch and continued, it ends with other numbers ({some(different) or 'its losses'}): {cause}",
    )


def plain_attributes(parts: Parts) -> dict[str, str]:
    """Write what built parts keep in Python: attributes of modules and objects, and what functions enclose, by name."""
    from torch import nn

    internal = set(vars(nn.Module()))
    found: dict[str, str] = {}
    named = {"model": parts.model, "loss": parts.criterion, "step": parts.step, "image": parts.image_transform}
    named |= {"parameters": parts.parameters, "batch": parts.batch_transform, "second": parts.second_transform}
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
        run = replace(subject.planned.run, command=[], threads=1)
        trial = Store(Path(folder)).prepare(subject.planned.trial, run)
        (outcome,) = run_all([trial], lambda folder, event: None, timeout=600)
        log = trial.log_path.read_text(errors="replace")[-2000:] if outcome.state != "done" else ""
        require(outcome.state == "done", f"the trial {outcome.state}: {_reason(outcome)}\n{log}")
        load_trained(trial, torch.device("cpu"), subject.files, subject.store)


def _reason(outcome: Outcome) -> str:
    """Say why a trial ended, without the place of its log: that is gone, and its text follows."""
    return (outcome.reason or "").partition(" (traceback in ")[0]


#: How far the weights of two ranks may be from those of one process, as a share of how far training moved these; and the step
#: size at which the order of sums, and a ReLU that it turns, stay below that: 0.072 at most, with the four steps of PMG. A rank
#: that takes another's share of the gradient, or all of it, is 0.5 or more away.
APART, SMALL_STEP = 0.1, 1e-3


def two_ranks_agree_with_one(subject: Subject) -> None:
    """Check that a training divided among two processes moves the weights as one process does. What is compared is an epoch of SGD
    without averages; of a model that draws (dropout), only that it ends."""
    import torch
    from safetensors.torch import load_file

    if not subject.planned.trains or 0 < torch.cuda.device_count() < 2:
        return
    recipe = subject.planned.trial.recipe.changed(
        optimizer="sgd", lr=SMALL_STEP, epochs=1, warmup_epochs=0, schedule="constant", clip_norm=0.0, ema_decay=0.0
    )
    # Parameters alone: running statistics move far more, and whatever the gradient.
    before = {n: p.detach().clone() for n, p in subject.build().model.named_parameters() if p.requires_grad}
    with tempfile.TemporaryDirectory() as folder:
        alone, together = (_trained_on(subject, recipe, Path(folder) / str(count), count) for count in (1, 2))
        weights = [load_file(trial.weights()) for trial in (alone, together)]
        losses = [trial.history()[0].train_loss or 0.0 for trial in (alone, together)]
    if _draws(subject):
        return

    def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        return math.sqrt(sum(float((one[name].double() - other[name].double()).square().sum()) for name in before))

    moved, apart = distance(before, weights[0]), distance(*weights)
    require(
        apart <= APART * moved and abs(losses[0] - losses[1]) <= APART * abs(losses[0]),
        f"on two ranks its weights end {apart / max(moved, 1e-12):.2g} of their way from where one process leaves them (losses "
        f"{losses[0]:.4g} and {losses[1]:.4g}). Run the model by batch.output alone, which gives every rank the whole batch and its "
        "own share of the gradient; draw from torch's global generator; sum nothing over ranks yourself.",
    )


def _trained_on(subject: Subject, recipe: Recipe, folder: Path, count: int) -> TrialFolder:
    """Run the trial by that recipe on so many ranks."""
    from flowers_bench.executors.local import run_all
    from flowers_bench.store.folder import Store

    run = replace(subject.planned.run, command=[], devices=count, threads=1)
    trial = Store(folder).prepare(replace(subject.planned.trial, recipe=recipe), run)
    (outcome,) = run_all([trial], lambda folder, event: None, timeout=600)
    log = trial.log_path.read_text(errors="replace")[-2000:] if outcome.state != "done" else ""
    require(
        outcome.state == "done",
        f"on {count} rank{'s' if count > 1 else ''} the trial {outcome.state}: {_reason(outcome)}\n{log}",
    )
    return trial


def _draws(subject: Subject) -> bool:
    """Tell whether what the model gives in training depends on random numbers: two ranks draw others than one process."""
    import torch

    from flowers_bench.models.layers import train_mode

    parts, found = subject.build(), []
    images, _ = subject.batch(parts)
    train_mode(parts.model)
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            output = parts.model(images)
        found.append([output.logits, output.embedding, *output.more.values()])
    return not all(map(torch.equal, *found))
