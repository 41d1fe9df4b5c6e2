"""Ways to damage one file of a trial, from a seed: bytes, JSON, tables, and things that are no file."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

Damage = Callable[[Path, random.Random], None]
DEEP = "[" * 700 + "]" * 700


def replaced(make: Callable[[Path], object]) -> Damage:
    """Something else in the file's place."""

    def damage(path: Path, rng: random.Random) -> None:
        path.unlink()
        make(path)

    return damage


def edited(change: Callable[[bytes, random.Random], bytes]) -> Damage:
    return lambda path, rng: (path.write_bytes(change(path.read_bytes(), rng)), None)[1]


def _cut(whole: bytes, rng: random.Random) -> bytes:
    return whole[: rng.randrange(len(whole))]


def _flipped(whole: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(whole))
    return whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :]


def _zeroed(whole: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(whole))
    stop = min(len(whole), start + rng.randrange(1, 400))
    return whole[:start] + b"\0" * (stop - start) + whole[stop:]


def _without_a_part(whole: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(whole))
    return whole[:start] + whole[start + rng.randrange(1, 50) :]


def _twice(whole: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(whole))
    return whole + whole[start:]


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 5 << 30)


#: Of any file.
ANY: dict[str, Damage] = {
    "pipe": replaced(os.mkfifo),
    "folder": replaced(Path.mkdir),
    "link to nothing": replaced(lambda path: path.symlink_to("nowhere")),
    "link to a device": replaced(lambda path: path.symlink_to("/dev/zero")),
    "link to another file": replaced(lambda path: path.symlink_to(Path(__file__))),
    "five gigabytes of nothing": replaced(_sparse),
    "empty": edited(lambda whole, rng: b""),
    "cut short": edited(_cut),
    "a bit flipped": edited(_flipped),
    "a part zeroed": edited(_zeroed),
    "a part missing": edited(_without_a_part),
    "a part twice": edited(_twice),
    "noise": edited(lambda whole, rng: rng.randbytes(len(whole))),
}
#: Of these nothing can be left to read.
USELESS = ("pipe", "folder", "link to nothing", "link to a device", "link to another file", "five gigabytes of nothing")

