"""`flowers-bench run --decide`: add seeds, all techniques in step, until each pair is decided."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowers_bench.cli.damage import print_damaged
from flowers_bench.cli.execute import (
    AGAIN,
    announce,
    at_once,
    compile_kernels,
    name_again,
    prepared,
    print_results,
    run_shown,
    was_interrupted,
)
from flowers_bench.cli.exit_codes import FAILED, INTERRUPTED
from flowers_bench.cli.progress import messages
from flowers_bench.util.errors import UsageError
from flowers_bench.util.text import printable

if TYPE_CHECKING:
    import numpy as np

    from flowers_bench.cli.options import Deciding, RunOptions
    from flowers_bench.plan.request import TrialPlan
    from flowers_bench.report.decisions import Contender
    from flowers_bench.store.decisions import Decision, PairRecord
    from flowers_bench.store.folder import Store
    from flowers_bench.store.remote import RemoteStore


def decide(planned: Sequence[TrialPlan], options: RunOptions, wanted: Deciding, timeout: float, format: str) -> int:
    """Run seeds and look, as the plan in the store says, until each pair is decided or something is spent; then print the
    leaderboard; return the exit code.

    Args:
        planned: trials of all seeds that there may be.

    Raises:
        UsageError: no two techniques can be compared, or the store has another plan for them.
    """
    from flowers_bench.store.folder import Store

    loop = _Loop.of(planned, options, wanted, Store(options.out))
    announce([item for item in planned if item.trial.seed == 0], options.store)
    compile_kernels(planned)
    code = loop.go_on(timeout)
    finished = [item for item in planned if loop.store.folder(item.trial.id).finished()]
    return max(code, print_results(finished, loop.store, options.store, format))


@dataclass
class _Loop:
    """The plan, and what is known so far.

    Attributes:
        planned: the trials of each technique in the order of their seeds, by the technique's id.
        correct: outcomes of finished trials that a look has read, by trial id.
    """

    planned: Mapping[str, Sequence[TrialPlan]]
    contenders: Sequence[Contender]
    options: RunOptions
    wanted: Deciding
    store: Store
    decision: Decision
    correct: dict[str, np.ndarray]
    jobs: int

    @classmethod
    def of(cls, planned: Sequence[TrialPlan], options: RunOptions, wanted: Deciding, store: Store) -> _Loop:
        """Read the plan for these techniques, or make and store it."""
        from flowers_bench.report.decisions import Contender
        from flowers_bench.report.names import seedless_id

        jobs, planned = at_once(planned, options)
        techniques: dict[str, list[TrialPlan]] = {}
        for item in planned:
            techniques.setdefault(seedless_id(item.described()), []).append(item)
        ordered = {key: sorted(items, key=lambda item: item.trial.seed) for key, items in techniques.items()}
        contenders = [Contender(items[0].described(), items[0].labels) for items in ordered.values()]
        decision = _planned(contenders, planned, wanted, store, options.remote)
        return cls(ordered, contenders, options, wanted, store, decision, {}, jobs)

    def go_on(self, timeout: float) -> int:
        """Run and look until nothing is open or something is spent; return the exit code."""
        from flowers_bench.report.decisions import going_on, look_again

        began = time.monotonic()
        while (going := going_on(self.decision)) and self.decision.done < len(self.decision.looks):
            seeds = self.decision.looks[self.decision.done].seeds
            wanted = [item for key in going for item in self.planned[key] if item.trial.seed < seeds]
            if self._spent(time.monotonic() - began, wanted):
                messages.print(f"the budget is spent before the look at {seeds} seeds; {_AGAIN_LATER}")
                return 0
            if code := self._train(wanted, seeds, timeout):
                return code
            if any(not self.store.folder(item.trial.id).finished() for item in wanted):
                messages.print(
                    f"the look at {seeds} seeds waits for the other shards' trials; run the same command again after them"
                )
                return 0
            self.decision = look_again(self.decision, self.contenders, self._outcomes(seeds))
            _keep(self.decision, self.store, self.options.remote)
            for line in self._in_words():
                messages.print(printable(line), markup=False)
        return 0

    def _spent(self, elapsed: float, wanted: Sequence[TrialPlan]) -> bool:
        """Say whether the budget does not reach for these trials, as long as finished ones took."""
        if self.wanted.budget is None:
            return False
        folders = [self.store.folder(item.trial.id) for item in wanted]
        took = [folder.result().cost.seconds for folder in folders if folder.finished()]
        left = (len(folders) - len(took)) * (sum(took) / len(took) if took else 0.0) / self.jobs
        return elapsed + left > self.wanted.budget

    def _train(self, wanted: Sequence[TrialPlan], seeds: int, timeout: float) -> int:
        """Run this shard's share of the trials that are not finished; return the exit code, not 0 if one is missing."""
        share = list(wanted)[self.options.shard.indices]
        named = name_again(share, self.store)
        todo, unfit = prepared(share, self.store, stress=self.options.stress, track=self.options.trackers)
        if unfit:
            return print_damaged(unfit)
        if todo:
            messages.print(f"up to {seeds} seeds: {len(todo)} trials")
        outcomes, pushed = run_shown(share, todo, named, timeout, self.options, self.jobs)
        if was_interrupted(todo, outcomes):
            messages.print(AGAIN)
            return INTERRUPTED
        if any(outcome.state == "failed" for outcome in outcomes):
            messages.print(f"no look at {seeds} seeds: a trial failed, and all must be there")
            return FAILED
        if not pushed:
            messages.print(f"no look at {seeds} seeds: its trials must be at {self.options.store} first")
            return FAILED
        return 0

    def _outcomes(self, seeds: int) -> dict[str, np.ndarray]:
        """Give the outcomes, bool (S, N) by technique, of all finished seeds below `seeds`, images in the order of keys."""
        import numpy as np

        found = {}
        for key, items in self.planned.items():
            trials = [item.trial.id for item in items if item.trial.seed < seeds]
            finished = [trial for trial in trials if self.store.folder(trial).finished()]
            found[key] = np.stack([self._correct(trial) for trial in finished])
        return found

    def _correct(self, trial: str) -> np.ndarray:
        import numpy as np

        from flowers_bench.measure.quality import correct_in_top_k

        if trial not in self.correct:
            scores = self.store.folder(trial).scores()
            order = np.argsort(scores.keys, kind="stable")
            self.correct[trial] = correct_in_top_k(scores.logits, scores.labels)[order]
        return self.correct[trial]

    def _in_words(self) -> list[str]:
        """Say what the last look found."""
        from flowers_bench.report.formatting import p_equals
        from flowers_bench.report.names import distinct_names

        looks, labels = self.decision.looks, distinct_names([contender.config for contender in self.contenders])
        names = {contender.id: label for contender, label in zip(self.contenders, labels, strict=True)}
        done = self.decision.done
        last = [pair for pair in self.decision.pairs if len(pair.p) == done]
        still = sum(pair.outcome == "open" for pair in self.decision.pairs)
        return [
            f"look {done} of {len(looks)}, {looks[done - 1].seeds} seeds: {still} of {len(self.decision.pairs)} pairs open",
            *(
                f"  {names[pair.first]} and {names[pair.second]}: {_OUTCOMES[pair.outcome]} ({p_equals(_p(pair))} over all "
                "looks and pairs)"
                for pair in last
                if pair.outcome != "open"
            ),
        ]


