"""Runs trials on a Ray cluster.

A Ray task is one trial, run as on this machine: Ray's worker is its local executor and starts a fresh process for it. So
isolation, logs, timeouts and numbers are those of a local run; Ray chooses the node, and says when one is lost. The nodes
see the run store, the caches and plugin files under the same paths; a trial whose node is lost starts on another, from
its last checkpoint.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowers_bench.executors import local
from flowers_bench.executors.local import OnEvent, Outcome
from flowers_bench.store.folder import TrialFolder
from flowers_bench.training.events import Ended, Event, Starting, Step, Waiting
from flowers_bench.util.errors import UsageError

#: How many nodes may be lost while they run the same trial.
RETRIES = 3
_BEAT = 0.5  # seconds between two reports, and two looks at the desk


@dataclass(frozen=True)
class Cluster:
    """Which cluster, and what a trial takes of it.

    Attributes:
        address: `HOST:PORT` of its head; None for the one that this machine belongs to.
        cpus: how many each trial gets.
        gpus: how many each trial gets, fractions allowed; None: one, where the cluster has any.
    """

    address: str | None
    cpus: int
    gpus: float | None = None

    @contextlib.contextmanager
    def connected(self) -> Iterator[Any]:
        """Connect to the cluster, and give the `ray` module. Raises `UsageError` where Ray or the cluster is
        missing."""
        ray = require_ray()
        if self.address is not None:
            _refuse_unreachable(self.address)
        try:
            ray.init(self.address or "auto", log_to_driver=False, logging_level="warning")
        except ConnectionError as error:
            raise UsageError(
                "no Ray cluster runs on this machine. Start one (ray start --head), or name one: --address HOST:6379."
            ) from error
        except RuntimeError as error:  # the cluster may have other versions of Ray or Python
            raise UsageError(f"the Ray cluster cannot be used: {error}") from error
        try:
            yield ray
        finally:
            ray.shutdown()


def require_ray() -> Any:
    """Import the `ray` module. Raises `UsageError` with the command that installs it."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UsageError('--executor ray needs Ray. Install it: pip install "flowers-bench[ray]"') from error


def _refuse_unreachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--address {address}: expected HOST:PORT of the cluster's head, such as 10.0.0.1:6379.")
    try:  # Ray itself would try for minutes
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UsageError(f"--address {address}: no Ray cluster answers there ({error}).") from error


def run_all(folders: Sequence[TrialFolder], on_event: OnEvent, timeout: float, cluster: Cluster) -> list[Outcome]:
    """Run prepared trials on the cluster, started in order; start no more once interrupted.

    Args:
        folders: as `Store.prepare` made them, on a disk that all nodes share.
        on_event: called with every event of every trial, one at a time.
        timeout: seconds that one trial may take on a node.

    Raises:
        UsageError: Ray or the cluster is missing.
    """
    with cluster.connected() as ray:
        run = _Run(ray, on_event, timeout, cluster)
        with local.interrupts_handled(run.stop):
            return run.all(folders)


