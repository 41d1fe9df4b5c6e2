"""A plugin for tests, as a single file: a tiny dataset, a tiny network, and a technique that trains in a second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flowers_bench import (
    DataRequest,
    Dataset,
    DatasetSource,
    Model,
    ModelContext,
    Option,
    Recipe,
    Split,
    Technique,
    Variant,
    hookimpl,
)
from flowers_bench.contract.dataset import split_checksum


class _Images:
    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: int) -> Any:
        import torch

        return torch.from_numpy(self._array[index])


def load(request: DataRequest) -> Dataset:
    """Four classes of noisy colour patterns, 16 px."""
    classes, size = 4, 16
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (classes, 3, size, size))
    splits, listing = {}, {}
    for name, count in (("train", 12), ("val", 8), ("test", 10)):
        labels = np.repeat(np.arange(classes), count)
        noise = rng.normal(0, float(request.options.get("noise", 60)), (len(labels), 3, size, size))
        pixels = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8)
        keys = [f"{name}/{i}" for i in range(len(labels))]
        splits[name] = Split(_Images(pixels), labels.astype(np.int64), keys)
        listing[name] = (keys, labels.tolist())
    checksum = split_checksum(listing)
    return Dataset(
        "toy",
        [f"class {i}" for i in range(classes)],
        **splits,
        fingerprint=checksum,
        split_checksum=checksum,
        resolution="16x16",
    )


def build(context: ModelContext) -> Any:
    """Two convolutions and a linear classifier; `explode` makes the loss infinite at once."""
    import torch
    from torch import nn

    from flowers_bench.nn import Output

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(3, 8, 3, 2, 1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 16, 3, 2, 1),
                nn.ReLU(),
                nn.Dropout(float(context.options["dropout"])),
            )
            self.fc = nn.Linear(16, context.num_classes)

        def forward(self, images: torch.Tensor) -> Output:
            embedding = self.body(images).mean((2, 3))
            scale = float("inf") if context.options["explode"] else 1.0
            return Output(self.fc(embedding) * scale, embedding)

    return Net()


@hookimpl
def register_datasets() -> list[DatasetSource]:
    return [DatasetSource("toy", "noisy patterns", load, options={"noise": 60.0})]


@hookimpl
def register_models() -> list[Model]:
    options = {"explode": Option(False, "infinite loss"), "dropout": Option(0.1, "share that is dropped")}
    return [Model("toy-net", "two convolutions", options=options, build=build)]


@hookimpl
def register_techniques() -> list[Technique]:
    recipe = Recipe(lr=1e-2, epochs=4, batch_size=16, image_size=16, warmup_epochs=1)
    variants: Mapping[str, Variant] = {
        "plain": Variant("as it is", baseline="short"),
        # Also with as many epochs as `plain` it is another training.
        "short": Variant("one epoch", recipe={"epochs": 1, "clip_norm": 100.0}),
        "explode": Variant("not finite", options={"explode": True}),
    }
    return [
        Technique(
            "toy",
            "for tests",
            (),
            model="toy-net",
            loss="cross-entropy",
            augmentation="standard",
            recipe=recipe,
            variants=variants,
            default="plain",
        )
    ]
