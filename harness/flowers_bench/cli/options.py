"""Parse the command line of `run`, and refuse what is wrong in it or does not go together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_path

from flowers_bench.util.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from flowers_bench.store.remote import RemoteStore

#: The longest `--timeout` in seconds: a year.
LONGEST = 366 * 86400
EXECUTORS = ("local", "ray")
#: Keys that have a command-line option of their own, and are therefore refused by `--set`.
OWN_OPTIONS = {
    "technique": "--plugin",
    **{
        key: f"--{key}"
        for key in (
            "data",
            "backbone",
            "weights",
            "loss",
            "augmentation",
            "predictor",
            "step",
            "shots",
            "seeds",
            "search",
        )
    },
}
#: The keys among them that `--sweep` refuses too.
NOT_SWEPT = ("technique", "shots", "seeds", "search")


@dataclass(frozen=True)
class Factors:
    """Values that replace those of a technique or a suite; None where the command line has no value."""

    data: str | None = None
    backbone: str | None = None
    weights: str | None = None
    loss: str | None = None
    augmentation: str | None = None
    predictor: str | None = None
    step: str | None = None

    def given(self) -> dict[str, str]:
        """Give the values that are not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Shard:
    """Shard `number` of `count`, counted from 1. Each trial of a command is in exactly one shard."""

    number: int = 1
    count: int = 1

    @property
    def indices(self) -> slice:
        """The indices of this shard's trials: every `count`-th, beginning with the shard's own."""
        return slice(self.number - 1, None, self.count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class Deciding:
    """What `--decide` asks for: the margin in points, the most seeds, and seconds after which no look is begun."""

    margin: float
    seeds_max: int
    budget: float | None

    @classmethod
    def parse(cls, margin: float | None, seeds_max: int | None, budget: str, seeds: int | None) -> Deciding | None:
        """Parse the options; None without `--decide`.

        Raises:
            UsageError: one does not have its form, or does not go with the others.
        """
        if margin is None:
            if seeds_max is not None or budget:
                raise UsageError("--seeds-max and --budget go with --decide POINTS.")
            return None
        if seeds is not None:
            raise UsageError("--decide says itself how many seeds it takes: give --seeds-max instead of --seeds.")
        return cls(margin, seeds_max or 30, _seconds(budget) if budget else None)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found or not float(found[1]):
        raise UsageError(f"--budget {text}: expected a time such as 90s, 45m or 2h.")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The parsed command line of `run`; later code does not look at its text again.

    Attributes:
        suite: name or file of a suite; None if `techniques` or `plugin_files` say what to run.
        techniques: `NAME`, `NAME/VARIANT`, or `FILE.py/VARIANT` of a file that is among `plugin_files` too.
        settings: text of each setting by its key; it gets a type when the option of that name is known.
        sweeps: texts of the values of each swept key.
        search: how many configurations to try for each technique; 0 runs the recipes as they are; None is for the suite's
            number.
        jobs: how many trials run at once; None lets the plan choose.
        threads: threads of each trial, or None if not given.
        devices: how many devices each trial is divided among.
        device: what trials compute on: cpu, cuda or mps; None for CUDA where there is it, else the processor.
        executor: `local` or `ray`; `address` of the cluster and `gpus` of each trial go with `ray`.
        store: folder or URL of the run store.
        shots: training images of each class; empty for the whole training split, or for the suite's numbers.
        stress: whether to measure on changed test images too.
        trackers: names of trackers, each once.
        decide: what is to be decided by adding seeds; `seeds` is then the most that there may be.
    """

    suite: str | None
    techniques: Sequence[str]
    plugin_files: Sequence[Path]
    factors: Factors
    seeds: int | None
    settings: Mapping[str, str]
    sweeps: Mapping[str, Sequence[str]]
    data_dir: Path | None
    store: str
    jobs: int | None
    shard: Shard
    search: int | None
    threads: int | None
    executor: str
    address: str | None
    gpus: float | None
    shots: Sequence[int]
    stress: bool
    trackers: Sequence[str]
    devices: int
    device: str | None
    decide: Deciding | None

    @classmethod
    def parse(
        cls,
        *,
        suite: str | None = None,
        plugin: str = "",
        factors: Factors = Factors(),
        seeds: int | None = None,
        settings: Sequence[str] = (),
        sweeps: Sequence[str] = (),
        data_dir: Path | None = None,
        store: str = "runs",
        jobs: int | None = None,
        shard: str = "1/1",
        search: int | None = None,
        threads: int | None = None,
        executor: str = "local",
        address: str | None = None,
        gpus: float | None = None,
        shots: str = "",
        stress: bool = False,
        track: str = "",
        devices: int = 1,
        device: str | None = None,
        decide: float | None = None,
        seeds_max: int | None = None,
        budget: str = "",
    ) -> RunOptions:
        """Parse the texts of the command line.

        `plugin` and `track` are names with commas, `settings` are `KEY=VALUE`, `sweeps` are `KEY=V1,V2`, `shard` is `I/N`,
        and `shots` is `K1,K2`.

        Raises:
            UsageError: a text does not have its form.
        """
        files, techniques = split_plugins(plugin)
        deciding = Deciding.parse(decide, seeds_max, budget, seeds)
        return cls(
            suite=suite,
            techniques=techniques,
            plugin_files=files,
            factors=factors,
            seeds=deciding.seeds_max if deciding else seeds,
            settings=parse_settings(settings),
            sweeps=parse_sweeps(sweeps),
            data_dir=data_dir,
            store=store,
            jobs=jobs,
            shard=parse_shard(shard),
            search=search,
            threads=threads,
            executor=executor,
            address=address,
            gpus=gpus,
            shots=parse_shots(shots),
            stress=stress,
            trackers=list(dict.fromkeys(name.strip() for name in track.split(",") if name.strip())),
            devices=devices,
            device=device,
            decide=deciding,
        )

    @property
    def cache(self) -> Path:
        """The folder of downloads and caches."""
        return self.data_dir or user_cache_path("flowers-bench")

    @cached_property
    def remote(self) -> RemoteStore | None:
        """The store at a URL; None if the store is a folder."""
        from flowers_bench.store.mirror import is_url
        from flowers_bench.store.remote import RemoteStore

        return RemoteStore(self.store, self.cache) if is_url(self.store) else None

    @property
    def out(self) -> Path:
        """The folder in which trials run: the store, or the local mirror of the store at a URL."""
        return self.remote.mirror if self.remote else Path(self.store)

    @property
    def threads_of_a_trial(self) -> int | None:
        """Threads of each trial: `threads`; on a cluster, if that is None, `OMP_NUM_THREADS` or 1; None lets the plan choose."""
        from flowers_bench.plan.threads import threads_of_environment

        return self.threads or (None if self.executor == "local" else threads_of_environment() or 1)


def check_executor(options: RunOptions) -> None:
    """Check that the executor is known and installed, and that the options are for it.

    Raises:
        UsageError: it is not so.
    """
    if options.executor not in EXECUTORS:
        raise unknown_name("executor", options.executor, EXECUTORS)
    if options.executor == "ray":
        from flowers_bench.executors.ray import require_ray

        require_ray()
        if options.jobs and options.jobs > 1:
            raise UsageError(
                "--jobs is for one machine. On a cluster, --threads and --gpus say how much a trial takes."
            )
    elif options.address is not None or options.gpus is not None:
        raise UsageError("--address and --gpus go with --executor ray.")


def check_devices(options: RunOptions) -> None:
    """Check that there are enough devices for each trial, that no other option divides them, and that the one that was
    asked for is there. On a cluster, its nodes tell.

    Raises:
        UsageError: it is not so.
    """
    if options.device is not None:
        from flowers_bench.training.process import DEVICES, choose_device

        if options.device not in DEVICES:
            raise unknown_name("device", options.device, DEVICES)
        same = options.executor != "local" or choose_device(options.device) == choose_device(None)
        if options.devices > 1 and not same:
            raise UsageError(
                "--devices divides a trial among GPUs, or without any among processes. Leave --device out."
            )
    if options.devices == 1:
        return
    if options.executor != "local":
        raise UsageError(
            "--devices is for one machine; a trial on a Ray cluster takes one device (--gpus). Use one of them."
        )
    if options.jobs and options.jobs > 1:
        raise UsageError(
            "--jobs gives this machine to several trials, --devices to one. Use one of them; for many trials --jobs is the "
            "quicker."
        )
    from flowers_bench.executors.devices import refuse_missing

    refuse_missing(options.devices)


def parse_shard(text: str) -> Shard:
    """Parse `2/4` to the second of four shards.

    Raises:
        UsageError: the text is not `I/N` with I from 1 to N.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"--shard {text}: expected I/N with I from 1 to N, such as --shard 2/4.")
    return Shard(int(number), int(count))


