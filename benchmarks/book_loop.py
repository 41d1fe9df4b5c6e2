"""The peer of training_table.py: transfer learning as in PyTorch's tutorials, and nothing more.

It has an ImageFolder, a DataLoader with two workers, Adam, and one pass over train and val in each epoch, and it keeps the
weights of the best epoch.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


def loaders(
    folder: Path, size: int, batch: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, DataLoader]:
    """Make the loaders of train, val and test: float32 images (N, 3, size, size), int64 labels (N)."""
    transform = transforms.Compose(
        [
            transforms.Resize(round(size * 256 / 224)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    return {
        split: DataLoader(
            datasets.ImageFolder(folder / split, transform), batch, shuffle=split == "train", num_workers=2
        )
        for split in ("train", "val", "test")
    }


def build(backbone: str, weights: Path, classes: int, frozen: tuple[str, ...]) -> nn.Module:
    """Build a timm model with weights from a file; the `frozen` children (`*`: all but the classifier) have no gradient."""
    model = timm.create_model(backbone, num_classes=classes)
    head = model.default_cfg["classifier"]
    state = torch.load(weights, weights_only=True)
    model.load_state_dict({name: t for name, t in state.items() if not name.startswith(f"{head}.")}, strict=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not (name.startswith(frozen) or ("*" in frozen and not name.startswith(head)))
    return model


def train_epoch(model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, precision: str) -> None:
    """Train one epoch; `precision` is `float32` or `bfloat16`."""
    model.train()
    for module in model.modules():  # a frozen batch norm keeps its statistics
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()
    criterion = nn.CrossEntropyLoss()
    for images, labels in loader:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    """Compute the top-1 accuracy, from 0 to 1."""
    model.eval()
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
    return right / len(loader.dataset)  # type: ignore[arg-type]


def train(model: nn.Module, data: dict[str, DataLoader], epochs: int, lr: float, precision: str) -> float:
    """Train, and leave the weights of the best validation epoch in the model; return the seconds of training alone."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    best, state, seconds = -1.0, model.state_dict(), 0.0
    for _ in range(epochs):
        started = time.perf_counter()
        train_epoch(model, data["train"], optimizer, precision)
        seconds += time.perf_counter() - started
        found = accuracy(model, data["val"])
        if found > best:
            best, state = found, copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    return seconds
