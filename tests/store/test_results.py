"""Results as a table, and the page that documents their files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from stored import outcomes, store_trial

import flowers_bench
from flowers_bench import UsageError, load_results
from flowers_bench.store.folder import Store
from flowers_bench.store.reading import SCHEMA_VERSION

FORMAT = (Path(__file__).parents[2] / "docs" / "results-format.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for seed in (1, 0):
        store_trial(root, "wise/plain", seed, outcomes(seed, 0.7))
        store_trial(root, "wise/good", seed, outcomes(seed, 0.8), options={"freeze": 3})
    unfinished = store_trial(root, "wise/plain", 2, outcomes(2, 0.7))
    (unfinished.path / "result.json").unlink()
    return root


def test_a_row_per_finished_trial_with_its_figures(runs: Path) -> None:
    table = load_results(runs)
    assert list(zip(table["variant"], table["seed"], strict=True)) == [
        ("good", 0),
        ("good", 1),
        ("plain", 0),
        ("plain", 1),
    ]
    for row in table.to_dict("records"):
        result = Store(runs).folder(row["id"]).result()
        assert row["test.top1"] == result.test.top1
        assert row["cost.seconds"] == result.cost.seconds
        assert row["recipe.epochs"] == 3
        assert row["dataset.name"] == "meadow"
    assert table["test.top1"].dtype == float
    assert table.groupby("variant")["test.top1"].mean()["good"] > 0.75


def test_what_a_trial_does_not_have_is_missing(runs: Path) -> None:
    table = load_results(str(runs))
    assert table.loc[table["variant"] == "good", "options.freeze"].tolist() == [3, 3]
    assert table.loc[table["variant"] == "plain", "options.freeze"].isna().all()


def test_an_empty_store_is_an_empty_table(tmp_path: Path) -> None:
    assert len(load_results(tmp_path)) == 0
    with pytest.raises(UsageError, match="not a folder"):
        load_results(tmp_path / "nowhere")


def test_a_newer_schema_is_refused_with_both_numbers(runs: Path, tmp_path: Path) -> None:
    folder = store_trial(tmp_path, "wise/good", 0, outcomes(0, 0.8))
    for name in ("config.json", "result.json"):
        original = (folder.path / name).read_text()
        (folder.path / name).write_text(json.dumps({**json.loads(original), "schema_version": SCHEMA_VERSION + 1}))
        with pytest.warns(
            UserWarning, match=f"{name} has schema version {SCHEMA_VERSION + 1}; .* up to {SCHEMA_VERSION}"
        ):
            assert len(load_results(tmp_path)) == 0
        (folder.path / name).write_text(original)


def test_the_package_is_imported_without_pandas() -> None:
    code = "import sys, flowers_bench; sys.exit('pandas' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert "load_results" in flowers_bench.__all__


def test_the_format_names_every_field(runs: Path) -> None:
    folder = Store(runs).finished()[0]
    config, result = folder.config().json(), folder.result().json()
    fields = {*config, *result, *folder.history()[0].json(), *folder.predictions().columns}
    nested = {key for name in ("dataset", "recipe", "weights", "protocol") for key in config[name]}
    for field in fields | nested | set(result["hardware"]):
        assert f"`{field}`" in FORMAT, field
    assert f"Schema version {SCHEMA_VERSION}" in FORMAT


def test_the_files_of_a_store_are_all_named() -> None:
    from flowers_bench.store import folder as store

    for line in (store.__doc__ or "").splitlines():
        for word in line.split():
            if word.endswith((".json", ".jsonl", ".pt", ".safetensors", ".parquet", ".txt")):
                assert f"`{word.rpartition('/')[2]}`" in FORMAT, word
