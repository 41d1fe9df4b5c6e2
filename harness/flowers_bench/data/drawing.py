"""Training images drawn by parameters: what happens to an image in an epoch depends on the trial's seed, the epoch and the image alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from flowers_bench.contract.dataset import Images
from flowers_bench.contract.drawing import DrawsParameters, ImageParameters
from flowers_bench.data.pixels import middle
from flowers_bench.ops import draw
from flowers_bench.store.identity import derive_seed


def compile_operator() -> None:
    """Compile the operator that draws, where that has not been done, or say that it cannot be."""
    draw([], ImageParameters(np.empty((0, 4), np.int64), np.empty(0, np.bool_)), 1)


@dataclass
class UniformNumbers:
    """Uniform numbers for each of `rows` images, `each` of them: numpy's Philox, keyed by `seed`, counts epochs and images.

    Attributes:
        seed: 63 bits.
        rows, each: how many there are.
    """

    seed: int
    rows: int
    each: int
    _epochs: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)

    def of(self, rows: np.ndarray, epoch: int, times: np.ndarray) -> np.ndarray:
        """Give those of images (N,) in an epoch, float64 (N, each) in [0, 1). `times` (N,) says how often the image had its
        turn in this epoch already: samplers may draw it twice."""
        found = np.empty((len(rows), self.each))
        for time in np.unique(times):
            found[times == time] = self._epoch(epoch, int(time))[rows[times == time]]
        return found * 2.0**-32

    def _epoch(self, epoch: int, time: int) -> np.ndarray:
        """Draw those of all images, uint32 (rows, each), unless they are the last ones drawn."""
        if (epoch, time) in self._epochs:
            return self._epochs[epoch, time]
        words = (self.each + 1) // 2
        drawn = np.random.Philox(key=self.seed, counter=[0, 0, epoch, time]).random_raw((self.rows, words))
        found: np.ndarray = drawn.astype("<u8").view("<u4")[:, : self.each]
        # A new dictionary: several threads may draw at once.
        self._epochs = {**{key: value for key, value in self._epochs.items() if key[0] == epoch}, (epoch, time): found}
        return found


@dataclass(frozen=True)
class ByParameters:
    """Training images as the model sees them, drawn by parameters.

    Attributes:
        images: N decoded images, of each of which the `middle` is used.
        parameters: makes an image's parameters of uniform numbers.
        side: S, of what is drawn.
        numbers: where these come from.
        views: V: row i * V + v is version v of image i.
    """

    images: Images
    parameters: DrawsParameters
    side: int
    numbers: UniformNumbers
    views: int = 1

    @classmethod
    def seeded(
        cls, images: Images, parameters: DrawsParameters, side: int, seed: int, purpose: str, views: int = 1
    ) -> ByParameters:
        """Make what draws these images for one purpose of the trial with this seed."""
        numbers = UniformNumbers(derive_seed(seed, purpose), len(images) * views, parameters.numbers)
        return cls(images, parameters, side, numbers, views)

    def draw(self, rows: np.ndarray, epoch: int, times: np.ndarray | None = None) -> Tensor:
        """Draw rows (N,) as an epoch shows them, uint8 (N, 3, S, S), channels-last, on the images' device; `times` as `times_before`
        counts them."""
        rows = np.asarray(rows, np.int64)
        given = [middle(self.images[row]) for row in (rows // self.views).tolist()]
        numbers = self.numbers.of(rows, epoch, np.zeros(len(rows), np.int64) if times is None else times)
        return draw(given, parameters_of(self.parameters, given, numbers), self.side)


def parameters_of(parameters: DrawsParameters, images: Sequence[Tensor], numbers: np.ndarray) -> ImageParameters:
    """Make the parameters of images (3, H, W) from numbers (N, K)."""
    return parameters(np.array([image.shape[1:] for image in images], np.int64).reshape(-1, 2), numbers)


def times_before(batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Count for each image of an epoch's batches how often it came before it, in this batch or an earlier one."""
    rows = np.concatenate([np.empty(0, np.int64), *batches])
    order = np.argsort(rows, kind="stable")
    places = np.arange(len(rows))
    begins = np.concatenate([[True], np.diff(rows[order]) != 0])[: len(rows)]
    times = np.empty(len(rows), np.int64)
    times[order] = places - np.maximum.accumulate(np.where(begins, places, 0))
    return np.split(times, np.cumsum([len(batch) for batch in batches])[:-1])
