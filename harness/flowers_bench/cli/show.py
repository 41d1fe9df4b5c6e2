"""`flowers-bench show TRIAL`: all of one trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def show(trial: str, out: Path) -> None:
    """Print the trial's configuration, history and result. Raises `UsageError` for an unknown id."""
    from flowers_bench.store import Store

    folder = Store(out).find(trial)
    config = folder.config()
    print(
        f"trial {folder.id}: {config['technique']}/{config['variant']} on {config['dataset']['name']}, seed {config['seed']}"
    )
    _section("configuration", config)
    print("\nhistory")
    for record in folder.history():
        print("  " + ", ".join(f"{key} {_short(value)}" for key, value in record.items()))
    if folder.finished():
        _section("result", {k: v for k, v in folder.result().items() if k != "class_names"})
    failure = folder.failure()
    if failure:
        print(f"\nlast attempt failed: {failure['error']}")
    print(
        f"\nfiles in {folder.path}: {', '.join(sorted(p.name for p in folder.path.iterdir() if not p.name.startswith('.')))}"
    )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _section(title: str, value: Any) -> None:
    print(f"\n{title}")
    print("  " + json.dumps(value, indent=1, ensure_ascii=False).replace("\n", "\n  "))
