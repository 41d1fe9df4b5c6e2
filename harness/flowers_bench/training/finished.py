"""A finished trial, for techniques that build on its network, such as a student on its teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.util.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class FinishedTrial:
    """A trial of a run store, and its trained network.

    Attributes:
        folder: where it is kept; its name is the trial's id.
        dataset: `Dataset.facts()` of what it was trained on.
        predictor: how it predicts, such as `classifier`.
        image_size: side of its square input, in pixels.
    """

    folder: Path
    dataset: Mapping[str, object]
    predictor: str
    image_size: int

    @classmethod
    def find(cls, store: Path, id: str) -> FinishedTrial:
        """Find a trial by its whole id, without reading its weights.

        Raises:
            UsageError: there is no such trial, or it is not finished.
        """
        from flowers_bench.store.folder import Store  # imported here, because listing plugins must stay quick

        folder = Store(store).folder(id)
        if not folder.finished():
            what = "is not finished" if folder.path.is_dir() else "does not exist"
            raise UsageError(f"trial {id} {what} in run store {store}. Run it first, or choose its store with --store.")
        config = folder.config()
        return cls(folder.path, config.dataset.json(), config.predictor, config.recipe.image_size)

    def model(self, device: torch.device, plugins: Sequence[Path] = ()) -> nn.Module:
        """Load its network in evaluation mode, with its trained weights, frozen; torch's random generator stays as it was.

        Args:
            device: where the network is put.
            plugins: files that the user named (`ModelContext.plugin_files`): a part that stands in a file is loaded from
                one of these only.

        Raises:
            UsageError: it is damaged, or was run with a plugin file that was not named.
        """
        from flowers_bench.store.folder import TrialFolder
        from flowers_bench.training.trained import load_trained

        return load_trained(TrialFolder(self.folder), device, plugins).model
