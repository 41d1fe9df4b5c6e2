"""The smallest technique of one's own: what others have, in other numbers, against the same without.

    flowers-bench --plugin examples/mine.py

docs/plugins.md goes on from here, to a loss, a model and a package of one's own.
"""

from flowers_bench import Recipe, Technique, Variant, hookimpl

FLOWERS_BENCH_API = 2


@hookimpl
def register_techniques():
    return [
        Technique(
            name="mine",
            summary="smoothed labels and larger steps",
            papers=(),
            model="classifier",
            loss="cross-entropy",
            augmentation="standard",
            recipe=Recipe(lr=2e-3, epochs=4),
            variants={
                "smooth": Variant("label smoothing 0.1", options={"label_smoothing": 0.1}, baseline="plain"),
                "plain": Variant("without"),
            },
            default="smooth",
        )
    ]
