"""The op among torch's tools: compile, export, vmap, autocast, FLOPs, memory formats, ONNX, gradients on request."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flowers_bench.ops import DeformConv2d, OffsetDeformConv2d, deform_conv2d

BACKWARD = torch.ops.flowers_bench.deform_conv2d_backward.default
ONES = ([1, 1], [1, 1], [1, 1])


def tensors(batch: int = 2, channels: int = 8, size: int = 7, **kwargs: object) -> list[Tensor]:
    """input, offset, weight, bias, mask of a 3x3 call with padding 1."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(**kwargs)

    return [
        draw(batch, channels, size, size), draw(batch, 18, size, size), draw(4, channels, 3, 3), draw(4),
        draw(batch, 9, size, size).sigmoid(),
    ]  # fmt: skip


def call(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    return deform_conv2d(input, offset, weight, bias, padding=1, mask=mask)


@pytest.mark.slow  # half a minute each: it traces second derivatives
@pytest.mark.parametrize("masked", [True, False])
def test_opcheck_of_backward(masked: bool) -> None:
    """With a single tap, since tracing the second derivative takes its time for each."""
    x, offset, weight = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4), torch.randn(4, 2, 1, 1)
    mask = torch.rand(1, 1, 4, 4) if masked else None
    given = [t if t is None else t.requires_grad_() for t in (torch.randn(1, 4, 4, 4), x, offset, weight, mask)]
    geometry = ([1, 1], [0, 0], [1, 1])
    torch.library.opcheck(BACKWARD, (*given, *geometry, [True, True, True, True, masked]))
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    for needs in ([False, True, False, True, False], [True, False, False, False, masked]):
        torch.library.opcheck(BACKWARD, (*given, *geometry, needs), test_utils=quick)


def test_only_the_gradients_asked_for_and_each_the_same_alone() -> None:
    x, offset, weight, _, mask = tensors(dtype=torch.float64)
    grad = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    everything = BACKWARD(grad, x, offset, weight, mask, *ONES, [True] * 5)
    for needs in itertools.product([False, True], repeat=5):
        found = BACKWARD(grad, x, offset, weight, mask, *ONES, list(needs))
        for need, got, want in zip(needs, found, everything, strict=True):
            if need:
                torch.testing.assert_close(got, want)
            else:
                assert got.numel() == 0


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic: bool) -> None:
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch, size in ((2, 7), (3, 9)):
        given = [t.requires_grad_() for t in tensors(batch, size=size)]
        found, expected = compiled(*given), call(*given)
        torch.testing.assert_close(found, expected)
        gradients = zip(
            torch.autograd.grad(found.square().sum(), given),
            torch.autograd.grad(expected.square().sum(), given),
            strict=True,
        )
        for got, want in gradients:
            torch.testing.assert_close(got, want)


def test_exports_with_a_dynamic_batch() -> None:
    module = OffsetDeformConv2d(8, 4, 3, padding=1).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        module, (torch.randn(3, 8, 6, 6),), dynamic_shapes={"input": {0: batch}}, strict=False
    )
    assert any(
        node.target is torch.ops.flowers_bench.deform_conv2d.default for node in program.graph_module.graph.nodes
    )
    images = torch.randn(5, 8, 6, 6)
    torch.testing.assert_close(program.module()(images), module(images))


def test_fake_tensors_have_the_real_shape_and_strides() -> None:
    from torch._subclasses import FakeTensorMode

    for layout in (torch.contiguous_format, torch.channels_last):
        given = tensors()
        given[0] = given[0].contiguous(memory_format=layout)
        with FakeTensorMode() as mode:
            fake = call(*(mode.from_tensor(t) for t in given))
        real = call(*given)
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


def test_vmap_over_images_and_over_weights() -> None:
    x, offset, weight, bias, mask = tensors()
    found = torch.func.vmap(lambda x, offset, mask: call(x[None], offset[None], weight, bias, mask[None])[0])(
        x, offset, mask
    )
    torch.testing.assert_close(found, call(x, offset, weight, bias, mask))
    weights = torch.stack([weight, -weight, 2 * weight])
    found = torch.func.vmap(lambda w: call(x, offset, w, None, mask))(weights)
    torch.testing.assert_close(found, torch.stack([call(x, offset, w, None, mask) for w in weights]))


def test_vmap_of_backward_keeps_the_samples_apart() -> None:
    x, offset, weight, _, mask = tensors()
    grad = torch.randn(2, 1, 4, 7, 7)
    stacked = torch.func.vmap(lambda g, x, o, m: BACKWARD(g, x[None], o[None], weight, m[None], *ONES, [True] * 5))(
        grad, x, offset, mask
    )
    for i in range(2):
        one = BACKWARD(grad[i], x[i : i + 1], offset[i : i + 1], weight, mask[i : i + 1], *ONES, [True] * 5)
        for got, want in zip(stacked, one, strict=True):
            torch.testing.assert_close(got[i], want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_the_lower_type_and_returns_float32_gradients(dtype: torch.dtype) -> None:
    given = [t.requires_grad_() for t in tensors()]
    with torch.autocast("cpu", dtype=dtype):
        found = call(*given)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), call(*given), rtol=0.05, atol=0.2)
    assert {g.dtype for g in torch.autograd.grad(found.float().sum(), given)} == {torch.float32}


