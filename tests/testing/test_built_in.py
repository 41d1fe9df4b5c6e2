"""The built-in techniques pass the conformance kit, as anybody's must."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowers_bench.contract.host import discover
from flowers_bench.contract.technique import Technique
from flowers_bench.store.folder import Store
from flowers_bench.testing import Check, checks
from flowers_bench.testing.collect import checks_of
from flowers_bench.testing.subject import Subject
from flowers_bench.training.trial import run_trial

torch.set_num_threads(1)
#: What takes seconds a technique.
SLOW = {"overfits one batch", "runs in a process of its own", "two ranks agree with one"}
#: Variants whose parts no technique's default variant has; that each of them can be planned is checked of all variants.
MORE = {
    "cal/attention",
    "cosine-loss/cosine",
    "focal-margin/frozen",
    "focal-margin/hybrid",
    "focal-margin/margin",
    "gaussian-head/mahalanobis",
    "linear-probe/logistic",
    "lora/qkvo",
    "multiscale-vgg/frozen-features",
    "multiscale-vgg/full",
    "prompt-tuning/p10",
    "prototypical/cosine",
    "supcon/memory",
    "tip-adapter/tip-f",
    "transfer/scratch",
    "triplet/entropy",
    "triplet/random",
}
HOST = discover()


def fitting(technique: Technique, variant: str) -> dict[str, str]:
    """Settings for a network as tiny as the kit's: hundreds of prompts would drown its four patches."""
    return {"prompt_length": "10"} if technique.variants[variant].options.get("prompt_length", 0) > 10 else {}


def every_check() -> list[object]:
    """Of each technique the default variant and those in `MORE`; all others, and what takes long, with the slow tests."""
    found: list[object] = []
    for name, registered in HOST.techniques.items():
        if name in (
            "distillation",
            "fixres",
            "soup",
            "wise-ft",
        ):  # these start from finished trials: below, and test_bare_on_petals.py
            continue
        for variant in registered.value.variants:
            for check in checks_of(Subject(HOST, f"{name}/{variant}", settings=fitting(registered.value, variant))):
                chosen = variant == registered.value.default or check.label in MORE or check.name == "can be planned"
                slow = not chosen or check.name in SLOW
                found.append(pytest.param(check, id=str(check), marks=[pytest.mark.slow] if slow else []))
    return found


@pytest.mark.parametrize("check", every_check())
def test_built_in(check: Check) -> None:
    if check.excuse:
        pytest.skip(check.excuse)
    check()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store with a finished trial on the kit's data."""
    store = tmp_path_factory.mktemp("store")
    planned = Subject(HOST, "transfer/scratch").planned
    folder = Store(store).prepare(planned.trial, replace(planned.run, command=[]))
    run_trial(folder, lambda event: None)
    torch.use_deterministic_algorithms(False)
    return store, folder.id


@pytest.mark.parametrize(
    ("variant", "left_out"), [("greedy", SLOW), pytest.param("uniform", set(), marks=pytest.mark.slow)]
)
def test_soup(teacher: tuple[Path, str], variant: str, left_out: set[str]) -> None:
    store, trial = teacher
    planned = Subject(HOST, "transfer/scratch", settings={"lr": "0.001"}).planned
    folder = Store(store).prepare(planned.trial, replace(planned.run, command=[]))
    if not folder.finished():
        run_trial(folder, lambda event: None)
        torch.use_deterministic_algorithms(False)
    for check in checks(f"soup/{variant}", settings={"ingredients": f"{trial},{folder.id}"}, store=store):
        if check.name not in left_out and not check.excuse:
            check()


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store with a finished trial on images of half the kit's size."""
    store = tmp_path_factory.mktemp("smaller")
    planned = Subject(HOST, "transfer/scratch", settings={"image_size": "16"}).planned
    folder = Store(store).prepare(planned.trial, replace(planned.run, command=[]))
    run_trial(folder, lambda event: None)
    torch.use_deterministic_algorithms(False)
    return store, folder.id


@pytest.mark.parametrize(
    ("variant", "left_out"),
    [
        ("last-norm", SLOW),
        *(pytest.param(v, set(), marks=pytest.mark.slow) for v in HOST.techniques["fixres"].value.variants),
    ],
)
def test_fixres(smaller: tuple[Path, str], variant: str, left_out: set[str]) -> None:
    store, trial = smaller
    for check in checks(f"fixres/{variant}", settings={"trained": trial}, store=store):
        if check.name not in left_out and not check.excuse:
            check()


DISTILLATION = HOST.techniques["distillation"].value


@pytest.mark.parametrize(
    ("variant", "left_out"),
    [
        (DISTILLATION.default, SLOW),
        *(pytest.param(variant, set(), marks=pytest.mark.slow) for variant in DISTILLATION.variants),
    ],
)
def test_distillation(teacher: tuple[Path, str], variant: str, left_out: set[str]) -> None:
    store, trial = teacher
    for check in checks(f"distillation/{variant}", settings={"teacher": trial}, store=store):
        if check.name not in left_out:
            check()
