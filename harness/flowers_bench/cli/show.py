"""`flowers-bench show TRIAL`: print all of one trial, as text to read or as JSON."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.contract.technique import in_use
from flowers_bench.store.records import Bounded, Config, Epoch, Result, SearchedResult, StressLevel, Throughput
from flowers_bench.util.errors import unknown_name
from flowers_bench.util.text import printable

if TYPE_CHECKING:
    from flowers_bench.report.measures import Measure
    from flowers_bench.store.folder import TrialFolder
    from flowers_bench.store.identity import Label

Line = tuple[str, str]


def show(trial: str, out: Path, format: str) -> None:
    """Print the trial.

    Raises:
        UsageError: the id or the format is unknown.
        Unreadable: the trial is damaged.
    """
    from flowers_bench.report.formatting import json_text
    from flowers_bench.store.folder import Store

    if format not in ("text", "json"):
        raise unknown_name("format", format, ("text", "json"))
    folder = Store(out).find(trial)
    folder.check()
    if format == "json":
        print(json_text(_everything(folder)))
        return
    for title, lines in _sections(folder):
        print(printable(f"\n{title}" if lines else title))
        width = max((len(key) for key, _ in lines), default=0)
        for key, value in lines:
            print(printable(f"  {key:<{width}}  {value}".rstrip()))


def _everything(folder: TrialFolder) -> dict[str, object]:
    """Collect the content of the trial's files, except for the predictions of the images."""
    failure = folder.failure()
    return {
        "config": folder.config().json(),
        "labels": [dataclasses.asdict(label) for label in folder.labels()],
        "run": folder.run().json(),
        "history": [epoch.json() for epoch in folder.history()],
        "attempts": [attempt.json() for attempt in folder.attempts()],
        "result": folder.any_result().json() if folder.finished() else None,
        "failure": failure.json() if failure else None,
    }


def _sections(folder: TrialFolder) -> Iterator[tuple[str, list[Line]]]:
    config, run = folder.config(), folder.run()
    result = folder.any_result() if folder.finished() else None
    names = " = ".join(label.text for label in folder.labels())
    yield f"trial {folder.id}: {names} on {config.dataset.name}, seed {config.seed}", []
    yield "What it is", _identity(config, folder.labels())
    trained = (result.cost.epochs if result else config.recipe.epochs) > 0
    recipe = {**in_use(config.recipe.json(), trained=trained), **config.options}
    yield "Recipe" if trained else "Nothing trained", [(key, _text(value)) for key, value in recipe.items()]
    failure = folder.failure()
    if failure:
        yield "Last attempt failed", [(failure.kind, failure.error)]
    if isinstance(result, SearchedResult):
        yield "Quality", [("val top-1", f"{100 * result.val.top1:.1f} %; the test split was not read")]
    elif result is not None:
        yield "Quality, with 95 % intervals over test images (one seed)", _quality(folder, result)
        if result.stress:
            yield "Under stress: test top-1 % from the weakest level to the strongest", _stress(result.stress)
        yield "Cost", _cost(folder, result)
        yield "Environment", [(key.replace("_", " "), _text(value)) for key, value in _flat(result.hardware.json())]
    yield "History", [(f"epoch {record.epoch}", _epoch(record)) for record in folder.history()]
    yield f"Files in {folder.path}", [(str(path.relative_to(folder.path)), _size(path)) for path in _files(folder)]
    yield "Run it again", [(shlex.join(["flowers-bench", *(run.command or ())]), "")]


def _identity(config: Config, labels: Sequence[Label]) -> list[Line]:
    compared = dict.fromkeys(label.baseline for label in labels if label.baseline)
    data, shots = config.dataset, config.protocol.shots
    parts = {
        "model": config.model,
        "loss": config.loss,
        "augmentation": config.augmentation,
        "sampler": config.sampler,
        "predictor": config.predictor,
        **({"step": config.step} if config.step else {}),
    }
    unlabelled = f" + {data.n_unlabelled} unlabelled" if data.n_unlabelled else ""
    sizes = f"{data.n_train} train{unlabelled} / {data.n_val} val / {data.n_test} test"
    lines = [
        ("parts", ", ".join(f"{key} {name}" for key, name in parts.items())),
        ("backbone", f"{config.backbone}, weights {config.weights.name}" + _sha(config.weights.sha256)),
        ("data", f"{data.classes} classes, {sizes}, {data.resolution}, split {data.split_checksum[:8]}"),
        ("protocol", "trained on train, chosen on val, read once on test" + (f"; {shots} shots" if shots else "")),
        ("compared with", ", ".join(compared) or "-"),
        (
            "code",
            ", ".join(f"{plugin} ({code})" for plugin, code in config.code.items()) or "built-in parts of revision 1",
        ),
    ]
    return [*lines, *(("note", note) for note in data.notes)]


