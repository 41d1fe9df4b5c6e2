"""pytest benchmarks/ --benchmark-group-by=group: one table per stage, batch, type and direction, the peers in its rows.

The default selection takes a few minutes; `-m slow` adds batch 32, bfloat16 and float64. Rounds of different peers are
not interleaved here: for ratios use `python benchmarks/kernel_table.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BATCHES, CUDA_DTYPES, DTYPES, PEERS, STAGES, Case, forward, forward_backward, why_not

SLOW = [
    pytest.param(batch, dtype, marks=[] if batch < 32 and dtype == "float32" else pytest.mark.slow)
    for batch in BATCHES
    for dtype in DTYPES
]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("direction", [forward, forward_backward], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("batch", "dtype"), SLOW)
@pytest.mark.parametrize("stage", STAGES)
def test_kernel(benchmark: Any, stage: int, batch: int, dtype: str, direction: Callable[..., Any], peer: str) -> None:
    """Measure one call on the CPU."""
    if reason := why_not(peer, direction, DTYPES[dtype]):
        pytest.skip(reason)
    benchmark.group = f"stage {stage}, batch {batch}, {dtype}, {direction.__name__}"
    benchmark.pedantic(direction(Case(stage, batch, DTYPES[dtype]), peer), rounds=5, warmup_rounds=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("direction", [forward, forward_backward], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", CUDA_DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("stage", STAGES)
def test_cuda_kernel(
    benchmark: Any, stage: int, batch: int, dtype: str, direction: Callable[..., Any], peer: str
) -> None:
    """Measure ten calls, including the wait for the last one, on the GPU; docs/roofline.md has what its peaks allow."""
    if reason := why_not(peer, direction, CUDA_DTYPES[dtype], "cuda"):
        pytest.skip(reason)
    call = direction(Case(stage, batch, CUDA_DTYPES[dtype], device="cuda"), peer)

    def ten() -> None:
        for _ in range(10):
            call()
        torch.cuda.synchronize()

    benchmark.group = f"cuda, stage {stage}, batch {batch}, {dtype}, {direction.__name__}"
    benchmark.pedantic(ten, rounds=10, warmup_rounds=2)
