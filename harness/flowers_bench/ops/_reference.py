"""Deformable convolution in plain PyTorch: the slow path where no kernel can be built, and the second derivative.

Dai et al. 2017 (arXiv:1703.06211) with the modulation of Zhu et al. 2019 (arXiv:1811.11168): per tap a bilinear
sample of the input, then a matrix product over channels. Every step is a differentiable torch operation that is
itself differentiable, so gradients of any order exist.
"""

import torch
from torch import Tensor

Pair = tuple[int, int]


def deform_conv2d_reference(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    """Compute the same function as `flowers_bench.ops.deform_conv2d`, composed of torch operations.

    Takes arguments that are already checked. Half precisions are computed in float32 and rounded once.
    """
    if input.dtype in (torch.bfloat16, torch.float16):
        wide_bias, wide_mask = (None if t is None else t.float() for t in (bias, mask))
        out = deform_conv2d_reference(
            input.float(), offset.float(), weight.float(), wide_bias, wide_mask, stride, padding, dilation
        )
        return out.to(input.dtype)
    batch, channels, height, width = input.shape
    out_channels, group_channels, kernel_h, kernel_w = weight.shape
    taps, groups = kernel_h * kernel_w, channels // group_channels
    out_height, out_width = offset.shape[2:]
    offset_groups = offset.shape[1] // (2 * taps)

    pixels = _rows(input, offset_groups)
    shift = offset.reshape(batch, offset_groups, taps, 2, out_height, out_width)
    scale = None if mask is None else mask.reshape(batch, offset_groups, taps, out_height, out_width, 1)
    rows = torch.arange(out_height, device=input.device).mul(stride[0]).sub(padding[0])[:, None]
    columns = torch.arange(out_width, device=input.device).mul(stride[1]).sub(padding[1])
    # (groups, positions, out channels of a group)
    out = input.new_zeros(groups, batch * out_height * out_width, out_channels // groups)
    for tap in range(taps):
        y = shift[:, :, tap, 0] + (rows + tap // kernel_w * dilation[0])
        x = shift[:, :, tap, 1] + (columns + tap % kernel_w * dilation[1])
        value = _bilinear(pixels, y, x, height, width)
        if scale is not None:
            value = value * scale[:, :, tap]
        # (N, offset groups, OH, OW, channels of one) -> (groups, N * OH * OW, channels of a group)
        value = value.permute(0, 2, 3, 1, 4).reshape(-1, groups, group_channels).transpose(0, 1)
        kernel = weight[:, :, tap // kernel_w, tap % kernel_w]
        out = out + value @ kernel.reshape(groups, -1, group_channels).transpose(1, 2)
    out = out.transpose(0, 1).reshape(batch, out_height, out_width, out_channels).permute(0, 3, 1, 2)
    return out.contiguous() if bias is None else out.contiguous() + bias[:, None, None]


def _rows(input: Tensor, offset_groups: int) -> Tensor:
    """Rearrange (N, C, H, W) to (N * offset groups * H * W, C / offset groups): one row for each pixel that a tap
    reads."""
    batch, channels, height, width = input.shape
    split = input.reshape(batch, offset_groups, channels // offset_groups, height * width)
    return split.transpose(2, 3).reshape(-1, channels // offset_groups)


def _bilinear(pixels: Tensor, y: Tensor, x: Tensor, height: int, width: int) -> Tensor:
    """Sample `pixels` bilinearly at (y, x), each (N, offset groups, OH, OW), with zeros outside: (..., channels)."""
    finite = torch.isfinite(y) & torch.isfinite(x)
    # Comparisons with NaN are false, so that what is converted to an index below is always in range.
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    # Multiplying by NaN where the coordinate is not finite: both the value and its gradient say so.
    poison = torch.where(finite, 0.0, torch.nan).to(y.dtype)
    y_in, x_in = torch.where(inside, y, -1.0), torch.where(inside, x, -1.0)
    top, left = y_in.detach().floor(), x_in.detach().floor()
    below, right = y_in - top, x_in - left
    batch, offset_groups = y.shape[:2]
    image = torch.arange(batch * offset_groups, device=y.device).view(batch, offset_groups, 1, 1) * (height * width)
    value = (y * poison + x * poison)[..., None]
    for down, weight_y in ((0, 1 - below), (1, below)):
        for over, weight_x in ((0, 1 - right), (1, right)):
            row, column = top.long() + down, left.long() + over
            valid = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = image + row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            corner = pixels.index_select(0, index.flatten()).view(*y.shape, pixels.shape[1])
            value = value + torch.where(valid[..., None], corner, 0.0) * (weight_y * weight_x)[..., None]
    return value
