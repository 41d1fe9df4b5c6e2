"""The precisions that a trial can be trained in, and where each is refused.

`bfloat16` is autocast: forward passes choose operation by operation what is harmless. `tf32` leaves every number float32
and lets an NVIDIA GPU round the factors of matrix products and convolutions to ten bits, forward and backward. Losses,
updates and what is measured for the record stay float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flowers_bench.util.errors import UsageError

#: Makes the context of a pass.
Context = Callable[[], contextlib.AbstractContextManager[Any]]
#: From which compute capability on NVIDIA's GPUs multiply in TF32.
_TF32_FROM = (8, 0)


def forward_pass(precision: str, device: str) -> contextlib.AbstractContextManager[Any]:
    """Make the context of a forward pass in the recipe's precision, on a type of device."""
    if precision == "bfloat16":
        return torch.autocast(device, torch.bfloat16)
    return tf32_products() if precision == "tf32" else contextlib.nullcontext()


def backward_pass(precision: str) -> contextlib.AbstractContextManager[Any]:
    """Make the context of a backward pass in the recipe's precision: autocast is for forward passes alone."""
    return tf32_products() if precision == "tf32" else contextlib.nullcontext()


@contextlib.contextmanager
def tf32_products() -> Iterator[None]:
    """Let a GPU multiply float32 matrices, and convolve, in TF32."""
    cudnn: Any = torch.backends.cudnn  # typed as a module without these two
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "tf32"
    try:
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def refuse_unsupported(precision: str, device: torch.device) -> None:
    """Refuse TF32 where nothing multiplies in it: torch would compute in float32 and not say so.

    Raises:
        UsageError: the message says what to choose.
    """
    if precision != "tf32" or (why := _without_tf32(device)) is None:
        return
    raise UsageError(
        f"precision=tf32: only NVIDIA GPUs of compute capability {_TF32_FROM[0]}.{_TF32_FROM[1]} or newer multiply in it, and {why}. "
        "Say --set precision=float32 or --set precision=bfloat16, or choose such a GPU with --device cuda."
    )


def _without_tf32(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"this computes on {device.type}"
    if torch.version.cuda is None:
        return "this torch is built for another maker's"
    found = torch.cuda.get_device_capability(device)
    return None if found >= _TF32_FROM else f"this one has {found[0]}.{found[1]}"


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