def _sha(digest: str | None) -> str:
    return f" (sha256 {digest[:12]})" if digest else ""


def _quality(folder: TrialFolder, result: Result) -> list[Line]:
    from flowers_bench.report.aggregate import Configuration, Finished, build_row
    from flowers_bench.report.formatting import percent, percent_interval
    from flowers_bench.report.measures import KINDS, QUALITY, coarser

    row = build_row(folder.id, Configuration.alone(Finished.load(folder)))
    shares = {"test top-1 %": row.top1, "mean per class %": row.metrics["mean_per_class"]}
    lines = [(name, f"{percent(v.value)} {percent_interval(v.low, v.high)}") for name, v in shares.items()]
    retrieval = [measure for kind in KINDS for measure in kind.measures if measure.path[0] == "retrieval"]
    measures = (*coarser([row]), *QUALITY.measures, *retrieval)
    lines += [(measure.title, measure.text(row)) for measure in measures if measure.measured([row])]
    lines.append(("val top-1 %", percent(result.val.top1)))
    for kind, metrics in (("episodic", result.episodic), ("mixed", result.mixed)):
        found = _flat(metrics.json() if metrics else {})
        lines += [(f"{kind} {key}".replace("_", " "), _text(value)) for key, value in found]
    if not result.cost.epochs:
        return lines
    chosen = f"epoch {result.best_epoch} of {result.cost.epochs}"
    return [*lines, ("checkpoint", chosen + (", stopped early" if result.stopped_early else ""))]


def _stress(kinds: Mapping[str, Sequence[StressLevel]]) -> list[Line]:
    from flowers_bench.report.formatting import percent

    return [
        (kind, ", ".join(f"{level.label} {percent(level.top1)}" for level in levels)) for kind, levels in kinds.items()
    ] + [("", "intervals stand in result.json under `stress`, each image in stress.parquet")]


def _cost(folder: TrialFolder, result: Result) -> list[Line]:
    from flowers_bench.report.aggregate import at
    from flowers_bench.report.formatting import duration
    from flowers_bench.report.measures import COSTS, SPEEDS

    lines = [
        (measure.title, measure.format(value) + _bounds(measure, result))
        for measure in (*COSTS, *SPEEDS)
        if (value := at(result, measure.path)) is not None
    ]
    speed = result.cost.inference
    if speed and speed.threads is not None:
        machine = {"threads": speed.threads, "governor": speed.governor, "other cores busy": speed.other_cores_busy}
        lines.append(("while it was timed", _text(machine)))
    if result.cost.flops_uncounted:
        lines.append(("FLOPs leave out", ", ".join(result.cost.flops_uncounted)))
    attempts = folder.attempts()
    total = sum(attempt.seconds for attempt in attempts)
    return [*lines, ("attempts", f"{len(attempts)}, {duration(total)} in all")]


def _bounds(measure: Measure, result: Result) -> str:
    """Write the 95 % interval of a repeated time measurement, or nothing; `?` stands for a missing bound."""
    from flowers_bench.report.aggregate import within

    beside = within(result, measure.path[:-1])
    if not isinstance(beside, (Bounded, Throughput)) or not beside.has("low"):
        return ""
    return f" [{', '.join('?' if bound is None else measure.format(bound) for bound in (beside.low, beside.high))}]"


def _epoch(record: Epoch) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in record.json().items() if key != "epoch")


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", value


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "-"
    return "-" if value is None else str(value)


def _files(folder: TrialFolder) -> Sequence[Path]:
    return sorted(path for path in folder.path.rglob("*") if path.is_file() and not path.name.startswith("."))


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1024:,.1f} KiB"
