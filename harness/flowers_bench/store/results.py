"""The results of a run store as a table, for notebooks and other programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.util.errors import UsageError
from flowers_bench.util.text import printable

if TYPE_CHECKING:
    import pandas as pd

    from flowers_bench.store.folder import TrialFolder
    from flowers_bench.store.identity import Label

#: Long lists in `result.json` that the table leaves out.
_LISTS = ("class_names", "descriptions", "weights_report")


def load_results(runs: str | Path = "runs") -> pd.DataFrame:
    """Load the finished trials of a run store as a table, one row for each name of a trial, sorted by technique,
    variant and seed.

    `technique` and `variant` are the name. A trial with several (two techniques that mean the same training) stands in as many
    rows, of one `id`. Other columns are named by where a value stands in the trial's files (docs/results-format.md): those of
    `config.json` (`dataset.name`, `recipe.lr`, `options.freeze`, ...) and of `result.json` (`test.top1`, `val.top1`,
    `cost.seconds`, `hardware.processor`, ...). `id` is the trial's, and names its folder. What a trial does not have is
    missing (NaN or None). Lists by class are left in the file. Rows of different datasets, splits or protocols must not
    be compared: `flowers-bench compare` knows which may. A trial with a damaged file, or of a newer schema than this
    version reads, is left out, and named in a warning (`UserWarning`).

    Args:
        runs: the run store: a folder, or a URL (as text).

    Raises:
        UsageError: the folder does not exist.
    """
    import warnings

    import pandas as pd

    from flowers_bench.store.folder import Store  # imported here, because listing plugins must stay quick
    from flowers_bench.store.remote import opened

    root = opened(str(runs))
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder: name a run store, such as the --store of flowers-bench run.")
    contents = Store(root).read()
    for error in contents.damaged:
        warnings.warn(f"left out: {printable(str(error))}", stacklevel=2)
    table = pd.DataFrame([_row(folder, label) for folder in contents.finished for label in folder.labels()])
    if table.empty:
        return pd.DataFrame(columns=["id", "technique", "variant", "seed"])
    return table.sort_values(["technique", "variant", "seed", "id"], kind="stable").reset_index(drop=True)


def _row(folder: TrialFolder, label: Label) -> dict[str, object]:
    result = {key: value for key, value in folder.any_result().json().items() if key not in _LISTS}
    return flatten({"id": folder.id, **folder.described(label).json(), **result})


def metrics_of(values: Mapping[str, object]) -> dict[str, float]:
    """Pick the numbers of `flatten(values)`: what a tracker can draw."""
    return {key: v for key, v in flatten(values).items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Put nested dictionaries under dotted names, as `load_results` names its columns. A list of numbers or
    texts is one value; lists by class are left out."""
    found: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            if key != "per_class":
                found.update(flatten(value, f"{prefix}{key}."))
        elif not (isinstance(value, list) and value and isinstance(value[0], (dict, list))):
            found[f"{prefix}{key}"] = value
    return found
