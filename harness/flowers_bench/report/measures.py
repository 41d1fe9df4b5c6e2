"""List every metric that a table, a plot or an export may show of a row: its place in `result.json`, and its unit.

Metrics that answer other questions (few-shot episodes, retrieval, mixed images) have tables of their own. Choosing among
five classes is easier than among all classes, so that the two accuracies never share a column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flowers_bench.measure.statistics import share_interval
from flowers_bench.report.aggregate import Row, at, level_key, name_levels
from flowers_bench.report.formatting import count, duration, energy, milliseconds, percent, plain, rate, size

Format = Callable[[float | None], str]


@dataclass(frozen=True)
class Measure:
    """How one metric is found and shown.

    Attributes:
        key: the metric's name in CSV and JSON.
        title: the head of its column.
        path: the keys that lead to it in `result.json`.
        format: a function that writes the number as text.
        interval: whether to give an interval over seeds and test images, if the row has the numbers for it.
        images: a function that gives the number of independent images, for a share whose outcomes by image are not stored.
    """

    key: str
    title: str
    path: tuple[str, ...]
    format: Format
    interval: bool = False
    images: Callable[[Row], float | None] | None = None

    def unit(self, largest: float) -> tuple[float, str]:
        """Choose the unit of a plot with values of up to `largest`: what values are divided by, and the unit's name."""
        if self.format is duration and largest < 120:
            return 1, "s"
        if self.format is count and largest >= 1e9:
            return 1e9, "10⁹"
        return _UNITS[self.format]

    def measured(self, rows: Iterable[Row]) -> bool:
        """Tell whether any of these rows has this metric."""
        return any(row.mean(*self.path) is not None for row in rows)

    def bounds(self, row: Row) -> tuple[float, float] | None:
        """Compute the bounds of the 95 % interval of the mean over seeds.

        None if the metric has no interval, or if the row does not have the numbers for it.
        """
        if not self.interval:
            return None
        if (found := row.metrics.get(self.key)) is not None:
            return found.low, found.high
        shares = [value for trial in row.trials if (value := at(trial.result, self.path)) is not None]
        images = self.images(row) if self.images else None
        return share_interval(shares, images) if shares and images else None

    def text(self, row: Row) -> str:
        """Write the mean over seeds with its interval; and for a calibration error, its value if calibrated."""
        value, bounds = row.mean(*self.path), self.bounds(row)
        found = self.format(value)
        if value is None:
            return found
        beside = row.if_calibrated.get(self.key)
        return (
            found
            + (f" [{', '.join(map(self.format, bounds))}]" if bounds else "")
            + (f" ({self.format(beside)} if calibrated)" if beside is not None else "")
        )


