"""Whether a file's tensors are those of a network, and what has to be understood for that.

A file fits if every tensor of the network, but for the classifier, is in it with its shape: under the same names, or
under the same names after one prefix (`module.`, `teacher.backbone.`, ...), which includes whatever a checkpoint wraps
them in, since mappings were flattened to dotted names. timm's own converter of the model's family translates other
projects' names, and resamples what depends on the image size.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.models.network import Network, bare_network
from flowers_bench.models.weights import Weights, WeightsReport
from flowers_bench.models.weights.files import read_tensors
from flowers_bench.util.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]
#: Buffers that older versions of timm stored and newer ones compute.
_COMPUTED = ("attn_mask", "relative_coords_table", "inv_freq", "periods")
#: Of checkpoints that hold a network twice, what is meant to be used: averaged weights, then the teacher's.
_PREFERRED = (("ema", "averaged"), ("teacher",))
#: Seconds for looking which other model a file fits.
_LOOKING = 4.0


@dataclass
class _Reading:
    """A file's tensors, read as those under one prefix.

    Attributes:
        prefix: empty, or ending in a dot.
        given: under it, by their names without it.
        body: the same, converted, without classifier.
        missing: the network's tensors that are not among them.
        misshapen: those of another shape, and `mistyped`: of another kind of number.
        foreign: theirs that would change what the network computes, if it had them.
        problem: why the converter gave up.
    """

    prefix: str
    given: dict[str, Tensor]
    body: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    mistyped: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    problem: str = ""

    @property
    def faults(self) -> int:
        """How many faults keep it from fitting; 0: it fits."""
        return sum(map(len, (self.missing, self.misshapen, self.mistyped, self.foreign))) + bool(self.problem)

    @property
    def only_mistyped(self) -> bool:
        """Whether it is of this network, but in a number type that cannot be used."""
        return self.faults == len(self.mistyped)


def fitted(weights: Weights, network: Network) -> tuple[dict[str, Tensor], WeightsReport]:
    """Read a file's tensors as the network's.

    Returns:
        values for all tensors of the network but its classifier's, floating-point ones in float32; and what was
        understood.

    Raises:
        UsageError: they do not fit: what is missing or of another shape, and the model that they fit, if one does; or
            they are not finite.
    """
    assert weights.path is not None
    path, own = weights.path, network.model.state_dict()
    tensors, more = _read(weights, network)
    readings = _readings(tensors, network)
    whole = [reading for reading in readings if not reading.faults]
    if not whole:
        # What is foreign does not count here: under a prefix of the file's own network (`layer2.`) nothing is, and nothing is found.
        nearest = min(readings, key=lambda reading: (len(reading.missing), len(reading.misshapen)))
        raise UsageError(
            f"weights file {path} does not fit the backbone {network.name}: {_why_not(nearest, own)} "
            f"{_what_fits(path, nearest, network)}"
        )
    chosen = whole[0]
    used = {
        name: _as_float32(tensor) for name, tensor in chosen.body.items() if name in own and _alike(own[name], tensor)
    }
    _refuse_impossible(path, {**used, **more})
    unexpected = tuple(name for name in chosen.body if name not in own and not _counts(name))
    understood = tuple(_understood(tensors, chosen, whole[1:], own, unexpected))
    return used, WeightsReport(loaded=len(used), unexpected=unexpected, beyond=tuple(more), understood=understood)


def fits(weights: Weights, network: Network) -> bool:
    """Tell whether `fitted` would find every tensor of the network, with its shape."""
    return not all(reading.faults for reading in _readings(_read(weights, network)[0], network))


@functools.lru_cache(maxsize=8)
def beyond(weights: Weights, network: Network) -> dict[str, Tensor]:
    """Read what only the trained model has, in float32: empty but of weights that were trained here. Once for all trials of a
    plan: the file is read whole for it."""
    return {name: _as_float32(tensor) for name, tensor in _read(weights, network)[1].items()}


def _read(weights: Weights, network: Network) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read the file's tensors: those that are compared with the network; and beyond them, if the file was written here and
    so has the names of timm, those of the trained model that the network alone has not."""
    assert weights.path is not None
    tensors = read_tensors(weights.path)
    if weights.provenance is None:
        return tensors, {}
    own = network.model.state_dict()
    more = {n: t for n, t in tensors.items() if n not in own and not network.is_classifier(n)}
    return {n: t for n, t in tensors.items() if n not in more}, more


