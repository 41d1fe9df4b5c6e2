"""How a trained model predicts: what a plugin registers for it, and the one predictor that is the host's, its classifier.

Nothing here imports torch: the heavy work happens inside `fit`, which the trial's own process calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flowers_bench.contract.options import Options, ReadsOptions
from flowers_bench.contract.technique import Part

if TYPE_CHECKING:
    from torch import Tensor

    from flowers_bench.models.layers import Output


@dataclass(frozen=True)
class PredictorContext(ReadsOptions):
    """What a predictor's `fit` receives: the C classes' names, index = label, and the predictor's options."""

    class_names: Sequence[str]
    options: Options

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.class_names)


@dataclass(frozen=True)
class Features:
    """What the trained model gives for the N images of the training split, without augmentation.

    Attributes:
        output: its logits (N, C), or (N, 0) of a model that only embeds, and its embedding (N, D): float32, on the CPU.
        labels: class indices, int64 (N,).
    """

    output: Output
    labels: Tensor


@dataclass(frozen=True)
class Predictor(Part):
    """Maps what a trained model gives for images to scores of the classes, after being fitted on the training split.

    Attributes:
        fit: fits it, and gives the function from an `Output` of Q images, as in `Features`, to scores (Q, C), float32: larger
            is likelier. An image's scores must not depend on the images beside it. The function's second argument is the
            images' rows in the training split, int64 (Q,), so that no image is its own neighbour; None if they are not of it.
        probabilities: whether softmax of the scores is meant as probabilities: True, False, or None for what the loss's
            `probabilities` says.
        exportable: whether `torch.export` can follow that function, so that a trial can be exported whole.
    """

    fit: Callable[[PredictorContext, Features], Callable[[Output, Tensor | None], Tensor]] = field(kw_only=True)
    probabilities: bool | None = field(default=None, kw_only=True)
    exportable: bool = field(default=True, kw_only=True)

    def gives_probabilities(self, trained: bool) -> bool:
        """Say whether softmax of the scores is meant as probabilities, after a loss that `trained` them to be, or not."""
        return trained if self.probabilities is None else self.probabilities


def classifier_scores(output: Output, rows: Tensor | None) -> Tensor:
    """Give the logits of the model's own classifier (Q, C)."""
    return output.logits


#: The model's own classifier, which training has fitted: it needs no features.
CLASSIFIER = Predictor(
    "classifier",
    "the model's own classifier",
    needs=frozenset({"logits"}),
    fit=lambda context, features: classifier_scores,
)
