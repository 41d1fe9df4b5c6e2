"""Which tests are `fast`, and that they stay so: a pytest plugin that tests/conftest.py loads.

A test is fast unless it is marked otherwise, starts the command (fixture `flowers_bench`), says in its name that it
trains, or stands in a folder or file whose tests run trials, compile or drive a browser. What is new is fast by itself,
and is held to it: a fast test that starts a trial's process fails, and a run whose fast tests take longer than their
budget says so.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

#: Seconds of the processor that all fast tests may take together: a minute on two cores, less what starting costs.
BUDGET = 80.0
HERE = Path(__file__).parent
#: Folders and files below tests/ whose tests run trials, build large networks, wait, compile, install, draw pages or drive a browser.
NOT_FAST = (
    "cli",
    "contract/test_predictors.py",
    "data/test_flowers102.py",
    "docs/test_site.py",
    "executors",
    "faults",
    "measure/test_cost.py",
    "measure/test_sequential.py",
    "models/test_image_sizes.py",
    "models/test_shipped_weights.py",
    "models/test_weights_download.py",
    "models/test_weights_fit.py",
    "ops/test_bfloat16.py",
    "ops/test_build.py",
    "ops/test_citizenship.py",
    "ops/test_cuda_emulated.py",
    "ops/test_draw.py",
    "plan/test_defaults_of_data.py",
    "plan/test_disturbed_search.py",
    "plan/test_nothing_trained.py",
    "plan/test_search.py",
    "plugins/test_bare_on_petals.py",
    "plugins/test_fingerprints.py",
    "plugins/test_pmg.py",
    "plugins/test_trackers.py",
    "report/test_answer.py",
    "report/test_claims.py",
    "report/test_comparison.py",
    "report/test_decisions.py",
    "report/test_figures.py",
    "report/test_page.py",
    "report/test_page_controls.py",
    "report/test_page_in_browser.py",
    "report/test_rows_of_one_name.py",
    "report/test_store_figures.py",
    "report/test_under_stress.py",
    "store/test_index.py",
    "test_examples.py",
    "test_tutorial.py",
    "testing",
    "training",
)
#: Names of tests that train, which takes seconds wherever they stand.
TRAINS = re.compile("overfit|one_batch|a_trial|trains|to_result")
MARKS = {"slow", "gpu", "cuda_compile"}
_began = pytest.StashKey[float]()
_spent: list[float] = []


def is_fast(item: pytest.Item) -> bool:
    """Say whether a collected test belongs to the fast ones."""
    return not (
        _stands_aside(item.path)
        or "flowers_bench" in getattr(item, "fixturenames", ())
        or TRAINS.search(item.name)
        or any(mark.name in MARKS for mark in item.iter_markers())
    )


def _stands_aside(path: Path) -> bool:
    place = path.relative_to(HERE).as_posix()
    return any(place == name or place.startswith(f"{name}/") for name in NOT_FAST)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what is not fast before it is imported, where only the fast tests are asked for."""
    asked = config.getoption("markexpr") == "fast" and collection_path.is_relative_to(HERE)
    return True if asked and _stands_aside(collection_path) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE) and is_fast(item):
            item.add_marker(pytest.mark.fast)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_began] = time.process_time()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Send what the test took of the processor with its report; what other processes do beside it does not count."""
    item.user_properties.append(("seconds of the processor", time.process_time() - item.stash[_began]))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up, where the reports of all workers arrive."""
    if report.when == "teardown" and "fast" in report.keywords:
        _spent.append(dict(report.user_properties)["seconds of the processor"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if sum(_spent) > BUDGET:
        terminalreporter.write_line(
            f"the fast tests took {sum(_spent):.0f} s of the processor, more than {BUDGET:.0f}: "
            "make some quicker, or add them to NOT_FAST in tests/fast_tests.py",
            red=True,
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a fast test that starts the server from which trials are forked."""
    before = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    result = yield
    started = forkserver._forkserver._forkserver_pid != before  # type: ignore[attr-defined]
    if started and item.get_closest_marker("fast"):
        pytest.fail(f"it runs a trial in a process of its own: add {item.path.name} to NOT_FAST in tests/fast_tests.py")
    return result
