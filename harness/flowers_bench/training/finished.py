"""Finished trials, for techniques that build on their networks: a student on its teacher's, an average of several."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.util.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flowers_bench.store.records import Cost

#: Facts of a dataset that two trials must have in common, so that none was trained on images that judge the other.
_SAME = ("name", "classes", "n_train", "split_checksum")


@dataclass(frozen=True)
class FinishedTrial:
    """A trial of a run store, and its trained network.

    Attributes:
        folder: where it is kept; its name is the trial's id.
        dataset: `Dataset.facts()` of what it was trained on.
        predictor: how it predicts, such as `classifier`.
        image_size: side of its square input, in pixels.
        config: everything that determined it, as its `config.json` has it.
        plugin_files: files that the user named: a part that stands in a file is loaded from one of these only.
    """

    folder: Path
    dataset: Mapping[str, object]
    predictor: str
    image_size: int
    config: Mapping[str, object] = field(default_factory=dict)
    plugin_files: Sequence[Path] = ()

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
        return cls(folder.path, config.dataset.json(), config.predictor, config.recipe.image_size, config.json())

    def weights(self) -> dict[str, Tensor]:
        """Read its trained weights by name, on the CPU: what its model's `load_state_dict` takes. While a run is planned, models
        are built without values, and these have none either. Raises `UsageError` where they are damaged."""
        import torch

        from flowers_bench.models.weights.files import read_tensors
        from flowers_bench.store.folder import TrialFolder

        tensors = read_tensors(TrialFolder(self.folder).weights())
        planning = torch.empty(0).is_meta
        return {name: tensor.to("meta") if planning else tensor for name, tensor in tensors.items()}

    def logits(self, device: torch.device, mean: Sequence[float], std: Sequence[float]) -> Callable[[Tensor], Tensor]:
        """Load its network as a function from images (N, 3, S, S) of any size S, normalised by `mean` and `std`, to its logits
        (N, C), at the size and with the normalisation that it was trained with. Gradients are left to the caller.

        Raises:
            UsageError: as in `model`; or it predicts by another means than its classifier, whose logits mean nothing then.
        """
        import torch
        import torch.nn.functional as F

        from flowers_bench.models.backbones import mean_and_std

        if self.predictor != "classifier":
            raise UsageError(
                f"trial {self.folder.name} predicts by {self.predictor}: its logits were not trained to be right."
            )
        model, size = self.model(device), self.image_size
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

    def model(self, device: torch.device, plugins: Sequence[Path] = ()) -> nn.Module:
        """Load its network in evaluation mode, with its trained weights, frozen; torch's random generator stays as it was.

        Args:
            device: where the network is put.
            plugins: instead of `plugin_files`.

        Raises:
            UsageError: it is damaged, or was run with a plugin file that was not named.
        """
        from flowers_bench.store.folder import TrialFolder

        # Loading builds the model, which may build on finished trials in turn: the two modules need each other here.
        trained = importlib.import_module("flowers_bench.training.trained")
        model: nn.Module = trained.load_trained(TrialFolder(self.folder), device, plugins or self.plugin_files).model
        return model

    def cost(self) -> Cost:
        """Read what it took (`docs/results-format.md`)."""
        from flowers_bench.store.folder import TrialFolder

        return TrialFolder(self.folder).result().cost


@dataclass
class TrialFinder:
    """Finds the finished trials that a trial builds on, and keeps which they were.

    Attributes:
        store: the run store, where known.
        dataset: `Dataset.facts()` of what is trained on, where known.
        plugin_files: files that the user named.
        found: the trials by id.
    """

    store: Path | None
    dataset: Mapping[str, object]
    plugin_files: Sequence[Path] = ()
    found: dict[str, FinishedTrial] = field(default_factory=dict)

    def __call__(self, id: str) -> FinishedTrial:
        """Find a trial by its whole id. Raises `UsageError` unless it is there, finished, and of the same images in the same
        splits."""
        if not re.fullmatch(r"[0-9a-f]{16}", id):
            raise UsageError(
                f"{id!r} is not a trial's id of 16 digits; `flowers-bench leaderboard --trials` shows the ids."
            )
        if self.store is None:
            raise UsageError(f"there is no run store to find trial {id} in.")
        trial = replace(FinishedTrial.find(self.store, id), plugin_files=self.plugin_files)
        for key in _SAME if self.dataset else ():
            if trial.dataset[key] != self.dataset[key]:
                raise UsageError(
                    f"trial {id} was trained on {trial.dataset['name']} with {key} {trial.dataset[key]}; dataset "
                    f"{self.dataset['name']} here has {self.dataset[key]}. Both must have the same images in the same splits."
                )
        self.found[id] = trial
        return trial

    def inherited(self) -> dict[str, float]:
        """Add up what the found trials took, with those that they were built on themselves: seconds by id, search included."""
        seconds: dict[str, float] = {}
        for id, trial in self.found.items():
            cost = trial.cost()
            seconds[id] = cost.seconds + (cost.search_seconds or 0)
            seconds |= cost.inherited or {}
        return seconds
