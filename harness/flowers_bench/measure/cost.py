"""What a trial costs: parameters, time, memory."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch
from torch import nn


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Parameters, trainable parameters, and the bytes of what was trained (as stored)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in trained),
        "trained_bytes": sum(p.numel() * p.element_size() for p in trained),
    }


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Peak memory so far: of the process (resident set) on the CPU, of the allocator on CUDA. Bytes."""
    # ru_maxrss is in kibibytes on Linux and in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        found["peak_cuda_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def training_cost(history: list[dict[str, Any]], best_epoch: int) -> dict[str, Any]:
    """Time over all epochs, evaluation included and apart; images per second of training; time to the best epoch."""
    train_seconds = sum(epoch["train_seconds"] for epoch in history)
    return {
        "epochs": len(history),
        "train_seconds": train_seconds,
        "seconds": sum(epoch["seconds"] for epoch in history),
        "seconds_to_best": sum(epoch["seconds"] for epoch in history[:best_epoch]),
        "train_images_per_second": sum(epoch["images"] for epoch in history) / train_seconds if train_seconds else None,
    }
