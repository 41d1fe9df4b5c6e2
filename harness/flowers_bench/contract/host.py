"""Discovery: which plugins there are, which of them work, and what they register.

pluggy calls hooks; what is added here is isolation. Stock pluggy stops at the first entry point that fails to
import and at the first implementation that raises. Here each plugin is loaded and asked on its own: a broken one
is reported by name and skipped by everything that does not need it.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import pluggy

from flowers_bench import hookspecs
from flowers_bench.contract.dataset import DatasetSource
from flowers_bench.contract.optimizer import OWN_OPTIMIZERS, SCHEDULES, Optimizer, Schedule
from flowers_bench.contract.predictor import CLASSIFIER, Predictor
from flowers_bench.contract.step import USUAL, Step
from flowers_bench.contract.technique import Augmentation, Loss, Model, Technique
from flowers_bench.util.deprecation import Deprecated, deprecated
from flowers_bench.util.errors import UsageError, unknown_name
from flowers_bench.util.text import printable, text_of

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
BUILT_IN = "flowers-bench"
#: The environment variable that switches plugins of other packages off: names with commas, or `all`.
NO_PLUGIN = "FLOWERS_BENCH_NO_PLUGIN"
#: How a file's identity begins; that of a package is its name and version.
_BY_CONTENT = "sha256:"
#: Seconds that a plugin may take to be imported and to answer the `register_*` hooks.
IMPORT_TIMEOUT = 60.0
#: Seconds that a tracker may take for one event.
TRACKER_TIMEOUT = 30.0


@dataclass(frozen=True)
class Registered(Generic[T_co]):
    """A registered value and the plugin it came from."""

    value: T_co
    plugin: str


@dataclass
class PluginStatus:
    """One plugin as found.

    Attributes:
        name: entry-point name, or the file's stem.
        origin: the distribution's name, or the file's path.
        code: what identifies the code in a trial's id: distribution and version, or the file's SHA-256.
        version: the distribution's, empty for a file.
        api: the version of the plugin API that it states, or None.
        hooks: the hooks it implements.
        error: why it is skipped, or None.
        off: switched off by the user: not even imported.
        tracker: the package that it needs if it is a tracker, whose observers are called only on demand; else None.
    """

    name: str
    origin: str
    code: str
    version: str = ""
    api: int | None = None
    hooks: list[str] = field(default_factory=list)
    error: str | None = None
    off: bool = False
    tracker: str | None = None

    @property
    def is_file(self) -> bool:
        """Say whether it is a single file, rather than a package's."""
        return self.code.startswith(_BY_CONTENT)


