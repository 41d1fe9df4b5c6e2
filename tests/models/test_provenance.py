"""What weights have seen, kept in their file, and compared with what is to be tested on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowers_bench.contract.dataset import DataRequest, Dataset, Split
from flowers_bench.data import petals
from flowers_bench.models.weights.provenance import Provenance, digests, refuse_seen
from flowers_bench.util.errors import UsageError


def photographs(train: list[str], test: list[str], checksum: str = "a", val: list[str] | None = None) -> Dataset:
    """A dataset of which only the images' contents are known, one class."""

    def split(contents: list[str]) -> Split:
        return Split([], np.zeros(len(contents), np.int64), contents, contents=contents)

    return Dataset("mine", ["one"], split(train), split(val or []), split(test), "f", checksum, "64x64")


def source(dataset: Dataset) -> Provenance:
    return Provenance.of("0123456789abcdef", "test_resnet", "classifier", {"freeze": 0}, dataset)


@given(
    st.lists(st.text(max_size=5), max_size=20),
    st.dictionaries(st.text(max_size=5), st.one_of(st.text(max_size=5), st.integers(), st.booleans())),
)
def test_what_is_written_is_read(contents: list[str], options: dict[str, object]) -> None:
    written = Provenance.of("0123456789abcdef", "test_resnet", "m", options, photographs(contents, ["t"], val=["v"]))
    read = Provenance.parse(written.text())
    assert (read.trial, read.options, read.summary) == (written.trial, written.options, written.summary)
    assert read.images.tolist() == written.images.tolist() == digests({*contents, "v"} if contents else []).tolist()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", "[" * 5000, '{"trial": 1}', source(photographs(["a"], ["b"])).text()[:-5]]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Provenance.parse(text)


@pytest.mark.parametrize(
    "change", [{"images": "?"}, {"images": "AAAA"}, {"classes": [1]}, {"options": {"a": [1]}}, {"trial": None}]
)
def test_a_changed_record_is_refused(change: dict[str, object]) -> None:
    import json

    record = json.loads(source(photographs(["a"], ["b"])).text())
    with pytest.raises(ValueError, match=r"."):
        Provenance.parse(json.dumps({**record, **change}))


def test_a_test_image_that_was_trained_or_validated_on_is_refused() -> None:
    weights = source(photographs(["a", "b"], ["c"], val=["v"]))
    for seen in ("a", "v"):
        with pytest.raises(UsageError, match="1 of the 2 test images of mine"):
            refuse_seen("w", weights, photographs(["c"], [seen, "d"], "other"))
    assert refuse_seen("w", weights, photographs(["a", "c"], ["d"], "other")) == ()


def test_the_same_split_is_the_same_split() -> None:
    data = photographs(["a"], ["b"])
    assert refuse_seen("w", source(data), data) == ()


def test_what_cannot_be_compared_is_said() -> None:
    (words,) = refuse_seen("w", source(photographs([], [])), photographs(["a"], ["b"], "other"))
    assert "cannot be told" in words


def drawn(tmp_path_factory: pytest.TempPathFactory, **options: int) -> Dataset:
    sizes = {"size": 16, "species": 6, "train": 2, "val": 1, "test": 1, "grammar_seed": 0}
    return petals.load(DataRequest(tmp_path_factory.mktemp("cache"), None, 16, {**sizes, **options}))


def test_species_that_were_seen_are_refused_and_others_are_not(tmp_path_factory: pytest.TempPathFactory) -> None:
    weights = source(drawn(tmp_path_factory, grammar_seed=1))
    assert refuse_seen("w", weights, drawn(tmp_path_factory)) == ()
    with pytest.raises(UsageError, match="have seen 6 of the 9 classes of petals"):
        refuse_seen("w", weights, drawn(tmp_path_factory, grammar_seed=1, species=9))
