"""Sentences about one thing are not about several."""

from __future__ import annotations

from pathlib import Path

import pytest
from lives import planned
from stored import outcomes, store_trial

from flowers_bench.cli.execute import _print_total, announce
from flowers_bench.cli.report import report
from flowers_bench.util.text import counted


def test_what_is_counted_is_one_or_several() -> None:
    assert [counted(number, "trial") for number in (0, 1, 2)] == ["0 trials", "1 trial", "2 trials"]


def test_a_total_of_one_and_of_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [store_trial(tmp_path, "wise/good", seed, outcomes(seed, 0.8)) for seed in range(2)]
    _print_total(folders[:1])
    _print_total(folders)
    assert [line.partition(" took ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "this trial",
        "these 2 trials",
    ]


def test_a_plan_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    announce([planned(tmp_path, "toy/short")], "runs")
    told = capsys.readouterr().err
    assert "at most 1 epoch, " in told
    assert "1 trial, store runs" in told


def test_a_report_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store_trial(tmp_path / "runs", "wise/good", 0, outcomes(0, 0.8))
    report(tmp_path / "runs", tmp_path / "report.html")
    assert "report.html: 1 trial, " in capsys.readouterr().out
