"""Models without memory."""

from __future__ import annotations

import timm
import torch

from flowers_bench.models.meta import without_values


def test_shapes_are_those_of_the_real_model_and_nothing_is_drawn() -> None:
    before = torch.get_rng_state()
    with without_values():
        empty = timm.create_model("test_vit", num_classes=3).state_dict()
        drawn = torch.zeros(100, device="cpu").normal_()
    assert drawn.std() > 0.5  # what has values is drawn as ever
    torch.set_rng_state(before)
    real = timm.create_model("test_vit", num_classes=3).state_dict()
    assert {name: (t.shape, t.dtype) for name, t in empty.items()} == {n: (t.shape, t.dtype) for n, t in real.items()}
    assert all(tensor.is_meta for tensor in empty.values())
