"""Draw a suite's figures: curves over epochs, sweeps over a factor, pictures that techniques drew.

The caption of every drawing says what was measured: data, backbone, seeds, test images, and what the intervals are over.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowers_bench.plan.suites import Figure
from flowers_bench.report.aggregate import Row
from flowers_bench.report.formatting import percent, percent_interval
from flowers_bench.report.names import disambiguate, factors, facts_without
from flowers_bench.report.pictures import drawn, read_picture
from flowers_bench.report.plots import Band, curve, finite
from flowers_bench.util.errors import Unreadable
from flowers_bench.util.files import write_atomically
from flowers_bench.util.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

#: A sweep has at least this many values.
FEWEST = 2


@dataclass(frozen=True)
class Panel:
    """A suite's figure, and the rows of one dataset, protocol and backbone that it shows.

    Attributes:
        about: data and backbone in words; and the protocol, if another panel of the figure has the same data and backbone.
    """

    figure: Figure
    rows: tuple[Row, ...]
    about: str

    def caption(self, shown: str) -> str:
        """Write the caption: what was measured, and after it `shown`, which explains the lines or pictures."""
        weights = sorted({row.config.weights.name for row in self.rows})
        sizes = sorted({row.config.recipe.image_size for row in self.rows})
        seeds = sorted({len(row.seeds) for row in self.rows})
        count = f"{seeds[0]} seed{'s' if seeds[-1] > 1 else ''}"
        return ". ".join(
            (
                f"{self.about}, weights {' or '.join(weights)}",
                f"{' or '.join(map(str, sizes))} px",
                count if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds",
                shown,
                *(f"Note: {note}" for note in self.rows[0].config.dataset.notes),
            )
        )


@dataclass(frozen=True)
class Drawing:
    """A drawing, and the suffix of its file."""

    canvas: Canvas
    suffix: str

    def save(self, path: Path) -> None:
        """Write the file, atomically, the same bytes for the same drawing."""
        import matplotlib
        from matplotlib.text import Text

        for text in self.canvas.findobj(
            Text
        ):  # names from outside are shown as they are: no formulas, no control characters
            text.set_parse_math(False)
            text.set_text(printable(text.get_text()))
        undated: dict[str, dict[str, None]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        metadata = undated.get(self.suffix, {"Software": None})
        with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
            write_atomically(
                path,
                lambda temporary: self.canvas.savefig(temporary, format=self.suffix[1:], dpi=150, metadata=metadata),
                durable=False,
            )


def _canvas(panel: Panel, width: float, height: float, caption: str) -> Any:
    """Make an empty drawing with title and caption; not with pyplot, which keeps figures alive and may look for a display."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), layout="constrained")
    canvas.suptitle(panel.figure.title, fontsize=11, x=0.01, horizontalalignment="left")
    canvas.supxlabel(textwrap.fill(caption, int(width * 15)), fontsize=7, color="0.3")
    return canvas


def draw_curves(panel: Panel) -> Drawing | str:
    """Draw accuracy and loss by epoch, with a colour for each row; the legend has the test accuracy.

    Returns:
        The drawing, or the reason why there is none.
    """
    trained = [row for row in panel.rows if any(trial.folder.history() for trial in row.trials)]
    if not trained:
        return "its trials have no history"
    overs = "; ".join(sorted({row.top1.over for row in trained}))
    canvas = _canvas(
        panel,
        12,
        4.4,
        panel.caption(
            "Lines: mean over seeds, accuracies solid on validation, dashed on training images; bands: smallest to largest. Legend: test accuracy in percent with its 95 % "
            f"interval, over {overs}. Training loss is each technique's own, and not comparable between them"
        ),
    )
    accuracy, loss = canvas.subplots(1, 2)
    handles = []
    for row, colour in zip(trained, _colours(len(trained)), strict=True):
        histories = [trial.folder.history() for trial in row.trials]
        line = _band(accuracy, curve(histories, lambda epoch: epoch.val_top1), colour, "-", 100)
        _band(accuracy, curve(histories, lambda epoch: epoch.train_top1_clean), colour, "--", 100)
        _band(loss, curve(histories, lambda epoch: epoch.train_loss), colour, "--", 1)
        line.set_label(f"{row.name}: {percent(row.top1.value)} {percent_interval(row.top1.low, row.top1.high)}")
        handles.append(line)
    for axes in (accuracy, loss):
        axes.xaxis.get_major_locator().set_params(integer=True)
    accuracy.set(xlabel="epoch", ylabel="accuracy, %", ylim=(0, 100))
    loss.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    canvas.legend(handles=handles, loc="outside right center", fontsize=7)
    return Drawing(canvas, ".svg")


def _colours(count: int) -> list[Any]:
    """Choose `count` different colours."""
    import matplotlib

    if count <= 10:
        return [f"C{number}" for number in range(count)]
    return list(matplotlib.colormaps["turbo"](np.linspace(0, 1, count)))


def _band(axes: Any, values: Band, colour: str, style: str, factor: float) -> Any:
    mean, low, high = (
        factor * np.array(found, dtype=float) for found in (values["mean"], values["low"], values["high"])
    )
    epochs = np.arange(1, len(mean) + 1)
    axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    (line,) = axes.plot(epochs, mean, style, color=colour, linewidth=1.3)
    return line


