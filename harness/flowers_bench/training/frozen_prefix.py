"""Frozen first layers are computed once per image: their activations are stored, and training and evaluation start there.

The result is the same to the bit, and that is not assumed: the first batch of each size is also computed from its images,
in training and in evaluation, and a stored row takes part in batches of that size only if the bits agree (a
convolution may sum in another order for a batch of eight than for one of sixteen). Where anything speaks against it
(random augmentation, mixed batches, an active dropout, a batch norm that learns, a network that is no chain), the
images go through the whole network as usual. What was used stands in the result: `cost.prefix_cache`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowers_bench.contract.dataset import Images
from flowers_bench.data.activations import stored_rows
from flowers_bench.data.pixels import Augmented, Normalizer
from flowers_bench.measure.hardware import environment
from flowers_bench.models.layers import train_mode
from flowers_bench.training.precision import forward_pass

#: Images per batch when activations are computed.
BATCH = 64
_POOLED = "pooled features"


class _Reached(Exception):
    """The last module of the prefix was run, and gave these activations."""

    def __init__(self, activations: Tensor) -> None:
        super().__init__()
        self.activations = activations


@dataclass(frozen=True)
class Cut:
    """Where a model is divided.

    Attributes:
        modules: the backbone's modules before the cut, in order of computation; empty: all but its classifier.
    """

    modules: tuple[str, ...]

    @property
    def name(self) -> str:
        """The last module before the cut."""
        return self.modules[-1] if self.modules else _POOLED

    def before(self, model: Any, images: Tensor) -> Tensor:
        """Compute the activations (N, ...) of images (N, 3, S, S)."""
        if not self.modules:
            pooled: Tensor = model.backbone.forward_head(model.backbone.forward_features(images), pre_logits=True)
            return pooled

        def stop(module: nn.Module, inputs: object, output: Tensor) -> None:
            raise _Reached(output)

        hook = model.backbone.get_submodule(self.modules[-1]).register_forward_hook(stop)
        try:
            model(images)
        except _Reached as reached:
            return reached.activations
        finally:
            hook.remove()
        raise ValueError(f"{self.name} is not run")

    def after(self, model: nn.Module) -> nn.Module:
        """Build the module from activations to `Output`. It shares the model's parameters and buffers, but not its
        modules' modes."""
        if not self.modules:
            return _Head(model)
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        tail = copy.deepcopy(model, shared)
        backbone: Any = tail.backbone
        for name in self.modules:
            backbone.set_submodule(name, nn.Identity())
        if hasattr(backbone, "_pos_embed"):  # a vision transformer adds it between its first modules
            backbone._pos_embed = lambda tokens: tokens
        return tail

    def state(self, model: Any) -> Iterator[tuple[str, Tensor]]:
        """List every tensor that the activations depend on, by name."""
        head = {id(tensor) for tensor in model.backbone.get_classifier().state_dict(keep_vars=True).values()}
        for name, tensor in model.backbone.state_dict(keep_vars=True).items():
            inside = any(name.startswith(f"{module}.") for module in self.modules) or "." not in name
            if inside if self.modules else id(tensor) not in head:
                yield name, tensor