class _Run:
    """The driver's side: submits trials, tells their events, submits again what was lost with its node."""

    def __init__(self, ray: Any, on_event: OnEvent, timeout: float, cluster: Cluster) -> None:
        self._ray = ray
        self._on_event = on_event
        self._timeout = timeout
        self._stopping = False
        self._tasks: dict[Any, TrialFolder] = {}  # by Ray's reference to the task
        self._started: dict[str, float] = {}
        self._lost: Counter[str] = Counter()
        gpus = cluster.gpus
        if gpus is None:
            gpus = float(ray.cluster_resources().get("GPU", 0) > 0)
        # The nodes get these settings too, such as which plugins are switched off.
        self._settings = {name: value for name, value in os.environ.items() if name.startswith("FLOWERS_BENCH_")}
        self._needs = {"CPU": cluster.cpus, "GPU": gpus}
        # A worker's processes keep the GPU that it was given: each trial gets a new one.
        reuse = {"max_calls": 1} if gpus else {}
        self._remote = ray.remote(num_cpus=cluster.cpus, num_gpus=gpus, max_retries=0, **reuse)(_run_on_node)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._desk = ray.remote(num_cpus=0, scheduling_strategy=here)(_Desk).remote()

    def stop(self, at_once: bool) -> None:
        """Note the wish to stop. The loop acts on it, because this is called from a signal handler."""
        self._stopping = True

    def all(self, folders: Sequence[TrialFolder]) -> list[Outcome]:
        """Run the trials, and give the outcomes of those that started, in order of their end."""
        outcomes: list[Outcome] = []
        stopped = False
        try:
            self._ray.get(self._desk.take.remote())  # the desk exists before anyone waits for it
            for folder in folders:
                self._submit(folder)
            self._say_if_nothing_fits()
            while self._tasks:
                done, _ = self._ray.wait(list(self._tasks), timeout=_BEAT)
                for folder, event in self._ray.get(self._desk.take.remote()):
                    self._tell(folder, event)
                outcomes += [outcome for reference in done if (outcome := self._finish(reference)) is not None]
                if self._stopping and not stopped:
                    stopped = True
                    self._stop_all()
        finally:
            for reference in self._tasks:
                self._ray.cancel(reference, force=True)
        return outcomes

    def _submit(self, folder: TrialFolder) -> None:
        whole = TrialFolder(folder.path.resolve())  # nodes have another working directory
        self._tasks[self._remote.remote(whole, self._timeout, self._desk, self._settings)] = folder

    def _say_if_nothing_fits(self) -> None:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if self._tasks and not any(all(node.get(k, 0) >= n for k, n in self._needs.items()) for node in nodes):
            need = ", ".join(f"{n:g} {k}" for k, n in self._needs.items() if n)
            self._on_event(next(iter(self._tasks.values())), Waiting(f"waits: no node of the cluster has {need}"))

    def _stop_all(self) -> None:
        self._ray.get(self._desk.stop.remote())
        for reference, folder in self._tasks.items():
            if folder.id not in self._started:
                self._ray.cancel(reference)

    def _tell(self, folder: TrialFolder, event: Event) -> None:
        if isinstance(event, Starting):
            self._started[folder.id] = time.monotonic()
        self._on_event(folder, event)

    def _finish(self, reference: Any) -> Outcome | None:
        folder = self._tasks.pop(reference)
        errors = self._ray.exceptions
        try:
            outcome: Outcome | None = self._ray.get(reference)
            return outcome
        except errors.TaskCancelledError:
            return None
        except errors.RayTaskError as error:
            cause = error.cause
            known = isinstance(cause, UsageError)
            return self._failed(folder, str(cause) if known else f"its node cannot run it: {cause!r}")
        except errors.RayError as error:
            return self._after_loss(folder, f"lost with its node ({type(error).__name__})")

    def _after_loss(self, folder: TrialFolder, what: str) -> Outcome | None:
        if folder.id in self._started:
            folder.note_attempt(time.monotonic() - self._started.pop(folder.id), "lost")
        if self._stopping:
            self._on_event(folder, Ended("interrupted"))
            return Outcome(folder, "interrupted")
        self._lost[folder.id] += 1
        if self._lost[folder.id] > RETRIES:
            return self._failed(folder, f"{what}, the {RETRIES + 1}th time; run again to continue from its last epoch")
        self._on_event(folder, Waiting(f"{what}; starts on another"))
        self._submit(folder)
        return None

    def _failed(self, folder: TrialFolder, reason: str) -> Outcome:
        self._on_event(folder, Ended("failed", reason))
        return local.noted_failure(folder, "node", reason)


class _Desk:
    """An actor beside the driver: where nodes leave their trials' events, and read whether to stop."""

    def __init__(self) -> None:
        self._events: list[tuple[TrialFolder, Event]] = []
        self._stopping = False

    def leave(self, folder: TrialFolder, events: list[Event]) -> bool:
        """Take events in, and tell whether the run is stopping."""
        self._events += [(folder, event) for event in events]
        return self._stopping

    def take(self) -> list[tuple[TrialFolder, Event]]:
        """Give all events since the last call, in the order in which they came."""
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        """Let everyone finish their epoch."""
        self._stopping = True


def _run_on_node(folder: TrialFolder, timeout: float, desk: Any, settings: Mapping[str, str]) -> Outcome | None:
    """Run a trial as a Ray task, and give its outcome; None if the run was stopped before the trial started."""
    os.environ.update(settings)
    if not folder.prepared():
        raise UsageError(
            f"node {socket.gethostname()} does not see {folder.path}. The run store and --data-dir must be on a disk that "
            "all nodes share, under the same path."
        )
    reporter = _Reporter(folder, desk)
    run = local.Run(reporter.note, timeout)
    with reporter.reporting(run):
        return run.one(folder)


class _Reporter:
    """Brings a trial's events to the desk every `_BEAT`, and back from there the wish to stop."""

    def __init__(self, folder: TrialFolder, desk: Any) -> None:
        self._folder = folder
        self._desk = desk
        self._events: list[Event] = []
        self._lock = threading.Lock()
        self._reported, self._over = threading.Event(), threading.Event()
        self._stop_forwarded = False

    def note(self, folder: TrialFolder, event: Event) -> None:
        """Keep an event for the next report; of steps in a row, the last."""
        with self._lock:
            if self._events and isinstance(event, Step) and isinstance(self._events[-1], Step):
                self._events.pop()
            self._events.append(event)

    @contextlib.contextmanager
    def reporting(self, run: local.Run) -> Iterator[None]:
        """Report while active, once before and once after, so that every event of an ended trial is known.

        All reports come from a thread of their own: where a task's main thread waits for an answer, Ray lends its processors to
        the next task, and a second trial would run on them.
        """
        thread = threading.Thread(target=self._report_until_over, args=(run,), daemon=True)
        thread.start()
        self._reported.wait()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _report_until_over(self, run: local.Run) -> None:
        try:
            self._report(run)
        finally:
            self._reported.set()
        while not self._over.wait(_BEAT):
            self._report(run)
        self._report(run)

    def _report(self, run: local.Run) -> None:
        import ray

        with self._lock:
            events, self._events = self._events, []
        try:
            stopping = ray.get(self._desk.leave.remote(self._folder, events))
            if stopping and not self._stop_forwarded:  # a second stop would not let it finish its epoch
                self._stop_forwarded = True
                run.stop()
        except ray.exceptions.RayError:  # the driver is gone: nobody would know that this trial still runs
            run.stop(at_once=True)
