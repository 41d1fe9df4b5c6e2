"""A suite's figures: one file each for every backbone, captions that say of what, and what is absent by name."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from stored import outcomes, store_trial

from flowers_bench.cli.figures import figures
from flowers_bench.contract.host import discover
from flowers_bench.plan.suites import Suite, read_suite
from flowers_bench.util.errors import UsageError

SUITE = """\
[[trials]]
technique = "meadow/a"

[[figures]]
name = "curves"
title = "How it trained"
draw = "curves"
technique = ["meadow/a", "meadow/b"]

[[figures]]
name = "by-k"
title = "Accuracy by k"
draw = "sweep"
factor = "k"
technique = "meadow/a"

[[figures]]
name = "pictures"
title = "What it saw"
draw = "pictures"
technique = "meadow/b"

[[figures]]
name = "none"
title = "What was not run"
draw = "curves"
technique = "meadow/c"
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Suite, store and a folder of its figures: meadow/a at three k on one backbone and one on another; meadow/b."""
    root = tmp_path_factory.mktemp("figures")
    suite, runs, output = root / "mine.toml", root / "runs", root / "out"
    suite.write_text(SUITE)
    for k, accuracy in ((0, 0.6), (5, 0.7), (50, 0.8)):
        for seed in range(2):
            cost = {"seconds": 60.0, "epochs": 3, "trainable_parameters": 1000 * k + 1, "parameters": 100_000}
            store_trial(runs, "meadow/a", seed, outcomes(seed, accuracy), options={"k": k}, result={"cost": cost})
    store_trial(runs, "meadow/a", 0, outcomes(0, 0.5), options={"k": 0}, backbone="resnet34")
    folder = store_trial(runs, "meadow/b", 0, outcomes(0, 0.55))
    (folder.path / "figures").mkdir()
    Image.new("RGB", (60, 20), "orange").save(folder.path / "figures" / "mixed.png")
    figures(str(suite), runs, output)
    return suite, runs, output


def text_of(path: Path) -> str:
    """A drawing's words, which are text in it and no outlines."""
    return " ".join(ElementTree.parse(path).getroot().itertext())


def test_a_file_for_each_backbone_that_has_trials(drawn: tuple[Path, Path, Path]) -> None:
    names = sorted(path.name for path in drawn[2].iterdir())
    # One value of k on the other backbone is no sweep.
    assert names == [
        "by-k-meadow-resnet18.svg",
        "curves-meadow-resnet18.svg",
        "curves-meadow-resnet34.svg",
        "pictures-meadow-resnet18.png",
    ]


def test_figures_say_what_they_were_measured_on(drawn: tuple[Path, Path, Path]) -> None:
    for name in ("by-k-meadow-resnet18.svg", "curves-meadow-resnet18.svg"):
        words = text_of(drawn[2] / name)
        for expected in ("meadow: 4 classes, 40 train / 20 val / 400 test images", "resnet18, weights none", "95 %"):
            assert expected in words, (name, words)
    assert "1 to 2 seeds" in text_of(drawn[2] / "curves-meadow-resnet18.svg")
    assert "55.0 [" in text_of(drawn[2] / "curves-meadow-resnet18.svg")  # meadow/b's test accuracy
    swept = text_of(drawn[2] / "by-k-meadow-resnet18.svg")
    assert "tuned share" in swept
    assert "50 %" in swept  # 50,001 of 100,000
    assert drawn[2].joinpath("pictures-meadow-resnet18.png").stat().st_size > 1000


def test_what_is_absent_is_named_with_the_command(
    drawn: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    suite, runs, output = drawn
    figures(str(suite), runs, tmp_path / "again")
    printed = capsys.readouterr().out
    assert "absent: none (What was not run): no finished trial of meadow/c" in printed
    assert f"flowers-bench run {suite} --store {runs}" in printed
    for path in output.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_mistakes_are_refused(drawn: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, runs, _ = drawn
    with pytest.raises(UsageError, match="no finished trials"):
        figures("study", tmp_path / "empty", tmp_path)
    for text, problem in (
        ("", r"has no \[\[figures\]\]"),
        ('[[figures]]\nname = "a"\ndraw = "pie"\n', "line 5: unknown draw 'pie'.*curves"),
        ('[[figures]]\nname = "a"\ndrow = "curves"\n', "line 5: unknown key 'drow'.*draw"),
        ('[[figures]]\nname = "a"\ntitle = "A"\ntechnique = "x/y"\ndraw = "sweep"\n', "line 3: .*no factor"),
        ('[[figures]]\nname = "../a"\ntitle = "A"\ntechnique = "x/y"\ndraw = "curves"\n', "line 4: name"),
    ):
        path = tmp_path / "wrong.toml"
        path.write_text(f'[[trials]]\ntechnique = "meadow/a"\n{text}')
        with pytest.raises(UsageError, match=problem):
            figures(str(path), runs, tmp_path)


@pytest.mark.parametrize("name", ["study", "study-small"])
def test_built_in_figures_show_what_the_suite_runs(name: str) -> None:
    suite, study, host = read_suite(name), read_suite("study"), discover()
    run = labels(suite)
    assert len(suite.figures) >= 12
    for figure in suite.figures:
        assert run.intersection(figure.technique)
        for label in set(figure.technique) - labels(study):
            base, _, variant = label.partition("/")
            host.techniques[base].value.variant(variant)


def labels(suite: Suite) -> set[str]:
    cells = [(table.label(cell), cell["technique"]) for table in suite.tables for cell in table.cells()]
    return {label.text if label else technique for label, technique in cells}
