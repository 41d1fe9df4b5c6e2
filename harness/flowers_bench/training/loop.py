"""The one training loop. Everything random in a step is seeded from (trial seed, purpose, epoch, step), so a run
that was interrupted and continued takes the same steps as one that was not."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowers_bench.contract.dataset import Images, Split
from flowers_bench.data.cache import Selection
from flowers_bench.data.pixels import Augmented
from flowers_bench.data.samplers import SAMPLERS
from flowers_bench.measure.energy import Meter, joules_of_all
from flowers_bench.measure.quality import correct_in_top_k, negative_log_likelihood
from flowers_bench.models.layers import train_mode
from flowers_bench.store.folder import TrialFolder
from flowers_bench.store.identity import Trial, derive_seed
from flowers_bench.store.records import Epoch
from flowers_bench.training.average import Average
from flowers_bench.training.build import Parts
from flowers_bench.training.distributed import ALONE, Ranks
from flowers_bench.training.events import Emit, Resumed, Step
from flowers_bench.training.frozen_prefix import CachedActivations
from flowers_bench.training.optimizer import build_optimizer, schedule_factor, set_learning_rate
from flowers_bench.training.process import Interrupted
from flowers_bench.util.errors import TrialDisturbed, TrialFailed
from flowers_bench.util.files import write_atomically

#: Clean training accuracy is measured each epoch on a fixed sample of at most this many training images, and of no more
#: than validation has: it must not cost more than validating does.
TRAIN_SAMPLE = 200


@dataclass(frozen=True)
class Drawn:
    """The images of one batch, as they were drawn.

    Attributes:
        images: augmented, uint8 (N, 3, S, S).
        random_state: torch's on the CPU, as drawing them left it: what else the step draws goes on from there.
    """

    images: Tensor
    random_state: Tensor


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Attributes:
        inputs: what the model, or what follows its stored activations, takes: this rank's share.
        targets: of the whole batch.
        size: of the whole batch, in images.
    """

    inputs: Tensor
    targets: Tensor
    size: int


@dataclass(frozen=True)
class _Validated:
    """How good the model is after an epoch: accuracy on training images as they are; accuracy and loss on validation."""

    train_top1_clean: float
    top1: float
    nll: float


