"""The leaderboard: what may share a table, what may not, and every format."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stored import outcomes, store_trial

from flowers_bench.measure.retrieval import Retrieval
from flowers_bench.measure.statistics import image_mean, share_interval
from flowers_bench.report.formatting import latex_cell
from flowers_bench.report.leaderboard import Leaderboard
from flowers_bench.report.measures import QUALITY
from flowers_bench.report.text import FORMATS, print_text, tables
from flowers_bench.store.folder import Store

EPISODIC = {"accuracy": 0.875, "low": 0.87, "high": 0.88, "episodes": 600, "n_way": 5, "k_shot": 1, "n_query": 15}


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Leaderboard:
    root = tmp_path_factory.mktemp("stored")
    for seed in range(2):
        store_trial(root, "a/plain", seed, outcomes(seed, 0.7))
        figures = {
            "episodic": {"test": {**EPISODIC, "accuracy": 0.8 + 0.05 * seed}},
            "retrieval": {"recall_at_1": 0.61, "map_at_r": 0.41},
        }
        store_trial(root, "proto/net_5%", seed, outcomes(seed, 0.6), result=figures, predictor="nearest-mean")
    mixed = {"mixed": {"n": 400, "top_m": 0.55, "all_m": 0.31, "m": 1.9}}
    store_trial(root, "mix/cut", 0, outcomes(0, 0.5), result=mixed)
    found = {"retrieval": {"recall_at_1": 0.5, "map_at_r": 0.3}}
    store_trial(root, "a/plain", 0, outcomes(0, 0.9), dataset={"name": "garden"}, result=found)
    return Leaderboard.of(Store(root).finished())


def test_episodes_never_stand_in_the_table_of_top1(board: Leaderboard) -> None:
    for table in tables(board):
        episodic = any("n-way" in column for column in table.head)
        full = any("top-1" in column for column in table.head)
        assert not (episodic and full)


def test_other_kinds_list_only_rows_that_have_them(board: Leaderboard) -> None:
    found = {table.title.rpartition(": ")[2]: table for table in tables(board)}
    assert [line[0] for line in found["few-shot episodes"].body] == ["proto/net_5%"]
    assert found["few-shot episodes"].body[0][3:6] == ("5", "1", "600")
    low = 100 * share_interval([0.8, 0.85], 400)[0]
    assert found["few-shot episodes"].body[0][6] == f"82.5 [{low:.1f}, 100.0]"
    shares = [[f"{100 * bound:.1f}" for bound in share_interval([share], 200)] for share in (0.55, 0.31)]
    assert found["mixed images"].body[0][3:] == (
        "1.90",
        f"55.0 [{', '.join(shares[0])}]",
        f"31.0 [{', '.join(shares[1])}]",
    )
    assert [line[0] for line in found["retrieval"].body] == ["proto/net_5%"]


def test_retrieval_is_printed_where_an_embedding_predicts(board: Leaderboard) -> None:
    titles = [table.title for table in tables(board) if table.title.endswith("retrieval")]
    assert len(titles) == 1
    assert titles[0].startswith("meadow")


def test_other_datasets_are_other_tables(board: Leaderboard) -> None:
    assert [group.title.partition(":")[0] for group in board.groups] == ["garden", "meadow"]


def test_every_figure_of_quality_has_its_interval(board: Leaderboard) -> None:
    (table,) = [s for s in tables(board) if s.title.startswith("meadow") and "mean per class %" in s.head]
    cells = {line[0]: line[table.head.index("mean per class %")] for line in table.body}
    assert all(re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", cell) for cell in cells.values())
    records = {record["name"]: record for record in json.loads(FORMATS["json"](board)) if "meadow" in record["group"]}
    several, one = records["a/plain"], records["mix/cut"]
    for record in (several, one):
        for figure in ("mean_per_class", "top5", "nll", "brier", "macro_f1", "ece", "ece_adaptive"):
            assert record[f"{figure}_low"] <= record[figure] <= record[f"{figure}_high"]
            assert record[f"{figure}_low"] < record[f"{figure}_high"]
        for figure in ("ece", "ece_adaptive"):
            assert 0 < record[f"{figure}_if_calibrated"] < 0.1


def test_figures_with_intervals_are_those_of_the_results(board: Leaderboard) -> None:
    for row in (row for group in board.groups for row in group.rows):
        for key in ("mean_per_class", "top5", "nll", "brier", "macro_f1", "ece", "ece_adaptive"):
            assert row.metrics[key].value == pytest.approx(row.mean("test", key), rel=1e-6)
        for key in ("ece", "ece_adaptive"):
            assert row.if_calibrated[key] == pytest.approx(row.mean("test", f"{key}_if_calibrated"))


def test_a_calibration_error_is_printed_beside_that_of_a_calibrated_model(board: Leaderboard) -> None:
    row = board.groups[1].rows[0]
    (ece,) = [measure for measure in QUALITY.measures if measure.key == "ece"]
    assert re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\] \([\d.]+ if calibrated\)", ece.text(row))


def test_accuracy_at_coarser_names_has_a_table_of_its_own_and_columns(tmp_path: Path) -> None:
    coarse = np.array([0, 0, 1, 1])
    for label, seeds in (("a/plain", 2), ("b/old", 1)):
        for seed in range(seeds):
            folder = store_trial(tmp_path, label, seed, outcomes(seed, 0.7))
            scores = folder.scores()
            right = coarse[scores.logits.argmax(1)] == coarse[scores.labels]
            place = folder.path / "result.json"
            result = json.loads(place.read_text())
            if label == "a/plain":
                level = {"top1": float(right.mean()), "names": 2, "of_class": coarse.tolist()}
                result["test"]["name_levels"] = {"family": level}
            place.write_text(json.dumps(result))
    board = Leaderboard.of(Store(tmp_path).finished())
    (table,) = [table for table in tables(board) if table.title.endswith("at coarser names")]
    assert table.head[3:] == ("family %",)
    assert [line[0] for line in table.body] == ["a/plain"]
    assert not [table for table in tables(board, wide=False) if table.title.endswith("at coarser names")]
    records = {record["name"]: record for record in json.loads(FORMATS["json"](board))}
    found, (row,) = records["a/plain"], [row for group in board.groups for row in group.rows if row.name == "a/plain"]
    assert found["top1_family"] == pytest.approx(row.metrics["top1_family"].value)
    assert found["top1_family_low"] < found["top1_family"] < found["top1_family_high"]
    assert found["top1_family"] > found["test_top1"]
    assert records["b/old"]["top1_family"] is None
    assert [line["top1_family"] for line in csv.DictReader(FORMATS["csv"](board).splitlines())].count("") == 1


def test_retrieval_has_an_interval_where_its_images_are_stored(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    found = []
    for seed in range(3):
        points = rng.normal(size=(400, 6)) + 2 * np.eye(4, 6)[labels]
        retrieved = Retrieval.of(points, labels)
        assert retrieved is not None
        result = {"retrieval": retrieved.metrics().json()}
        folder = store_trial(tmp_path, "a/net", seed, outcomes(seed, 0.7), result=result, predictor="nearest-mean")
        path = folder.path / "predictions.parquet"
        table = pd.read_parquet(path)
        for name, shares in retrieved.images.items():
            table.loc[table["split"] == "test", name] = shares
        table.sample(frac=1, random_state=seed).to_parquet(path, index=False)
        found.append(retrieved)
        if seed == 0:
            store_trial(tmp_path, "a/older", seed, outcomes(seed, 0.7), result=result, predictor="nearest-mean")
    records = {
        record["name"]: record for record in json.loads(FORMATS["json"](Leaderboard.of(Store(tmp_path).finished())))
    }
    for name in ("recall_at_1", "map_at_r"):
        expected = image_mean(np.stack([seed.images[name] for seed in found]), 1.0)
        assert records["a/net"][name] == pytest.approx(expected.value)
        assert records["a/net"][f"{name}_low"] == pytest.approx(expected.low)
        assert records["a/net"][f"{name}_high"] == pytest.approx(expected.high)
        assert records["a/older"][f"{name}_low"] is None, "an older version did not store its images"


def test_what_a_gpu_and_a_meter_measured_is_shown(tmp_path: Path) -> None:
    cost = {"seconds": 60.0, "epochs": 3, "peak_rss_bytes": 2**30, "peak_cuda_bytes": 3 * 2**30, "gpu_joules": 2500.0}
    speed = {"latency": {"p50_ms": {"value": 2.0}}, "throughput": {"images_per_second": 800.0}}
    cost["inference"] = {"float32": speed, "bfloat16": {**speed, "throughput": {"images_per_second": 1600.0}}}
    store_trial(tmp_path, "a/plain", 0, outcomes(0, 0.7), result={"cost": cost})
    board = Leaderboard.of(Store(tmp_path).finished())
    assert next(tables(board)).body[0][-1] == "1,024 MiB + 3,072 MiB GPU"
    (record,) = json.loads(FORMATS["json"](board))
    assert (record["gpu_joules"], record["package_joules"]) == (2500, None)
    assert (record["throughput"], record["throughput_bfloat16"], record["latency_p50_bfloat16"]) == (800, 1600, 2)


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_every_format_has_every_row(board: Leaderboard, format: str) -> None:
    text = FORMATS[format](board)
    names = ["a/plain", "mix/cut", r"proto/net\_5\%" if format == "latex" else "proto/net_5%"]
    assert all(name in text for name in names)


def test_csv_and_json_have_the_same_figures(board: Leaderboard) -> None:
    records = json.loads(FORMATS["json"](board))
    for record, line in zip(records, csv.DictReader(io.StringIO(FORMATS["csv"](board))), strict=True):
        assert float(line["test_top1"]) == record["test_top1"]
        assert line["episodic_accuracy"] == (
            "" if record["episodic_accuracy"] is None else str(record["episodic_accuracy"])
        )
    (proto,) = [record for record in records if record["name"].startswith("proto")]
    assert proto["episodic_accuracy"] == pytest.approx(0.825)
    assert proto["map_at_r"] == pytest.approx(0.41)


def test_latex_is_whole_and_escaped(board: Leaderboard) -> None:
    text = FORMATS["latex"](board)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == len(list(tables(board)))
    for line in text.splitlines():
        if not line.startswith("%"):
            assert not re.search(r"(?<!\\)[%#$_]", line)
    widths = {
        len(re.findall(r"(?<!\\)&", line)) for line in text.splitlines() if line.startswith("    ") and "&" in line
    }
    assert widths <= {len(table.head) - 1 for table in tables(board)}
    assert latex_cell(r"a\b{c}_~^") == r"a\textbackslash{}b\{c\}\_\textasciitilde{}\textasciicircum{}"


def test_terminal_shows_all_kinds(board: Leaderboard, capsys: pytest.CaptureFixture[str]) -> None:
    print_text(board)
    printed = capsys.readouterr().out
    for words in ("few-shot episodes", "retrieval", "mixed images", "not comparable with top-1"):
        assert words in printed
