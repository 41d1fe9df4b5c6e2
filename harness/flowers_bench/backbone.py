"""Backbones: any timm model, where its initial weights come from, and what its stages are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowers_bench.errors import UsageError

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer
    from torch import Tensor, nn


@dataclass(frozen=True)
class Weights:
    """Initial weights, resolved.

    Attributes:
        name: `none`, a timm tag such as `resnet18.a1_in1k`, or the file's name.
        sha256: of the file; None for `none`.
        path: the file on this machine; None for `none`. Not part of a trial's identity.
    """

    name: str = "none"
    sha256: str | None = None
    path: Path | None = None

    def facts(self) -> dict[str, Any]:
        """What identifies the weights."""
        return {"name": self.name, "sha256": self.sha256}


@dataclass
class Backbone:
    """A timm model to be created.

    Attributes:
        name: timm model name, without tag.
        weights: initial weights.
        num_classes: C, outputs of the classifier, which is always freshly initialised.
        image_size: given to models that are built for one size (transformers).
        report: filled by `create`: which keys were loaded, missing, unexpected.
    """

    name: str
    weights: Weights
    num_classes: int
    image_size: int
    report: dict[str, Any] = field(default_factory=dict)

    def create(self) -> nn.Module:
        """The model with its initial weights. Raises `UsageError` if the weights do not fit the model."""
        import timm

        model: nn.Module = timm.create_model(self.name, pretrained=False, **self._arguments())
        self.report = {"loaded": 0, "missing": [], "unexpected": [], "classifier": "initialised afresh"}
        if self.weights.path is not None:
            self.report.update(_load(model, self.weights.path))
        _check_patches(model, self.image_size)
        return model

    def _arguments(self) -> dict[str, Any]:
        import timm

        arguments: dict[str, Any] = {"num_classes": self.num_classes}
        if timm.models.model_entrypoint(self.name).__module__.endswith(("vision_transformer", "deit")):
            arguments["img_size"] = self.image_size
        return arguments


def _check_patches(model: Any, image_size: int) -> None:
    """Raise `UsageError` if a vision transformer's patches do not tile the image (timm says so only when it runs)."""
    from timm.layers import PatchEmbed

    patches = getattr(model, "patch_embed", None)
    if not isinstance(patches, PatchEmbed) or patches.dynamic_img_pad:
        return
    side = patches.patch_size[0]
    if image_size % side:
        near = max(side, round(image_size / side) * side)
        raise UsageError(
            f"image_size={image_size} is not a multiple of the backbone's patch size {side}: try --set image_size={near}."
        )


def check_backbone(name: str) -> None:
    """Raise `UsageError`, with near names, unless timm knows `name`."""
    import difflib

    import timm

    if "." in name:
        model = name.partition(".")[0]
        raise UsageError(f"--backbone {name}: say --backbone {model} --weights {name}.")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(
            f"timm has no model {name!r}.{hint} List them: python -c 'import timm; print(timm.list_models())'"
        )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors from a .safetensors file, or a .pth/.pt/.bin read with `weights_only=True` (no code is executed).

    Raises:
        UsageError: the file is missing, truncated, of another kind, or holds anything but tensors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UsageError(f"weights file {path} does not exist.")
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"weights file {path} cannot be read ({type(error).__name__}): {_first_line(error)}"
        ) from error
    except Exception as error:  # pickle.UnpicklingError and whatever a crafted file provokes
        raise UsageError(
            f"weights file {path} was refused: it holds more than tensors, or is damaged. {_first_line(error)} "
            "Re-save it as tensors only (safetensors)."
        ) from error
    for wrapper in ("state_dict", "model", "state_dict_ema"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(v, torch.Tensor) for v in loaded.values()) or not loaded:
        raise UsageError(f"weights file {path} is not a state_dict: expected a mapping from names to tensors.")
    return {str(k).removeprefix("module."): v for k, v in loaded.items()}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def _load(model: Any, path: Path) -> dict[str, Any]:
    import torch

    state = read_state_dict(path)
    # timm converts other projects' key names and resamples position embeddings to the model's grid.
    module = __import__(type(model).__module__, fromlist=["checkpoint_filter_fn"])
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is not None:
        state = convert(state, model)
    own = model.state_dict()
    classifier = tuple(f"{name}." for name in _classifier_names(model))
    state = {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in state.items()}
    body = {k: v for k, v in state.items() if not k.startswith(classifier)}
    misfits = [k for k, v in body.items() if k in own and own[k].shape != v.shape]
    if misfits:
        raise UsageError(
            f"weights file {path} does not fit the backbone: {misfits[0]} is {tuple(body[misfits[0]].shape)} in the file "
            f"and {tuple(own[misfits[0]].shape)} in the model ({len(misfits)} such keys). Choose the matching --backbone."
        )
    result = model.load_state_dict(body, strict=False)
    missing = [k for k in result.missing_keys if not k.startswith(classifier)]
    if len(missing) > len(own) // 2:
        raise UsageError(
            f"weights file {path} does not fit the backbone: {len(missing)} of {len(own)} keys are missing, such as "
            f"{missing[0]!r}; the file has keys such as {next(iter(state))!r}. Choose the matching --backbone."
        )
    return {
        "loaded": len(body) - len(result.unexpected_keys),
        "missing": missing,
        "unexpected": list(result.unexpected_keys),
    }


