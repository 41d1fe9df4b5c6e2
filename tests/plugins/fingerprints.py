"""What every built-in part computes on a few fixed numbers, so that a change of it is noticed: `python tests/plugins/fingerprints.py`.

A built-in part is known in a trial's id by its `revision` alone. The values in fingerprints.json are compared with a
tolerance, because processors and versions of torch round differently; inputs and weights come from numpy's
`RandomState`, whose numbers are promised never to change. Written by hand is nothing in it but removals: an entry that is
not there is made anew.
"""

from __future__ import annotations

import contextlib
import json
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from flowers_bench import (
    Augmentation,
    AugmentationContext,
    Features,
    FinishedTrial,
    Loss,
    LossContext,
    Model,
    ModelContext,
    Options,
    OptionValue,
    Predictor,
    PredictorContext,
    UsageError,
    ViewsContext,
)
from flowers_bench.backbones import Backbone, Weights
from flowers_bench.contract.host import Host, discover
from flowers_bench.contract.predictor import CLASSIFIER
from flowers_bench.contract.technique import Part
from flowers_bench.data.drawing import ByParameters
from flowers_bench.data.petal_words import describe
from flowers_bench.data.petals import species
from flowers_bench.data.pixels import stored_side
from flowers_bench.nn import Output, train_mode
from flowers_bench.training.finished import TrialFinder

FILE = Path(__file__).with_name("fingerprints.json")
COMMAND = "python tests/plugins/fingerprints.py"
#: Relative difference of values that rounding may make, and of initial weights' sizes, which are drawn by torch.
TOLERANCE, INITIAL = 1e-3, 0.2
CLASSES, PER_CLASS, DIM, SIDE = 3, 4, 8, 32
BACKBONES = ("test_resnet", "test_vit")
DESCRIPTIONS = tuple(describe(species(number)) for number in range(CLASSES))
#: Options that defaults would make too large for an episode of 3 classes with 4 images.
SMALL: Mapping[str, OptionValue] = {"k_shot": 2, "n_query": 2, "n_way": 3, "embedding_dim": 8, "hidden": 16}


@dataclass(frozen=True)
class Fingerprint:
    """What a part computes.

    Attributes:
        revision: the part's.
        values: by case: the backbone, and the option that differs from the defaults.
        initial: root mean square of the initial weights that are not the backbone's own, by case and last name.
    """

    revision: int
    values: Mapping[str, list[float]]
    initial: Mapping[str, list[float]]


def fingerprints(host: Host) -> dict[str, Fingerprint]:
    """Compute the fingerprint of every built-in part, by kind and name."""
    torch.set_num_threads(1)
    found = {}
    for kind, table in (
        ("model", host.models),
        ("loss", host.losses),
        ("augmentation", host.augmentations),
        ("predictor", host.predictors),
    ):
        for name, registered in table.items():
            if host.is_built_in(registered.plugin) and registered.value is not CLASSIFIER:
                found[f"{kind} {name}"] = fingerprint(registered.value)
    return found


def fingerprint(part: Part) -> Fingerprint:
    """Compute a part with its default options, and with each option that has other values at one of them."""
    values: dict[str, list[float]] = {}
    initial: dict[str, list[float]] = {}
    for case, options in _cases(part):
        if isinstance(part, Model):
            for backbone in BACKBONES:
                title = f"{backbone} {case}".strip()
                with contextlib.suppress(UsageError):  # it refuses this backbone
                    values[title], initial[title] = _of_model(part, backbone, options)
        elif isinstance(part, Loss):
            values[case] = _of_loss(part, options)
        elif isinstance(part, Augmentation):
            values[case] = _of_augmentation(part, options)
        else:
            values[case] = _of_predictor(cast(Predictor, part), options)
    return Fingerprint(part.revision, values, {case: found for case, found in initial.items() if found})


def _cases(part: Part) -> Iterator[tuple[str, Options]]:
    default = {name: SMALL.get(name, option.default) for name, option in part.options.items()}
    yield "", Options(default)
    for name, option in part.options.items():
        others = (True, False) if isinstance(option.default, bool) else (*option.choices, *option.search)
        for value in others:
            if value != default[name] and name != "dropout":
                yield f"{name}={value}", Options({**default, name: option.parse(name, value)})


