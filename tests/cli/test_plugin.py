"""A plugin author's commands: `plugin new`, `plugin check`, `plugins`, `--no-plugin`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from environments import own_environment

import flowers_bench.testing
from flowers_bench.cli import plugin as command
from flowers_bench.cli.catalogue import print_plugins
from flowers_bench.contract.host import NO_PLUGIN, discover, switch_off
from flowers_bench.plan.request import Request
from flowers_bench.plan.suites import plan_suite, read_suite
from flowers_bench.testing import checks
from flowers_bench.util.errors import UsageError


def test_new_writes_a_package_that_loads_under_its_own_name(tmp_path: Path) -> None:
    command.new("second-thought", tmp_path / "deep" / "er")
    folder = tmp_path / "deep" / "er" / "second-thought"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "pyproject.toml", "README.md", "second_thought.py", "tests/test_second_thought.py", ".github/workflows/test.yml",
    }  # fmt: skip
    assert not [path for path in folder.rglob("*") if path.is_file() and "my-technique" in path.read_text()]
    assert [path.name for path in folder.parent.iterdir()] == ["second-thought"]
    host = discover([folder / "second_thought.py"])
    assert host.plugins["second_thought"].error is None
    assert "second-thought" in host.techniques


def test_what_new_writes_passes_the_kit(tmp_path: Path) -> None:
    command.new("third-thought", tmp_path)
    for check in checks(tmp_path / "third-thought" / "third_thought.py"):
        if check.label == "third-thought/full" and check.name not in (
            "overfits one batch",
            "runs in a process of its own",
            "two ranks agree with one",  # all in the slow test of the whole package
        ):
            check()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Mine", "lower-case"), ("-mine", "lower-case"), ("a/b", "lower-case"), ("../out", "lower-case"), ("a" * 61, "lower-case"),
        ("ünique", "lower-case"), ("deformable", "taken by an installed"), ("cross-entropy", "taken by an installed"),
        ("json", "called json"), ("class", "called class"), ("tests", "called tests"),
    ],
)  # fmt: skip
def test_new_refuses_names_that_cannot_work(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        command.new(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_new_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        command.new("mine", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        command.new("mine", tmp_path / "file")


def test_check_says_what_failed_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.py").write_text("raise RuntimeError('boom')")
    assert command.check(str(tmp_path / "bad.py"), None, {}, None) == 1
    told = capsys.readouterr().out
    assert "FAILED  bad: loads" in told
    assert "boom" in told
    assert "1 check passed, 1 failed" in told


def test_check_warns_of_what_a_later_release_drops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "old.py"
    file.write_text(
        "from flowers_bench import Loss, hookimpl\n"
        "def build(context):\n    from flowers_bench.nn import Residual\n    import torch.nn.functional as F\n"
        "    return lambda output, target: F.cross_entropy(output.logits, target)\n"
        "@hookimpl\ndef register_losses():\n    return [Loss('old', 'a loss', frozenset({'logits'}), build=build)]\n"
    )
    wanted = ("loads", "can be planned", "loss is a finite scalar", "loss says what it needs")
    monkeypatch.setattr(
        flowers_bench.testing, "checks", lambda *a, **how: [c for c in checks(*a, **how) if c.name in wanted]
    )
    assert command.check(str(file), None, {}, None) == 0
    told = capsys.readouterr().out
    assert "WARNING old: loads\n        plugin 'old' states no FLOWERS_BENCH_API" in told
    assert (
        f"flowers-bench 0.3 drops it: copy it into your plugin, from flowers_bench_plugins/multiscale_vgg/layers.py. ({file}, line 3)"
        in told
    )
    assert told.count("WARNING") == 2  # the build is called by two checks, and said once
    assert "4 checks passed, 0 failed, 2 warnings" in told


def test_check_tells_where_a_plugin_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.py").write_text(
        "from flowers_bench import Loss, hookimpl\n"
        "def build(context):\n    raise KeyError('inside')\n"
        "@hookimpl\ndef register_losses():\n    return [Loss('bad', 'a loss', frozenset({'logits'}), build=build)]\n"
    )
    wanted = ("can be planned", "loss is a finite scalar")
    monkeypatch.setattr(
        flowers_bench.testing, "checks", lambda *a, **how: [c for c in checks(*a, **how) if c.name in wanted]
    )
    assert command.check(str(tmp_path / "bad.py"), None, {}, None) == 1
    told = capsys.readouterr().out
    assert "ok      loss bad/alone: can be planned" in told
    assert f"KeyError: 'inside' ({tmp_path / 'bad.py'}, line 3)" in told


def package(folder: Path, distribution: str, name: str, source: str) -> None:
    """An installed package, as importlib sees one, with one plugin."""
    info = folder / f"{distribution}-2.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 2.5\n")
    module = f"module_of_{distribution}"
    (info / "entry_points.txt").write_text(f"[flowers_bench]\n{name} = {module}\n")
    (folder / f"{module}.py").write_text(source)


LOSS = (
    "from flowers_bench import Loss, hookimpl\n"
    "@hookimpl\ndef register_losses():\n    return [Loss('their-loss', 'a loss', build=lambda context: None)]\n"
)


def test_plugins_lists_name_version_origin_status_and_hooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package(tmp_path, "theirs", "their-plugin", LOSS)
    package(tmp_path, "clash", "deformable", LOSS)
    package(tmp_path, "older", "older-plugin", "FLOWERS_BENCH_API = 0\n" + LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    print_plugins([])
    told = capsys.readouterr().out
    lines = {line.split("  ")[0]: line for line in told.splitlines()}
    assert "plugin API 1 to 2 (docs/plugin-api-policy.md)" in lines
    assert lines["their-plugin"].split() == ["their-plugin", "2.5", "-", "theirs", "ok", "register_losses"]
    assert lines["deformable"].split()[2] == "2"
    advice = "once its checks pass without other warnings, state FLOWERS_BENCH_API = 2."
    assert (
        f"plugin 'their-plugin' states no FLOWERS_BENCH_API, which is deprecated, and flowers-bench 0.3 drops it: {advice}"
        in told
    )
    assert told.count("FLOWERS_BENCH_API = 2") == 1
    assert "register_techniques" in lines["deformable"]
    assert "BROKEN" in lines["deformable of clash"]
    assert "taken by a plugin of flowers-bench" in lines["deformable of clash"]
    assert "is written for plugin API 0; this flowers-bench accepts 1 to 2" in lines["older-plugin"]


def test_a_plugin_that_is_switched_off_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "imported"
    package(tmp_path, "theirs", "their-plugin", f"open({str(note)!r}, 'w')\n" + LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    for value in ("their-plugin", "all", "other, their-plugin"):
        monkeypatch.setenv(NO_PLUGIN, value)
        host = discover()
        assert host.plugins["their-plugin"].off
        assert "their-loss" not in host.losses
        assert "deformable" in host.techniques
    assert not note.exists()
    with pytest.raises(UsageError, match="switched off"):
        host.find("loss", host.losses, "their-plugin")


def test_a_suite_that_needs_a_plugin_that_is_switched_off_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, "theirs", "their-plugin", LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(NO_PLUGIN, "their-plugin")
    (tmp_path / "suite.toml").write_text(
        'summary = "x"\n[[trials]]\ntechnique = "transfer/scratch"\ndata = "petals"\nloss = "their-loss"\n'
    )
    suite = read_suite(str(tmp_path / "suite.toml"))
    with pytest.raises(UsageError, match=r"their-plugin \(switched off by --no-plugin"):
        plan_suite(discover(), suite, Request([], "petals", tmp_path, 1), [])


def test_switching_off_by_name_reaches_the_environment_of_the_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, "theirs", "their-plugin", LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(NO_PLUGIN, "other")
    for name in ("their-plugn", "deformable"):
        with pytest.raises(UsageError, match="their-plugin"):
            switch_off([name])
    switch_off(["their-plugin"])
    assert os.environ[NO_PLUGIN] == "other,their-plugin"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_new_package_installs_passes_its_tests_and_runs(tmp_path: Path) -> None:
    own = own_environment(tmp_path)
    own("flowers-bench plugin new mytechnique")
    own("pip install './mytechnique[test]'")
    assert " passed" in own("pytest -q mytechnique")
    tiny = "--set data.species=3 --set data.size=32 --set image_size=32 --set epochs=1"
    told = own(f"flowers-bench --plugin mytechnique --seeds 1 {tiny}")
    assert "mytechnique/full" in told
    assert "mytechnique/plain" in told
    assert "is taken by an installed plugin" in own("flowers-bench plugin new mytechnique --into other", code=2)
    assert own("flowers-bench plugin check mytechnique/full").endswith("20 checks passed, 0 failed\n")
    assert "unknown plugin" in own("flowers-bench plugin check mytechnik", code=2)
