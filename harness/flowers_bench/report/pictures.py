"""Prepare pictures for the page, small and inlined: test images from the datasets, and figures that techniques drew."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.data.decode import MAX_PIXELS
from flowers_bench.report.aggregate import Finished, Row
from flowers_bench.store.reading import damaged
from flowers_bench.util.errors import Unreadable, UsageError
from flowers_bench.util.files import read_regular
from flowers_bench.util.text import printable

if TYPE_CHECKING:
    from PIL import Image

    from flowers_bench.contract.dataset import Dataset
    from flowers_bench.store.folder import TrialFolder

#: Largest shorter side of an example image, and largest width of a figure, in pixels.
THUMBNAIL, FIGURE_WIDTH = 144, 1000
#: What is more than so many times as long as wide is cut at both ends.
LONGEST = 2.0
#: Largest size of a figure's file, in bytes.
LARGEST_PICTURE = 64 << 20
#: Largest ratio of a figure's height to its width.
TALLEST = 20
#: The number of characters that all example images, and all figures, of a page may take together.
IMAGES_BUDGET, FIGURES_BUDGET = 1_800_000, 1_500_000


class Examples:
    """Example images of one dataset, as data URIs by key; as many as fit into a budget of characters.

    Attributes:
        uris: the images that were wanted and fitted.
        missing: why there are no images, or None.
    """

    def __init__(self, trial: Finished, budget: int) -> None:
        self.uris: dict[str, str] = {}
        self.missing: str | None = None
        self._left = budget
        try:
            self._test = _dataset(trial).test
        except Exception as error:  # a cache may be damaged in any way, and a page without images is better than none
            self.missing = f"the images are not at hand: {error}"
            return
        self._places = {key: place for place, key in enumerate(self._test.keys)}

    def want(self, keys: Iterable[str]) -> None:
        """Add these images, in this order, as long as the budget lasts."""
        if self.missing is not None:
            return
        for key in keys:
            if key in self._places and key not in self.uris and self._left > 0:
                self.uris[key] = _data_uri(_thumbnail(self._test.images[self._places[key]].numpy()), 60)
                self._left -= len(self.uris[key])


def _dataset(trial: Finished) -> Dataset:
    """Open the trial's dataset from its caches alone: nothing is downloaded, decoded or written, and no plugin file runs.

    Raises:
        UsageError: the caches are not on this machine, or have another split.
    """
    run = trial.run
    if not run.cache_dir or not Path(run.cache_dir).is_dir():
        raise UsageError(f"{run.cache_dir or 'their cache'} is not there: the trials ran on another machine.")
    # All plugins and torch come with these: only where there are images to show.
    from flowers_bench.contract.host import discover
    from flowers_bench.data.reopen import DataPlace, reopen

    host = discover(only_built_in=True)
    if run.data_source not in host.datasets:
        raise UsageError("they are of a dataset that comes with a plugin.")
    place = DataPlace.of(run)
    options = {name: value for name, value in trial.config.data_options.items() if value is not None}
    dataset = reopen(host, place, trial.config.recipe.image_size, options, read_only=True)
    if dataset.split_checksum != trial.config.dataset.split_checksum:
        raise UsageError(f"dataset {dataset.name} has another split by now.")
    return dataset


def _thumbnail(pixels: object) -> Image.Image:
    """Make a picture that is no larger than the stored one, of (3, H, W) pixels."""
    import numpy as np
    from PIL import Image, ImageOps

    image = Image.fromarray(np.ascontiguousarray(np.asarray(pixels).transpose(1, 2, 0)))
    width, height = image.size
    short = min(width, height)
    scale = min(1.0, THUMBNAIL / short)
    sides = [round(scale * min(side, LONGEST * short)) for side in (width, height)]
    return ImageOps.fit(image, (sides[0], sides[1]), Image.Resampling.LANCZOS)


def _data_uri(image: Image.Image, quality: int) -> str:
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


@dataclass(frozen=True)
class Picture:
    """A picture that a technique drew: the name of its row, its own name, and its content as a data URI."""

    row: str
    name: str
    uri: str


def figures(rows: Sequence[Row], budget: int) -> list[Picture]:
    """Read the pictures that techniques drew, of each row's first seed, as many as fit into `budget` characters."""
    found = []
    for row in rows:
        for path in drawn(row):
            try:
                picture = read_picture(path)
            except Unreadable:
                continue
            picture.thumbnail((FIGURE_WIDTH, 4 * FIGURE_WIDTH))
            uri = _data_uri(picture, 80)
            if len(uri) <= budget:
                budget -= len(uri)
                name = printable(path.stem.replace("_", " ").replace("-", " "))
                found.append(Picture(row.name, name, uri))
    return found


def drawn(row: Row) -> list[Path]:
    """List the files of the pictures that the row's technique drew for its first seed."""
    folder = row.trials[0].folder.figures_path
    return [] if folder.is_symlink() else sorted(folder.glob("*.png"))


def damaged_pictures(folders: Iterable[TrialFolder]) -> list[Unreadable]:
    """Collect the reasons why pictures of these trials cannot be shown; the rest of such a trial can be."""
    found = []
    for place in (folder.figures_path for folder in folders):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            found.append(damaged(place, "is not a folder"))
            continue
        for path in sorted(place.glob("*.png")):
            try:
                read_picture(path)
            except Unreadable as error:
                found.append(error)
    return found


def read_picture(path: Path) -> Image.Image:
    """Read a picture of a trial in RGB, on a white background.

    Raises:
        Unreadable: it is not a complete PNG file, it is too large, or its height is over `TALLEST` times its width.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        content = read_regular(path, LARGEST_PICTURE, follow_links=False)
        # Only PNG is allowed, because for some formats Pillow starts an interpreter, whatever the file's name says.
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS or image.height > TALLEST * image.width:
                raise ValueError(f"it is {image.width} x {image.height} pixels large")
            picture = image.convert("RGBA")
    except UnidentifiedImageError as error:
        raise damaged(path, "cannot be read: it is no PNG") from error
    except (
        Exception
    ) as error:  # decoders raise many kinds of errors: OSError, SyntaxError, ValueError, struct.error, ...
        raise damaged(path, f"cannot be read: {error}") from error
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
