"""`--search N`: each technique's recipe and options, found on validation alone, with as many tries for every technique.

Optuna's tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for hyper-parameter optimization") proposes
the configurations; the first is the technique's own. Each is a trial of seed 0 in a run store of its own, `search/`
inside the run store, which never reads the test split. Nothing else is kept: proposals follow from the seed and from
what the stored trials found, so that the same command continues a search that was stopped, and a larger N extends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowers_bench.data.dataset import Dataset, Progress, silent
from flowers_bench.errors import TrialFailed, UsageError
from flowers_bench.host import Host
from flowers_bench.measure.cost import total_cost
from flowers_bench.store import Store, TrialFolder
from flowers_bench.suite import Planned, Request, in_order, plan, searchable
from flowers_bench.technique import Option, Recipe
from flowers_bench.trial import Protocol, derive_seed

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

#: Learning rate and weight decay are looked for between the recipe's over this and times this.
AROUND = 10.0
#: Runs the trials of one round, one for each technique.
Run = Callable[[int, Sequence[Planned]], None]


def search(
    host: Host, request: Request, files: Sequence[Path], budget: int, run: Run, progress: Progress = silent
) -> list[Planned]:
    """Find the best of `budget` configurations for each of the request's techniques, baselines included.

    Args:
        request: whose `store` the trials are kept in; what its settings set is not searched.
        run: told the round's number, from 1, and its trials; leaves them finished or failed in `Store.of_searches`.

    Returns:
        The trials of the best configurations, with all of the request's seeds.

    Raises:
        UsageError: Optuna is missing, or as `plan`.
        TrialFailed: no configuration of a technique could be trained.
    """
    assert request.store is not None, "a search keeps its trials"
    data: dict[Any, Dataset] = {}
    planned = plan(host, replace(request, seeds=1), files, progress, data)
    labels = dict.fromkeys(item.trial.label for item in planned)
    searches = [_Search.begin(host, replace(request, techniques=[label]), files, data) for label in labels]
    for number in range(1, budget + 1):
        run(number, [found.propose() for found in searches])
        for found in searches:
            found.learn()
    return in_order(item for found in searches for item in found.best(budget))


def distributions(
    recipe: Recipe, options: Mapping[str, Option], fixed: Mapping[str, str]
) -> dict[str, BaseDistribution]:
    """What is searched, by name: learning rate and weight decay of a recipe that trains, as far as it has them and
    they are not `fixed`, and every option within the bounds that it declares."""
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


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Settings as a user would write them: numbers to four digits."""
    return {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()}


@dataclass
class _Search:
    """One technique's search.

    Attributes:
        tried: settings and folder of each configuration, in order.
    """

    host: Host
    request: Request
    files: Sequence[Path]
    data: dict[Any, Dataset]
    study: Study
    space: Mapping[str, BaseDistribution]
    tried: list[tuple[dict[str, str], TrialFolder]] = field(default_factory=list)

    @classmethod
    def begin(cls, host: Host, request: Request, files: Sequence[Path], data: dict[Any, Dataset]) -> _Search:
        try:
            import optuna
        except ImportError:
            raise UsageError("--search needs Optuna: pip install 'flowers-bench[search]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        (label,) = request.techniques
        recipe, options = searchable(host, request, label)
        space = distributions(recipe, options, request.settings)
        sampler = optuna.samplers.TPESampler(seed=derive_seed(0, "search", label) % 2**32)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        own = {name: getattr(recipe, name) for name in space if name in recipe.facts()}
        own |= {name: option.default for name, option in options.items()}
        study.enqueue_trial(own)
        return cls(host, request, files, data, study, space)

    def propose(self) -> Planned:
        """The next configuration, as a trial that does not read the test split."""
        self._asked = self.study.ask(dict(self.space))
        settings = _texts(self._asked.params)
        (item,) = self._plan(settings, seeds=1)
        trial = replace(item.trial, protocol=Protocol(report="none"))
        self.tried.append((settings, Store(self._out).of_searches().folder(trial.id)))
        return Planned(trial, item.run)

    def learn(self) -> None:
        """Tell the study what the configuration proposed last came to."""
        from optuna.trial import TrialState

        _, folder = self.tried[-1]
        if folder.finished():
            self.study.tell(self._asked, float(folder.result()["val"]["top1"]))
        else:
            self.study.tell(self._asked, state=TrialState.FAIL)

    def best(self, budget: int) -> Iterator[Planned]:
        """The trials of the configuration with the best validation accuracy, of equals the first."""
        finished = [(settings, folder) for settings, folder in self.tried if folder.finished()]
        if not finished:
            raise TrialFailed(f"{self.request.techniques[0]}: none of {budget} configurations could be trained.")
        settings, chosen = max(finished, key=lambda pair: float(pair[1].result()["val"]["top1"]))
        folders = {folder.id: folder for _, folder in self.tried}
        about = {
            "configurations": budget,
            "trials": list(folders),
            "chosen": chosen.id,
            "settings": settings,
            "val_top1": chosen.result()["val"]["top1"],
            "seconds": total_cost(folders.values())["seconds"],
        }
        for item in self._plan(settings, self.request.seeds):
            yield Planned(replace(item.trial, protocol=Protocol(search=budget)), {**item.run, "search": about})

    def _plan(self, settings: Mapping[str, str], seeds: int) -> list[Planned]:
        request = replace(self.request, settings={**self.request.settings, **settings}, seeds=seeds)
        return plan(self.host, request, self.files, silent, self.data)

    @property
    def _out(self) -> Path:
        assert self.request.store is not None
        return self.request.store
