"""`--device`: what is asked for is used or refused, and nothing is taken in its stead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowers_bench.ops._build import has_kernel
from flowers_bench.training.process import choose_device
from flowers_bench.util.errors import UsageError


@pytest.fixture
def nothing_but_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("cuda", "mps", "asked", "expected"),
    [
        (False, False, None, "cpu"),
        (True, False, None, "cuda"),
        (False, True, None, "cpu"),
        (True, True, "cpu", "cpu"),
        (True, True, "cuda", "cuda"),
        (False, True, "mps", "mps"),
    ],
)
def test_the_device_that_is_asked_for_is_used(
    cuda: bool, mps: bool, asked: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device(asked).type == expected


@pytest.mark.usefixtures("nothing_but_a_processor")
@pytest.mark.parametrize("asked", ["cuda", "mps"])
def test_one_that_is_not_there_is_refused(asked: str) -> None:
    with pytest.raises(UsageError, match=rf"--device {asked}: .* finds none here. Choose one of: cpu\."):
        choose_device(asked)


def test_what_is_no_device_is_refused() -> None:
    with pytest.raises(UsageError, match="cpu, cuda, mps"):
        choose_device("gpu")


@pytest.mark.parametrize("asked", ["mps", "gpu"])
def test_the_command_says_so_before_anything_is_loaded(asked: str, flowers_bench, tmp_path: Path) -> None:
    if asked == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    done = flowers_bench("--plugin", "knn", "--device", asked, "--store", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert asked in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_mps_has_no_kernel_so_that_the_operator_is_its_composite_there() -> None:
    assert not has_kernel("mps")
