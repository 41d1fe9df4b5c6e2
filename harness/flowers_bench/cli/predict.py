"""`flowers-bench predict TRIAL IMAGE ...`: what a trained model sees in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowers_bench.errors import printable, unknown_name

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("text", "json")


def predict(
    trial: str,
    images: Sequence[Path],
    top: int,
    format: str,
    out: Path,
    plugins: Sequence[Path] = (),
    data: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Print the `top` classes of each image with their probabilities.

    Args:
        plugins, data, cache: where the trial's code and images may come from: `training.trained.Sources`.

    Raises:
        UsageError: no such trial, images that cannot be read, all of them named, or a plugin file that was not named.
        Unreadable: the trial is damaged.
    """
    from flowers_bench.store import Store

    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    folder = Store(out).find_trained(trial)
    pixels = _decoded(images, folder.config()["recipe"]["image_size"])
    import torch

    from flowers_bench.training.trained import Sources, Trained

    sources = Sources.named(folder, plugins, data, cache)
    trained = Trained.load(folder, torch.device("cuda" if torch.cuda.is_available() else "cpu"), sources)
    probabilities = trained.probabilities(torch.from_numpy(array.copy()).permute(2, 0, 1) for array in pixels)
    records = [
        {"image": str(path), "calibrated": trained.temperature is not None, "predictions": _top(row, trained, top)}
        for path, row in zip(images, probabilities, strict=True)
    ]
    if format == "json":
        from flowers_bench.report.numbers import json_text

        print(json_text(records))
    else:
        _print(records)


def _decoded(images: Sequence[Path], image_size: int) -> list[Any]:
    """Before the model is loaded, so that a bad image is said at once."""
    from flowers_bench.data.decode import decode_images
    from flowers_bench.data.pixels import stored_side

    return list(decode_images(images, stored_side(image_size)))


def _top(row: np.ndarray, trained: Any, top: int) -> list[dict[str, Any]]:
    order = row.argsort(kind="stable")[::-1][:top]
    return [{"class": trained.class_names[c], "label": int(c), "probability": float(row[c])} for c in order]


def _print(records: Sequence[dict[str, Any]]) -> None:
    for record in records:
        print(printable(record["image"]))
        for found in record["predictions"]:
            print(f"  {100 * found['probability']:5.1f} %  {printable(found['class'])}")
    if records and not records[0]["calibrated"]:
        print("not calibrated: every validation image was right, so no temperature could be fitted")
