"""What `config.json` and `result.json` must hold to be read, so that a damaged or edited one is named by the first reader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Number = (int, float)
Form = Mapping[str, Any]

CONFIG: Form = {
    "id": str,
    "harness_revision": int,
    **dict.fromkeys(("technique", "variant", "model", "loss", "augmentation", "sampler", "predictor", "backbone"), str),
    **dict.fromkeys(("options", "data_options", "code"), dict),
    "dataset": {
        **dict.fromkeys(("name", "fingerprint", "split_checksum", "resolution"), str),
        **dict.fromkeys(("classes", "n_train", "n_val", "n_test"), int),
        "notes": [str],
    },
    "weights": {"name": str},
    "recipe": {"image_size": int, "epochs": int, "optimizer": str, "lr": Number, "batch_size": int},
    "seed": int,
    "protocol": {"report": str},
}
#: Of a trial of a search, which never reads the test split.
SEARCHED: Form = {
    "id": str,
    "label": str,
    "seed": int,
    "best_epoch": int,
    "val": {"n": int, "top1": Number},
    "cost": {"seconds": Number},
}
RESULT: Form = {
    **SEARCHED,
    "stopped_early": bool,
    "test": {"n": int, "top1": Number},
    "class_names": [str],
    "hardware": {"processor": str, "threads": int, "cpu_capability": str, "device": str, "versions": dict},
}


def problem(value: Any, form: Any, name: str = "") -> str | None:
    """What `value` lacks of `form`, in words; None if it lacks nothing. What a form does not name may be anything.

    Args:
        form: a type, a tuple of types, `[form]` for a list of such, or a mapping of names to forms.
        name: where `value` stands, with dots.
    """
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{name} is no list"
        found = (problem(item, form[0], f"{name}[{index}]") for index, item in enumerate(value))
    elif isinstance(form, Mapping):
        if not isinstance(value, dict):
            return f"{name} is no object"
        names = {key: f"{name}.{key}" if name else key for key in form}
        missing = next((names[key] for key in form if key not in value), None)
        if missing:
            return f"it has no {missing}"
        found = (problem(value[key], inner, names[key]) for key, inner in form.items())
    else:
        right = isinstance(value, form) and (form is bool or not isinstance(value, bool))
        return None if right else f"{name} is {value!r:.40}"
    return next(filter(None, found), None)
