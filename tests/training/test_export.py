"""Exported models answer as the original does, whatever predicts, and say what is needed to use them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lives import TOY, live
from scipy.special import softmax

from flowers_bench.data.pixels import evaluation_transform
from flowers_bench.store.folder import TrialFolder
from flowers_bench.training import export
from flowers_bench.training.export import export_trial
from flowers_bench.training.trained import Sources, dataset_of, temperature_of
from flowers_bench.util.errors import UsageError

NAMED = Sources([TOY])
QUICK = {"epochs": "1", "warmup_epochs": "0"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    return live(tmp_path_factory.mktemp("plain"), "toy/plain", **{"data.noise": "200"})


@pytest.fixture(scope="module")
def deformed(tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    return live(tmp_path_factory.mktemp("deformed"), "deformable/stage3", **QUICK)


def stored(folder: TrialFolder) -> np.ndarray:
    """The test split's logits as the trial stored them."""
    table = folder.predictions()
    return np.stack(list(table[table["split"] == "test"]["logits"]))


def pixels(folder: TrialFolder) -> np.ndarray:
    images = dataset_of(folder, NAMED).test.images
    transform = evaluation_transform(folder.config().recipe.image_size)
    return torch.stack([transform(images[i]) for i in range(len(images))]).numpy()


def check_facts(facts: dict[str, object], folder: TrialFolder) -> None:
    assert facts["trial"] == folder.id
    assert facts["classes"] == folder.result().class_names
    assert facts["temperature"] == folder.result().temperature
    assert facts["input"]["center_crop"] == folder.config().recipe.image_size


def check_onnx(folder: TrialFolder, path: Path) -> None:
    """In ONNX Runtime: the stored test logits, in batches of any size, and their calibrated probabilities."""
    onnxruntime = pytest.importorskip("onnxruntime")
    found = export_trial(folder, "onnx", path, NAMED)
    assert found.disagreements == 0
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images, expected = pixels(folder), stored(folder)
    for rows in (slice(0, 1), slice(0, None)):
        logits, probabilities = session.run(["logits", "probabilities"], {"images": images[rows]})
        assert np.abs(logits - expected[rows]).max() < 1e-3 * np.ptp(expected)
        by_hand = softmax(expected[rows].astype(float) / (temperature_of(folder) or 1), axis=1)
        assert np.abs(probabilities - by_hand).max() < 1e-3
    check_facts(json.loads(session.get_modelmeta().custom_metadata_map["flowers_bench"]), folder)


def check_pt2(folder: TrialFolder, path: Path) -> None:
    export_trial(folder, "pt2", path, NAMED)
    extra = {"flowers_bench.json": ""}
    module = torch.export.load(str(path), extra_files=extra).module()
    images, expected = torch.from_numpy(pixels(folder)), stored(folder)
    for rows in (slice(0, 1), slice(0, None)):
        with torch.inference_mode():
            logits, probabilities = module(images[rows])
        assert np.abs(logits.numpy() - expected[rows]).max() < 1e-3 * np.ptp(expected)
        assert probabilities.sum(1) == pytest.approx(np.ones(len(logits)), abs=1e-5)
    check_facts(json.loads(extra["flowers_bench.json"]), folder)


def test_onnx_of_a_deformable_network_is_a_standard_model(deformed: TrialFolder, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    check_onnx(deformed, tmp_path / "model.onnx")
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert "DeformConv" in {node.op_type for node in model.graph.node}
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_pt2_of_a_plain_network(plain: TrialFolder, tmp_path: Path) -> None:
    check_pt2(plain, tmp_path / "model.pt2")


def test_a_file_that_differs_is_refused_and_not_written(
    plain: TrialFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, open_, where = export.FORMATS["pt2"]

    def write_damaged(model: torch.nn.Module, *arguments: object) -> None:
        with torch.no_grad():
            model.model.fc.weight[0] += 0.05
            write(model, *arguments)
            model.model.fc.weight[0] -= 0.05

    path = tmp_path / "model.pt2"
    monkeypatch.setitem(export.FORMATS, "pt2", (write_damaged, open_, where))
    with pytest.raises(UsageError, match=r"differs from the original.*not written"):
        export_trial(plain, "pt2", path, NAMED)
    nan = (write, lambda file: lambda images: open_(file)(images) * np.nan, where)
    monkeypatch.setitem(export.FORMATS, "pt2", nan)
    with pytest.raises(UsageError, match="differs from the original"):
        export_trial(plain, "pt2", path, NAMED)
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_traced_is_refused(
    plain: TrialFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        return images if images.sum() > 0 else -images

    monkeypatch.setattr(export.Deployed, "forward", forward)
    with pytest.raises(UsageError, match=r"cannot be exported \("):
        export_trial(plain, "pt2", tmp_path / "model.pt2", NAMED)
    assert not list(tmp_path.iterdir())


def test_a_file_that_does_not_run_is_refused(
    plain: TrialFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(images: np.ndarray) -> np.ndarray:
        raise RuntimeError(f"expected 2 images, got {len(images)}")

    write, _, where = export.FORMATS["pt2"]
    monkeypatch.setitem(export.FORMATS, "pt2", (write, lambda file: fails, where))
    with pytest.raises(UsageError, match=r"cannot be exported \(RuntimeError: expected 2 images, got 32\)"):
        export_trial(plain, "pt2", tmp_path / "model.pt2", NAMED)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(plain: TrialFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else True)
    with pytest.raises(UsageError, match=r"needs onnxruntime: pip install 'flowers-bench\[onnx\]'"):
        export_trial(plain, "onnx", tmp_path / "model.onnx", NAMED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("toy/plain", {}),
        ("knn/k5", {}),
        ("knn/nearest-mean", {}),
        ("linear-probe/logistic", {}),
        ("cosine-loss/combined", QUICK),
        ("multiscale-vgg/both", {**QUICK, "backbone": "vgg11", "image_size": "32"}),
        ("lora/qv", {**QUICK, "backbone": "test_vit", "image_size": "32"}),
        ("prompt-tuning/deep", {**QUICK, "backbone": "test_vit", "image_size": "32"}),
    ],
)
def test_every_kind_of_model_and_predictor(name: str, more: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    folder = live(tmp_path, name, **more)
    check_onnx(folder, tmp_path / "model.onnx")
    check_pt2(folder, tmp_path / "model.pt2")
