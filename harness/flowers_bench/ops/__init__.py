"""Deformable convolution as a torch operator, a drop-in for `torchvision.ops.deform_conv2d`, and `draw`, which augments images.

`kernel()` says what computes the convolution here. Importing this compiles nothing; the first call may (docs/kernel.md).
"""

from flowers_bench.ops._build import in_use as in_use
from flowers_bench.ops._build import kernel
from flowers_bench.ops._deform_conv import deform_conv2d
from flowers_bench.ops._draw import draw
from flowers_bench.ops._draw import draws_on as draws_on
from flowers_bench.ops.modules import DeformConv2d, OffsetDeformConv2d

__all__ = ["DeformConv2d", "OffsetDeformConv2d", "deform_conv2d", "draw", "kernel"]
