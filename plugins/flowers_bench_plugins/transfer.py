"""Transfer learning: an ImageNet backbone, its first k stages frozen, or the same network from scratch.

Papers: Yosinski et al. 2014, "How transferable are features in deep neural networks?" (arXiv:1411.1792) for freezing
the first layers; Kornblith et al. 2019, "Do better ImageNet models transfer better?" (arXiv:1805.08974) for the
recipe; Zhuang et al. 2020 (arXiv:1911.02685) for the field.

The idea: early layers learn edges and textures that serve any task, late ones learn the source classes. With few
images per class, training fewer layers overfits less, and training more adapts better; k sets the balance.
A frozen stage is frozen whole: its weights get no gradient, and its batch norms keep the source's statistics.

What differs from the paper: Yosinski starts the layers after the k-th afresh, and asks what the first k are worth by
themselves; here all are pretrained but the classifier, as in the study. Kornblith trains 20,000 steps of 256 images by
SGD with Nesterov's momentum, the rate and weight decay chosen for each data set on validation; here AdamW, 20 epochs,
and rates that are defaults (`--search` looks for others).
"""

from __future__ import annotations

from flowers_bench import Recipe, Technique, Variant, hookimpl


def _frozen(k: int) -> Variant:
    what = "nothing frozen" if k == 0 else "only the classifier trained" if k == -1 else f"first {k} stages frozen"
    return Variant(f"pretrained, {what}", options={"freeze": k}, weights="pretrained", baseline="k0" if k else None)


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="transfer",
            summary="a pretrained backbone with its first k stages frozen, or from scratch",
            papers=(
                "Yosinski et al. 2014, How transferable are features in deep neural networks?, arXiv:1411.1792",
                "Kornblith et al. 2019, Do better ImageNet models transfer better?, arXiv:1805.08974",
                "He et al. 2015, Deep residual learning for image recognition, arXiv:1512.03385",
            ),
            model="classifier",
            loss="cross-entropy",
            augmentation="standard",
            recipe=Recipe(optimizer="adamw", lr=1e-3, epochs=20, warmup_epochs=1),
            variants={
                "scratch": Variant(
                    "random initial weights, everything trained",
                    weights="none",
                    recipe={"lr": 3e-3, "epochs": 60, "warmup_epochs": 3},
                ),
                **{f"k{k}": _frozen(k) for k in range(6)},
                "all": _frozen(-1),
            },
            default="k3",
        )
    ]
