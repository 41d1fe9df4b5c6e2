"""How fast a trained model predicts on this machine: latency of one image, throughput at the best batch size.

Times are taken after a warm-up, image tensors being ready in memory. Quantiles come with distribution-free 95 %
intervals (order statistics; `scipy.stats.quantile_test`): run times are skewed, so a mean with a standard error would
promise too much. Beside them stands the machine's state, above all what else it was doing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import quantile_test
from torch import Tensor

from flowers_bench.measure.hardware import bfloat16_in_hardware
from flowers_bench.store.records import Bounded, Inference, Latency, Speed, Throughput
from flowers_bench.util.system import OtherLoad, governor

#: A measurement repeats for so many seconds, and at least so many times: fewer give no 95 % interval of a median.
SECONDS, RUNS = 0.2, 10
#: Larger batches than this are tried as long as one takes less than `SECONDS`.
USUAL_BATCH = 8
LARGEST_BATCH = 1024
#: A larger batch must be faster by this factor to go on.
WORTH = 1.03
Run = Callable[[Tensor], object]


def inference_cost(run: Run, image: Tensor) -> Inference:
    """Measure latency and throughput of `run` in float32, and in bfloat16 autocast where the processor computes in it.

    Args:
        run: images (N, 3, S, S), normalised and on the device, to anything.
        image: one of them, (1, 3, S, S).
    """
    bfloat16 = None
    others, started = OtherLoad(), time.perf_counter()
    with torch.inference_mode():
        float32 = speed(run, image)
        if bfloat16_in_hardware(image.device):
            with torch.autocast(image.device.type, torch.bfloat16):
                bfloat16 = speed(run, image)
    return Inference(
        float32=float32,
        bfloat16=bfloat16,
        seconds=time.perf_counter() - started,
        threads=torch.get_num_threads(),
        governor=governor(),
        other_cores_busy=others.cores_busy(),
    )


def speed(run: Run, image: Tensor) -> Speed:
    """Measure the time of one image at the 50th and 95th percentile, and the batch size that gives most images per second."""
    single = timings(run, image, SECONDS, RUNS)
    batch, seconds = _throughput(run, image, _best_batch(run, image, float(np.median(single))))
    value, low, high = quantile(seconds, 0.5)
    return Speed(
        latency=Latency(p50_ms=_milliseconds(single, 0.5), p95_ms=_milliseconds(single, 0.95), runs=len(single)),
        throughput=Throughput(
            images_per_second=batch / value,
            low=batch / high if high else None,
            high=batch / low if low else None,
            batch=batch,
            runs=len(seconds),
        ),
    )


def _milliseconds(seconds: np.ndarray, p: float) -> Bounded:
    value, low, high = quantile(seconds, p)
    return Bounded(value=value * 1e3, low=None if low is None else low * 1e3, high=None if high is None else high * 1e3)


def _best_batch(run: Run, image: Tensor, seconds: float) -> int:
    """Double the batch until that gains too little, or one takes too long to try."""
    best, rate, size = 1, 1 / seconds, 2
    while size <= LARGEST_BATCH and (size <= USUAL_BATCH or size / rate < SECONDS):
        try:
            found = size / float(np.median(timings(run, _batch(image, size), 0, 3)))
        except torch.OutOfMemoryError:
            break
        if found < WORTH * rate:
            break
        best, rate, size = size, found, 2 * size
    return best


def _throughput(run: Run, image: Tensor, batch: int) -> tuple[int, np.ndarray]:
    """Measure the batch size that was timed, and the seconds of each call. The batch is smaller than wanted where a
    GPU's memory, which others may share, does not suffice."""
    while True:
        try:
            return batch, timings(run, _batch(image, batch), SECONDS, RUNS)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2


def _batch(image: Tensor, size: int) -> Tensor:
    return image.repeat(size, 1, 1, 1).contiguous(memory_format=torch.channels_last)


def timings(run: Run, images: Tensor, seconds: float, runs: int) -> np.ndarray:
    """Measure the seconds of each call, after two that are not counted, for `seconds` seconds and at least `runs`
    times."""
    found: list[float] = []
    kind = images.device.type  # the processor has computed when a call returns
    wait: Callable[[], object] = (lambda: None) if kind == "cpu" else getattr(torch, kind).synchronize
    for _ in range(2):
        run(images)
    wait()
    end = time.perf_counter() + seconds
    while len(found) < runs or time.perf_counter() < end:
        start = time.perf_counter()
        run(images)
        wait()
        found.append(time.perf_counter() - start)
    return np.array(found)


def quantile(values: np.ndarray, p: float) -> tuple[float, float | None, float | None]:
    """Compute the p-quantile with its exact 95 % interval; None for a bound that a sample of this size does not have."""
    interval = quantile_test(values, q=0, p=p).confidence_interval(0.95)
    low, high = (float(bound) if np.isfinite(bound) else None for bound in (interval.low, interval.high))
    return float(np.quantile(values, p)), low, high