def _p(pair: PairRecord) -> float:
    return pair.p_within_adjusted if pair.outcome == "within" else pair.p_adjusted


_AGAIN_LATER = "run the same command again to go on: its looks stay as they were planned"
_OUTCOMES = {
    "differ": "they differ",
    "within": "within the margin",
    "images": "not to be decided by seeds: it takes more test images",
}


def _planned(
    contenders: Sequence[Contender],
    planned: Sequence[TrialPlan],
    wanted: Deciding,
    store: Store,
    remote: RemoteStore | None,
) -> Decision:
    """Read the plan that the store has for these techniques, up to the seeds wanted; or make one, and store it."""
    from flowers_bench.report.decisions import new_decision, with_seeds_max
    from flowers_bench.store.decisions import read_decision

    margin = wanted.margin / 100
    found = read_decision(store.root, [contender.id for contender in contenders])
    if found is None:
        before = sum(store.folder(item.trial.id).finished() for item in planned)
        decision = new_decision(contenders, margin, wanted.seeds_max, before)
    elif abs(found.margin - margin) > 1e-9:
        raise UsageError(
            f"--decide {wanted.margin:g}: the plan in {store.root} for these techniques is for {100 * found.margin:g} points, and "
            "was tested already. Give that margin, or decide about it in another store with --store."
        )
    else:
        decision = with_seeds_max(found, wanted.seeds_max)
    if decision is not found:
        _keep(decision, store, remote)
    return decision


def _keep(decision: Decision, store: Store, remote: RemoteStore | None) -> None:
    """Write the plan into the store, and to its URL if it has one."""
    from flowers_bench.store.decisions import write_decision

    write_decision(store.root, decision)
    if remote:
        remote.push_decision(decision.id)
