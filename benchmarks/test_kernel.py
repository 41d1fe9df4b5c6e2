"""pytest benchmarks/ --benchmark-group-by=group: one table per stage, batch and direction, the peers in its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cases import BATCHES, PEERS, STAGES, Case, forward, forward_backward


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("direction", [forward, forward_backward], ids=lambda f: f.__name__)
@pytest.mark.parametrize("batch", BATCHES[:2])
@pytest.mark.parametrize("stage", STAGES)
def test_kernel(benchmark: Any, stage: int, batch: int, direction: Callable[..., Any], peer: str) -> None:
    benchmark.group = f"stage {stage}, batch {batch}, {direction.__name__}"
    benchmark.pedantic(direction(Case(stage, batch), peer), rounds=5, warmup_rounds=1)
