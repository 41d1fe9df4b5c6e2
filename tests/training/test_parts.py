"""Freezing, learning rates, schedule, predictors."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from timm.optim import param_groups_layer_decay
from torch import nn

from flowers_bench import Recipe, UsageError
from flowers_bench.contract.optimizer import SCHEDULES
from flowers_bench.data.pixels import Normalizer, evaluation_transform, stored_side
from flowers_bench.measure.quality import correct_in_top_k, mean_per_class, negative_log_likelihood, quality
from flowers_bench.models.backbones import freeze_stages, stages
from flowers_bench.nn import Classifier, distance_scores, train_mode
from flowers_bench.training.optimizer import build_optimizer, revision, schedule_factor
from flowers_bench_plugins.knn.predictor import knn_scores
from flowers_bench_plugins.prototypical.predictor import class_means


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
def test_stages_cover_the_backbone_once_without_its_classifier(name: str) -> None:
    model = timm.create_model(name, num_classes=5)
    found = stages(model)
    owners = [module for stage in found for module in stage.modules]
    assert len(owners) == len(set(owners))
    inside = {id(p) for owner in owners for p in model.get_submodule(owner).parameters(recurse=False)}
    head = {id(p) for p in model.get_classifier().parameters()}
    assert inside | head == {id(p) for p in model.parameters()}
    assert not inside & head


def test_resnet_has_the_four_stages_of_its_paper() -> None:
    assert [s.name for s in stages(timm.create_model("resnet18"))] == ["layer1", "layer2", "layer3", "layer4"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_frozen_stages_stay_bit_equal_and_the_rest_moves(count: int) -> None:
    torch.manual_seed(0)
    model = Classifier(timm.create_model("test_resnet", num_classes=3))
    freeze_stages(model.backbone, count)
    frozen_names = {f"backbone.{m}." for s in stages(model.backbone)[:count] for m in s.modules}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = build_optimizer(Recipe(lr=0.1), model, None)
    for _ in range(2):
        train_mode(model)
        loss = nn.functional.cross_entropy(model(torch.randn(6, 3, 32, 32)).logits, torch.arange(6) % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        is_frozen = any(name.startswith(prefix) for prefix in frozen_names)
        assert torch.equal(before[name], value) == is_frozen, name


def test_freezing_more_stages_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError, match="this backbone has"):
        freeze_stages(timm.create_model("test_resnet"), 9)


# Class token; registers and an attention pool; convolutions; windows with tables of biases.
LAYERED = [
    "test_vit",
    "test_vit3",
    "test_resnet",
    "test_efficientnet",
    "test_convnext",
    "resnet18",
    "convnext_atto",
    "swin_tiny_patch4_window7_224",
]


def _groups(recipe: Recipe, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Factor on the rate and weight decay of each trainable parameter, by its name in the backbone."""
    groups = build_optimizer(recipe, model, None).param_groups
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {n.removeprefix("backbone."): found[id(p)] for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", LAYERED)
@pytest.mark.parametrize("frozen", [0, 2])
def test_layers_and_exemptions_are_timms(name: str, frozen: int) -> None:
    model = Classifier(timm.create_model(name, num_classes=3))
    freeze_stages(model.backbone, frozen)
    exempt = model.backbone.no_weight_decay() if hasattr(model.backbone, "no_weight_decay") else ()
    theirs = param_groups_layer_decay(model.backbone, weight_decay=0.1, no_weight_decay_list=exempt, layer_decay=0.5)
    expected = {id(p): (group["lr_scale"], group["weight_decay"]) for group in theirs for p in group["params"]}
    found = _groups(Recipe(weight_decay=0.1, layer_decay=0.5), model)
    assert found == {n: expected[id(p)] for n, p in model.backbone.named_parameters() if p.requires_grad}


def test_embeddings_are_a_layer_before_the_first_block_and_not_decayed() -> None:
    model = Classifier(timm.create_model("test_vit", num_classes=3))
    found = _groups(Recipe(weight_decay=0.1, layer_decay=0.5), model)
    assert found["head.weight"] == (1.0, 0.1)
    assert found["norm.weight"] == (0.5, 0.0)
    assert found["blocks.5.mlp.fc1.weight"] == (0.5, 0.1)
    assert found["blocks.0.mlp.fc1.weight"] == (0.5**6, 0.1)
    assert found["patch_embed.proj.weight"] == (0.5**7, 0.1)
    assert found["cls_token"] == found["pos_embed"] == (0.5**7, 0.0)


@pytest.mark.parametrize(
    ("name", "classifier"), [("test_resnet", "fc"), ("test_vit", "head"), ("test_efficientnet", "classifier")]
)
def test_the_classifier_has_one_name_in_every_family(name: str, classifier: str) -> None:
    model = Classifier(timm.create_model(name, num_classes=3))
    found = _groups(Recipe(lr_scale={"classifier.*": 10.0}), model)
    assert {n for n, (scale, _) in found.items() if scale == 10.0} == {f"{classifier}.weight", f"{classifier}.bias"}
    assert {scale for scale, _ in found.values()} == {1.0, 10.0}


def test_a_pattern_multiplies_the_layers_rate() -> None:
    model = Classifier(timm.create_model("test_vit", num_classes=3))
    found = _groups(Recipe(lr_scale={"*.qkv.*": 0.1}, layer_decay=0.5), model)
    assert found["blocks.5.attn.qkv.weight"][0] == 0.5 * 0.1
    assert found["blocks.5.attn.proj.weight"][0] == 0.5


def test_without_layer_decay_only_the_exemptions_are_timms() -> None:
    model = Classifier(timm.create_model("test_vit", num_classes=3))
    found = _groups(Recipe(weight_decay=0.1), model)
    assert {scale for scale, _ in found.values()} == {1.0}
    assert found["pos_embed"][1] == 0.0


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("test_resnet", {}, 1),  # nothing is exempt
        ("test_vit", {"weight_decay": 0.0}, 1),
        ("test_vit", {}, 2),
        ("test_resnet", {"layer_decay": 0.9}, 2),
    ],
)
def test_recipes_whose_groups_have_changed_say_so(name: str, changes: dict[str, float], expected: int) -> None:
    model = Classifier(timm.create_model(name, num_classes=3))
    assert revision(Recipe(**changes), model) == expected


