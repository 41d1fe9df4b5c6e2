"""`flowers-bench export TRIAL`: the trained model as a file that other programs run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowers_bench.errors import UsageError, unknown_name

FORMATS = ("onnx", "pt2")


def export(trial: str, format: str, output: Path | None, out: Path) -> None:
    """Write the file and print how far it is from the original.

    Raises:
        UsageError: no such trial, a package is missing, the model cannot be exported, or the file would differ.
    """
    from flowers_bench.store import Store

    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    folder = Store(out).find_trained(trial)
    config = folder.config()
    path = output or Path(file_name(config, folder.id, format))
    if not path.parent.is_dir():
        raise UsageError(f"-o {path}: there is no folder {path.parent}.")
    from flowers_bench.export import export_trial

    exported = export_trial(folder, format, path)
    print(
        f"{path}: {path.stat().st_size / 2**20:.1f} MiB; takes uint8 RGB images (N, 3, {exported.side}, {exported.side})"
    )
    print(
        f"checked on {exported.images} test images: logits differ by at most {exported.difference:.2g} "
        f"(of a range of {exported.range:.3g}), the best class on {exported.disagreements}"
    )
    print("labels and preprocessing are in the file: " + exported.where)


def file_name(config: Mapping[str, Any], trial_id: str, format: str) -> str:
    """Named after the trial, in this folder whatever the technique is called: a store may be somebody else's."""
    name = re.sub(r"[^\w.-]", "_", f"{config['technique']}-{config['variant']}")
    return f"{name}-{trial_id[:8]}.{format}"