@dataclass(frozen=True)
class Kind:
    """Measures of one kind, which have a table of their own.

    Attributes:
        applies: a condition on rows; the table is left out unless one row meets it.
    """

    title: str
    note: str
    measures: tuple[Measure, ...]
    applies: Callable[[Row], bool] = lambda row: True

    def rows(self, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        """Keep the rows that have one of these measures; none if the table is left out."""
        if not any(map(self.applies, rows)):
            return ()
        return tuple(row for row in rows if any(measure.measured([row]) for measure in self.measures))

    def shown(self, rows: tuple[Row, ...]) -> tuple[Measure, ...]:
        """Keep the measures that any of these rows has."""
        return tuple(measure for measure in self.measures if measure.measured(rows))


def _half_of_mixed(row: Row) -> float | None:
    """Give the number of independent mixed images: half of them, because each image is in two mixtures."""
    number = row.mean("mixed", "n")
    return number and number / 2


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


#: The units of plot axes: what values are divided by, and the unit's name.
_UNITS: Mapping[Format, tuple[float, str]] = {
    count: (1e6, "millions"),
    duration: (60, "minutes"),
    size: (2**20, "MiB"),
    milliseconds: (1, "ms"),
    percent: (0.01, "%"),
    energy: (1, "J"),
}
#: Inference in float32, and under autocast where the processor multiplies in bfloat16: end of the key, end of the title,
#: and path of the metrics.
_INFERENCE = (
    ("", "", ("cost", "inference", "float32")),
    ("_bfloat16", " bfloat16", ("cost", "inference", "bfloat16")),
)
#: Metrics of which less is better.
COSTS = (
    Measure("trainable_parameters", "trainable", ("cost", "trainable_parameters"), count),
    Measure("parameters", "parameters", ("cost", "parameters"), count),
    Measure("search_seconds", "search time", ("cost", "search_seconds"), duration),
    Measure("flops", "FLOPs", ("cost", "flops"), count),
    Measure("seconds", "training time", ("cost", "seconds"), duration),
    Measure("seconds_to_best", "time to best", ("cost", "seconds_to_best"), duration),
    Measure("data_wait_share", "waiting for data %", ("cost", "data_wait_share"), percent),
    Measure("peak_rss_bytes", "peak memory", ("cost", "peak_rss_bytes"), size),
    Measure("peak_cuda_bytes", "peak GPU memory", ("cost", "peak_cuda_bytes"), size),
    Measure("package_joules", "energy, processors", ("cost", "package_joules"), energy),
    Measure("gpu_joules", "energy, GPU", ("cost", "gpu_joules"), energy),
    Measure("trained_bytes", "stored size", ("cost", "trained_bytes"), size),
    *(
        Measure(f"latency_p{p}{key}", f"latency p{p}{title}", (*path, "latency", f"p{p}_ms", "value"), milliseconds)
        for key, title, path in _INFERENCE
        for p in (50, 95)
    ),
)
#: Metrics of which more is better.
SPEEDS = (
    *(
        Measure(f"throughput{key}", f"throughput{title}", (*path, "throughput", "images_per_second"), rate)
        for key, title, path in _INFERENCE
    ),
    Measure("train_images_per_second", "training speed", ("cost", "train_images_per_second"), rate),
)
#: Metrics that judge probabilities: key, title and format.
_PROBABILITIES = (
    ("nll", "NLL", plain),
    ("brier", "Brier", plain),
    ("ece", "ECE %", percent),
    ("ece_adaptive", "adaptive ECE %", percent),
)
#: The kinds of change in `measure.stress`, which is not imported here because it needs torch.
STRESSES = ("rotation", "scale", "translation", "perspective", "elastic", "blur", "noise", "occlusion", "jpeg")
QUALITY = Kind(
    "Quality of the test predictions",
    "95 % intervals are over seeds and test images, of one seed over test images. If calibrated: the calibration error "
    "that would come, on average, of so few images if every confidence were true; read the error beside it. After "
    "scaling: with the temperature fitted on the validation split",
    (
        Measure("top5", "top-5 %", ("test", "top5"), percent, True),
        Measure("macro_f1", "macro-F1 %", ("test", "macro_f1"), percent, True),
        *(
            Measure(f"{name}{key}", f"{title}{after}", (*path, name), format, True)
            for key, after, path in (("", "", ("test",)), ("_calibrated", " after scaling", ("test", "calibrated")))
            for name, title, format in _PROBABILITIES
        ),
    ),
)
KINDS = (
    Kind(
        "Few-shot episodes",
        "n-way k-shot accuracy of the embedding: choosing among n classes, not among all; not comparable with top-1",
        (
            Measure("episodic_n_way", "n-way", ("episodic", "test", "n_way"), _whole),
            Measure("episodic_k_shot", "k-shot", ("episodic", "test", "k_shot"), _whole),
            Measure("episodic_episodes", "episodes", ("episodic", "test", "episodes"), _whole),
            Measure(
                "episodic_accuracy",
                "accuracy %",
                ("episodic", "test", "accuracy"),
                percent,
                True,
                lambda row: row.mean("test", "n"),
            ),
            Measure(
                "episodic_accuracy_held_out",
                "accuracy % on classes held out of training",
                ("episodic", "held_out_classes", "accuracy"),
                percent,
                True,
                lambda row: row.mean("episodic", "held_out_classes", "n"),
            ),
        ),
    ),
    Kind(
        "Retrieval",
        "does the embedding find images of the same class? every test image is the query once; no classifier",
        (
            Measure("recall_at_1", "recall@1 %", ("retrieval", "recall_at_1"), percent, True),
            Measure("map_at_r", "MAP@R %", ("retrieval", "map_at_r"), percent, True),
        ),
        # The embedding of a classifier is a by-product, which is of no interest where only classifiers are compared.
        # Nor is that under a regression, which is a classifier that was fitted afterwards, or behind several views of an image.
        lambda row: row.config.predictor not in ("classifier", "logistic", "flips", "five-crops", "ten-crops"),
    ),
    Kind(
        "Under stress",
        "test top-1 % on changed images, mean over five levels, with an interval over seeds and images that is rather too wide, "
        "as it is made of the means alone; by the checkpoint chosen on unchanged validation images. Each level stands in result.json, each image in stress.parquet",
        tuple(
            Measure(
                f"stress_{kind}", f"{kind} %", ("robustness", kind), percent, True, lambda row: row.mean("test", "n")
            )
            for kind in STRESSES
        ),
    ),
    Kind(
        "Mixed images",
        "test images mixed from m classes each, as in training: are these the m largest scores?",
        (
            Measure("mixed_m", "m", ("mixed", "m"), plain),
            Measure("mixed_top_m", "classes found %", ("mixed", "top_m"), percent, True, _half_of_mixed),
            Measure("mixed_all_m", "images with all found %", ("mixed", "all_m"), percent, True, _half_of_mixed),
        ),
    ),
)
EVERYTHING = (*COSTS, *SPEEDS, *QUALITY.measures, *(measure for kind in KINDS for measure in kind.measures))


def coarser(rows: Iterable[Row]) -> tuple[Measure, ...]:
    """List the accuracies at levels of coarser names, such as families, that any of these rows has."""
    levels = dict.fromkeys(level for row in rows for level in name_levels(row.trials))
    return tuple(
        Measure(level_key(level), f"{level} %", ("test", "name_levels", level, "top1"), percent, True)
        for level in levels
    )


def kinds(rows: tuple[Row, ...]) -> tuple[Kind, ...]:
    """List the kinds of measures that these rows may have a table of, beside accuracy and quality."""
    note = "test top-1 % where the coarser name of the class with the highest score is enough"
    levels = coarser(rows)
    return (Kind("At coarser names", note, levels), *KINDS) if levels else KINDS
