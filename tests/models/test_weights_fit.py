"""Whether a file's tensors are those of a network: all of them, understood, or refused with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from flowers_bench import UsageError
from flowers_bench.models.backbones import Backbone, check_weights
from flowers_bench.models.weights import Weights
from flowers_bench.models.weights.source import resolve_weights

State = dict[str, Tensor]


def state(name: str = "test_resnet", seed: int = 5, **arguments: int) -> State:
    torch.manual_seed(seed)
    return dict(timm.create_model(name, num_classes=7, **arguments).state_dict())


def resolved(tmp_path: Path, content: object, backbone: str, name: str = "w.pth") -> Weights:
    torch.save(content, tmp_path / name)
    return resolve_weights(str(tmp_path / name), backbone)[0]


def refused(tmp_path: Path, content: object, backbone: str = "test_resnet", size: int = 64) -> str:
    with pytest.raises(UsageError) as error:
        check_weights(resolved(tmp_path, content, backbone), backbone, size)
    return str(error.value)


def prefixed(prefix: str, values: State) -> State:
    return {prefix + name: value for name, value in values.items()}


def assert_loads(tmp_path: Path, content: object, expected: State, size: int = 64) -> str:
    """Everything but the classifier has the expected values; returns what was understood."""
    weights = resolved(tmp_path, content, "test_resnet")
    planned = check_weights(weights, "test_resnet", size)
    backbone = Backbone("test_resnet", weights, 3, size)
    loaded = backbone.create().state_dict()
    for name, value in expected.items():
        assert name.startswith("fc.") or torch.equal(loaded[name], value), name
    assert planned == backbone.report
    assert planned.missing == ()
    assert planned.loaded == len(expected) - 2
    return "; ".join(planned.understood)


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "model.",
        "_orig_mod.",
        "backbone.",
        "encoder.",
        "net.",
        "student.",
        "module._orig_mod.model.",
        "a.b.c.",
    ],
)
def test_one_prefix_is_understood_and_said(tmp_path: Path, prefix: str) -> None:
    values = state()
    said = assert_loads(tmp_path, prefixed(prefix, values), values)
    assert f"the tensors under '{prefix[:-1]}' are used" in said


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "model_ema", "teacher", "weights"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_any_wrapper_is_understood_and_said(tmp_path: Path, wrapper: str, prefix: str) -> None:
    values = state()
    said = assert_loads(tmp_path, {wrapper: prefixed(prefix, values), "epoch": 3}, values)
    assert f"the tensors under '{f'{wrapper}.{prefix}'[:-1]}' are used" in said


@pytest.mark.parametrize("averaged", ["model_ema", "state_dict_ema", "ema", "teacher"])
def test_of_two_networks_in_a_file_the_averaged_one_is_used_and_the_other_named(tmp_path: Path, averaged: str) -> None:
    values = state()
    said = assert_loads(tmp_path, {"model": state(seed=6), averaged: values}, values)
    assert f"'{averaged}' are used, not those under 'model', which fit too" in said


def test_what_lies_beside_the_network_is_left_out_and_said(tmp_path: Path) -> None:
    values = state()
    optimizer = {"state": {i: {"exp_avg": torch.zeros(3)} for i in range(400)}}
    said = assert_loads(tmp_path, {"model": values, "optimizer": optimizer, "queue": torch.zeros(9, 9)}, values)
    assert "left out beside them: 400 under 'optimizer', queue" in said


def test_heads_and_counters_beside_the_network_are_left_out_and_said(tmp_path: Path) -> None:
    values = state()
    more = {"projector.0.weight": torch.zeros(4, 4), "head_dist.weight": torch.zeros(7, 4)}
    counters = {"conv1.total_ops": torch.zeros(1, dtype=torch.float64)}
    said = assert_loads(tmp_path, {**values, **more, **counters}, values)
    assert "left out: projector.0.weight, head_dist.weight, conv1.total_ops" in said


def test_a_file_without_counts_of_batches_is_whole(tmp_path: Path) -> None:
    values = {name: value for name, value in state().items() if "num_batches" not in name}
    assert_loads(tmp_path, values, values)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_numbers_are_converted_and_said(tmp_path: Path, kind: torch.dtype) -> None:
    values = {name: value.to(kind) if value.is_floating_point() else value for name, value in state().items()}
    expected = {name: value.float() if value.is_floating_point() else value for name, value in values.items()}
    said = assert_loads(tmp_path, values, expected)
    assert f"{str(kind).removeprefix('torch.')} values are used as float32" in said


@pytest.mark.parametrize(
    "kind", [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.int64, torch.float8_e4m3fn]
)
def test_numbers_that_are_not_floating_point_are_refused(tmp_path: Path, kind: torch.dtype) -> None:
    values = state()
    name = next(name for name in values if name.endswith("weight"))
    message = refused(tmp_path, {**values, name: values[name].to(kind)})
    assert (
        f"{name} must hold floating-point numbers of 16 bits or more and not {str(kind).removeprefix('torch.')}"
        in message
    )
    assert message.endswith("Use the file from before it was quantised or converted.")


def test_a_quantised_file_is_not_said_to_fit_a_network_alike(tmp_path: Path) -> None:
    """resnetblur18 has the tensors of resnet18, but for a file that has them in whole numbers this is no help."""
    values = state("resnet18")
    message = refused(tmp_path, {**values, "conv1.weight": values["conv1.weight"].to(torch.int8)}, "resnet18")
    assert message.endswith("Use the file from before it was quantised or converted.")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("ending", ["weight", "running_var"])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float, ending: str) -> None:
    values = state()
    name = next(name for name in values if name.endswith(ending))
    values[name] = values[name].double()
    values[name].view(-1)[-1] = value
    assert f"not finite (NaN or infinite in float32) in {name}" in refused(tmp_path, values)


def test_variances_below_zero_are_refused(tmp_path: Path) -> None:
    values = state()
    name = next(name for name in values if name.endswith("running_var"))
    values[name] = values[name] - 2
    assert f"variances below zero in {name}" in refused(tmp_path, values)


def test_what_is_not_finite_and_not_used_does_not_matter(tmp_path: Path) -> None:
    values = state()
    assert_loads(tmp_path, {**values, "fc.weight": values["fc.weight"] * float("nan")}, values)


@pytest.mark.parametrize("count", [1, 25])
def test_missing_tensors_are_refused_with_names_and_count(tmp_path: Path, count: int) -> None:
    values = state("resnet18")
    gone = [
        name
        for name in values
        if name.startswith("layer") and name.endswith(("conv1.weight", "conv2.weight", "bn1.weight"))
    ]
    gone = gone[:count]
    message = refused(tmp_path, {n: v for n, v in values.items() if n not in gone}, "resnet18")
    assert f"{len(gone)} of its {len(values)} tensors are not in the file" in message
    assert gone[0] in message


def test_a_smaller_network_of_the_family_is_recognised(tmp_path: Path) -> None:
    message = refused(tmp_path, state("resnet18"), "resnet34")
    assert re.search(
        r"does not fit the backbone resnet34: \d+ of its \d+ tensors are not in the file: layer1\.2\.", message
    )
    assert message.endswith("The file fits --backbone resnet18.")


def test_a_larger_network_of_the_family_is_recognised(tmp_path: Path) -> None:
    """Every tensor of resnet18 is in a file for resnet34, with its shape; but it is another network."""
    message = refused(tmp_path, state("resnet34"), "resnet18")
    assert "more parts, which this one has not: layer1.2.conv1.weight" in message
    assert message.endswith("The file fits --backbone resnet34.")


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(("file", "backbone"), [("resnet26", "resnet18"), ("vgg11_bn", "vgg11")])
def test_a_network_of_the_family_with_other_parts_is_recognised(
    tmp_path: Path, file: str, backbone: str, prefix: str
) -> None:
    """These have enough tensors under `layer2.` or `features.` to be a whole network there, of which none fits."""
    message = refused(tmp_path, prefixed(prefix, state(file)), backbone)
    assert "none of the network's tensors" not in message
    assert message.endswith(f"The file fits --backbone {file}.")


def test_a_network_of_another_family_is_named_from_its_beginning(tmp_path: Path) -> None:
    message = refused(tmp_path, state("test_vit"), "test_resnet")
    assert "none of the network's tensors is in it. It has names such as cls_token, pos_embed;" in message


def test_layer_scales_and_tokens_that_the_network_has_not_are_refused(tmp_path: Path) -> None:
    values = state("test_vit")
    scaled = {**values, "blocks.0.ls1.gamma": torch.ones(values["norm.weight"].shape)}
    assert "blocks.0.ls1.gamma" in refused(tmp_path, scaled, "test_vit", 160)
    tokens = {**values, "reg_token": torch.zeros(1, 4, 64)}
    assert "reg_token" in refused(tmp_path, tokens, "test_vit", 160)


def test_a_strange_counter_of_batches_is_not_taken_over(tmp_path: Path) -> None:
    values = state()
    name = next(name for name in values if name.endswith("num_batches_tracked"))
    weights = resolved(tmp_path, {**values, name: torch.zeros(3)}, "test_resnet")
    assert Backbone("test_resnet", weights, 3, 64).create().state_dict()[name] == 0


def test_another_family_is_refused(tmp_path: Path) -> None:
    assert "none of the network's tensors is in it" in refused(tmp_path, {"x.weight": torch.zeros(3)})
    assert "does not fit the backbone test_vit" in refused(tmp_path, state(), "test_vit")


def test_another_width_is_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, state() | {"layer1.0.conv1.weight": torch.zeros(8, 3, 3, 3)})
    assert "layer1.0.conv1.weight is (8, 3, 3, 3) in the file and " in message


def vit_of_160() -> State:
    return state("test_vit")


def test_position_embeddings_are_resampled_and_that_is_said(tmp_path: Path) -> None:
    from timm.layers import resample_abs_pos_embed

    values = vit_of_160()
    weights = resolved(tmp_path, values, "test_vit")
    backbone = Backbone("test_vit", weights, 3, 64)
    found = backbone.create().state_dict()["pos_embed"]
    assert torch.equal(found, resample_abs_pos_embed(values["pos_embed"], [4, 4], num_prefix_tokens=1))
    assert any("pos_embed from (1, 101, 64) to (1, 17, 64)" in words for words in backbone.report.understood)


def test_names_of_torchvision_are_translated(tmp_path: Path) -> None:
    """DenseNet's converter has another name and other arguments than most, and is found all the same."""
    values = {name: value for name, value in state("densenet121").items() if "num_batches" not in name}
    theirs = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): value for name, value in values.items()}
    report = check_weights(resolved(tmp_path, theirs, "densenet121"), "densenet121", 64)
    assert report.loaded == len(values) - 2
    assert any("names translated by timm: features.denseblock1" in words for words in report.understood)


