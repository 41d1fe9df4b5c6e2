"""A plugin whose techniques go wrong inside their trials, each in its own way, until a file `calm` lies in the folder
that FAULTS names: so that the same command, run again, can be seen to complete."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from flowers_bench import Model, ModelContext, Option, Recipe, Technique, Variant, hookimpl

WAYS = ("raises", "exits", "crashes", "leaks", "hangs", "returns-nonsense", "prints")


def _misbehave(way: str) -> None:
    if way == "raises":
        raise RuntimeError("boom \x1b]0;owned\x07")
    if way == "exits":
        sys.exit(0)
    if way == "crashes":
        import ctypes

        ctypes.string_at(0)
    if way == "leaks":
        hoard = []
        while True:
            hoard.append(bytearray(os.urandom(1 << 20) * 16))
    if way == "hangs":
        Path(os.environ["FAULTS"], "hanging").touch()
        while True:
            pass
    if way == "prints":
        os.write(1, b"\xff\x00garbage\x1b[2J" * 100)
        print("more garbage \ud800", file=sys.stderr)


def build(context: ModelContext) -> Any:
    """A linear classifier of mean colours that misbehaves when it sees a batch of several images."""
    import torch
    from torch import nn

    from flowers_bench.nn import Output

    way = str(context.options["way"])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, context.num_classes)

        def forward(self, images: torch.Tensor) -> Any:
            calm = (Path(os.environ["FAULTS"]) / "calm").exists()
            if self.training and not calm:
                if way == "returns-nonsense":
                    return "nonsense"
                _misbehave(way)
            embedding = images.mean((2, 3))
            return Output(self.fc(embedding), embedding)

    return Net()


@hookimpl
def register_models() -> list[Model]:
    return [Model("evil-net", "goes wrong", options={"way": Option("raises", "how", choices=WAYS)}, build=build)]


@hookimpl
def register_techniques() -> list[Technique]:
    recipe = Recipe(lr=1e-2, epochs=1, batch_size=16, image_size=16)
    variants = {way: Variant("goes wrong", options={"way": way}) for way in WAYS}
    parts = {"model": "evil-net", "loss": "cross-entropy", "augmentation": "standard"}
    return [Technique("evil", "goes wrong", (), **parts, recipe=recipe, variants=variants, default="raises")]


@hookimpl
def epoch_finished(trial: Any, epoch: Any) -> None:
    raise OSError("the observer is broken")
