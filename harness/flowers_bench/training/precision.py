"""Refuses precisions whose gradients cannot be trusted."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flowers_bench.util.errors import UsageError


def refuse_undefined_gradients(model: nn.Module, image: Tensor, precision: str) -> None:
    """Refuse bfloat16 on a processor for a network that strides over an input smaller than the stride.

    oneDNN (as of PyTorch 2.14) leaves the weights that see nothing but padding there without a gradient: what was in
    memory by chance, NaN included, would go into the weights, and through `clip_norm` into all of them.

    Args:
        image: one, (1, 3, S, S), as the model takes them; the model is left in evaluation mode.

    Raises:
        UsageError: the message names the layers.
    """
    if precision != "bfloat16" or image.device.type != "cpu":
        return
    found: list[str] = []

    def look(name: str, layer: Any, inputs: tuple[Tensor, ...]) -> None:
        if any(stride > side for stride, side in zip(layer.stride, inputs[0].shape[2:], strict=True)):
            found.append(name)

    hooks = [
        layer.register_forward_pre_hook(partial(look, name))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.weight.requires_grad and max(layer.kernel_size) > 1
    ]
    try:
        with torch.inference_mode():
            model.eval()(image)
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        raise UsageError(
            f"precision=bfloat16: {', '.join(found)} would stride over less than a stride's pixels, where this processor's "
            "library computes no proper gradient. Choose a larger image_size, or precision=float32."
        )