class Host:
    """What discovery found. Build one with `discover`.

    Attributes:
        tracking: names of the trackers whose observers are called.
        withheld: what to say of plugin files that were not loaded, where a name is unknown.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.plugins: dict[str, PluginStatus] = {}
        self.models: dict[str, Registered[Model]] = {}
        self.losses: dict[str, Registered[Loss]] = {}
        self.augmentations: dict[str, Registered[Augmentation]] = {}
        self.predictors: dict[str, Registered[Predictor]] = {CLASSIFIER.name: Registered(CLASSIFIER, BUILT_IN)}
        self.steps: dict[str, Registered[Step]] = {USUAL.name: Registered(USUAL, BUILT_IN)}
        self.optimizers: dict[str, Registered[Optimizer]] = {}
        self.schedules: dict[str, Registered[Schedule]] = {s.name: Registered(s, BUILT_IN) for s in SCHEDULES}
        self.techniques: dict[str, Registered[Technique]] = {}
        self.datasets: dict[str, Registered[DatasetSource]] = {}
        self.tracking: Collection[str] = ()
        self.withheld = ""

    def add(self, status: PluginStatus, load: Callable[[], object]) -> None:
        """Load one plugin and take in what it registers; on any failure note the reason and skip it whole."""
        if status.name in self.plugins:
            raise UsageError(
                f"two plugins are called {status.name!r}: {self.plugins[status.name].origin} and {status.origin}. "
                "Uninstall or rename one of them."
            )
        self.plugins[status.name] = status
        try:
            with _stdout_elsewhere(), _time_limit(IMPORT_TIMEOUT):
                module = load()
                self._register(status, module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            status.error = printable(f"{type(error).__name__}: {text_of(error)}")
            if self._manager.has_plugin(status.name):
                self._manager.unregister(name=status.name)

    def _register(self, status: PluginStatus, module: object) -> None:
        built_in = status.origin == BUILT_IN
        status.api = hookspecs.PLUGIN_API if built_in else getattr(module, "FLOWERS_BENCH_API", None)
        _refuse_api(status.api)
        status.tracker = getattr(module, "FLOWERS_BENCH_TRACKER", None)
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
            ("register_predictors", self.predictors, Predictor),
            ("register_steps", self.steps, Step),
            ("register_optimizers", self.optimizers, Optimizer),
            ("register_schedules", self.schedules, Schedule),
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
        """Call an observer hook in every plugin, but of trackers only in those that the user named.

        A plugin that raises does not stop the others. A tracker that raises, or takes longer than `TRACKER_TIMEOUT`, is
        not called again: its server or disk would hold up every epoch of the trial in the same way.

        Returns:
            The failures, one line each: plugin, hook, error.
        """
        failures = []
        for impl in getattr(self._manager.hook, hook).get_hookimpls():
            name = impl.plugin_name
            tracker = self.plugins[name].tracker
            if tracker and name not in self.tracking:
                continue
            try:
                with _time_limit(TRACKER_TIMEOUT) if tracker else contextlib.nullcontext():
                    impl.function(**{argument: arguments[argument] for argument in impl.argnames})
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # SystemExit included
                what = f"{type(error).__name__.lstrip('_')}: {text_of(error)}"
                if tracker:
                    self.tracking = [other for other in self.tracking if other != name]
                    failures.append(f"tracker {name!r} is left out of this trial from here on: {hook}: {what}")
                else:
                    failures.append(f"plugin {name!r} raised in {hook}: {what}")
        return failures

    def refuse_unfit_trackers(self, names: Collection[str]) -> None:
        """Raise `UsageError` for a name that is no tracker's, and for a tracker whose package is not installed."""
        trackers = {name: status for name, status in self.plugins.items() if status.tracker and not status.error}
        for name in names:
            if name not in trackers:
                raise unknown_name("tracker", name, trackers)
            status = trackers[name]
            if importlib.util.find_spec(str(status.tracker)) is None:
                extra = f"'flowers-bench[{name}]'" if status.origin.startswith(BUILT_IN) else status.tracker
                raise UsageError(f"--track {name} needs {status.tracker}, which is not installed: pip install {extra}")

    def is_built_in(self, plugin: str) -> bool:
        """Tell whether the plugin of that name came with flowers-bench; the host's own predictor, step and schedules are no plugin's."""
        status = self.plugins.get(plugin)
        return status is None or status.origin == BUILT_IN

    def broken(self) -> Iterator[PluginStatus]:
        """Give the plugins that are skipped because they do not work."""
        return (status for status in self.plugins.values() if status.error)

    def find(self, kind: str, table: Mapping[str, Registered[T]], name: str) -> Registered[T]:
        """Find the registered value of that name.

        Raises:
            UsageError: there is none. The text gives the known names, and why plugins were skipped that may have it.
        """
        if name in table:
            return table[name]
        status = self.plugins.get(name)
        if status and status.off:
            raise UsageError(f"plugin {name!r} ({status.origin}) is switched off by --no-plugin or {NO_PLUGIN}.")
        if status and status.error:
            raise UsageError(f"plugin {name!r} ({status.origin}) is broken and was skipped: {status.error}")
        raise self.unknown(kind, name, table)

    def unknown(self, kind: str, name: str, known: Iterable[str]) -> UsageError:
        """Make the error for a name that nobody registered. It names the plugins that were skipped, which may have it,
        and why they were."""
        skipped = [f"{p.name} (switched off by --no-plugin or {NO_PLUGIN})" for p in self.plugins.values() if p.off]
        skipped += [f"{p.name} (broken: {p.error})" for p in self.broken()]
        note = f" It may be registered by a plugin that was skipped: {', '.join(skipped)}." if skipped else ""
        withheld = f" {self.withheld}" if self.withheld else ""
        return UsageError(f"{unknown_name(kind, name, known)}{note}{withheld}")


@contextlib.contextmanager
def _stdout_elsewhere() -> Iterator[None]:
    """Send what is printed inside to stderr, also where it does not go through Python (the file descriptor, a child
    process).

    It must not end up in output that scripts parse.
    """
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as undo:
        with contextlib.suppress(OSError):  # one of the two is closed: nothing to be kept clean
            kept = os.dup(1)
            undo.callback(os.close, kept)
            os.dup2(2, 1)
            undo.callback(os.dup2, kept, 1)
            undo.callback(ctypes.CDLL(None).fflush, None)  # what a C library has printed so far lies in its own buffer
        yield