def _classifier_names(model: Any) -> tuple[str, ...]:
    names = model.default_cfg.get("classifier") or "fc"
    return (names,) if isinstance(names, str) else tuple(names)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def resolve_weights(asked: str, backbone: str) -> Weights:
    """`none`, `pretrained`, a timm tag or a file, as a file on this machine with its SHA-256.

    Raises:
        UsageError: no such file or tag, or the download failed; the text says how to fetch it elsewhere.
    """
    if asked == "none":
        return Weights()
    path = Path(asked).expanduser()
    if path.suffix in (".safetensors", ".pth", ".pt", ".bin") or "/" in asked or path.is_file():
        if not path.is_file():
            raise UsageError(f"--weights {asked}: no such file.")
        return Weights(path.name, file_sha256(path), path.resolve())
    return _download(asked, backbone)


def _download(tag: str, backbone: str) -> Weights:
    import timm
    from timm.models import get_pretrained_cfg

    name = backbone if tag == "pretrained" else tag if tag.startswith(f"{backbone}.") else f"{backbone}.{tag}"
    tags = timm.list_pretrained(f"{backbone}.*")
    config = get_pretrained_cfg(name) if tag == "pretrained" or name in tags else None
    if config is None or not config.has_weights or not config.hf_hub_id:
        raise UsageError(
            f"--weights {tag}: timm has no such weights for {backbone}. Valid: none, {', '.join(tags) or 'a file'}."
        )
    full = f"{config.architecture}.{config.tag}" if config.tag else backbone
    path = _fetch_from_hub(config.hf_hub_id, full)
    return Weights(full, file_sha256(path), path)


def _fetch_from_hub(repository: str, name: str) -> Path:
    from huggingface_hub import constants, hf_hub_download

    try:
        path = Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # the hub raises a dozen kinds: connection, time-out, missing file, refused
        raise UsageError(
            f"weights {name} are not on this machine and could not be downloaded ({type(error).__name__}: {_first_line(error)}).\n"
            f"On a machine with internet run:  hf download {repository} model.safetensors\n"
            f"then copy the file here and pass  --weights /path/to/model.safetensors,  or copy that machine's cache folder "
            f"models--{repository.replace('/', '--')} into {constants.HF_HUB_CACHE}.\n"
            "Or train from scratch:  --weights none"
        ) from error
    # The hub names the cached blob of a large file by its SHA-256.
    expected = path.resolve().name
    if len(expected) == 64 and expected != file_sha256(path):
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise UsageError(
            f"weights {name}: the downloaded file has a wrong checksum and was removed. Run the command again."
        )
    return path


@dataclass(frozen=True)
class Stage:
    """Consecutive modules of a backbone that work at one resolution.

    Attributes:
        name: the module that timm names as the stage's output.
        modules: names of the backbone's direct or nested modules that belong to it.
    """

    name: str
    modules: tuple[str, ...]


