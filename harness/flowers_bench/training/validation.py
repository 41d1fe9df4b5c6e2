"""Validation while a model is built: for models that are chosen among several, as a greedy soup is."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from flowers_bench.contract.dataset import Split
from flowers_bench.contract.options import Options
from flowers_bench.contract.predictor import CLASSIFIER, PredictorContext
from flowers_bench.data.pixels import Normalizer
from flowers_bench.measure.quality import correct_in_top_k
from flowers_bench.models.backbones import mean_and_std
from flowers_bench.training.evaluation import Evaluator


@dataclass
class Validation:
    """Measures models on the validation split, by their own classifiers.

    Attributes:
        split: the validation images.
        image_size: side of the square input, in pixels.
        device: where the models are put.
        seconds: how long that has taken so far.
    """

    split: Split
    image_size: int
    device: torch.device
    seconds: float = 0.0

    def __call__(self, model: nn.Module) -> float:
        """Measure top-1 accuracy, from 0 to 1; leaves the model on `device`, in evaluation mode."""
        started = time.perf_counter()
        model.to(self.device).to(memory_format=torch.channels_last)
        normalize = Normalizer(*mean_and_std(model), self.device)
        evaluator = Evaluator(CLASSIFIER, PredictorContext((), Options()), self.image_size, normalize)
        logits = evaluator.fit(model, None)(self.split.images).logits
        self.seconds += time.perf_counter() - started
        return float(correct_in_top_k(logits, np.asarray(self.split.labels)).mean())
