"""Discovery: what works is found, what is broken is named and skipped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import flowers_bench.contract.host
from flowers_bench.contract.host import Host, discover
from flowers_bench.util.errors import UsageError

HEAD = "from flowers_bench import *\nfrom flowers_bench import hookimpl\n"
GOOD = HEAD + "@hookimpl\ndef register_losses():\n    return [Loss('mine', 'a loss', build=lambda context: None)]\n"


def host_with(tmp_path: Path, **sources: str) -> Host:
    files = []
    for name, source in sources.items():
        files.append(tmp_path / f"{name}.py")
        files[-1].write_text(source)
    return discover(files)


def test_built_in_techniques_are_found_by_entry_point() -> None:
    host = discover()
    assert {"deformable", "transfer"} <= set(host.techniques)
    assert not list(host.broken())


def test_file_plugin_registers_its_parts(tmp_path: Path) -> None:
    host = host_with(tmp_path, good=GOOD)
    assert host.losses["mine"].plugin == "good"
    assert host.plugins["good"].hooks == ["register_losses"]
    assert host.plugins["good"].code.startswith("sha256:")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise RuntimeError('boom')", ["RuntimeError", "boom"]),
        ("import sys; sys.exit(3)", ["SystemExit", "3"]),
        ("import not_there_at_all", ["ModuleNotFoundError", "not_there_at_all"]),
        ("x = 1", ["no hook implementations"]),
        (HEAD + "@hookimpl\ndef register_loses():\n    return []", ["register_loses", "register_losses"]),
        (HEAD + "@hookimpl\ndef register_losses():\n    return 7", ["register_losses", "list of Loss", "7"]),
        (HEAD + "@hookimpl\ndef register_losses():\n    return ['x']", ["list of Loss"]),
        (HEAD + "@hookimpl\ndef register_losses():\n    raise KeyError('no')", ["KeyError", "no"]),
        (HEAD + "@hookimpl\ndef register_losses(wrong):\n    return []", ["wrong"]),
        (GOOD.replace("'mine'", "'cross-entropy'"), ["cross-entropy", "already registered", "common"]),
    ],
)
def test_broken_plugin_is_named_and_the_rest_works(tmp_path: Path, source: str, words: list[str]) -> None:
    host = host_with(tmp_path, broken=source, good=GOOD)
    error = host.plugins["broken"].error
    assert error is not None
    for word in words:
        assert word in error
    assert "mine" in host.losses
    assert "deformable" in host.techniques


def test_a_broken_plugin_leaves_nothing_behind(tmp_path: Path) -> None:
    source = GOOD + "@hookimpl\ndef register_models():\n    raise ValueError('late')\n"
    assert "mine" not in host_with(tmp_path, broken=source).losses


def test_asking_for_a_broken_plugin_says_why_it_was_skipped(tmp_path: Path) -> None:
    host = host_with(tmp_path, broken="raise RuntimeError('boom')")
    with pytest.raises(UsageError, match="boom"):
        host.find("technique", host.techniques, "broken")


def test_misspelt_name_gets_a_suggestion() -> None:
    host = discover()
    with pytest.raises(UsageError, match="Did you mean 'deformable'"):
        host.find("technique", host.techniques, "deformible")


def test_an_observer_that_raises_does_not_stop_the_others(tmp_path: Path) -> None:
    note = tmp_path / "note"
    bad = HEAD + "@hookimpl\ndef trial_started(trial):\n    raise RuntimeError('observer')\n"
    good = HEAD + f"@hookimpl\ndef trial_started(trial):\n    open({str(note)!r}, 'w').write(trial['id'])\n"
    failures = host_with(tmp_path, abad=bad, bgood=good).notify("trial_started", trial={"id": "t1"})
    assert len(failures) == 1
    assert "abad" in failures[0]
    assert note.read_text() == "t1"


def test_discovery_does_not_import_torch() -> None:
    code = "import sys; from flowers_bench.contract.host import discover; discover(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path / "other"):
        (folder / "same.py").write_text(GOOD)
    with pytest.raises(UsageError, match="two plugins"):
        discover([tmp_path / "same.py", tmp_path / "other" / "same.py"])


def test_what_a_plugin_prints_stays_out_of_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host_with(tmp_path, noisy="print('garbage')\n" + GOOD)
    assert "garbage" not in capsys.readouterr().out


@pytest.mark.parametrize("where", ["import", "hook"])
def test_a_plugin_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(flowers_bench.contract.host, "IMPORT_TIMEOUT", 0.3)
    wait = "\nimport time\ntry:\n    time.sleep(60)\nexcept Exception:\n    pass\n"
    inside = wait.replace("\n", "\n    ")
    source = GOOD + wait if where == "import" else GOOD.replace("    return", inside + "\n    return")
    started = time.monotonic()
    host = host_with(tmp_path, broken=source, good=GOOD)
    assert time.monotonic() - started < 10
    assert "not ready after 0.3 s" in str(host.plugins["broken"].error)
    assert "mine" in host.losses


def test_the_time_limit_leaves_others_timers_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGALRM)
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    host_with(tmp_path, good=GOOD)
    assert signal.getsignal(signal.SIGALRM) is before
    after = signal.getitimer(signal.ITIMER_REAL)[0]
    assert (left == after == 0) or left - 5 < after <= left


def test_an_error_that_cannot_be_shown_does_not_stop_the_others(tmp_path: Path) -> None:
    source = "class Bad(Exception):\n    def __str__(self):\n        raise ValueError\nraise Bad()"
    host = host_with(tmp_path, broken=source, good=GOOD)
    assert "Bad" in str(host.plugins["broken"].error)
    assert "mine" in host.losses
