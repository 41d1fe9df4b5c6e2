"""The dataset of a trial, from the place that its `run.json` names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowers_bench.contract.dataset import DataRequest, Dataset
from flowers_bench.contract.host import Host
from flowers_bench.data.pixels import stored_side
from flowers_bench.data.shots import few_shot
from flowers_bench.store.identity import Trial
from flowers_bench.util.errors import UsageError


def reopen(
    host: Host, run: Mapping[str, Any], image_size: int, options: Mapping[str, Any], *, read_only: bool = False
) -> Dataset:
    """Load a trial's dataset from where it is now. Whether its content is still the trial's is for the caller to check.

    Args:
        run: the trial's `run.json`.
        image_size: its recipe's, in pixels.
        options: its `data_options`.
        read_only: write and download nothing; raises `UsageError` where that would be needed.
    """
    source = host.find("dataset", host.datasets, run["data_source"]).value
    path = Path(run["data_path"]) if run["data_path"] else None
    request = DataRequest(
        Path(run["cache_dir"]), path, stored_side(image_size), source.option_values(options), read_only=read_only
    )
    return source.load(request)


def load_dataset(host: Host, trial: Trial, run: Mapping[str, Any]) -> Dataset:
    """Open the trial's dataset, with the training images that its protocol allows. Raises `UsageError` if its content has
    changed since the trial was planned."""
    dataset = reopen(host, run, trial.recipe.image_size, trial.data_options)
    if dataset.fingerprint != trial.dataset["fingerprint"]:
        raise UsageError(
            f"the images of dataset {dataset.name} changed since this trial was planned. Run the command again."
        )
    return few_shot(dataset, trial.protocol.shots, trial.seed)
