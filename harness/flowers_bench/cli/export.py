"""`flowers-bench export TRIAL`: write the trained model as a file that other programs can run, or start from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.util.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from flowers_bench.store.folder import TrialFolder
    from flowers_bench.training.trained import Sources

FORMATS = ("onnx", "pt2", "weights")


def export(
    trial: str,
    format: str,
    output: Path | None,
    out: Path,
    plugins: Sequence[Path] = (),
    data: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Write the file, and print how much its predictions differ from those of the original; or, of `weights`, what they were
    trained on.

    Args:
        plugins, data, cache: where the trial's code and images may come from, as in `training.trained.Sources`.

    Raises:
        Unreadable: the trial is damaged.
        UsageError: there is no such trial, a package is missing, the model cannot be exported, or the file would predict
            something else.
    """
    from flowers_bench.store.folder import Store
    from flowers_bench.util.files import file_name, refuse_irregular

    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    folder = Store(out).find_trained(trial)
    label, ending = folder.labels()[0], "safetensors" if format == "weights" else format
    path = output or Path(file_name(f"{label.technique}-{label.variant}-{folder.id[:8]}.{ending}"))
    if not path.parent.is_dir():
        raise UsageError(f"-o {path}: there is no folder {path.parent}.")
    if path.exists():
        try:
            refuse_irregular(path.stat().st_mode)
        except OSError as error:
            raise UsageError(f"-o {path}: {error}.") from error
    from flowers_bench.training.trained import Sources

    sources = Sources.named(folder, plugins, data, cache)
    try:
        if format == "weights":
            _export_weights(folder, path, sources)
        else:
            _export_model(folder, format, path, sources)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}. Choose another with -o.") from error


def _export_weights(folder: TrialFolder, path: Path, sources: Sources) -> None:
    from flowers_bench.training.initial_weights import write_weights

    source = write_weights(folder, path, sources)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB; {source.backbone}, {source.summary}")
    print(f"start from them with --backbone {source.backbone} --weights {path}; timm reads them, too")


def _export_model(folder: TrialFolder, format: str, path: Path, sources: Sources) -> None:
    from flowers_bench.training.export import export_trial

    exported = export_trial(folder, format, path, sources)
    print(
        f"{path}: {path.stat().st_size / 2**20:.1f} MiB; takes uint8 RGB images (N, 3, {exported.side}, {exported.side})"
    )
    print(
        f"checked on {exported.images} test images: logits differ by at most {exported.difference:.2g} "
        f"(of a range of {exported.range:.3g}), the best class on {exported.disagreements}"
    )
    print("labels and preprocessing are in the file: " + exported.where)
