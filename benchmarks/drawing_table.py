"""python benchmarks/drawing_table.py: images that are augmented in a second of processor time, by us and by others.

The augmentation is `standard`: a random resized crop, a mirror image or not, brightness, contrast and saturation by chance, to
uint8 at `--size` pixels, of decoded images of 256 x 340. Everybody has one thread and batches of 32, takes turns with the others, and is measured in
processor time; a ratio is the median over the rounds, with its range. `before` is the augmentation's general way: image by image, by torchvision's
operations and one pass for the colours. kornia works on batches of floats, which have one size; albumentations resizes
without antialiasing. Peers that are not installed are left out, and named.

`--device cuda` measures images per second of a clock until they are on the GPU: ours drawn there, of decoded images that lie there; ours drawn
by one core and copied; the general way, copied; and kornia there.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from tables import Table
from torch import Tensor

from flowers_bench import AugmentationContext
from flowers_bench.contract.dataset import Images
from flowers_bench.contract.host import discover
from flowers_bench.data.drawing import ByParameters
from flowers_bench.data.on_device import OnDevice

BATCH, HEIGHT, WIDTH = 32, 256, 340
Draw = Callable[[list[Tensor]], object]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the images shall be")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--csv", type=Path, help="write the table here too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, device = list(decoded(BATCH)), torch.device(options.device)
    on_a_cpu = device.type == "cpu"
    peers = dict(installed(options.size) if on_a_cpu else installed_on(device, options.size, images))
    for draw in peers.values():
        draw(images)
    rates: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(options.rounds):
        for name, draw in peers.items():
            rates[name].append(rate(draw, images) if on_a_cpu else rate_on(device, draw, images))
    found = table(rates, "images/s of one core" if on_a_cpu else "images/s")
    if options.csv:
        found.write(options.csv)


def decoded(count: int) -> Iterator[Tensor]:
    """Make images (3, H, W) as the cache of decoded ones gives them, channels beside each other: smooth, with edges and noise."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH] / 40
    for _ in range(count):
        waves = np.stack(
            [np.sin(a * x + b * y) + np.sign(np.sin(c * x)) for a, b, c in random.uniform(1, 4, (3, 3))], -1
        )
        levels = 128 + 50 * waves + random.normal(0, 10, waves.shape)
        yield torch.from_numpy(levels.clip(0, 255).astype(np.uint8)).permute(2, 0, 1)


def rate(draw: Draw, images: list[Tensor], at_least: float = 0.4) -> float:
    """Measure images per second of processor time, over that many seconds of it."""
    count, started = 0, time.process_time()
    while (spent := time.process_time() - started) < at_least:
        draw(images)
        count += len(images)
    return count / spent


def rate_on(device: torch.device, draw: Draw, images: list[Tensor], batches: int = 50) -> float:
    """Measure images per second of a clock, until so many batches are on the device."""
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(batches):
        draw(images)
    torch.cuda.synchronize(device)
    return batches * len(images) / (time.perf_counter() - started)


def installed(size: int) -> Iterator[tuple[str, Draw]]:
    """Give what augments a list of images, by name: ours, and the peers that are here."""
    yield from ours(size).items()
    for name, module, build in (
        ("torchvision v2, image by image", "torchvision", torchvision_v2),
        ("kornia, batches", "kornia", kornia),
        ("albumentations, image by image, no antialiasing", "albumentations", albumentations),
        ("DALI on a CPU, batches", "nvidia.dali", dali),
    ):
        try:
            importlib.import_module(module)
        except ImportError as error:
            print(f"{name}: left out ({error})", file=sys.stderr)
        else:
            yield name, build(size)


def installed_on(device: torch.device, size: int, images: list[Tensor]) -> Iterator[tuple[str, Draw]]:
    """Give what augments `images` so that they are on a GPU, by name: ours, and kornia where it is here."""
    there, (now, before) = OnDevice.copied(images, device), ours(size).values()
    yield "flowers-bench", lambda _: now(there)
    yield "flowers-bench, by one core", lambda given: now(given).pin_memory().to(device, non_blocking=True)
    yield "before", lambda given: before(given).pin_memory().to(device, non_blocking=True)
    try:
        augment = kornia(size)
    except ImportError as error:
        print(f"kornia: left out ({error})", file=sys.stderr)
    else:
        yield "kornia, batches", lambda _: augment([there[i] for i in range(len(there))])


