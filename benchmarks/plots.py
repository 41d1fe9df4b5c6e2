"""python benchmarks/plots.py: draw the plots of docs/ from the CSV files in benchmarks/results/.

Each SVG contains the SHA-256 of its files, which a test compares, and has colours for light and for dark pages.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tables import DOCS, RESULTS, Table

#: Colours on a light page, and by each of them the colour on a dark page.
INK, FIRST, SECOND = "#24292f", "#0b63b5", "#b3500d"
DARK = {INK: "#d7dde4", FIRST: "#6cb2f5", SECOND: "#f0a05a"}
Draw = Callable[[Figure, Sequence[Table]], None]


@dataclass(frozen=True)
class Plot:
    """One plot: its path below docs/, the files with its data, its size in inches, and the function that draws it."""

    target: str
    files: tuple[str, ...]
    size: tuple[float, float]
    draw: Draw

    def text(self) -> str:
        """Draw it; the same characters every time with one version of matplotlib."""
        figure = Figure(figsize=self.size, layout="constrained")
        settings = {
            "svg.hashsalt": self.target, "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10,
            "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        }  # fmt: skip
        with matplotlib.rc_context(settings):
            self.draw(figure, [Table.read(file) for file in self.files])
            buffer = io.StringIO()
            about = f"from {', '.join(self.files)}, SHA-256 {self.checksum()}"
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Description": about})
        rules = "".join(
            f'[style*="{name}: {light}"] {{ {name}: {dark} !important; }}\n'
            for light, dark in DARK.items()
            for name in ("fill", "stroke")
        )
        style = f"<style>@media (prefers-color-scheme: dark) {{\n{rules}}}</style>\n"
        drawn = buffer.getvalue().replace("<defs>", f"{style}<defs>", 1)
        return "\n".join(line.rstrip() for line in drawn.splitlines()) + "\n"

    def checksum(self) -> str:
        """Hash the files, in order."""
        return hashlib.sha256(b"".join((RESULTS / file).read_bytes() for file in self.files)).hexdigest()


def accuracies(name: str, group: str = "", label: str = "technique/variant") -> Draw:
    """Draw each row's test accuracy with its interval, the best on top; `group` is a column that two colours tell apart."""

    def draw(figure: Figure, found: Sequence[Table]) -> None:
        (table,) = found
        axes = figure.subplots()
        groups = table.column(group) if group else [""] * len(table.rows)
        kinds = list(dict.fromkeys(groups))
        columns = ("test top-1 %", "95 % interval low", "95 % interval high")
        values = [[float(cell) for cell in table.column(column)] for column in columns]
        for place, (top1, low, high) in enumerate(zip(*values, strict=True)):
            colour = (FIRST, SECOND)[kinds.index(groups[place])]
            axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot([top1], [place], "o", color=colour, markersize=6)
        axes.set(xlabel=f"test top-1 %, {name}", yticks=range(len(groups)))
        labels = [" · ".join(cells) for cells in zip(*(table.column(part) for part in label.split("+")), strict=True)]
        axes.set_yticklabels(labels)
        axes.set_ylim(len(groups) - 0.4, -0.6)
        if group:
            handles = [
                axes.plot([], [], "o-", color=colour)[0] for colour, _ in zip((FIRST, SECOND), kinds, strict=False)
            ]
            figure.legend(handles, kinds, loc="outside upper center", ncols=2, frameon=False)
        tidy(axes)

    return draw


def kernel(figure: Figure, found: Sequence[Table]) -> None:
    """Draw the kernel's time over the plain convolution's, at each stage, in both directions and for both processors."""
    forward, both = figure.subplots(1, 2, sharey=True)
    for axes, column, title in (
        (forward, "forward, 2 threads", "forward"),
        (both, "forward+backward, 2 threads", "forward and backward"),
    ):
        for table, colour, name in zip(found, (FIRST, SECOND), ("AVX-512", "AVX2"), strict=True):
            axes.plot(table.column("stage"), list(map(float, table.column(column))), "o-", color=colour, label=name)
        axes.axhline(1, color=INK, linewidth=1, linestyle=":")
        axes.set(xlabel="stage of ResNet-18", title=title, ylim=(0, 1.5))
        tidy(axes)
    forward.set_ylabel("our time / a plain convolution's")
    both.annotate("a plain convolution", (3, 1), (4, 3), textcoords="offset points", ha="right", fontsize=8)
    both.legend(frameon=False, loc="lower right")


def gpu(figure: Figure, found: Sequence[Table]) -> None:
    """Draw torchvision's time over ours on the GPU, at each stage for batches of 32."""
    (table,) = found
    axes = figure.subplots()
    for direction, colour, name in (
        ("forward", FIRST, "forward"),
        ("forward_backward", SECOND, "forward and backward"),
    ):
        for type_, style in (("float32", "o-"), ("float16", "s--")):
            rows = table.where({"direction": [direction], "type": [type_], "batch": ["32"]})
            values = list(map(float, rows.column("torchvision / ours")))
            axes.plot(rows.column("stage"), values, style, color=colour, label=f"{name}, {type_}")
    axes.axhline(1, color=INK, linewidth=1, linestyle=":")
    axes.set(xlabel="stage of ResNet-18, batches of 32", ylabel="torchvision's time / ours", ylim=(0, 1.1))
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.25))
    tidy(axes)