def drawn(key: str, *shape: int) -> Tensor:
    """Draw numbers of a standard normal distribution, float64, the same for ever for one key."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape))


def _of_model(part: Model, name: str, options: Options) -> tuple[list[float], list[float]]:
    torch.manual_seed(0)
    backbone = Backbone(name, Weights(), CLASSES, SIDE)
    plain = {key: value.shape for key, value in backbone.create().state_dict().items()}
    tuned = "text-probe" if "fine_tuned" in options else "classifier"
    with mock.patch.object(FinishedTrial, "find", return_value=_Teacher(Path(tuned), {}, "classifier", 16)):
        trials = {
            "teacher": "0" * 16,
            "trained": "0" * 16,
            "fine_tuned": "0" * 16,
            "ingredients": f"{'0' * 16},{'1' * 16}",
        }
        options = Options({**options, **{name: value for name, value in trials.items() if name in options}})
        finder = TrialFinder(Path(), {})
        model = part.build(
            ModelContext(backbone, CLASSES, SIDE, options, {}, Path(), finder=finder, descriptions=DESCRIPTIONS)
        )
        sizes = _initial_sizes(model, plain)
        _fill(model)
        images, found = drawn("images", 2 * CLASSES, 3, SIDE, SIDE), []
        for training in (False, True):
            train_mode(model) if training else model.eval()
            for module in model.modules():  # whose draws are another library's on another processor
                if "Drop" in type(module).__name__:
                    module.eval()
            torch.manual_seed(0)
            output = model(images)
            found += [_projected("logits", output.logits), _projected("embedding", output.embedding)]
            found += output.embedding[0, :2].tolist()
            if output.teacher is not None:
                found.append(_projected("teacher", output.teacher))
            found += [_projected(key, value) for key, value in output.more.items()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trainable:
        (drawn("a", *output.logits.shape) * output.logits).sum().add(
            (drawn("b", *output.embedding.shape) * output.embedding).sum()
        ).backward()
    found += [_gradients(model), float(sum(parameter.numel() for parameter in trainable))]
    return found, sizes


class _Teacher(FinishedTrial):
    """A trial whose network is not read, but drawn."""

    def model(self, device: torch.device, plugins: object = ()) -> nn.Module:
        host = discover(only_built_in=True)
        part = host.models["classifier"].value
        model = part.build(
            ModelContext(Backbone("test_resnet", Weights(), CLASSES, 16), CLASSES, 16, part.option_values({}))
        )
        _fill(model)
        return model.eval().requires_grad_(False)

    def weights(self) -> dict[str, Tensor]:
        host = discover(only_built_in=True)
        part = host.models[self.folder.name].value
        backbone = Backbone("test_resnet", Weights(), CLASSES, 16)
        model = part.build(
            ModelContext(backbone, CLASSES, 16, part.option_values({}), descriptions=DESCRIPTIONS)
        ).float()
        found = {name: value.clone() for name, value in model.state_dict().items()}
        _fill(model)
        return {name: value.to(found[name].dtype) for name, value in model.state_dict().items()}


def _initial_sizes(model: nn.Module, plain: Mapping[str, torch.Size]) -> list[float]:
    """Measure the root mean square of the parameters that the backbone does not have, by the last part of their names."""
    by_name: dict[str, list[Tensor]] = {}
    for name, value in model.named_parameters():
        if plain.get(name.removeprefix("backbone.")) != value.shape:
            by_name.setdefault(name.rpartition(".")[2], []).append(value.detach().flatten())
    joined = [torch.cat(values) for _, values in sorted(by_name.items())]
    return [float(values.double().square().mean().sqrt()) for values in joined if len(values) >= 100]


def _fill(module: nn.Module) -> None:
    """Make it float64, and give every parameter and every running mean and variance drawn values of a sensible size."""
    module.double()
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            continue
        numbers = drawn(name, *value.shape)
        if value.ndim > 1:
            numbers /= max(1, value[0].numel()) ** 0.5
        elif name.endswith(("running_var", "weight")):
            numbers = 1 + 0.1 * numbers.abs()
        else:
            numbers *= 0.1
        value.copy_(numbers)


def _projected(key: str, value: Tensor) -> float:
    return float((drawn(key, *value.shape) * value.detach().double()).sum())


def _gradients(module: nn.Module) -> float:
    return sum(_projected(name, value.grad) for name, value in module.named_parameters() if value.grad is not None)


def _of_loss(part: Loss, options: Options) -> list[float]:
    """Compute the loss and its gradients on images in order of their class, as episodes have them."""
    torch.manual_seed(0)
    criterion = part.build(LossContext(CLASSES, CLASSES if "class_embedding" in part.needs else DIM, options))
    if isinstance(criterion, nn.Module):
        _fill(criterion)
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    mixed = 0.7 * nn.functional.one_hot(labels, CLASSES) + 0.3 * nn.functional.one_hot(labels.flip(0), CLASSES)
    found = []
    for target in (labels, mixed.double()):
        if ("hard_targets" if target.ndim == 2 else "soft_targets") in part.needs:
            continue
        logits = drawn("logits", len(labels), CLASSES).requires_grad_()
        embedding = drawn(
            "embedding", len(labels), CLASSES if "class_embedding" in part.needs else DIM
        ).requires_grad_()
        torch.manual_seed(0)
        teacher, effect = (drawn(name, len(labels), CLASSES) for name in ("teacher", "effect"))
        loss = criterion(Output(logits, embedding, teacher, more={"effect": effect}), target)
        loss.backward()
        found.append(float(loss.detach()))
        found += [_projected("gradient", value.grad) for value in (logits, embedding) if value.grad is not None]
    if isinstance(criterion, nn.Module):
        found.append(_gradients(criterion))
    return found


def _of_augmentation(part: Augmentation, options: Options) -> list[float]:
    """Average what it makes of two images of few colours, over 16 draws each, by parameters where it states them; and of a batch, over
    4."""
    context = AugmentationContext(SIDE, CLASSES, options)
    transform = part.image(context)
    parameters = part.parameters(context) if part.parameters else None
    torch.manual_seed(0)
    found: list[float] = []
    for shape in ((3, 6, 8), (3, 4, 4)):
        few = np.random.RandomState(sum(shape)).randint(0, 256, shape)
        image = torch.from_numpy(np.kron(few, np.ones((1, 10, 10))).astype(np.uint8))
        if parameters is None:
            views = torch.stack([transform(image) for _ in range(16)]).double()
        else:
            views = (
                ByParameters.seeded([image] * 16, parameters, SIDE, 0, "fingerprint").draw(np.arange(16), 1).double()
            )
        found += [
            float(views.mean()),
            float(views.std()),
            float(views[..., :16, :16].mean()),
            float(views[:, 0].mean()),
        ]
    if part.views is not None:
        found.append(float(part.views(context)))
    if part.batch is not None:
        transform_batch = part.batch(context)
        torch.manual_seed(0)
        for _ in range(4):
            images, targets = transform_batch(drawn("batch", 6, 3, 8, 8).float() * 50, torch.arange(6) % CLASSES)
            found += [_projected("images", images), _projected("targets", targets)]
    return found


def _of_predictor(part: Predictor, options: Options) -> list[float]:
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    embedding = (drawn("embedding", len(labels), DIM) + labels[:, None]).float()
    width = CLASSES if "logits" in part.needs else 0
    output = Output(drawn("logits", len(labels), CLASSES)[:, :width].float(), embedding)
    if part.views is not None:
        return _of_views(part, options)
    score = part.fit(PredictorContext(["a", "b", "c"], options), Features(output, labels))
    others = drawn("queries", 5, DIM).float()
    asked = score(Output(drawn("other logits", 5, CLASSES)[:, :width].float(), others), None)
    rows = torch.tensor([0, 5, 11])
    among = score(Output(output.logits[rows], embedding[rows]), rows)
    return [_projected("asked", asked), _projected("among", among), *asked[0].tolist(), *among[0].tolist()]


def _of_views(part: Predictor, options: Options) -> list[float]:
    """Compute each view of drawn images, and the scores of drawn logits of so many views."""
    assert part.views is not None
    side = stored_side(SIDE) if part.margin else SIDE
    views = part.views(ViewsContext(SIDE, options))(drawn("images", 2, 3, side, side))
    logits = drawn("view logits", 5, len(views), CLASSES).float()
    nothing = Features(Output(torch.empty(0, CLASSES), torch.empty(0, DIM)), torch.empty(0).long())
    score = part.fit(PredictorContext(["a", "b", "c"], options), nothing)
    asked = score(Output(logits, drawn("view queries", 5, len(views), DIM).float()), None)
    return [*(_projected("view", view) for view in views), _projected("asked", asked), *asked[0].tolist()]


def stored() -> dict[str, Fingerprint]:
    """Read the committed file."""
    return {name: Fingerprint(**entry) for name, entry in json.loads(FILE.read_text()).items()}


def moved(before: Fingerprint, now: Fingerprint) -> list[str]:
    """List the cases in which a part gives other values, or starts from weights of another size, than before."""
    cases = [case for case in now.values if not _alike(before.values.get(case), now.values[case], TOLERANCE)]
    cases += [case for case in now.initial if not _alike(before.initial.get(case), now.initial[case], INITIAL)]
    return [case or "default options" for case in dict.fromkeys([*cases, *(before.values.keys() - now.values.keys())])]


def _alike(before: list[float] | None, now: list[float], tolerance: float) -> bool:
    size = max((abs(value) for value in now), default=0.0)
    return (
        before is not None and len(before) == len(now) and np.allclose(before, now, tolerance, tolerance * size / 100)
    )


def differences(before: Mapping[str, Fingerprint], now: Mapping[str, Fingerprint]) -> list[str]:
    """Say which parts compute something else than the committed file says, and what to do."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        if name not in now or name not in before:
            found.append(f"{name} is {'new' if name in now else 'gone'}: {COMMAND}")
        elif before[name].revision != now[name].revision:
            found.append(f"{name} has revision {now[name].revision}, the file {before[name].revision}: {COMMAND}")
        elif cases := moved(before[name], now[name]):
            found.append(
                f"{name} computes other numbers than before ({', '.join(cases)}) and still has revision "
                f"{now[name].revision}, so that trials of before and after would have one id. Raise `revision` where it is "
                f"registered, then: {COMMAND}"
            )
    return found


