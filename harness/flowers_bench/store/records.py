"""What every file of a trial holds. `TrialFolder` says which file has which record, and what must agree between files.

Fields stand in the order in which they are written. Those that may be None are missing or null in trials that lack them: of
an older version, of other hardware, or where there was nothing to measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from flowers_bench.store.schema import Anything, AtLeast, Number, OrNull, Plain, Record, Text

Count = Annotated[int, Number(0, 2**63, whole=True)]
Positive = Annotated[int, Number(1, 2**31, whole=True)]
Finite = Annotated[float, Number()]
Amount = Annotated[float, Number(0)]
#: Rounding may carry a mean a little further than its terms.
Share = Annotated[float, Number(-1e-6, 1 + 1e-6)]
Words = Annotated[str, Text()]
#: A name that people or plugins chose.
Name = Annotated[str, Text(1000)]
Id = Annotated[str, Text(16, "[0-9a-f]{16}")]
Digest = Annotated[str, Text(64, "[0-9a-f]{64}")]
#: A path or URL. It has no zero byte, at which the system's calls would cut it off.
Place = Annotated[str, Text(4096, "[^\0]*")]
#: The value of an option.
Scalar = Annotated[bool | int | float | str | None, Plain()]


@dataclass(frozen=True, kw_only=True)
class GreyLevels(Record):
    """The values of black and white in images of more than 8 bits per sample, by kind of image."""

    integer: Sequence[Finite] | None = None
    float: Sequence[Finite] | None = None
    colour: Sequence[Finite] | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetFacts(Record):
    """`Dataset.facts()`: what a trial's images are."""

    name: Name
    classes: Positive
    n_train: Annotated[int, Number(0, 2**31, whole=True)]
    n_val: Annotated[int, Number(0, 2**31, whole=True)]
    n_test: Annotated[int, Number(0, 2**31, whole=True)]
    fingerprint: Digest
    split_checksum: Digest
    resolution: Name
    notes: Sequence[Words]
    options: Mapping[str, Scalar] | None = None
    grey_levels: GreyLevels | None = None
    n_unlabelled: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class WeightsFacts(Record):
    """`Weights.facts()`: where the initial values come from; without a digest if they are random."""

    name: Name
    sha256: Annotated[str | None, OrNull(Text(64, "[0-9a-f]{64}"))]


@dataclass(frozen=True, kw_only=True)
class RecipeFacts(Record):
    """`Recipe.facts()`; older trials lack fields that came later."""

    optimizer: Name
    lr: Amount
    lr_scale: Mapping[str, Amount] | None = None
    layer_decay: Amount | None = None
    weight_decay: Amount | None = None
    schedule: Name | None = None
    warmup_epochs: Count | None = None
    batch_size: Count
    epochs: Count
    patience: Count | None = None
    image_size: Count
    precision: Name | None = None
    validation_precision: Name | None = None
    classifier_start: Name | None = None
    clip_norm: Amount | None = None
    ema_decay: Amount | None = None
    ema_warmup: bool | None = None


@dataclass(frozen=True, kw_only=True)
class ProtocolFacts(Record):
    """`Protocol.facts()`: which split does what."""

    report: Annotated[str, Text(4, "test|none")]
    train: Name | None = None
    select: Name | None = None
    search: Count | None = None
    shots: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Config(Record):
    """`config.json`: the trial, as `Trial.facts()` gives it.

    Attributes:
        technique, variant: its only name, in schema 1; since then, names stand beside it (`LabelRecord`).
    """

    schema_version: Count
    id: Id
    harness_revision: Count
    technique: Name | None = None
    variant: Name | None = None
    model: Name
    loss: Name
    augmentation: Name
    sampler: Name
    predictor: Name
    options: Mapping[str, Scalar]
    dataset: DatasetFacts
    data_options: Mapping[str, Scalar]
    backbone: Name
    weights: WeightsFacts
    recipe: RecipeFacts
    seed: Count
    code: Mapping[str, Name]
    protocol: ProtocolFacts
    step: Name | None = None

    @property
    def label(self) -> str:
        """`technique/variant`, as the user writes it."""
        return f"{self.technique}/{self.variant}"

    @property
    def memory_kind(self) -> tuple[str | int | None, ...]:
        """What decides how much memory it takes: model, backbone, image size, batch size and precision."""
        recipe = self.recipe
        return (self.model, self.backbone, recipe.image_size, recipe.batch_size, recipe.precision)

    @property
    def searched(self) -> bool:
        """Whether it is a trial of a search, which never reads the test split."""
        return self.protocol.report == "none"


