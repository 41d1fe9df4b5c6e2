"""Files of a trial's own folder that were damaged or planted: named, refused, and never executed."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lives import TOY, ignore, live, planned, run_once_interrupted
from PIL import Image
from planted import Planted
from safetensors.torch import save

from flowers_bench import cli
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.training.process import Interrupted
from flowers_bench.training.trial import run_trial
from flowers_bench.util.errors import TrialDisturbed


def inside_torch(witness: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"trial": "x", "model": Planted(witness)}, stream)
    return stream.getvalue()


def of_another_version() -> bytes:
    stream = io.BytesIO()
    torch.save({"format": 99, "weights": {"a": torch.zeros(3)}}, stream)
    return stream.getvalue()


Damage = Callable[[bytes, Path], bytes]
PLANTED: dict[str, Damage] = {
    "pickle": lambda whole, witness: pickle.dumps(Planted(witness)),
    "pickle inside torch": lambda whole, witness: inside_torch(witness),
    "cut short": lambda whole, witness: whole[: len(whole) // 2],
    "empty": lambda whole, witness: b"",
    "a huge header": lambda whole, witness: struct.pack("<Q", 1 << 62) + whole[8:],
    "another version": lambda whole, witness: of_another_version(),
    "other tensors": lambda whole, witness: save({"a": torch.zeros(3)}),
}
damages = pytest.mark.parametrize("damage", PLANTED.values(), ids=PLANTED)


@pytest.mark.parametrize("name", ["checkpoint.pt", "model.safetensors"])
@damages
def test_a_trial_is_not_continued_from_a_planted_file(tmp_path: Path, name: str, damage: Damage) -> None:
    item = planned(tmp_path, "toy/plain")
    folder = Store(tmp_path / "runs").prepare(item.trial, replace(item.run, threads=1, command=[]), item.labels)
    with pytest.raises(Interrupted):
        run_once_interrupted(folder)
    file = folder.path / name
    file.write_bytes(damage(file.read_bytes(), tmp_path / "witness"))
    with pytest.raises(TrialDisturbed, match=f"{name} cannot be used"):
        run_trial(folder, ignore)
    assert not (tmp_path / "witness").exists()
    file.unlink()  # as the message says
    run_trial(folder, ignore)
    assert folder.finished()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    return live(tmp_path_factory.mktemp("trained"), "toy/short")


@damages
def test_a_planted_model_predicts_nothing(
    trained: TrialFolder,
    tmp_path: Path,
    damage: Damage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "image.png")
    weights = trained.path / "model.safetensors"
    whole = weights.read_bytes()
    asked = ["flowers-bench", "predict", trained.id, str(tmp_path / "image.png"), "--out", str(trained.path.parent)]
    asked += ["--plugin", str(TOY)]
    monkeypatch.setattr("sys.argv", asked)
    try:
        weights.write_bytes(damage(whole, tmp_path / "witness"))
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        weights.write_bytes(whole)
    assert end.value.code == 1
    assert "model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "witness").exists()
