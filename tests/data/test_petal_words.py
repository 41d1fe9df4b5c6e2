"""Descriptions of drawn species: they say what is drawn, and tell twins apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flowers_bench.contract.dataset import DataRequest
from flowers_bench.data import petals
from flowers_bench.data.petal_words import describe


def test_a_description_says_what_is_drawn() -> None:
    genes = replace(
        petals.species(0),
        petals=5,
        layers=2,
        width=1.1,
        point=0.8,
        notch=0.0,
        gap=0.0,
        gradient=0.7,
        marking=1,
        disc=0.28,
        disc_colour=(0.9, 0.8, 0.1),
        disc_grain=0.5,
        leaves=3,
        leaf_colour=(0.1, 0.5, 0.1),
        ground=(0.3, 0.2, 0.1),
        inner=(0.9, 0.8, 0.85),
        outer=(0.5, 0.1, 0.9),
        marking_colour=(0.1, 0.1, 0.5),
    )
    assert describe(genes) == (
        "five broad pointed petals whole touching deep violet fading early from white veined blue, double, large bright golden "
        "grainy disc, three dull leafgreen leaves, dark orange ground"
    )


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        ({"notch": 0.2}, "whole", "notched"),
        ({"layers": 1}, "double", "single"),
        ({"marking": 0}, "veined", "plain"),
        ({"leaves": 0}, "leaves", "no leaves"),
        ({"petals": 12}, "petals", "twelve"),
    ],
)
def test_another_gene_is_another_word(change: dict[str, float], before: str, after: str) -> None:
    genes = replace(petals.species(0), layers=2, notch=0.0, marking=1, leaves=2)
    assert before in describe(genes)
    assert after not in describe(genes)
    assert after in describe(replace(genes, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("grammar_seed", [0, 1, 2])
def test_no_two_species_have_one_description(grammar_seed: int) -> None:
    found = [describe(petals.species(number, grammar_seed)) for number in range(102)]
    assert len(set(found)) == 102


def test_the_dataset_describes_its_classes(tmp_path: Path) -> None:
    options = {"size": 16, "species": 4, "train": 1, "val": 1, "test": 1, "grammar_seed": 5}
    found = petals.load(DataRequest(tmp_path, None, 64, options)).descriptions
    assert list(found) == [describe(petals.species(number, 5)) for number in range(4)]