def write() -> int:
    """Write the file anew; refuse for parts that changed and kept their revision. Returns the exit code."""
    now, before = fingerprints(discover(only_built_in=True)), stored() if FILE.exists() else {}
    wrong = [text for text in differences(before, now) if "would have one id" in text]
    print(*wrong, sep="\n")
    if wrong:
        print("If torch or timm is the reason, and no part: remove these entries from the file, and type this again.")
        return 1
    # What has not moved stays to the digit, so that the change of one part is a change of its lines.
    kept = {
        name: before[name]
        if name in before and before[name].revision == one.revision and not moved(before[name], one)
        else one
        for name, one in now.items()
    }
    FILE.write_text(_text(kept))
    return 0


def _text(found: Mapping[str, Fingerprint]) -> str:
    """Write a case to a line."""
    entries = []
    for name, one in sorted(found.items()):
        parts = [f'  "revision": {one.revision}']
        for field, cases in (("values", one.values), ("initial", one.initial)):
            lines = [
                f"   {json.dumps(case)}: [{', '.join(f'{v:.7g}' for v in numbers)}]" for case, numbers in cases.items()
            ]
            parts.append(f'  "{field}": {{' + ("\n" + ",\n".join(lines) + "\n  }" if lines else "}"))
        entries.append(f" {json.dumps(name)}: {{\n" + ",\n".join(parts) + "\n }")
    return "{\n" + ",\n".join(entries) + "\n}\n"


if __name__ == "__main__":
    sys.exit(write())