def memory(figure: Figure, found: Sequence[Table]) -> None:
    """Draw what a call needs, ours, the plain convolution's and torchvision's, forward and backward."""
    table = found[0].where({"direction": ["forward_backward"]})
    axes = figure.subplots()
    for place, (peer, colour) in enumerate((("ours", FIRST), ("conv2d", INK), ("torchvision", SECOND))):
        values = list(map(float, table.column(f"{peer} MiB")))
        bars = axes.bar([stage + 0.27 * (place - 1) for stage in range(4)], values, 0.25, color=colour, label=peer)
        axes.bar_label(bars, fontsize=8, color=INK)
    axes.set(xlabel="stage of ResNet-18", ylabel="MiB, forward and backward", xticks=range(4))
    axes.set_xticklabels(table.column("stage"))
    axes.legend(frameon=False)
    tidy(axes)


def training(figure: Figure, found: Sequence[Table]) -> None:
    """Draw the book loop's time divided by ours, for each training and on both machines."""
    axes = figure.subplots()
    rows = [(row[0].partition(":")[0], machine, float(row[4]), float(row[5])) for table, machine in
            zip(found, ("AVX2", "AVX512-BF16"), strict=True) for row in table.rows]  # fmt: skip
    for place, (_, _, cold, warm) in enumerate(rows):
        for value, colour, shift in ((cold, FIRST, -0.18), (warm, SECOND, 0.18)):
            axes.barh(place + shift, value, 0.34, color=colour)
            axes.annotate(
                f"{value:g}", (value, place + shift), (4, 0), textcoords="offset points", va="center", fontsize=8
            )
    axes.set(yticks=range(len(rows)), xlabel="times as soon as a plain PyTorch loop", xscale="log", xlim=(0.9, 80))
    axes.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes.set_yticklabels([f"{name}, {machine}" for name, machine, _, _ in rows])
    axes.invert_yaxis()
    axes.axvline(1, color=INK, linewidth=1)
    handles = [axes.barh([0], [0], color=colour) for colour in (FIRST, SECOND)]
    figure.legend(
        handles, ["empty caches", "caches of an earlier seed"], loc="outside upper center", ncols=2, frameon=False
    )
    tidy(axes)


def statistics(figure: Figure, found: Sequence[Table]) -> None:
    """Draw false positives, coverage and power over the number of seeds, a line for each number of test images."""
    (table,) = found
    panels = (
        ("false positives %", 5.0, (0, 10)),
        ("coverage %", 95.0, (90, 100)),
        ("power at 2 points %", 80.0, (0, 100)),
    )
    for axes, (column, aim, limits) in zip(figure.subplots(1, 3), panels, strict=True):
        for images, colour in zip(dict.fromkeys(table.column("test images")), (INK, SECOND, FIRST), strict=True):
            rows = table.where({"test images": [images]})
            seeds, values = (list(map(float, rows.column(name))) for name in ("seeds", column))
            axes.plot(seeds, values, "o-", markersize=4, color=colour, label=f"{images} test images")
        axes.axhline(aim, color=INK, linewidth=1, linestyle=":")
        axes.set_xscale("log")
        axes.set(xlabel="seeds", title=column, ylim=limits, xticks=seeds, xticklabels=[f"{seed:g}" for seed in seeds])
        axes.minorticks_off()
        tidy(axes)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)


def tidy(axes: Axes) -> None:
    """Leave out the frame's upper and right side, and draw a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, color=INK)
    axes.set_axisbelow(True)


def _results(target: str, file: str, name: str, rows: int, **options: str) -> Plot:
    return Plot(
        f"results/{target}.svg", (f"photographs/{file}.csv",), (5.8, 1.1 + 0.28 * rows), accuracies(name, **options)
    )


PLOTS = (
    _results("summary", "summary", "small budgets", 12, group="photographs", label="network+technique/variant"),
    _results("freezing", "flowers102-64px-stages", "Flowers102 at 64 to 96 px", 13, group="backbone"),
    _results("deformable", "flowers17-112px-deformable", "Flowers17", 3),
    _results("from-scratch", "flowers102-from-scratch", "Flowers102, 64 px copies", 3, label="recipe"),
    _results("image-size", "flowers102-224px-finetuned", "Flowers102, 64 px copies", 2, label="technique/variant+pixels"),
    _results("frozen-features", "flowers17-224px-frozen", "Flowers17 at 224 px", 8, group="backbone"),
    _results("small-cnn", "flowers17-112px-searched", "Flowers17 at 112 px", 9),
    _results("short-training", "flowers102-64px-searched", "Flowers102 at 64 px", 9),
    _results("distillation", "flowers17-112px-searched-later", "Flowers17 at 112 px", 6, group="backbone"),
    _results("transformers-flowers17", "flowers17-224px-transformer", "Flowers17 at 224 px", 5),
    _results("transformers-flowers102", "flowers102-98px-transformer", "Flowers102 at 98 px", 5),
    Plot("performance/cpu.svg", ("performance/kernel-avx512-means.csv", "performance/kernel-avx2-means.csv"), (6.4, 3.0), kernel),
    Plot("performance/gpu.svg", ("performance/kernel-h200.csv",), (5.8, 3.2), gpu),
    Plot("performance/memory.svg", ("performance/memory-avx512.csv",), (5.8, 3.0), memory),
    Plot("statistics.svg", ("statistics/curves.csv",), (7.4, 3.0), statistics),
    Plot("performance/training.svg",
         ("performance/training-avx2.csv", "performance/training-avx512-bfloat16.csv"), (6.2, 3.4), training),
)  # fmt: skip


def main() -> None:
    """Draw all plots, and print their paths."""
    for plot in PLOTS:
        path = DOCS / Path(plot.target)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(plot.text(), encoding="utf-8")
        print(path.relative_to(DOCS.parent))


if __name__ == "__main__":
    main()
