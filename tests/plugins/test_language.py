"""language: the equations of each technique, the text tower written out in float64, and what is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from built import host
from lives import planned
from safetensors.torch import save_file
from torch import Tensor, nn

from flowers_bench import Features, ModelContext, PredictorContext, UsageError
from flowers_bench.data.petal_words import describe
from flowers_bench.data.petals import species
from flowers_bench.models.backbones import Backbone
from flowers_bench.models.weights import Weights
from flowers_bench.nn import Output
from flowers_bench.plan.request import TrialPlan
from flowers_bench.util.files import file_sha256
from flowers_bench_plugins.language.layers import Pair, TextTower
from flowers_bench_plugins.language.words import LONGEST, WORDS, tokens_of

TEXTS = [describe(species(number)) for number in range(5)]


def built(model: str, backbone: str = "test_resnet", finder: Callable[[str], Any] | None = None, **options: Any) -> Any:
    """A model of five described species with random weights, in float64."""
    torch.manual_seed(0)
    part = host().models[model].value
    source = Backbone(backbone, Weights(), len(TEXTS), 32)
    context = ModelContext(source, len(TEXTS), 32, part.option_values(options), descriptions=TEXTS, finder=finder)
    return part.build(context).double().eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(6, 3, 32, 32, dtype=torch.float64)


def features(model: Any, images: Tensor) -> Tensor:
    """Pooled features (N, F) of the image tower."""
    backbone = model.backbone
    found: Tensor = backbone.forward_head(backbone.forward_features(images), pre_logits=True)
    return found


def cosines(first: Tensor, second: Tensor) -> Tensor:
    return (first / first.norm(dim=1, keepdim=True)) @ (second / second.norm(dim=1, keepdim=True)).T


def written_out(tower: TextTower, numbers: list[int], context: Tensor | None = None) -> Tensor:
    """One text (D,), without padding, by the equations of a transformer with normalisation before each block."""
    state = {name: tensor.detach() for name, tensor in tower.state_dict().items()}
    x = state["words.weight"][numbers] + state["positions"][: len(numbers)]
    if context is not None:
        x = torch.cat([context, x])

    def norm(x: Tensor, name: str) -> Tensor:
        mean, spread = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        return (x - mean) / (spread + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    for block in ("blocks.layers.0", "blocks.layers.1"):
        y = norm(x, f"{block}.norm1")
        projected = y @ state[f"{block}.self_attn.in_proj_weight"].T + state[f"{block}.self_attn.in_proj_bias"]
        q, k, v = projected.chunk(3, 1)
        heads = []
        for part in range(4):
            qh, kh, vh = (t[:, 16 * part : 16 * part + 16] for t in (q, k, v))
            heads.append(torch.softmax(qh @ kh.T / math.sqrt(16), 1) @ vh)
        x = x + linear(torch.cat(heads, 1), f"{block}.self_attn.out_proj")
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.linear1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + linear(hidden, f"{block}.linear2")
    return norm(x, "norm").mean(0) @ state["project.weight"].T


@pytest.mark.parametrize("with_context", [False, True])
def test_the_text_tower_is_its_equations_and_ignores_what_fills_up(with_context: bool) -> None:
    torch.manual_seed(2)
    tower = TextTower().double().eval()
    context = torch.randn(3, 64, dtype=torch.float64) if with_context else None
    numbers = tokens_of(TEXTS[:3])
    found = tower(torch.tensor(numbers), context)
    for text, vector in zip(numbers, found, strict=True):
        torch.testing.assert_close(vector, written_out(tower, [n for n in text if n], context))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_zero_shot_scores_are_scaled_cosines(backbone: str, images: Tensor) -> None:
    model = built("pair", backbone)
    language = model.language
    texts = language.text(torch.tensor(tokens_of(TEXTS)))
    expected = math.exp(language.log_scale.item()) * cosines(language.project(features(model, images)), texts)
    output = model(images)
    torch.testing.assert_close(output.logits, expected)
    torch.testing.assert_close(output.embedding.norm(dim=1), torch.ones(6, dtype=torch.float64))


def test_the_scale_has_an_upper_bound() -> None:
    model = built("pair")
    with torch.no_grad():
        model.language.log_scale.fill_(9.0)
    assert model.language.scale == 100


def test_a_text_probe_starts_as_zero_shot(images: Tensor) -> None:
    from_text, at_random, pair = built("text-probe"), built("text-probe", from_text=False), built("pair")
    # The same seed gives the same towers; the classifier's random rows are drawn behind them.
    torch.testing.assert_close(from_text(images).logits, pair(images).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(at_random(images).logits, pair(images).logits, atol=1e-2)


def test_the_adapter_is_its_equation(images: Tensor) -> None:
    model = built("clip-adapter", ratio=0.3, reduction=8)
    x = F.normalize(model.language.project(features(model, images)), dim=1)
    hidden = (x @ model.down.weight.T).clamp(min=0)
    adapted = 0.3 * (hidden @ model.up.weight.T).clamp(min=0) + 0.7 * x
    texts = model.language.text(model.numbers)
    torch.testing.assert_close(model(images).logits, model.language.scale * cosines(adapted, texts))
    assert model.down.weight.shape == (8, 64)


def test_an_adapter_without_a_share_is_zero_shot(images: Tensor) -> None:
    torch.testing.assert_close(built("clip-adapter", ratio=0.0)(images).logits, built("pair")(images).logits)


def test_context_stands_before_every_description(images: Tensor) -> None:
    model = built("coop", context_length=2)
    context = model.context.detach()
    texts = torch.stack(
        [written_out(model.language.text, [n for n in text if n], context) for text in tokens_of(TEXTS)]
    )
    expected = model.language.scale * cosines(model.language.project(features(model, images)), texts)
    torch.testing.assert_close(model(images).logits, expected)


@dataclass(frozen=True)
class Finished:
    """A finished trial, as far as `wise-ft` asks."""

    model: nn.Module

    def weights(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_wise_ft_lies_between_its_start_and_what_was_fine_tuned(alpha: float) -> None:
    tuned = built("text-probe", freeze_tower=False)
    start = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += torch.randn_like(parameter)
    found = built("wise-ft", finder=lambda id: Finished(tuned.float()), fine_tuned="an id", alpha=alpha)
    for name, value in found.state_dict().items():
        if value.is_floating_point():
            expected = (1 - alpha) * start[name] + alpha * tuned.state_dict()[name].double()
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_wise_ft_takes_text_probes_alone() -> None:
    with pytest.raises(UsageError, match="no trial of text-probe/full"):
        built("wise-ft", finder=lambda id: Finished(built("pair")), fine_tuned="an id")


@pytest.mark.parametrize(
    ("model", "options", "trained"),
    [
        ("pair", {}, set()),
        ("text-probe", {}, {"head.weight"}),
        ("clip-adapter", {}, {"down.weight", "up.weight"}),
        ("coop", {}, {"context"}),
    ],
)
def test_only_what_the_technique_adds_is_trained(
    model: str, options: Mapping[str, Any], trained: set[str], images: Tensor
) -> None:
    found = built(model, **options)
    assert {name for name, parameter in found.named_parameters() if parameter.requires_grad} == trained
    if trained:
        F.cross_entropy(found(images[:5]).logits, torch.arange(5)).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in found.parameters() if p.requires_grad)


def test_both_towers_are_fine_tuned(images: Tensor) -> None:
    model = built("pair", train_towers=True)
    F.cross_entropy(model(images[:5]).logits, torch.arange(5)).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


def fitted_tip(alpha: float, beta: float, output: Output, labels: Tensor) -> Callable[[Output, Tensor | None], Tensor]:
    part = host().predictors["tip-adapter"].value
    options = part.option_values({"tip_weight": alpha, "tip_sharpness": beta})
    found: Callable[[Output, Tensor | None], Tensor] = part.fit(
        PredictorContext(["a", "b", "c"], options), Features(output, labels)
    )
    return found


def test_tip_adapter_is_its_equation_and_no_image_votes_for_itself() -> None:
    torch.manual_seed(3)
    train = Output(torch.randn(7, 3), torch.randn(7, 4))
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    test = Output(torch.randn(5, 3), torch.randn(5, 4))
    score = fitted_tip(1.5, 3.0, train, labels)
    affinity = torch.exp(-3.0 * (1 - cosines(test.embedding, train.embedding)))
    expected = test.logits + 1.5 * affinity @ F.one_hot(labels, 3).float()
    torch.testing.assert_close(score(test, None), expected)
    others = torch.arange(7) != 4
    alone = fitted_tip(1.5, 3.0, Output(train.logits[others], train.embedding[others]), labels[others])
    fourth = Output(train.logits[4:5], train.embedding[4:5])
    torch.testing.assert_close(score(fourth, torch.tensor([4])), alone(fourth, None))


@pytest.mark.parametrize(("epochs", "images"), [(0, 7), (3, 7), (2, 300)])
def test_tip_adapter_f_trains_the_keys_by_adamw(epochs: int, images: int) -> None:
    """Gradient and update are written out with numpy, in float64."""
    torch.manual_seed(3)
    embedding, logits = torch.randn(images, 4, dtype=torch.float64), torch.randn(images, 3, dtype=torch.float64)
    labels = torch.arange(images) % 3
    alpha, beta, rate = 1.5, 3.0, 0.05
    x = (embedding / embedding.norm(dim=1, keepdim=True)).numpy()
    one_hot, keys = np.eye(3)[labels.numpy()], x.copy()

    def score(vectors: np.ndarray, logits: np.ndarray, affinity: np.ndarray) -> np.ndarray:
        return logits + alpha * affinity @ one_hot

    first, second = np.zeros_like(keys), np.zeros_like(keys)
    order = torch.Generator().manual_seed(0)
    batches = [b.numpy() for _ in range(epochs) for b in torch.randperm(images, generator=order).split(256)]
    for step, rows in enumerate(batches):
        affinity = np.exp(beta * (x[rows] @ keys.T - 1))
        affinity[np.arange(len(rows)), rows] = 0
        z = score(x[rows], logits.numpy()[rows], affinity)
        p = np.exp(z - z.max(1, keepdims=True))
        wrong = p / p.sum(1, keepdims=True) - one_hot[rows]
        gradient = (alpha * beta * affinity * (wrong @ one_hot.T)).T @ x[rows] / len(rows)
        lr = rate * (1 + math.cos(math.pi * step / len(batches))) / 2
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        keys *= 1 - lr * 0.01
        keys -= lr * (first / (1 - 0.9 ** (step + 1))) / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-4)
    part = host().predictors["tip-adapter-f"].value
    given = {"tip_weight": alpha, "tip_sharpness": beta, "tip_epochs": epochs, "tip_rate": rate}
    context = PredictorContext(["a", "b", "c"], part.option_values(given))
    state = torch.get_rng_state()
    found = part.fit(context, Features(Output(logits, embedding), labels))
    assert torch.equal(torch.get_rng_state(), state)
    asked = torch.randn(5, 4, dtype=torch.float64)
    own = torch.randn(5, 3, dtype=torch.float64)
    unit = (asked / asked.norm(dim=1, keepdim=True)).numpy()
    expected = score(unit, own.numpy(), np.exp(beta * (unit @ keys.T - 1)))
    assert found(Output(own, asked), None).numpy() == pytest.approx(expected, rel=1e-8)
    if not epochs:  # as it starts, it is Tip-Adapter
        before = fitted_tip(alpha, beta, Output(logits, embedding), labels)
        torch.testing.assert_close(found(Output(own, asked), None), before(Output(own, asked), None))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a rose", "does not know 'a'"),
        ("", "has 0 words"),
        (" ".join(["red"] * (LONGEST + 1)), "33 words"),
        ("red, ROSE", "does not know 'rose'"),
    ],
)
def test_texts_that_the_tower_cannot_read_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tokens_of([text])


def test_data_without_descriptions_are_refused() -> None:
    part = host().models["pair"].value
    context = ModelContext(Backbone("test_resnet", Weights(), 5, 32), 5, 32, part.option_values({}))
    with pytest.raises(UsageError, match="describe"):
        part.build(context)


def test_weights_without_a_text_tower_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "images-only.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), path)
    backbone = Backbone("test_resnet", Weights("images-only", file_sha256(path), path), 5, 32)
    part = host().models["pair"].value
    context = ModelContext(backbone, 5, 32, part.option_values({}), descriptions=TEXTS)
    with pytest.raises(UsageError, match="weights images-only have no text tower"):
        part.build(context)


def test_weights_without_a_text_tower_are_refused_when_it_is_planned(tmp_path: Path) -> None:
    path = tmp_path / "images-only.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), path)
    asked = {"data.species": "4", "data.train": "2", "data.val": "2", "data.test": "2", "data.size": "32"}

    def plan_of(technique: str, weights: str) -> TrialPlan:
        return planned(tmp_path, technique, "petals", weights=weights, image_size="32", **asked)

    for technique in ("zero-shot/descriptions", "coop/coop"):
        with pytest.raises(UsageError, match=rf"{technique}: weights images-only.*no text tower. Say --weights petals"):
            plan_of(technique, str(path))
    assert plan_of("transfer/k0", str(path)).trial.weights["sha256"] == file_sha256(path)
    assert "language" in str(plan_of("zero-shot/descriptions", "petals").run.weights_path)
    assert plan_of("zero-shot/descriptions", "none").trial.weights["sha256"] is None


def test_words_keep_their_numbers() -> None:
    """Stored towers look words up by these."""
    assert (WORDS[0], WORDS[33], WORDS[-1], len(WORDS)) == ("no", "deep", "crimson", 77)
    assert len(set(WORDS)) == len(WORDS)


@pytest.mark.parametrize("grammar_seed", range(3))
def test_every_species_can_be_read(grammar_seed: int) -> None:
    found = tokens_of([describe(species(number, grammar_seed)) for number in range(300)])
    assert all(isinstance(tokens, list) and len(tokens) == LONGEST for tokens in found)
    assert len({tuple(tokens) for tokens in found}) == 300


def test_a_pair_is_a_classifier_whose_backbone_alone_sees_the_images() -> None:
    assert Pair.only_backbone_sees_images
    assert isinstance(built("pair").backbone.get_classifier(), nn.Identity)
