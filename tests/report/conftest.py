"""A store with something for every part of the page, hostile names included, and the page made from it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from stored import CLASSES, cost, outcomes, store_trial
from watched import DESK, Watched

from flowers_bench.cli.report import report
from flowers_bench.contract.dataset import DataRequest
from flowers_bench.data import petals
from flowers_bench.store.folder import Store
from flowers_bench.store.identity import Protocol
from flowers_bench.util.files import write_json

#: Drawn images under the keys of the stored trials: those of the page's examples.
DRAWN = {"grammar_seed": 0, "size": 32, "species": CLASSES, "train": 10, "val": 5, "test": 100}
HOSTILE = "<img src=x onerror=window.hacked=1>"
NAMES = ("rose", "</script><script>window.hacked=1</script>", HOSTILE, "'\"&lt;b&gt;${window.hacked=1}")
assert len(NAMES) == CLASSES


def measured(seed: int) -> dict[str, Any]:
    """Figures beyond accuracy, as trials store them."""
    levels = [
        {"level": level, "label": f"{level} {HOSTILE}", "top1": 0.8 - 0.1 * level - 0.01 * seed}
        for level in range(1, 6)
    ]
    spent = {"search_seconds": 600.0 + seed, "data_wait_share": 0.2, "package_joules": 900.0}
    return {
        "cost": cost(90.0) | spent,
        "temperature": 1.4,
        "retrieval": {"recall_at_1": 0.6, "map_at_r": 0.4},
        "episodic": {"test": {"accuracy": 0.9, "episodes": 600, "n_way": 5, "k_shot": 1, "n_query": 15}},
        "stress": {"rotation": levels, "blur": levels},
    }


def petals_key(split: str, number: int) -> str:
    """As `petals` names its images, whose labels go round."""
    return f"{split}/{number % CLASSES:03d}/{number // CLASSES:03d}"


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    drawn = petals.load(DataRequest(root / "cache", None, 32, DRAWN))
    run = {"data_source": "petals", "cache_dir": str(root / "cache")}
    for seed in range(2):
        common = {
            "class_names": NAMES,
            "run": run,
            "dataset": {"split_checksum": drawn.split_checksum},
            "data_options": DRAWN,
            "key": petals_key,
        }
        scores = {**common, "result": measured(seed), "probabilities": False}
        store_trial(root, "wise/good", seed, outcomes(seed, 0.8), **scores)
        store_trial(root, "wise/plain", seed, outcomes(seed, 0.7), **common)
        hostile = {**run, "command": ["--plugin", HOSTILE]}
        store_trial(root, f"{HOSTILE}/</script>", seed, outcomes(5 + seed, 0.6), **{**common, "run": hostile})
    for shots in (1, 2):
        lawn = {"name": "lawn", "n_train": 4 * shots}
        for seed in range(2):
            common = {"dataset": lawn, "protocol": Protocol(shots=shots), "class_names": NAMES}
            store_trial(root, "wise/good", seed, outcomes(seed, 0.3 * shots), **common)
            store_trial(root, f"wise/{HOSTILE}", seed, outcomes(seed, 0.2 * shots), **common)
    for epochs in (3, 6, 90):
        garden = {"name": "garden", "notes": [HOSTILE]}
        store_trial(root, "wise/good", 0, outcomes(0, 0.8), dataset=garden, recipe={"epochs": epochs})
    folder = next(f for f in Store(root).finished() if f.labels()[0].text == "wise/good" and f.result().stress)
    (folder.path / "figures").mkdir()
    Image.new("RGB", (300, 80), "orange").save(folder.path / "figures" / "sampling.png")
    failed = store_trial(root, "wise/broken", 0, outcomes(0, 0.5))
    (failed.path / "result.json").unlink()
    write_json(failed.path / "failure.json", {"kind": "TrialFailed", "error": f"the loss is nan {HOSTILE}"})
    return root


@pytest.fixture(scope="session")
def page_file(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    report(runs, path)
    return path


@pytest.fixture(scope="session")
def browser() -> Any:
    """A headless Chromium, where there is one."""
    sync_api = pytest.importorskip("playwright.sync_api", reason='playwright is not installed: pip install ".[test]"')
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with sync_api.sync_playwright() as playwright:
        if found is None and Path(playwright.chromium.executable_path).is_file():
            found = playwright.chromium.executable_path
        if found is None:
            pytest.skip("no Chromium found: apt install chromium, or set CHROMIUM to its path")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def watched(browser: Any, page_file: Path) -> Iterator[Watched]:
    """The page on a desk, which has to be quiet."""
    watched = Watched(browser, page_file, DESK)
    yield watched
    watched.page.context.close()
