"""How a trained model predicts: what a plugin registers for it, and the one predictor that is the host's, its classifier.

Nothing here imports torch: the heavy work happens inside `fit`, which the trial's own process calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flowers_bench.contract.options import Options, ReadsOptions
from flowers_bench.contract.technique import Part
from flowers_bench.util.errors import UsageError

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
class ViewsContext(ReadsOptions):
    """What a predictor's `views` receives: S, the side of the model's square input in pixels, and the predictor's options."""

    image_size: int
    options: Options


@dataclass(frozen=True)
class Features:
    """What the trained model gives for the N images of the training split, without augmentation.

    Attributes:
        output: its logits (N, C), or (N, 0) of a model that only embeds, and its embedding (N, D): float32, on the CPU. Of a
            predictor with V `views` of each image: (N, V, C) and (N, V, D).
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
        needs_features: whether it is fitted at all. If not, `fit` is given features of no image, and nothing passes over the
            training split for it.
        views: makes the function from a batch of images to V views of each, V tensors (N, 3, S, S), which the model sees one
            after the other; None: it sees the image. What is computed for an image then has an axis more: logits (N, V, C),
            embedding (N, V, D). Training sees none of it; the cost of prediction is V times as high, and is counted so.
        margin: whether views are cut from the image with the margin that evaluation leaves off: the images that `views` is
            given are (N, 3, R, R) with R = 8/7 of S, rounded, and not (N, 3, S, S).
    """

    fit: Callable[[PredictorContext, Features], Callable[[Output, Tensor | None], Tensor]] = field(kw_only=True)
    probabilities: bool | None = field(default=None, kw_only=True)
    exportable: bool = field(default=True, kw_only=True)
    needs_features: bool = field(default=True, kw_only=True)
    views: Callable[[ViewsContext], Callable[[Tensor], Sequence[Tensor]]] | None = field(default=None, kw_only=True)
    margin: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.margin and self.views is None:
            raise UsageError(
                f"predictor {self.name!r}: margin=True is for views, and it has none. Give `views`, or leave it out."
            )

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
    needs_features=False,
)