def stages(model: nn.Module) -> list[Stage]:
    """The backbone's stages as timm's `feature_info` names them, in order; the stem belongs to the first, what
    follows the last stage (but not the classifier) to the last.

    Raises:
        UsageError: the model has no `feature_info`.
    """
    info = getattr(model, "feature_info", None)
    if not info:
        raise UsageError(f"{type(model).__name__} has no feature stages (timm's feature_info).")
    ends = [entry["module"] for entry in (info if isinstance(info, list) else info.info)]
    owners = _parameter_owners(model)
    if any(_inside(owner, end) for owner in owners for end in ends):
        # ResNets list the stem's activation as a feature: a stem is not a stage. (VGGs list activations only.)
        ends = [end for end in ends if any(_inside(owner, end) for owner in owners)]
    order = {name: position for position, (name, _) in enumerate(model.named_modules())}
    found: list[Stage] = []
    start = 0
    for end in ends:
        # VGG names activations, which own nothing: what counts is all that is registered up to there.
        stop = sum(order[owner] <= order[end] or _inside(owner, end) for owner in owners)
        if stop > start:
            found.append(Stage(end, tuple(owners[start:stop])))
            start = stop
    if not found:
        raise UsageError(f"{type(model).__name__} has no feature stages with parameters.")
    last = found[-1]
    found[-1] = Stage(last.name, (*last.modules, *owners[start:]))
    return found


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _parameter_owners(model: Any) -> list[str]:
    """Names of the modules that hold parameters directly, in forward order of registration, classifier excluded."""
    heads = _classifier_names(model)
    return [
        name
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None and not any(_inside(name, head) for head in heads)
    ]


def freeze_stages(model: nn.Module, count: int) -> None:
    """No gradient for the first `count` stages. Raises `UsageError` if there are fewer."""
    found = stages(model)
    if not 0 <= count <= len(found):
        raise UsageError(
            f"cannot freeze {count} stages: this backbone has {len(found)} ({', '.join(s.name for s in found)})."
        )
    for stage in found[:count]:
        for name in stage.modules:
            # The owner's own parameters only: for a ViT the root module holds cls_token and pos_embed.
            for parameter in model.get_submodule(name).parameters(recurse=False):
                parameter.requires_grad_(False)


def mean_and_std(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What the backbone's weights were trained with; ImageNet's where the model does not say."""
    config: Any = next((m.pretrained_cfg for m in model.modules() if hasattr(m, "pretrained_cfg")), {})
    return tuple(config.get("mean") or (0.485, 0.456, 0.406)), tuple(config.get("std") or (0.229, 0.224, 0.225))


def vision_transformer(model: nn.Module) -> VisionTransformer:
    """`model` itself, known to be a plain timm VisionTransformer: patch tokens through `blocks`, one classifier.

    Raises:
        UsageError: it is something else.
    """
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, VisionTransformer) or isinstance(model.get_classifier(), tuple):
        raise UsageError(
            f"{type(model).__name__} is not a vision transformer with one classifier. Choose a timm VisionTransformer such "
            "as --backbone vit_base_patch16_224, vit_small_patch14_dinov2 or deit3_small_patch16_224."
        )
    return model


def train_only_classifier(model: nn.Module) -> None:
    """No gradient for anything but the classifier."""
    model.requires_grad_(False)
    for name in _classifier_names(model):
        model.get_submodule(name).requires_grad_(True)


def replace_classifier(model: nn.Module, build: Callable[[int, int], nn.Module]) -> None:
    """Put `build(embedding_dim, num_classes)` in place of the backbone's linear classifier.

    Raises:
        UsageError: the backbone's classifier is not one linear layer.
    """
    from torch import nn

    names = _classifier_names(model)
    linear = model.get_submodule(names[0])
    if len(names) != 1 or not isinstance(linear, nn.Linear):
        raise UsageError(f"the classifier of {type(model).__name__} is not one linear layer, so it cannot be replaced.")
    model.set_submodule(names[0], build(linear.in_features, linear.out_features))