def test_a_frozen_embedding_is_no_reason_for_another_id() -> None:
    model = Classifier(timm.create_model("test_vit", num_classes=3))
    freeze_stages(model.backbone, 1)
    assert revision(Recipe(), model) == 1


def test_a_backbone_that_does_not_tell_its_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Classifier(timm.create_model("test_resnet", num_classes=3))
    monkeypatch.setattr(type(model.backbone), "group_matcher", None)
    for planning in (revision, lambda recipe, model: build_optimizer(recipe, model, None)):
        with pytest.raises(UsageError, match="does not tell its layers"):
            planning(Recipe(layer_decay=0.5), model)


def test_no_weight_decay_on_vectors() -> None:
    model = Classifier(timm.create_model("test_resnet", num_classes=3))
    optimizer = build_optimizer(Recipe(weight_decay=0.1), model, None)
    for group in optimizer.param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_schedule_warms_up_and_ends_at_zero() -> None:
    cosine, flat = SCHEDULES
    recipe = Recipe(epochs=10, warmup_epochs=2)
    assert [schedule_factor(recipe, p, cosine) for p in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    constant = Recipe(epochs=10, warmup_epochs=0, schedule="constant")
    assert schedule_factor(constant, 9.9, flat) == 1


def test_nearest_mean_and_knn_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 8)
    support = (rng.normal(size=(40, 6)) + labels[:, None]).astype(np.float32)
    queries = (rng.normal(size=(30, 6)) + rng.integers(0, 5, 30)[:, None]).astype(np.float32)
    tensors = torch.from_numpy(support), torch.from_numpy(labels), torch.from_numpy(queries), 5
    means = NearestCentroid().fit(support, labels).predict(queries)
    found = distance_scores(tensors[2], class_means(tensors[0], tensors[1], 5), "euclidean")
    assert found.argmax(1).tolist() == means.tolist()
    one = KNeighborsClassifier(1, metric="cosine").fit(support, labels).predict(queries)
    assert knn_scores(*tensors, 1).argmax(1).tolist() == one.tolist()


def test_quality_against_a_naive_loop() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 7)), rng.integers(0, 7, 50)
    ranks = [sorted(row, reverse=True).index(row[label]) for row, label in zip(logits, labels, strict=True)]
    assert correct_in_top_k(logits, labels, 3).tolist() == [rank < 3 for rank in ranks]
    found = quality(logits, labels)
    assert found.top1 == np.mean([rank == 0 for rank in ranks])
    by_class = [np.mean([r == 0 for r, label in zip(ranks, labels, strict=True) if label == c]) for c in set(labels)]
    assert found.mean_per_class == pytest.approx(np.mean(by_class))
    expected = np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, labels, strict=True)])
    assert negative_log_likelihood(logits, labels) == pytest.approx(expected)


def test_a_constant_classifier_does_not_score() -> None:
    labels = np.zeros(10, int)
    assert not correct_in_top_k(np.zeros((10, 3)), labels).any()
    assert mean_per_class(np.ones(10, bool), labels) == 1.0


@pytest.mark.parametrize("shape", [(300, 200), (64, 64), (100, 400), (224, 224), (30, 31)])
def test_evaluation_transform_gives_the_square(shape: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    assert evaluation_transform(64)(image).shape == (3, 64, 64)
    assert stored_side(224) == 256


def test_normalizer_matches_torchvision() -> None:
    from torchvision.transforms.functional import convert_image_dtype, normalize

    images = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    mean, std = (0.1, 0.5, 0.4), (0.2, 0.3, 0.9)
    expected = normalize(convert_image_dtype(images), list(mean), list(std))
    torch.testing.assert_close(Normalizer(mean, std, torch.device("cpu"))(images), expected)


def test_neighbours_are_found_under_autocast_too() -> None:
    """There the speed of prediction is measured, where the processor has bfloat16."""
    generator = torch.Generator().manual_seed(0)
    support, labels = torch.randn(40, 6, generator=generator), torch.arange(40) % 5
    queries = support + 0.01 * torch.randn(40, 6, generator=generator)
    expected = knn_scores(support, labels, queries, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found = knn_scores(support, labels, queries, 5, 5)
    assert found.dtype == torch.float32
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.9
