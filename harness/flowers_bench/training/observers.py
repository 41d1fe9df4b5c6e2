"""Plugins that watch a trial: they are told what happens, and may draw pictures; they change nothing of it."""

from __future__ import annotations

import contextlib
import copy
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from flowers_bench.contract.dataset import Dataset
from flowers_bench.contract.host import Host
from flowers_bench.contract.pictures import FigureContext
from flowers_bench.data.pixels import Normalizer, evaluation_transform
from flowers_bench.store.records import Config, Run
from flowers_bench.store.schema import Record
from flowers_bench.training.events import Emit, Warned

#: So many test images, of a class each, are given to plugins that draw.
DRAWN_CLASSES = 8


@dataclass(frozen=True)
class Observers:
    """The plugins that observe one trial. What fails in one is said as a warning and does not cost the result.

    Attributes:
        config, run: what every hook is told: the trial's `config.json`, with technique and variant, and `run.json`.
    """

    host: Host
    config: Config
    run: Run
    emit: Emit

    def tell(self, hook: str, **news: Record) -> None:
        """Call a hook of every plugin with plain JSON values. Whatever they do with what they are told, or with random numbers,
        stays theirs."""
        states = random.getstate(), np.random.get_state()
        with torch.random.fork_rng():
            facts = {"trial": self.config, "run": self.run, **news}
            told = {name: copy.deepcopy(record.json()) for name, record in facts.items()}
            failures = self.host.notify(hook, **told)
        random.setstate(states[0])
        np.random.set_state(states[1])
        self._warn(failures)

    def draw(self, model: nn.Module, normalize: Normalizer, dataset: Dataset, directory: Path) -> None:
        """Let plugins draw pictures of the trained model into `directory`, which is made for them and removed if empty."""
        labels = np.asarray(dataset.test.labels)
        chosen = [int(np.flatnonzero(labels == c)[0]) for c in np.unique(labels)[:DRAWN_CLASSES]]
        transform = evaluation_transform(self.config.recipe.image_size)
        images = torch.stack([transform(dataset.test.images[i]) for i in chosen])
        directory.mkdir(exist_ok=True)
        context = FigureContext(model.eval(), images, [int(labels[i]) for i in chosen], dataset.class_names, normalize)
        self._warn(self.host.notify("trial_figures", trial=self.config.json(), context=context, directory=directory))
        with contextlib.suppress(OSError):
            directory.rmdir()  # nothing was drawn

    def _warn(self, failures: list[str]) -> None:
        for failure in failures:
            self.emit(Warned(failure))