def test_autocast_leaves_float64_alone() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert call(*tensors(dtype=torch.float64)).dtype == torch.float64


def test_flops_are_the_products_and_the_sampling() -> None:
    given = [t.requires_grad_() for t in tensors()]
    samples = 2 * 7 * 7 * 9
    with FlopCounterMode(display=False) as forward:
        out = call(*given)
    assert forward.get_total_flops() == 2 * samples * (8 * 4 + 4 * 8)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert backward.get_total_flops() == 2 * samples * (2 * 8 * 4 + 3 * 4 * 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_keep_type_and_layout(dtype: torch.dtype, layout: torch.memory_format) -> None:
    given = tensors(dtype=dtype)
    given[0] = given[0].contiguous(memory_format=layout)
    out = call(*(t.requires_grad_() for t in given))
    assert out.is_contiguous(memory_format=layout)
    gradients = torch.autograd.grad(out.float().sum(), given)
    assert {g.dtype for g in gradients} == {dtype}
    assert gradients[0].is_contiguous(memory_format=layout)


def _awkward(t: Tensor) -> Tensor:
    """The same values behind strides that nothing can walk: every second element of a wider tensor, transposed."""
    wide = torch.zeros(*t.shape[:-2], t.shape[-1] * 2, t.shape[-2] * 2)
    view = wide.transpose(-1, -2)[..., ::2, ::2]
    view.copy_(t)
    return view


def test_any_strides() -> None:
    x, offset, weight, bias, mask = tensors()
    strided = [_awkward(t) for t in (x, offset, weight, mask)]
    bias_strided = torch.stack([bias, bias], 1)[:, 0]
    found = call(strided[0], strided[1], strided[2], bias_strided, strided[3])
    torch.testing.assert_close(found, call(x, offset, weight, bias, mask))
    grad = torch.randn(1).expand(2, 4, 7, 7)
    gradients = BACKWARD(grad, strided[0], strided[1], strided[2], strided[3], *ONES, [True] * 5)
    for got, want in zip(gradients, BACKWARD(grad.clone(), x, offset, weight, mask, *ONES, [True] * 5), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_images_split_between_threads_add_up(threads: int) -> None:
    given = [t.requires_grad_() for t in tensors(batch=1, channels=16, size=11, dtype=torch.float64)]
    expected = torch.autograd.grad(call(*given).square().sum(), given)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = torch.autograd.grad(call(*given).square().sum(), given)
    finally:
        torch.set_num_threads(before)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)


def test_a_large_weight_is_shared_between_threads_with_the_same_result() -> None:
    """Above 8 MiB the threads do not sum the gradient of the weight each: another path through the kernel."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 512, 4, 4, generator=generator)
    offset = torch.randn(2, 18, 4, 4, generator=generator)
    weight = torch.randn(512, 512, 3, 3, generator=generator) / 68
    grad = torch.randn(2, 512, 4, 4, generator=generator)
    needs = [True, True, True, True, False]
    found = BACKWARD(grad, x, offset, weight, None, *ONES, needs)
    exact = BACKWARD(grad.double(), x.double(), offset.double(), weight.double(), None, *ONES, needs)
    for got, want in zip(found, exact, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("modulated", [True, False])
def test_onnx_file_computes_the_same_in_onnxruntime(tmp_path: Path, modulated: bool) -> None:
    pytest.importorskip("onnx", reason="needs the extra: pip install 'flowers-bench[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'flowers-bench[onnx]'")
    from flowers_bench.ops.onnx import export

    module = OffsetDeformConv2d(8, 12, 3, 2, 1, bias=modulated, modulated=modulated, offset_groups=2).eval()
    torch.nn.init.normal_(module.offset_conv.weight, std=0.1)
    images = torch.randn(2, 8, 9, 7)
    export(module, (images,), tmp_path / "model.onnx")
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), module(images), rtol=1e-4, atol=1e-5)


def test_from_conv_refuses_what_it_cannot_imitate() -> None:
    with pytest.raises(ValueError, match="padding_mode='reflect'"):
        DeformConv2d.from_conv(torch.nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match="padding='same'"):
        OffsetDeformConv2d.from_conv(torch.nn.Conv2d(2, 2, 3, padding="same"))
    with pytest.raises(ValueError, match="offset_groups=3"):
        OffsetDeformConv2d.from_conv(torch.nn.Conv2d(4, 2, 3), offset_groups=3)
    with pytest.raises(ValueError, match="groups=3"):
        DeformConv2d(4, 6, 3, groups=3)
