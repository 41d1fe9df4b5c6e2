"""What a terminal shows while trials run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

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

from flowers_bench.util.text import printable

if TYPE_CHECKING:
    from flowers_bench.store.folder import TrialFolder

T = TypeVar("T")
messages = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def track(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    """The items, with a bar that follows them."""
    return shown_with_a_bar(items, description=description, total=total, console=messages)


class TrialProgress:
    """Bars on stderr: trials in all, and of each that runs the steps of its epoch with images/s and time left."""

    def __init__(self, labels: dict[str, str], total: int) -> None:
        self._labels = labels
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

    def on_event(self, folder: TrialFolder, event: dict[str, Any]) -> None:
        """Show one event of a trial."""
        label = self._labels[folder.id]
        kind = event["event"]
        if kind == "step":
            self._progress.update(
                self._bar(folder),
                description=f"{label} epoch {event['epoch']}",
                total=event["steps"],
                completed=event["step"],
                note=f"{event['rate']:.0f} images/s",
            )
        elif kind == "epoch":
            messages.print(
                f"{label} epoch {event['epoch']}: loss {event['train_loss']:.3f}, val top-1 {100 * event['val_top1']:.1f} %, "
                f"{event['seconds']:.1f} s",
                markup=False,
            )
        elif kind in ("starting", "testing"):
            self._progress.update(self._bar(folder), description=f"{label} {kind}", total=None, note="")
        elif kind == "stress":
            self._progress.update(
                self._bar(folder),
                description=f"{label} under stress",
                total=event["of"],
                completed=event["done"],
                note=event["kind"],
            )
        elif kind == "waiting":
            messages.print(f"{label} {event['reason']}", markup=False)
        elif kind == "storing":
            messages.print(f"{label}: {event['text']}", markup=False)
        elif kind == "warning":
            messages.print(printable(f"warning: {event['text']}"), markup=False)
        elif kind == "resumed":
            messages.print(f"{label}: continues after epoch {event['epoch']}", markup=False)
        elif kind == "failed":
            messages.print(printable(f"{label} FAILED: {event['reason']}"), markup=False, style="red")
        if kind in ("done", "failed"):
            self._progress.advance(self._trials)
        if kind in ("done", "failed", "interrupted") and folder.id in self._running:
            self._progress.remove_task(self._running.pop(folder.id))

    def _bar(self, folder: TrialFolder) -> TaskID:
        if folder.id not in self._running:
            self._running[folder.id] = self._progress.add_task("", total=None, note="")
        return self._running[folder.id]
