"""Writes docs/learn/notebook.ipynb anew, with the outputs of this machine: `python docs/generate_notebook.py`.

The cells are below. Needs nbclient and ipykernel (`pip install ".[test]"`).
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TARGET = Path(__file__).parent / "learn" / "notebook.ipynb"
#: Markdown, or the source of a code cell.
CELLS = (
    (
        "markdown",
        """# From trials to an answer, in a notebook

Which technique is best on flowers that look alike, what does it cost, and is the difference real? The flowers here are drawn by rule and the
networks come with the package, so that nothing is downloaded and everything runs within a minute. With photographs of your own the same cells
do the same: put your folder where `petals` stands.""",
    ),
    (
        "markdown",
        "## Run\n\nThree techniques on 24 species, with three seeds each. Nothing but the last one trains the network.",
    ),
    (
        "code",
        """import subprocess

species = "--set data.species=24 --set data.size=48 --set image_size=48"


def flowers_bench(command):
    done = subprocess.run(["flowers-bench", *command.split()], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


out = flowers_bench(f"--plugin knn,linear-probe/logistic,transfer/k3 --data petals {species} --set epochs=3 --seeds 3")
print(out.partition("Answer: ")[0].partition("intervals: ")[0])""",
    ),
    ("markdown", "## The answer\n\nEvery run ends with it. It claims only what a test allows."),
    ("code", 'print(flowers_bench("answer").partition("Next:")[0])'),
    (
        "markdown",
        """## The numbers

`load_results` gives a row for each finished trial, named as in the trial's files. A mean and a deviation are no test; that is what
`flowers-bench compare` is for.""",
    ),
    (
        "code",
        """import flowers_bench as fb

trials = fb.load_results("runs")
trials["name"] = trials["technique"] + "/" + trials["variant"]
table = trials.groupby("name")[["test.top1", "test.mean_per_class", "cost.seconds"]].mean()
table.sort_values("test.top1", ascending=False).round(3)""",
    ),
    ("code", 'print(flowers_bench("compare linear-probe/logistic transfer/k3"))'),
    ("markdown", "## Accuracy against cost\n\nA point is a training: one seed of one technique."),
    (
        "code",
        """import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for name, rows in trials.groupby("name"):
    axes.scatter(rows["cost.seconds"], 100 * rows["test.top1"], label=name)
axes.set(xscale="log", xlabel="seconds of one training", ylabel="test top-1 %")
axes.legend()
plt.show()""",
    ),
    (
        "markdown",
        "## Image by image\n\nPredictions are kept for every test image. Which images has only one of two techniques right?",
    ),
    (
        "code",
        """import pandas as pd


def right(name):
    found = []
    for trial in trials[trials["name"] == name]["id"]:
        images = pd.read_parquet(f"runs/{trial}/predictions.parquet", columns=["split", "key", "label", "prediction"])
        images = images[images["split"] == "test"].set_index("key")
        found.append(images["label"] == images["prediction"])
    return pd.concat(found, axis=1).mean(axis=1) > 0.5  # by the vote of the seeds


one, other = right("linear-probe/logistic"), right("transfer/k3")
print(
    f"{len(one)} test images: both right {(one & other).sum()}, only the probe {(one & ~other).sum()}, "
    f"only the trained network {(other & ~one).sum()}, neither {(~one & ~other).sum()}"
)""",
    ),
    (
        "markdown",
        """## Show it to somebody

One page, without network: the answer, all comparisons, the images on which two techniques disagree. Then [your own
photographs](../do/photographs.md), or [a technique of your own](../plugins.md).""",
    ),
    ("code", 'print(flowers_bench("report -o report.html"))'),
)


def unexecuted() -> nbformat.NotebookNode:
    """Make the notebook without outputs. The ids of its cells are their places, so that it is the same each time."""
    makers = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    cells = [makers[kind](text, id=f"cell-{place}") for place, (kind, text) in enumerate(CELLS)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=kernel)


def executed(folder: Path) -> nbformat.NotebookNode:
    """Run all cells in a folder, with the command of this Python first in the PATH. Raises `CellExecutionError` where one fails."""
    notebook = unexecuted()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**environment, "COLUMNS": "120"})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran is nobody's business
    return notebook


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        nbformat.write(executed(Path(place)), TARGET)
