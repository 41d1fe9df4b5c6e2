"""The weights that come with the package: small, finite, honest about what they have seen, and used where they are meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lives import live
from safetensors.torch import load_file

from flowers_bench.contract.host import discover
from flowers_bench.models.weights.shipped import FOLDER, backbones, shipped
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Loaded, Request
from flowers_bench.training import initial_weights
from flowers_bench.training.initial_weights import weights_of_trial, write_weights
from flowers_bench.training.trained import Sources
from flowers_bench.util.errors import UsageError

ROOT = Path(__file__).parents[2]
SMALL = {"data.species": "6", "data.train": "2", "data.val": "2", "data.test": "2", "image_size": "64"}


def on_petals(tmp_path: Path, name: str, weights: str | None = None, **settings: str) -> list[str]:
    """The weights that a plan takes for a technique on drawn flowers."""
    request = Request(
        [name],
        "petals",
        tmp_path / "cache",
        1,
        weights=weights,
        settings={**SMALL, **settings},
        store=tmp_path / "runs",
    )
    return [item.trial.weights["name"] for item in plan(discover(only_built_in=True), request, [])]


def test_they_are_small_and_finite_and_say_what_they_have_seen() -> None:
    files = shipped()
    assert backbones() == ["petals_vit", "test_efficientnet", "test_resnet"]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6e6
    for weights in files:
        assert weights.provenance is not None
        images = 30000 if "vit" in weights.name else 15000
        assert weights.provenance.summary == f"trained on 600 classes of petals, {images} images"
        assert len(weights.provenance.classes) == 600
        assert all(text.startswith("petals-2 1 ") for text in weights.provenance.classes)
        tensors = load_file(str(weights.path))
        assert all(tensor.isfinite().all() for tensor in tensors.values())
        assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float16}
        assert not any(name.startswith(("fc.", "head.")) for name in tensors)


def test_each_model_gets_those_that_were_trained_as_it_is(tmp_path: Path) -> None:
    assert on_petals(tmp_path, "transfer/k0") == ["petals/test_resnet"]
    assert on_petals(tmp_path, "deformable/stages2-4") == ["petals/test_resnet.deformable"]
    assert on_petals(tmp_path, "deformable/stage3-pretrained") == ["petals/test_resnet"]
    assert on_petals(tmp_path, "deformable/stages2-4", modulated="false") == ["petals/test_resnet"]
    assert on_petals(tmp_path, "transfer/scratch") == ["none"]
    assert on_petals(tmp_path, "lora/qv") == ["petals/petals_vit"]
    assert on_petals(tmp_path, "zero-shot/descriptions") == ["petals/test_resnet.language"]


def test_species_that_they_have_seen_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="have seen 6 of the 6 classes of petals"):
        on_petals(tmp_path, "transfer/k0", **{"data.grammar_seed": "1"})


def test_a_backbone_without_any_is_told_which_have_some(tmp_path: Path) -> None:
    request = Request(["transfer/k0"], "petals", tmp_path, 1, backbone="resnet18", weights="petals", settings=SMALL)
    with pytest.raises(
        UsageError, match=r"none for backbone resnet18\. Valid: --backbone petals_vit, test_efficientnet, test_resnet"
    ):
        plan(discover(only_built_in=True), request, [])


def test_those_of_a_deformable_network_are_refused_for_a_plain_one(tmp_path: Path) -> None:
    file = str(FOLDER / "test_resnet.deformable.safetensors")
    with pytest.raises(UsageError, match=r"model 'deformable' with stages=2,3,4 .*: say the same"):
        on_petals(tmp_path, "transfer/k0", weights=file)
    assert on_petals(tmp_path, "deformable/stages2-4", weights=file) == ["test_resnet.deformable.safetensors"]


def test_what_only_the_trained_model_has_is_loaded(tmp_path: Path) -> None:
    settings = {**SMALL, "epochs": "0", "warmup_epochs": "0"}
    folder = live(tmp_path, "deformable/stages2-4", data="petals", weights="petals", **settings)
    trained, file = load_file(folder.weights()), load_file(FOLDER / "test_resnet.deformable.safetensors")
    offsets = [name for name in file if "offset_conv" in name]
    assert len(offsets) > 4
    for name, tensor in file.items():
        assert torch.equal(trained[f"backbone.{name}"], tensor.float() if tensor.is_floating_point() else tensor), name
    report = folder.result().weights_report
    assert isinstance(report, dict)
    assert sorted(report["beyond"]) == sorted(offsets)


def test_a_trials_weights_are_exported_once_for_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = live(tmp_path, "transfer/scratch", data="petals", **{**SMALL, "epochs": "1", "warmup_epochs": "0"})
    calls: list[str] = []
    for name in ("write_weights", "discover_for"):
        original = getattr(initial_weights, name)
        monkeypatch.setattr(
            initial_weights, name, lambda *a, name=name, original=original: [calls.append(name), original(*a)][1]
        )
    names = ["transfer/k0", "transfer/k1", "transfer/k2"]
    request = Request(
        names,
        "petals",
        tmp_path / "cache",
        1,
        "test_resnet",
        f"trial:{first.id}",
        settings=SMALL,
        store=tmp_path / "runs",
    )
    loaded = Loaded()
    planned = [item for _ in range(2) for item in plan(discover(only_built_in=True), request, [], loaded=loaded)]
    assert len({item.trial.weights["sha256"] for item in planned}) == 1
    assert calls == ["write_weights", "discover_for"]


def test_a_finished_trial_is_a_starting_point(tmp_path: Path) -> None:
    first = live(tmp_path, "transfer/scratch", data="petals", **SMALL, epochs="1", warmup_epochs="0")
    (name,) = on_petals(tmp_path, "transfer/k0", weights=f"trial:{first.id[:8]}")
    assert name == f"trial:{first.id}"
    with pytest.raises(UsageError, match="have seen"):
        on_petals(tmp_path, "transfer/k0", weights=f"trial:{first.id}", **{"data.train": "3"})
    sources = Sources((), tmp_path / "cache")
    one, other = (weights_of_trial(first, sources).sha256 for _ in range(2))
    assert one == other


def test_exported_weights_are_read_by_timm_and_by_weights(tmp_path: Path) -> None:
    import timm

    first = live(tmp_path, "transfer/scratch", data="petals", **SMALL, epochs="1", warmup_epochs="0")
    path = tmp_path / "mine.safetensors"
    write_weights(first, path, Sources((), tmp_path / "cache"))
    model = timm.create_model(
        "test_resnet", num_classes=6, pretrained=True, pretrained_cfg_overlay={"file": str(path), "num_classes": 6}
    )
    trained = load_file(first.weights())
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, trained[f"backbone.{key}"]), key
    assert on_petals(tmp_path, "transfer/k0", weights=str(path)) == ["mine.safetensors"]


def test_weights_of_what_is_no_backbone_are_not_exported(tmp_path: Path) -> None:
    first = live(tmp_path, "multiscale-vgg/both", data="petals", **SMALL, epochs="1", warmup_epochs="0")
    with pytest.raises(UsageError, match="no backbone that timm could read"):
        write_weights(first, tmp_path / "mine.safetensors", Sources((), tmp_path / "cache"))
    assert not (tmp_path / "mine.safetensors").exists()


def test_pretraining_in_small(tmp_path: Path) -> None:
    """The commands that made them, with 6 species and 1 epoch."""
    small = ["data.species=6", "data.train=4", "epochs=1", "warmup_epochs=0", "batch_size=8"]
    command = [sys.executable, str(ROOT / "benchmarks" / "pretrain.py"), "--out", str(tmp_path / "runs")]
    command += ["--data-dir", str(tmp_path / "cache"), "--to", str(tmp_path / "files"), "--seeds", "1"]
    done = subprocess.run(
        [*command, *(part for setting in small for part in ("--set", setting))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for path in shipped():
        assert path.path is not None
        own, theirs = load_file(tmp_path / "files" / path.path.name), load_file(path.path)
        assert {n: (t.shape, t.dtype) for n, t in own.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}


def test_the_deformable_network_is_deformable() -> None:
    (deformable,) = (w for w in shipped() if w.name.endswith(".deformable"))
    tensors = load_file(str(deformable.path))
    assert sum(name.endswith("offset_conv.weight") for name in tensors) > 2
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "offset_conv" in name)
