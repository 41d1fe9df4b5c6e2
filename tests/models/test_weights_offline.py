"""Without a network: said at once, before anything is drawn or trained, with what to do instead."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from flowers_bench import UsageError
from flowers_bench.contract.host import discover
from flowers_bench.models.weights.source import resolve_weights
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request

HOST = discover([])
#: Every variant that starts from pretrained weights by default; the fast tests try one of each technique.
PRETRAINED = [
    f"{name}/{variant}"
    for name, entry in HOST.techniques.items()
    for variant, value in entry.value.variants.items()
    if (value.weights or entry.value.weights) == "pretrained"
]
FIRST = {label.partition("/")[0]: label for label in reversed(PRETRAINED)}


@pytest.fixture
def unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and a hub at a port of this machine where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_most_techniques_start_from_pretrained_weights() -> None:
    assert {"transfer/k3", "knn/k5", "lora/qv", "linear-probe/head", "prompt-tuning/deep"} <= set(PRETRAINED)


@pytest.mark.parametrize(
    "label", [label if label in FIRST.values() else pytest.param(label, marks=pytest.mark.slow) for label in PRETRAINED]
)
@pytest.mark.usefixtures("unreachable")
def test_no_technique_waits_for_a_network_on_drawn_flowers(tmp_path: Path, label: str) -> None:
    """Asked for timm's weights: those of drawn flowers would be there."""
    request = Request([label], "petals", tmp_path / "cache", seeds=1, weights="pretrained")
    plan_nothing(request)  # what is imported and built first, is there
    started = time.perf_counter()
    message = plan_nothing(request)
    assert time.perf_counter() - started < 2
    if "petals_vit" in message:  # it is not one of timm's
        assert (
            message == "--weights pretrained: timm has no such weights for petals_vit. Valid: none, petals, or a file."
        )
        return
    assert message.startswith(f"{label}: weights ")
    assert "127.0.0.1: [Errno 111] Connection refused" in message
    for advice in ("--weights none", "--weights FILE", "hf download timm/", "models--timm--", "--plugin "):
        assert advice in message
    assert not (tmp_path / "cache").exists()  # nothing was drawn


@pytest.mark.usefixtures("unreachable")
def test_drawn_flowers_have_weights_that_need_no_network(tmp_path: Path) -> None:
    small = {"data.species": "6", "data.train": "2", "data.val": "2", "data.test": "2", "batch_size": "8"}
    labels = [label for label in FIRST.values() if label.split("/")[0] in ("transfer", "knn", "mixing", "triplet")]
    request = Request(labels, "petals", tmp_path / "cache", seeds=1, settings=small)
    assert {item.trial.weights["name"] for item in plan(HOST, request, [])} == {"petals/test_resnet"}


def plan_nothing(request: Request) -> str:
    with pytest.raises(UsageError) as refused:
        plan(HOST, request, [])
    return str(refused.value)


@pytest.mark.usefixtures("unreachable")
def test_a_network_that_swallows_everything_is_given_up_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    def swallow(*_: object, **__: object) -> None:
        time.sleep(9)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", swallow)
    started = time.perf_counter()
    with pytest.raises(UsageError, match="no answer within seconds"):
        resolve_weights("pretrained", "test_resnet")
    assert time.perf_counter() - started < 8


@pytest.mark.usefixtures("unreachable")
def test_offline_by_wish_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "create_connection", None)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        resolve_weights("pretrained", "test_resnet")


@pytest.mark.usefixtures("unreachable")
def test_a_proxy_is_asked_in_place_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(UsageError, match=r"proxy\.invalid"):
        resolve_weights("pretrained", "test_resnet")


def test_the_command_ends_with_2_and_no_trial(flowers_bench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = flowers_bench("--plugin", "transfer", "--weights", "pretrained", HF_HOME=str(tmp_path / "hub"))
    assert done.returncode == 2
    assert "--plugin transfer/scratch" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
