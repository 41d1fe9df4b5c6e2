"""The conformance kit on steps and datasets, and what may be excused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from flowers_bench.cli.plugin import check as check_plugin
from flowers_bench.testing import Check, Nonconformance, checks, conformance_tests
from flowers_bench.util.errors import UsageError

torch.set_num_threads(1)
STEP = """
from flowers_bench import *
from flowers_bench import hookimpl

def build(context):
    def step(batch):
        loss = batch.loss(batch.images)
        batch.backward(loss)
        batch.update()
        return loss
    return step

@hookimpl
def register_steps():
    return [Step("mine", "as usual", build=build)]
"""
DATASET = """
from flowers_bench import *
from flowers_bench import hookimpl, split_checksum

def load(request):
    import numpy, torch
    rng = numpy.random.default_rng(0)
    def split(name):
        labels = numpy.repeat(numpy.arange(3), 4)
        images = [torch.from_numpy(rng.integers(0, 256, (3, 20, 20), dtype=numpy.uint8)) for _ in labels]
        return Split(images, labels, [f"{name}/{i}" for i in range(12)])
    splits = {name: split(name) for name in ("train", "val", "test")}
    checksum = split_checksum({name: (s.keys, s.labels.tolist()) for name, s in splits.items()})
    return Dataset("mine", ["a", "b", "c"], **splits, fingerprint=checksum, split_checksum=checksum, resolution="20x20")

@hookimpl
def register_datasets():
    return [DatasetSource("mine", "noise", load)]
"""


def one(folder: Path, text: str, name: str) -> Check:
    (folder / "mine.py").write_text(text)
    return next(check for check in checks(folder / "mine.py") if check.name == name)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("", "", None),
        ("batch.update()", "pass", "does not call batch.backward(loss) and batch.update()"),
        ("return loss", "return 3.0", "returned float: return the loss"),
        ("build=build", "build=build, unlabelled=1", "does not read batch.unlabelled"),
        ("build=build", "build=build, uses_images=False", "uses_images=False: leave that out"),
    ],
)
def test_steps(tmp_path: Path, old: str, new: str, words: str | None) -> None:
    found = one(tmp_path, STEP.replace(old, new), "step keeps its word")
    assert found.label == "step mine/alone"
    if words is None:
        found()
        return
    with pytest.raises((Nonconformance, UsageError), match=re.escape(words)):
        found()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("", "", None),
        ("numpy.uint8))", "numpy.uint8) / 255)", "image 0 of train is Tensor torch.float64 (3, 20, 20): give a uint8"),
        ("torch.from_numpy(rng", "(rng", "is ndarray uint8 (3, 20, 20): give a uint8 tensor"),
        ('f"{name}/{i}"', 'f"{i}"', "keys are not unique"),
        ("Split(images, labels,", "Split(images, labels - 1,", "labels of train go from -1 to 1"),
        ("default_rng(0)", "default_rng()", "other pixels under the same fingerprint"),
        ("fingerprint=checksum", "fingerprint='1'", "64 hexadecimal digits"),
        ("split_checksum=checksum", "split_checksum='0' * 64", "split_checksum is not that of the splits"),
        ("import numpy, torch", "raise OSError('no disk')", "load raised OSError: no disk"),
        ("import numpy, torch", "raise UsageError('no disk')", "it cannot be loaded: no disk"),
    ],
)
def test_datasets(tmp_path: Path, old: str, new: str, words: str | None) -> None:
    found = one(tmp_path, DATASET.replace(old, new), "loads what a dataset is")
    assert found.label == "dataset mine"
    if words is None:
        found()
        return
    with pytest.raises(Nonconformance, match=re.escape(words)):
        found()


def test_a_fingerprint_that_is_drawn_is_found(tmp_path: Path) -> None:
    text = DATASET.replace("fingerprint=checksum", "fingerprint=f'{numpy.random.default_rng().integers(10**9):064x}'")
    with pytest.raises(Nonconformance, match="a second load has another fingerprint"):
        one(tmp_path, text, "loads what a dataset is")()


def test_a_part_is_excused_with_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    excuse = 'build=build, excused={"step keeps its word": "it trains nothing on purpose"}'
    found = one(tmp_path, STEP.replace("build=build", excuse), "step keeps its word")
    assert found.excuse == "mine: it trains nothing on purpose"
    test = conformance_tests(tmp_path / "mine.py")
    with pytest.raises(pytest.skip.Exception, match="on purpose"):
        test(found)
    for wrong, words in (("step keeps", "unknown check to be excused from 'step keeps'"), ("", "without a reason")):
        text = (
            excuse.replace("step keeps its word", wrong)
            if wrong
            else excuse.replace("it trains nothing on purpose", " ")
        )
        with pytest.raises(UsageError, match=words):
            one(tmp_path, STEP.replace("build=build", text), "loads")
    monkey = DATASET.replace("load(request):", "load(request):  # quick")
    (tmp_path / "quick.py").write_text(monkey)
    assert check_plugin(str(tmp_path / "quick.py"), None, {}, None) == 0
    assert "ok      dataset mine: loads what a dataset is" in capsys.readouterr().out
