"""The operator `flowers_bench::deform_conv2d`: schema, shapes, gradients, vmap, autocast and FLOPs, side by side.

The kernels are `flowers_bench_kernel::forward` and `::backward` (csrc/deform_conv/binding.cpp), built and loaded
by the first call. Where they cannot be built, or for a device or dtype that they do not cover, the plain PyTorch
reference computes the same function.
"""

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from flowers_bench.ops import _build, _cuda
from flowers_bench.ops._cuda import Shape, Way
from flowers_bench.ops._reference import Pair, deform_conv2d_reference

_SCHEMA = (
    "(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, "
    "int[2] stride, int[2] padding, int[2] dilation) -> Tensor"
)
# An output whose flag in `needs` (input, offset, weight, bias, mask) is false is an empty tensor, never computed.
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor input, Tensor offset, Tensor weight, Tensor? mask, "
    "int[2] stride, int[2] padding, int[2] dilation, bool[5] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

torch.library.define("flowers_bench::deform_conv2d", _SCHEMA, tags=torch.Tag.pt2_compliant_tag)
torch.library.define("flowers_bench::deform_conv2d_backward", _BACKWARD_SCHEMA, tags=torch.Tag.pt2_compliant_tag)
_forward_op: Callable[..., Tensor] = torch.ops.flowers_bench.deform_conv2d.default
_backward_op = torch.ops.flowers_bench.deform_conv2d_backward.default


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Compute a deformable convolution, v1 (Dai et al. 2017, arXiv:1703.06211) or with `mask` v2 (arXiv:1811.11168).

    Arguments, shapes and semantics are those of `torchvision.ops.deform_conv2d`. Groups are read off the shapes:
    weight groups = C / weight.shape[1], offset groups G = offset.shape[1] / (2 * KH * KW).

    Args:
        input: (N, C, H, W), float32, float64, bfloat16 or float16; any strides, channels-last is fastest.
        offset: (N, 2 * G * KH * KW, OH, OW) in pixels, for each offset group and tap first y, then x.
        weight: (OC, C / groups, KH, KW).
        bias: (OC,) or None.
        stride, padding, dilation: an integer (of Python, NumPy or torch), or one for the height and one for the width.
        mask: (N, G * KH * KW, OH, OW), multiplied into each sample, or None for v1.

    Returns:
        (N, OC, OH, OW) in the input's dtype, channels-last if the input is. A sample outside the image is 0;
        a NaN or infinite offset gives NaN in the outputs that it reaches, and nowhere else.

    Raises:
        RuntimeError: a shape, dtype, device, stride, padding or dilation that does not fit; the message names it.
    """
    return _forward_op(
        input, offset, weight, bias, mask, pair("stride", stride), pair("padding", padding),
        pair("dilation", dilation),
    )  # fmt: skip


def pair(name: str, value: Any) -> Pair:
    """Read one or two integers (of Python, NumPy or torch) as two. Raises `RuntimeError`, which names the argument, for
    others."""
    try:
        whole = _integer(value)
        return whole, whole
    except TypeError:
        pass
    try:
        if isinstance(value, str | bytes | Mapping | Set):
            raise TypeError
        values = [_integer(one) for one in itertools.islice(value, 3)]
    except TypeError:
        values = []
    if len(values) not in (1, 2):
        raise RuntimeError(f"Expected argument `{name}` to be one or two integers, but got {value!r}")
    return values[0], values[-1]


def _integer(value: Any) -> int:
    """Read the value as an int that fits the operator's schema (64 bits). Raises `TypeError` for what is no integer."""
    if isinstance(value, torch.SymInt):  # symbolic under torch.compile
        return value  # type: ignore[return-value]
    whole = operator.index(value)
    if not -(2**63) <= whole < 2**63:
        raise TypeError
    return whole


def _check(condition: bool, message: Callable[[], str]) -> None:
    torch._check(condition, message)  # a RuntimeError; understands symbolic sizes under torch.compile


