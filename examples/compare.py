"""Two techniques from a run store, in the cells of a notebook (VS Code, Spyder and Jupytext run them one by one).

    flowers-bench --plugin deformable
    python examples/compare.py runs deformable/stage3 deformable/plain

`load_results` gives one row per finished trial; what stands in each trial's folder is in docs/results-format.md.
`flowers-bench compare` answers whether a difference may be claimed, with intervals and tests; this shows where it lies.
"""

# %% Which runs, and which two of them
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from flowers_bench import load_results

arguments = sys.argv[1:4] if len(sys.argv) == 4 else ["runs", "deformable/stage3", "deformable/plain"]
runs, first, second = Path(arguments[0]), *arguments[1:]

# %% Accuracy and cost, mean over the seeds
trials = load_results(runs)
trials["name"] = trials["technique"] + "/" + trials["variant"]
trials = trials[trials["name"].isin([first, second])]
if set(trials["name"]) != {first, second}:
    sys.exit(f"{runs} has no finished trials of {', '.join(sorted({first, second} - set(trials['name'])))}.")
protocols = trials[["dataset.split_checksum", "dataset.fingerprint", "backbone", "weights.name"]].drop_duplicates()
if len(protocols) > 1:
    sys.exit(
        f"these trials do not compare, because they differ in images, backbone or weights:\n{protocols.to_string()}"
    )
columns = {"test.top1": "top-1", "test.nll": "NLL", "cost.train_seconds": "seconds", "cost.parameters": "parameters"}
print(trials.groupby("name")[list(columns)].mean().rename(columns=columns).round(3).to_string())

# %% Every test image under both, seed by seed


def predictions(trial: pd.Series) -> pd.DataFrame:
    """Key, label and whether the trial was right, of its test images."""
    table = pd.read_parquet(runs / trial["id"] / "predictions.parquet", columns=["split", "key", "label", "prediction"])
    table = table[table["split"] == "test"]
    return table.assign(right=table["label"] == table["prediction"], name=trial["name"], seed=trial["seed"])


images = pd.concat([predictions(trial) for _, trial in trials.iterrows()])
pairs = images.pivot_table(index=["seed", "key", "label"], columns="name", values="right", aggfunc="first").dropna()
if pairs.empty:
    sys.exit(f"{first} and {second} have no seed in common.")
won, lost = (pairs[first] & ~pairs[second]).sum(), (pairs[second] & ~pairs[first]).sum()
print(f"\nof {len(pairs)} pairs of predictions, only {first} is right in {won}, only {second} in {lost}")

# %% Which classes gain, which lose
by_class = pairs.astype(float).groupby("label").mean()
gain = (by_class[first] - by_class[second]).sort_values()
print(f"\nclasses with the largest gain of {first}, in points of accuracy:")
print((100 * gain[::-1].head(5)).round(1).to_string())
print("\nand with the largest loss:")
print((100 * gain.head(5)).round(1).to_string())

# %% The same as a picture
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
axes.bar(range(len(gain)), 100 * gain)
axes.axhline(0, color="black", linewidth=0.8)
axes.set(xlabel="class, from the largest loss to the largest gain", ylabel=f"points gained by\n{first}")
figure.savefig("gain.png", dpi=150)
print("\ngain.png shows all classes")
