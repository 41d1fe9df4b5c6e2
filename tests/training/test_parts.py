"""Freezing, learning rates, schedule, predictors."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from torch import nn

from flowers_bench import Recipe, UsageError
from flowers_bench.backbone import freeze_stages, stages
from flowers_bench.data.pixels import Normalizer, evaluation_transform, stored_side
from flowers_bench.measure.quality import correct_in_top_k, mean_per_class, negative_log_likelihood, quality
from flowers_bench.nn import Classifier, train_mode
from flowers_bench.training.optimizer import build_optimizer, schedule_factor
from flowers_bench.training.prediction import class_means, knn_logits, mean_logits


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


def test_learning_rates_by_pattern_and_depth() -> None:
    model = Classifier(timm.create_model("test_vit", num_classes=3))
    recipe = Recipe(lr=1.0, lr_scale={"*.qkv.*": 0.5}, layer_decay=0.5)
    optimizer = build_optimizer(recipe, model, None)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    depth = len(stages(model.backbone))
    assert scale[id(named["backbone.head.weight"])] == 1.0
    assert scale[id(named["backbone.cls_token"])] == 0.5**depth
    assert scale[id(named["backbone.blocks.0.attn.proj.weight"])] == 0.5**depth
    assert scale[id(named[f"backbone.blocks.{depth - 1}.attn.qkv.weight"])] == 0.5 * 0.5
    assert len(scale) == len(named)


def test_no_weight_decay_on_vectors() -> None:
    model = Classifier(timm.create_model("test_resnet", num_classes=3))
    optimizer = build_optimizer(Recipe(weight_decay=0.1), model, None)
    for group in optimizer.param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_schedule_warms_up_and_ends_at_zero() -> None:
    recipe = Recipe(epochs=10, warmup_epochs=2)
    assert [schedule_factor(recipe, p) for p in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    constant = Recipe(epochs=10, warmup_epochs=0, schedule="constant")
    assert schedule_factor(constant, 9.9) == 1


def test_nearest_mean_and_knn_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 8)
    support = (rng.normal(size=(40, 6)) + labels[:, None]).astype(np.float32)
    queries = (rng.normal(size=(30, 6)) + rng.integers(0, 5, 30)[:, None]).astype(np.float32)
    tensors = torch.from_numpy(support), torch.from_numpy(labels), torch.from_numpy(queries), 5
    means = NearestCentroid().fit(support, labels).predict(queries)
    found = mean_logits(tensors[2], class_means(tensors[0], tensors[1], 5), "euclidean")
    assert found.argmax(1).tolist() == means.tolist()
    one = KNeighborsClassifier(1, metric="cosine").fit(support, labels).predict(queries)
    assert knn_logits(*tensors, 1).argmax(1).tolist() == one.tolist()


def test_quality_against_a_naive_loop() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 7)), rng.integers(0, 7, 50)
    ranks = [sorted(row, reverse=True).index(row[label]) for row, label in zip(logits, labels, strict=True)]
    assert correct_in_top_k(logits, labels, 3).tolist() == [rank < 3 for rank in ranks]
    found = quality(logits, labels)
    assert found["top1"] == np.mean([rank == 0 for rank in ranks])
    by_class = [np.mean([r == 0 for r, label in zip(ranks, labels, strict=True) if label == c]) for c in set(labels)]
    assert found["mean_per_class"] == pytest.approx(np.mean(by_class))
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
    expected = knn_logits(support, labels, queries, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found = knn_logits(support, labels, queries, 5, 5)
    assert found.dtype == torch.float32
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.9
