"""Finished trials of a store, and their figures as cells of a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flowers_bench.measure.statistics import ALPHA, Interval
from flowers_bench.report.aggregate import Row, build_row, by_configuration
from flowers_bench.report.kept_trials import load_each
from flowers_bench.store.folder import Store

Rows = Mapping[str, Row]


def read_rows(place: Path) -> Rows:
    """Read the finished trials of a store; a row for each name, with its seeds."""
    trials = load_each(Store(place).finished())
    return {found.label: build_row(found.label, found) for found in by_configuration(trials)}


def columns(name: str) -> list[str]:
    """Name the columns of a value and its interval."""
    return [name, f"{name} low", f"{name} high"]


def points(found: Interval) -> list[str]:
    """Write a difference and its interval in points, with signs."""
    return [f"{100 * value:+.1f}" for value in (found.value, found.low, found.high)]


def percent(found: Interval) -> list[str]:
    """Write a share and its interval in percent."""
    return [f"{100 * value:.1f}" for value in (found.value, found.low, found.high)]


def answer(found: Interval, p: float, above: str = "yes, better", below: str = "yes, worse") -> str:
    """Say what a difference decides, at an adjusted p-value, and in which words."""
    if p >= ALPHA:
        return "not decided"
    return above if found.value > 0 else below