def draw_sweep(panel: Panel) -> Drawing | str:
    """Draw accuracy and loss by the factor's value, with a line for each combination of the other settings.

    Below each value is the share of the parameters that is trained, if that depends on the factor.

    Returns:
        The drawing, or the reason why there is none.
    """
    lines = _swept(panel)
    if not lines:
        return f"its trials have fewer than {FEWEST} values of {panel.figure.factor}"
    values = sorted({value for points in lines.values() for value in points})
    rows = [row for points in lines.values() for row in points.values()]
    overs = "; ".join(sorted({row.top1.over for row in rows}))
    canvas = _canvas(
        panel,
        10,
        4.4,
        panel.caption(f"Solid: test; dotted: validation. Bars: 95 % intervals of test accuracy, over {overs}"),
    )
    accuracy, loss = canvas.subplots(1, 2)
    for (name, points), colour in zip(lines.items(), _colours(len(lines)), strict=True):
        places = [values.index(value) for value in points]
        found = list(points.values())
        _bars(accuracy, places, found, colour, f"test{name}")
        accuracy.plot(places, [100 * (row.mean("val", "top1") or 0) for row in found], ":", color=colour,
                      marker=".", label=f"validation{name}")  # fmt: skip
        for split, style in (("test", "-o"), ("val", ":.")):
            losses = [row.mean(split, "nll") for row in found]
            if all(value is not None for value in losses):
                loss.plot(places, losses, style, color=colour, markersize=4)
    shares = _tuned_shares(rows, str(panel.figure.factor))
    for axes in (accuracy, loss):
        axes.set_xticks(range(len(values)), [f"{value:g}{shares.get(value, '')}" for value in values], fontsize=7)
        axes.set_xlabel(f"{panel.figure.factor}{' (below: tuned share of the parameters)' if shares else ''}")
    accuracy.set_ylabel("accuracy, %")
    loss.set_ylabel("loss: -log p, nats")
    accuracy.legend(fontsize=7)
    return Drawing(canvas, ".svg")


def _swept(panel: Panel) -> dict[str, dict[float, Row]]:
    """Group the rows by the other settings, in words, and by the factor's value."""
    key = str(panel.figure.factor)
    groups: dict[tuple[Any, ...], dict[float, Row]] = {}
    for row in panel.rows:
        own = factors(row.config)
        if (number := finite(own.get(key, ""))) is not None:
            rest = tuple(sorted((k, v) for k, v in own.items() if k not in (key, "variant", "harness_revision")))
            groups.setdefault(rest, {})[number] = row
    lines = [dict(sorted(points.items())) for points in groups.values() if len(points) >= FEWEST]
    facts = [facts_without(next(iter(points.values())).config, key, "variant") for points in lines]
    return dict(zip(disambiguate([""] * len(lines), facts, ", {}={}".format), lines, strict=True))


def _bars(axes: Any, places: Sequence[int], rows: Sequence[Row], colour: str, label: str) -> None:
    value, low, high = (100 * np.array([getattr(row.top1, name) for row in rows]) for name in ("value", "low", "high"))
    axes.errorbar(places, value, np.stack([value - low, high - value]), color=colour, marker="o", markersize=4,
                  capsize=3, label=label)  # fmt: skip


def _tuned_shares(rows: Sequence[Row], factor: str) -> dict[float, str]:
    """Write a second line for each value: the share of the parameters that is trained; nothing if it is always the same."""
    shares = {}
    for row in rows:
        trained, total = row.mean("cost", "trainable_parameters"), row.mean("cost", "parameters")
        if trained is not None and total:
            shares[float(factors(row.config)[factor])] = f"\n{100 * trained / total:.3g} %"
    return shares if len(set(shares.values())) > 1 else {}


def draw_pictures(panel: Panel) -> Drawing | str:
    """Draw the pictures that techniques drew after training, of each row's first seed, one below the other.

    Returns:
        The drawing, or the reason why there is none.
    """
    found = []
    for row in panel.rows:
        for path in drawn(row):
            with contextlib.suppress(Unreadable):  # `damaged_pictures` names them
                found.append((f"{row.name}, seed {row.seeds[0]}", np.asarray(read_picture(path))))
    if not found:
        return "its trials drew no pictures"
    width = 11.0
    heights = [width * image.shape[0] / image.shape[1] for _, image in found]
    canvas = _canvas(
        panel, width, sum(heights) + 0.3 * len(found) + 1.2, panel.caption("Pictures: of the seed that is named")
    )
    for axes, (name, image) in zip(
        np.atleast_1d(canvas.subplots(len(found), 1, height_ratios=heights)), found, strict=True
    ):
        axes.imshow(image)
        axes.set_title(name, fontsize=8)
        axes.set_axis_off()
    return Drawing(canvas, ".png")


DRAWINGS: dict[str, Callable[[Panel], Drawing | str]] = {
    "curves": draw_curves,
    "sweep": draw_sweep,
    "pictures": draw_pictures,
}
