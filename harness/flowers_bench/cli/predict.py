"""`flowers-bench predict TRIAL IMAGE ...`: predict the classes of images with a trained model."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.cli.exit_codes import FAILED
from flowers_bench.store.records import Config
from flowers_bench.util.errors import UsageError, unknown_name
from flowers_bench.util.text import printable

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("text", "json")


@dataclass(frozen=True)
class Likely:
    """A class that an image may have, and its probability."""

    name: str
    label: int
    probability: float


@dataclass(frozen=True)
class Seen:
    """The predictions for one image, likeliest class first; `calibrated` says whether the probabilities are calibrated."""

    image: str
    calibrated: bool
    predictions: list[Likely]

    def json(self) -> dict[str, object]:
        """Give the JSON values that `--format json` prints."""
        found = [{"class": one.name, "label": one.label, "probability": one.probability} for one in self.predictions]
        return {"image": self.image, "calibrated": self.calibrated, "predictions": found}


def predict(
    trial: str,
    images: Sequence[Path],
    top: int,
    format: str,
    out: Path,
    plugins: Sequence[Path] = (),
    data: Path | None = None,
    cache: Path | None = None,
    device: str | None = None,
) -> int:
    """Print the `top` classes of each image with their probabilities; for a folder, of each image in it.

    Images that cannot be read, and folders without images, are named on stderr; the other images are predicted.

    Args:
        plugins, data, cache: where the trial's code and images may come from, as in `training.trained.Sources`.
        device: what to compute on, as `training.process.choose_device` takes it.

    Raises:
        UsageError: there is no such trial, none of the images can be read, or a plugin file of the trial was not named.
        Unreadable: the trial is damaged.

    Returns:
        The exit code: 0, or `FAILED` if an image or a folder could not be read.
    """
    from flowers_bench.store.folder import Store

    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    folder = Store(out).find_trained(trial)
    paths, missing = _listed(images)
    pixels = _decoded(paths, folder.config())
    import torch

    from flowers_bench.training.process import choose_device
    from flowers_bench.training.trained import Sources, Trained

    readable = [(path, array) for path, array in zip(paths, pixels, strict=True) if not isinstance(array, UsageError)]
    failures = [str(error) for error in (*missing, *pixels) if isinstance(error, UsageError)]
    if not readable:
        raise UsageError("\n".join(failures))
    sources = Sources.named(folder, plugins, data, cache)
    trained = Trained.load(folder, choose_device(device), sources)
    probabilities = trained.probabilities(torch.from_numpy(array.copy()).permute(2, 0, 1) for _, array in readable)
    seen = [
        Seen(str(path), trained.temperature is not None, _top(row, trained.class_names, top))
        for (path, _), row in zip(readable, probabilities, strict=True)
    ]
    if format == "json":
        from flowers_bench.report.formatting import json_text

        print(json_text([one.json() for one in seen]))
    else:
        _print(seen)
    for failure in failures:
        sys.stderr.write(f"error: {printable(failure)}\n")
    return FAILED if failures else 0


def _listed(images: Sequence[Path]) -> tuple[list[Path], list[UsageError]]:
    """List the files, with each folder replaced by the images below it; and errors for folders without images."""
    from flowers_bench.data.files import images_below

    found: list[Path] = []
    missing: list[UsageError] = []
    for given in images:
        try:
            found += images_below(given) if os.path.isdir(given) else [given]
        except UsageError as error:
            missing.append(error)
    return found, missing


def _decoded(images: Sequence[Path], config: Config) -> list[np.ndarray | UsageError]:
    """Decode each image to uint8 (H, W, 3), or give the error; this is done before the model is loaded, to fail early.

    Images with more than 8 bits are scaled as in the dataset that the trial was trained on. If that had no such images,
    they are scaled by the full range of their format, and images that use little of it are named on stderr.
    """
    from flowers_bench.data.decode import decode_image, facts_of
    from flowers_bench.data.levels import scales_from, unlikely_scale
    from flowers_bench.data.pixels import stored_side
    from flowers_bench.data.threads import in_order

    scales, side = scales_from(config.dataset), stored_side(config.recipe.image_size)

    def attempt(path: Path) -> np.ndarray | UsageError:
        try:
            pixels = decode_image(path, side, scales)
        except UsageError as error:
            return error
        levels = facts_of(path).levels
        if levels and (doubt := unlikely_scale(levels, scales)):
            sys.stderr.write(printable(f"note: image {path} {doubt}\n"))
        return pixels

    return list(in_order(attempt, images))


def _top(row: np.ndarray, class_names: Sequence[str], top: int) -> list[Likely]:
    order = row.argsort(kind="stable")[::-1][:top]
    return [Likely(class_names[label], int(label), float(row[label])) for label in order]


def _print(seen: Sequence[Seen]) -> None:
    for one in seen:
        print(printable(one.image))
        for found in one.predictions:
            print(f"  {100 * found.probability:5.1f} %  {printable(found.name)}")
    if seen and not seen[0].calibrated:
        print(
            "not calibrated: no temperature is the best one, as where every validation image was right, or the scores say nothing"
        )
