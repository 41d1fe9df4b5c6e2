"""Files that somebody planted, for tests of those who read them."""

from __future__ import annotations

from pathlib import Path


class Planted:
    """Unpickled carelessly, it leaves a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> object:
        return (Path.touch, (self.witness,))
