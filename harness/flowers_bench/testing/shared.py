"""What several checks look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowers_bench.testing.subject import Subject, require

if TYPE_CHECKING:
    from torch import Tensor, nn

#: pytest leaves this module's functions out of tracebacks: the plugin is to be looked at.
__tracebackhide__ = True

LOOK = "look for a division by zero, a root, norm or logarithm of zero, or weights that nobody initialised."
FLOAT = "the model should calculate in float32 what needs it (x.float())."


def trainable(model: nn.Module, criterion: object) -> dict[str, nn.Parameter]:
    """Give the trainable parameters of model and loss by name, but for those without elements, such as zero prompts."""
    from torch import nn

    named = dict(model.named_parameters())
    if isinstance(criterion, nn.Module):
        named |= {f"loss.{name}": parameter for name, parameter in criterion.named_parameters()}
    return {name: parameter for name, parameter in named.items() if parameter.requires_grad and parameter.numel()}


def some(names: Sequence[str]) -> str:
    """Write the first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def require_scalar(loss: Tensor) -> None:
    """Raise `Nonconformance` unless a loss is one number."""
    require(loss.ndim == 0, f"the loss has shape {tuple(loss.shape)}: average it to a scalar.")


def same_outputs(subject: Subject, first: nn.Module, second: nn.Module) -> bool:
    """Tell whether two models give the same bits for a batch, in evaluation mode."""
    import torch

    images, _ = subject.batch(subject.build())
    with torch.inference_mode():
        a, b = first.eval()(images), second.eval()(images)
    return torch.equal(a.logits, b.logits) and torch.equal(a.embedding, b.embedding)
