"""The frozen-prefix cache: the same numbers to the bit, shared, bounded, and not used where anything speaks against it."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from lives import live
from torch import nn

from flowers_bench.contract.technique import ModelContext
from flowers_bench.data import activations
from flowers_bench.data.activations import stored_rows
from flowers_bench.data.pixels import Augmented, evaluation_transform
from flowers_bench.measure.cost import Flops
from flowers_bench.models.backbones import Backbone, freeze_stages
from flowers_bench.models.weights import Weights
from flowers_bench.nn import Classifier
from flowers_bench.store.folder import TrialFolder
from flowers_bench.training import start
from flowers_bench.training import trial as trial_module
from flowers_bench.training.frozen_prefix import CachedActivations, Cut, PrefixUse, find_cut
from flowers_bench_plugins.prompt_tuning import build_prompted

IMAGE = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)


def outcome(folder: TrialFolder) -> tuple[Any, ...]:
    history = [
        {k: v for k, v in record.json().items() if "seconds" not in k and "joules" not in k}
        for record in folder.history()
    ]
    weights = (folder.path / "model.safetensors").read_bytes()
    result = folder.result().json()
    figures = {key: result[key] for key in ("val", "test", "retrieval", "best_epoch", "temperature")}
    return np.stack(list(folder.predictions()["logits"])).tobytes(), history, weights, figures


def uncached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: Any, **settings: Any) -> TrialFolder:
    with monkeypatch.context() as patch:
        patch.setattr(start, "find_cut", lambda model, image: "switched off")
        return live(tmp_path, *arguments, store="uncached", **settings)


TRANSFER = ("transfer/k2", True, "layer2", {"augmentation": "none"})
SLOW = [
    (
        "transfer/k2",
        True,
        "layer1",
        {"augmentation": "none", "freeze": "1", "precision": "bfloat16", "image_size": "32"},
    ),
    ("transfer/k2", False, "layer2", {}),
    ("transfer/k2", False, "layer2", {"augmentation": "mixup"}),
    ("transfer/k2", True, "blocks.1", {"augmentation": "none", "backbone": "test_vit"}),
    ("transfer/k2", True, "blocks.1", {"augmentation": "none", "backbone": "test_efficientnet"}),
    ("linear-probe/plain-head", True, "pooled features", {}),
    ("knn/k5", True, "pooled features", {"epochs": "0"}),
    ("triplet/batch-hard", True, "pooled features", {"augmentation": "none", "freeze": "-1"}),
    ("prototypical/frozen", True, "pooled features", {"epochs": "0", "n_way": "2", "eval_way": "2"}),
]


@pytest.mark.parametrize(
    ("name", "training", "until", "settings"),
    [
        TRANSFER,
        ("transfer/k2", True, "layer2", {"augmentation": "fixed-views", "views": "2", "ema_decay": "0.9"}),
        ("linear-probe/plain-head", True, "pooled features", {"backbone": "test_vit"}),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
    ],
)
def test_bit_equal_to_the_uncached_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, training: bool, until: str, settings: dict[str, str]
) -> None:
    monkeypatch.setattr(trial_module, "prediction_cost", lambda *parts: (Flops(0, ()), None))
    size = "32" if settings.get("backbone") == "test_vit" else "16"
    settings = {"epochs": "2", "warmup_epochs": "0", "batch_size": "16", "image_size": size, **settings}
    plain = uncached(tmp_path, monkeypatch, name, **settings)
    assert plain.result().cost.prefix_cache == {"until": None, "reason": "switched off"}
    computed, read = (live(tmp_path, name, store=store, **settings) for store in ("computed", "read"))
    assert outcome(computed) == outcome(plain)
    assert outcome(read) == outcome(plain)
    facts = computed.result().cost.prefix_cache
    assert (facts["training"], facts["until"]) == (training, until)
    assert facts["bytes"] == read.result().cost.prefix_cache["bytes"] > 0


def test_techniques_and_seeds_with_one_prefix_share_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "prediction_cost", lambda *parts: (Flops(0, ()), None))
    weights = tmp_path / "weights.pt"
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    for name, settings in (("linear-probe/plain-head", {"epochs": "1", "warmup_epochs": "0"}), ("knn/k1", {})):
        live(tmp_path, name, weights=str(weights), **settings)
    # train, val and test of both techniques; the first also has its sample of training images.
    assert len(list((tmp_path / "cache" / "activations").glob("*.npy"))) == 4


def test_versions_of_images_are_shared_by_what_draws_them_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "prediction_cost", lambda *parts: (Flops(0, ()), None))
    common = {"augmentation": "fixed-views", "views": "2", "epochs": "1", "warmup_epochs": "0", "image_size": "32"}

    def stored(store: str, **settings: str) -> int:
        live(tmp_path, "transfer/k2", store=store, **common, **settings)
        return len(list((tmp_path / "cache" / "activations").glob("*.npy")))

    first = stored("a")
    assert stored("b", label_smoothing="0.1") == first  # the loss's own affair
    assert stored("c", jitter="0.1") == first + 1


class _Forked(nn.Sequential):
    """A backbone that is no chain: its second layer sees the image as well."""

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return self[1](self[0](images) + images.mean())  # type: ignore[no-any-return]

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self[2](pooled)  # type: ignore[no-any-return]

    def get_classifier(self) -> nn.Module:
        return self[2]


def _resnet(frozen: int) -> Classifier:
    model = Classifier(timm.create_model("test_resnet", num_classes=3))
    freeze_stages(model.backbone, frozen)
    return model


def test_no_cut_where_anything_speaks_against_it() -> None:
    assert find_cut(_resnet(2), IMAGE) == Cut(("conv1", "bn1", "act1", "maxpool", "layer1", "layer2"))
    assert isinstance(find_cut(_resnet(0), IMAGE), str)
    learning = _resnet(2)
    learning.backbone.bn1 = nn.BatchNorm2d(learning.backbone.conv1[-1].out_channels, affine=False)
    assert isinstance(find_cut(learning, IMAGE), str)
    dropping = _resnet(2)
    dropping.backbone.maxpool = nn.Sequential(nn.Dropout(0.5), dropping.backbone.maxpool)
    assert isinstance(find_cut(dropping, IMAGE), str)
    forked = Classifier(_Forked(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)))
    forked.backbone[0].requires_grad_(False)
    assert isinstance(find_cut(forked, IMAGE), str)

    class Watching(Classifier):
        """What it does with its images is its own affair."""

    watching = Watching(timm.create_model("test_resnet"))
    freeze_stages(watching.backbone, 2)
    assert "Watching" in str(find_cut(watching, IMAGE))
    assert watching.training


class _Fake:
    """A prefix whose rows depend on the size of the batch where it is smaller than `stable`."""

    def __init__(self, directory: Path, stable: int, dtype: torch.dtype = torch.float32) -> None:
        from flowers_bench.data.pixels import Normalizer

        self.dtype = dtype
        self.cut, self.model, self.directory, self.stable = self, None, directory, stable
        self.normalize = Normalizer((0.0,) * 3, (1.0,) * 3, torch.device("cpu"))
        self.use = PrefixUse("fake")
        self.name, self.said, self.say = "fake", [], lambda text: self.said.append(text)
        self.calls = 0

    def before(self, model: None, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return (images.mean((2, 3)) + (len(images) if len(images) < self.stable else 0)).to(self.dtype)

    def key(self, *identity: object) -> str:
        return "ab" * 16


def test_no_cut_where_what_is_trained_reaches_back() -> None:
    """A trained value that a hook adds to the image: nothing among the modules says so, and at first it is zero."""
    backbone = timm.create_model("test_resnet", num_classes=5)
    freeze_stages(backbone, 2)
    assert isinstance(find_cut(Classifier(backbone), IMAGE), Cut)
    backbone.get_classifier().shift = nn.Parameter(torch.zeros(()))
    backbone.conv1.register_forward_pre_hook(lambda module, inputs: inputs[0] + backbone.get_classifier().shift)
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert isinstance(find_cut(Classifier(backbone), IMAGE), str)
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items()), "left as it was"


def test_a_deep_network_keeps_its_cut() -> None:
    """Whatever the check does to the trained layers must not overflow in the layers behind them."""
    backbone = timm.create_model("resnet34", num_classes=5)
    freeze_stages(backbone, 1)
    assert isinstance(find_cut(Classifier(backbone), IMAGE), Cut)


@pytest.mark.parametrize("deep", [True, False])
def test_no_cut_behind_prompts_that_are_trained(deep: bool) -> None:
    backbone = Backbone("test_vit", Weights(), 5, 32)
    options = {"prompt_length": 3, "deep": deep}
    found = find_cut(build_prompted(ModelContext(backbone, 5, 32, options)), IMAGE)
    assert isinstance(found, str), "frozen blocks see the prompts, which change"


def test_a_batch_size_whose_bits_differ_is_computed_each_time(tmp_path: Path) -> None:
    images = list(torch.randint(0, 256, (70, 3, 8, 8), dtype=torch.uint8))
    fake = _Fake(tmp_path, stable=16)
    stored = CachedActivations(fake, images, Augmented(images, evaluation_transform(8)), {})  # type: ignore[arg-type]
    for _ in range(3):
        for rows in (np.arange(8), np.arange(30)):
            assert torch.equal(
                stored.batch(rows), fake.before(None, fake.normalize(torch.stack([images[i] for i in rows])))
            )
    before = fake.calls
    stored.batch(np.arange(5, 35))
    assert fake.calls == before
    stored.batch(np.arange(8))
    assert fake.calls == before + 1
    assert fake.use.computed_batch_sizes == [8]
    assert "70 images" in fake.said[0]


@pytest.mark.parametrize(("precision", "bytes_"), [("float32", 4), ("bfloat16", 2)])
def test_activations_are_stored_as_they_were_computed(tmp_path: Path, precision: str, bytes_: int) -> None:
    images = list(torch.randint(0, 256, (70, 3, 8, 8), dtype=torch.uint8))
    fake = _Fake(tmp_path, stable=0, dtype=getattr(torch, precision))
    stored = CachedActivations(fake, images, Augmented(images, evaluation_transform(8)), {}, precision)  # type: ignore[arg-type]
    expected = fake.before(None, fake.normalize(torch.stack(images[:20])))
    for _ in range(2):  # computed and compared, then read
        assert torch.equal(stored.batch(np.arange(20)), expected)
        assert stored.batch(np.arange(20)).dtype == expected.dtype
    assert fake.use.bytes == 70 * 3 * bytes_
    (file,) = tmp_path.glob("*.npy")
    assert np.load(file).nbytes == fake.use.bytes


def test_the_size_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    heard: list[int | str] = []

    def batches() -> Any:
        heard.append("computing")
        yield np.ones((5, 2), np.float32)

    for _ in range(2):
        assert stored_rows(tmp_path, "ab" * 16, (5, 2), np.dtype("float32"), batches, heard.append) is not None
    assert heard == [40, "computing"], "once, and not again for what is there"


def _ask(directory: Path, counter: Path) -> None:
    def batches() -> Any:
        with counter.open("a") as stream:
            stream.write("x")
        yield np.ones((5, 2), np.float32)

    rows = stored_rows(directory, "ab" * 16, (5, 2), np.dtype("float32"), batches, lambda size: None)
    assert rows is not None
    assert (rows == 1).all()


def test_two_processes_at_once_compute_once_and_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_ask, args=(tmp_path, tmp_path / "counter")) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "counter").read_text() == "x"
    (file,) = tmp_path.glob("*.npy")
    file.write_bytes(file.read_bytes()[:-7])
    _ask(tmp_path, tmp_path / "counter")
    assert (tmp_path / "counter").read_text() == "xx"


def test_the_folder_is_bounded_and_what_was_not_used_for_longest_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "LIMIT", 900)

    def keep(key: str, rows: int) -> np.ndarray | None:
        def batches() -> list[np.ndarray]:
            return [np.zeros((rows, 1), np.float32)]

        return stored_rows(tmp_path, key, (rows, 1), np.dtype("float32"), batches, lambda size: None)

    assert keep("aa", 60) is not None
    assert keep("bb", 60) is not None
    for age, key in enumerate(("bb", "aa")):
        os.utime(tmp_path / f"{key}.npy", ns=(1000 - age, 1000 - age))
    assert keep("aa", 60) is not None  # used again
    assert keep("cc", 60) is not None
    assert sorted(path.stem for path in tmp_path.glob("*.npy")) == ["aa", "cc"]
    assert keep("dd", 300) is None
