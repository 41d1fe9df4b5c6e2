"""Show progress in the terminal while trials run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import track as shown_with_a_bar

from flowers_bench.training.events import (
    Ended,
    EpochFinished,
    Event,
    Resumed,
    Starting,
    Step,
    Storing,
    Testing,
    UnderStress,
    Waiting,
    Warned,
)
from flowers_bench.util.text import printable

if TYPE_CHECKING:
    from flowers_bench.report.remaining import Pace
    from flowers_bench.store.folder import TrialFolder

T = TypeVar("T")
messages = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def track(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    """Give the items one by one, and show a bar that counts them."""
    return shown_with_a_bar(items, description=description, total=total, console=messages)


class TrialProgress:
    """Bars on stderr: one for all trials, and one for the steps of each running trial, with images/s and time left.

    A line for each epoch stays, in logs too, with the time left for all trials.

    Args:
        labels: what each trial is called, by its id.
        total: how many trials run.
        pace: what tells how long they still take.
    """

    def __init__(self, labels: dict[str, str], total: int, pace: Pace | None = None) -> None:
        self._labels = labels
        self._pace = pace
        self._total = total
        self._running: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=messages,
        )

    def __enter__(self) -> TrialProgress:
        self._progress.start()
        self._trials = self._progress.add_task("trials", total=self._total, note="")
        return self

    def __exit__(self, *exc: object) -> None:
        for task in self._running.values():
            self._progress.remove_task(task)
        self._progress.stop()

    def on_event(self, folder: TrialFolder, event: Event) -> None:
        """Show one event of a trial."""
        label = self._labels[folder.id]
        match event:
            case Step():
                note = f"{event.rate:.0f} images/s"
                self._show(folder, f"{label} epoch {event.epoch}", event.step, event.steps, note)
            case EpochFinished(record):
                messages.print(
                    f"{label} epoch {record.epoch}: loss {record.train_loss:.3f}, val top-1 {100 * (record.val_top1 or 0):.1f} %, "
                    f"{record.seconds:.1f} s{self._left()}",
                    markup=False,
                )
            case Starting():
                self._show(folder, f"{label} starting")
            case Testing():
                self._show(folder, f"{label} testing")
            case UnderStress():
                if self._pace:
                    self._pace.under_stress(folder.id, event.done, event.of)
                self._show(folder, f"{label} under stress", event.done, event.of, event.kind)
            case Waiting(reason):
                messages.print(f"{label} {reason}", markup=False)
            case Storing(text):
                messages.print(f"{label}: {text}", markup=False)
            case Warned(text):
                messages.print(printable(f"warning: {text}"), markup=False)
            case Resumed(epoch):
                messages.print(f"{label}: continues after epoch {epoch}", markup=False)
            case Ended():
                self._end(folder, label, event)

    def _left(self) -> str:
        """Say how long all trials still take, at most; nothing where it is not known."""
        from flowers_bench.report.formatting import duration
        from flowers_bench.util.errors import UsageError

        try:
            left = self._pace.seconds_left() if self._pace else None
        except (OSError, UsageError):  # a file of another trial is damaged, which is said where it matters
            return ""
        return "" if left is None else f"; at most {duration(left)} left in all"

    def _end(self, folder: TrialFolder, label: str, event: Ended) -> None:
        if event.state == "failed":
            messages.print(printable(f"{label} FAILED: {event.reason}"), markup=False, style="red")
        if event.state in ("done", "failed"):
            self._progress.advance(self._trials)
        if folder.id in self._running:
            self._progress.remove_task(self._running.pop(folder.id))

    def _show(
        self, folder: TrialFolder, text: str, done: int | None = None, total: int | None = None, note: str = ""
    ) -> None:
        self._progress.update(self._bar(folder), description=text, total=total, completed=done, note=note)

    def _bar(self, folder: TrialFolder) -> TaskID:
        if folder.id not in self._running:
            self._running[folder.id] = self._progress.add_task("", total=None, note="")
        return self._running[folder.id]
