"""pmg: its updates are the paper's, written out in float64 for a ResNet; pieces are cut as a loop cuts them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from built import CLASSES, build, host
from lives import planned
from torch import Tensor, nn

from flowers_bench import ModelContext, StepContext, UsageError
from flowers_bench.models.backbones import Backbone
from flowers_bench.models.weights import Weights
from flowers_bench.nn import Output
from flowers_bench_plugins.pmg.layers import jigsaw


class Descent:
    """A batch whose `update` is a step of plain gradient descent."""

    def __init__(self, model: nn.Module, images: Tensor, targets: Tensor) -> None:
        self.model, self.images, self.targets = model, images, targets
        self.reached: list[set[str]] = []

    def output(self, images: Tensor) -> Output:
        found: Output = self.model(images)
        return found

    def loss(self) -> Tensor:
        return F.cross_entropy(self.output(self.images).logits, self.targets)

    def backward(self, loss: Tensor) -> None:
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        self.reached.append({name for name, p in self.model.named_parameters() if p.grad is not None})

    def update(self) -> None:
        descend(self.model)


def descend(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad


def in_pieces(images: Tensor, grid: int, order: Sequence[int]) -> Tensor:
    """Piece by piece, as the paper's figure 2 shows it."""
    made, piece = images.clone(), images.shape[-1] // grid
    for place, source in enumerate(order):
        row, column = divmod(place, grid)
        from_row, from_column = divmod(source, grid)
        made[:, :, row * piece : (row + 1) * piece, column * piece : (column + 1) * piece] = images[
            :, :, from_row * piece : (from_row + 1) * piece, from_column * piece : (from_column + 1) * piece
        ]
    return made


@pytest.mark.parametrize(("side", "grid"), [(16, 8), (16, 4), (16, 2), (19, 4), (9, 8)])
def test_pieces_are_those_of_a_loop(side: int, grid: int) -> None:
    images = torch.arange(2 * 3 * side * side).view(2, 3, side, side)
    before = images.clone()
    torch.manual_seed(1)
    found = jigsaw(images, grid)
    torch.manual_seed(1)
    order = torch.randperm(grid * grid).tolist()
    assert torch.equal(found, in_pieces(images, grid, order))
    assert torch.equal(images, before)
    assert torch.equal(found.flatten(1).sort(1).values, images.flatten(1).sort(1).values)


def test_one_piece_is_the_image() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(jigsaw(images, 1), images)
    assert torch.equal(jigsaw(images, 16), images)  # pieces below a pixel


def logits_by_hand(model: Any, images: Tensor, head: int | None) -> Tensor:
    """y_l of the stage `head`, or y: the ResNet layer by layer, then each head's equation."""
    net = model.backbone
    x = net.maxpool(net.act1(net.bn1(net.conv1(images))))
    maps = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = stage(x)
        maps.append(x)
    vectors = []
    for block, found in zip(model.stage_blocks, maps[1:], strict=True):
        narrow = F.relu(block[1](block[0](found)))
        wide = F.relu(block[4](block[3](narrow)))
        vectors.append(wide.flatten(2).max(2).values)

    def classify(head: Any, v: Tensor) -> Tensor:
        out: Tensor = head[4](F.elu(head[2](head[1](head[0](v)))))
        return out

    if head is None:
        for each, v in zip(model.stage_heads, vectors, strict=True):
            classify(each, v)  # its batch norms see every image
        return classify(model.whole_head, torch.cat(vectors, 1))
    stages = [classify(each, v) for each, v in zip(model.stage_heads, vectors, strict=True)]
    classify(model.whole_head, torch.cat(vectors, 1))
    return stages[head]


def double(backbone: str = "test_resnet", **options: Any) -> Any:
    model = build("pmg", backbone=backbone, options=options).model.double()
    return model.train()


def step_of(model: nn.Module, **options: Any) -> Callable[[Any], Tensor]:
    step = host().steps["progressive"].value
    given = step.option_values(options)
    made: Callable[[Any], Tensor] = step.build(StepContext(["a"] * CLASSES, 8, 32, given, model))
    return made


def test_a_batch_is_the_papers_four_updates() -> None:
    torch.manual_seed(0)
    model = double()
    images, targets = torch.randn(8, 3, 32, 32, dtype=torch.float64), torch.arange(8) % CLASSES
    expected = copy.deepcopy(model)
    batch = Descent(model, images, targets)
    torch.manual_seed(3)
    loss = step_of(model)(batch)
    torch.manual_seed(3)
    for head, grid in ((0, 8), (1, 4), (2, 2), (None, 1)):
        order = torch.randperm(grid * grid).tolist() if grid > 1 else [0]
        expected.zero_grad(set_to_none=True)
        own = F.cross_entropy(logits_by_hand(expected, in_pieces(images, grid, order), head), targets)
        own.backward()
        descend(expected)
    assert loss.item() == pytest.approx(own.item())
    for (name, value), other in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


def test_an_update_of_a_stage_reaches_no_later_one() -> None:
    model = double()
    batch = Descent(model, torch.randn(8, 3, 32, 32, dtype=torch.float64), torch.arange(8) % CLASSES)
    step_of(model)(batch)
    later = [("layer3", "layer4"), ("layer4",), (), ()]
    for reached, names in zip(batch.reached, later, strict=True):
        for name in ("layer1", "layer2", "layer3", "layer4"):
            assert any(name in one for one in reached) == (name not in names)
    assert not any("stage_heads" in name for name in batch.reached[-1])


def test_all_predict_together_in_evaluation_alone() -> None:
    model = double().eval()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    output = model(images)
    model.combined = False
    alone = model(images)
    assert list(output.more) == ["stage1", "stage2", "stage3"]
    torch.testing.assert_close(output.logits, (sum(output.more.values()) + alone.logits) / 4)
    assert output.logits.shape == (4, CLASSES)


@pytest.mark.parametrize(
    "backbone", ["resnet18", "test_efficientnet", "convnext_atto", "vgg11", "mobilenetv3_small_050"]
)
def test_it_fits_any_cnn_and_leaves_nothing_untrained(backbone: str) -> None:
    model = double(backbone)
    batch = Descent(model, torch.randn(4, 3, 64, 64, dtype=torch.float64), torch.arange(4))
    step_of(model)(batch)
    assert set.union(*batch.reached) == {name for name, _ in model.named_parameters()}


def test_a_transformer_is_refused_and_so_is_a_model_without_stages(tmp_path: Path) -> None:
    part = host().models["stage-heads"].value
    context = ModelContext(Backbone("test_vit", Weights(), CLASSES, 64), CLASSES, 64, part.option_values({}))
    with torch.device("meta"), pytest.raises(UsageError, match="gives no feature map"):
        part.build(context)
    with pytest.raises(UsageError, match="step 'progressive' needs stage_logits"):
        planned(tmp_path, "transfer/scratch", step="progressive")
