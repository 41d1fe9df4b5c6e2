"""The table of docs/techniques.md that says how many values each technique trains of a ViT-B/16 with 102 classes."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from built import host

from flowers_bench import ModelContext
from flowers_bench.backbones import Backbone, Weights

PAGE = Path(__file__).parents[2] / "docs/techniques.md"
ROWS = ("bitfit/frozen", "norm-tuning/norms", "prompt-tuning/deep", "bitfit/biases", "ssf/ssf", "lora/qv", "adapter/b8",
        "adapter/pfeiffer", "adaptformer/m64", "adapter/houlsby", "bitfit/full")  # fmt: skip


def counted(name: str) -> tuple[int, int]:
    """How many values a variant's model trains, and has; built without values."""
    technique = host().techniques[name.split("/")[0]].value
    _, variant = technique.variant(name.split("/")[1])
    part = host().models[variant.model or technique.model].value
    source = Backbone("vit_base_patch16_224", Weights(), 102, 224)
    with torch.device("meta"):
        model = part.build(ModelContext(source, 102, 224, part.option_values(variant.options)))
    values = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(count for count, trained in values if trained), sum(count for count, _ in values)


def table() -> str:
    """The rows as the page has them, by how many values are trained."""
    rows = sorted((*counted(name), name) for name in ROWS)
    return "".join(f"| {name} | {trained:,} | {100 * trained / total:.2f} |\n" for trained, total, name in rows)


def test_the_page_says_how_many_values_are_trained() -> None:
    found = re.search(r"<!-- tuned shares:.*?-->\n\n\|.*\n\|.*\n((?:\|.*\n)+)", PAGE.read_text())
    assert found is not None
    assert found[1] == table()
