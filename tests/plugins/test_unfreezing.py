"""unfreezing: what is trained in which epoch, and that the rest stays as it was."""

from __future__ import annotations

import pytest
import torch
from built import Built, build
from torch import Tensor

from flowers_bench.backbones import stages


def state(built: Built) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in built.model.state_dict().items()}


def changed(built: Built, epoch: int, epochs: int) -> set[str]:
    """Names of the tensors that training in an epoch changes, batch norms' statistics included."""
    before = state(built)
    built.model.begin_epoch(epoch, epochs)  # type: ignore[operator]
    built.train(2)
    return {name for name, tensor in state(built).items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize(
    ("share", "epochs", "probed"), [(0.5, 4, 2), (0.5, 5, 2), (0.25, 8, 2), (0.0, 3, 0), (1.0, 3, 3)]
)
def test_lp_ft_probes_first_and_then_trains_everything(share: float, epochs: int, probed: int) -> None:
    built = build("lp-ft", backbone="test_resnet", options={"probe_share": share})
    classifier = {"backbone.fc.weight", "backbone.fc.bias"}
    everything = {name for name, _ in built.model.named_parameters()}
    found = []
    for epoch in range(1, epochs + 1):
        built.model.begin_epoch(epoch, epochs)  # type: ignore[operator]
        found.append(built.trainable())
    assert found == [classifier] * probed + [everything] * (epochs - probed)


def test_while_it_is_probed_the_backbone_stays_as_it_is() -> None:
    built = build("lp-ft", backbone="test_resnet")
    assert changed(built, 1, 4) == {"backbone.fc.weight", "backbone.fc.bias"}
    assert "backbone.conv1.0.weight" in changed(built, 3, 4)


def test_gradual_unfreezing_goes_from_the_last_stage_to_the_first() -> None:
    built = build("gradual-unfreezing", backbone="test_resnet")
    found = stages(built.model.backbone)  # type: ignore[arg-type]
    for epoch in range(1, len(found) + 3):
        built.model.begin_epoch(epoch, 20)  # type: ignore[operator]
        for number, stage in enumerate(found):
            frozen = not any(
                parameter.requires_grad
                for name in stage.modules
                for parameter in built.model.backbone.get_submodule(name).parameters(recurse=False)  # type: ignore[union-attr]
            )
            assert frozen == (number < len(found) - (epoch - 1)), (epoch, stage.name)
        assert {"backbone.fc.weight", "backbone.fc.bias"} <= built.trainable()


@pytest.mark.parametrize("technique", ["lp-ft", "gradual-unfreezing"])
def test_an_epoch_depends_on_its_number_alone(technique: str) -> None:
    one, other = (build(technique, backbone="test_resnet") for _ in range(2))
    for epoch in (1, 5, 2, 3):
        one.model.begin_epoch(epoch, 6)  # type: ignore[operator]
    other.model.begin_epoch(3, 6)  # type: ignore[operator]
    assert one.trainable() == other.trainable()
