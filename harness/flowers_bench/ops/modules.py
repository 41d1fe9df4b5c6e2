"""Deformable convolution as modules: torchvision's, and one that predicts its own offsets."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowers_bench.ops import _build
from flowers_bench.ops._deform_conv import deform_conv2d, pair


class DeformConv2d(nn.Module):
    """Deformable convolution, v1 (arXiv:1703.06211) or, called with a mask, v2 (arXiv:1811.11168).

    Arguments, parameter names and initialisation are those of `torchvision.ops.DeformConv2d`: state dicts load
    into each other.

    Shapes:
        input (N, C, H, W), offset (N, 2 * G * KH * KW, OH, OW), mask (N, G * KH * KW, OH, OW) or None, with G
        offset groups -> (N, out_channels, OH, OW).

    Raises:
        ValueError: channels that the groups do not divide.
        RuntimeError: a kernel size, stride, padding or dilation that is not one or two integers.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Expected groups to divide in_channels and out_channels, "
                f"but got groups={groups}, in_channels={in_channels}, out_channels={out_channels}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = pair("kernel_size", kernel_size), pair("stride", stride)
        self.padding, self.dilation = pair("padding", padding), pair("dilation", dilation)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()
        _build.use()

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> "DeformConv2d":
        """Make a deformable twin of `conv`, with its weight and bias, on its device, in its dtype.

        Raises:
            ValueError: `conv` pads with anything but zeros, or by name ("same", "valid").
        """
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(
                f"Expected a convolution with zero padding given in numbers, "
                f"but got padding={conv.padding!r}, padding_mode={conv.padding_mode!r}"
            )
        with torch.device(conv.weight.device):
            twin = cls(
                conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride,
                conv.padding, conv.dilation, conv.groups, conv.bias is not None,
            )  # fmt: skip
        twin.to(conv.weight.dtype)
        with torch.no_grad():
            twin.weight.copy_(conv.weight)
            if conv.bias is not None:
                twin.bias.copy_(conv.bias)
        return twin

    def reset_parameters(self) -> None:
        """Draw initial values as `torch.nn.Conv2d` does."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        if self.bias is not None:
            bound = self.weight[0].numel() ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """Convolve; shapes are those of `deform_conv2d`."""
        return deform_conv2d(input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)

    def extra_repr(self) -> str:
        """Give shapes and settings, for `print`."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}"
        )


class OffsetDeformConv2d(DeformConv2d):
    """A deformable convolution that predicts its offsets, and with `modulated` its mask, from its own input.

    `offset_conv` starts at zero, so that every offset is 0 and every mask value 2 * sigmoid(0) = 1: before
    training, the module computes the plain convolution. (Zhu et al. start the mask at 0.5 and so halve the
    response; the factor 2 is what lets a pretrained weight keep its meaning.)

    Args:
        modulated: v2 with a mask; otherwise v1.
        offset_groups: how many groups of input channels share offsets; divides `in_channels`.
        Others: as for `DeformConv2d`.

    Shapes:
        (N, in_channels, H, W) -> (N, out_channels, OH, OW).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        modulated: bool = True,
        offset_groups: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        if offset_groups < 1 or in_channels % offset_groups:
            raise ValueError(
                f"Expected offset_groups to divide in_channels, "
                f"but got offset_groups={offset_groups}, in_channels={in_channels}"
            )
        self.modulated, self.offset_groups = modulated, offset_groups
        self._shifts = 2 * offset_groups * self.kernel_size[0] * self.kernel_size[1]
        self.offset_conv = nn.Conv2d(
            in_channels,
            self._shifts * 3 // 2 if modulated else self._shifts,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )
        nn.init.zeros_(self.offset_conv.weight)
        nn.init.zeros_(self.offset_conv.bias)  # type: ignore[arg-type]

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, modulated: bool = True, offset_groups: int = 1) -> "OffsetDeformConv2d":
        """Take over a plain convolution: the result computes exactly what `conv` does until it is trained.

        Raises:
            ValueError: as `DeformConv2d.from_conv`, or channels that `offset_groups` does not divide.
        """
        plain = DeformConv2d.from_conv(conv)
        with torch.device(conv.weight.device):
            twin = cls(
                plain.in_channels, plain.out_channels, plain.kernel_size, plain.stride, plain.padding,
                plain.dilation, plain.groups, plain.bias is not None, modulated, offset_groups,
            )  # fmt: skip
        twin.to(conv.weight.dtype)
        twin.load_state_dict(plain.state_dict(), strict=False)
        return twin

    def offset_and_mask(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute where this input would be sampled: offset (N, 2 * G * KH * KW, OH, OW) in pixels, and mask or None."""
        predicted = self.offset_conv(input)
        if not self.modulated:
            return predicted, None
        return predicted[:, : self._shifts], 2 * torch.sigmoid(predicted[:, self._shifts :])

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """Predict offset and mask from the input (N, C, H, W), and convolve: (N, OC, OH, OW)."""
        offset, mask = self.offset_and_mask(input)
        return super().forward(input, offset, mask)

    def extra_repr(self) -> str:
        """Give shapes and settings, for `print`."""
        return f"{super().extra_repr()}, modulated={self.modulated}, offset_groups={self.offset_groups}"
