"""bilinear and isqrt-cov: poolings against their equations, written out in float64, and their slopes."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from built import CLASSES, build, host
from torch import Tensor

from flowers_bench import ModelContext, UsageError
from flowers_bench.models.backbones import Backbone
from flowers_bench.models.weights import Weights
from flowers_bench_plugins.second_order.layers import average, bilinear, isqrt, keep_resolution, square_root

VARIANTS = [("bilinear", "bilinear", 64 * 64), ("isqrt-cov", "isqrt", 64 * 65 // 2), ("bilinear", "average", 64)]


def feature_map(side: int = 5, dim: int = 6) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(3, dim, side, side, dtype=torch.float64).relu()


def test_bilinear_is_lins_equation() -> None:
    x = feature_map().numpy()
    for image, pooled in zip(x, bilinear(torch.from_numpy(x)).numpy(), strict=True):
        product = np.zeros((6, 6))
        for row in range(5):
            for column in range(5):
                product += np.outer(image[:, row, column], image[:, row, column]) / 25
        y = np.sign(product) * np.sqrt(np.abs(product) + 1e-5)
        assert pooled == pytest.approx((y / np.linalg.norm(y)).flatten(), rel=1e-9)


@pytest.mark.parametrize("dim", [2, 6, 20])
def test_the_root_is_that_of_the_eigenvalues(dim: int) -> None:
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    matrix = basis @ np.diag(np.linspace(0.5, 3, dim)) @ basis.T
    values, vectors = np.linalg.eigh(matrix)
    expected = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    found = square_root(torch.from_numpy(matrix)[None], 20)[0].numpy()
    assert found == pytest.approx(expected, abs=1e-9)
    # In so few steps as the paper has, small eigenvalues beside a large trace are not there yet.
    after_five = square_root(torch.from_numpy(matrix)[None], 5)[0].numpy()
    assert np.abs(after_five - expected).max() < (0.01 if dim == 2 else 0.35)
    assert np.linalg.eigvalsh(after_five).min() > 0


def test_isqrt_is_the_papers_iteration_of_the_covariance() -> None:
    x = feature_map()
    for image, pooled in zip(x.numpy(), isqrt(x).numpy(), strict=True):
        covariance = np.cov(image.reshape(6, 25), bias=True)
        values, vectors = np.linalg.eigh(covariance / np.trace(covariance))
        y, z = values, np.ones(6)  # the iteration, eigenvalue by eigenvalue
        for _ in range(5):
            y, z = y * (3 - z * y) / 2, (3 - z * y) / 2 * z
        root = np.sqrt(np.trace(covariance)) * vectors @ np.diag(y) @ vectors.T
        assert pooled == pytest.approx(root[np.triu_indices(6)], abs=1e-9)


@pytest.mark.parametrize("pooling", [average, bilinear, isqrt])
def test_slopes_are_those_of_differences(pooling: object) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pooling, (x,))


@pytest.mark.parametrize("pooling", [bilinear, isqrt])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_blank_image_has_finite_values_and_slopes(pooling: object, value: float) -> None:
    x = torch.full((2, 4, 3, 3), value, requires_grad=True)
    pooled = pooling(x)  # type: ignore[operator]
    pooled.square().sum().backward()
    assert bool(pooled.isfinite().all())
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize(("technique", "variant", "width"), VARIANTS)
def test_it_learns_and_has_so_many_features(technique: str, variant: str, width: int) -> None:
    built = build(technique, variant, "test_resnet")
    assert built.model.classifier.weight.shape == (CLASSES, width)
    losses = built.train(15)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(("backbone", "image", "plain"), [("test_resnet", 64, 2), ("test_efficientnet", 64, 2), ("vgg11", 64, 2),
                                                          ("mobilenetv3_small_050", 64, 2), ("resnet18d", 64, 2)])  # fmt: skip
def test_the_feature_map_is_twice_as_fine(backbone: str, image: int, plain: int) -> None:
    network = timm.create_model(backbone, num_classes=CLASSES).eval()
    x = torch.randn(1, 3, image, image)
    with torch.inference_mode():
        assert network.forward_features(x).shape[2:] == (plain, plain)
        keep_resolution(network)
        assert network.forward_features(x).shape[2:] == (2 * plain, 2 * plain)


def test_under_autocast_products_are_float32() -> None:
    built = build("bilinear", backbone="test_resnet")
    with torch.autocast("cpu", torch.bfloat16):
        assert built.model(built.images).embedding.dtype == torch.float32


def test_a_transformer_is_refused() -> None:
    model = host().models["second-order-pooling"].value
    context = ModelContext(Backbone("test_vit", Weights(), CLASSES, 64), CLASSES, 64, model.option_values({}))
    with torch.device("meta"), pytest.raises(UsageError, match="gives no feature map"):
        model.build(context)
