"""One trial in several processes, a device each, with the numbers of one process.

Each rank runs its share of a batch through its replica of the model. What the model says of the whole batch is then on
every rank, and so is the loss of the whole batch, whatever it compares (triplets, prototypes, mixed targets) and however
unequal the shares. A rank's gradients flow through its own share only, so that their sum over the ranks is the
gradient of one process; nothing is averaged. Batch norm takes its statistics over the whole batch. What is left is the
order of sums (the last digits) and dropout, which draws other masks.

All replicas take the same step, since a sum over the ranks has the same bits on each; only rank 0's is evaluated and written.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flowers_bench.models.layers import Output

T = TypeVar("T")
#: How long a rank waits for another, which may be evaluating. A rank that died is noticed sooner.
PATIENCE = timedelta(days=7)


class PeerLost(Exception):
    """Another rank is gone; the cause is to be found there."""


@dataclass(frozen=True)
class Ranks:
    """The processes that share a trial, and which of them this one is.

    Attributes:
        rank: from 0. Rank 0 evaluates, decides and writes.
        count: how many ranks there are (the world size); with 1 every method leaves things as they are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def share(self, images: int) -> slice:
        """Give this rank's slice of a batch of `images`. Shares differ by one image at most. A batch with fewer images
        than ranks is computed whole by each of them."""
        if not self.divides(images):
            return slice(0, images)
        return slice(images * self.rank // self.count, images * (self.rank + 1) // self.count)

    def divides(self, images: int) -> bool:
        """Tell whether a batch of so many images is divided among the ranks."""
        return 1 < self.count <= images

    def forward(self, model: Callable[[Tensor], Output], inputs: Tensor, images: int, seed: int) -> Output:
        """Compute the model's output for a whole batch, of which `inputs` are this rank's share. Gradients flow into
        this share only.

        Args:
            images: how many the whole batch has.
            seed: of what the model draws (dropout), different for each rank. Afterwards, all ranks draw alike again.

        Raises:
            PeerLost: another rank is gone.
        """
        if not self.divides(images):
            return model(inputs)
        devices = [inputs.get_device()] if inputs.is_cuda else []
        with torch.random.fork_rng(devices), _BatchNormOverRanks(self):
            torch.manual_seed(seed)
            output = model(inputs)
        return output.each(lambda own: self._whole(own, images))

    def _whole(self, own: Tensor, images: int) -> Tensor:
        """Gather the shares of all ranks: (share, ...) to (images, ...)."""
        mine = self.share(images)
        if own.numel() == 0:
            return own.new_zeros(images, *own.shape[1:])
        # Zero plus a number is that number, so that a sum gathers shares of any size.
        whole = own.new_zeros((images, *own.shape[1:]), dtype=torch.promote_types(own.dtype, torch.float32))
        whole[mine] = own.detach().to(whole.dtype)
        whole = self.all_reduce(whole).to(own.dtype)
        return torch.cat([whole[: mine.start], own, whole[mine.stop :]])

    def all_reduce_gradients(self, images: int, model: nn.Module, own: Sequence[nn.Parameter]) -> None:
        """Complete the gradients of a batch, in place. The model's are summed over the ranks. Each rank has those of the loss's and
        the step's `own` parameters whole already: they are averaged, so that no replica can drift. Raises `PeerLost`."""
        if not self.divides(images):
            return
        whole = [p.grad.div_(self.count) for p in own if p.grad is not None]
        gradients = [p.grad for p in model.parameters() if p.grad is not None] + whole
        flat = self.all_reduce(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place; the result has the same bits on each. Raises `PeerLost`."""
        if self.count > 1:
            with _noticing_loss():
                dist.all_reduce(tensor)
        return tensor

    def broadcast(self, value: T, by: int = 0) -> T:
        """Broadcast `value` from rank `by`; what other ranks pass is ignored. Raises `PeerLost`."""
        if self.count == 1:
            return value
        values = [value if self.rank == by else None]
        with _noticing_loss():
            dist.broadcast_object_list(values, src=by)
        return values[0]  # type: ignore[return-value]

    def broadcast_tensor(self, tensor: Tensor | None, by: int) -> Tensor:
        """Broadcast a tensor on the CPU from rank `by`; what other ranks pass is ignored. Raises `PeerLost`."""
        about = self.broadcast((tensor.shape, tensor.dtype) if tensor is not None and self.rank == by else None, by)
        assert about is not None
        given = tensor.contiguous() if tensor is not None and self.rank == by else torch.empty(about[0], dtype=about[1])
        if self.count > 1:
            with _noticing_loss():
                dist.broadcast(given, src=by)
        return given

    def all_gather(self, value: T) -> list[T]:
        """Gather the `value` of every rank, in order of ranks. Raises `PeerLost`."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with _noticing_loss():
            dist.all_gather_object(values, value)
        return values


#: The only process of a trial.
ALONE = Ranks()


@contextlib.contextmanager
def joined(rank: int, count: int, rendezvous: Path) -> Iterator[Ranks]:
    """Join `count` processes as number `rank`. They meet by the file `rendezvous` and talk over the loopback interface;
    on CUDA each has its own device."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=dist.FileStore(str(rendezvous), count),  # type: ignore[attr-defined]
        rank=rank,
        world_size=count,
        timeout=PATIENCE,
    )
    yield Ranks(rank, count)


def loopback() -> str:
    """Name the network interface that reaches no other machine."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


@contextlib.contextmanager
def _noticing_loss() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo says no more than that a connection was closed
        raise PeerLost(str(error)) from error


class _BatchNormOverRanks(TorchFunctionMode):
    """While active, `F.batch_norm` in training takes mean and variance over the shares of all ranks. PyTorch's
    SyncBatchNorm does so on CUDA only, and takes the place of modules; this leaves the model as it is."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        found: Tensor = _BatchNorm.apply(self._ranks, x, running_mean, running_var, weight, bias, momentum, eps)
        return found


class _BatchNorm(torch.autograd.Function):
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1) of (n, C, ...) whose other images are on
    other ranks. The gradients of weight and bias are this rank's share."""

    @staticmethod
    def forward(
        ctx: Any,
        ranks: Ranks,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        given, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        count, mean, var = _moments(ranks, x)
        with torch.no_grad():
            if running_mean is not None:
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            if running_var is not None:
                running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), momentum)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.ranks, ctx.count, ctx.biased = ranks, count, bias is not None
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps).to(given)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, mean, scale = ctx.saved_tensors
        given, grad = gradients[0].dtype, gradients[0].to(x.dtype)
        dims, shape = _all_but_channels(x), _channels(x)
        normal = (x - mean.view(shape)) * scale.view(shape)
        by_bias, by_weight = grad.sum(dims), (grad * normal).sum(dims)
        mean_grad, mean_product = ctx.ranks.all_reduce(torch.stack([by_bias, by_weight])) / ctx.count
        factor = scale if weight is None else scale * weight
        by_x = (grad - mean_grad.view(shape) - normal * mean_product.view(shape)) * factor.view(shape)
        by_weight = None if weight is None else by_weight.to(weight.dtype)
        return None, by_x.to(given), None, None, by_weight, by_bias if ctx.biased else None, None, None


def _moments(ranks: Ranks, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute values per channel (), mean (C,) and biased variance (C,) over all ranks from those of each (Chan et al.
    1983)."""
    var, mean = torch.var_mean(x, _all_but_channels(x), correction=0)
    own = torch.cat([mean, var, mean.new_tensor([x.numel() / x.shape[1]])])
    table = own.new_zeros(ranks.count, len(own))
    table[ranks.rank] = own
    means, variances, counts = ranks.all_reduce(table).split([len(mean), len(mean), 1], dim=1)
    share = counts / counts.sum()
    mean = (share * means).sum(0)
    return counts.sum(), mean, (share * (variances + (means - mean).square())).sum(0)


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _channels(x: Tensor) -> list[int]:
    return [1, -1, *[1] * (x.ndim - 2)]