def _readings(tensors: Tensors, network: Network) -> list[_Reading]:
    own = network.model.state_dict()
    return [_read_under(tensors, prefix, network, own) for prefix in _prefixes(tensors, own)]


def _prefixes(tensors: Tensors, own: Tensors) -> list[str]:
    """Give the empty prefix, then each under which there may be enough tensors; of several networks the preferred one
    comes first."""
    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        counts.update(".".join(parts[:depth]) + "." for depth in range(1, len(parts)))
    enough = [prefix for prefix, count in counts.items() if 2 * count >= len(own)]

    def preference(prefix: str) -> int:
        words = set(re.split(r"[._]", prefix))
        return next((rank for rank, known in enumerate(_PREFERRED) if words.intersection(known)), len(_PREFERRED))

    return ["", *sorted(enough, key=preference)]


def _read_under(tensors: Tensors, prefix: str, network: Network, own: Tensors) -> _Reading:
    given = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    reading = _Reading(prefix, given)
    try:
        converted = network.converted(given)
    except Exception as error:  # converters expect the files that they were written for
        reading.problem = f"timm's converter for this model raised {type(error).__name__}: {error}"
        converted = given  # at least the names can be compared
    reading.body = {name: tensor for name, tensor in converted.items() if not network.is_classifier(name)}
    needed = {name: tensor for name, tensor in own.items() if not network.is_classifier(name) and not _counts(name)}
    reading.missing = [name for name in needed if name not in reading.body]
    present = [name for name in needed if name in reading.body]
    reading.misshapen = [name for name in present if own[name].shape != reading.body[name].shape]
    reading.mistyped = [name for name in present if not _same_kind(own[name], reading.body[name])]
    reading.foreign = [n for n, tensor in reading.body.items() if n not in own and _would_compute(n, tensor, network)]
    return reading


def _counts(name: str) -> bool:
    """Say whether it is a batch norm's count of batches: no evaluation reads that, and older files do not have it."""
    return name.endswith("num_batches_tracked")


def _same_kind(own: Tensor, given: Tensor) -> bool:
    import torch

    if own.is_floating_point():
        return given.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return given.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _would_compute(name: str, tensor: Tensor, network: Network) -> bool:
    """Say whether a tensor that the network does not have belongs to a part that it has, or to its tokens.

    Then the file's network computes something else. Heads, decoders and counters beside it do not count.
    """
    root, _, rest = name.partition(".")
    if not tensor.is_floating_point() or tensor.numel() < 2 or name.rpartition(".")[2] in _COMPUTED:
        return False
    if not rest:
        return root.endswith(("_token", "_tokens")) and root != "mask_token"
    heads = {module.partition(".")[0] for module in network.classifier}
    return root in dict(network.model.named_children()) and root not in heads


def _alike(own: Tensor, given: Tensor) -> bool:
    """Say whether values can be taken over as they are: what is needed was checked before, counts of batches were not."""
    return own.shape == given.shape and _same_kind(own, given)


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _refuse_impossible(path: Path, used: Tensors) -> None:
    """Raise `UsageError` for values that no training leaves: not finite, or a variance below zero."""
    bad = [n for n, t in used.items() if t.is_floating_point() and not t.is_meta and not bool(t.isfinite().all())]
    if bad:
        raise UsageError(
            f"weights file {path} has values that are not finite (NaN or infinite in float32) in {_some(bad)}: "
            "the training that wrote it had failed, or the file is damaged. Use another one."
        )
    negative = [n for n, t in used.items() if n.endswith("running_var") and not t.is_meta and bool((t < 0).any())]
    if negative:
        raise UsageError(
            f"weights file {path} has variances below zero in {_some(negative)}, of which the network would take the root: "
            "the file is damaged. Use another one."
        )


