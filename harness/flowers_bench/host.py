"""Discovery: which plugins there are, which of them work, and what they register.

pluggy calls hooks; what is added here is isolation. Stock pluggy stops at the first entry point that fails to
import and at the first implementation that raises. Here each plugin is loaded and asked on its own: a broken one
is reported by name and skipped by everything that does not need it.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import pluggy

from flowers_bench import hookspecs
from flowers_bench.data.dataset import DatasetSource
from flowers_bench.errors import UsageError, unknown_name
from flowers_bench.technique import Augmentation, Loss, Model, Technique

T = TypeVar("T")
BUILT_IN = "flowers-bench"


@dataclass(frozen=True)
class Registered(Generic[T]):
    """A registered value and the plugin it came from."""

    value: T
    plugin: str


@dataclass
class PluginStatus:
    """One plugin as found.

    Attributes:
        name: entry-point name, or the file's stem.
        origin: distribution and version, or the file's path.
        code: what identifies the code in a trial's id: distribution and version, or the file's SHA-256.
        hooks: the hooks it implements.
        error: why it is skipped, or None.
    """

    name: str
    origin: str
    code: str
    hooks: list[str] = field(default_factory=list)
    error: str | None = None


class Host:
    """What discovery found. Build one with `discover`."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.plugins: dict[str, PluginStatus] = {}
        self.models: dict[str, Registered[Model]] = {}
        self.losses: dict[str, Registered[Loss]] = {}
        self.augmentations: dict[str, Registered[Augmentation]] = {}
        self.techniques: dict[str, Registered[Technique]] = {}
        self.datasets: dict[str, Registered[DatasetSource]] = {}

    def add(self, status: PluginStatus, load: Callable[[], object]) -> None:
        """Load one plugin and take in what it registers; on any failure note the reason and skip it whole."""
        if status.name in self.plugins:
            raise UsageError(
                f"two plugins are called {status.name!r}: {self.plugins[status.name].origin} and {status.origin}. "
                "Uninstall or rename one of them."
            )
        self.plugins[status.name] = status
        try:
            # What a plugin prints while it is imported must not end up in output that scripts parse.
            with contextlib.redirect_stdout(sys.stderr):
                module = load()
                self._register(status, module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            status.error = f"{type(error).__name__}: {error}"
            if self._manager.has_plugin(status.name):
                self._manager.unregister(name=status.name)

    def _register(self, status: PluginStatus, module: object) -> None:
        wanted = getattr(module, "FLOWERS_BENCH_API", hookspecs.PLUGIN_API)
        if wanted != hookspecs.PLUGIN_API:
            raise UsageError(
                f"written for plugin API {wanted}, this flowers-bench has API {hookspecs.PLUGIN_API}. "
                "Install matching versions."
            )
        self._manager.register(module, name=status.name)
        callers = self._manager.get_hookcallers(module) or []
        status.hooks = sorted(caller.name for caller in callers)
        _refuse_unknown_hooks(callers)
        if not callers:
            raise UsageError("has no hook implementations: mark its functions with @flowers_bench.hookimpl")
        # Everything is checked before anything is taken, so that a broken plugin leaves nothing behind.
        found = [(table, kind, self._ask(status.name, hook, kind)) for hook, table, kind in self._tables()]
        for table, kind, values in found:
            _refuse_collisions(table, kind, values)
        for table, _, values in found:
            table.update({value.name: Registered(value, status.name) for value in values})

    def _tables(self) -> list[tuple[str, dict[str, Registered[Any]], type]]:
        return [
            ("register_models", self.models, Model),
            ("register_losses", self.losses, Loss),
            ("register_augmentations", self.augmentations, Augmentation),
            ("register_techniques", self.techniques, Technique),
            ("register_datasets", self.datasets, DatasetSource),
        ]

    def _ask(self, plugin: str, hook: str, kind: type) -> list[Any]:
        values: list[Any] = []
        for implementation in self._implementations(hook, plugin):
            returned = implementation()
            if not isinstance(returned, Sequence) or not all(isinstance(v, kind) for v in returned):
                raise UsageError(f"{hook}() must return a list of {kind.__name__}, but returned {returned!r:.200}")
            values.extend(returned)
        return values

    def _implementations(self, hook: str, plugin: str) -> list[Callable[..., Any]]:
        return [
            impl.function for impl in getattr(self._manager.hook, hook).get_hookimpls() if impl.plugin_name == plugin
        ]

    def notify(self, hook: str, **arguments: Any) -> list[str]:
        """Call an observer hook in every plugin. A plugin that raises does not stop the others.

        Returns the failures, one line each: plugin, hook, error.
        """
        failures = []
        for impl in getattr(self._manager.hook, hook).get_hookimpls():
            try:
                impl.function(**{name: arguments[name] for name in impl.argnames})
            except Exception as error:
                failures.append(f"plugin {impl.plugin_name!r} raised in {hook}: {type(error).__name__}: {error}")
        return failures

    def broken(self) -> Iterator[PluginStatus]:
        """The plugins that are skipped."""
        return (status for status in self.plugins.values() if status.error)

    def find(self, kind: str, table: Mapping[str, Registered[T]], name: str) -> Registered[T]:
        """The registered value of that name; `UsageError` says what is known and whether a broken plugin has that name."""
        if name in table:
            return table[name]
        status = self.plugins.get(name)
        if status and status.error:
            raise UsageError(f"plugin {name!r} ({status.origin}) is broken and was skipped: {status.error}")
        raise unknown_name(kind, name, table)


def _refuse_unknown_hooks(callers: Sequence[pluggy.HookCaller]) -> None:
    # pluggy accepts a misspelt hook silently until check_pending(), which stops at the first plugin.
    known = [name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction)]
    for caller in callers:
        if not caller.has_spec():
            near = difflib.get_close_matches(caller.name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"implements unknown hook {caller.name!r}.{hint}")


