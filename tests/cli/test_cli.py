"""The real command: exit codes, messages, the whole path on the toy data."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowers_bench.cli.execute import announce
from flowers_bench.contract.host import discover
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request
from flowers_bench.store.folder import Store

TOY = str(Path(__file__).parents[1] / "toy.py")


def test_run_then_rerun_then_read(flowers_bench, tmp_path: Path) -> None:
    first = flowers_bench("--plugin", TOY, "--data", "toy", "--seeds", "2")
    assert first.returncode == 0, first.stderr
    assert "toy/plain" in first.stdout
    assert "toy/short" in first.stdout
    assert "has the highest test accuracy" in first.stdout
    assert "o difference can be claimed" in first.stdout or "better than" in first.stdout
    assert first.stdout.count("flowers-bench report -o report.html") == 1
    assert len(Store(tmp_path / "runs").finished()) == 4

    again = flowers_bench("run", "--plugin", TOY, "--data", "toy", "--seeds", "2")
    assert "4 of 4 trials are finished already" in again.stderr
    assert again.stdout == first.stdout

    rows = list(csv.DictReader(io.StringIO(flowers_bench("leaderboard", "--format", "csv").stdout)))
    assert {row["name"] for row in rows} == {"toy/plain", "toy/short"}
    assert json.loads(flowers_bench("leaderboard", "--format", "json").stdout)[0]["seeds"] == 2
    assert "| toy/plain |" in flowers_bench("leaderboard", "--format", "md").stdout
    listing = flowers_bench("leaderboard", "--trials").stdout.splitlines()
    assert len(listing) == 4
    (pair,) = json.loads(flowers_bench("compare", "toy/plain", "toy/short", "--format", "json").stdout)
    assert pair["seeds"] == [0, 1]
    assert f"{100 * abs(pair['difference']):.1f} points [" in first.stdout.replace("+", "").replace("-", "")
    assert json.loads(flowers_bench("answer", "--format", "json").stdout)[0]["sentences"][0] in first.stdout
    assert flowers_bench("compare").returncode == 0
    shown = flowers_bench("show", listing[0].split()[0][:8])
    assert shown.returncode == 0
    for words in ("val_top1", "Recipe", "test top-1", "Cost", "Environment", "Files in", "Run it again", "--seeds 2"):
        assert words in shown.stdout
    assert "{" not in shown.stdout
    raw = json.loads(flowers_bench("show", listing[0].split()[0][:8], "--format", "json").stdout)
    assert raw["result"]["test"]["top1"] >= 0
    assert len(raw["history"]) == len(Store(tmp_path / "runs").folder(raw["config"]["id"]).history())


def test_a_failed_trial_is_stored_as_a_failure_and_the_rest_runs(flowers_bench, tmp_path: Path) -> None:
    done = flowers_bench("--plugin", f"{TOY},toy/explode,toy/short", "--data", "toy", "--seeds", "1")
    assert done.returncode == 1
    assert "loss is" in done.stderr
    assert "toy/short" in done.stdout
    assert "Not in this answer, because they failed: toy/explode (1 trial)." in done.stdout
    assert not any(line.startswith("toy/explode") for line in done.stdout.splitlines())
    failures = [folder.failure() for folder in Store(tmp_path / "runs").trials() if not folder.finished()]
    assert [f.kind for f in failures if f] == ["TrialFailed"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plugin", "deformible"], "Did you mean 'deformable'"),
        (["--plugin", "deformable/stage9"], "unknown variant"),
        (["--plugin", ","], "--plugin is empty"),
        (["--plugin", "deformable", "--data", "petal"], "Did you mean 'petals'"),
        (["--plugin", "deformable", "--data", "/no/such/folder"], "no such folder"),
        (["--plugin", "deformable", "--set", "lr"], "expected KEY=VALUE"),
        (["--plugin", "deformable", "--set", "lr=1", "--set", "lr=2"], "given twice"),
        (["--plugin", "deformable", "--seeds", "0"], "seeds"),
        (["--plugin", "nothere.py"], "not a plugin file"),
        (["--plugin", "deformable", "--shots", "1,0"], "expected different whole numbers"),
        (["--plugin", "deformable", "--shots", "1,x"], "expected different whole numbers"),
        (["run", "study-small", "--search", "2", "--shard", "1/2"], "--shard cannot divide"),
        (["--plugin", "deformable", "--track", "tensorbord"], "unknown tracker"),
        (["show", "abc", "--format", "xml"], "unknown format"),
        (["leaderboard", "--out", "empty"], "no finished trials"),
        (["leaderboard", "--store", "empty"], "no finished trials"),
        (["answer"], "no finished trials"),
        (["compare"], "no finished trials"),
        (["leaderboard", "--format", "pdf"], "unknown format"),
        (["compare", "deformable", "transfer"], "no finished trials"),
        (["report"], "no finished trials"),
        (["show", "abc"], "no trial"),
        (["describe", "deformible"], "Did you mean"),
        (["nonsense"], "No such command"),
    ],
)  # fmt: skip
def test_mistakes_exit_with_2_and_no_traceback(flowers_bench, tmp_path: Path, arguments: list[str], words: str) -> None:
    done = flowers_bench(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_pretrained_weights_without_network_say_what_to_do(flowers_bench) -> None:
    done = flowers_bench("--plugin", "transfer/k3", "--weights", "pretrained", "--set", "data.species=3")
    assert done.returncode == 2
    for words in ("hf download timm/", "--weights FILE", "--weights none"):
        assert words in done.stderr


def test_misfit_is_refused_before_training(flowers_bench) -> None:
    done = flowers_bench("--plugin", "deformable/stage3", "--backbone", "test_vit", "--set", "data.species=3")
    assert done.returncode == 2
    assert "no 3x3 convolution" in done.stderr


@pytest.mark.parametrize(
    "command", [[], ["run"], ["list"], ["describe"], ["plugins"], ["leaderboard"], ["compare"], ["show"]]
)
def test_every_command_has_help(flowers_bench, command: list[str]) -> None:
    done = flowers_bench(*command, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert "NAME[/VARIANT]" in done.stdout or command != ["run"]


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"]])
def test_help_imports_nothing_slow(command: list[str]) -> None:
    slow = {
        "torch",
        "timm",
        "numpy",
        "scipy",
        "pandas",
        "pyarrow",
        "plotly",
        "jinja2",
        "optuna",
        "ray",
        "fsspec",
        "rich",
    }
    code = (
        f"import sys; sys.argv = ['flowers-bench', *{command}]\nfrom flowers_bench.cli import main\n"
        f"try:\n    main()\nfinally:\n    sys.exit(str(sorted({slow} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Usage" in done.stdout
    assert done.stderr.strip() == "[]"


def test_list_is_quick_and_complete(flowers_bench) -> None:
    done = flowers_bench("list")
    for name in ("deformable", "transfer", "cross-entropy", "standard", "petals", "flowers102", "folder"):
        assert name in done.stdout
    code = "import sys; sys.argv = ['flowers-bench', 'list']\nfrom flowers_bench.cli import main\ntry:\n    main()\nfinally:\n    sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_describe_names_paper_recipe_variants(flowers_bench) -> None:
    done = flowers_bench("describe", "deformable")
    for words in (
        "1703.06211",
        "offset_conv",
        "stage3-pretrained",
        "--set stages=3",
        "--search tries 0.1 to 0.8",
        "lr = ",
    ):
        assert words in done.stdout


def test_broken_plugin_is_named_by_list_and_does_not_stop_a_run(flowers_bench, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("raise RuntimeError('boom')")
    done = flowers_bench("list", "--plugin-file", "bad.py")
    assert "broken plugin bad" in done.stdout
    assert "boom" in done.stdout
    assert "deformable" in done.stdout


def test_a_suite_of_two_datasets_announces_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = discover([Path(TOY)])
    two = [
        Request(["toy/plain"], "toy", cache_dir=tmp_path, seeds=2),
        Request(["knn/k1"], "petals", cache_dir=tmp_path, seeds=1, backbone="test_resnet", weights="none"),
    ]
    announce([item for request in two for item in plan(host, request, [])], "runs")
    errors = " ".join(capsys.readouterr().err.split())
    assert errors.count("toy: 4 classes, 48 train / 32 val / 40 test") == 1
    assert errors.count("petals: ") == 1
    assert "3 trials, store runs" in errors


def test_ctrl_c_finishes_the_epoch_and_the_next_run_continues(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("flowers-bench")
    command = [str(script), "--plugin", f"{TOY},toy/plain", "--data", "toy", "--seeds", "1", "--set", "epochs=60"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/checkpoint.pt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again to continue" in errors
    (folder,) = Store(tmp_path / "runs").trials()
    reached = len(folder.history())
    assert 0 < reached < 60
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0
    assert f"continues after epoch {reached}" in done.stderr


def test_killed_executor_takes_its_trial_along(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("flowers-bench")
    command = [str(script), "--plugin", f"{TOY},toy/plain", "--data", "toy", "--seeds", "1", "--set", "epochs=2000"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/checkpoint.pt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (folder,) = Store(tmp_path / "runs").trials()
    time.sleep(3)
    before = len(folder.history())
    time.sleep(2)
    assert len(folder.history()) == before


def test_seeds_are_added_until_it_is_decided(flowers_bench, tmp_path: Path) -> None:
    """Through the real planner and executor: neighbours against a regression, on few images, which end it."""
    sizes = [f"--set=data.{key}={value}" for key, value in (("species", 6), ("size", 32), ("train", 5), ("val", 5), ("test", 20))]  # fmt: skip
    command = ["--plugin", "knn/k5,linear-probe/logistic", *sizes, "--set=image_size=32", "--decide=1", "--seeds-max=4"]
    done = flowers_bench(*command)
    assert done.returncode == 0, done.stderr
    assert "look 1 of 2, 3 seeds: 0 of 1 pairs open" in done.stderr
    assert "takes more test images, not more seeds" in " ".join(done.stdout.split())
    assert len(Store(tmp_path / "runs").finished()) == 6
    again = flowers_bench(*command)
    assert again.returncode == 0
    assert "look" not in again.stderr
    assert "sequential: look 1 of 2 up to 4 seeds" in " ".join(again.stdout.split())


def test_two_machines_decide_about_a_store_at_a_url(flowers_bench, tmp_path: Path) -> None:
    """What one machine trained and looked at, another that has only the URL goes on from."""
    sizes = [f"--set=data.{key}={value}" for key, value in (("species", 6), ("size", 32), ("train", 5), ("val", 5), ("test", 20))]  # fmt: skip
    url = (tmp_path / "bucket").as_uri()
    command = ["--plugin", "knn/k5,linear-probe/logistic", *sizes, "--set=image_size=32", "--decide=1", "--out", url]
    one, other = (["--data-dir", str(tmp_path / machine)] for machine in ("one", "other"))
    done = flowers_bench(*command, "--seeds-max=4", *one)
    assert done.returncode == 0, done.stderr
    assert "look 1 of 2" in done.stderr
    assert len(list((tmp_path / "bucket").glob("*/result.json"))) == 6
    again = flowers_bench(*command, "--seeds-max=4", *other)
    assert again.returncode == 0, again.stderr
    assert "look" not in again.stderr
    assert "sequential: look 1 of 2 up to 4 seeds" in " ".join(again.stdout.split())
    spent = flowers_bench(*command, "--seeds-max=3", *other)
    assert spent.returncode == 2
    assert "has looked at 3" in spent.stderr