def ours(size: int) -> Mapping[str, Callable[[Images], Tensor]]:
    """Build `standard` as training draws it now, and its general way."""
    part = discover(only_built_in=True).augmentations["standard"].value
    context = AugmentationContext(size, 2, part.option_values({}))
    transform, parameters, epoch = part.image(context), part.parameters(context), iter(range(10**9))

    def now(images: Images) -> Tensor:
        # A new epoch each time: the numbers of a real one serve all its batches, so that this is no less work.
        return ByParameters.seeded(images, parameters, size, 0, "augment").draw(np.arange(len(images)), next(epoch))

    return {"flowers-bench": now, "before": lambda images: torch.stack([transform(image) for image in images])}


def settings() -> tuple[float, float]:
    """Give the least share of the area in a crop and the strength of the jitter: the defaults of `standard`."""
    options = discover(only_built_in=True).augmentations["standard"].value.option_values({})
    return options.number("min_scale"), options.number("jitter")


def torchvision_v2(size: int) -> Draw:
    """Build torchvision's transforms."""
    from torchvision.transforms import v2

    scale, jitter = settings()
    crop = v2.RandomResizedCrop(size, scale=(scale, 1.0), antialias=True)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.ColorJitter(jitter, jitter, jitter)])
    return lambda images: torch.stack([transform(image) for image in images])


def kornia(size: int) -> Draw:
    """Build kornia's augmentations of a batch."""
    from kornia import augmentation

    scale, jitter = settings()
    transform = torch.nn.Sequential(
        augmentation.RandomResizedCrop((size, size), scale=(scale, 1.0)),
        augmentation.RandomHorizontalFlip(),
        augmentation.ColorJitter(jitter, jitter, jitter, 0.0, p=1.0),
    )
    return lambda images: transform(torch.stack(images).float() / 255)


def albumentations(size: int) -> Draw:
    """Build albumentations' transforms, of numpy images."""
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    scale, jitter = settings()
    change = (1 - jitter, 1 + jitter)
    transform = A.Compose(
        [
            A.RandomResizedCrop(size=(size, size), scale=(scale, 1.0)),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(brightness=change, contrast=change, saturation=change, hue=(0, 0), p=1.0),
        ]
    )

    def draw(images: list[Tensor]) -> Tensor:
        views = [transform(image=image.permute(1, 2, 0).numpy())["image"] for image in images]
        return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)

    return draw


def dali(size: int) -> Draw:
    """Build a pipeline of DALI's operators with one thread."""
    from nvidia.dali import fn, pipeline_def, types

    scale, jitter = settings()
    given: list[np.ndarray] = []

    @pipeline_def(batch_size=BATCH, num_threads=1, device_id=None, exec_async=False, exec_pipelined=False)
    def pipeline() -> object:
        images = fn.external_source(source=lambda: given, batch=True, dtype=types.UINT8, layout="HWC")
        images = fn.random_resized_crop(images, size=(size, size), random_area=(scale, 1.0))
        images = fn.flip(images, horizontal=fn.random.coin_flip())
        change = {
            name: fn.random.uniform(range=(1 - jitter, 1 + jitter)) for name in ("brightness", "contrast", "saturation")
        }
        return fn.color_twist(images, **change)

    built = pipeline()
    built.build()

    def draw(images: list[Tensor]) -> object:
        given[:] = [image.permute(1, 2, 0).numpy() for image in images]
        return torch.from_numpy(built.run()[0].as_array())

    return draw


def table(rates: Mapping[str, list[float]], unit: str) -> Table:
    """Print and give the table: each one's median rate, and how many times as many images we draw."""
    rows = Table(["by", unit, *(f"ours / it{end}" for end in ("", " low", " high"))])
    own = rates["flowers-bench"]
    for name, found in rates.items():
        ratios = [mine / theirs for mine, theirs in zip(own, found, strict=True)]
        ends = [statistics.median(ratios), min(ratios), max(ratios)]
        rows.add(name, f"{statistics.median(found):.0f}", *(f"{value:.2f}" for value in ends))
    return rows


if __name__ == "__main__":
    main()