class _TookTooLong(BaseException):
    """Not an `Exception`, so that a plugin's own `except Exception` does not swallow it."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise in the middle of whatever Python runs inside after so many seconds; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_alarm(signum: int, frame: object) -> None:
        raise _TookTooLong(f"was not ready after {seconds:g} s")

    started = time.monotonic()
    previous = signal.signal(signal.SIGALRM, on_alarm)
    waiting, _ = signal.setitimer(signal.ITIMER_REAL, seconds)  # somebody else's, such as a test's own limit
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # first, so that it cannot go off in here
        left = max(1e-3, waiting - (time.monotonic() - started)) if waiting else 0
        signal.signal(signal.SIGALRM, previous)
        signal.setitimer(signal.ITIMER_REAL, left)


def _refuse_api(stated: object) -> None:
    oldest, newest = hookspecs.OLDEST_PLUGIN_API, hookspecs.PLUGIN_API
    if stated is not None and (not isinstance(stated, int) or isinstance(stated, bool)):
        raise UsageError(f"states FLOWERS_BENCH_API = {stated!r}: expected a whole number from {oldest} to {newest}.")
    # Before there was a second version, none had to be stated.
    version = 1 if stated is None else stated
    if not oldest <= version <= newest:
        words = "states no FLOWERS_BENCH_API, and is taken for" if stated is None else "is written for"
        cure = (
            "Install a newer version of the plugin; its author finds in docs/plugin-api-policy.md what changed"
            if version < oldest
            else "Install a newer flowers-bench (pip install -U flowers-bench), or an older version of the plugin"
        )
        raise UsageError(f"it {words} plugin API {version}; this flowers-bench accepts {oldest} to {newest}. {cure}.")


def outdated(status: PluginStatus) -> Deprecated | None:
    """Make the warning for a plugin that works and states no version of the API, or an older one than the newest."""
    if status.error or status.off or status.api == hookspecs.PLUGIN_API:
        return None
    stated = "no FLOWERS_BENCH_API" if status.api is None else f"FLOWERS_BENCH_API = {status.api}"
    instead = f"once its checks pass without other warnings, state FLOWERS_BENCH_API = {hookspecs.PLUGIN_API}"
    return deprecated(f"plugin {status.name!r} states {stated}, which", instead, "0.3")


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
        for name in (value.name, *(value.variants if isinstance(value, Technique) else ())):
            if not isinstance(name, str) or not name or not name.isprintable():
                raise UsageError(f"registers a {kind.__name__.lower()} of the name {name!r}: expected printable text")
            if kind is Optimizer and name in OWN_OPTIMIZERS:
                raise UsageError(f"optimizer {name!r} is flowers-bench's own: choose another name")
        if value.name in table:
            other = table[value.name].plugin
            raise UsageError(f"{kind.__name__.lower()} {value.name!r} is already registered by plugin {other!r}")
        if value.name in seen:
            raise UsageError(f"registers {kind.__name__.lower()} {value.name!r} twice")
        seen.add(value.name)


def discover(files: Sequence[Path] = (), *, only_built_in: bool = False) -> Host:
    """Find and load plugins: the built-in ones first, then other packages by name, then single files.

    Other packages' plugins that the environment variable `FLOWERS_BENCH_NO_PLUGIN` names are not imported.

    Args:
        files: `.py` files that are plugins themselves.
        only_built_in: leave other packages' plugins out.

    Raises:
        UsageError: a file does not exist or is not a .py file, or two plugins have one name.
    """
    host = Host()
    for found in installed():
        if only_built_in and not found.built_in:
            continue
        status = PluginStatus(
            found.name, found.distribution, f"{found.distribution} {found.version}".strip(), found.version
        )
        taken = host.plugins.get(status.name)
        if taken:
            # Somebody else's package must not stop the others: it is skipped, under a name that tells them apart.
            status.name = f"{found.name} of {status.origin}"
            status.error = f"the name {found.name!r} is taken by a plugin of {taken.origin}. Uninstall one of them."
        status.off = not found.built_in and _switched_off(found.name)
        if taken or status.off:
            host.plugins[status.name] = status
        else:
            host.add(status, found.point.load)
    for path in files:
        _add_file(host, path)
    return host


def discover_for(trial_id: str, code: Mapping[str, str], named: Sequence[Path]) -> Host:
    """Discover the plugins that a stored trial's parts come from: installed ones, and those files that `files_of_trial`
    chooses.

    Where a part comes from a file that the user did not name, the host's error for that part says so.
    """
    host = discover(files_of_trial(code, named))
    found = {_identity(path): path for path in named}
    missing = {name: identity for name, identity in _files(code).items() if identity not in found}
    if missing:
        others = [
            f" {path} is another file ({identity})."
            for identity, path in found.items()
            if identity not in code.values()
        ]
        host.withheld = (
            f"Trial {trial_id} was run with {', '.join(f'{name}.py ({identity})' for name, identity in missing.items())}. A plugin "
            f"file is never loaded because a run store names it: name that very file, --plugin ./{min(missing)}.py."
            + "".join(others)
        )
    return host


def files_of_trial(code: Mapping[str, str], named: Sequence[Path]) -> list[Path]:
    """Choose, of the plugin files that the user named, those with which a stored trial says that it was run: byte for
    byte.

    A run store is data: no code is executed because it stands, or is named, in one.

    Args:
        code: the trial's, of its `config.json`: plugins by name, a file's by its SHA-256.
    """
    return [path for path in named if _identity(path) in _files(code).values()]


def _files(code: Mapping[str, str]) -> dict[str, str]:
    return {name: identity for name, identity in code.items() if identity.startswith(_BY_CONTENT)}


@dataclass(frozen=True)
class Installed:
    """A plugin of an installed package: its entry point, and the package's name and version, `unknown` and empty where it has none."""

    point: importlib.metadata.EntryPoint
    distribution: str
    version: str

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.point.name

    @property
    def built_in(self) -> bool:
        """Whether it comes with flowers-bench."""
        return self.distribution == BUILT_IN


