"""The op on a real CUDA device: against the float64 reference, and what only a device can show.

CI has none; docs/kernel.md says on which device they passed. `pytest -m gpu` runs them alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from test_cuda_columns import OFFSETS
from test_cuda_emulated import CASES, HALVES_AND_FLOAT, TAKEN, TYPES, Call, Results, call_of, compare, reference
from torch import Tensor

from flowers_bench.ops import _build, deform_conv2d, kernel
from flowers_bench.ops._cuda import Way, forced

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
NAMES = ("input", "offset", "mask", "weight", "bias")


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    assert _build.has_kernel("cuda"), "there is a device but no CUDA kernel: is there a toolkit? See docs/kernel.md"


def on_device(c: Call, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> dict[str, Tensor]:
    tensors = {name: getattr(c, name) for name in (*NAMES, "grad")}
    moved = {name: t.to("cuda", dtype) for name, t in tensors.items() if t is not None}
    moved["input"] = moved["input"].contiguous(memory_format=layout)
    return moved


def forward(c: Call, t: dict[str, Tensor]) -> Tensor:
    return deform_conv2d(
        t["input"], t["offset"], t["weight"], t.get("bias"), c.stride, c.padding, c.dilation, t.get("mask")
    )


def compute(c: Call, t: dict[str, Tensor]) -> Results:
    leaves = {name: t[name].detach().requires_grad_() for name in NAMES if name in t}
    out = forward(c, leaves)
    found = torch.autograd.grad(out, list(leaves.values()), t["grad"])
    return {"out": out.detach(), **{f"grad_{name}": g for name, g in zip(leaves, found, strict=True)}}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_result_equals_the_float64_reference(case: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    c = call_of(**CASES[case]).rounded(dtype)
    found = compute(c, on_device(c, dtype, layout))
    assert found["out"].is_contiguous(memory_format=layout) or found["out"].numel() == 0
    compare({name: value.cpu() for name, value in found.items()}, reference(c), dtype)


def test_derivatives() -> None:
    c = call_of(batch=1, channels=4, size=(5, 5), groups=2, offset_groups=2)
    t = on_device(c, torch.float64)
    leaves = [t[name].requires_grad_() for name in NAMES]
    assert torch.autograd.gradcheck(
        lambda *values: forward(c, dict(zip(NAMES, values, strict=True))), leaves, fast_mode=True, nondet_tol=1e-12
    )


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("way", [Way.GENERAL, Way.COLUMNS])
def test_deterministic_when_asked(way: Way, dtype: torch.dtype) -> None:
    """Many positions that all add to the same pixels: any order of atomics would show."""
    if way is Way.COLUMNS and dtype == torch.float64:
        pytest.skip("columns are not for float64")
    c = call_of(batch=4, channels=64, outputs=64, size=(32, 32))
    t = on_device(c, dtype)
    with forced(way):
        first, *others = (compute(c, t) for _ in range(5))
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_wild_offset_reaches_its_own_outputs_only(bad: float) -> None:
    c = call_of(channels=16)
    before = forward(c, on_device(c, torch.float32))
    c.offset[1, 4, 2, 3] = bad
    after = compute(c, on_device(c, torch.float32))
    touched = torch.zeros_like(before, dtype=torch.bool)
    touched[1, :, 2, 3] = True
    assert torch.equal(after["out"][~touched], before[~touched])
    assert after["grad_input"].isfinite().all()


def test_nothing_waits_for_the_device_and_the_current_stream_is_used() -> None:
    c = call_of(batch=8, channels=64, outputs=64, size=(56, 56))
    t = on_device(c, torch.float16)
    expected = forward(c, t)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(10_000_000)
            scaled = t["input"] * 2  # ready only after the pause, on this stream alone
            out = forward(c, {**t, "input": scaled, "bias": t["bias"] * 2})
            assert not side.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    torch.testing.assert_close(out, expected * 2, rtol=5e-3, atol=5e-2)


def test_a_graph_replays_forward_and_backward() -> None:
    c = call_of(channels=16, outputs=16)
    t = on_device(c, torch.float32)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = compute(c, t)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = compute(c, t)
    graph.replay()
    torch.cuda.synchronize()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)


def test_no_column_matrix_in_device_memory() -> None:
    """The general kernels at stage 1, batch 32 of ResNet-18: forward may take its output and layout copies, not 9 times the input."""
    c = call_of(batch=32, channels=64, outputs=64, size=(56, 56))
    t = on_device(c, torch.float16, torch.channels_last)
    with forced(Way.GENERAL):
        used, out = peak_of_forward(c, t)
    assert used < 1.5 * out.numel() * out.element_size()


def test_columns_take_64_mebibytes_at_most() -> None:
    """The same, of which all columns would take 110 MiB."""
    c = call_of(batch=32, channels=64, outputs=64, size=(56, 56))
    t = on_device(c, torch.float16, torch.channels_last)
    with forced(Way.COLUMNS):
        used, out = peak_of_forward(c, t)
    assert used < 64 * 2**20 + 1.5 * out.numel() * out.element_size()


def peak_of_forward(c: Call, t: dict[str, Tensor]) -> tuple[int, Tensor]:
    """What a second call needs of memory at its peak, in bytes, its output included, and that."""
    forward(c, t)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = forward(c, t)
    return torch.cuda.max_memory_allocated() - before, out


# ---- By columns ----


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", HALVES_AND_FLOAT, ids=str)
@pytest.mark.parametrize("case", TAKEN)
def test_every_result_by_columns(case: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    c = call_of(**TAKEN[case]).rounded(dtype)
    with forced(Way.COLUMNS):
        found = compute(c, on_device(c, dtype, layout))
    assert found["out"].is_contiguous(memory_format=layout) or found["out"].numel() == 0
    compare({name: value.cpu() for name, value in found.items()}, reference(c), dtype)


@pytest.mark.parametrize("offsets", OFFSETS)
def test_offsets_that_crowd_or_leave_by_columns(offsets: str) -> None:
    c = call_of(channels=64, outputs=32, offset_groups=2, size=(33, 35))
    OFFSETS[offsets](c)
    with forced(Way.COLUMNS):
        found = compute(c, on_device(c, torch.float32))
    compare({name: value.cpu() for name, value in found.items()}, reference(c), torch.float32)


@pytest.mark.parametrize("dtype", HALVES_AND_FLOAT, ids=str)
@pytest.mark.parametrize(
    "shape", [{"batch": 24, "size": (56, 56)}, {"batch": 1, "size": (260, 230)}], ids=["chunks", "a large image"]
)
def test_columns_of_more_than_a_chunk(shape: dict[str, object], dtype: torch.dtype) -> None:
    """As the general kernels compute them: several chunks of images, and one image of which a chunk cannot hold all."""
    c = call_of(channels=64, outputs=16, **shape)  # type: ignore[arg-type]
    t = on_device(c, dtype, torch.channels_last)
    with forced(Way.COLUMNS):
        found = compute(c, t)
    with forced(Way.GENERAL):
        expected = compute(c, t)
    compare(found, {name: value.double() for name, value in expected.items()}, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_long_sums_of_half_types_by_columns(dtype: torch.dtype) -> None:
    """4,608 products in each output: no sum may lose what half types cannot hold."""
    c = call_of(batch=8, channels=512, outputs=512, size=(7, 7)).rounded(dtype)
    with forced(Way.COLUMNS):
        found = compute(c, on_device(c, dtype, torch.channels_last))
    compare({name: value.cpu() for name, value in found.items()}, reference(c), dtype)


def test_columns_wait_for_nothing_and_are_captured_by_a_graph() -> None:
    c = call_of(batch=8, channels=64, outputs=64, size=(28, 28))
    t = on_device(c, torch.float32)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with forced(Way.COLUMNS):
        with torch.cuda.stream(side):
            expected = compute(c, t)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            again = compute(c, t)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = compute(c, t)
    graph.replay()
    torch.cuda.synchronize()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
        assert torch.equal(again[name], value), name


@pytest.mark.usefixtures("deterministic")
def test_deterministic_settings_are_computed_by_columns() -> None:
    c = call_of(channels=16)
    compare(compute(c, on_device(c, torch.float32)), on_the_gpu(reference(c)), torch.float32)
    assert "+columns" in kernel()


def test_columns_refuse_what_they_cannot_take() -> None:
    c = call_of(channels=6)
    with forced(Way.COLUMNS), pytest.raises(RuntimeError, match="packs of 16 bytes"):
        forward(c, on_device(c, torch.float32))


def on_the_gpu(results: Results) -> Results:
    return {name: value.to("cuda") for name, value in results.items()}


# ---- torchvision's kernels ----


@pytest.mark.parametrize("masked", [True, False])
def test_torchvisions_kernels_behind_our_operator(masked: bool) -> None:
    pytest.importorskip("torchvision")
    c = call_of(channels=64, outputs=32, size=(28, 28), masked=masked)
    with forced(Way.TORCHVISION):
        found = compute(c, on_device(c, torch.float32, torch.channels_last))
    assert found["out"].is_contiguous(memory_format=torch.channels_last)
    compare(found, on_the_gpu(reference(c)), torch.float32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("way", Way)
def test_a_wild_offset_whatever_computes(way: Way, bad: float) -> None:
    pytest.importorskip("torchvision")
    c = call_of(channels=16)
    c.offset[1, 4, 2, 3] = bad
    with forced(way):
        after = compute(c, on_device(c, torch.float32))
    expected = torch.zeros_like(after["out"], dtype=torch.bool)
    expected[1, :, 2, 3] = True
    assert torch.equal(after["out"].isnan(), expected)
    assert after["grad_input"].isfinite().all()


def test_the_second_device_is_left_alone() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    c = call_of()
    t = {name: value.to("cuda:1") for name, value in on_device(c, torch.float32).items()}
    with torch.cuda.device(0):
        out = forward(c, t)
    assert out.device.index == 1
    compare({"out": out.cpu()}, reference(c), torch.float32)


def test_a_product_beyond_two_to_the_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of device memory")
    size, channels = 8193, 32  # 2,148,040,704 values
    # Made in rows, seen as channels-last.
    images = torch.zeros(1, size, size, channels, dtype=torch.float16, device="cuda").permute(0, 3, 1, 2)
    images[0, :, -1, -1] = 1
    offset = torch.zeros(1, 2, size, size, dtype=torch.float16, device="cuda")
    out = deform_conv2d(images, offset, torch.ones(1, channels, 1, 1, dtype=torch.float16, device="cuda"))
    assert out[0, 0, -1, -1].item() == channels
    assert out.sum(dtype=torch.float32).item() == channels
