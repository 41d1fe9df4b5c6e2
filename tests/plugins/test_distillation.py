"""distillation: the loss, the teacher's place beside the student, and which trials may teach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from built import CLASSES
from hypothesis import given, settings
from hypothesis import strategies as st

from flowers_bench import FinishedTrial, LossContext, ModelContext, UsageError
from flowers_bench.contract.host import discover
from flowers_bench.models.backbones import Backbone
from flowers_bench.models.weights import Weights
from flowers_bench.nn import Classifier, Output, train_mode
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request, TrialPlan
from flowers_bench.store.folder import Store
from flowers_bench.training.finished import TrialFinder
from flowers_bench.training.trained import load_trained
from flowers_bench.training.trial import run_trial
from flowers_bench_plugins.distillation import build_distillation
from flowers_bench_plugins.distillation.layers import Distilled
from flowers_bench_plugins.distillation.teacher import find_teacher as teacher_of

TOY = Path(__file__).parents[1] / "toy.py"


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), temperature=st.floats(0.3, 20), weight=st.floats(0, 1), soft=st.booleans())
def test_the_loss_is_its_equation(seed: int, temperature: float, weight: float, soft: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    z, v = 3 * torch.randn(2, 5, CLASSES, dtype=torch.float64, generator=generator)
    labels = torch.randint(CLASSES, (5,), generator=generator)
    options = {"distill_weight": weight, "temperature": temperature}
    loss = build_distillation(LossContext(CLASSES, 8, options))
    target = F.one_hot(labels, CLASSES).double() if soft else labels
    total = 0.0
    for row, wise, label in zip(z.tolist(), v.tolist(), labels.tolist(), strict=True):
        p = [math.exp(x / temperature) / sum(math.exp(y / temperature) for y in wise) for x in wise]
        q = [math.exp(x / temperature) / sum(math.exp(y / temperature) for y in row) for x in row]
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        entropy = -math.log(math.exp(row[label]) / sum(math.exp(x) for x in row))
        total += weight * temperature**2 * divergence + (1 - weight) * entropy
    assert loss(Output(z, z, v), target).item() == pytest.approx(total / 5, abs=1e-9)


def test_a_student_that_agrees_has_nothing_left_to_learn() -> None:
    logits = torch.randn(3, CLASSES, dtype=torch.float64, requires_grad=True)
    loss = build_distillation(LossContext(CLASSES, 8, {"distill_weight": 1.0, "temperature": 2.0}))
    value = loss(Output(logits, logits, logits.detach() + 5), torch.zeros(3, dtype=torch.int64))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-12


def _request(tmp_path: Path, name: str, **options: str) -> list[TrialPlan]:
    host = discover([TOY])
    wanted = {"image_size": "32", "epochs": "2", "warmup_epochs": "1", "batch_size": "16", **options}
    request = Request(
        [name], "toy", tmp_path / "cache", 1, "test_resnet", "none", settings=wanted, store=tmp_path / "runs"
    )
    return plan(host, request, [TOY])


def find_teacher(name: str, store: Path | None, facts: Mapping[str, object]) -> FinishedTrial:
    finder = TrialFinder(store, facts)
    return teacher_of(ModelContext(Backbone("test_resnet", Weights(), 4, 32), 4, 32, {"teacher": name}, finder=finder))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store with a finished teacher: its folder and the teacher's id."""
    tmp_path = tmp_path_factory.mktemp("distillation")
    item = _request(tmp_path, "transfer/scratch")[0]
    store = Store(tmp_path / "runs")
    run_trial(store.prepare(item.trial, item.run), lambda event: None)
    return tmp_path, item.trial.id


def test_a_student_runs_from_plan_to_result(taught: tuple[Path, str]) -> None:
    tmp_path, teacher = taught
    item = _request(tmp_path, "distillation/hinton", teacher=teacher)[0]
    assert item.trial.options["teacher"] == teacher
    store = Store(tmp_path / "runs")
    folder = store.prepare(item.trial, item.run)
    run_trial(folder, lambda event: None)
    # Counted without its teacher, which is as large.
    cost, alone = folder.result().cost, store.folder(teacher).result().cost
    assert cost.parameters == alone.parameters
    assert cost.inherited == {teacher: pytest.approx(alone.seconds)}
    assert alone.inherited is None
    assert load_trained(folder, torch.device("cpu")).model.backbone is not None


def test_a_bare_name_brings_the_student_alone(taught: tuple[Path, str]) -> None:
    tmp_path, teacher = taught
    labels = [item.label for item in _request(tmp_path, "distillation", teacher=teacher)]
    assert labels == ["distillation/hinton", "distillation/alone"]


def test_the_teacher_is_beside_the_student_and_only_while_it_trains(taught: tuple[Path, str]) -> None:
    tmp_path, teacher = taught
    parts = load_trained(Store(tmp_path / "runs").folder(teacher), torch.device("cpu"))
    backbone = parts.model.backbone
    images = torch.randn(4, 3, 32, 32)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    trial = FinishedTrial.find(tmp_path / "runs", teacher)
    student = Distilled(backbone, lambda device: trial.logits(device, mean, std))
    plain = Classifier(backbone)
    assert list(student.state_dict()) == list(plain.state_dict())
    backbone.requires_grad_(True)
    assert student.eval()(images).teacher is None
    state = torch.random.get_rng_state()
    train_mode(student)
    found = student(images).teacher
    assert torch.equal(state, torch.random.get_rng_state())
    # The teacher is in evaluation mode, and undoes the student's normalisation for its own.
    reference = load_trained(Store(tmp_path / "runs").folder(teacher), torch.device("cpu"))
    pixels = images * torch.tensor(std).view(1, 3, 1, 1) + torch.tensor(mean).view(1, 3, 1, 1)
    own = [torch.tensor(backbone.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std")]
    with torch.inference_mode():
        expected = reference.model((pixels - own[0]) / own[1]).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    smaller = student(torch.randn(2, 3, 24, 24)).teacher
    assert smaller.shape == (2, 4)


@pytest.mark.parametrize("name", ["", "zz", "../../etc", "0123456789ABCDEF"])
def test_what_is_no_id_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not a trial's id"):
        find_teacher(name, tmp_path, {})


def test_trials_that_cannot_teach_are_refused(taught: tuple[Path, str]) -> None:
    tmp_path, teacher = taught
    runs = tmp_path / "runs"
    facts = Store(runs).folder(teacher).config().dataset.json()
    assert find_teacher(teacher, runs, facts).folder == runs / teacher
    with pytest.raises(UsageError, match="does not exist"):
        find_teacher("0" * 16, runs, facts)
    (runs / ("1" * 16)).mkdir(exist_ok=True)
    with pytest.raises(UsageError, match="is not finished"):
        find_teacher("1" * 16, runs, facts)
    with pytest.raises(UsageError, match="split_checksum"):
        find_teacher(teacher, runs, {**facts, "split_checksum": "another"})
    with pytest.raises(UsageError, match="run store"):
        find_teacher(teacher, None, facts)
    with pytest.raises(UsageError, match="does not exist"):
        _request(tmp_path, "distillation/hinton", teacher="0" * 16)
