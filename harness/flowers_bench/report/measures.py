"""Every figure that a table, a plot or an export may show of a row: where it stands in `result.json`, and its unit.

Figures of other questions (few-shot episodes, retrieval, mixed images) are in tables of their own: choosing among five
classes is easier than among all, so that accuracy never stands in one column with the accuracy over all classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from flowers_bench.report.numbers import count, duration, milliseconds, percent, plain, rate, size
from flowers_bench.report.rows import Row, at
from flowers_bench.statistics import mean_interval

Format = Callable[[float | None], str]


@dataclass(frozen=True)
class Measure:
    """One figure.

    Attributes:
        key: its name in CSV and JSON.
        title: its column's head.
        path: where it stands in `result.json`.
        format: a number as people read it.
        interval: whether to give one, over seeds; the figure is a share then.
    """

    key: str
    title: str
    path: tuple[str, ...]
    format: Format
    interval: bool = False

    def measured(self, rows: Iterable[Row]) -> bool:
        """Whether any of these rows has it."""
        return any(row.mean(*self.path) is not None for row in rows)

    def text(self, row: Row) -> str:
        """The mean over seeds, with its interval where one is asked for and there are seeds for it."""
        numbers = [float(value) for trial in row.trials if (value := at(trial.result, self.path)) is not None]
        if not numbers:
            return "-"
        found = self.format(float(np.mean(numbers)))
        if not self.interval or len(numbers) < 2:
            return found
        low, high = mean_interval(numbers)
        return f"{found} [{self.format(max(0.0, low))}, {self.format(min(1.0, high))}]"


@dataclass(frozen=True)
class Kind:
    """Measures of one kind: a table of its own.

    Attributes:
        asked: there is no table unless this holds for one of its rows.
    """

    title: str
    note: str
    measures: tuple[Measure, ...]
    asked: Callable[[Row], bool] = lambda row: True

    def rows(self, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        """Those of which it was measured."""
        if not any(map(self.asked, rows)):
            return ()
        return tuple(row for row in rows if any(measure.measured([row]) for measure in self.measures))

    def shown(self, rows: tuple[Row, ...]) -> tuple[Measure, ...]:
        """The measures that any of these rows has."""
        return tuple(measure for measure in self.measures if measure.measured(rows))


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


_LATENCY = ("cost", "inference", "float32", "latency")
#: Of these, less is better.
COSTS = (
    Measure("trainable_parameters", "trainable", ("cost", "trainable_parameters"), count),
    Measure("parameters", "parameters", ("cost", "parameters"), count),
    Measure("search_seconds", "search time", ("cost", "search_seconds"), duration),
    Measure("flops", "FLOPs", ("cost", "flops"), count),
    Measure("seconds", "training time", ("cost", "seconds"), duration),
    Measure("seconds_to_best", "time to best", ("cost", "seconds_to_best"), duration),
    Measure("data_wait_share", "waiting for data %", ("cost", "data_wait_share"), percent),
    Measure("peak_rss_bytes", "peak memory", ("cost", "peak_rss_bytes"), size),
    Measure("trained_bytes", "stored size", ("cost", "trained_bytes"), size),
    Measure("latency_p50", "latency p50", (*_LATENCY, "p50_ms", "value"), milliseconds),
    Measure("latency_p95", "latency p95", (*_LATENCY, "p95_ms", "value"), milliseconds),
)
#: Of these, more is better.
SPEEDS = (
    Measure("throughput", "throughput", ("cost", "inference", "float32", "throughput", "images_per_second"), rate),
    Measure("train_images_per_second", "training speed", ("cost", "train_images_per_second"), rate),
)
#: The kinds of change of `measure.stress`, which is not imported here because it needs torch.
STRESSES = ("rotation", "scale", "translation", "perspective", "elastic", "blur", "noise", "occlusion", "jpeg")
QUALITY = Kind(
    "Quality of the test predictions",
    "means over seeds; after scaling: with the temperature fitted on the validation split",
    (
        Measure("top5", "top-5 %", ("test", "top5"), percent),
        Measure("macro_f1", "macro-F1 %", ("test", "macro_f1"), percent),
        Measure("nll", "NLL", ("test", "nll"), plain),
        Measure("brier", "Brier", ("test", "brier"), plain),
        Measure("ece", "ECE %", ("test", "ece"), percent),
        Measure("ece_adaptive", "adaptive ECE %", ("test", "ece_adaptive"), percent),
        Measure("nll_calibrated", "NLL after scaling", ("test", "calibrated", "nll"), plain),
        Measure("ece_calibrated", "ECE % after scaling", ("test", "calibrated", "ece"), percent),
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
            Measure("episodic_accuracy", "accuracy %", ("episodic", "test", "accuracy"), percent, True),
            Measure(
                "episodic_accuracy_held_out",
                "accuracy % on classes held out of training",
                ("episodic", "held_out_classes", "accuracy"),
                percent,
                True,
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
        # A classifier's embedding is a by-product: nobody who compares classifiers asked for it.
        lambda row: row.config["predictor"] in ("nearest-mean", "knn"),
    ),
    Kind(
        "Under stress",
        "test top-1 % on changed images, mean over five levels, with an interval over seeds; by the checkpoint chosen on "
        "unchanged validation images. Each level stands in result.json under `stress`, each image in stress.parquet",
        tuple(Measure(f"stress_{kind}", f"{kind} %", ("robustness", kind), percent, True) for kind in STRESSES),
    ),
    Kind(
        "Mixed images",
        "test images mixed from m classes each, as in training: are these the m largest scores?",
        (
            Measure("mixed_m", "m", ("mixed", "m"), plain),
            Measure("mixed_top_m", "classes found %", ("mixed", "top_m"), percent, True),
            Measure("mixed_all_m", "images with all found %", ("mixed", "all_m"), percent, True),
        ),
    ),
)
EVERYTHING = (*COSTS, *SPEEDS, *QUALITY.measures, *(measure for kind in KINDS for measure in kind.measures))