#: What may stand in the place of a value of a JSON file, as it is written.
TOKENS = [
    "null", "true", "-1", "0.5", "1e400", "-1e400", "1.7e308", "NaN", "Infinity", "-Infinity", "9" * 4001, str(2**70), "1e-320",
    '"text"', '""', '"\\ud800"', '"a\\udfffb"', '"\\u0000"', '"../../../etc/passwd"', '"' + "x" * 2_000_000 + '"',
    "[]", "{}", "[null]", '{"a": 1, "a": 2}', DEEP, '{"x":' * 700 + "1" + "}" * 700,
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands inside nested objects and lists."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [spot for key, inner in pairs for spot in ((*path, key), *places(inner, (*path, key)))]


def with_token(record: Any, place: tuple[Any, ...], token: str) -> str:
    """The JSON text of a record with other text in the place of one value."""
    copy = json.loads(json.dumps(record))
    inner = copy
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = "@@here@@"
    return json.dumps(copy).replace('"@@here@@"', token)


def without(record: Any, place: tuple[Any, ...]) -> str:
    """The JSON text of a record that lacks one value."""
    copy = json.loads(json.dumps(record))
    inner = copy
    for step in place[:-1]:
        inner = inner[step]
    del inner[place[-1]]
    return json.dumps(copy)


def in_lines(change: Callable[[Any, random.Random], str]) -> Damage:
    """A change of the record in a JSON file, or of one line of a file of JSON lines."""

    def damage(path: Path, rng: random.Random) -> None:
        text = path.read_text()
        lines = text.splitlines() if path.suffix == ".jsonl" else [text]
        line = rng.randrange(len(lines))
        lines[line] = change(json.loads(lines[line]), rng)
        path.write_text("\n".join(lines) + "\n")

    return damage


RECORD: dict[str, Damage] = {
    "another value": in_lines(lambda record, rng: with_token(record, rng.choice(places(record)), rng.choice(TOKENS))),
    "a field gone": in_lines(lambda record, rng: without(record, rng.choice(places(record)))),
    "a value of another place": in_lines(
        lambda record, rng: with_token(record, rng.choice(places(record)), json.dumps(_value(record, rng)))
    ),
    "a list around it": in_lines(lambda record, rng: json.dumps([record])),
    "a mark in front": edited(lambda whole, rng: b"\xef\xbb\xbf" + whole),
    "not UTF-8": edited(lambda whole, rng: whole.replace(b'"', b'"\xff', 1)),
    "a name twice": edited(
        lambda whole, rng: whole.replace(b"{", b'{"seed": 1, "seed": 1, "epoch": 1, "epoch": 1, ', 1)
    ),
}


def _value(record: Any, rng: random.Random) -> Any:
    inner = record
    for step in rng.choice(places(record)):
        inner = inner[step]
    return inner


def in_table(change: Callable[[pd.DataFrame, random.Random], pd.DataFrame | pa.Table]) -> Damage:
    """A change of a Parquet file's rows or columns."""

    def damage(path: Path, rng: random.Random) -> None:
        changed = change(pd.read_parquet(path), rng)
        table = changed if isinstance(changed, pa.Table) else pa.Table.from_pandas(changed, preserve_index=False)
        pq.write_table(table, path)

    return damage


def _set(column: str, value: Any) -> Callable[[pd.DataFrame, random.Random], pd.DataFrame]:
    def change(table: pd.DataFrame, rng: random.Random) -> pd.DataFrame:
        values = table[column].astype(object).tolist()
        values[rng.randrange(len(values))] = value
        return table.assign(**{column: pd.Series(values, dtype=None if value is not None else object)})

    return change


TABLE: dict[str, Damage] = {
    "no rows": in_table(lambda table, rng: table.iloc[:0]),
    "a row gone": in_table(lambda table, rng: table.drop(index=rng.randrange(len(table)))),
    "a row twice": in_table(lambda table, rng: pd.concat([table, table.iloc[[rng.randrange(len(table))]]])),
    "a key of another row": in_table(lambda table, rng: _set("key", table["key"].iloc[-1])(table.iloc[:-1], rng)),
    "a key that is new": in_table(_set("key", "test/none")),
    "a key that is null": in_table(_set("key", None)),
    "keys that are numbers": in_table(lambda table, rng: table.assign(key=range(len(table)))),
    "no keys": in_table(lambda table, rng: table.drop(columns="key")),
    "two columns of one name": in_table(
        lambda table, rng: pa.Table.from_pandas(table, preserve_index=False).append_column(
            "key", pa.array(["x"] * len(table))
        )
    ),
}


def _long(table: pd.DataFrame) -> list[str]:
    return [f"{key}{'x' * 100_000}" for key in table["key"]]


PREDICTIONS: dict[str, Damage] = {
    "a label below": in_table(_set("label", -1)),
    "a label above": in_table(_set("label", 4)),
    "a label far above": in_table(_set("label", 2**62)),
    "a label that int64 does not have": in_table(
        lambda table, rng: _set("label", 2**63 + 5)(table, rng).astype({"label": np.uint64})
    ),
    "a label that is null": in_table(_set("label", None)),
    "labels that are text": in_table(lambda table, rng: table.assign(label=table["label"].astype(str))),
    "labels that are fractions": in_table(lambda table, rng: table.assign(label=table["label"] + 0.5)),
    "labels that are true or false": in_table(lambda table, rng: table.assign(label=table["label"] > 1)),
    "another split": in_table(_set("split", "train")),
    "one split only": in_table(lambda table, rng: table.assign(split="test")),
    "logits too short": in_table(_set("logits", np.zeros(3, np.float32))),
    "logits too long": in_table(_set("logits", np.zeros(5, np.float32))),
    "no logits in a row": in_table(_set("logits", np.zeros(0, np.float32))),
    "logits that are null": in_table(_set("logits", None)),
    "a logit that is null": in_table(_set("logits", [0.0, None, 1.0, 2.0])),
    "a logit that is no number": in_table(_set("logits", np.array([0, np.nan, 1, 2], np.float32))),
    "a logit without end": in_table(_set("logits", np.array([0, np.inf, 1, 2], np.float32))),
    "logits whose squares are infinite": in_table(
        lambda table, rng: table.assign(logits=[np.array([1.7e308, -1.7e308, 1, 2])] * len(table))
    ),
    "shares of a figure that is not there": in_table(lambda table, rng: table.assign(recall_at_1=0.5, map_at_r=0.5)),
    "keys that unpack to gigabytes": in_table(lambda table, rng: table.assign(key=_long(table))),
    "logits that are text": in_table(lambda table, rng: table.assign(logits=[["a"] * 4] * len(table))),
    "logits that are whole": in_table(lambda table, rng: table.assign(logits=[[1, 2, 3, 4]] * len(table))),
    "logits that are one number": in_table(lambda table, rng: table.assign(logits=1.0)),
    "no logits": in_table(lambda table, rng: table.drop(columns="logits")),
    "no labels": in_table(lambda table, rng: table.drop(columns="label")),
    "no splits": in_table(lambda table, rng: table.drop(columns="split")),
}
STRESS: dict[str, Damage] = {
    "a level gone": in_table(lambda table, rng: table[table["level"] != 2]),
    "a level that is new": in_table(_set("level", 3)),
    "a kind that is new": in_table(_set("kind", "fog")),
    "correct as numbers": in_table(lambda table, rng: table.assign(correct=table["correct"].astype(int))),
    "correct that is null": in_table(_set("correct", None)),
    "no levels": in_table(lambda table, rng: table.drop(columns="level")),
    "a million rows": in_table(lambda table, rng: table.iloc[np.zeros(1_000_000, int)]),
}


def damages(name: str) -> dict[str, Damage]:
    """What may happen to the file of that name."""
    if name == "predictions.parquet":
        return {**ANY, **TABLE, **PREDICTIONS}
    if name == "stress.parquet":
        return {**ANY, **TABLE, **STRESS}
    return {**ANY, **RECORD}


def certain(name: str) -> dict[str, Damage]:
    """Those of which nobody could make any use of the file."""
    if name.endswith(".parquet"):
        return {key: damage for key, damage in damages(name).items() if key in USELESS or key not in ANY}
    kept = (*USELESS, "noise", "a list around it", "a mark in front", "not UTF-8", "a name twice")
    return {key: damage for key, damage in damages(name).items() if key in kept}
