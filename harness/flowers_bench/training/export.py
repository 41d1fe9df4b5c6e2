"""A finished trial's model as one file: ONNX, or torch.export's archive (.pt2).

The file takes images as they come out of resizing and cropping, uint8 (N, 3, S, S), and does the rest itself:
normalisation, network, predictor, calibration. So the steps at which deployments go wrong are inside. What has to be
done before, and the names of the classes, are stored with it, as JSON under the key `flowers_bench`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowers_bench.data.pixels import LONGEST, stored_side
from flowers_bench.store.folder import TrialFolder
from flowers_bench.training.trained import Sources, Trained, dataset_of
from flowers_bench.util.errors import UsageError

#: How many test images are compared.
CHECKED = 32
#: Logits may differ by this share of their range: more than rounding in float32 does, and far less than any decision needs.
TOLERANCE = 1e-3
KEY = "flowers_bench"
Runner = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Exported:
    """What the comparison found about a written file.

    Attributes:
        images: how many test images were compared.
        difference: the largest between their logits.
        range: from the smallest logit to the largest.
        disagreements: images whose best class differs.
        side: S, of the square input, in pixels.
        where: the place in the file from which a program reads the class names.
    """

    images: int
    difference: float
    range: float
    disagreements: int
    side: int
    where: str


class Deployed(nn.Module):
    """uint8 images (N, 3, S, S) to logits (N, C) and calibrated probabilities (N, C)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.model = trained.fitted.model
        self.register_buffer("mean", trained.normalize.mean)
        self.register_buffer("scale", trained.normalize.scale)
        self._scores = trained.fitted.scores
        self._temperature = trained.temperature or 1.0

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise, predict, calibrate."""
        logits = self._scores((images.float() - self.mean) * self.scale)
        return logits, torch.softmax(logits / self._temperature, dim=1)


def export_trial(folder: TrialFolder, format: str, path: Path, sources: Sources) -> Exported:
    """Export a finished trial's model, and put the file at `path` once it was compared with the model.

    Raises:
        UsageError: a package is missing, the model cannot be exported, its images are not there, or the file's
            answers differ from the model's by more than `TOLERANCE`; `path` is not written then.
    """
    _require_packages(format)
    dataset = dataset_of(folder, sources)
    with torch.no_grad():
        trained = Trained.load(folder, torch.device("cpu"), sources, dataset)
        _require_exportable(trained)
        side = trained.fitted.evaluator.side
        rows = np.unique(np.linspace(0, len(dataset.test) - 1, CHECKED).astype(int))
        transform = trained.fitted.evaluator.transform
        images = torch.stack([transform(dataset.test.images[int(row)]) for row in rows])
        expected = trained.fitted.batches([trained.normalize(images)]).logits
        write, open_, where = FORMATS[format]
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".exporting-") as temporary:
            file = Path(temporary) / path.name
            with _quiet(), _failures_explained():
                write(Deployed(trained).eval(), images[:2], file, json.dumps(_facts(folder, trained)))
                found = open_(file)(images.numpy())
            exported = _compared(expected, found, side, where)
            file.replace(path)
    return exported


def _require_exportable(trained: Trained) -> None:
    predictor = trained.fitted.evaluator.predictor
    if not predictor.exportable:
        raise UsageError(
            f"predictor {predictor.name!r} says that it cannot be exported; --format weights exports the network without it."
        )


def _require_packages(format: str) -> None:
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if format == "onnx" and missing:
        raise UsageError(
            f"--format onnx needs {', '.join(missing)}: pip install 'flowers-bench[onnx]'. --format pt2 needs nothing."
        )


@contextlib.contextmanager
def _failures_explained() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # exporters and runtimes raise any kind of error
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        raise UsageError(f"this model cannot be exported ({type(error).__name__}: {reason}).") from error


def _compared(expected: np.ndarray, found: np.ndarray, side: int, where: str) -> Exported:
    difference, spread = float(np.abs(found - expected).max()), float(np.ptp(expected))
    disagreements = int((found.argmax(1) != expected.argmax(1)).sum())
    if not difference <= TOLERANCE * spread:
        raise UsageError(
            f"the exported model differs from the original: logits by up to {difference:.3g} (of a range of {spread:.3g}), the best "
            f"class on {disagreements} of {len(expected)} test images. The file was not written."
        )
    return Exported(len(expected), difference, spread, disagreements, side, where)


def _facts(folder: TrialFolder, trained: Trained) -> dict[str, object]:
    """Collect what a program that runs the file must know."""
    config, evaluator = folder.config(), trained.fitted.evaluator
    side = evaluator.side
    return {
        "trial": folder.id,
        "technique": folder.labels()[0].text,
        "dataset": config.dataset.json(),
        "classes": list(trained.class_names),
        "input": {
            "name": "images",
            "dtype": "uint8",
            "shape": ["batch", 3, side, side],
            "colour": "RGB",
            "resize_shortest_side": stored_side(evaluator.image_size),
            "interpolation": "bilinear, antialiased",
            "center_crop": side,
            "long_images": f"of one longer than {LONGEST} times its shortest side, only the middle {LONGEST} are used",
            "small_squares": f"a square image of at most {side} pixels is resized to {side} whole",
        },
        "outputs": {"logits": "scores", "probabilities": "softmax(logits / temperature)"},
        "temperature": trained.temperature,
    }


def _write_onnx(model: nn.Module, images: Tensor, file: Path, facts: str) -> None:
    import onnx

    from flowers_bench.ops.onnx import export

    export(
        model,
        (images,),
        file,
        input_names=["images"],
        output_names=["logits", "probabilities"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        external_data=False,
    )
    loaded = onnx.load(str(file))
    onnx.helper.set_model_props(loaded, {KEY: facts})
    onnx.checker.check_model(loaded)
    onnx.save(loaded, str(file))


def _open_onnx(file: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(["logits"], {"images": images})[0])


def _write_pt2(model: nn.Module, images: Tensor, file: Path, facts: str) -> None:
    program = torch.export.export(model, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    torch.export.save(program, str(file), extra_files={f"{KEY}.json": facts})


def _open_pt2(file: Path) -> Runner:
    module = torch.export.load(str(file)).module()
    return lambda images: np.asarray(module(torch.from_numpy(images))[0].numpy())


#: How each format is written and opened again, and where in the file the class names are.
FORMATS: dict[str, tuple[Callable[..., None], Callable[[Path], Runner], str]] = {
    "onnx": (_write_onnx, _open_onnx, f"metadata property {KEY!r}"),
    "pt2": (
        _write_pt2,
        _open_pt2,
        f"extra file '{KEY}.json' (torch.export.load needs `import flowers_bench.ops` first where convolutions are deformable)",
    ),
}


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep exporters from printing, logging and warning about their own internals."""
    import io

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