@dataclass
class Training:
    """Trains until the recipe's epochs or its patience run out; `run` leaves the best weights in the model.

    Attributes:
        ranks: this process among those that train together. Only the one that leads evaluates, emits and writes.
        history: every finished epoch.
        best_epoch: the epoch chosen on validation, from 1; 0 before any.
    """

    trial: Trial
    parts: Parts
    train: Split
    val: Split
    folder: TrialFolder
    emit: Emit = lambda event: None
    stop_requested: Callable[[], bool] = lambda: False
    ranks: Ranks = ALONE
    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0

    def __post_init__(self) -> None:
        recipe = self.trial.recipe
        self._model = self.parts.model
        self._optimizer = build_optimizer(recipe, self._model, self.parts.criterion) if self._trainable() else None
        averaged = recipe.ema_decay and self.ranks.is_main
        self._average = Average(self._model, recipe.ema_decay) if averaged else None
        self._best = (-1.0, -math.inf)
        self._source = Augmented(self.train.images, self.parts.image_transform, self.parts.views)
        stored = self.parts.stored
        self._forward = self._model if stored is None else stored.prefix.tail(self._model)
        self._waited = 0.0
        self._energy = Meter(self.parts.normalize.device)
        sample = np.random.default_rng(derive_seed(self.trial.seed, "train sample"))
        chosen = self._rows = np.sort(sample.permutation(len(self.train))[: min(TRAIN_SAMPLE, len(self.val))])
        images: Images = Selection(self.train.images, chosen)
        if isinstance(self.train.images, CachedActivations):
            images = self.train.images.sample(images, chosen)
        self._sample = Split(images, self.train.labels[chosen], chosen.tolist())

    def _trainable(self) -> bool:
        return any(p.requires_grad for p in self._model.parameters())

    @property
    def _evaluated(self) -> nn.Module:
        return self._model if self._average is None else self._average.model

    def run(self, on_epoch: Callable[[Epoch], None]) -> nn.Module:
        """Train (or continue), then load the best weights.

        Raises:
            TrialFailed: the loss is not finite.
            TrialDisturbed: the checkpoint cannot be used.
            PeerLost: another of the ranks is gone.
            Interrupted: `stop_requested` came true; the epoch was finished and is on disk.
        """
        recipe = self.trial.recipe
        if self._optimizer is None:
            self._save_weights()
            return self._model
        self._resume()
        self._open_stored()
        while len(self.history) < recipe.epochs and not self._out_of_patience():
            epoch = len(self.history) + 1
            record = self._epoch(epoch)
            self._keep_if_best(record)
            self.history.append(record)
            self._save()
            on_epoch(record)
            if self.ranks.broadcast(self.stop_requested()) and len(self.history) < recipe.epochs:
                raise Interrupted
        if self.best_epoch == 0:
            self._save_weights()
        if self.ranks.is_main:
            self._load_best(self.folder.best_path)
        return self._model

    def _open_stored(self) -> None:
        """Where several processes start from stored activations, the one that leads computes them, and says so."""
        if self.parts.stored is not None and self.ranks.count > 1:
            if self.ranks.is_main:
                self.parts.stored.prepare()
            self.ranks.broadcast(None)

    def _out_of_patience(self) -> bool:
        patience = self.trial.recipe.patience
        return patience is not None and len(self.history) - self.best_epoch >= patience

    def _epoch(self, epoch: int) -> Epoch:
        started = time.perf_counter()
        self._energy.lap()
        train_mode(self._model)
        train_mode(self._forward)
        self._waited = 0.0
        total, images = torch.zeros((), dtype=torch.float64), 0
        batches = self._batches(epoch)
        drawing = self._draw_all(epoch, batches)
        for step, indices in enumerate(batches):
            waiting = time.perf_counter()
            drawn = None if self.parts.stored is not None else next(drawing)
            batch = self._batch(epoch, step, indices, drawn)
            self._waited += time.perf_counter() - waiting
            total += self._step(epoch, step, len(batches), batch) * batch.size
            images += batch.size
            rate = images / (time.perf_counter() - started)
            self.emit(Step(epoch, step + 1, len(batches), rate))
        train_seconds = time.perf_counter() - started
        validated = self._validated() if self.ranks.is_main else None
        seconds = time.perf_counter() - started
        joules = joules_of_all(self.ranks.all_gather(self._energy.lap()))
        record = None
        if validated:
            record = Epoch(
                epoch=epoch,
                train_loss=float(total) / images,
                train_top1_clean=validated.train_top1_clean,
                val_top1=validated.top1,
                val_nll=validated.nll,
                train_seconds=train_seconds,
                wait_seconds=self._waited,
                seconds=seconds,
                images=images,
                package_joules=joules.get("package_joules"),
                gpu_joules=joules.get("gpu_joules"),
            )
        record = self.ranks.broadcast(record)
        assert record is not None  # of the rank that evaluates
        return record

    def _validated(self) -> _Validated:
        predict = self.parts.evaluator.fit(self._evaluated, self.train)
        logits = predict(self.val.images).logits
        clean = predict(self._sample.images, self._rows).logits
        return _Validated(
            train_top1_clean=float(correct_in_top_k(clean, self._sample.labels).mean()),
            top1=float(correct_in_top_k(logits, self.val.labels).mean()),
            nll=negative_log_likelihood(logits, self.val.labels),
        )

    def _batches(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng(derive_seed(self.trial.seed, "order", epoch))
        sampler = SAMPLERS[self.trial.sampler]
        return list(sampler(np.asarray(self.train.labels), self.trial.recipe.batch_size, self.trial.options, rng))

    def _draw_all(self, epoch: int, batches: Sequence[np.ndarray]) -> Iterator[Drawn]:
        """Draw each step's images. Of several ranks, each draws one batch of a turn and hands it to the others: drawing is
        divided by steps, since the draws within one follow each other."""
        ranks = self.ranks
        for first in range(0, len(batches), ranks.count):
            turn = batches[first : first + ranks.count]
            own = self._draw(epoch, first + ranks.rank, turn[ranks.rank]) if ranks.rank < len(turn) else None
            for owner in range(len(turn)):
                images = ranks.broadcast_tensor(None if own is None else own.images, owner)
                state = ranks.broadcast_tensor(None if own is None else own.random_state, owner)
                yield Drawn(images, state)

    def _draw(self, epoch: int, step: int, indices: np.ndarray) -> Drawn:
        """Draw one step's images. Torch's random state on the CPU, where they are drawn, is left as it was."""
        with torch.random.fork_rng(devices=()):
            self._seed(epoch, step)
            images = torch.stack([self._source[int(row)] for row in self._rows_of(epoch, indices)])
            return Drawn(images, torch.get_rng_state())

    def _seed(self, epoch: int, step: int) -> None:
        torch.manual_seed(derive_seed(self.trial.seed, "augment", epoch, step))

    def _rows_of(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        return self._source.rows(indices, derive_seed(self.trial.seed, "views", epoch))

    def _step(self, epoch: int, step: int, steps: int, batch: Batch) -> float:
        recipe = self.trial.recipe
        assert self._optimizer is not None
        set_learning_rate(self._optimizer, recipe.lr * schedule_factor(recipe, epoch - 1 + (step + 1) / steps))
        seed = derive_seed(self.trial.seed, "rank", self.ranks.rank, epoch, step)
        with self._autocast():
            output = self.ranks.forward(self._forward, batch.inputs, batch.size, seed)
        # In float32 and outside of autocast, which on a processor computes a softmax in bfloat16.
        loss = self.parts.criterion(output.widened(), batch.targets)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrialFailed(
                f"the loss is {value} at epoch {epoch}, step {step + 1} of {steps}. The last good checkpoint is kept; "
                "a lower learning rate usually helps:  --set lr=..."
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.ranks.all_reduce_gradients(batch.size, self._model, self.parts.criterion)
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(self._model.parameters(), recipe.clip_norm)
        self._optimizer.step()
        if self._average is not None:
            self._average.update()
        return value

    def _batch(self, epoch: int, step: int, indices: np.ndarray, drawn: Drawn | None) -> Batch:
        """Make a step's batch of drawn images or, without any, of stored activations. Leaves torch's random generator where
        the step goes on from."""
        size = len(indices)
        mine = self.ranks.share(size)
        targets = torch.from_numpy(np.asarray(self.train.labels)[indices]).to(self.parts.normalize.device)
        self._seed(epoch, step)
        if drawn is None:
            assert self.parts.stored is not None
            with self._autocast():
                return Batch(self.parts.stored.batch(self._rows_of(epoch, indices)[mine]), targets, size)
        torch.set_rng_state(drawn.random_state)
        if self.parts.batch_transform is None:
            return Batch(self.parts.normalize(drawn.images[mine]), targets, size)
        images, targets = self.parts.batch_transform(self.parts.normalize(drawn.images), targets)
        return Batch(images[mine], targets, size)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.trial.recipe.precision == "bfloat16":
            return torch.autocast(self.parts.normalize.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _keep_if_best(self, record: Epoch) -> None:
        assert record.val_top1 is not None
        assert record.val_nll is not None
        score = (record.val_top1, -record.val_nll)
        if score > self._best:
            self._best, self.best_epoch = score, record.epoch
            # Before the checkpoint: killed in between, the epoch is run again and writes the same weights.
            self._save_weights()

    def _save_weights(self) -> None:
        if self.ranks.is_main:
            save_weights(self._evaluated, self.folder.best_path)

    def _save(self) -> None:
        assert self._optimizer is not None
        if not self.ranks.is_main:
            return
        criterion = self.parts.criterion
        state = {
            "trial": self.trial.id,
            "model": self._model.state_dict(),
            "criterion": criterion.state_dict() if isinstance(criterion, nn.Module) else {},
            "average": self._average.state_dict() if self._average else None,
            "optimizer": self._optimizer.state_dict(),
            "history": [record.json() for record in self.history],
            "best": self._best,
            "best_epoch": self.best_epoch,
        }
        write_atomically(self.folder.checkpoint_path, lambda path: torch.save(state, path), durable=False)

    def _resume(self) -> None:
        if not self.folder.checkpoint_path.is_file() or not self.folder.best_path.is_file():
            return
        for path, use in ((self.folder.best_path, self._load_best), (self.folder.checkpoint_path, self._restore)):
            try:
                use(path)
            except Exception as error:  # damaged, truncated or hostile: anything may come out of the reader
                raise TrialDisturbed(
                    "checkpoint",
                    f"{path} cannot be used ({type(error).__name__}: {str(error)[:200]}). "
                    "Remove it to start this trial afresh.",
                ) from error
        self.emit(Resumed(len(self.history)))

    def _load_best(self, weights: Path) -> None:
        self._model.load_state_dict(load_file(weights))

    def _restore(self, checkpoint: Path) -> None:
        assert self._optimizer is not None
        state = torch.load(checkpoint, "cpu", weights_only=True)
        if state["trial"] != self.trial.id:
            raise ValueError("it belongs to another trial")
        self._model.load_state_dict(state["model"])
        if isinstance(self.parts.criterion, nn.Module):
            self.parts.criterion.load_state_dict(state["criterion"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.history = [Epoch.read(record) for record in state["history"]]
        self._best = tuple(state["best"])
        self.best_epoch = int(state["best_epoch"])


def save_weights(model: nn.Module, path: Path) -> None:
    """The state_dict as safetensors, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary), durable=False)
