"""`flowers-bench plugin new` and `plugin check`: write a plugin package, and check that it does what it declares."""

from __future__ import annotations

import importlib.util
import itertools
import keyword
import os
import re
import shutil
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

from flowers_bench.cli.exit_codes import FAILED
from flowers_bench.contract.host import discover
from flowers_bench.util.deprecation import deprecations
from flowers_bench.util.errors import TrialFailed, UsageError
from flowers_bench.util.text import counted, printable, text_of

#: A package that works unchanged; only its name is replaced.
TEMPLATE = Path(__file__).parents[1] / "template"
TEMPLATE_NAME = "my-technique"


def new(name: str, into: Path) -> None:
    """Write the package `name` into a new folder of that name; if that fails, nothing is left of it.

    Raises:
        UsageError: the name is invalid or taken, or the folder exists or cannot be written.
    """
    _refuse_name(name)
    folder = into / name
    if folder.exists():
        raise UsageError(f"{folder} exists already. Choose another name, or another folder with --into.")
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=into) as temporary:
            half = Path(temporary) / name
            shutil.copytree(TEMPLATE, half, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            for path in [path for path in half.rglob("*") if path.is_file()]:
                path.write_text(_renamed(path.read_text(encoding="utf-8"), name), encoding="utf-8")
                path.rename(path.with_name(_renamed(path.name, name)))
            half.rename(folder)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error}.") from error
    print(f"{folder} is written. Next:\n")
    print(f"  cd {folder}\n  pip install -e '.[test]'\n  pytest\n  flowers-bench --plugin {name}")


def _renamed(text: str, name: str) -> str:
    return text.replace(TEMPLATE_NAME, name).replace(_module(TEMPLATE_NAME), _module(name))


def _module(name: str) -> str:
    return name.replace("-", "_")


def _refuse_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > 60:
        raise UsageError(
            f"{name!r} cannot be a plugin's name: use at most 60 lower-case letters, digits and single hyphens, beginning "
            "with a letter, such as second-order."
        )
    host = discover()
    parts = (host.models, host.losses, host.augmentations, host.predictors, host.steps, host.optimizers, host.schedules)
    if name in {*host.plugins, *host.techniques, *itertools.chain(*parts)}:
        raise UsageError(f"the name {name!r} is taken by an installed plugin; `flowers-bench list` shows all.")
    if keyword.iskeyword(name) or name == "tests" or importlib.util.find_spec(_module(name)) is not None:
        raise UsageError(
            f"the name {name!r} is taken: a Python module cannot be called {_module(name)} beside the others."
        )


def check(plugin: str, backbone: str | None, settings: Mapping[str, str], out: Path | None) -> int:
    """Run the conformance kit and print one line for each check; return 0 if all passed, else 1.

    Uses of the API that a later release drops are printed as warnings, each once.
    """
    from flowers_bench.testing import checks

    passed, failed, excused, unplannable = 0, 0, 0, set()
    warned: list[str] = []
    for one in checks(plugin, backbone=backbone, settings=settings, store=out):
        if one.label in unplannable:
            continue  # this check would fail for the same reason
        if one.excuse:
            excused += 1
            print(printable(f"excused {one}\n        {one.excuse}"), flush=True)
            continue
        started = time.perf_counter()
        try:
            with deprecations() as found:
                one()
        except Exception as error:
            failed += 1
            print(printable(f"FAILED  {one}\n        {_explained(error)}"), flush=True)
            if one.name == "can be planned":
                unplannable.add(one.label)
        else:
            passed += 1
            print(f"ok      {one} ({time.perf_counter() - started:.1f} s)", flush=True)
        for text in found:
            if text not in warned:
                warned.append(text)
                print(printable(f"WARNING {one}\n        {text}"), flush=True)
    warnings_ = f", {counted(len(warned), 'warning')}" if warned else ""
    without = f", {excused} excused" if excused else ""
    print(f"\n{counted(passed, 'check')} passed, {failed} failed{without}{warnings_}")
    if failed > 1:
        print("Mend the first one first: later ones often follow from it.")
    return FAILED if failed else 0


def _explained(error: Exception) -> str:
    """Give the message of the kit, or what the plugin raised, with file and line."""
    from flowers_bench.testing import Nonconformance

    if isinstance(error, (Nonconformance, TrialFailed, UsageError)):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    others = ("site-packages", f"{os.sep}flowers_bench{os.sep}")
    own = [frame for frame in frames if not any(part in frame.filename for part in others)]
    last = (own or frames)[-1]
    return f"{type(error).__name__}: {text_of(error)} ({last.filename}, line {last.lineno})"
