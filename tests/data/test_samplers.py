"""Samplers: every image once, P x K, episodes; seeded and refusing what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowers_bench import Options
from flowers_bench.data.samplers import episodes, pk, shuffled
from flowers_bench.util.errors import UsageError


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 2**32))
def test_shuffled_gives_every_image_once(n: int, batch: int, seed: int) -> None:
    batches = list(shuffled(np.zeros(n, int), batch, Options(), np.random.default_rng(seed)))
    assert sorted(np.concatenate(batches).tolist()) == list(range(n))
    if n > 1 and batch > 1:
        assert min(map(len, batches)) > 1


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 99))
def test_pk_has_k_images_of_each_class(classes: int, per_class: int, seed: int) -> None:
    labels = np.repeat(np.arange(classes), 5)
    options = Options(images_per_class=per_class)
    for batch in pk(labels, 2 * per_class, options, np.random.default_rng(seed)):
        _, counts = np.unique(labels[batch], return_counts=True)
        assert counts.tolist() == [per_class, per_class]


@given(st.integers(2, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_episodes_are_support_then_query_by_class(n_way: int, k_shot: int, n_query: int, seed: int) -> None:
    labels = np.repeat(np.arange(6), 6)
    options = Options(n_way=n_way, k_shot=k_shot, n_query=n_query, episodes_per_epoch=3)
    found = list(episodes(labels, 0, options, np.random.default_rng(seed)))
    assert len(found) == 3
    for batch in found:
        assert len(set(batch.tolist())) == len(batch)
        by_class = labels[batch].reshape(n_way, k_shot + n_query)
        assert (by_class == by_class[:, :1]).all()
        assert len(set(by_class[:, 0].tolist())) == n_way


def test_what_does_not_fit_is_refused() -> None:
    labels = np.repeat(np.arange(3), 4)
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match="P x K"):
        list(pk(labels, 64, Options(images_per_class=4), rng))
    with pytest.raises(UsageError, match="smallest with 4"):
        list(episodes(labels, 0, Options(n_way=2, k_shot=3, n_query=2, episodes_per_epoch=1), rng))
