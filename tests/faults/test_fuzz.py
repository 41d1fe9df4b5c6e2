"""What is parsed, fuzzed: it works, or says what is wrong by name; it never ends in a traceback."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stored import outcomes, store_trial

from flowers_bench.cli.compare import compare
from flowers_bench.cli.leaderboard import print_leaderboard
from flowers_bench.cli.report import report
from flowers_bench.cli.show import show
from flowers_bench.contract.technique import Recipe
from flowers_bench.ops import deform_conv2d
from flowers_bench.plan.suites import overridden, read_suite
from flowers_bench.store.folder import TrialFolder
from flowers_bench.store.results import load_results
from flowers_bench.util.errors import UsageError

PLAIN = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SUITE = """summary = "s"
source = "p"
[defaults]
data = "petals"
seeds = 2
[[trials]]
technique = ["transfer/k3", "deformable"]
lr = [1e-3, 0.1]
reported = {row = "a", top1 = 88.1}
[[trials]]
technique = "knn"
"data.species" = 3
"""
PIECES = ["[[trials]]", "[trials]", "=", "[", "]", "{", "}", '"', "\n", "seeds", "reported", "top1", "nan", "1e999",
          "-1", "true", "\0", "\ud800", "é", "defaults", "technique", "trials = 3", "'''", "9" * 5000, "1979-05-27"]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(PLAIN, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, len(SUITE)), st.integers(0, 12), st.sampled_from(PIECES)), max_size=4))
def test_a_suite_is_read_or_refused_by_name(tmp_path: Path, edits: list[tuple[int, int, str]]) -> None:
    text = SUITE
    for place, removed, piece in edits:
        text = text[:place] + piece + text[place + removed :]
    path = tmp_path / "suite.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        suite = read_suite(str(path))
    except UsageError as error:
        assert "suite.toml" in str(error)
        return
    for table in overridden(suite, {"lr": ["1"]}).tables:
        assert all(isinstance(value, str) for cell in table.cells() for value in cell.values())


@pytest.mark.parametrize("field", sorted(Recipe().facts()))
@settings(PLAIN, max_examples=15)
@given(st.text(max_size=12) | st.floats().map(str) | st.integers().map(str))
@example("9" * 5000)
@example("nan")
def test_a_recipe_takes_a_value_or_refuses_it_by_name(field: str, text: str) -> None:
    with contextlib.suppress(UsageError):
        assert json.dumps(Recipe().changed(**{field: text}).facts(), allow_nan=False)
        return
    with pytest.raises(UsageError, match=field):
        Recipe().changed(**{field: text})


READERS: list[Callable[[TrialFolder], object]] = [
    lambda trial: load_results(trial.path.parent),
    lambda trial: print_leaderboard(trial.path.parent, "md", trials=False),
    lambda trial: print_leaderboard(trial.path.parent, "text", trials=True),
    lambda trial: show(trial.id, trial.path.parent, "text"),
    lambda trial: compare(["a/b", "c/d"], trial.path.parent, "md"),
]


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    root = tmp_path_factory.mktemp("runs")
    store_trial(root, "c/d", 0, outcomes(0, 0.6, 40))
    return store_trial(root, "a/b", 0, outcomes(0, 0.7, 40))


@pytest.mark.parametrize("name", ["config.json", "result.json", "run.json", "history.jsonl", "predictions.parquet"])
@settings(PLAIN, max_examples=25)
@given(content=st.floats(0, 1) | JSON | st.binary(max_size=20))
@example({"schema_version": 99})
@example(0.5)
def test_a_damaged_file_of_a_trial_is_named(trial: TrialFolder, name: str, content: object) -> None:
    """Cut short, or something else altogether."""
    path = trial.path / name
    whole = path.read_bytes()
    if isinstance(content, float) and 0 <= content <= 1:
        damaged = whole[: int(content * len(whole))]
    else:
        damaged = content if isinstance(content, bytes) else json.dumps(content).encode()
    try:
        path.write_bytes(damaged)
        for read in READERS:
            try:
                read(trial)
            except UsageError as error:
                assert name in str(error) or "a/b" in str(error)
    finally:
        path.write_bytes(whole)


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
SIZE = st.integers(0, 5)


def places(value: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where something stands inside nested objects."""
    if not isinstance(value, dict):
        return []
    return [spot for key in value for spot in ((*path, key), *places(value[key], (*path, key)))]


@pytest.mark.parametrize("name", ["config.json", "result.json"])
@settings(PLAIN, max_examples=60)
@given(data=st.data())
def test_a_record_that_lacks_something_is_named_or_read(trial: TrialFolder, name: str, data: st.DataObject) -> None:
    file = trial.path / name
    whole = file.read_text()
    record = json.loads(whole)
    *outer, key = data.draw(st.sampled_from(places(record)))
    inner = record
    for step in outer:
        inner = inner[step]
    value = data.draw(st.sampled_from(["gone", None, "text", -1, 0.5, True, [], {}, [None]]))
    if value == "gone":
        del inner[key]
    else:
        inner[key] = value
    file.write_text(json.dumps(record))
    try:
        for read in [*READERS, lambda trial: report(trial.path.parent, trial.path.parent / "report.html")]:
            with contextlib.suppress(UsageError):
                read(trial)
    finally:
        file.write_text(whole)


@settings(PLAIN, max_examples=150)
@given(
    shapes=st.tuples(*[st.lists(SIZE, min_size=3, max_size=5) for _ in range(3)]),
    fits=st.booleans(),
    dtypes=st.tuples(*[st.sampled_from(DTYPES)] * 3),
    one_dtype=st.booleans(),
    stride=st.integers(-1, 3),
    padding=st.integers(-1, 3),
    dilation=st.integers(-1, 3),
    groups=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_arguments_of_the_operator_work_as_the_reference_or_are_refused(
    shapes: tuple[list[int], ...],
    fits: bool,
    dtypes: tuple[torch.dtype, ...],
    one_dtype: bool,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    seed: int,
) -> None:
    """Where torchvision computes something, so does this, and the same; else a plain Python error, never a crash."""
    from torchvision.ops import deform_conv2d as reference

    generator = torch.Generator().manual_seed(seed)
    kinds = (dtypes[0],) * 3 if one_dtype else dtypes
    if fits and min(stride, dilation) > 0 <= padding:
        n, side, k = shapes[0][0], shapes[0][1], max(1, shapes[1][0] % 4)
        out = (side + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        wanted = ([n, 2, side, side], [n, 2 * k * k, max(out, 0), max(out, 0)], [2, 2 // max(groups, 1), k, k])
    else:
        wanted = shapes
    tensors = [
        torch.randn(shape, generator=generator).mul(2).to(kind) for shape, kind in zip(wanted, kinds, strict=True)
    ]
    arguments = {"stride": stride, "padding": padding, "dilation": dilation}
    try:
        found = deform_conv2d(*tensors, **arguments)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        assert str(error)
        assert "internal" not in str(error).lower()
        return
    if found.dtype in (torch.float32, torch.float64) and found.numel():
        expected = reference(*[t.double() for t in tensors], **arguments)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
