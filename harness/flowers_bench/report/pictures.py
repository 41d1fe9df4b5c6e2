"""Pictures for the page: test images from the trials' datasets and the figures that techniques drew, small and inlined."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.report.rows import Finished, Row

if TYPE_CHECKING:
    from PIL import Image

    from flowers_bench.data.dataset import Dataset

#: Pixels of an example image's side, and of a figure's width at most.
THUMBNAIL, FIGURE_WIDTH = 88, 1000
#: Characters that all example images, and all figures, of a page may take.
IMAGES_BUDGET, FIGURES_BUDGET = 1_800_000, 1_500_000


class Examples:
    """Example images of one dataset, as data URIs by key, as many as fit the budget.

    Attributes:
        uris: those that were asked for and fitted.
        missing: why there are none, or None.
    """

    def __init__(self, trial: Finished, budget: int) -> None:
        self.uris: dict[str, str] = {}
        self.missing: str | None = None
        self._left = budget
        try:
            self._test = _dataset(trial).test
        except Exception as error:  # a dataset plugin may raise anything, and a page without images is still a page
            self.missing = f"the images are not at hand: {error}"
            return
        self._places = {key: place for place, key in enumerate(self._test.keys)}

    def want(self, keys: Iterable[str]) -> None:
        """Take these images in, first come first served."""
        if self.missing is not None:
            return
        for key in keys:
            if key in self._places and key not in self.uris and self._left > 0:
                self.uris[key] = _data_uri(_thumbnail(self._test.images[self._places[key]].numpy()), 66)
                self._left -= len(self.uris[key])


def _dataset(trial: Finished) -> Dataset:
    from flowers_bench.errors import UsageError

    if not Path(trial.run["cache_dir"]).is_dir():  # else a dataset would be downloaded again for a page
        raise UsageError(f"{trial.run['cache_dir']} is not there: the trials ran on another machine.")
    from flowers_bench.data.reopen import reopen
    from flowers_bench.host import discover

    host = discover([Path(path) for path in trial.run["plugin_files"]])
    dataset = reopen(host, trial.run, int(trial.config["recipe"]["image_size"]), trial.config["data_options"])
    if dataset.split_checksum != trial.config["dataset"]["split_checksum"]:
        raise UsageError(f"dataset {dataset.name} has another split by now.")
    return dataset


def _thumbnail(pixels: object) -> Image.Image:
    import numpy as np
    from PIL import Image, ImageOps

    image = Image.fromarray(np.ascontiguousarray(np.asarray(pixels).transpose(1, 2, 0)))
    return ImageOps.fit(image, (THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)


def _data_uri(image: Image.Image, quality: int) -> str:
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def figures(rows: Sequence[Row], budget: int) -> list[dict[str, str]]:
    """The pictures that techniques drew, of each row's first seed, as `row`, `name` and `uri`, while they fit."""
    from PIL import Image

    found = []
    for row in rows:
        folder = row.trials[0].folder.path / "figures"
        for path in sorted(folder.glob("*.png")):
            try:
                with Image.open(path) as image:
                    picture = image.convert("RGB")
                    picture.thumbnail((FIGURE_WIDTH, 4 * FIGURE_WIDTH))
            except (OSError, Image.DecompressionBombError):
                continue
            uri = _data_uri(picture, 80)
            if len(uri) <= budget:
                budget -= len(uri)
                found.append({"row": row.name, "name": path.stem.replace("_", " ").replace("-", " "), "uri": uri})
    return found
