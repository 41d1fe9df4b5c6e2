"""Mistakes on the command line and in a suite: exit 2, the cause by name, nothing started."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowers_bench.cli.options import Factors, RunOptions
from flowers_bench.cli.run import run
from flowers_bench.util.errors import UsageError

BASE = {"data": "petals"}
SMALL = ["data.species=3", "data.train=2", "data.val=2", "data.test=2"]


def ask(tmp_path: Path, plugin: str = "transfer/k3", timeout: float = 60, **more: object) -> int:
    values = {"suite": None, "factors": BASE, "seeds": 1, "settings": SMALL, "sweeps": [], "jobs": 1, "shard": "1/1"}
    given = {"plugin": plugin, "data_dir": tmp_path / "cache", "store": str(tmp_path / "runs"), **values, **more}
    asked = RunOptions.parse(**{**given, "factors": Factors(**given["factors"])})  # type: ignore[arg-type]
    return run(asked, "text", timeout)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"settings": ["lr=-1"]}, "lr=-1.0 must be above 0"),
        ({"settings": ["lr=nan"]}, "lr=nan: expected a finite number"),
        ({"settings": ["lr=1e999"]}, "finite"),
        ({"settings": ["epochs=1.5"]}, "epochs=1.5: expected a whole number"),
        ({"settings": ["batch_size=0"]}, "batch_size=0 must be between 1 and 65536"),
        ({"settings": ["image_size=7"]}, "image_size=7 must be between 8 and 4096"),
        ({"settings": ["epochs=2", "warmup_epochs=3"]}, "warmup_epochs=3 must be between 0 and epochs"),
        ({"settings": ["optimizer=adamm"]}, "Did you mean 'adam'"),
        ({"settings": ["lr_scale=0.1"]}, "lr_scale=0.1"),
        ({"settings": ["epoch=3"]}, "Did you mean 'epochs'"),
        ({"settings": ["data.specie=3"]}, "Did you mean 'species'"),
        ({"settings": ["data.species=99999"], "factors": {**BASE, "weights": "none"}}, "species"),
        ({"factors": {**BASE, "backbone": "resnet81"}}, "timm has no model 'resnet81'. Did you mean"),
        ({"factors": {**BASE, "loss": "cross-entropi"}}, "Did you mean 'cross-entropy'"),
        ({"factors": {**BASE, "augmentation": "standart"}}, "Did you mean 'standard'"),
        ({"settings": [], "sweeps": ["lr=1"], "suite": "study-small", "plugin": ""}, "--sweep goes with --plugin"),
        ({"suite": "study-small", "plugin": "knn"}, "a suite names its techniques itself"),
        ({"suite": "study-smal", "plugin": ""}, "Did you mean 'study-small'"),
        ({"settings": ["lr=1"], "sweeps": ["lr=1,2"]}, "given a single value too"),
        ({"sweeps": ["shots=1,2"]}, "--sweep shots: this has an option of its own, --shots"),
        ({"settings": ["data=petals"]}, "--set data: this has an option of its own, --data"),
        ({"shots": "1,0"}, "--shots 1,0: expected different whole numbers"),
        ({"suite": "study-small", "plugin": "", "settings": [], "shots": "1,1"}, "--shots 1,1: expected different"),
        ({"shard": "3/2"}, "--shard 3/2"),
        ({"timeout": float("nan")}, "--timeout nan"),
        ({"timeout": float("inf")}, "--timeout inf"),
    ],
)  # fmt: skip
def test_a_mistake_is_said_before_anything_starts(tmp_path: Path, more: dict[str, object], words: str) -> None:
    if "settings" in more and "data.s" not in str(more) and "suite" not in more:
        more = {**more, "settings": [*SMALL, *more["settings"]]}  # type: ignore[misc]
    with pytest.raises(UsageError) as caught:
        ask(tmp_path, **more)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trials = [", "suite.toml"),
        ("\xff", "suite.toml"),
        ("", "at least one"),
        ("[[trials]]\nlr = 1", "line 1: these trials have no technique"),
        ("[[trials]]\ntechnique = 'knn'\nseeds = 0", "line 3: seeds = 0"),
        ("[[trials]]\ntechnique = 'knnn'", "line 2: unknown technique 'knnn'. Did you mean 'knn'"),
        ("[[trials]]\ntechnique = 'knn'\nlearning_rate = 3", "line 3: unknown key 'learning_rate'"),
        ("[[trials]]\ntechnique = 'knn'\nlr = -1", "line 3: recipe: lr=-1.0 must be"),
        ("trial = 3", "Did you mean 'trials'"),
    ],
)
def test_a_mistake_in_a_suite_is_said_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "suite.toml").write_text(text, encoding="latin-1")
    with pytest.raises(UsageError) as caught:
        ask(tmp_path, plugin="", suite=str(tmp_path / "suite.toml"), settings=[])
    assert words in str(caught.value)
    assert not (tmp_path / "runs").exists()
