"""The CUDA kernels of `draw`: run on the host thread by thread, and on a device where there is one, with the bits of a CPU.

csrc/cuda/launch.h says how they run on the host; emulate_draw.cpp is the library that this file compiles and calls. Threads and
blocks run in both orders, and what lies around images, output and memory is checked or changed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cuda_emulated import compiled
from test_draw import CASES, SAME, batch, expected, rows_for
from torch import Tensor

from flowers_bench.ops import _build, _draw, draw

EVERYTHING, ONE_IMAGE = 2**40, 1  # bytes of lines at once
GUARD = 999  # bytes before and behind images and output


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("draw")
    built = compiled(folder, f"-I{_build.source_root()}", source="emulate_draw.cpp")
    built.emulate_draw.restype = ctypes.c_bool
    return built


def emulated(
    library: ctypes.CDLL, images: Sequence[np.ndarray], rows: np.ndarray, side: int, limit: int = EVERYTHING,
    reverse: bool = False, around: int = 0,
) -> np.ndarray:  # fmt: skip
    """Draw images (H, W, 3) with bytes `around` them: (N, side, side, 3)."""
    lying = [np.full(image.size + 2 * GUARD, around, np.uint8) for image in images]
    boxes = np.empty((len(images), 2), np.int64)
    for i, (memory, image, row) in enumerate(zip(lying, images, rows, strict=True)):
        memory[GUARD:-GUARD] = image.ravel()
        of_row = 3 * image.shape[1]
        boxes[i] = memory.ctypes.data + GUARD + row[0] * of_row + 3 * row[1], of_row
    out = np.full(len(images) * side * side * 3 + 2 * GUARD, 77, np.uint8)
    address, rows = out.ctypes.data + GUARD, np.ascontiguousarray(rows, np.int32)
    kept_to_its_memory = library.emulate_draw(
        ctypes.c_void_p(boxes.ctypes.data), ctypes.c_void_p(rows.ctypes.data), ctypes.c_int64(len(images)),
        ctypes.c_int64(side), ctypes.c_int64(limit), ctypes.c_bool(reverse), ctypes.c_void_p(address),
    )  # fmt: skip
    assert kept_to_its_memory
    assert (out[:GUARD] == 77).all()
    assert (out[-GUARD:] == 77).all()
    return out[GUARD:-GUARD].reshape(len(images), side, side, 3)


def on_the_cpu(images: Sequence[np.ndarray], rows: np.ndarray, side: int) -> np.ndarray:
    operators = _build.draw_operators("cpu")
    given = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    rows = np.ascontiguousarray(rows, np.int32)
    found: Tensor = (
        operators.draw(given, torch.from_numpy(rows), side) if operators else _draw.draw_reference(given, rows, side)
    )
    return found.permute(0, 2, 3, 1).numpy()


def random_images(random: np.random.Generator, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    return [random.choice([0, 255, 128, 77, 3], (*size, 3)).astype(np.uint8) for size in sizes]


@pytest.mark.parametrize(("height", "width", "side"), CASES)
def test_it_is_what_plain_loops_give(library: ctypes.CDLL, height: int, width: int, side: int) -> None:
    random = np.random.default_rng(height * 1000 + width)
    (image,) = random_images(random, [(height, width)])
    whole = [0, 0, height, width]
    rows = np.array([[*whole, 0, *SAME], [*whole, 1, *SAME], rows_for(random, height, width)])
    found = emulated(library, [image] * 3, rows, side)
    for drawn, row in zip(found, rows.tolist(), strict=True):
        assert np.array_equal(drawn, expected(image, row, side)), row


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=4),
    side=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    limit=st.sampled_from([ONE_IMAGE, 9000, EVERYTHING]),
)
def test_every_box_flip_and_colour_has_the_bits_of_a_cpu(
    library: ctypes.CDLL, sizes: list[tuple[int, int]], side: int, seed: int, limit: int
) -> None:
    """Whatever order threads and blocks come in, how many images are drawn at once, and what lies around them."""
    random = np.random.default_rng(seed)
    images = random_images(random, sizes)
    rows = np.array([rows_for(random, *size) for size in sizes])
    forwards = emulated(library, images, rows, side, limit)
    backwards = emulated(library, images, rows, side, limit, reverse=True, around=255)
    assert np.array_equal(forwards, on_the_cpu(images, rows, side))
    assert np.array_equal(forwards, backwards)


def test_more_images_than_one_launch_has_room_for(library: ctypes.CDLL) -> None:
    random = np.random.default_rng(5)
    sizes = [(int(h), int(w)) for h, w in random.integers(1, 40, (70, 2))]
    images, rows = random_images(random, sizes), np.array([rows_for(random, *size) for size in sizes])
    assert np.array_equal(emulated(library, images, rows, 9), on_the_cpu(images, rows, 9))


def test_images_as_training_has_them(library: ctypes.CDLL) -> None:
    """Sums beyond 32 bits of greys, lines of several blocks, and a mean that matters."""
    random = np.random.default_rng(6)
    images = random_images(random, [(256, 340), (300, 256)])
    rows = np.array([rows_for(random, *image.shape[:2]) for image in images])
    rows[:, :4] = [[0, 0, 256, 340], [20, 3, 224, 250]]
    rows[:, 17] = [4000, -3000]
    assert np.array_equal(emulated(library, images, rows, 224), on_the_cpu(images, rows, 224))


# ---- On a device ----

on_a_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def needs_kernel() -> None:
    assert _build.draw_operators("cuda"), "there is a device but no CUDA kernel: is there a toolkit? See docs/kernel.md"


class TestOnADevice:
    pytestmark = on_a_gpu

    @pytest.mark.parametrize("side", [224, 61, 7, 1])
    def test_a_device_gives_the_bits_of_a_cpu(self, side: int) -> None:
        needs_kernel()
        images, parameters = batch()
        found = draw([image.cuda() for image in images], parameters, side)
        assert found.is_cuda
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found.cpu(), draw(images, parameters, side))

    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 2**32))
    def test_every_box_flip_and_colour(self, height: int, width: int, side: int, seed: int) -> None:
        needs_kernel()
        random = np.random.default_rng(seed)
        images = random_images(random, [(height, width)] * 3)
        rows = np.array([rows_for(random, height, width) for _ in images], np.int32)
        given = [torch.from_numpy(image).cuda().permute(2, 0, 1) for image in images]
        found = _build.draw_operators("cuda").draw(given, torch.from_numpy(rows), side)
        assert np.array_equal(found.permute(0, 2, 3, 1).cpu().numpy(), on_the_cpu(images, rows, side))

    def test_more_images_than_one_launch_has_room_for(self) -> None:
        needs_kernel()
        random = np.random.default_rng(7)
        images = random_images(random, [(50, 60)] * 100)
        rows = np.array([rows_for(random, 50, 60) for _ in images], np.int32)
        given = [torch.from_numpy(image).cuda().permute(2, 0, 1) for image in images]
        found = _build.draw_operators("cuda").draw(given, torch.from_numpy(rows), 32)
        assert np.array_equal(found.permute(0, 2, 3, 1).cpu().numpy(), on_the_cpu(images, rows, 32))

    def test_nothing_waits_for_the_device_and_a_graph_replays(self) -> None:
        needs_kernel()
        images, parameters = batch()
        given = [image.permute(1, 2, 0).contiguous().cuda().permute(2, 0, 1) for image in images]
        once = draw(given, parameters, 64)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            again = draw(given, parameters, 64)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = draw(given, parameters, 64)
        graph.replay()
        assert torch.equal(once, again)
        assert torch.equal(once, captured)

    def test_the_reference_on_a_device_gives_the_same_bits(self) -> None:
        images, parameters = batch()
        rows = _draw._packed(parameters, len(images))
        found = _draw.draw_reference([image.cuda() for image in images[:3]], rows[:3], 33)
        assert torch.equal(found.cpu(), _draw.draw_reference(images[:3], rows[:3], 33))

    def test_what_it_cannot_draw_is_refused(self) -> None:
        needs_kernel()
        operators, image = _build.draw_operators("cuda"), torch.zeros(5, 6, 3, dtype=torch.uint8).permute(2, 0, 1)
        row = torch.tensor([[0, 0, 5, 6, 0, *SAME]], dtype=torch.int32)
        with pytest.raises(RuntimeError, match="int32 on the CPU"):
            operators.draw([image.cuda()], row.cuda(), 4)
        with pytest.raises(RuntimeError, match="on one device"):
            operators.draw([image.cuda(), image], row.repeat(2, 1), 4)
        with pytest.raises(RuntimeError, match="does not lie in its image"):
            operators.draw([image.cuda()], row + 1, 4)
