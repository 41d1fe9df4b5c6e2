"""Networks of timm without values: built in a moment, to see which tensors they have and which images they take."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowers_bench.util.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

#: timm's converter of a family: its file's tensors and the model to those of the model.
Converter = Callable[..., dict[str, "Tensor"]]


@dataclass(frozen=True)
class Network:
    """What a file is compared with.

    Attributes:
        name: timm model name.
        model: with or without values (on the meta device).
        convert: timm's converter, or None.
        classifier: names of the modules that are initialised afresh.
    """

    name: str
    model: nn.Module
    convert: Converter | None
    classifier: tuple[str, ...]

    def converted(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give a file's tensors under the model's names. Raises whatever timm's converter raises."""
        if self.convert is None:
            return dict(tensors)
        try:
            return self.convert(dict(tensors), self.model)
        except TypeError:
            return self.convert(dict(tensors))  # some take the tensors alone

    def is_classifier(self, name: str) -> bool:
        """Tell whether a tensor of that name belongs to the classifier."""
        return name.startswith(tuple(f"{module}." for module in self.classifier))


def timm_with_small_networks() -> Any:
    """Import timm, with the networks of `models.small` beside its own: the module, which takes seconds the first time."""
    import timm

    import flowers_bench.models.small  # noqa: F401

    return timm


@functools.lru_cache(maxsize=64)
def bare_network(name: str, image_size: int | None = None) -> Network:
    """Build a model without values, as timm does for pretrained weights, and find timm's converter for files of its
    family.

    `image_size` None means the model's usual size, in pixels.

    Raises:
        UsageError: it cannot be built for that size.
    """
    return _bare(name, {} if image_size is None else size_argument(name, image_size))


def _bare(name: str, arguments: dict[str, int]) -> Network:
    from unittest import mock

    from flowers_bench.models.meta import without_values

    timm = timm_with_small_networks()

    converters: list[Converter | None] = []

    def load_nothing(model: nn.Module, *_: Any, filter_fn: Converter | None = None, **__: Any) -> None:
        converters.append(filter_fn)

    # timm knows the converter of each model, but hands it only to this function, at the end of building.
    with without_values(), mock.patch("timm.models._builder.load_pretrained", load_nothing):
        try:
            model = timm.create_model(name, pretrained=True, num_classes=2, **arguments)
        except Exception as error:  # timm's constructors assert, divide by zero, ...
            raise UsageError(f"timm cannot build {name} with {arguments} ({type(error).__name__}: {error}).") from error
    return Network(name, model, converters[0] if converters else None, classifier_names(model))


@functools.lru_cache(maxsize=256)
def size_argument(name: str, image_size: int) -> dict[str, int]:
    """Give timm's argument for the image size, `img_size`, to models that are built for one size and would not run at
    another.

    Models that run without it are left as timm builds them. Plain vision transformers always get it: they then have a
    position embedding for each patch of the trial's images, and do not interpolate one at every step.
    """
    timm = timm_with_small_networks()
    if timm.models.model_entrypoint(name).__module__.endswith((".vision_transformer", ".deit", "models.small")):
        return {"img_size": image_size}
    usual = image_size == usual_size(name)
    return {"img_size": image_size} if not usual and _takes_size(name) and refusal(name, image_size, {}) else {}


@functools.cache
def _takes_size(name: str) -> bool:
    from flowers_bench.models.meta import without_values

    timm = timm_with_small_networks()
    with without_values():
        try:
            timm.create_model(name, img_size=usual_size(name))
        except TypeError as error:
            if "img_size" in str(error):
                return False
            raise
    return True


def usual_size(name: str) -> int:
    """Find the side, in pixels, of the images that the model's default weights were trained with."""
    config = timm_with_small_networks().models.get_pretrained_cfg(name)
    return int(config.input_size[-1]) if config is not None else 224


def refusal(name: str, image_size: int, arguments: dict[str, int]) -> str | None:
    """Say what timm, given these `arguments`, objects to images of that size; None where it computes scores for them.

    Raises:
        UsageError: what it computes is no scores of classes.
    """
    import torch

    from flowers_bench.models.meta import without_values

    try:
        model = _bare(name, arguments).model.eval()
        with without_values(), torch.no_grad():
            scores = model(torch.zeros(1, 3, image_size, image_size))
    except NotImplementedError:  # an operation that needs values: only the trial itself can tell
        return None
    except Exception as error:  # assertions, shapes that do not match, divisions by zero
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
    if not isinstance(scores, torch.Tensor) or scores.shape != (1, 2):
        raise UsageError(f"backbone {name} gives no scores of classes. Choose another --backbone.")
    return None


def classifier_names(model: Any) -> tuple[str, ...]:
    """List the modules that timm gives as a model's classifier, or classifiers."""
    names = model.default_cfg.get("classifier") or "fc"
    return (names,) if isinstance(names, str) else tuple(names)