def _check_arguments(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int, int, int]:
    """Check that the arguments fit together, and give the shape of the output (N, OC, OH, OW). Raises `RuntimeError` if
    they do not."""
    for name, tensor in (("input", input), ("offset", offset), ("weight", weight)):
        if tensor is None:  # PyTorch's dispatcher refuses all else that is no tensor, and lets None pass
            raise RuntimeError(f"Expected argument `{name}` to be a tensor, but got None")
    _check_kinds(input, {"offset": offset, "weight": weight, "bias": bias, "mask": mask})
    for name, pair, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        _check(
            len(pair) == 2 and min(pair) >= least and max(pair) < 2**31,
            lambda name=name, pair=pair, least=least: (  # type: ignore[misc]
                f"Expected argument `{name}` to be at least {least} and below 2**31, but got {tuple(pair)}"
            ),
        )
    batch, channels, height, width = input.shape
    out_channels, group_channels, kernel_h, kernel_w = weight.shape
    taps = kernel_h * kernel_w
    _check(
        out_channels > 0 and group_channels > 0 and taps > 0 and channels > 0 and height > 0 and width > 0,
        lambda: f"Expected non-empty channels, image and kernel, but got {_sizes(input=input, weight=weight)}",
    )
    groups = channels // group_channels
    _check(
        channels % group_channels == 0 and out_channels % groups == 0,
        lambda: (
            "Expected weight.shape[1] to divide the input's channels, and the number of groups the output's, "
            f"but got {_sizes(input=input, weight=weight)}"
        ),
    )
    out_height = _out_size(height, kernel_h, stride[0], padding[0], dilation[0])
    out_width = _out_size(width, kernel_w, stride[1], padding[1], dilation[1])
    _check(
        out_height > 0 and out_width > 0,
        lambda: f"Expected a kernel that fits the padded image, but the output would be {out_height}x{out_width}",
    )
    offset_groups = offset.shape[1] // (2 * taps)
    _check(
        offset_groups > 0 and offset.shape[1] == offset_groups * 2 * taps and channels % offset_groups == 0,
        lambda: (
            "the shape of the offset tensor at dimension 1 is not valid. It should be a multiple of 2 * "
            f"weight.shape[2] * weight.shape[3] = {2 * taps} whose quotient divides the input's {channels} "
            f"channels, but got {offset.shape[1]}"
        ),
    )
    _check_shape("offset", offset, (batch, offset_groups * 2 * taps, out_height, out_width))
    if mask is not None:
        _check_shape("mask", mask, (batch, offset_groups * taps, out_height, out_width))
    if bias is not None:
        _check_shape("bias", bias, (out_channels,))
    return batch, out_channels, out_height, out_width


def _check_kinds(input: Tensor, others: dict[str, Tensor | None]) -> None:
    _check(input.ndim == 4, lambda: f"Expected input to be (N, C, H, W), but got shape {tuple(input.shape)}")
    _check(input.dtype in _DTYPES, lambda: f"Expected a floating-point input, but got {input.dtype}")
    for name, tensor in others.items():
        if tensor is None:
            continue
        rank = 1 if name == "bias" else 4
        _check(
            tensor.ndim == rank and tensor.dtype == input.dtype and tensor.device == input.device,
            lambda name=name, tensor=tensor, rank=rank: (  # type: ignore[misc]
                f"Expected {name} to have {rank} dimensions and be {input.dtype} on {input.device} like the input, "
                f"but got shape {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
            ),
        )


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    for actual, expected in zip(tensor.shape, shape, strict=True):
        _check(
            actual == expected,
            lambda: f"Expected {name} to have shape {tuple(shape)}, but got {tuple(tensor.shape)}",
        )


def _sizes(**tensors: Tensor) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())


def _out_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _is_channels_last(input: Tensor) -> bool:
    return input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()


