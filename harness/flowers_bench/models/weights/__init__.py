"""Initial weights: where they come from, what a file holds, and whether that fits a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from flowers_bench.models.weights.provenance import Provenance


@dataclass(frozen=True)
class Weights:
    """Initial weights, resolved.

    Attributes:
        name: `none`, a timm tag such as `resnet18.a1_in1k`, the file's name, `petals/NAME` of those that come with the package,
            or `trial:ID`.
        sha256: of the file; None for `none`.
        path: the file on this machine; None for `none`. Not part of a trial's identity.
        provenance: the training here that they come from; None for weights from elsewhere. Not part of the identity either.
    """

    name: str = "none"
    sha256: str | None = None
    path: Path | None = None
    provenance: Provenance | None = field(default=None, compare=False)

    def facts(self) -> dict[str, str | None]:
        """Give what identifies the weights."""
        return {"name": self.name, "sha256": self.sha256}


@dataclass(frozen=True)
class WeightsReport:
    """How a file met a network; `result.json` keeps it as `weights_report`.

    Attributes:
        loaded: how many of the network's tensors have the file's values.
        missing: names of those that have not, beyond the classifier: always empty, since such a file is refused.
        unexpected: names of the file's tensors, beside the network's own, that were left out.
        classifier: what became of it.
        beyond: names of the file's tensors that belong to the trained model and not to the backbone alone, such as the
            offsets of deformable convolutions.
        understood: what was read into the file, in words: which part of it was taken, what was resampled or left out.
    """

    loaded: int = 0
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    beyond: tuple[str, ...] = ()
    classifier: str = "initialised afresh"
    understood: tuple[str, ...] = field(default=())

    def facts(self) -> dict[str, object]:
        """Give plain JSON values."""
        return {
            "loaded": self.loaded,
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "beyond": list(self.beyond),
            "classifier": self.classifier,
            "understood": list(self.understood),
        }
