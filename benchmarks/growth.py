"""python benchmarks/growth.py [NAME ...]: how time and memory grow with images, classes, trials and seeds.

Each size is measured in a separate process, so that its memory peak is not that of another size. The exponent is the slope
of a straight line through log(seconds) over log(size), for the sizes from `--from` on. In smaller sizes, the constant cost
of a call hides the part that grows.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from tables import Table

Work = Callable[[], object]
ROOT = Path(__file__).parents[1]
DIM = 512


def embeddings(count: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw embeddings, float32 (count, DIM), and labels, int64 (count)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, DIM, generator=generator), torch.arange(count) % classes


def knn(images: int) -> Work:
    """Find the nearest neighbours of 1,000 queries among this many training images."""
    from flowers_bench_plugins.knn.predictor import knn_scores

    support, labels = embeddings(images, 100)
    return lambda: knn_scores(support, labels, support[:1000], 100, 5)


def class_means(images: int) -> Work:
    """Compute the prototypes of 100 classes from this many images."""
    from flowers_bench_plugins.prototypical import predictor

    support, labels = embeddings(images, 100)
    return lambda: predictor.class_means(support, labels, 100)


def retrieval(images: int) -> Work:
    """Compute recall@1 and MAP@R of this many images, ten of each class: every image is a query among all others."""
    from flowers_bench.measure.retrieval import retrieval

    found, labels = embeddings(images, images // 10)
    return lambda: retrieval(found.numpy(), labels.numpy())


def quality(images: int) -> Work:
    """Compute the metrics of one split with this many images, 100 classes."""
    from flowers_bench.measure import quality

    logits, labels = np.random.default_rng(0).normal(size=(images, 100)).astype(np.float32), np.arange(images) % 100
    return lambda: quality.quality_by_class(logits, labels)


def folder(images: int) -> Work:
    """Open a folder of this many 32 px images whose hashes and pixels are cached."""
    from flowers_bench.contract.dataset import DataRequest
    from flowers_bench.data.folder import load

    place = Path(tempfile.mkdtemp())
    _draw(place / "images", images)
    request = DataRequest(place / "cache", place / "images", 36, {"val": 0.2, "test": 0.2, "split_seed": 0})
    load(request)
    return lambda: load(request)


def prototypes(classes: int) -> Work:
    """Compute the class means of 20,000 images of this many classes, and the scores of 1,000 queries."""
    from flowers_bench.nn import distance_scores
    from flowers_bench_plugins.prototypical.predictor import class_means

    support, labels = embeddings(20_000, classes)
    return lambda: distance_scores(support[:1000], class_means(support, labels, classes), "euclidean")


def quality_by_class(classes: int) -> Work:
    """Compute the metrics of 20,000 test images of this many classes, by class and overall."""
    from flowers_bench.measure import quality

    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(20_000, classes)).astype(np.float32), np.arange(20_000) % classes
    return lambda: quality.quality_by_class(logits, labels)


def leaderboard(trials: int) -> Work:
    """Make the leaderboard of this many stored trials, five seeds of each configuration, 400 test images."""
    from flowers_bench.report.leaderboard import Leaderboard

    store = _store(trials)
    return lambda: Leaderboard.of(store.finished())


def report(trials: int) -> Work:
    """Render the report page of the same trials."""
    from flowers_bench.report.leaderboard import Leaderboard
    from flowers_bench.report.page import render

    store = _store(trials)
    return lambda: render(Leaderboard.of(store.finished()), [])


def memory_guard(trials: int) -> Work:
    """Look up what `--jobs` needs before each of 20 starts, in a store of this many trials."""
    from flowers_bench.executors.memory import expected_peak

    folders = _store(trials).finished()
    return lambda: [expected_peak(folder) for folder in folders[:20]]


def seeds(count: int) -> Work:
    """Compute the interval of the accuracy, and the comparison of two rows, for this many seeds of 1,000 images."""
    from flowers_bench.measure.statistics import accuracy_interval, paired_difference

    rng = np.random.default_rng(0)
    first, second = (rng.random((count, 1000)) < share for share in (0.80, 0.82))
    return lambda: (accuracy_interval(first), paired_difference(first, second))


def _draw(root: Path, count: int) -> None:
    from PIL import Image

    classes, rng = 100, np.random.default_rng(0)
    for split, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        for label in range(classes):
            (root / split / f"{label:03}").mkdir(parents=True)
        for number in range(round(count * share)):
            pixels = np.kron(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
            Image.fromarray(pixels).save(root / split / f"{number % classes:03}" / f"{number}.png", compress_level=1)


def _store(trials: int):  # type: ignore[no-untyped-def]
    sys.path.insert(0, str(ROOT / "tests"))
    from stored import outcomes, store_trial

    from flowers_bench.store.folder import Store

    place = Path(tempfile.mkdtemp())
    for number in range(trials):
        store_trial(place, f"technique{number // 5}/plain", number % 5, outcomes(number, 0.5 + 0.4 * (number % 7) / 7))
    return Store(place)


SIZES: dict[str, tuple[Callable[[int], Work], tuple[int, ...]]] = {
    "knn": (knn, (1000, 10_000, 50_000, 200_000)),
    "class_means": (class_means, (1000, 10_000, 50_000, 200_000)),
    "retrieval": (retrieval, (1000, 4000, 16_000)),
    "quality": (quality, (1000, 10_000, 50_000, 200_000)),
    "folder": (folder, (1000, 10_000, 50_000)),
    "prototypes": (prototypes, (10, 100, 1000, 10_000)),
    "quality_by_class": (quality_by_class, (10, 100, 1000, 10_000)),
    "leaderboard": (leaderboard, (10, 100, 1000)),
    "report": (report, (10, 100, 1000)),
    "memory_guard": (memory_guard, (10, 100, 1000)),
    "seeds": (seeds, (2, 5, 10, 20, 50)),
}


def _measure(make: Callable[[int], Work], size: int, results: Connection) -> None:
    work = make(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, busy = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - started, time.process_time() - busy
    results.send((seconds, cpu, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Fit the slope of log(seconds) over log(size); NaN for one size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]) if len(sizes) > 1 else math.nan


def plot(found: dict[str, list[tuple[int, float, float]]], path: Path) -> None:
    """Draw processor time and memory over size; both scales are logarithmic, so that a slope is an exponent.

    Args:
        found: by name, (size, seconds of the processor, megabytes beyond the arguments) for each size.
        path: the file, which ends in .svg or .png.
    """
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    for axes, column, title in zip(figure.subplots(1, 2), (1, 2), ("seconds of the processor", "MB more"), strict=True):
        for name, points in found.items():
            shown = [(point[0], point[column]) for point in points if point[column] > 0]
            if shown:
                axes.loglog(*zip(*shown, strict=True), marker="o", markersize=3, label=name)
        axes.set(xlabel="images, classes, trials or seeds", ylabel=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--sizes", help="in place of the usual ones, with commas between")
    parser.add_argument("--from", dest="least", type=int, default=0, help="smallest size that the exponent counts")
    parser.add_argument("--csv", type=Path, help="write the table here too")
    parser.add_argument("--plot", type=Path, help="draw what was measured into this file, .svg or .png")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(SIZES))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    context = multiprocessing.get_context("spawn")
    table = Table(["what", "size", "seconds", "of the processor", "more memory MB", "exponent"])
    found: dict[str, list[tuple[int, float, float]]] = {}
    for name in options.names or SIZES:
        make, usual = SIZES[name]
        sizes = [int(size) for size in options.sizes.split(",")] if options.sizes else list(usual)
        used: list[float] = []
        for size in sizes:
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_measure, args=(make, size, writer))
            process.start()
            writer.close()
            seconds, cpu, megabytes = reader.recv()
            process.join()
            used.append(cpu)
            found.setdefault(name, []).append((size, cpu, megabytes))
            counted = [(n, s) for n, s in zip(sizes, used, strict=False) if n >= options.least]
            slope = f"{exponent(*map(list, zip(*counted, strict=True))):.2f}" if len(counted) > 1 else ""
            table.add(name, size, f"{seconds:.3f}", f"{cpu:.3f}", f"{megabytes:.0f}", slope)
    if options.csv:
        table.write(options.csv)
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
