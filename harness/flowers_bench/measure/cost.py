"""What a trial costs: parameters, arithmetic, time, memory, energy."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from flowers_bench.store.folder import TrialFolder


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


#: Products that torch's counter has no formula for.
_FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
#: Operations, beside element-wise ones, reductions and views, whose work is a few steps per element. As is usual in
#: the field they are not counted; what is neither counted nor listed here is named in the result.
_PER_ELEMENT = (
    *("*batch_norm*", "*layer_norm*", "*group_norm*", "*rms_norm*", "*softmax*", "*pool*", "*upsample*"),
    *("empty*", "zeros*", "ones*", "full*", "fill*", "arange*", "scalar_tensor", "clone", "*copy*", "lift_fresh*"),
    *("cat", "stack", "*pad*", "roll", "flip", "index*", "gather", "scatter*", "topk", "sort", "as_strided*"),
    *("_unsafe_view", "_local_scalar_dense", "cumsum", "linalg_vector_norm"),
)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Count parameters, trainable parameters, and the bytes of what was trained (as stored)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in trained),
        "trained_bytes": sum(p.numel() * p.element_size() for p in trained),
    }


def flops(run: Callable[[Tensor], object], image: Tensor) -> dict[str, Any]:
    """Count the floating-point operations of `run` on one image (1, 3, S, S): 2 for each multiply-add of its matrix
    products, convolutions, deformable convolutions and attention.

    Returns:
        flops: the count.
        flops_uncounted: operations that are in none of those classes and known for no formula, by name: where there
            are any, the count is too low.
    """
    seen = _Seen()
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with torch.inference_mode(), seen, counter:
        run(image)
    uncounted = {op for op in seen.ops if op._overloadpacket not in counter.flop_registry and not _is_per_element(op)}
    return {
        "flops": int(counter.get_total_flops()),
        "flops_uncounted": sorted({str(op._overloadpacket) for op in uncounted}),
    }


class _Seen(TorchDispatchMode):
    """Notes every operation that is run, decomposed as the counter does it."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.add(func)
        return func(*args, **(kwargs or {}))


def _is_per_element(op: Any) -> bool:
    tags = (torch.Tag.pointwise, torch.Tag.reduction)
    known = op.namespace in ("aten", "prim") and any(fnmatch(op._opname, pattern) for pattern in _PER_ELEMENT)
    return op.is_view or known or any(tag in op.tags for tag in tags)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Read the peak memory so far, in bytes: of the process (resident set) on the CPU, of the allocator on CUDA."""
    # ru_maxrss is in kibibytes on Linux and in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        found["peak_cuda_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def peak_of_all(peaks: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Combine `peak_memory` of several processes: the sum of resident memory (pages that they share count in each), and
    the CUDA memory of the device that needed most."""
    fold: dict[str, Callable[[Iterable[int]], int]] = {"peak_rss_bytes": sum, "peak_cuda_bytes": max}
    return {name: fold[name]([peak[name] for peak in peaks]) for name in peaks[0]}


def training_cost(history: list[dict[str, Any]], best_epoch: int, fit_seconds: float) -> dict[str, Any]:
    """Add up training: seconds over all epochs, evaluation included and apart; images per second; seconds to the best
    epoch; and the energy, in joules, where every epoch's was measured (`energy.Meter`).

    Args:
        history: a dictionary per epoch.
        best_epoch: the chosen one, from 1.
        fit_seconds: what fitting the predictor on the training split took in the end, for some techniques all there is to
            learn: part of the time in all and of the time to the best.
    """
    train_seconds = sum(epoch["train_seconds"] for epoch in history)
    waited = [epoch["wait_seconds"] for epoch in history if "wait_seconds" in epoch]
    counters = set.intersection(*({k for k in epoch if k.endswith("_joules")} for epoch in history)) if history else ()
    return {
        "epochs": len(history),
        "train_seconds": train_seconds,
        "data_wait_share": sum(waited) / train_seconds if train_seconds and len(waited) == len(history) else None,
        "fit_seconds": fit_seconds,
        "seconds": sum(epoch["seconds"] for epoch in history) + fit_seconds,
        "seconds_to_best": sum(epoch["seconds"] for epoch in history[:best_epoch]) + fit_seconds,
        "train_images_per_second": sum(epoch["images"] for epoch in history) / train_seconds if train_seconds else None,
        **{name: sum(epoch[name] for epoch in history) for name in sorted(counters)},
    }


def total_cost(folders: Iterable[TrialFolder]) -> dict[str, Any]:
    """Add up what it took to get these trials, with those that failed or that a search discarded: `trials`, `failed`,
    `attempts` and `seconds` from the start of each trial's process to its end, whatever that end was."""
    listed = list(folders)
    attempts = [attempt for folder in listed for attempt in folder.attempts()]
    return {
        "trials": len(listed),
        "failed": sum(folder.failure() is not None for folder in listed),
        "attempts": len(attempts),
        "seconds": sum(attempt["seconds"] for attempt in attempts),
    }