@dataclass(frozen=True, kw_only=True)
class LabelRecord(Record):
    """A file of `labels/`: one of the trial's names, since schema 2."""

    technique: Name
    variant: Name
    baseline: Annotated[str, Text(2001)] | None = None


@dataclass(frozen=True, kw_only=True)
class SearchFacts(Record):
    """What a search tried to find a trial's recipe.

    Attributes:
        configurations, failed: how many were tried, and how many of these could not be trained.
        trials: their ids, each once; `chosen` has the best validation accuracy, `val_top1`.
        settings: those of the chosen trial.
        seconds: how long all of them took together.
    """

    configurations: Count
    failed: Count | None
    trials: Sequence[Id]
    chosen: Id
    settings: Mapping[str, Scalar]
    val_top1: Share
    seconds: Amount


@dataclass(frozen=True, kw_only=True)
class Run(Record):
    """`run.json`: where the trial runs from. Nothing of it is in the trial's id.

    Attributes:
        data_source: name of the dataset's source; its images lie in `data_path`, what is made of them in `cache_dir`.
        store: the run store.
        weights_path: the file of the initial weights.
        plugin_files: the plugin files that the user named.
        threads: how many the trial has; None: as many as torch takes.
        devices: how many the trial is divided among.
        device: what it was asked to compute on; None: CUDA where there is it, else the processor.
        baseline: the variant that it is to be compared with, in schema 1.
        command: what the user typed after `flowers-bench`.
        stress: whether it is measured on changed images too.
        track: names of trackers.
    """

    data_source: Name | None
    data_path: Place | None
    cache_dir: Place | None
    store: Place | None
    plugin_files: Sequence[Place] | None
    threads: Positive | None
    devices: Positive | None
    weights_path: Place | None
    baseline: Name | None = None
    search: SearchFacts | None = None
    command: Sequence[Words] | None = None
    stress: bool | None = None
    track: Sequence[Name] | None = None
    device: Name | None = None


#: Fields of `Run` that hold places of the machine where the trial ran.
PLACES = ("data_path", "cache_dir", "store", "weights_path", "plugin_files")


@dataclass(frozen=True, kw_only=True)
class Bounded(Record):
    """A measured value with its 95 % interval; a bound is None where too few measurements cannot give one."""

    value: Amount
    low: Amount | None
    high: Amount | None


@dataclass(frozen=True, kw_only=True)
class Latency(Record):
    """Milliseconds for one image: two percentiles over `runs` repetitions."""

    p50_ms: Bounded | None
    p95_ms: Bounded | None
    runs: Count | None


@dataclass(frozen=True, kw_only=True)
class Throughput(Record):
    """Images per second at the batch size that gives most, with its 95 % interval."""

    images_per_second: Amount
    low: Amount | None
    high: Amount | None
    batch: Count | None
    runs: Count | None


@dataclass(frozen=True, kw_only=True)
class Speed(Record):
    """How fast a model predicts in one precision."""

    latency: Latency | None
    throughput: Throughput | None


@dataclass(frozen=True, kw_only=True)
class Inference(Record):
    """How fast a model predicts, and what else the machine did meanwhile.

    Attributes:
        bfloat16: where the processor computes in it.
        seconds: how long the measurement took.
        governor: what controls the processor's frequency.
        other_cores_busy: how many cores other processes used, on average.
    """

    float32: Speed | None
    bfloat16: Speed | None = None
    seconds: Amount | None
    threads: Count | None
    governor: Name | None
    other_cores_busy: Amount | None


