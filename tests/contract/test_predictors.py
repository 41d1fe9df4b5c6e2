"""Predictors that plugins register: by name like other parts, part of an id, and fitted on named classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lives import TOY, live, planned

from flowers_bench.contract.host import discover
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request
from flowers_bench.training.export import export_trial
from flowers_bench.training.trained import Sources, Trained, dataset_of
from flowers_bench.util.errors import UsageError

CPU = torch.device("cpu")
#: A predictor by the nearest training image of each class.
NEAREST = """
from flowers_bench import Loss, Option, Predictor, hookimpl

def fit(context, features):
    import torch
    assert context.class_names == [f"class {i}" for i in range(4)]
    power = context.options.number("power")
    one_hot = torch.nn.functional.one_hot(features.labels, context.num_classes).bool()
    def score(output, rows):
        far = (output.embedding[:, None] - features.output.embedding).square().sum(2).sqrt()
        if rows is not None:
            far[torch.arange(len(rows)), rows] = torch.inf
        return -torch.where(one_hot, far[:, :, None], torch.inf).amin(1) ** power
    return score

@hookimpl
def register_predictors():
    return [Predictor("nearest", "the nearest image", options={"power": Option(1.0, "p", search=(0.5, 2.0))}, fit=fit)]
"""


def written(folder: Path, text: str = NEAREST) -> Path:
    (folder / "mine.py").write_text(text)
    return folder / "mine.py"


def request(folder: Path, name: str, predictor: str | None, **settings: str) -> Request:
    return Request(
        [name], "toy", folder, 1, "test_resnet", "none", predictor=predictor, settings={"image_size": "16", **settings}
    )


def test_a_trial_predicts_by_it_and_does_so_again_from_its_store(tmp_path: Path) -> None:
    file = written(tmp_path, NEAREST + VARIANT)
    folder = live(tmp_path, "mine/one", files=[file])
    assert folder.config().predictor == "nearest"
    assert folder.config().options["power"] == 2.0
    assert folder.result().test.top1 > 0.4  # of random features; chance is 0.25
    trained = Trained.load(folder, CPU, Sources([TOY, file], tmp_path / "cache"))
    table, dataset = folder.predictions(), dataset_of(folder, Sources([TOY, file], tmp_path / "cache"))
    stored = np.stack(list(table[table["split"] == "test"]["logits"]))
    assert trained.fitted(dataset.test.images).logits == pytest.approx(stored, rel=1e-4)
    assert trained.fitted.evaluator.context.class_names == [f"class {i}" for i in range(4)]
    exported = export_trial(folder, "pt2", tmp_path / "model.pt2", Sources([TOY, file], tmp_path / "cache"))
    assert exported.disagreements == 0
    with pytest.raises(UsageError, match=r"unknown predictor 'nearest'.*is never loaded because a run store names it"):
        Trained.load(folder, CPU, Sources([TOY], tmp_path / "cache"))


VARIANT = """
from flowers_bench import Recipe, Technique, Variant

@hookimpl
def register_techniques():
    frozen = {"freeze": -1, "embedding_dim": 0, "power": 2.0}
    one = Variant("one", options=frozen, predictor="nearest")
    return [Technique("mine", "for tests", (), "embedding", "none", "none", Recipe(epochs=0, warmup_epochs=0), {"one": one}, "one")]
