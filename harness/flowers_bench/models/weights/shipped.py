"""The weights that come with the package: small backbones, pretrained on drawn species that no dataset shows unasked.

docs/petals.md says how they were made, `nox -s pretrain` makes them again. A backbone may have several: one of the network as
timm builds it, and others of what a technique makes of it, such as one with deformable convolutions.
"""

from __future__ import annotations

import functools
from pathlib import Path

from flowers_bench.models.weights import Weights
from flowers_bench.models.weights.files import read_metadata
from flowers_bench.models.weights.provenance import provenance_of
from flowers_bench.util.files import file_sha256

#: What `--weights` calls them.
NAME = "petals"
FOLDER = Path(__file__).parent / NAME


@functools.cache
def shipped() -> tuple[Weights, ...]:
    """List all of them, by name."""
    return tuple(_weights(path) for path in sorted(FOLDER.glob("*.safetensors")))


def shipped_for(backbone: str) -> list[Weights]:
    """List those of a backbone: what was trained as the most particular model first, the backbone alone last."""
    found = [w for w in shipped() if w.provenance is not None and w.provenance.backbone == backbone]
    return sorted(found, key=lambda weights: -len(weights.name))


def backbones() -> list[str]:
    """List the backbones that have some, in order of name."""
    return sorted({w.provenance.backbone for w in shipped() if w.provenance is not None})


def _weights(path: Path) -> Weights:
    return Weights(f"{NAME}/{path.stem}", file_sha256(path), path, provenance_of(path, read_metadata(path)))