def _refuse_collisions(table: Mapping[str, Registered[Any]], kind: type, values: Sequence[Any]) -> None:
    seen: set[str] = set()
    for value in values:
        if value.name in table:
            other = table[value.name].plugin
            raise UsageError(f"{kind.__name__.lower()} {value.name!r} is already registered by plugin {other!r}")
        if value.name in seen:
            raise UsageError(f"registers {kind.__name__.lower()} {value.name!r} twice")
        seen.add(value.name)


def discover(files: Sequence[Path] = ()) -> Host:
    """Find and load plugins: the built-in ones first, then other packages by name, then single files.

    Args:
        files: `.py` files that are plugins themselves.

    Raises:
        UsageError: a file does not exist or is not a .py file, or two plugins have one name.
    """
    host = Host()
    points = importlib.metadata.entry_points(group=hookspecs.PROJECT)

    def order(point: importlib.metadata.EntryPoint) -> tuple[bool, str]:
        return (_distribution(point) != BUILT_IN, point.name)

    seen: set[tuple[str, str]] = set()  # an editable install beside a source tree lists its entry points twice
    for point in sorted(points, key=order):
        if (point.name, point.value) in seen:
            continue
        seen.add((point.name, point.value))
        label = f"{_distribution(point)} {point.dist.version if point.dist else ''}".strip()
        host.add(PluginStatus(point.name, label, label), point.load)
    for path in files:
        _add_file(host, path)
    return host


def _distribution(point: importlib.metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"


def _add_file(host: Host, path: Path) -> None:
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(f"{path} is not a plugin file: expected an existing .py file.")
    source = path.read_bytes()
    status = PluginStatus(path.stem, str(path), f"sha256:{hashlib.sha256(source).hexdigest()}")
    host.add(status, lambda: _load_file(path))


def _load_file(path: Path) -> ModuleType:
    name = f"flowers_bench_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look modules up there
    spec.loader.exec_module(module)
    return module