"""


def test_its_code_is_in_the_id_and_a_built_in_ones_is_not(tmp_path: Path) -> None:
    file = written(tmp_path)
    host = discover([TOY, file])
    (theirs,) = plan(host, request(tmp_path, "transfer/k0", "nearest"), [TOY, file])
    (ours,) = plan(host, request(tmp_path, "transfer/k0", "knn"), [TOY, file])
    (plain,) = plan(host, request(tmp_path, "transfer/k0", None), [TOY, file])
    assert theirs.trial.code.keys() == {"mine", "toy", "augmentation standard"}
    assert ours.trial.code == plain.trial.code
    assert len({item.trial.id for item in (theirs, ours, plain)}) == 3
    assert (ours.trial.options["k"], theirs.trial.options["power"]) == (5, 1.0)
    assert "k" not in plain.trial.options


def test_a_raised_revision_is_in_the_id(tmp_path: Path) -> None:
    host = discover([TOY, written(tmp_path, NEAREST.replace("fit=fit", "revision=2, fit=fit"))])
    (item,) = plan(host, request(tmp_path, "transfer/k0", "nearest"), [TOY])
    assert item.trial.code["predictor nearest"] == "revision 2"


def test_the_command_line_comes_before_the_variant_and_the_loss(tmp_path: Path) -> None:
    host = discover([TOY])
    for name, asked, expected in (
        ("knn/nearest-mean", None, "nearest-mean"),
        ("knn/nearest-mean", "logistic", "logistic"),
        ("triplet/batch-hard", "nearest-mean", "nearest-mean"),
    ):
        (item,) = plan(host, request(tmp_path, name, asked, batch_size="16"), [TOY])
        assert item.trial.predictor == expected


@pytest.mark.parametrize(
    ("name", "predictor", "words"),
    [
        (
            "transfer/k0",
            "near",
            r"unknown predictor 'near'.*'nearest'.* Valid choices: classifier, five-crops, flips, knn, ",
        ),
        ("knn/k5", "classifier", r"knn/k5: predicts by its classifier, and model 'embedding' has none"),
    ],
)
def test_what_does_not_fit_is_refused_in_planning(tmp_path: Path, name: str, predictor: str, words: str) -> None:
    host = discover([TOY, written(tmp_path)])
    with pytest.raises(UsageError, match=words):
        plan(host, request(tmp_path, name, predictor), [TOY])


def test_what_it_needs_is_refused_where_the_model_lacks_it(tmp_path: Path) -> None:
    host = discover([TOY, written(tmp_path, NEAREST.replace("fit=fit", "needs=frozenset({'teacher'}), fit=fit"))])
    with pytest.raises(
        UsageError, match="predictor 'nearest' needs teacher, which model 'classifier' does not provide"
    ):
        plan(host, request(tmp_path, "transfer/k0", "nearest"), [TOY])


@pytest.mark.parametrize("name", ["classifier", "knn"])
def test_a_name_that_is_taken_leaves_the_plugin_out(tmp_path: Path, name: str) -> None:
    host = discover([written(tmp_path, NEAREST.replace('"nearest"', f'"{name}"'))])
    assert f"predictor {name!r} is already registered" in str(host.plugins["mine"].error)


def test_what_is_no_predictor_leaves_the_plugin_out(tmp_path: Path) -> None:
    host = discover([written(tmp_path, NEAREST.replace("[Predictor(", "[Loss(").replace("fit=fit", "build=fit"))])
    assert "register_predictors() must return a list of Predictor" in str(host.plugins["mine"].error)


def test_scores_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    file = written(tmp_path, NEAREST.replace(".amin(1) ** power", ".amin(1)[:, :3] ** power") + VARIANT)
    with pytest.raises(
        UsageError, match=r"predictor 'nearest' gave torch.float32 scores of shape \(\d+, 3\): expected .*, 4\)"
    ):
        live(tmp_path, "mine/one", files=[file])


def test_one_that_says_it_cannot_be_exported_is_believed(tmp_path: Path) -> None:
    file = written(tmp_path, (NEAREST + VARIANT).replace("fit=fit", "exportable=False, fit=fit"))
    folder = live(tmp_path, "mine/one", files=[file])
    with pytest.raises(UsageError, match="predictor 'nearest' says that it cannot be exported"):
        export_trial(folder, "pt2", tmp_path / "model.pt2", Sources([TOY, file], tmp_path / "cache"))


def test_planned_names_are_the_registered_ones(tmp_path: Path) -> None:
    assert planned(tmp_path, "knn/k5").trial.predictor == "knn"
    assert set(discover(only_built_in=True).predictors) >= {"classifier", "knn", "nearest-mean", "logistic"}
