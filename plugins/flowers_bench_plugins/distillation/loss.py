"""The distillation loss: agreement with a teacher's softened predictions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from flowers_bench.nn import Output


def distillation(output: Output, target: Tensor, *, weight: float, temperature: float) -> Tensor:
    """Compute L = a T^2 KL(softmax(v / T) || softmax(z / T)) + (1 - a) CE(z, y), the mean over the batch (Hinton et al.
    2015).

    Args:
        output: z and v (N, C) as `logits` and `teacher`; without a teacher, as in evaluation, the first term is left out.
        target: y, hard (N,) or soft (N, C).
        weight: a.
        temperature: T.
    """
    loss = (1 - weight) * F.cross_entropy(output.logits, target)
    if weight and output.teacher is not None:
        student = F.log_softmax(output.logits / temperature, dim=1)
        teacher = F.log_softmax(output.teacher / temperature, dim=1)
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        loss = loss + weight * temperature**2 * divergence
    return loss
