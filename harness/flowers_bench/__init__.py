"""flowers-bench: fine-grained few-example image techniques, trained, measured and compared under one protocol.

This is the public API for plugin authors and notebooks. Importing it does not import torch.
What computes stands in `flowers_bench.nn` (layers), `flowers_bench.backbones` (timm's networks) and
`flowers_bench.ops` (the operator).
"""

from importlib.metadata import PackageNotFoundError, version

from flowers_bench.contract.dataset import DataRequest, Dataset, DatasetSource, NameLevel, Split, split_checksum
from flowers_bench.contract.drawing import DrawsParameters, ImageParameters
from flowers_bench.contract.optimizer import Optimizer, OptimizerContext, Schedule
from flowers_bench.contract.options import Option, Options, OptionValue
from flowers_bench.contract.pictures import FigureContext
from flowers_bench.contract.predictor import Features, Predictor, PredictorContext, ViewsContext
from flowers_bench.contract.step import Batch, Step, StepContext
from flowers_bench.contract.technique import (
    Augmentation,
    AugmentationContext,
    Loss,
    LossContext,
    Model,
    ModelContext,
    Recipe,
    Technique,
    Variant,
)
from flowers_bench.data.official import OFFICIAL_SETS
from flowers_bench.data.options import FOLDER_OPTIONS, HUB_OPTIONS, PETALS_OPTIONS, SHARD_OPTIONS
from flowers_bench.data.sources import (
    holds_shards,
    hub_options,
    load_flowers102,
    load_folder,
    load_hub,
    load_manifest,
    load_official,
    load_petals,
    load_shards,
    shard_options,
)
from flowers_bench.hookspecs import OLDEST_PLUGIN_API, PLUGIN_API, StoredRecord, hookimpl
from flowers_bench.store.results import flatten, load_results, metrics_of
from flowers_bench.training.finished import FinishedTrial
from flowers_bench.util.errors import TrialFailed, UsageError
from flowers_bench.util.files import file_name

try:
    __version__ = version("flowers-bench")
except PackageNotFoundError:  # a source tree on sys.path, not installed
    __version__ = "0+unknown"

__all__ = [
    "FOLDER_OPTIONS",
    "HUB_OPTIONS",
    "OFFICIAL_SETS",
    "OLDEST_PLUGIN_API",
    "PETALS_OPTIONS",
    "PLUGIN_API",
    "SHARD_OPTIONS",
    "Augmentation",
    "AugmentationContext",
    "Batch",
    "DataRequest",
    "Dataset",
    "DatasetSource",
    "DrawsParameters",
    "Features",
    "FigureContext",
    "FinishedTrial",
    "ImageParameters",
    "Loss",
    "LossContext",
    "Model",
    "ModelContext",
    "NameLevel",
    "Optimizer",
    "OptimizerContext",
    "Option",
    "OptionValue",
    "Options",
    "Predictor",
    "PredictorContext",
    "Recipe",
    "Schedule",
    "Split",
    "Step",
    "StepContext",
    "StoredRecord",
    "Technique",
    "TrialFailed",
    "UsageError",
    "Variant",
    "ViewsContext",
    "__version__",
    "file_name",
    "flatten",
    "holds_shards",
    "hookimpl",
    "hub_options",
    "load_flowers102",
    "load_folder",
    "load_hub",
    "load_manifest",
    "load_official",
    "load_petals",
    "load_results",
    "load_shards",
    "metrics_of",
    "shard_options",
    "split_checksum",
]
