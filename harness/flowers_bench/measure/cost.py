"""What a trial costs: parameters, arithmetic, time, memory, energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch.utils.module_tracker import ModuleTracker

from flowers_bench.store.records import Cost, Epoch
from flowers_bench.util.system import peak_memory


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


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one image.

    Attributes:
        counted: how many.
        uncounted: operations that are in no counted class and known for no formula, by name: where there are any, the
            count is too low.
    """

    counted: int
    uncounted: tuple[str, ...]


def flops(run: Callable[[Tensor], object], image: Tensor) -> Flops:
    """Count the floating-point operations of `run` on one image (1, 3, S, S): 2 for each multiply-add of its matrix products,
    convolutions, deformable convolutions and attention."""
    seen = _Seen()
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    counter.mod_tracker = _OnlyTotals()
    with torch.inference_mode(), seen, counter:
        run(image)
    uncounted = {op for op in seen.ops if op._overloadpacket not in counter.flop_registry and not _is_per_element(op)}
    return Flops(int(counter.get_total_flops()), tuple(sorted({str(op._overloadpacket) for op in uncounted})))


class _OnlyTotals(ModuleTracker):
    """Follows no module, so that all is counted under `Global`: torch's own fails where a module is called with a trainable
    tensor and no gradient is asked for."""

    def __enter__(self) -> _OnlyTotals:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Seen(TorchDispatchMode):
    """Notes every operation that is run, decomposed as the counter does it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.add(func)
        return func(*args, **(kwargs or {}))


def _is_per_element(op: Any) -> bool:
    tags = (torch.Tag.pointwise, torch.Tag.reduction)
    known = op.namespace in ("aten", "prim") and any(fnmatch(op._opname, pattern) for pattern in _PER_ELEMENT)
    return op.is_view or known or any(tag in op.tags for tag in tags)


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory in bytes: of the process (resident set), and of the allocator on CUDA, if there is one."""

    rss: int | None
    cuda: int | None

    @classmethod
    def so_far(cls, device: torch.device) -> PeakMemory:
        """Read that of this process."""
        return cls(peak_memory(), torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None)

    @classmethod
    def of_all(cls, peaks: Sequence[PeakMemory]) -> PeakMemory:
        """Combine several processes: resident memory in sum (pages that they share count in each), CUDA memory of the device that
        needed most."""
        known = [peak.rss for peak in peaks if peak.rss is not None]
        return cls(
            sum(known) if len(known) == len(peaks) else None,
            max((p.cuda for p in peaks if p.cuda is not None), default=None),
        )


def training_cost(model: nn.Module, history: Sequence[Epoch], best_epoch: int, fit_seconds: float) -> Cost:
    """Count parameters, trainable parameters, and the bytes of what was trained (as stored). Add up training: time over all epochs, evaluation
    included and apart; images per second of training; time to the best epoch; and the energy, where every epoch's was
    measured (`energy.Meter`).

    Args:
        history: every epoch.
        best_epoch: the chosen one, from 1.
        fit_seconds: what fitting the predictor on the training split took in the end, for some techniques all there is to
            learn: part of the time in all and of the time to the best.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    train_seconds = sum(epoch.train_seconds or 0 for epoch in history)
    waited = _sum_of_all([epoch.wait_seconds for epoch in history])
    images = sum(epoch.images or 0 for epoch in history)
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable_parameters=sum(p.numel() for p in trained),
        trained_bytes=sum(p.numel() * p.element_size() for p in trained),
        epochs=len(history),
        train_seconds=train_seconds,
        data_wait_share=waited / train_seconds if train_seconds and waited is not None else None,
        fit_seconds=fit_seconds,
        seconds=sum(epoch.seconds or 0 for epoch in history) + fit_seconds,
        seconds_to_best=sum(epoch.seconds or 0 for epoch in history[:best_epoch]) + fit_seconds,
        train_images_per_second=images / train_seconds if train_seconds else None,
        gpu_joules=_sum_of_all([epoch.gpu_joules for epoch in history]),
        package_joules=_sum_of_all([epoch.package_joules for epoch in history]),
    )


def _sum_of_all(values: Sequence[float | None]) -> float | None:
    """Add up what every epoch measured; None where one did not, or there is none."""
    measured = [value for value in values if value is not None]
    return sum(measured) if measured and len(measured) == len(values) else None