def _compute(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    _check_arguments(input, offset, weight, bias, mask, stride, padding, dilation)
    if kernels := _build.operators(input.device.type, input.dtype):
        way = _cuda.choose(Shape.of(input, offset, weight)) if input.is_cuda else Way.GENERAL
        return _forward_by(kernels, way, input, offset, weight, bias, mask, stride, padding, dilation)
    out = deform_conv2d_reference(input, offset, weight, bias, mask, stride, padding, dilation)
    return out.contiguous(memory_format=_memory_format(input))


def _forward_by(kernels: Any, way: Way, input: Tensor, offset: Tensor, weight: Tensor, *others: Any) -> Tensor:
    """Compute the output, in the input's memory format, by one of the compiled kernels."""
    _note(way, input)
    if way is Way.TORCHVISION:
        return _cuda.torchvision_forward(input, offset, weight, *others).contiguous(memory_format=_memory_format(input))
    forward = kernels.forward_columns if way is Way.COLUMNS else kernels.forward
    computed: Tensor = forward(input, offset, weight, *others)
    return computed


def _note(way: Way, input: Tensor) -> None:
    """Note what computed on a GPU, for `kernel()`."""
    if input.is_cuda:
        _cuda.used.add(way)


def _compute_backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    shape = _check_arguments(input, offset, weight, None, mask, stride, padding, dilation)
    _check_kinds(input, {"grad": grad})
    _check_shape("grad", grad, shape)
    _check(mask is not None or not needs[4], lambda: "Expected a mask where its gradient is asked for")
    if kernels := _build.operators(input.device.type, input.dtype):
        way = _cuda.choose(Shape.of(input, offset, weight), needs) if input.is_cuda else Way.GENERAL
        return _backward_by(kernels, way, grad, input, offset, weight, mask, stride, padding, dilation, needs)
    with _autograd_inside_a_kernel():
        computed = _reference_gradients(grad, input, offset, weight, mask, stride, padding, dilation, needs)
    blank = _gradient_layout(grad, input, offset, weight, mask, needs)
    return tuple(e if g is None else e.copy_(g) for e, g in zip(blank, computed, strict=True))


def _backward_by(
    kernels: Any,
    way: Way,
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Compute the gradients, in the layouts of `_gradient_layout`, by one of the compiled kernels."""
    _note(way, input)
    if way is Way.TORCHVISION:
        found = _cuda.torchvision_backward(grad, input, offset, weight, mask, stride, padding, dilation)
        formats = (_memory_format(input), *[torch.contiguous_format] * 4)
        return tuple(
            g.contiguous(memory_format=layout) if need else input.new_empty(0)
            for g, need, layout in zip(found, needs, formats, strict=True)
        )
    if way is Way.COLUMNS:
        backward = kernels.backward_columns
    elif input.is_cuda and torch.are_deterministic_algorithms_enabled():
        backward = kernels.backward_deterministic  # the CPU's sums always have one order
    else:
        backward = kernels.backward
    gradients: tuple[Tensor, ...] = backward(grad, input, offset, weight, mask, stride, padding, dilation, *needs)
    return gradients


def _autograd_inside_a_kernel() -> AbstractContextManager[None]:
    """Switch autograd on again, which the dispatcher hides from an operator's kernel: the reference's gradient needs
    it."""
    hidden = torch._C._dispatch_tls_local_exclude_set()
    hidden = hidden.remove(torch._C.DispatchKey.AutogradFunctionality)
    hidden = hidden.remove(torch._C.DispatchKey.ADInplaceOrView)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), hidden)


def _memory_format(input: Tensor) -> torch.memory_format:
    return torch.channels_last if _is_channels_last(input) else torch.contiguous_format


def _gradient_layout(
    grad: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, needs: Sequence[bool]
) -> tuple[Tensor, ...]:
    """Allocate the gradients, without values, with the shapes and strides that the backward operator returns."""
    likes = (input, offset, weight, weight.new_empty(weight.shape[0]), mask)
    return tuple(
        torch.empty_like(like, memory_format=_memory_format(input) if like is input else torch.contiguous_format)
        if need and like is not None
        else input.new_empty(0)
        for like, need in zip(likes, needs, strict=True)
    )


def _reference_gradients(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Compute the gradients through the composite; they are differentiable again where the arguments require gradients."""
    differentiable = torch.is_grad_enabled()
    bias = weight.new_zeros(weight.shape[0])
    with torch.enable_grad():
        given = (input, offset, weight, bias, mask)
        leaves = [
            t if t is None or (differentiable and t.requires_grad) else t.detach().requires_grad_() for t in given
        ]
        out = deform_conv2d_reference(*leaves, stride, padding, dilation)  # type: ignore[call-arg, arg-type]
        wanted = [leaf for leaf, need in zip(leaves, needs, strict=True) if need and leaf is not None]
        found = iter(torch.autograd.grad(out, wanted, grad, create_graph=differentiable) if wanted else ())
    return tuple(next(found) if need and leaf is not None else None for leaf, need in zip(leaves, needs, strict=True))


for _device in ("cpu", "cuda"):
    torch.library.impl("flowers_bench::deform_conv2d", _device, _compute)
    torch.library.impl("flowers_bench::deform_conv2d_backward", _device, _compute_backward)


def _fake(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    shape = _check_arguments(input, offset, weight, bias, mask, stride, padding, dilation)
    return input.new_empty(shape).contiguous(memory_format=_memory_format(input))


def _fake_backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    _check_arguments(input, offset, weight, None, mask, stride, padding, dilation)
    return _gradient_layout(grad, input, offset, weight, mask, needs)


torch.library.register_fake("flowers_bench::deform_conv2d", _fake)
torch.library.register_fake("flowers_bench::deform_conv2d_backward", _fake_backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, weight, _bias, mask, ctx.stride, ctx.padding, ctx.dilation = inputs
    ctx.save_for_backward(input, offset, weight, mask)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:5])
    gradients = _backward_op(grad, *ctx.saved_tensors, ctx.stride, ctx.padding, ctx.dilation, needs)
    return *(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None, None


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, input, offset, weight, mask, ctx.stride, ctx.padding, ctx.dilation, ctx.needs = inputs
    ctx.save_for_backward(grad, input, offset, weight, mask)


def _double_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate the composite's own gradients. This is rare, so that a kernel of its own would not pay off."""
    saved = ctx.saved_tensors
    with torch.enable_grad():
        given = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in saved]
        grad, input, offset, weight, mask = given
        first = _reference_gradients(
            grad, input, offset, weight, mask, ctx.stride, ctx.padding, ctx.dilation, ctx.needs
        )
        pairs = [(f, g) for f, g in zip(first, grads, strict=True) if f is not None and g is not None]
        wanted = [t for t, need in zip(given, ctx.needs_input_grad, strict=False) if t is not None and need]
        second = iter(
            torch.autograd.grad(
                [f for f, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True, create_graph=True
            )
            if pairs and wanted
            else [None] * len(wanted)
        )
    found = [
        next(second) if t is not None and need else None for t, need in zip(given, ctx.needs_input_grad, strict=False)
    ]
    return *found, None, None, None, None


torch.library.register_autograd("flowers_bench::deform_conv2d", _backward, setup_context=_setup_context)
torch.library.register_autograd(
    "flowers_bench::deform_conv2d_backward", _double_backward, setup_context=_setup_context_backward
)


def _in_dims(value: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """Move the batched axis to the front; a tensor without one is expanded to `size`."""
    if value is None:
        return None
    return value.unsqueeze(0).expand(size, *value.shape) if dim is None else value.movedim(dim, 0)


def _vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> tuple[Tensor, int]:
    """Compute samples that share a weight as one batch; where each has its own weight, make one call for each."""
    size = info.batch_size
    images = [_in_dims(t, d, size) for t, d in zip((input, offset, mask), (*in_dims[:2], in_dims[4]), strict=True)]
    if in_dims[2] is None and in_dims[3] is None:
        flat = [None if t is None else t.reshape(-1, *t.shape[2:]) for t in images]
        out = _forward_op(flat[0], flat[1], weight, bias, flat[2], stride, padding, dilation)
        return out.reshape(size, -1, *out.shape[1:]), 0
    weights, biases = _in_dims(weight, in_dims[2], size), _in_dims(bias, in_dims[3], size)
    tensors = (images[0], images[1], weights, biases, images[2])
    outs = [
        _forward_op(*(None if t is None else t[i] for t in tensors), stride, padding, dilation) for i in range(size)
    ]
    return torch.stack(outs), 0


def _vmap_backward(
    info: Any, in_dims: tuple[int | None, ...], *arguments: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Make one call for each sample, so that their gradients of the weight stay apart."""
    tensors = [_in_dims(t, d, info.batch_size) for t, d in zip(arguments[:5], in_dims[:5], strict=True)]
    each = [
        _backward_op(*(None if t is None else t[i] for t in tensors), *arguments[5:]) for i in range(info.batch_size)
    ]
    return tuple(torch.stack(gradients) for gradients in zip(*each, strict=True)), (0,) * 5


torch.library.register_vmap("flowers_bench::deform_conv2d", _vmap)
torch.library.register_vmap("flowers_bench::deform_conv2d_backward", _vmap_backward)


def _autocast(device: str) -> Callable[..., Tensor]:
    """Make the operator under autocast: it computes in the device's reduced type, as convolutions do; float64 stays
    float64."""

    def cast(value: Any) -> Any:
        eligible = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(torch.get_autocast_dtype(device)) if eligible else value

    def run(*arguments: Any) -> Tensor:
        with torch.autocast(device, enabled=False):
            return _forward_op(*(cast(argument) for argument in arguments))

    return run


_autocast_library = torch.library.Library("flowers_bench", "IMPL")
for _device in ("cpu", "cuda"):
    _autocast_library.impl("deform_conv2d", _autocast(_device), f"Autocast{_device.upper()}")


@register_flop_formula(torch.ops.flowers_bench.deform_conv2d)
def _flops(
    input: tuple[int, ...],
    offset: tuple[int, ...],
    weight: tuple[int, ...],
    bias: Any,
    mask: tuple[int, ...] | None,
    *_: Any,
    out_shape: tuple[int, ...],
    **__: Any,
) -> int:
    """Count the product's multiply-adds as for a convolution, and four for each sampled value; 2 FLOPs each."""
    positions, taps = out_shape[0] * out_shape[2] * out_shape[3], weight[2] * weight[3]
    return 2 * positions * taps * (weight[1] * weight[0] + 4 * input[1])


@register_flop_formula(torch.ops.flowers_bench.deform_conv2d_backward)
def _flops_backward(
    grad: tuple[int, ...],
    input: tuple[int, ...],
    offset: tuple[int, ...],
    weight: tuple[int, ...],
    mask: tuple[int, ...] | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    needs: Sequence[bool],
    **_: Any,
) -> int:
    """Count a product for the columns' gradient and one for the weight's, and sampling, scattering and dot products."""
    positions, taps = grad[0] * grad[2] * grad[3], weight[2] * weight[3]
    columns, samples = needs[0] or needs[1] or needs[4], needs[2]
    sampled = 4 * input[1] * (int(needs[0]) + int(needs[1] or needs[4]) + int(samples))
    return 2 * positions * taps * (weight[1] * weight[0] * (int(columns) + int(samples)) + sampled)