@dataclass(frozen=True, kw_only=True)
class Cost(Record):
    """What a trial took, in bytes, seconds and joules; `measure/cost.py` says how each metric is measured.

    Attributes:
        inherited: of finished trials that it builds on, and those that these did: seconds by id, beside its own.
    """

    parameters: Count | None = None
    trainable_parameters: Count | None = None
    trained_bytes: Count | None = None
    epochs: Count
    train_seconds: Amount | None
    data_wait_share: Share | None
    fit_seconds: Amount | None
    seconds: Amount
    seconds_to_best: Amount | None
    train_images_per_second: Amount | None
    gpu_joules: Amount | None = None
    package_joules: Amount | None = None
    peak_rss_bytes: Count | None = None
    peak_cuda_bytes: Count | None = None
    search_seconds: Amount | None = None
    setup_seconds: Amount | None = None
    test_seconds: Amount | None = None
    flops: Count | None = None
    flops_uncounted: Sequence[Name] | None = None
    inference: Inference | None = None
    prefix_cache: Annotated[object, Anything()] | None = None
    inherited: Mapping[str, Amount] | None = None


@dataclass(frozen=True, kw_only=True)
class Accuracies(Record):
    """How often `n` images' labels were predicted."""

    n: Positive
    top1: Share
    top5: Share | None = None
    mean_per_class: Share | None = None
    macro_f1: Share | None = None


@dataclass(frozen=True, kw_only=True)
class Probabilities(Record):
    """How good scores are as probabilities; empty where they are not meant as such."""

    nll: Amount | None = None
    brier: Annotated[float, Number(0, 2 + 1e-6)] | None = None
    ece: Share | None = None
    ece_adaptive: Share | None = None
    ece_if_calibrated: Share | None = None
    ece_adaptive_if_calibrated: Share | None = None


@dataclass(frozen=True, kw_only=True)
class Quality(Probabilities, Accuracies):
    """Every metric of one split."""


@dataclass(frozen=True, kw_only=True)
class PerClassMetrics(Record):
    """Lists by class index. An entry is None where the metric would be a share of no images."""

    n: Sequence[Count]
    precision: Sequence[Share | None]
    recall: Sequence[Share | None]
    f1: Sequence[Share | None]


@dataclass(frozen=True, kw_only=True)
class Confused(Record):
    """So many images of class `label` were taken for `prediction`."""

    label: Count
    prediction: Count
    images: Count


@dataclass(frozen=True, kw_only=True)
class AtLevel(Record):
    """Accuracy where a coarser name of the class is enough, such as its family.

    Attributes:
        names: how many there are.
        of_class: the coarser name's number, from 0, by class index.
    """

    top1: Share
    names: Positive
    of_class: Sequence[Count]


@dataclass(frozen=True, kw_only=True)
class QualityByClass(Quality):
    """Metrics of the test split, also by class, at each level of coarser names, and after temperature scaling."""

    per_class: PerClassMetrics | None = None
    confused: Sequence[Confused] | None = None
    calibrated: Probabilities | None = None
    name_levels: Mapping[str, AtLevel] | None = None


@dataclass(frozen=True, kw_only=True)
class Episodes(Record):
    """Mean accuracy of n-way k-shot episodes among `n` images, with its interval over the episodes."""

    n: Count | None
    accuracy: Share
    low: Finite | None
    high: Finite | None
    episodes: Count
    n_way: Count
    k_shot: Count
    n_query: Count | None


@dataclass(frozen=True, kw_only=True)
class Episodic(Record):
    """Few-shot accuracy of the test images, and of those of classes that training did not show."""

    test: Episodes | None = None
    held_out_classes: Episodes | None = None


@dataclass(frozen=True, kw_only=True)
class RetrievalMetrics(Record):
    """How well embeddings find images of the same class. Where every test image is alone in its class, there is nothing to
    find: trials from before 0.2 then have an empty record, later ones none."""

    recall_at_1: Share | None = None
    map_at_r: Share | None = None