def test_weights_whose_layers_are_as_large_as_the_image_need_its_size(tmp_path: Path) -> None:
    message = refused(tmp_path, state("mixer_s32_224"), "mixer_s32_224", 96)
    assert "fits mixer_s32_224 at 224 px and not at image_size=96" in message
    assert "--set image_size=224" in message


def test_nothing_is_left_to_chance_when_modules_are_replaced_afterwards(tmp_path: Path) -> None:
    """A technique that exchanges layers once the weights are in keeps them."""
    from flowers_bench import ModelContext
    from flowers_bench_plugins.deformable import build_deformable

    values = state("resnet18")
    weights = resolved(tmp_path, values, "resnet18")
    options = {"stages": "3", "modulated": True, "freeze_earlier": False}
    model = build_deformable(ModelContext(Backbone("resnet18", weights, 3, 64), 3, 64, options))
    found = model.backbone.state_dict()  # type: ignore[union-attr]
    kept = [n for n, v in values.items() if n in found and found[n].shape == v.shape and torch.equal(found[n], v)]
    assert {name for name in values if not name.startswith("fc.")} <= set(kept)


REAL: dict[str, tuple[str, int, Callable[[int], bool]]] = {
    "mobilenetv2_100.pth": ("mobilenetv2_100", 96, lambda loaded: loaded == 312),
    "tf_efficientnet_lite0.pth": ("tf_efficientnet_lite0", 96, lambda loaded: loaded > 200),
    "vit_small_patch14_dinov2.focus.fp16.safetensors": ("vit_small_patch14_dinov2", 112, lambda loaded: loaded == 174),
}


@pytest.mark.parametrize(("file", "asked"), REAL.items(), ids=REAL)
def test_real_files_fit(shared: Path, file: str, asked: tuple[str, int, Callable[[int], bool]]) -> None:
    name, size, expected = asked
    (weights,) = resolve_weights(str(shared / "weights" / file), name)
    report = check_weights(weights, name, size)
    assert expected(report.loaded), report.loaded
    assert report.unexpected == ()


def test_a_real_file_for_another_backbone_tells_its_own(shared: Path) -> None:
    path = shared / "weights" / "mobilenetv2_100.pth"
    with pytest.raises(UsageError, match="The file fits --backbone mobilenetv2_100"):
        check_weights(resolve_weights(str(path), "resnet18")[0], "resnet18", 64)
