"""A built-in part whose numbers change raises its revision: otherwise trials of before and after would have one id."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fingerprints
import pytest
from fingerprints import Fingerprint, differences, fingerprint, stored

from flowers_bench import ModelContext
from flowers_bench.contract.host import Host, discover


@functools.cache
def host() -> Host:
    return discover(only_built_in=True)


def test_every_built_in_part_computes_what_it_did_or_has_another_revision() -> None:
    found = differences(stored(), fingerprints.fingerprints(host()))
    assert not found, "\n".join(found)


def test_each_value_takes_part() -> None:
    for name, one in stored().items():
        for case, numbers in one.values.items():
            for place in range(len(numbers)):
                other = [*numbers]
                other[place] += max(map(abs, numbers)) / 50
                changed = replace(one, values={**one.values, case: other})
                assert not any(numbers) or differences({name: one}, {name: changed}), (name, case, place)


def test_rounding_is_no_change() -> None:
    for name, one in stored().items():
        rounded = {case: [value * (1 + 1e-4) for value in numbers] for case, numbers in one.values.items()}
        assert not differences({name: one}, {name: replace(one, values=rounded)})


def test_a_loss_that_is_changed_is_told_to_raise_its_revision() -> None:
    loss = host().losses["focal"].value

    def build(context: Any) -> Callable[[Any, Any], Any]:
        original = loss.build(context)
        return lambda output, target: original(output, target) * 1.01

    changed = fingerprint(replace(loss, build=build))
    (said,) = differences({"loss focal": stored()["loss focal"]}, {"loss focal": changed})
    assert "loss focal computes other numbers than before (default options, gamma=0.0, gamma=5.0)" in said
    assert "still has revision 1" in said
    assert "Raise `revision` where it is registered, then: python tests/plugins/fingerprints.py" in said


def test_initial_weights_of_another_size_are_a_change() -> None:
    """What revision 2 of `lora` was: A began three times as wide."""
    lora = host().models["lora"].value

    def build(context: ModelContext) -> Any:
        model = lora.build(context)
        for name, parameter in model.named_parameters():
            if name.endswith(".a"):
                parameter.data *= 3**0.5
        return model

    before = stored()["model lora"]
    (said,) = differences({"model lora": before}, {"model lora": fingerprint(replace(lora, build=build))})
    assert "model lora computes other numbers than before (test_vit" in said
    (raised,) = differences({"model lora": before}, {"model lora": replace(before, revision=3)})
    assert raised == "model lora has revision 3, the file 2: python tests/plugins/fingerprints.py"


def test_new_and_gone_parts_are_said() -> None:
    one = Fingerprint(1, {"": [1.0]}, {})
    assert differences({"loss a": one}, {"loss b": one}) == [
        f"loss a is gone: {fingerprints.COMMAND}",
        f"loss b is new: {fingerprints.COMMAND}",
    ]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fingerprints, "FILE", tmp_path / "fingerprints.json")
    return tmp_path / "fingerprints.json"


def test_the_command_writes_what_is_new_and_refuses_what_moved(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = {"loss a": Fingerprint(1, {"": [1.0, 2.0]}, {}), "model b": Fingerprint(2, {"": [3.0]}, {"": [0.1]})}
    monkeypatch.setattr(fingerprints, "fingerprints", lambda host: now)
    assert fingerprints.write() == 0
    written = file.read_text()
    assert stored() == now
    now["loss a"] = Fingerprint(1, {"": [1.0, 2.0001]}, {})
    assert fingerprints.write() == 0
    assert file.read_text() == written  # rounding
    now["loss a"] = Fingerprint(1, {"": [1.0, 2.1]}, {})
    assert fingerprints.write() == 1
    assert "loss a computes other numbers" in capsys.readouterr().out
    assert file.read_text() == written
    now["loss a"] = Fingerprint(2, {"": [1.0, 2.1]}, {})
    assert fingerprints.write() == 0
    assert stored() == now
