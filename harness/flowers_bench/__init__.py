"""flowers-bench: fine-grained few-example image techniques, trained, measured and compared under one protocol.

This is the public API for plugin authors and notebooks. Importing it does not import torch.
The custom op lives in `flowers_bench.ops`, module building blocks in `flowers_bench.nn`.
"""

from importlib.metadata import PackageNotFoundError, version

from flowers_bench.contract.dataset import DataRequest, Dataset, DatasetSource, Split
from flowers_bench.contract.technique import (
    Augmentation,
    AugmentationContext,
    Loss,
    LossContext,
    Model,
    ModelContext,
    Option,
    Recipe,
    Technique,
    Variant,
)
from flowers_bench.hookspecs import PLUGIN_API, hookimpl
from flowers_bench.store.results import load_results
from flowers_bench.util.errors import TrialFailed, UsageError

try:
    __version__ = version("flowers-bench")
except PackageNotFoundError:  # a source tree on sys.path, not installed
    __version__ = "0+unknown"

__all__ = [
    "PLUGIN_API",
    "Augmentation",
    "AugmentationContext",
    "DataRequest",
    "Dataset",
    "DatasetSource",
    "Loss",
    "LossContext",
    "Model",
    "ModelContext",
    "Option",
    "Recipe",
    "Split",
    "Technique",
    "TrialFailed",
    "UsageError",
    "Variant",
    "__version__",
    "hookimpl",
    "load_results",
]
