"""Pretrains the weights that come with the package, by the product's own commands: `python benchmarks/pretrain.py --out runs`.

    flowers-bench run ... --data petals --set data.grammar_seed=1   600 species that no dataset shows unasked
    export of weights, float16, without the classifier              harness/flowers_bench/models/weights/petals/

About ten minutes of one core for each network and seed. Run again, it continues. Of each network the seed in the middle is written, by
accuracy on validation images of its own species: the best would flatter it. docs/petals.md says how the weights rank.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from platformdirs import user_cache_path

from flowers_bench.contract.host import discover
from flowers_bench.models.weights.shipped import FOLDER
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.training.initial_weights import write_weights
from flowers_bench.training.trained import Sources

#: Of every network: what it is trained on, and how.
RECIPE = {
    "data.grammar_seed": "1",
    "data.species": "600",
    "data.train": "25",
    "data.val": "2",
    "data.test": "1",
    "epochs": "10",
    "warmup_epochs": "1",
    "batch_size": "128",
    "precision": "bfloat16",
}


@dataclass(frozen=True)
class Network:
    """What is trained from random weights for one file: a technique, its backbone, and what the recipe and options are set to."""

    technique: str
    backbone: str
    settings: Mapping[str, str]


#: By file.
NETWORKS: Mapping[str, Network] = {
    "test_resnet": Network("transfer/scratch", "test_resnet", {"lr": "4e-3"}),
    "test_resnet.deformable": Network("deformable/stage3", "test_resnet", {"lr": "4e-3", "stages": "2,3,4"}),
    "test_efficientnet": Network("transfer/scratch", "test_efficientnet", {"lr": "4e-3"}),
    "petals_vit": Network(
        "transfer/scratch",
        "petals_vit",
        {"lr": "2e-3", "data.train": "50", "epochs": "12", "warmup_epochs": "2", "precision": "float32"},
    ),
    "test_resnet.language": Network("flyp/scratch", "test_resnet", {"lr": "4e-3", "precision": "float32"}),
}


def main() -> None:
    """Train what is not trained yet, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="the run store")
    parser.add_argument("--data-dir", type=Path, default=user_cache_path("flowers-bench"), help="where caches lie")
    parser.add_argument("--to", type=Path, default=FOLDER, help="the folder of the files")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each network")
    parser.add_argument("--network", choices=NETWORKS, action="append", help="only this one; may be repeated")
    parser.add_argument("--set", action="append", default=[], help="as of flowers-bench run: to try it in small")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    changes = dict(change.split("=", 1) for change in options.set)
    for name in options.network or NETWORKS:
        found = pretrained(NETWORKS[name], changes, options.out, options.data_dir, options.seeds)
        path = options.to / f"{name}.safetensors"
        middle = found[(len(found) - 1) // 2]
        write_weights(middle, path, Sources((), options.data_dir), torch.float16, with_classifier=False)
        every = ", ".join(f"seed {folder.config().seed} {folder.result().val.top1:.3f}" for folder in found)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, seed {middle.config().seed}; validation top-1: {every}")


def pretrained(
    network: Network, changes: Mapping[str, str], out: Path, data_dir: Path, seeds: int
) -> list[TrialFolder]:
    """Train one network with every seed, unless the store has it; its trials, by accuracy on validation images, worst first."""
    settings = {**RECIPE, **network.settings, **changes}
    command = [sys.executable, "-m", "flowers_bench", "run", "--plugin", network.technique]
    command += ["--backbone", network.backbone, "--weights", "none", "--seeds", str(seeds)]
    command += ["--data", "petals", "--data-dir", str(data_dir), "--out", str(out)]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    subprocess.run(command, check=True)
    request = Request(
        [network.technique],
        "petals",
        data_dir,
        seeds,
        backbone=network.backbone,
        weights="none",
        settings=settings,
        store=out,
    )
    planned = plan(discover(only_built_in=True), request, [])
    folders = [Store(out).folder(item.trial.id) for item in planned]
    return sorted(folders, key=lambda folder: (folder.result().val.top1, folder.config().seed))


if __name__ == "__main__":
    main()
