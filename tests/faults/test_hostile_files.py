"""Files of a trial's own folder that were damaged or planted: named, refused, and never executed."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lives import TOY, live, planned
from PIL import Image
from safetensors.torch import save

from flowers_bench import cli
from flowers_bench.errors import TrialFailed
from flowers_bench.host import discover
from flowers_bench.store import Store, TrialFolder
from flowers_bench.training.loop import Interrupted, Training
from flowers_bench.training.trial import build_parts, load_dataset, run_trial, trial_from_config


class Evil:
    """Unpickled carelessly, it leaves a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> object:
        return (Path.touch, (self.witness,))


def inside_torch(witness: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"trial": "x", "model": Evil(witness)}, stream)
    return stream.getvalue()


Damage = Callable[[bytes, Path], bytes]
PLANTED: dict[str, Damage] = {
    "pickle": lambda whole, witness: pickle.dumps(Evil(witness)),
    "pickle inside torch": lambda whole, witness: inside_torch(witness),
    "cut short": lambda whole, witness: whole[: len(whole) // 2],
    "empty": lambda whole, witness: b"",
    "a huge header": lambda whole, witness: struct.pack("<Q", 1 << 62) + whole[8:],
    "other tensors": lambda whole, witness: save({"a": torch.zeros(3)}),
}
damages = pytest.mark.parametrize("damage", PLANTED.values(), ids=PLANTED)


def ignore(*event: object) -> None:
    """Nobody listens."""


def run_one_epoch(folder: TrialFolder) -> None:
    trial, host = trial_from_config(folder.config()), discover([TOY])
    dataset = load_dataset(host, trial, folder.run())
    parts, _ = build_parts(host, trial, folder.run(), torch.device("cpu"))
    with pytest.raises(Interrupted):
        Training(trial, parts, dataset.train, dataset.val, folder.path, ignore, lambda: True).run(ignore)


@pytest.mark.parametrize("name", ["checkpoint.pt", "model.safetensors"])
@damages
def test_a_trial_is_not_continued_from_a_planted_file(tmp_path: Path, name: str, damage: Damage) -> None:
    if name == "model.safetensors" and damage is PLANTED["other tensors"]:
        pytest.skip("a whole file of other tensors is found out when it is used, at the end")
    item = planned(tmp_path, "toy/plain")
    folder = Store(tmp_path / "runs").prepare(item.trial, {**item.run, "threads": 1, "command": []})
    run_one_epoch(folder)
    file = folder.path / name
    file.write_bytes(damage(file.read_bytes(), tmp_path / "witness"))
    with pytest.raises(TrialFailed, match=f"{name} cannot be used"):
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
    monkeypatch.setattr("sys.argv", asked)
    try:
        weights.write_bytes(damage(whole, tmp_path / "witness"))
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        weights.write_bytes(whole)
    assert end.value.code == 2
    assert "model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "witness").exists()
