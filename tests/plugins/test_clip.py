"""clip: with weights of open_clip's form its numbers are open_clip's own; without them, or the package, it says what to do."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from built import host
from lives import TOY, live
from torch import Tensor, nn

from flowers_bench import ModelContext, UsageError
from flowers_bench.backbones import Backbone, Weights
from flowers_bench.training.trained import Sources, Trained, dataset_of
from flowers_bench.util.files import file_sha256

NAMES = ("wren", "european_robin", "great tit", "house sparrow")
TOWER, SIDE, DIMENSION = "vit_xsmall_patch16_clip_224", 32, 24
needs_open_clip = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason='open_clip is not installed: pip install ".[test]"'
)


def towers(quick: bool = False) -> Any:
    """A small CLIP of open_clip's own, whose image tower is the smallest that timm has, with random values."""
    import open_clip

    torch.manual_seed(0)
    vision: Any = {"layers": 10, "width": 256, "patch_size": 16, "image_size": SIDE}
    text: Any = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2}
    model = open_clip.CLIP(DIMENSION, vision, text, quick_gelu=quick)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in ("bias", "class_embedding", "positional_embedding"):
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "open_clip_model.pt"
    # As a training of open_clip's has it.
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in towers().state_dict().items()}}, path)
    return path


def built(weights: Path | None, **options: Any) -> nn.Module:
    part = host().models["clip"].value
    source = Weights() if weights is None else Weights(weights.name, file_sha256(weights), weights)
    values = part.option_values({"clip_dimension": DIMENSION, **options})
    context = ModelContext(Backbone(TOWER, source, len(NAMES), SIDE), len(NAMES), SIDE, values, class_names=NAMES)
    return part.build(context)


def encoded(model: Any, templates: list[str]) -> Tensor:
    """Open_clip's own zero-shot classifier (C, D), as its documentation builds it."""
    import open_clip

    with torch.no_grad():
        rows = []
        for name in ("wren", "european robin", "great tit", "house sparrow"):
            tokens = open_clip.tokenize([template.format(name) for template in templates])
            row = model.encode_text(tokens, normalize=True).mean(0)
            rows.append(row / row.norm())
    return torch.stack(rows)


@needs_open_clip
@pytest.mark.parametrize("templates", [["a photo of a {}."], ["a {}", "{}, a type of flower.", "one more {}"]])
def test_zero_shot_scores_are_those_of_open_clip(file: Path, templates: list[str]) -> None:
    reference, images = towers(), torch.randn(5, 3, SIDE, SIDE)
    found = built(file, templates=" | ".join(templates)).eval()(images)
    with torch.no_grad():
        vectors = reference.encode_image(images, normalize=True)
        expected = reference.logit_scale.exp() * vectors @ encoded(reference, templates).T
    torch.testing.assert_close(found.embedding, vectors, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.01  # they do tell images apart


@needs_open_clip
def test_the_text_tower_with_openais_gelu_is_open_clips() -> None:
    from flowers_bench_plugins.clip.layers import text_vectors

    reference = towers(quick=True)
    found = text_vectors(reference.state_dict(), [["a photo of a wren."]], quick=True)
    other = text_vectors(reference.state_dict(), [["a photo of a wren."]], quick=False)
    import open_clip

    with torch.no_grad():
        expected = reference.encode_text(open_clip.tokenize(["a photo of a wren."]), normalize=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other, expected, rtol=1e-4, atol=1e-5)


@needs_open_clip
def test_building_leaves_torchs_random_numbers_alone(file: Path) -> None:
    torch.manual_seed(5)
    built(file)
    after = torch.rand(3)
    torch.manual_seed(5)
    built(file, templates="a picture of a {} | a {}")
    assert torch.equal(torch.rand(3), after)


@needs_open_clip
@pytest.mark.parametrize(
    ("tuned", "expected"),
    [("nothing", set()), ("head", {"head"}), ("all", {"backbone", "project", "head", "log_scale"})],
)
def test_only_what_is_named_is_trained(file: Path, tuned: str, expected: set[str]) -> None:
    model = built(file, clip_tuned=tuned)
    assert {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad} == expected


@pytest.mark.slow
@needs_open_clip
def test_a_trial_runs_and_predicts_again_without_the_file(file: Path, tmp_path: Path) -> None:
    from shutil import copy

    own = Path(copy(file, tmp_path / "weights.pt"))
    common = {"clip_dimension": str(DIMENSION), "image_size": str(SIDE), "backbone": TOWER, "weights": str(own)}
    folder = live(tmp_path, "clip/probe", epochs="1", warmup_epochs="0", batch_size="16", **common)
    assert folder.config().weights.sha256 == file_sha256(file)
    own.unlink()
    sources = Sources([TOY], tmp_path / "cache")
    table = folder.predictions()
    stored = np.stack(list(table[table["split"] == "test"]["logits"]))
    again = Trained.load(folder, torch.device("cpu"), sources).fitted(dataset_of(folder, sources).test.images).logits
    assert again == pytest.approx(stored, rel=1e-3, abs=1e-3)


@needs_open_clip
def test_another_dimension_is_refused_with_the_right_one(file: Path) -> None:
    with pytest.raises(UsageError, match=f"--set clip_dimension={DIMENSION}"):
        built(file, clip_dimension=512)


def test_without_weights_it_is_random_and_of_the_right_shape() -> None:
    output = built(None)(torch.randn(2, 3, SIDE, SIDE))
    assert output.logits.shape == (2, len(NAMES))
    assert output.embedding.shape == (2, DIMENSION)


def image_tower_alone(path: Path) -> Path:
    torch.save(Backbone(TOWER, Weights(), 4, SIDE).create().state_dict(), path)
    return path


def test_weights_without_a_text_tower_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"are of no CLIP with both towers: there is no visual.proj. Name a file of open_clip's"
    ):
        built(image_tower_alone(tmp_path / "timm.pt"))


def whole(path: Path, words: int = 49408) -> Path:
    """A file with everything that a CLIP has, of which nothing is looked at but the sizes."""
    tensors = {f"{name}": value for name, value in Backbone(TOWER, Weights(), 4, SIDE).create().state_dict().items()}
    more = {
        "visual.proj": torch.zeros(256, DIMENSION),
        "logit_scale": torch.tensor(0.0),
        "text_projection": torch.zeros(64, DIMENSION),
        "positional_embedding": torch.zeros(77, 64),
        "token_embedding.weight": torch.zeros(words, 64),
        "ln_final.weight": torch.zeros(64),
        "transformer.resblocks.0.attn.in_proj_weight": torch.zeros(192, 64),
    }
    torch.save({**tensors, **more}, path)
    return path


def test_other_words_than_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"know 100 words, and CLIP's tokenizer has 49,408"):
        built(whole(tmp_path / "few.pt", words=100))


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"not installed: pip install 'flowers-bench\[clip\]'"):
        built(whole(tmp_path / "whole.pt"))


@pytest.mark.parametrize("templates", ["", "a photo", "{} and {}", "a {} | a photo"])
def test_a_template_without_a_place_for_the_name_is_refused(templates: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UsageError, match="once, where the class's name goes"):
        built(whole(tmp_path / "whole.pt"), templates=templates)
