"""The dataset of a trial, from the place that its `run.json` names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flowers_bench.contract.dataset import DataRequest, Dataset
from flowers_bench.contract.host import Host
from flowers_bench.contract.options import OptionValue
from flowers_bench.data.pixels import stored_side
from flowers_bench.data.shots import few_shot
from flowers_bench.store.identity import Trial
from flowers_bench.store.records import Run
from flowers_bench.util.errors import UsageError


@dataclass(frozen=True)
class DataPlace:
    """Where a trial's images are on this machine.

    Attributes:
        source: name of the dataset's source.
        path: the folder of images, for sources that take one.
        cache: where downloads and decoded images lie.
    """

    source: str
    path: Path | None
    cache: Path

    @classmethod
    def of(cls, run: Run) -> DataPlace:
        """Read it as the trial's `run.json` has it. Raises `UsageError` where it does not say it."""
        if run.data_source is None or run.cache_dir is None:
            raise UsageError("run.json does not say where the trial's images are. Run the command again.")
        return cls(run.data_source, Path(run.data_path) if run.data_path else None, Path(run.cache_dir))


def reopen(
    host: Host, place: DataPlace, image_size: int, options: Mapping[str, OptionValue], *, read_only: bool = False
) -> Dataset:
    """Load a trial's dataset from where it is now. Whether its content is still the trial's is for the caller to check.

    Args:
        image_size: the recipe's, in pixels.
        options: the trial's `data_options`.
        read_only: write and download nothing; raises `UsageError` where that would be needed.
    """
    source = host.find("dataset", host.datasets, place.source).value
    values = source.option_values(options)
    request = DataRequest(place.cache, place.path, stored_side(image_size), values, read_only=read_only)
    return source.load(request)


def load_dataset(host: Host, trial: Trial, place: DataPlace) -> Dataset:
    """Open the trial's dataset, with the training images that its protocol allows. Raises `UsageError` if its content has
    changed since the trial was planned."""
    dataset = reopen(host, place, trial.recipe.image_size, trial.data_options)
    if dataset.fingerprint != trial.dataset["fingerprint"]:
        raise UsageError(
            f"the images of dataset {dataset.name} changed since this trial was planned. Run the command again."
        )
    return few_shot(dataset, trial.protocol.shots, trial.seed)
