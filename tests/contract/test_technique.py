"""Recipes and options: what is out of range or misspelt is refused with the valid choices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowers_bench import Option, Recipe, UsageError
from flowers_bench.store.identity import derive_seed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", "0"), ("lr", "nan"), ("lr", "fast"), ("epochs", "-1"), ("epochs", "2.5"), ("patience", "0"), ("optimizer", ""),
        ("precision", "float16"), ("validation_precision", "bfloat16"), ("image_size", "4"), ("batch_size", "0"), ("ema_decay", "1"), ("warmup_epochs", "21"),
    ],
)  # fmt: skip
def test_recipe_refuses(field: str, value: str) -> None:
    with pytest.raises(UsageError, match=field):
        Recipe().changed(**{field: value})


def test_unknown_recipe_field_is_suggested() -> None:
    with pytest.raises(UsageError, match="Did you mean 'epochs'"):
        Recipe().changed(epoch=3)


@given(
    st.builds(
        Recipe,
        optimizer=st.sampled_from(["adam", "adamw", "sgd"]),
        lr=st.floats(1e-9, 100),
        lr_scale=st.dictionaries(st.text(min_size=1), st.floats(0, 10)),
        weight_decay=st.floats(0, 10),
        patience=st.none() | st.integers(1, 99),
        epochs=st.integers(1, 999),
        image_size=st.integers(8, 512),
        ema_decay=st.floats(0, 0.99999),
    )
)
def test_recipe_survives_its_own_facts(recipe: Recipe) -> None:
    assert Recipe.from_facts(recipe.facts()) == recipe


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    option = Option(3, "a number", minimum=1, maximum=9)
    try:
        assert 1 <= option.parse("k", text) <= 9  # type: ignore[operator]
    except UsageError as error:
        assert "k=" in str(error)


def test_seeds_differ_by_axis_and_repeat() -> None:
    seeds = {
        derive_seed(seed, purpose, epoch) for seed in range(5) for purpose in ("order", "augment") for epoch in range(5)
    }
    assert len(seeds) == 50
    assert derive_seed(0, "order", 1) == 8677279991123922410  # stored results depend on it
