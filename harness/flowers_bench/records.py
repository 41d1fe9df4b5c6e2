"""What `config.json` and `result.json` must hold to be read, so that a damaged or edited one is named by the first reader."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
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
        "grey_levels?": {"integer?": [Number], "float?": [Number], "colour?": [Number]},
    },
    "weights": {"name": str, "sha256": (str, NoneType)},
    "recipe": {"image_size": int, "epochs": int, "optimizer": str, "lr": Number, "batch_size": int},
    "seed": int,
    "protocol": {"report": str},
}
_SPEED: Form = {
    "latency?": {"p50_ms?": {"value": Number}, "p95_ms?": {"value": Number}},
    "throughput?": {"images_per_second": Number},
}
_COST: Form = {
    "seconds": Number,
    "epochs": int,
    **dict.fromkeys(("parameters?", "trainable_parameters?", "trained_bytes?"), int),
    **dict.fromkeys(("peak_rss_bytes?", "peak_cuda_bytes?"), int),
    **dict.fromkeys(("seconds_to_best?", "search_seconds?", "train_images_per_second?"), Number),
    **dict.fromkeys(("flops?", "data_wait_share?", "package_joules?", "gpu_joules?"), Number),
    "flops_uncounted?": [str],
    "inference?": dict.fromkeys(("float32?", "bfloat16?"), _SPEED),
}
_PROBABILITIES: Form = dict.fromkeys(("nll?", "brier?", "ece?", "ece_adaptive?"), Number)
_QUALITY: Form = {
    **dict.fromkeys(("n", "top1", "top5?", "mean_per_class?", "macro_f1?"), Number),
    **_PROBABILITIES,
    "calibrated?": _PROBABILITIES,
}
_EPISODES: Form = dict.fromkeys(("n_way", "k_shot", "episodes", "accuracy"), Number)
#: Of a trial of a search, which never reads the test split.
SEARCHED: Form = {
    "id": str,
    "label": str,
    "seed": int,
    "best_epoch": int,
    "val": {"n": int, "top1": Number},
    "cost": _COST,
}
RESULT: Form = {
    **SEARCHED,
    "stopped_early": bool,
    "test": _QUALITY,
    "temperature?": Number,
    "class_names": [str],
    "hardware": {
        **dict.fromkeys(("processor", "cpu_capability", "device"), str),
        "kernel": (str, NoneType),
        "threads": int,
        "load_average": [Number],
        "versions": dict,
    },
    "retrieval?": dict.fromkeys(("recall_at_1", "map_at_r"), Number),
    "episodic?": {"test?": _EPISODES, "held_out_classes?": _EPISODES},
    "mixed?": dict.fromkeys(("m", "top_m", "all_m"), Number),
}


def problem(value: Any, form: Any, name: str = "") -> str | None:
    """What `value` lacks of `form`, in words; None if it lacks nothing. What a form does not name may be anything.

    Args:
        form: a type, a tuple of types, `[form]` for a list of such, or a mapping of names to forms; a name that ends
            with `?` may be missing or null.
        name: where `value` stands, with dots.
    """
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{name} is no list"
        found = (problem(item, form[0], f"{name}[{index}]") for index, item in enumerate(value))
    elif isinstance(form, Mapping):
        if not isinstance(value, dict):
            return f"{name} is no object"
        prefix = f"{name}." if name else ""
        # Null is as good as missing where a name may be missing.
        given = {f"{key}?": item for key, item in value.items() if item is not None} | value
        missing = next((key for key in form if key[-1] != "?" and key not in value), None)
        if missing:
            return f"it has no {prefix}{missing}"
        found = (problem(given[key], form[key], prefix + key.removesuffix("?")) for key in form if key in given)
    else:
        right = isinstance(value, form) and (form is bool or not isinstance(value, bool))
        return None if right else f"{name} is {value!r:.40}"
    return next(filter(None, found), None)
