"""The one training loop. Everything random in a step is seeded from (trial seed, purpose, epoch, step), so a trial
that was interrupted and continued takes the same steps as one that was not."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowers_bench.contract.dataset import Images as Decoded
from flowers_bench.contract.dataset import Split
from flowers_bench.data.cache import Selection
from flowers_bench.data.drawing import ByParameters, times_before
from flowers_bench.data.on_device import OnDevice
from flowers_bench.data.pixels import Augmented
from flowers_bench.data.processes import in_order_by_processes
from flowers_bench.data.samplers import SAMPLERS
from flowers_bench.data.threads import in_order
from flowers_bench.measure.energy import Meter, joules_of_all
from flowers_bench.measure.quality import correct_in_top_k, negative_log_likelihood
from flowers_bench.models.layers import train_mode
from flowers_bench.store.folder import TrialFolder
from flowers_bench.store.identity import Trial, derive_seed
from flowers_bench.store.records import Epoch
from flowers_bench.training.average import Average
from flowers_bench.training.build import Parts
from flowers_bench.training.distributed import ALONE, Ranks
from flowers_bench.training.epochs import begin_epoch, has_begin_epoch
from flowers_bench.training.events import Emit, Resumed, Step
from flowers_bench.training.feeding import Feeding, choose_feeding
from flowers_bench.training.frozen_prefix import CachedActivations
from flowers_bench.training.losses import Losses
from flowers_bench.training.optimizer import build_optimizer, schedule_factor, set_learning_rate
from flowers_bench.training.precision import backward_pass, forward_pass
from flowers_bench.training.probe import start_from_probe
from flowers_bench.training.process import Interrupted, with_threads
from flowers_bench.training.steps import Images, Trained, TrainingBatch
from flowers_bench.util.errors import TrialDisturbed
from flowers_bench.util.files import write_atomically
from flowers_bench.util.system import available_cores

#: Clean training accuracy is measured each epoch on a fixed sample of at most this many training images, and of no more
#: than validation has: it must not cost more than validating does.
TRAIN_SAMPLE = 200
#: How many of an epoch's steps a process draws at least: to start it takes as long as to draw some fifty images one by one.
_STEPS_OF_A_PROCESS = 8


@dataclass(frozen=True)
class Drawn:
    """The images of one batch, drawn and augmented: on the CPU, or on the device where decoded images lie there.

    Attributes:
        images: augmented, uint8 (N, 3, S, S).
        random_state: torch's on the CPU, as drawing left it; what else the step draws goes on from there. None: it was not used.
        second: their second view, uint8 (N, 3, S, S), where there is one.
        unlabelled, unlabelled_second: both views of the images without labels, uint8 (U, 3, S, S), where there are some.
    """

    images: Tensor
    random_state: Tensor | None = None
    second: Tensor | None = None
    unlabelled: Tensor | None = None
    unlabelled_second: Tensor | None = None

    def shared(self, ranks: Ranks, by: int) -> Drawn:
        """Broadcast what rank `by` drew: all ranks get that."""
        return Drawn(
            **{
                field.name: ranks.broadcast_tensor(getattr(self, field.name), by)
                for field in fields(self)
                if ranks.broadcast(getattr(self, field.name) is not None, by)
            }
        )

    def pin_memory(self) -> Drawn:
        """Copy the images to page-locked memory, from which a GPU fetches them while this process goes on."""
        images = {name: tensor.pin_memory() for name, tensor in self._tensors().items() if name != "random_state"}
        return replace(self, **images)

    def __reduce__(self) -> tuple[Callable[..., Drawn], tuple[dict[str, np.ndarray]]]:
        """Give arrays to be pickled: torch passes tensors between processes by shared memory, of which containers have little."""
        return _of_arrays, ({name: tensor.numpy() for name, tensor in self._tensors().items()},)

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def _of_arrays(arrays: dict[str, np.ndarray]) -> Drawn:
    return Drawn(**{name: torch.from_numpy(array) for name, array in arrays.items()})


@dataclass(frozen=True)
class Chosen:
    """Which images a step gets.

    Attributes:
        rows: of the training images (N,).
        times: how often each came before it in the epoch (N,).
        unlabelled, unlabelled_times: the same of images without labels (U,).
    """

    rows: np.ndarray
    times: np.ndarray
    unlabelled: np.ndarray
    unlabelled_times: np.ndarray


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
        ranks: this process among those that train together. Only the main rank evaluates, emits and writes.
        unlabelled: images for steps that learn from them.
        history: every finished epoch.
        feeding: what draws the images; None: it starts from stored activations, or trains nothing.
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
    unlabelled: Decoded = ()
    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    feeding: Feeding | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        recipe, parts = self.trial.recipe, self.parts
        self._model = parts.model
        self._optimizer = (
            build_optimizer(recipe, self._model, parts.criterion, parts.step, parts.make_optimizer)
            if self._trainable()
            else None
        )
        averaged = recipe.ema_decay and self.ranks.is_main
        self._average = Average(self._model, recipe.ema_decay) if averaged else None
        self._best = (-1.0, -math.inf)
        self._second = Augmented(self.train.images, parts.second_transform) if parts.second_transform else None
        pixels, unlabelled = self._where_drawn()
        self._source = parts.augmented(pixels, recipe.image_size)
        self._by_parameters = self._drawing(pixels, "augment") if parts.views is None else None
        self._unlabelled_by_parameters = self._drawing(unlabelled, "augment unlabelled")
        stored = self.parts.stored
        self._forward = self._model if stored is None else stored.prefix.tail(self._model)
        if self._optimizer is not None:
            self._trained = Trained(
                model=self._model,
                criterion=parts.criterion,
                step=parts.step,
                forward=self._forward,
                second_view=parts.loss_sees_second,
                recipe=recipe,
                optimizer=self._optimizer,
                average=self._average,
                ranks=self.ranks,
                autocast=self._autocast,
                seed=self.trial.seed,
                backward=partial(backward_pass, recipe.precision),
                losses=Losses(late=parts.normalize.device.type != "cpu"),
            )
        self._waited = 0.0
        self._energy = Meter(self.parts.normalize.device)
        sample = np.random.default_rng(derive_seed(self.trial.seed, "train sample"))
        chosen = self._rows = np.sort(sample.permutation(len(self.train))[: min(TRAIN_SAMPLE, len(self.val))])
        images: Decoded = Selection(self.train.images, chosen)
        if isinstance(self.train.images, CachedActivations):
            images = self.train.images.sample(images, chosen)
        self._sample = Split(images, self.train.labels[chosen], chosen.tolist())

    def _where_drawn(self) -> tuple[Decoded, Decoded]:
        """Choose what draws images; give training images and those without labels where they are drawn."""
        images, device = (self.train.images, self.unlabelled), self.parts.normalize.device
        if self.parts.stored is None and self._optimizer is not None:
            self.feeding = choose_feeding(device, self.ranks, self._parameters_alone(), images)
        if self.feeding is not Feeding.ON_DEVICE:
            return images
        return OnDevice.copied(images[0], device), OnDevice.copied(images[1], device)

    def _drawing(self, images: Decoded, purpose: str) -> ByParameters | None:
        """Make what draws images by parameters, where the augmentation states them."""
        parameters, trial = self.parts.parameters, self.trial
        if parameters is None:
            return None
        return ByParameters.seeded(images, parameters, trial.recipe.image_size, trial.seed, purpose)

    def _trainable(self) -> bool:
        return has_begin_epoch(self._model) or any(p.requires_grad for p in self._model.parameters())

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
        self._begin_epoch(len(self.history))
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
        self._begin_epoch(self.best_epoch)
        return self._model

    def _begin_epoch(self, epoch: int) -> None:
        """Tell every part that changes with the epoch; none has begun before the first."""
        if epoch:
            average = self._average.model if self._average else None
            begin_epoch((*self.parts.changing(), average), epoch, self.trial.recipe.epochs, self.trial.seed)

    def _open_stored(self) -> None:
        """Let the main rank compute the stored activations, and report it, before any rank reads them."""
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
        self._begin_epoch(epoch)
        if epoch == 1 and self.trial.recipe.classifier_start == "probe":
            start_from_probe(self._model, self.parts.evaluator, self.train, self.ranks)
        train_mode(self._model)
        train_mode(self._forward)
        self._waited = 0.0
        images = 0
        batches = self._batches(epoch)
        drawing = self._draw_all(epoch, self._chosen(epoch, batches))
        for step, indices in enumerate(batches):
            waiting = time.perf_counter()
            drawn = None if self.parts.stored is not None else next(drawing)
            batch = self._batch((epoch, step, len(batches)), indices, drawn)
            self._waited += time.perf_counter() - waiting
            self._step(batch)
            images += batch.size
            rate = images / (time.perf_counter() - started)
            self.emit(Step(epoch, step + 1, len(batches), rate))
        # Every loss is read now: nothing is written after one that is not finite.
        train_loss = self._trained.losses.mean()
        train_seconds = time.perf_counter() - started
        validated = self._validated() if self.ranks.is_main else None
        seconds = time.perf_counter() - started
        joules = joules_of_all(self.ranks.all_gather(self._energy.lap()))
        record = None
        if validated:
            record = Epoch(
                epoch=epoch,
                train_loss=train_loss,
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
        assert record is not None  # it comes from the main rank
        return record

    def _validated(self) -> _Validated:
        evaluator = self.parts.evaluator
        if self.trial.recipe.validation_precision == "training":
            evaluator = replace(evaluator, forward_pass=self._autocast)
        predict = evaluator.fit(self._evaluated, self.train)
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

    def _chosen(self, epoch: int, batches: Sequence[np.ndarray]) -> list[Chosen]:
        without = self._unlabelled_rows(epoch, [len(indices) for indices in batches])
        return list(map(Chosen, batches, times_before(batches), without, times_before(without)))

    def _draw_all(self, epoch: int, steps: Sequence[Chosen]) -> Iterator[Drawn]:
        """Draw each step's images, as `feeding` says."""
        pin = self.parts.normalize.device.type == "cuda"

        def draw(step: int) -> Drawn:
            return self._draw(epoch, step, steps[step])

        if self.feeding is Feeding.ON_DEVICE:  # of several ranks, each draws all: that is less than to broadcast them
            return map(draw, range(len(steps)))
        if self.feeding is Feeding.BY_THREAD:
            ready = (lambda step: draw(step).pin_memory()) if pin else draw
            return in_order(ready, range(len(steps)), workers=1, ahead=2)
        if self.feeding is Feeding.BY_PROCESSES:
            most = math.ceil(len(steps) / _STEPS_OF_A_PROCESS)
            workers = min(torch.get_num_threads(), available_cores(), most)
            return in_order_by_processes(draw, len(steps), workers, pin)
        return self._draw_in_turn(epoch, steps)

    def _draw_in_turn(self, epoch: int, steps: Sequence[Chosen]) -> Iterator[Drawn]:
        """Draw each step's images when it is taken. Of several ranks, each draws the images of one step in turn and broadcasts them: where
        no parameters are stated, the draws within one step depend on each other."""
        ranks = self.ranks
        for first in range(0, len(steps), ranks.count):
            turn = range(first, min(first + ranks.count, len(steps)))
            mine = first + ranks.rank
            own = self._draw(epoch, mine, steps[mine]) if mine in turn else None
            for owner in range(len(turn)):
                yield (own or _NOTHING).shared(ranks, owner)

    def _unlabelled_rows(self, epoch: int, sizes: Sequence[int]) -> list[np.ndarray]:
        """Draw which images without labels each step gets: in a new order whenever all had their turn."""
        counts = [self.parts.unlabelled * size for size in sizes]
        rng = np.random.default_rng(derive_seed(self.trial.seed, "unlabelled order", epoch))
        rounds = math.ceil(sum(counts) / max(1, len(self.unlabelled)))
        order = np.concatenate([[], *(rng.permutation(len(self.unlabelled)) for _ in range(rounds))]).astype(np.int64)
        return np.split(order[: sum(counts)], np.cumsum(counts)[:-1])

    def _draw(self, epoch: int, step: int, chosen: Chosen) -> Drawn:
        """Draw one step's images. Torch's random state on the CPU, where they are drawn, is left as it was."""
        if self._parameters_alone():
            unlabelled = self._first_unlabelled(epoch, chosen) if len(chosen.unlabelled) else None
            return Drawn(self._first(epoch, chosen), unlabelled=unlabelled)
        # Sums that torchvision takes over an image, such as its mean, depend on the threads: worker processes have one.
        one_thread = with_threads(1) if self.parts.normalize.device.type == "cuda" else contextlib.nullcontext()
        with one_thread, torch.random.fork_rng(devices=()):
            self._seed(epoch, step)
            images = self._first(epoch, chosen)
            state = torch.get_rng_state()
            # Further images have seeds of their own: a technique without them sees the same ones of the first kind.
            seeds = (
                derive_seed(self.trial.seed, "augment", epoch, step, what) for what in ("second", "unlabelled", "both")
            )
            second = _drawn(self._second, chosen.rows, next(seeds))
            if not len(chosen.unlabelled):
                return Drawn(images, state, second)
            torch.default_generator.manual_seed(next(seeds))
            unlabelled = self._first_unlabelled(epoch, chosen)
            transform = self.parts.second_transform
            other = Augmented(self.unlabelled, transform) if transform else None
            return Drawn(images, state, second, unlabelled, _drawn(other, chosen.unlabelled, next(seeds)))

    def _parameters_alone(self) -> bool:
        """Say whether all images are drawn by parameters, and nothing by torch's global generator."""
        return self.parts.parameters is not None and self._second is None

    def _first(self, epoch: int, chosen: Chosen) -> Tensor:
        """Draw the first version of labelled images."""
        if self._by_parameters is not None:
            return self._by_parameters.draw(chosen.rows, epoch, chosen.times)
        return self._source.stacked(self._rows_of(epoch, chosen.rows))

    def _first_unlabelled(self, epoch: int, chosen: Chosen) -> Tensor:
        """Draw the first version of images without labels."""
        if self._unlabelled_by_parameters is not None:
            return self._unlabelled_by_parameters.draw(chosen.unlabelled, epoch, chosen.unlabelled_times)
        return Augmented(self.unlabelled, self.parts.image_transform).stacked(chosen.unlabelled)

    def _seed(self, epoch: int, step: int) -> None:
        seed = derive_seed(self.trial.seed, "augment", epoch, step)
        # Without a GPU, `manual_seed` notes the whole call stack for the GPU that might come: 4 % of a small network's training.
        if self.parts.normalize.device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def _rows_of(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        return self._source.rows(indices, derive_seed(self.trial.seed, "views", epoch))

    def _step(self, batch: TrainingBatch) -> None:
        recipe = self.trial.recipe
        assert self._optimizer is not None
        progress = batch.epoch - 1 + (batch.step + 1) / batch.steps
        set_learning_rate(self._optimizer, recipe.lr * schedule_factor(recipe, progress, self.parts.schedule))
        batch.report(self.parts.step(batch))

    def _batch(self, at: tuple[int, int, int], indices: np.ndarray, drawn: Drawn | None) -> TrainingBatch:
        """Make a step's batch of drawn images or, without any, of stored activations. Torch's random generator is left
        where the rest of the step goes on from."""
        size, normalize, (epoch, step, _) = len(indices), self.parts.normalize, at
        mine = self.ranks.share(size)
        targets = torch.from_numpy(np.asarray(self.train.labels)[indices]).to(normalize.device)
        self._seed(epoch, step)
        if drawn is None:
            assert self.parts.stored is not None
            with self._autocast():
                inputs = self.parts.stored.batch(self._rows_of(epoch, indices)[mine])
            return TrainingBatch(self._trained, inputs, targets, size, Images(), at)
        if drawn.random_state is not None:
            torch.set_rng_state(drawn.random_state)
        if self.parts.batch_transform is None and not self.parts.draws_images:
            return TrainingBatch(self._trained, normalize(drawn.images[mine]), targets, size, Images(), at)
        images = normalize(drawn.images)
        if self.parts.batch_transform is not None:
            images, targets = self.parts.batch_transform(images, targets)
        others = (drawn.second, drawn.unlabelled, drawn.unlabelled_second)
        more = (None if other is None else normalize(other) for other in others)
        read = Images(images, *more) if self.parts.draws_images else Images()
        return TrainingBatch(self._trained, images[mine], targets, size, read, at)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return forward_pass(self.trial.recipe.precision, self.parts.normalize.device.type)

    def _keep_if_best(self, record: Epoch) -> None:
        assert record.val_top1 is not None
        assert record.val_nll is not None
        score = (record.val_top1, -record.val_nll)
        if score > self._best:
            self._best, self.best_epoch = score, record.epoch
            # Written before the checkpoint: a trial killed in between runs the epoch again and writes the same weights.
            self._save_weights()

    def _save_weights(self) -> None:
        if self.ranks.is_main:
            save_weights(self._evaluated, self.folder.best_path)

    def _save(self) -> None:
        assert self._optimizer is not None
        if not self.ranks.is_main:
            return
        criterion, step = self.parts.criterion, self.parts.step
        state = {
            "trial": self.trial.id,
            "model": self._model.state_dict(),
            "criterion": criterion.state_dict() if isinstance(criterion, nn.Module) else {},
            "step": step.state_dict() if isinstance(step, nn.Module) else {},
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
        if isinstance(self.parts.step, nn.Module):
            self.parts.step.load_state_dict(state["step"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.history = [Epoch.read(record) for record in state["history"]]
        self._best = tuple(state["best"])
        self.best_epoch = int(state["best_epoch"])


#: What a rank passes that drew nothing: others' images take its place.
_NOTHING = Drawn(torch.empty(0))


def _drawn(source: Augmented | None, rows: np.ndarray, seed: int) -> Tensor | None:
    """Draw images with a seed of their own; None where there is nothing to draw from."""
    torch.default_generator.manual_seed(seed)
    return None if source is None else source.stacked(rows)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the model's state_dict as safetensors, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary), durable=False)
