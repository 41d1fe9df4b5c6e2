"""What is timed: the 3x3 convolutions of ResNet-18's stages at 224 px, and who computes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Stage: channels, side of the feature map.
STAGES = {1: (64, 56), 2: (128, 28), 3: (256, 14), 4: (512, 7)}
BATCHES = (1, 8, 32)


@dataclass
class Case:
    """Inputs of one call, channels-last, with gradients wanted."""

    stage: int
    batch: int
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        channels, side = STAGES[self.stage]
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            values = torch.randn(*shape, generator=generator).to(self.dtype)
            return values.to(memory_format=torch.channels_last).requires_grad_()

        self.input = draw(self.batch, channels, side, side)
        self.weight = draw(channels, channels, 3, 3)
        # Offsets of trained networks lie within a few pixels.
        self.offset = draw(self.batch, 18, side, side)
        self.mask = draw(self.batch, 9, side, side).detach().sigmoid().requires_grad_()


def ours(case: Case) -> Tensor:
    """flowers_bench.ops.deform_conv2d."""
    from flowers_bench.ops import deform_conv2d

    return deform_conv2d(case.input, case.offset, case.weight, None, 1, 1, 1, case.mask)


def torchvision(case: Case) -> Tensor:
    """torchvision.ops.deform_conv2d."""
    from torchvision.ops import deform_conv2d

    found: Tensor = deform_conv2d(case.input, case.offset, case.weight, None, 1, 1, 1, case.mask)
    return found


def conv2d(case: Case) -> Tensor:
    """The plain convolution of the same shape: what deformation costs is measured against it."""
    return torch.nn.functional.conv2d(case.input, case.weight, padding=1)


PEERS: dict[str, Callable[[Case], Tensor]] = {"flowers_bench": ours, "torchvision": torchvision, "conv2d": conv2d}


def forward(case: Case, peer: str) -> Callable[[], object]:
    """The forward pass alone, as at inference."""

    def run() -> object:
        with torch.inference_mode():
            return PEERS[peer](case)

    return run


def forward_backward(case: Case, peer: str) -> Callable[[], object]:
    """Forward, and the gradients of everything that has one."""
    wanted = [case.input, case.weight] + ([] if peer == "conv2d" else [case.offset, case.mask])
    grad = torch.ones_like(PEERS[peer](case))

    def run() -> object:
        return torch.autograd.grad(PEERS[peer](case), wanted, grad)

    return run
