"""What models and losses are built of, for plugins: layers that several techniques share, and how layers are frozen.

`Output` is what every model returns and every loss receives. `Classifier` and `Embedder` make one of a timm backbone,
which `flowers_bench.backbones` prepares. What a single technique computes with stands in that technique's own folder.
Importing this module imports torch: do so inside `build` functions, so that listing plugins stays quick.
"""

from flowers_bench.data.pixels import evaluation_transform
from flowers_bench.models.layers import Classifier, Embedder, L2Normalize, Output, freeze, train_mode

__all__ = ["Classifier", "Embedder", "L2Normalize", "Output", "evaluation_transform", "freeze", "train_mode"]
