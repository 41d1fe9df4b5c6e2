"""docs/plugins.md, from end to end: every file that it shows is written, every command run, in its order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from environments import own_environment
from lives import live
from safetensors.torch import load_file
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from flowers_bench import Features, PredictorContext
from flowers_bench.cli.catalogue import describe
from flowers_bench.contract.host import discover
from flowers_bench.nn import Output
from flowers_bench.testing import Nonconformance, checks
from flowers_bench.util.errors import UsageError

TUTORIAL = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text()


def blocks() -> Iterator[tuple[str, str]]:
    """(`python` or `console` or `text`, content) of each fenced block."""
    return iter(re.findall(r"```(\w+)\n(.*?)```", TUTORIAL, re.S))


def mine(folder: Path) -> Path:
    """The first block's file."""
    content = next(text for kind, text in blocks() if kind == "python")
    assert content.startswith("# mine.py\n")
    (folder / "mine.py").write_text(content)
    return folder / "mine.py"


def test_the_single_file_is_found_and_conforms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = mine(tmp_path)
    describe("poly", [file])
    assert "--set epsilon=1.0" in capsys.readouterr().out
    slow = (
        "overfits one batch",
        "runs in a process of its own",
        "two ranks agree with one",
        "does not import torch to be listed",
    )
    for check in checks(file):
        if check.label in ("mine", "poly/poly") and check.name not in slow:
            check()


def test_its_predictor_conforms_and_is_the_discriminant(tmp_path: Path) -> None:
    content = next(text for kind, text in blocks() if text.startswith("# discriminant.py\n"))
    (tmp_path / "discriminant.py").write_text(content)
    (check,) = [check for check in checks(tmp_path / "discriminant.py") if check.name == "predictor keeps its word"]
    check()
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    points = (rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4)) + labels[:, None]).astype(np.float32)
    peer = LinearDiscriminantAnalysis("lsqr").fit(points, labels)
    predictor = discover([tmp_path / "discriminant.py"]).predictors["discriminant"].value
    context = PredictorContext(["a", "b", "c"], predictor.option_values({"shrinkage": 1e-6}))
    output = Output(torch.empty(60, 0), torch.from_numpy(points))
    found = predictor.fit(context, Features(output, torch.from_numpy(labels)))(output, None)
    assert found.softmax(1).numpy() == pytest.approx(peer.predict_proba(points), abs=1e-3)


def written(folder: Path, name: str) -> Path:
    """The block that is called so."""
    content = next(text for kind, text in blocks() if text.startswith(f"# {name}\n"))
    (folder / name).write_text(content)
    return folder / name


def test_its_step_and_its_dataset_conform(tmp_path: Path) -> None:
    wanted = {"sharpness.py": "step keeps its word", "stripes.py": "loads what a dataset is"}
    for file, name in wanted.items():
        (check,) = [check for check in checks(written(tmp_path, file)) if check.name == name]
        check()


def test_its_augmentation_conforms(tmp_path: Path) -> None:
    found = [c for c in checks(written(tmp_path, "greys.py")) if c.name == "augmentation keeps its word"]
    assert found
    for check in found:
        check()


def test_its_average_is_the_mean_of_two_trials(tmp_path: Path) -> None:
    averaged, asked = written(tmp_path, "averaged.py"), {"epochs": "1", "warmup_epochs": "0"}
    one, other = (live(tmp_path, "transfer/scratch", **asked, lr=lr) for lr in ("0.01", "0.001"))
    mixed = live(tmp_path, "averaged/two", files=[averaged], one=one.id, other=other.id)
    weights = [load_file(folder.weights()) for folder in (one, other, mixed)]
    for name, value in weights[2].items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (weights[0][name] + weights[1][name]) / 2)
    assert mixed.result().cost.inherited == {f.id: pytest.approx(f.result().cost.seconds) for f in (one, other)}
    with pytest.raises(UsageError, match="with n_train"):
        live(tmp_path, "averaged/two", files=[averaged], one=one.id, other=other.id, shots=3)


def test_the_failure_that_it_shows_is_what_the_kit_says(tmp_path: Path) -> None:
    file = mine(tmp_path)
    file.write_text(file.read_text().replace(', "hard_targets"', ""))
    shown = next(text for kind, text in blocks() if kind == "text").splitlines()
    name = shown[0].split(": ")[1]
    (check,) = [check for check in checks(file) if str(check) == f"poly/poly: {name}"]
    with pytest.raises((Nonconformance, UsageError)) as caught:
        check()
    assert str(caught.value).startswith(shown[1].strip().partition("...")[0])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_from_the_first_line_to_the_wheel(tmp_path: Path) -> None:
    own, cwd, told = own_environment(tmp_path), tmp_path, ""
    for kind, text in blocks():
        if kind == "python":
            name = text.partition("\n")[0].removeprefix("# ")
            (cwd / name).write_text(text)
        for line in text.splitlines() if kind == "console" else ():
            if line.startswith("cd "):
                cwd /= line.removeprefix("cd ")
            else:
                told += own(line, cwd=cwd)
    assert "poly/poly" in told
    assert "checks passed, 0 failed" in told
    assert re.search(r"^poly +0\.1\.0 +2 +poly +ok +register_losses", told, re.M)
    assert [path.name for path in (cwd / "dist").iterdir()] == ["poly-0.1.0-py3-none-any.whl"]