def parse_shots(text: str) -> list[int]:
    """Parse `1,2,5` to `[1, 2, 5]`, and an empty text to `[]`.

    Raises:
        UsageError: the text is not a list of different whole numbers from 1.
    """
    values = [value.strip() for value in text.split(",")] if text else []
    if not all(value.isdecimal() and int(value) > 0 for value in values) or len(set(map(int, values))) < len(values):
        raise UsageError(f"--shots {text}: expected different whole numbers from 1, such as --shots 1,2,5,10.")
    return sorted(map(int, values))


def split_plugins(text: str) -> tuple[list[Path], list[str]]:
    """Split `a,b/c,./mine.py,./other.py/d` into plugin files, each once, and names: of techniques, and of a file's variants as
    they are written."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    files = [Path(f"{item.partition('.py/')[0]}.py" if ".py/" in item else item) for item in items if is_of_file(item)]
    return list(dict.fromkeys(files)), [item for item in items if not item.endswith(".py")]


def is_of_file(item: str) -> bool:
    """Tell whether an item of `--plugin` names a plugin file, or a variant in one."""
    return item.endswith(".py") or ".py/" in item


def parse_settings(settings: Sequence[str]) -> dict[str, str]:
    """Parse `["lr=3e-4"]` to `{"lr": "3e-4"}`.

    Raises:
        UsageError: a setting has no `=`, is given twice, or has a command-line option of its own.
    """
    found: dict[str, str] = {}
    for item in settings:
        key, equals, value = item.partition("=")
        if not equals or not key or not value:
            raise UsageError(f"--set {item}: expected KEY=VALUE, such as --set lr=3e-4.")
        key = key.strip()
        if key in found:
            raise UsageError(f"--set {key} is given twice.")
        if key in OWN_OPTIONS:
            raise UsageError(f"--set {key}: this has an option of its own, {OWN_OPTIONS[key]}.")
        found[key] = value.strip()
    return found


def parse_sweeps(sweeps: Sequence[str]) -> dict[str, list[str]]:
    """Parse `["prompt_length=5,10"]` to `{"prompt_length": ["5", "10"]}`.

    Raises:
        UsageError: a value is empty, a key or value is given twice, or the key cannot be swept.
    """
    found = {}
    for item in sweeps:
        key, equals, text = (part.strip() for part in item.partition("="))
        values = [value.strip() for value in text.split(",")]
        if not equals or not key or not all(values):
            raise UsageError(f"--sweep {item}: expected KEY=V1,V2,..., such as --sweep prompt_length=5,10,25.")
        if key in found or len(set(values)) < len(values):
            raise UsageError(f"--sweep {item}: {key if key in found else 'a value'} is given twice.")
        if key in NOT_SWEPT:
            raise UsageError(f"--sweep {key}: this has an option of its own, {OWN_OPTIONS[key]}.")
        found[key] = values
    return found
