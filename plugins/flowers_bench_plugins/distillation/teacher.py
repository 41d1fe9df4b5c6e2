"""The teacher: which finished trial it is, whether it may teach, and its network as a function."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench import FinishedTrial, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def find_teacher(name: str, store: Path | None, dataset: Mapping[str, object]) -> FinishedTrial:
    """Find the trial with that id. Raises `UsageError` unless it is finished, predicts by a classifier, and was trained
    on the same data."""
    if not re.fullmatch(r"[0-9a-f]{16}", name):
        raise UsageError(
            f"teacher={name!r} is not a trial's id of 16 digits. Train one, then say --set teacher=ID; "
            "`flowers-bench leaderboard --trials` shows the ids."
        )
    if store is None:
        raise UsageError("distillation needs a run store to find its teacher in.")
    try:
        teacher = FinishedTrial.find(store, name)
    except UsageError as error:
        raise UsageError(f"no teacher: {error}") from error
    for key in ("name", "classes", "n_train", "split_checksum") if dataset else ():
        if teacher.dataset[key] != dataset[key]:
            raise UsageError(
                f"teacher {name} was trained on {teacher.dataset['name']} with {key} {teacher.dataset[key]}; the student's "
                f"dataset {dataset['name']} has {dataset[key]}. Both must have the same images in the same splits."
            )
    if teacher.predictor != "classifier":
        raise UsageError(f"teacher {name} predicts by {teacher.predictor}: its logits were not trained to be right.")
    return teacher


def load_teacher(
    teacher: FinishedTrial,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
    *,
    plugins: Sequence[Path] = (),
) -> Callable[[Tensor], Tensor]:
    """Load the trained network of a trial as a function from images (N, 3, S, S), normalised by the student's `mean`
    and `std`, to logits (N, C). The network gets them at the size and with the normalisation that it was trained
    with."""
    import torch
    import torch.nn.functional as F

    from flowers_bench.backbones import mean_and_std

    model = teacher.model(device, plugins)
    size = teacher.image_size
    own_mean, own_std, mine, spread = (
        torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (*mean_and_std(model), mean, std)
    )

    def logits(images: Tensor) -> Tensor:
        pixels = (images * spread + mine - own_mean) / own_std
        if pixels.shape[-1] != size:
            pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        found: Tensor = model(pixels).logits
        return found

    return logits
