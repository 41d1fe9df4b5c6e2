"""Pretrains the weights that come with the package, by the product's own commands: `python benchmarks/pretrain.py --out runs`.

    flowers-bench run ... --data petals --set data.grammar_seed=1   600 species that no dataset shows unasked
    export of weights, float16, without the classifier              harness/flowers_bench/models/weights/petals/

About ten minutes of one core for each network. Run again, it continues. docs/petals.md says how the weights rank.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from platformdirs import user_cache_path

from flowers_bench.models.weights.shipped import FOLDER
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
    "lr": "4e-3",
    "precision": "bfloat16",
}
#: By file: the technique that is trained from random weights, its backbone, and its options.
NETWORKS: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "test_resnet": ("transfer/scratch", "test_resnet", {}),
    "test_resnet.deformable": ("deformable/stage3", "test_resnet", {"stages": "2,3,4"}),
}


def main() -> None:
    """Train what is not trained yet, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="the run store")
    parser.add_argument("--data-dir", type=Path, default=user_cache_path("flowers-bench"), help="where caches lie")
    parser.add_argument("--to", type=Path, default=FOLDER, help="the folder of the files")
    parser.add_argument("--set", action="append", default=[], help="as of flowers-bench run: to try it in small")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    for name, (technique, backbone, settings) in NETWORKS.items():
        changes = dict(change.split("=", 1) for change in options.set)
        folder = pretrained(technique, backbone, {**RECIPE, **settings, **changes}, options.out, options.data_dir)
        path = options.to / f"{name}.safetensors"
        write_weights(folder, path, Sources((), options.data_dir), torch.float16, with_classifier=False)
        found = folder.result()
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, validation top-1 {found.val.top1:.3f}, trial {folder.id}")


def pretrained(technique: str, backbone: str, settings: Mapping[str, str], out: Path, data_dir: Path) -> TrialFolder:
    """Train one network, unless the store has it, and find its trial."""
    before = {folder.id for folder in Store(out).finished()} if out.is_dir() else set()
    command = [
        sys.executable,
        "-m",
        "flowers_bench",
        "run",
        "--plugin",
        technique,
        "--backbone",
        backbone,
        "--weights",
        "none",
    ]
    command += ["--data", "petals", "--data-dir", str(data_dir), "--out", str(out), "--seeds", "1"]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    subprocess.run(command, check=True)
    found = [folder for folder in Store(out).finished() if technique in {label.text for label in folder.labels()}]
    new = [folder for folder in found if folder.id not in before] or found
    return new[-1]


if __name__ == "__main__":
    main()
