"""The conformance kit on two ranks: a step that takes more than its share of the gradient is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowers_bench.testing import Nonconformance, checks

torch.set_num_threads(1)
STEP = """
from flowers_bench import *
from flowers_bench import hookimpl

def build(context):
    import torch.nn.functional as F

    def step(batch):
        loss = F.cross_entropy(batch.output(batch.images).logits, batch.targets)
        batch.backward(loss)
        batch.update()
        return loss
    return step

@hookimpl
def register_steps():
    return [Step("mine", "as usual", build=build)]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        # On each rank the whole gradient, of which the host sums two.
        ("batch.output(batch.images)", "context.model(batch.images)"),
        # Other numbers on each rank.
        ("(batch.images)", "(batch.images * (1 + __import__('os').getpid() % 7))"),
    ],
)
def test_two_ranks(tmp_path: Path, old: str, new: str) -> None:
    (tmp_path / "mine.py").write_text(STEP.replace(old, new))
    (check,) = (one for one in checks(tmp_path / "mine.py") if one.name == "two ranks agree with one")
    if not old:
        check()
        return
    with pytest.raises(Nonconformance, match="on two ranks its weights end"):
        check()
