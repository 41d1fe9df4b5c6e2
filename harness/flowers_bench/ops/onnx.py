"""Export to ONNX: `deform_conv2d` becomes the standard operator DeformConv (opset 19), which any runtime knows.

Needs the packages of `pip install "flowers-bench[onnx]"`.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowers_bench.ops import _deform_conv

OPSET = 19  # the first with DeformConv


def export(model: nn.Module, inputs: tuple[Tensor, ...], path: str | Path, **options: Any) -> None:
    """Write `model`, traced on `inputs`, as an ONNX file; `options` are passed on to `torch.onnx.export`.

    Uses torch's exporter on `torch.export` where onnxscript is installed, else its older one.
    """
    options = {"opset_version": OPSET, "verbose": False, **options}
    if options.setdefault("dynamo", find_spec("onnxscript") is not None):
        options["custom_translation_table"] = translations() | options.get("custom_translation_table", {})
    else:
        register_symbolic()
    torch.onnx.export(model, inputs, str(path), **options)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Give what `torch.onnx.export(dynamo=True, custom_translation_table=...)` needs to know of the operator."""
    from onnxscript import opset19

    def deform_conv2d(
        input: Any,
        offset: Any,
        weight: Any,
        bias: Any = None,
        mask: Any = None,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
    ) -> Any:
        attributes = _attributes(input.shape, offset.shape, weight.shape, stride, padding, dilation)
        return opset19.DeformConv(input, weight, offset, bias, mask, **attributes)

    return {_deform_conv._forward_op: deform_conv2d}


def register_symbolic() -> None:
    """Teach the operator to the older exporter, `torch.onnx.export(dynamo=False)`."""

    def symbolic(
        graph: Any,
        input: Any,
        offset: Any,
        weight: Any,
        bias: Any,
        mask: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
    ) -> Any:
        from torch.onnx import symbolic_helper

        pairs = [symbolic_helper._parse_arg(pair, "is") for pair in (stride, padding, dilation)]
        shapes = [value.type().sizes() for value in (input, offset, weight)]
        if symbolic_helper._is_none(bias):  # inputs are positional here, and a mask may follow
            bias = graph.op("Constant", value_t=torch.zeros(shapes[2][0], dtype=input.type().dtype()))
        inputs = [input, weight, offset, bias] + ([] if symbolic_helper._is_none(mask) else [mask])
        attributes = {f"{name}_i": value for name, value in _attributes(*shapes, *pairs).items()}
        return graph.op("DeformConv", *inputs, **attributes)

    torch.onnx.register_custom_op_symbolic("flowers_bench::deform_conv2d", symbolic, OPSET)  # type: ignore[attr-defined]


def _attributes(
    input: Sequence[int],
    offset: Sequence[int],
    weight: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> dict[str, int | list[int]]:
    """Compute the attributes of ONNX's DeformConv from the shapes and our arguments."""
    return {
        "strides": list(stride),
        "pads": [*padding, *padding],
        "dilations": list(dilation),
        "kernel_shape": list(weight[2:]),
        "group": input[1] // weight[1],
        "offset_group": offset[1] // (2 * weight[2] * weight[3]),
    }