def _some(names: list[str]) -> str:
    """Name the first three, and say how many there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown}, ... ({len(names)} in all)"


def _why_not(reading: _Reading, own: Tensors) -> str:
    under = f" under {reading.prefix!r}" if reading.prefix else ""
    names = list(reading.given)
    if reading.missing and not any(name in own for name in reading.body):
        return (
            f"none of the network's tensors is in it{under}. It has names such as {', '.join(names[:2])}; the network has "
            f"{', '.join(list(own)[:2])}."
        )
    found = []
    if reading.missing:
        found.append(
            f"{len(reading.missing)} of its {len(own)} tensors are not in the file{under}: {_some(reading.missing)}."
        )
    if reading.misshapen:
        first = reading.misshapen[0]
        found.append(
            f"{first} is {tuple(reading.body[first].shape)} in the file and {tuple(own[first].shape)} in the network"
            f" ({len(reading.misshapen)} such tensors)."
        )
    if reading.mistyped:
        first = reading.mistyped[0]
        found.append(
            f"{_some(reading.mistyped)} must hold {'floating-point numbers of 16 bits or more' if own[first].is_floating_point() else 'whole numbers'} "
            f"and not {str(reading.body[first].dtype).removeprefix('torch.')}."
        )
    if reading.foreign and not reading.missing:
        found.append(
            f"{'The' if found else 'the'} file's network has more parts, which this one has not: {_some(reading.foreign)}."
        )
    if reading.problem and not found:
        found.append(f"{reading.problem}.")
    return " ".join(found)


def _what_fits(path: Path, reading: _Reading, network: Network) -> str:
    if reading.only_mistyped:
        return "Use the file from before it was quantised or converted."
    found = next(_other_models(path, reading, network.name), None)
    return f"The file fits --backbone {found}." if found else "Choose the --backbone that it was trained as."


def _other_models(path: Path, reading: _Reading, name: str) -> Iterator[str]:
    """Find models of which the file has every tensor: those that its name tells first, then the family's, the nearest
    name first.

    The search stops after a few seconds.
    """
    import timm

    until = time.monotonic() + _LOOKING
    every = timm.list_models()
    told = sorted((model for model in every if model in path.stem), key=len, reverse=True)[:5]
    module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
    family = difflib.get_close_matches(name, timm.list_models(module=module), n=100, cutoff=0)
    for model in dict.fromkeys([*told, *family]):
        if model == name:
            continue
        if time.monotonic() > until:
            return
        with contextlib.suppress(UsageError):
            if _has_every(reading.given, bare_network(model)):
                yield model


def _has_every(given: Tensors, network: Network) -> bool:
    own = network.model.state_dict()
    body = {name: tensor for name, tensor in given.items() if not network.is_classifier(name)}
    needed = [name for name in own if not network.is_classifier(name) and not _counts(name)]
    return all(name in body and _alike(own[name], body[name]) for name in needed) and not any(
        name not in own and _would_compute(name, tensor, network) for name, tensor in body.items()
    )


def _understood(
    tensors: Tensors, chosen: _Reading, others: list[_Reading], own: Tensors, unexpected: tuple[str, ...]
) -> Iterator[str]:
    if chosen.prefix:
        instead = (
            f", not those under {' or '.join(repr(o.prefix[:-1]) for o in others)}, which fit too" if others else ""
        )
        yield f"the tensors under {chosen.prefix[:-1]!r} are used{instead}"
    changed = [n for n, t in chosen.body.items() if n in own and n in chosen.given and chosen.given[n].shape != t.shape]
    if changed:
        first = changed[0]
        more = f", and {len(changed) - 1} more" if changed[1:] else ""
        yield f"resampled by timm: {first} from {tuple(chosen.given[first].shape)} to {tuple(chosen.body[first].shape)}{more}"
    translated = [name for name in chosen.body if name in own and name not in chosen.given]
    if translated:
        yield f"names translated by timm: {_some(translated)}"
    kinds = {str(t.dtype).removeprefix("torch.") for n, t in chosen.body.items() if n in own and t.is_floating_point()}
    if kinds - {"float32"}:
        yield f"{' and '.join(sorted(kinds))} values are used as float32"
    if unexpected:
        yield f"left out: {_some(list(unexpected))}"
    beside = Counter(name.partition(".")[0] for name in tensors if not name.startswith(chosen.prefix))
    for other in others:
        beside.pop(other.prefix.partition(".")[0], None)
    if beside:
        groups = [f"{count} under {root!r}" if count > 1 else root for root, count in beside.items()]
        yield f"left out beside them: {', '.join(groups[:5])}{', ...' if len(groups) > 5 else ''}"
