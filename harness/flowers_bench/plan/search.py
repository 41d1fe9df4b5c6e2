"""`--search N`: choose each technique's recipe and options on validation, with N tries for every technique.

Optuna's tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for hyper-parameter optimization") proposes
the configurations; the first is the technique's own. Each is a trial of seed 0 that never reads the test split, in a run
store of its own, `search/` inside the run store. Nothing else is kept: proposals follow from the seed and from the
results of the stored trials, so that the same command continues a search that was stopped, and a larger N extends it.

A configuration that cannot be trained counts as tried. If a trial does not finish for any other reason, its search stops:
proposals made without its result would belong to another search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.contract.dataset import silent
from flowers_bench.contract.host import Host
from flowers_bench.contract.options import Option
from flowers_bench.contract.technique import RECIPE_FIELDS, Recipe
from flowers_bench.measure.total_cost import total_cost
from flowers_bench.plan.planning import plan, searchable
from flowers_bench.plan.request import Loaded, Request, TrialPlan
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.store.identity import derive_seed
from flowers_bench.store.records import SearchFacts
from flowers_bench.util.errors import TrialDisturbed, TrialFailed, UsageError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

    from flowers_bench.executors.local import Outcome

#: Learning rate and weight decay are searched between the recipe's value divided by this and multiplied by this.
AROUND = 10.0
#: A function that runs the trials of one round, one for each search that has not ended.
Run = Callable[[int, Sequence[TrialPlan]], "Sequence[Outcome]"]


def search(
    host: Host, requests: Sequence[Request], files: Sequence[Path], run: Run, loaded: Loaded | None = None
) -> list[Search]:
    """Try `request.search` configurations for each request, all requests side by side.

    Args:
        requests: requests of one technique each (`planning.one_by_one`), with a `store` that the trials are kept in. Their
            settings are not searched.
        run: a function that gets the round's number, from 1, and its trials, runs them in `Store.of_searches`, and returns
            how they ended.
        loaded: what was read before.

    Returns:
        One search for each request; `Search.best` plans its best configuration.

    Raises:
        UsageError: Optuna is not installed, or as in `plan`.
    """
    loaded = loaded or Loaded()
    searches = [Search.begin(host, request, files, loaded) for request in requests]
    for number in range(1, max(request.search for request in requests) + 1):
        going = [one for one in searches if number <= one.request.search and one.disturbed is None]
        ended = run(number, [one.propose() for one in going]) if going else []
        for one in going:
            one.learn({outcome.folder.id: outcome for outcome in ended})
    return searches


def distributions(
    recipe: Recipe, options: Mapping[str, Option], fixed: Mapping[str, str]
) -> dict[str, BaseDistribution]:
    """Describe the search space by name: learning rate, weight decay, and every option within its declared bounds.

    Learning rate and weight decay are left out if the recipe does not train, if they are zero, or if they are `fixed`.
    """
    from optuna.distributions import FloatDistribution

    found: dict[str, BaseDistribution] = {}
    for name in ("lr", "weight_decay"):
        value = getattr(recipe, name)
        if recipe.epochs and value and name not in fixed:
            found[name] = FloatDistribution(value / AROUND, value * AROUND, log=True)
    return found | {name: _distribution(option) for name, option in options.items()}


def _distribution(option: Option) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(option.default, (bool, str)):
        return CategoricalDistribution(option.search)
    low, high = (float(bound) for bound in option.search)
    log = 0 < AROUND * low <= high
    if isinstance(option.default, int):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    """Write settings as a user would: as text, numbers with four significant digits."""
    return {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()}


@dataclass
class Search:
    """One technique's search.

    Attributes:
        tried: settings and folder of each configuration, in order.
        failed: how many configurations could not be trained.
        disturbed: why the search stopped: the last configuration did not finish, and the next proposal depends on its
            result. The same command tries it again.
    """

    host: Host
    request: Request
    files: Sequence[Path]
    loaded: Loaded
    study: Study
    space: Mapping[str, BaseDistribution]
    tried: list[tuple[dict[str, str], TrialFolder]] = field(default_factory=list)
    failed: int = 0
    disturbed: TrialDisturbed | None = None

    @classmethod
    def begin(cls, host: Host, request: Request, files: Sequence[Path], loaded: Loaded) -> Search:
        """Set up the search of the request's technique; its first proposal will be the technique's own configuration.

        Raises:
            UsageError: Optuna is not installed, or as in `plan`.
        """
        try:
            import optuna
        except ImportError:
            raise UsageError("--search needs Optuna: pip install 'flowers-bench[search]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        recipe, options = searchable(host, request)
        (own_trial,) = plan(host, replace(request, seeds=1), files, silent, loaded)
        if not own_trial.trains:
            recipe = replace(recipe, epochs=0, warmup_epochs=0)
        space = distributions(recipe, options, request.settings)
        sampler = optuna.samplers.TPESampler(seed=derive_seed(0, "search", request.title) % 2**32)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        own = {name: getattr(recipe, name) for name in space if name in RECIPE_FIELDS}
        own |= {name: option.default for name, option in options.items()}
        study.enqueue_trial(own)
        return cls(host, request, files, loaded, study, space)

    def propose(self) -> TrialPlan:
        """Propose the next configuration, as a trial that does not read the test split."""
        self._proposal = self.study.ask(dict(self.space))
        settings = _texts(self._proposal.params)
        (item,) = self._plan(settings, seeds=1)
        trial = replace(item.trial, protocol=replace(item.trial.protocol, report="none"))
        self.tried.append((settings, Store(self._out).of_searches().folder(trial.id)))
        return replace(item, trial=trial)

    def learn(self, ended: Mapping[str, Outcome]) -> None:
        """Tell the study the result of the last proposal; `ended` has the outcomes of trials by their ids."""
        from optuna.trial import TrialState

        _, folder = self.tried[-1]
        outcome = ended.get(folder.id)
        if folder.finished():
            self.study.tell(self._proposal, folder.any_result().val.top1)
        elif outcome is not None and outcome.untrainable:
            self.study.tell(self._proposal, state=TrialState.FAIL)
            self.failed += 1
        else:
            kind, reason = ("", "it was not run") if outcome is None else (outcome.kind, outcome.reason)
            self.disturbed = TrialDisturbed(
                kind,
                f"configuration {len(self.tried)} of {self.request.search} ({folder.id}) did not come to its end: {reason}. "
                "The search stops there, and nothing of it is run on the test split. The same command continues it.",
            )

    def best(self) -> list[TrialPlan]:
        """Plan the configuration with the best validation accuracy (the first of equals) with all seeds of the request.

        Raises:
            TrialFailed: no configuration could be trained.
            TrialDisturbed: a configuration did not finish.
        """
        if self.disturbed is not None:
            raise self.disturbed
        budget = self.request.search
        finished = [(settings, folder) for settings, folder in self.tried if folder.finished()]
        if not finished:
            raise TrialFailed(f"none of {budget} configurations could be trained.")
        settings, chosen = max(finished, key=lambda pair: pair[1].any_result().val.top1)
        folders = {folder.id: folder for _, folder in self.tried}
        about = SearchFacts(
            configurations=budget,
            failed=self.failed,
            trials=list(folders),
            chosen=chosen.id,
            settings=settings,
            val_top1=chosen.any_result().val.top1,
            seconds=total_cost(folders.values()).seconds,
        )
        planned = self._plan(settings, self.request.seeds)
        return [
            replace(
                item,
                trial=replace(item.trial, protocol=replace(item.trial.protocol, search=budget)),
                run=replace(item.run, search=about),
            )
            for item in planned
        ]

    def _plan(self, settings: Mapping[str, str], seeds: int) -> list[TrialPlan]:
        request = replace(self.request, settings={**self.request.settings, **settings}, seeds=seeds)
        return plan(self.host, request, self.files, silent, self.loaded)

    @property
    def _out(self) -> Path:
        assert self.request.store is not None
        return self.request.store