def installed() -> list[Installed]:
    """List the plugins of installed packages: the built-in ones first, then by name."""
    points = importlib.metadata.entry_points(group=hookspecs.PROJECT)
    # An editable install beside a source tree lists its entry points twice.
    unique = {(point.name, point.value): point for point in reversed(list(points))}
    # A distribution parses its metadata each time that it is asked its name.
    named = functools.cache(lambda package: (package.name, package.version) if package else ("unknown", ""))
    found = [Installed(point, *named(point.dist)) for point in unique.values()]
    return sorted(found, key=lambda one: (not one.built_in, one.name))


def switch_off(names: Sequence[str]) -> None:
    """Have `discover`, here and in the trials' processes, leave out plugins of other packages.

    Raises:
        UsageError: there is no such plugin, or it is a built-in one.
    """
    external = [found.name for found in installed() if not found.built_in]
    for name in names:
        if name != "all" and name not in external:
            raise unknown_name("plugin of another package", name, [*external, "all"])
    if names:
        os.environ[NO_PLUGIN] = ",".join([*filter(None, [os.environ.get(NO_PLUGIN)]), *names])


def _switched_off(name: str) -> bool:
    return not {name, "all"}.isdisjoint(item.strip() for item in os.environ.get(NO_PLUGIN, "").split(","))


def _add_file(host: Host, path: Path) -> None:
    source = _source(path)
    status = PluginStatus(path.stem, str(path), _identity(path))
    host.add(status, lambda: _load_file(path, source))


def _source(path: Path) -> bytes:
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(f"{path} is not a plugin file: expected an existing .py file.")
    return path.read_bytes()


def _identity(path: Path) -> str:
    """Hash a file, with the files beside it that it imports, and those that they import."""
    source, beside = _source(path), _neighbours(path)
    return _digest(source + b"".join(f"\0{other.name}\0".encode() + other.read_bytes() for other in beside))


def _neighbours(path: Path) -> list[Path]:
    """List the files in a plugin file's folder that it imports, in functions too, directly or through each other, by name."""
    found, todo = {path.resolve()}, [path.resolve()]
    while todo:
        try:
            nodes = list(ast.walk(ast.parse(todo.pop().read_bytes())))
        except (SyntaxError, ValueError):  # importing it will say so
            continue
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
        beside = {path.resolve().parent / f"{name.partition('.')[0]}.py" for name in names}
        new = {other for other in beside - found if other.is_file()}
        found |= new
        todo += new
    return sorted(found - {path.resolve()})


def _digest(source: bytes) -> str:
    return f"{_BY_CONTENT}{hashlib.sha256(source).hexdigest()}"


def _load_file(path: Path, source: bytes) -> ModuleType:
    """Make a module of these bytes: of those that were hashed, never of what Python may have compiled of the file
    before."""
    name = f"flowers_bench_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise UsageError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look modules up there
    beside = str(path.resolve().parent)
    if (
        beside not in sys.path
    ):  # last, so that it hides nothing; for good, because functions import when they are called
        sys.path.append(beside)
    for other in _neighbours(path):
        spec = importlib.util.find_spec(other.stem)
        if spec is None or spec.origin is None or Path(spec.origin).resolve() != other:
            raise UsageError(
                f"imports {other}, whose name another module has ({spec and spec.origin}): rename that file"
            )
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module