class _Head(nn.Module):
    """What follows the pooled features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> Any:
        """Compute the `Output` of pooled features (N, F)."""
        return self.model.classify(features)  # type: ignore[operator]


def find_cut(model: Any, image: Tensor) -> Cut | str:
    """Find the latest cut behind frozen, deterministic layers, or say why there is none.

    Args:
        model: of any kind; its mode is restored.
        image: one, (1, 3, S, S), as the model takes them.
    """
    # The class itself must say so: one that inherits it may look at the images elsewhere, too.
    if not vars(type(model)).get("only_backbone_sees_images", False):
        return f"{type(model).__name__} is not known to use the images in its backbone only"
    modes = {module: module.training for module in model.modules()}
    train_mode(model)
    active = {module for module in model.modules() if module.training and _changes_with_mode(module)}
    try:
        for cut in _candidates(model.backbone):
            inside = _modules_before(model.backbone, cut)
            if active.isdisjoint(inside) and _divides(cut, model, image):
                return cut
    finally:
        for module, mode in modes.items():
            module.training = mode
    return "no frozen first layers that can be computed apart"


def _candidates(backbone: nn.Module) -> Iterator[Cut]:
    """List the cuts that may do, the latest first."""
    classifier = backbone.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Module):
        return
    head = {id(p) for p in classifier.parameters()}
    if not any(p.requires_grad and id(p) not in head for p in backbone.parameters()):
        yield Cut(())
    if any(p.requires_grad for p in backbone.parameters(recurse=False)):
        return
    modules = list(_leading_frozen(backbone, classifier))
    while modules and next(backbone.get_submodule(modules[-1]).parameters(), None) is None:
        modules.pop()
    if modules:
        yield Cut(tuple(modules))


def _leading_frozen(module: nn.Module, classifier: nn.Module, path: str = "") -> Iterator[str]:
    """List the names of the modules before the first that has something to train, in order of registration."""
    for name, child in module.named_children():
        if child is classifier:
            return
        if any(p.requires_grad for p in child.parameters()) or classifier in child.modules():
            if isinstance(child, nn.Sequential):
                yield from _leading_frozen(child, classifier, f"{path}{name}.")
            return
        yield f"{path}{name}"


def _modules_before(backbone: nn.Module, cut: Cut) -> set[nn.Module]:
    if not cut.modules:
        return set(backbone.modules()) - set(backbone.get_classifier().modules())  # type: ignore[operator]
    return {module for name in cut.modules for module in backbone.get_submodule(name).modules()}


def _changes_with_mode(module: nn.Module) -> bool:
    """Tell whether a module may compute something else in training mode, because it keeps statistics or has dropout."""
    drops = float(getattr(module, "p", 0) or getattr(module, "drop_prob", 0) or 0) if "drop" in _kind(module) else 0
    return drops > 0 or next(module.buffers(recurse=False), None) is not None


def _kind(module: nn.Module) -> str:
    return type(module).__name__.lower()


def _divides(cut: Cut, model: nn.Module, image: Tensor) -> bool:
    """Tell whether the two halves, one after the other, compute what the model does, also after its trained parameters
    have changed."""
    model.eval()
    try:
        with torch.random.fork_rng():
            with torch.inference_mode():
                kept, tail = cut.before(model, image), cut.after(model).eval()
            with _trained_ones_moved(model), torch.inference_mode():
                expected, found = model(image), tail(kept)
            pairs = (expected.logits, found.logits), (expected.embedding, found.embedding)
            return all(torch.equal(one, other) and bool(one.isfinite().all()) for one, other in pairs)
    except Exception:  # a network that is no chain of its modules fails in its own way
        return False


@contextlib.contextmanager
def _trained_ones_moved(model: nn.Module) -> Iterator[None]:
    """Give every trained parameter other values in the block, of about the same size where it is not zero."""
    before = [(parameter, parameter.detach().clone()) for parameter in model.parameters() if parameter.requires_grad]
    try:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(torch.where(value == 0, 0.125, 1.25 * value))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)


@dataclass
class PrefixUse:
    """What a trial made of stored activations; completed while it runs.

    Attributes:
        until: the last layer of the prefix; None where there is no prefix, for this `reason`.
        training: whether training starts from them too, and not evaluation alone.
        seconds: how long opening them took.
        bytes: how large they are.
        computed_batch_sizes: sizes of batches for which they are not exact, so that those batches were computed.
    """

    until: str | None
    reason: str | None = None
    training: bool | None = None
    seconds: float | None = None
    bytes: int | None = None
    computed_batch_sizes: list[int] = field(default_factory=list)

    def add(self, seconds: float, size: int) -> None:
        """Add one more file of activations to `seconds` and `bytes`."""
        self.seconds, self.bytes = (self.seconds or 0.0) + seconds, (self.bytes or 0) + size

    def json(self) -> dict[str, object]:
        """Give what `result.json` says of it."""
        return {name: value for name, value in vars(self).items() if name == "until" or value not in (None, [])}


@dataclass
class Prefix:
    """The frozen first layers of a trial's model, and where their activations are kept.

    Attributes:
        directory: the folder of stored activations.
        identity: what they depend on beside the images and the precision.
        say: called with a sentence about what is about to be written.
        use: what stands in the result.
    """

    cut: Cut
    model: nn.Module
    normalize: Normalizer
    directory: Path
    identity: Mapping[str, object]
    say: Callable[[str], None]
    use: PrefixUse
    _tails: list[tuple[nn.Module, nn.Module]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        cut: Cut,
        model: nn.Module,
        normalize: Normalizer,
        directory: Path,
        identity: Mapping[str, object],
        say: Callable[[str], None],
    ) -> Prefix:
        """Make a prefix, and collect what its activations depend on: layers, weights, normalisation, machine,
        versions."""
        digest = hashlib.sha256()
        for name, tensor in cut.state(model):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        machine = environment(normalize.device).json()
        facts = ("processor", "threads", "cpu_capability", "device", "versions")
        whole = {
            **identity,
            "layers": [f"{name}: {model.backbone.get_submodule(name)}" for name in cut.modules],  # type: ignore[union-attr]
            "weights": digest.hexdigest(),
            "normalize": [normalize.mean.flatten().tolist(), normalize.scale.flatten().tolist()],
            **{name: machine[name] for name in facts},
        }
        return cls(cut, model, normalize, directory, whole, say, PrefixUse(cut.name))

    def tail(self, model: nn.Module) -> nn.Module:
        """Give what follows the cut in `model`, which is the trained model or a copy of it."""
        for known, tail in self._tails:
            if known is model:
                return tail
        self._tails.append((model, self.cut.after(model)))
        return self._tails[-1][1]

    def key(self, images: Mapping[str, object], precision: str) -> str:
        """Hash what a file of activations depends on: 32 hexadecimal digits."""
        text = json.dumps([self.identity, images, precision], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class CachedActivations:
    """A split's images whose activations are stored. `images[i]` is the decoded image as before.

    Args:
        prefix: the frozen first layers.
        images: the decoded images.
        inputs: of the same length: uint8 (3, S, S), what the prefix computes from.
        identity: what determines the inputs.
        precision: the recipe's.
    """

    def __init__(
        self,
        prefix: Prefix,
        images: Images,
        inputs: Augmented,
        identity: Mapping[str, object],
        precision: str = "float32",
    ) -> None:
        self.prefix = prefix
        self._images, self._inputs, self._identity, self._precision = images, inputs, identity, precision
        self._rows: Tensor | None = None
        self._opened = False
        self._exact: dict[tuple[bool, int], bool] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index]

    def sample(self, images: Images, rows: np.ndarray) -> CachedActivations:
        """Make the split of `rows` only, with activations stored on their own, for where the others are not needed."""
        inputs = Augmented(images, self._inputs.transform)
        return CachedActivations(
            self.prefix, images, inputs, {**self._identity, "rows": rows.tolist()}, self._precision
        )

    def batches(self, size: int) -> Iterator[Tensor]:
        """Load the activations of all images, in order, in batches of `size`."""
        for start in range(0, len(self._inputs), size):
            yield self.batch(range(start, min(start + size, len(self._inputs))))

    def prepare(self) -> None:
        """Compute and store the activations now, if they are not there."""
        self._open()

    def batch(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """Load the activations (N, ...) of these rows: to the bit what the prefix computes for this batch in the
        present mode."""
        stored = self._open()
        case = (torch.is_grad_enabled(), len(rows))
        if stored is None or self._exact.get(case) is False:
            return self._computed(rows)
        given = stored[torch.as_tensor(np.asarray(rows))]
        if self._precision == "bfloat16":
            given = given.view(torch.bfloat16)
        given = (given.permute(0, 3, 1, 2) if given.ndim == 4 else given).to(self.prefix.normalize.device)
        if case not in self._exact:
            computed = self._computed(rows)
            self._exact[case] = computed.dtype == given.dtype and torch.equal(computed, given)
            self._note(case)
            return computed
        return given

    def _note(self, case: tuple[bool, int]) -> None:
        if not self._exact[case]:
            sizes = self.prefix.use.computed_batch_sizes
            if case[1] not in sizes:
                sizes.append(case[1])

    def _computed(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        images = self.prefix.normalize(self._inputs.stacked(rows))
        return self.prefix.cut.before(self.prefix.model, images)

    def _open(self) -> Tensor | None:
        """Load the stored activations, computed on the first call: (N, H, W, C) if 4-dimensional, int16 if bfloat16.
        None where they cannot be stored."""
        if not self._opened:
            self._opened = True
            started = time.perf_counter()
            sample = self._array(range(1))
            shape = (len(self._inputs), *sample.shape[1:])
            key = self.prefix.key(self._identity, self._precision)
            rows = stored_rows(self.prefix.directory, key, shape, sample.dtype, self._all, self._announce)
            self._rows = None if rows is None else _as_tensor(rows)
            self.prefix.use.add(time.perf_counter() - started, 0 if rows is None else rows.nbytes)
        return self._rows

    def _announce(self, size: int) -> None:
        self.prefix.say(
            f"storing what the frozen layers up to {self.prefix.cut.name} give for {len(self._inputs)} images: "
            f"{size / 1e6:.0f} MB in {self.prefix.directory}"
        )

    def _all(self) -> Iterator[np.ndarray]:
        """Compute the activations of all images in batches of one size, so that all rows are computed alike: the last
        batch overlaps the one before."""
        count = len(self._inputs)
        size = min(BATCH, count)
        for start in range(0, count, size):
            first = min(start, count - size)
            yield self._array(range(first, first + size))[start - first :]

    def _array(self, rows: range) -> np.ndarray:
        device = self.prefix.normalize.device.type
        with torch.inference_mode(), forward_pass(self._precision, device):
            found = self._computed(rows).cpu()
        found = (found.permute(0, 2, 3, 1) if found.ndim == 4 else found).contiguous()
        return (found.view(torch.int16) if found.dtype == torch.bfloat16 else found).numpy()


def _as_tensor(rows: np.ndarray) -> Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has no read-only tensors; nobody writes to this one
        return torch.from_numpy(rows)