@dataclass(frozen=True, kw_only=True)
class Mixed(Record):
    """How often the `m` classes that an image was mixed from have the m largest scores, over `n` images. Empty where a
    batch keeps whole labels."""

    n: Count | None = None
    top_m: Share | None = None
    all_m: Share | None = None
    m: Amount | None = None


@dataclass(frozen=True, kw_only=True)
class StressLevel(Record):
    """Test accuracy on images that were changed by so much, with its interval over images."""

    level: Annotated[int, Number(1, 1000, whole=True)]
    value: Finite | None
    label: Words
    n: Count | None
    top1: Share
    low: Share | None
    high: Share | None


@dataclass(frozen=True, kw_only=True)
class Environment(Record):
    """`environment.json`: the machine, versions and kernel that a result was measured with.

    Attributes:
        trained_in: the precision that it was trained in, such as `tf32`; None where nothing was trained, and in older results.
        drawn: what drew the training images (`training/feeding.py`); None on a CPU, where each step's are drawn in its turn.
    """

    processor: Name
    cores: Count | None
    threads: Count
    cpu_capability: Name
    device: Name
    load_average: Sequence[Amount]
    system: Name | None
    python: Name | None
    versions: Mapping[str, Name]
    kernel: Annotated[str | None, OrNull(Text(1000))]
    devices: Count | None = None
    trained_in: Name | None = None
    drawn: Name | None = None


@dataclass(frozen=True, kw_only=True)
class SearchedResult(Record):
    """`result.json` of a trial of a search, which never reads the test split."""

    schema_version: Count
    id: Id
    label: Annotated[str, Text(2001)] | None = None
    seed: Count
    best_epoch: Count
    val: Quality
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Result(Record):
    """`result.json`: the metrics of a finished trial.

    Attributes:
        best_epoch: the one chosen on validation, from 1; 0 where nothing was trained.
        retrieval, episodic, mixed: metrics of other questions than the accuracy over all classes, where they apply.
        temperature: fitted on validation; None where there is none, and in trials of versions that fitted none.
        weights_report: how the initial weights met the network.
        descriptions: of the classes, of models that read them.
        stress_revision: which revision of the changes `stress` was measured with.
        stress: by kind of change, its levels, the weakest first.
        robustness: mean accuracy by kind of change.
    """

    schema_version: Count
    id: Id
    label: Annotated[str, Text(2001)] | None = None
    seed: Count
    best_epoch: Count
    stopped_early: bool
    val: Quality
    test: QualityByClass
    retrieval: RetrievalMetrics | None = None
    temperature: Annotated[float, Number(1e-9)] | None
    episodic: Episodic | None = None
    mixed: Mixed | None = None
    cost: Cost
    weights_report: Annotated[object, Anything()] | None
    class_names: Sequence[Words]
    descriptions: Sequence[Words] | None = None
    hardware: Environment
    stress_revision: Count | None = None
    stress: Mapping[str, Annotated[Sequence[StressLevel], AtLeast(1)]] | None = None
    robustness: Mapping[str, Share] | None = None


@dataclass(frozen=True, kw_only=True)
class Epoch(Record):
    """A line of `history.jsonl`. Losses are null where they were not finite; joules are those of the machine's counters."""

    epoch: Positive
    train_loss: Finite | None
    train_top1_clean: Share | None
    val_top1: Share | None
    val_nll: Finite | None
    train_seconds: Amount | None
    wait_seconds: Amount | None
    seconds: Amount | None
    images: Count | None
    package_joules: Amount | None = None
    gpu_joules: Amount | None = None


@dataclass(frozen=True, kw_only=True)
class Attempt(Record):
    """A line of `attempts.jsonl`: seconds from the start of the trial's process to its end, and how it ended."""

    seconds: Amount
    state: Name


@dataclass(frozen=True, kw_only=True)
class Failure(Record):
    """`failure.json`: why the last attempt failed."""

    kind: Name
    error: Words


@dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """`files.json`: SHA-256 by the file's name within its folder."""

    sha256: Mapping[str, Digest]
