"""python benchmarks/training_table.py ROW: time of a training with the plain loop of book_loop.py, divided by ours.

Rows: `frozen` (ResNet-18, 224 px, three frozen stages, 20 epochs), `probe` (a linear classifier on frozen features, 50
epochs), `finetune` (everything trained, 3 epochs), `finetune-bfloat16`. Both sides train on the same images with the
same optimiser, rate, batches, epochs and crops, without augmentation, and keep the best validation epoch. They take
turns, each in a new process. The time is measured from the files to the trained model: it includes reading, decoding and
storing, but not the test afterwards; images/s are those of the training steps alone. `cold` starts with empty caches;
`warm` finds the decoded images and the frozen layers' activations of an earlier seed.

The images are Flowers17 if FLOWERS_BENCH_SHARED names a folder with data/flowers17, else drawn petals: `--train` of each
class, half as many for validation, and 10 for the test. With 17 classes, an epoch has 6 x 17 = 102 training images and 51
validation images, together 153; with other numbers of images, both times grow in proportion.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tables import Table

#: By row: frozen children of the backbone for the book, options for us, epochs, precision.
ROWS = {
    "frozen": (("conv1", "bn1", "layer1", "layer2", "layer3"), ["--set", "freeze=3"], 20, "float32"),
    "probe": (("*",), ["--set", "freeze=-1"], 50, "float32"),
    "finetune": ((), ["--set", "freeze=0"], 3, "float32"),
    "finetune-bfloat16": ((), ["--set", "freeze=0"], 3, "bfloat16"),
}
LR, BATCH, SIZE = 1e-3, 32, 224


def main() -> None:
    """Run the command line; with `--side`, one training of that side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", type=int, default=6, help="training images of each class")
    parser.add_argument("--epochs", type=int, help="instead of the row's")
    parser.add_argument("--size", type=int, default=SIZE, help="pixels")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", help="a file; default: random initial weights, the same for all")
    parser.add_argument("--csv", type=Path, help="write the row here too, below those that the file has")
    parser.add_argument("--side", choices=("book", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps((book if options.side == "book" else ours)(options)))
    else:
        table(options)


def table(options: argparse.Namespace) -> None:
    """Run all rounds of one row, and print the row as Markdown."""
    found: dict[str, list[dict[str, float]]] = {"book": [], "cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "images")
        origin = gather(folder, options.train)
        weights = options.weights or initial(options.backbone, Path(place, "initial.pt"))
        for turn in range(options.rounds):
            cache = Path(place, f"cache-{turn}")
            common = ["--weights", weights, "--folder", str(folder), "--cache", str(cache)]
            for side, seed in (("book", turn), ("cold", turn), ("warm", options.rounds + turn)):
                own = ["--seed", str(seed), "--side", "book" if side == "book" else "ours"]
                command = [sys.executable, __file__, *sys.argv[1:], *common, *own]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[side].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{side} {found[side][-1]}", file=sys.stderr)
    epochs = options.epochs or ROWS[options.row][2]
    print(
        f"{origin}, {options.train} training images a class, {options.backbone}, {options.size} px, {epochs} epochs, ",
        end="",
    )
    print(f"{options.rounds} rounds, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the end:\n")
    compared = ("book / cold", "book / warm", "images/s, cold / book")
    accuracies = tuple(f"top-1 % {side}" for side in found)
    heads = ["row", *(f"{side} s" for side in found)]
    heads += [f"{name}{end}" for name in (*compared, *accuracies) for end in ("", " low", " high")]
    rows = Table(heads)
    seconds = {side: [run["seconds"] for run in runs] for side, runs in found.items()}
    cells = [f"{statistics.median(values):.1f}" for values in seconds.values()]
    for side in ("cold", "warm"):
        cells += ratio(seconds["book"], seconds[side])
    training = {side: [run["train_seconds"] for run in runs] for side, runs in found.items()}
    cells += ratio(training["book"], training["cold"])
    for runs in found.values():
        cells += interval(runs)
    rows.add(options.row, *cells)
    if options.csv:
        if options.csv.exists():
            rows.rows[:0] = Table.read(options.csv).rows
        rows.write(options.csv)


def initial(backbone: str, path: Path) -> str:
    """Write a file of random initial weights, the same for all trainings; return its path."""
    import timm
    import torch

    torch.manual_seed(0)
    torch.save(timm.create_model(backbone).state_dict(), path)
    return str(path)


def ratio(book: list[float], ours: list[float]) -> list[str]:
    """Compute the median over the rounds of that round's ratio, and its range, which one round has none of."""
    ratios = [a / b for a, b in zip(book, ours, strict=True)]
    ends = [f"{min(ratios):.2f}", f"{max(ratios):.2f}"] if len(ratios) > 1 else ["", ""]
    return [f"{statistics.median(ratios):.2f}", *ends]


def interval(runs: list[dict[str, float]]) -> list[str]:
    """Compute the accuracy over all runs' test images, and its 95 % Wilson interval."""
    from scipy.stats import binomtest

    total = int(sum(run["images"] for run in runs))
    right = round(sum(run["top1"] * run["images"] for run in runs))
    # All runs have the same test images, so that the interval is computed for the number of images in one run.
    shown = binomtest(round(right * len(runs) ** -1), total // len(runs)).proportion_ci(method="wilson")
    return [f"{100 * value:.1f}" for value in (right / total, shown.low, shown.high)]


def gather(folder: Path, train: int) -> str:
    """Write class folders of photographs, or of drawn images; return which of them, in words."""
    counts = {"train": train, "val": max(1, train // 2), "test": 10}
    shared = Path(os.environ.get("FLOWERS_BENCH_SHARED", "nowhere"), "data", "flowers17")
    if shared.is_dir():
        for split, count in counts.items():
            for source in sorted((shared / split).iterdir()):
                target = folder / split / source.name
                target.mkdir(parents=True)
                for image in sorted(source.iterdir())[:count]:
                    shutil.copy(image, target)
        return "Flowers17"
    from PIL import Image

    from flowers_bench.data.petals import render

    for split, count in counts.items():
        for number in range(17):
            target = folder / split / f"species-{number:02d}"
            target.mkdir(parents=True)
            for index, pixels in enumerate(render([number] * count, split, range(count), 256)[0]):
                Image.fromarray(pixels).save(target / f"{index}.jpg", quality=90)
    return "petals"


def book(options: argparse.Namespace) -> dict[str, float]:
    """Train with the loop of book_loop.py; return times in seconds, test accuracy from 0 to 1, and test images."""
    import book_loop
    import torch

    frozen, _, epochs, precision = ROWS[options.row]
    started = time.perf_counter()
    torch.manual_seed(options.seed)
    classes = len(list((options.folder / "train").iterdir()))
    model = book_loop.build(options.backbone, Path(options.weights), classes, frozen)
    config = model.default_cfg
    data = book_loop.loaders(options.folder, options.size, BATCH, config["mean"], config["std"])
    train_seconds = book_loop.train(model, data, options.epochs or epochs, LR, precision)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "train_seconds": train_seconds,
        "top1": book_loop.accuracy(model, data["test"]),
        "images": len(data["test"].dataset),  # type: ignore[arg-type]
    }


def ours(options: argparse.Namespace) -> dict[str, float]:
    """Train the same as a trial; return times in seconds, test accuracy from 0 to 1, and test images."""
    from flowers_bench.contract.host import discover
    from flowers_bench.plan.planning import plan
    from flowers_bench.plan.request import Request
    from flowers_bench.store.folder import Store
    from flowers_bench.training.trial import run_trial

    _, own_settings, epochs, precision = ROWS[options.row]
    recipe = f"optimizer=adam lr={LR} weight_decay=0 schedule=constant warmup_epochs=0 batch_size={BATCH} patience=none"
    settings = dict(setting.split("=") for setting in recipe.split())
    settings |= {"epochs": str(options.epochs or epochs), "image_size": str(options.size), "precision": precision}
    settings |= dict([own_settings[1].split("=")])
    started = time.perf_counter()
    request = Request(
        ["transfer/k3"],
        str(options.folder),
        options.cache,
        seeds=options.seed + 1,
        backbone=options.backbone,
        weights=options.weights,
        augmentation="none",
        settings=settings,
    )
    planned = plan(discover([]), request, [])[-1]
    planning = time.perf_counter() - started
    folder = Store(options.cache / "runs").prepare(planned.trial, replace(planned.run, command=[]))
    run_trial(folder, lambda event: None)
    result = folder.result()
    cost = result.cost
    return {
        "seconds": planning + (cost.setup_seconds or 0) + cost.seconds,
        "top1": result.test.top1,
        "images": result.test.n,
        "data_wait_share": cost.data_wait_share,
        "setup_seconds": cost.setup_seconds,
        "train_seconds": cost.train_seconds,
        "planning": planning,
        "prefix_seconds": cost.prefix_cache.get("seconds", 0.0),
    }


if __name__ == "__main__":
    main()
