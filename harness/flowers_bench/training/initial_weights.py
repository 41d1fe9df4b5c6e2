"""What a finished trial learned, as initial weights for others: under timm's names, with what they have seen beside them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from flowers_bench.contract.host import Host, discover_for
from flowers_bench.models.network import bare_network
from flowers_bench.models.weights import Weights
from flowers_bench.models.weights.provenance import KEY, Provenance
from flowers_bench.store.folder import TrialFolder
from flowers_bench.training.trained import Sources, dataset_of, load_parts
from flowers_bench.util.errors import UsageError
from flowers_bench.util.files import file_sha256, write_atomically


def write_weights(
    folder: TrialFolder,
    path: Path,
    sources: Sources,
    dtype: torch.dtype = torch.float32,
    *,
    with_classifier: bool = True,
) -> Provenance:
    """Write a trial's backbone as a safetensors file that timm and `--weights` read, its provenance in the metadata.

    Args:
        dtype: of its floating-point values.
        with_classifier: whether the classifier is in it, which `--weights` has no use for.

    Returns:
        the provenance.

    Raises:
        UsageError: the trial is not finished or damaged, its images are not at hand, or its model is no backbone that timm
            could read.
    """
    trial = folder.trial()
    host = discover_for(folder.id, trial.code, sources.plugins)
    tensors = _backbone_of(folder, host, sources)
    if not with_classifier:
        network = bare_network(trial.backbone, trial.recipe.image_size)
        tensors = {name: tensor for name, tensor in tensors.items() if not network.is_classifier(name)}
    model = host.find("model", host.models, trial.model).value
    options = {name: trial.options[name] for name in model.options}
    source = Provenance.of(folder.id, trial.backbone, trial.model, options, dataset_of(folder, sources, host))
    values = {name: (t.to(dtype) if t.is_floating_point() else t).contiguous() for name, t in tensors.items()}
    # One text of metadata: of several the library would change the order, and so the file's SHA-256, from run to run.
    write_atomically(path, lambda temporary: save_file(values, temporary, {KEY: source.text()}))
    return source


def weights_of_trial(folder: TrialFolder, sources: Sources) -> Weights:
    """Make `--weights trial:ID` a file in the cache. Raises `UsageError` as `write_weights`."""
    path = sources.cache / "weights" / f"{folder.id}-{file_sha256(folder.weights())[:16]}.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        source = write_weights(folder, path, sources)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}. Choose another place with --data-dir.") from error
    return Weights(f"trial:{folder.id}", file_sha256(path), path, source)


def _backbone_of(folder: TrialFolder, host: Host, sources: Sources) -> dict[str, Tensor]:
    """Read the tensors of the backbone that the trial's model was built from, trained, with what it was given in place."""
    parts, backbone = load_parts(folder, torch.device("cpu"), host, sources.plugins)
    network = bare_network(backbone.name, backbone.image_size)
    own, whole = network.model.state_dict(), parts.model.state_dict()
    for model in backbone.created:
        tensors = model.state_dict()
        held = {tensor.data_ptr() for tensor in tensors.values()}
        beside = [name for name, tensor in whole.items() if tensor.numel() and tensor.data_ptr() not in held]
        lacking = [
            n
            for n, t in own.items()
            if not network.is_classifier(n) and (n not in tensors or tensors[n].shape != t.shape)
        ]
        if not beside and not lacking:
            return tensors
    raise UsageError(
        f"trial {folder.id}: what model {folder.trial().model!r} computes with is no backbone that timm could read"
        + (f": it lacks {lacking[0]}" if lacking else f": it has {beside[0]} beside it" if beside else "")
        + ". Weights are exported of techniques that train a backbone as it is, or change its layers in place."
    )
