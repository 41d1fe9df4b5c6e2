"""Plugins that go wrong, through the real command, beside a technique that works."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from flowers_bench.store.folder import Store, TrialFolder

TOY = Path(__file__).parents[1] / "toy.py"
EVIL = Path(__file__).with_name("evil.py")
MEMORY = 1.5 * 2**30
HEAD = "from flowers_bench import *\nfrom flowers_bench import hookimpl\n"
LOSS = "@hookimpl\ndef register_losses():\n    return [Loss({name!r}, 'a loss', build=lambda context: None)]\n"
#: Name of a package's plugin, its source, and a word of why it is skipped.
BROKEN = {
    "at-import": ("raise RuntimeError('boom')", "boom"),
    "exits": ("import sys\nsys.exit(0)", "SystemExit"),
    "in-a-hook": (HEAD + "@hookimpl\ndef register_losses():\n    raise KeyError('inside')\n", "inside"),
    "wrong-type": (HEAD + "@hookimpl\ndef register_models():\n    return {'a': 1}\n", "must return a list of Model"),
    "same-name": (HEAD + LOSS.format(name="cross-entropy"), "already registered by plugin 'common'"),
    "syntax": ("def (", "SyntaxError"),
}


def install(site: Path, plugins: dict[str, str]) -> None:
    """Packages as pip would leave them, one for each plugin."""
    for name, source in plugins.items():
        module = name.replace("-", "_") + "_plugin"
        info = site / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[flowers_bench]\n{name} = {module}\n")


def test_broken_packages_are_named_and_everything_else_runs(flowers_bench, tmp_path: Path) -> None:
    noisy = "import os\nprint('garbage \\x1b[2J')\nos.write(1, b'garbage')\nos.system('echo garbage')\n"
    noisy += "import ctypes\nctypes.CDLL(None).printf(b'garbage')\n"  # stays in C's own buffer for now
    plugins = {name: source for name, (source, _) in BROKEN.items()}
    install(tmp_path / "site", {**plugins, "noisy": noisy + HEAD + LOSS.format(name="noisy")})
    path = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH")]))
    listed = flowers_bench("plugins", PYTHONPATH=path)
    assert listed.returncode == 0, listed.stderr
    assert "garbage" not in listed.stdout
    for name, (_, words) in BROKEN.items():
        (line,) = [line for line in listed.stdout.splitlines() if line.startswith(f"{name} ")]
        assert "BROKEN" in line
        assert words in line
    assert "\x1b" not in listed.stdout
    done = flowers_bench("--plugin", f"{TOY},toy/short", "--data", "toy", "--seeds", "1", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert "toy/short" in done.stdout
    assert "garbage" not in done.stdout
    asked = flowers_bench("--plugin", "at-import", PYTHONPATH=path)
    assert asked.returncode == 2
    assert "boom" in asked.stderr


def test_a_package_that_crashes_the_interpreter_is_named_and_can_be_switched_off(flowers_bench, tmp_path: Path) -> None:
    install(tmp_path / "site", {"crashes": "import ctypes\nctypes.string_at(0)\n"})
    path = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH")]))
    command = ("--plugin", f"{TOY},toy/short", "--data", "toy", "--seeds", "1")
    crashed = flowers_bench(*command, PYTHONPATH=path)
    assert crashed.returncode == -signal.SIGSEGV
    assert re.search(r"Segmentation fault(?s:.*)crashes_plugin\.py\", line 2 in <module>", crashed.stderr)
    done = flowers_bench(*command, PYTHONPATH=path, FLOWERS_BENCH_NO_PLUGIN="crashes")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_package_that_hangs_is_given_up_here_and_in_the_trial(flowers_bench, tmp_path: Path) -> None:
    install(tmp_path / "site", {"hangs": "import time\ntime.sleep(10000)\n"})
    path = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH")]))
    command = ("--plugin", f"{TOY},toy/short", "--data", "toy", "--seeds", "1")
    done = flowers_bench(*command, PYTHONPATH=path, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "toy/short" in done.stdout
    asked = flowers_bench("--plugin", "hangs", PYTHONPATH=path)
    assert asked.returncode == 2
    assert "'hangs' (hangs_plugin) is broken" in asked.stderr
    assert "was not ready after 60 s" in asked.stderr


def test_a_broken_file_is_refused_before_anything_starts(flowers_bench, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("raise RuntimeError('boom \\x1b]0;owned\\x07')")
    done = flowers_bench("--plugin", f"bad.py,{TOY}", "--data", "toy")
    assert done.returncode == 2
    assert "bad.py" in done.stderr
    assert "boom" in done.stderr
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def kill_for_memory(process: subprocess.Popen[str], killed: list[int]) -> None:
    """What the kernel does when memory is out, with a limit that a test can afford."""
    while process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if child.memory_info().rss > MEMORY:
                    child.kill()
                    killed.append(child.pid)
            except psutil.NoSuchProcess:
                pass
        time.sleep(0.05)


def run(folder: Path, ways: tuple[str, ...]) -> tuple[int, str, str]:
    """The real command with those ways to go wrong, first, and a technique that works."""
    names = ",".join([str(TOY), str(EVIL), *(f"evil/{way}" for way in ways), "toy/short"])
    command = [str(Path(sys.executable).with_name("flowers-bench")), "--plugin", names, "--data", "toy", "--seeds", "1"]
    environment = {**os.environ, "FAULTS": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "200"}
    process = subprocess.Popen(
        [*command, "--timeout", "15"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    threading.Thread(target=kill_for_memory, args=(process, []), daemon=True).start()
    out, errors = process.communicate(timeout=240)
    return process.returncode, out, errors


def by_variant(folder: Path) -> dict[str, TrialFolder]:
    return {trial.labels()[0].variant: trial for trial in Store(folder / "runs").trials()}


@pytest.mark.parametrize(
    "ways",
    [
        {"raises": "boom", "exits": "SystemExit", "crashes": "SIGSEGV", "returns-nonsense": "str"},
        pytest.param({"leaks": "out of memory?", "hangs": "--timeout 15"}, marks=pytest.mark.slow),
    ],
    ids=["quick", "slow"],
)
def test_what_goes_wrong_in_a_trial_costs_that_trial_only(tmp_path: Path, ways: dict[str, str]) -> None:
    code, out, errors = run(tmp_path, (*ways, "prints"))
    assert code == 1, errors
    assert "toy/short" in out
    assert "garbage" not in out + errors
    assert "\x1b" not in out + errors
    assert "raised in epoch_finished: OSError: the observer is broken" in errors
    assert "Traceback" not in errors
    trials = by_variant(tmp_path)
    assert {variant for variant, trial in trials.items() if trial.finished()} == {"short", "prints"}
    for way, words in ways.items():
        assert words in str(trials[way].failure())
        (said,) = [line for line in errors.splitlines() if f"evil/{way}" in line and "FAILED" in line]
        assert words in said
    assert b"garbage" in (trials["prints"].path / "log.txt").read_bytes()
    if "crashes" in ways:
        assert b'evil.py", line' in (trials["crashes"].path / "log.txt").read_bytes()
    before = {v: (t.path / "result.json").read_bytes() for v, t in trials.items() if t.finished()}

    (tmp_path / "calm").touch()
    code, out, errors = run(tmp_path, (*ways, "prints"))
    assert code == 0, errors
    trials = by_variant(tmp_path)
    assert all(trial.finished() and trial.failure() is None for trial in trials.values())
    assert {v: (trials[v].path / "result.json").read_bytes() for v in before} == before


def alive(group: int) -> list[int]:
    """Processes of a process group that are not dead."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.NoSuchProcess, ProcessLookupError):
            pass
    return found


def test_the_second_ctrl_c_ends_at_once_what_the_first_cannot(tmp_path: Path) -> None:
    """The first one waits for the epoch's end, which never comes here."""
    script = Path(sys.executable).with_name("flowers-bench")
    command = [str(script), "--plugin", f"{TOY},{EVIL},toy/short,evil/hangs", "--data", "toy", "--seeds", "1"]
    environment = {**os.environ, "FAULTS": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=errors, stderr=errors, start_new_session=True
        )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        # The two may run side by side: the short one has to be through as well.
        if (tmp_path / "hanging").exists() and any(trial.finished() for trial in Store(tmp_path / "runs").trials()):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    deadline = time.monotonic() + 60
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)  # helpers of multiprocessing end when they notice that nobody needs them
    assert not [psutil.Process(pid).cmdline() for pid in alive(process.pid)]
    assert "Traceback" not in (tmp_path / "errors").read_text()
    before = {v: (t.path / "result.json").read_bytes() for v, t in by_variant(tmp_path).items() if t.finished()}
    assert "short" in before

    (tmp_path / "calm").touch()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    trials = by_variant(tmp_path)
    assert all(trial.finished() for trial in trials.values())
    assert {v: (trials[v].path / "result.json").read_bytes() for v in before} == before
