"""The shared parts: cross-entropy, and colour jitter against torchvision's."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as T

from flowers_bench import LossContext
from flowers_bench.nn import Output
from flowers_bench_plugins.common import build_cross_entropy, jitter_colours


@pytest.mark.parametrize("seed", range(5))
def test_jitter_is_torchvisions_brightness_then_contrast_then_saturation(seed: int) -> None:
    torch.manual_seed(seed)
    # Mid-tones, so that torchvision's clipping between the steps has nothing to cut.
    image = torch.randint(90, 150, (3, 12, 9), dtype=torch.uint8)
    torch.manual_seed(seed + 100)
    found = jitter_colours(image, 0.3)
    torch.manual_seed(seed + 100)
    brightness, contrast, saturation = (1 + 0.3 * (2 * torch.rand(3) - 1)).tolist()
    expected = T.adjust_saturation(
        T.adjust_contrast(T.adjust_brightness(image.float() / 255, brightness), contrast), saturation
    )
    assert (found.float() - expected * 255).abs().max() <= 1.01


def test_no_jitter_changes_nothing() -> None:
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    assert (jitter_colours(image, 0.0).int() - image.int()).abs().max() <= 1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_sum_over_classes(smoothing: float) -> None:
    logits = torch.randn(6, 4, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3, 0, 1])
    loss = build_cross_entropy(LossContext(4, 8, {"label_smoothing": smoothing}))(Output(logits, logits), target)
    total = 0.0
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        normalizer = torch.logsumexp(torch.tensor(row, dtype=torch.float64), 0).item()
        wanted = [smoothing / 4 + (1 - smoothing) * (k == label) for k in range(4)]
        total -= sum(share * (score - normalizer) for share, score in zip(wanted, row, strict=True))
    assert loss.item() == pytest.approx(total / 6)
