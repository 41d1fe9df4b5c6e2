"""Records: one type is the schema of a file, what is read from it, and what is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import pytest
from stored import add_stress, outcomes, store_trial

from flowers_bench.report.measures import EVERYTHING
from flowers_bench.store import records
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.store.records import Result
from flowers_bench.store.schema import AtLeast, Number, OrNull, Record, Text, form_of

Share = Annotated[float, Number(0, 1)]


@dataclass(frozen=True, kw_only=True)
class Part(Record):
    share: Share


@dataclass(frozen=True, kw_only=True)
class Whole(Record):
    name: Annotated[str, Text(3)]
    stated: Share | None
    left_out: Share | None = None
    there: Annotated[float | None, OrNull(Number(0, 1))]
    parts: Annotated[Sequence[Part], AtLeast(1)] | None = None
    by_name: Mapping[str, Part] | None = None


GOOD = {"name": "a", "there": None, "parts": [{"share": 1}], "by_name": {"x": {"share": 0.5, "more": [1]}}, "new": {}}


def test_a_record_has_its_fields_types() -> None:
    found = Whole.read(GOOD)
    assert (found.name, found.stated, found.there) == ("a", None, None)
    assert found.parts == (Part(share=1),)
    assert found.by_name == {"x": Part(share=0.5)}
    assert found.has("there")
    assert not found.has("stated")


def test_what_was_read_is_written_as_it_was() -> None:
    for value in (GOOD, {**GOOD, "stated": None, "left_out": None}, {**GOOD, "parts": None}):
        assert list(Whole.read(value).json().items()) == list(value.items())


def test_a_changed_field_alone_is_written_otherwise() -> None:
    read = Whole.read(GOOD)
    assert replace(read, name="b").json() == {**GOOD, "name": "b"}
    assert replace(read, left_out=0.5).json() == {**GOOD, "left_out": 0.5}
    assert replace(read, parts=None).json() == {key: value for key, value in GOOD.items() if key != "parts"}
    assert replace(read, parts=[Part(share=0)]).json() == {**GOOD, "parts": [{"share": 0}]}


def test_of_a_new_record_what_is_stated_is_null_and_the_rest_left_out() -> None:
    assert Whole(name="a", stated=None, there=None).json() == {"name": "a", "stated": None, "there": None}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"name": "abcd"}, "name has 4 characters"),
        ({"name": None}, "name is None, not a text"),
        ({"stated": 2}, "stated is 2, not a number from 0 to 1"),
        ({"stated": True}, "stated is True, not a number from 0 to 1"),
        ({"parts": []}, "parts has 0 entries, not 1 or more"),
        ({"parts": [{}]}, "it has no parts[0].share"),
        ({"by_name": {"x": []}}, "by_name.x is [], not an object"),
    ],
)
def test_what_a_type_does_not_allow_is_named(change: dict[str, object], fault: str) -> None:
    assert form_of(Whole).fault({**GOOD, **change}, "") == fault


def test_what_must_be_there_is_missed_even_if_it_may_be_null() -> None:
    assert form_of(Whole).fault({key: value for key, value in GOOD.items() if key != "there"}, "") == "it has no there"


def test_a_type_without_bounds_is_no_schema() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Loose(Record):
        number: float

    with pytest.raises(TypeError, match="says nothing of what may stand in a file"):
        form_of(Loose)


def test_files_of_a_trial_are_written_again_as_they_are(tmp_path: Path) -> None:
    folder = store_trial(tmp_path, "a/b", 0, outcomes(0, 0.7, 40), result={"added later": {"x": [1, None]}})
    add_stress(folder)
    before = (folder.path / "result.json").read_bytes()
    folder.finish(folder.result())
    assert (folder.path / "result.json").read_bytes() == before
    config = (folder.path / "config.json").read_bytes()
    Store(tmp_path).prepare(folder.trial(), folder.run())
    assert (folder.path / "config.json").read_bytes() == config
    history = (folder.path / "history.jsonl").read_bytes()
    folder.write_history(folder.history())
    assert (folder.path / "history.jsonl").read_bytes() == history


def test_every_measure_is_a_field_of_the_result() -> None:
    """Where a figure stands is text: a misspelt one would be a column of dashes."""

    def inner(hint: Any) -> list[type[Record]]:
        if isinstance(hint, type) and issubclass(hint, Record):
            return [hint]
        return [record for argument in get_args(hint) for record in inner(argument)]

    for measure in EVERYTHING:
        record: type[Record] | None = Result
        for key in measure.path:
            if record is None:  # inside a mapping, whose names are not known: robustness by kind of change
                assert measure.path[0] == "robustness"
                break
            assert key in {field.name for field in fields(record)}, measure.path
            found = inner(get_type_hints(record, include_extras=True)[key])
            record = found[0] if found else None


def test_every_record_has_a_form() -> None:
    own = [one for one in vars(records).values() if isinstance(one, type) and issubclass(one, Record)]
    assert len(own) > 20
    for record in own:
        assert form_of(record).fault([], "") == "it is not a JSON object"


def test_no_other_room_names_a_trials_files() -> None:
    names = [
        "config.json", "run.json", "result.json", "environment.json", "history.jsonl", "attempts.jsonl", "failure.json",
        "files.json", "predictions.parquet", "stress.parquet", "model.safetensors", "checkpoint.pt", "log.txt",
    ]  # fmt: skip
    source = Path(records.__file__).parents[1]
    found = [
        f"{path.relative_to(source)}: {line.strip()}"
        for path in sorted(source.rglob("*.py"))
        if "store" not in path.parts and "template" not in path.parts
        for line in path.read_text(encoding="utf-8").splitlines()
        if any(f'/ "{name}"' in line or f"/ '{name}'" in line for name in names)
    ]
    assert not found


def test_the_trial_folder_says_where_things_are(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "0123456789abcdef")
    assert folder.id == "0123456789abcdef"
    assert not folder.prepared()
    assert not folder.finished()
    assert {path.parent for path in (folder.best_path, folder.checkpoint_path, folder.log_path, folder.lock_path)} == {
        folder.path
    }
