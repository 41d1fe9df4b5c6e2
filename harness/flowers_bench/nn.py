"""What models and losses are built of, for plugins: layers that several techniques share, and how layers are frozen.

`Output` is what every model returns and every loss and predictor receives. `Classifier` and `Embedder` make one of a timm backbone,
which `flowers_bench.backbones` prepares. What a single technique computes with stands in that technique's own folder.
Importing this module imports torch: do so inside `build` functions, so that listing plugins stays quick.
"""

from flowers_bench.data.pixels import evaluation_transform
from flowers_bench.models.distances import distance_scores
from flowers_bench.models.layers import Classifier, Embedder, L2Normalize, Output, freeze, same_shapes, train_mode
from flowers_bench.models.logistic import LogisticRegression, fit_logistic
from flowers_bench.util.deprecation import Moved, moved

#: Layers of one technique each, which stood here until 0.1; now each is beside its equation.
_HOMES = {
    "CosineLinear": "focal_margin",
    "Distilled": "distillation",
    "Extended": "multiscale_vgg",
    "LowRank": "lora",
    "Parallel": "multiscale_vgg",
    "PromptedBlocks": "prompt_tuning",
    "Residual": "multiscale_vgg",
}
__getattr__ = moved(
    __name__,
    {
        name: Moved(
            f"flowers_bench_plugins.{home}.layers",
            f"copy it into your plugin, from flowers_bench_plugins/{home}/layers.py",
            "0.3",
        )
        for name, home in _HOMES.items()
    },
)
__all__ = [
    "Classifier",
    "Embedder",
    "L2Normalize",
    "LogisticRegression",
    "Output",
    "distance_scores",
    "evaluation_transform",
    "fit_logistic",
    "freeze",
    "same_shapes",
    "train_mode",
]
