"""The benchmark cases: the 3x3 convolutions of ResNet-18's stages at 224 px, and the peers that compute them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

#: By stage: the number of channels, and the side of the feature map in pixels.
STAGES = {1: (64, 56), 2: (128, 28), 3: (256, 14), 4: (512, 7)}
BATCHES = (1, 8, 32)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
CUDA_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Call = Callable[[], object]


@dataclass
class Case:
    """Inputs of one call with a mask; all of them require gradients."""

    stage: int
    batch: int
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.channels_last
    device: str = "cpu"

    def __post_init__(self) -> None:
        channels, side = STAGES[self.stage]
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            values = torch.randn(*shape, generator=generator).to(self.dtype)
            return values.to(self.device).contiguous(memory_format=self.layout).requires_grad_()

        self.input = draw(self.batch, channels, side, side)
        self.weight = draw(channels, channels, 3, 3)
        # Offsets of trained networks lie within a few pixels.
        self.offset = draw(self.batch, 18, side, side)
        self.mask = draw(self.batch, 9, side, side).detach().sigmoid().requires_grad_()


def ours(case: Case) -> Call:
    """Make the call of flowers_bench.ops.deform_conv2d."""
    from flowers_bench.ops import deform_conv2d

    return partial(deform_conv2d, case.input, case.offset, case.weight, None, 1, 1, 1, case.mask)


def torchvision(case: Case) -> Call:
    """Make the call of torchvision.ops.deform_conv2d."""
    from torchvision.ops import deform_conv2d

    return partial(deform_conv2d, case.input, case.offset, case.weight, None, 1, 1, 1, case.mask)


def conv2d(case: Case) -> Call:
    """Make the call of the plain convolution of the same shape, which shows what deformation costs."""
    return partial(torch.nn.functional.conv2d, case.input, case.weight, padding=1)


def onnxruntime(case: Case) -> Call:
    """Make the call of onnxruntime's DeformConv (float32, forward only), with as many threads as torch has."""
    import io

    import onnx
    import onnxruntime as runtime

    names = ("input", "weight", "offset", "bias", "mask")
    tensors = (case.input, case.weight, case.offset, torch.zeros(case.weight.shape[0]), case.mask)
    values = [onnx.helper.make_tensor_value_info(n, 1, t.shape) for n, t in zip(names, tensors, strict=True)]
    node = onnx.helper.make_node("DeformConv", names, ["out"], pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    out = onnx.helper.make_tensor_value_info("out", 1, None)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "deform", values, [out]),
        opset_imports=[onnx.helper.make_opsetid("", 19)],
        ir_version=9,
    )
    file = io.BytesIO()
    onnx.save(model, file)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin would take the processor from the peers, which are timed in turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {n: t.detach().contiguous().numpy() for n, t in zip(names, tensors, strict=True)}
    return partial(session.run, None, feed)


PEERS: dict[str, Callable[[Case], Call]] = {
    "flowers_bench": ours,
    "conv2d": conv2d,
    "torchvision": torchvision,
    "onnxruntime": onnxruntime,
}


def why_not(peer: str, direction: Callable[..., Call], dtype: torch.dtype, device: str = "cpu") -> str | None:
    """Say why a peer cannot take part; None if it can."""
    if peer == "torchvision" and dtype == torch.bfloat16:
        return "torchvision has no bfloat16"
    if peer == "onnxruntime":
        if device != "cpu":
            return "onnxruntime is compared on the CPU"
        from importlib.util import find_spec

        if find_spec("onnxruntime") is None or find_spec("onnx") is None:
            return "onnxruntime is not installed: pip install 'flowers-bench[onnx]'"
        if direction is not forward or dtype != torch.float32:
            return "onnxruntime has the float32 forward pass only"
    return None


def forward(case: Case, peer: str) -> Call:
    """Make the peer's forward pass, as at inference."""
    call = PEERS[peer](case)

    def run() -> object:
        with torch.inference_mode():
            return call()

    return run


def forward_backward(case: Case, peer: str) -> Call:
    """Make the peer's forward pass, followed by the gradients of all inputs."""
    call = PEERS[peer](case)
    wanted = [case.input, case.weight] + ([] if peer == "conv2d" else [case.offset, case.mask])
    out = call()
    assert isinstance(out, Tensor)
    grad = torch.ones_like(out)

    def run() -> object:
        return torch.autograd.grad(call(), wanted, grad)

    return run
