"""nox -l lists what there is to run; `nox -s fast` runs one, in an environment of its own.

`nox --no-venv -s fast` takes the active environment as it is and installs nothing.
"""

from __future__ import annotations

from pathlib import Path

import nox

CPP = (".h", ".inl", ".cpp", ".cu", ".cuh")

nox.options.sessions = ["lint", "types", "fast"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True


def install(session: nox.Session, *what: str) -> None:
    """Install into the session's own environment; with `--no-venv` there is none."""
    if session.venv_backend != "none":
        session.install(*what)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests of every change; what follows `--` goes to pytest."""
    install(session, "-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def fast(session: nox.Session) -> None:
    """Run the tests that take under a minute together."""
    install(session, "-e", ".[test]")
    session.run("pytest", "-m", "fast", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check format and style, of Python and C++; `-- --fix` mends what can be mended."""
    extra = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]["test"]
    install(session, *(line for line in extra if line.startswith(("ruff", "clang-format"))))
    fix = session.posargs == ["--fix"]
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")
    session.run("ruff", "check", *session.posargs, ".")
    sources = [str(path) for folder in ("csrc", "tests") for path in Path(folder).rglob("*") if path.suffix in CPP]
    session.run("clang-format", *(["-i"] if fix else ["--dry-run", "--Werror"]), *sources)


@nox.session
def types(session: nox.Session) -> None:
    """Check types in both source roots."""
    install(session, "-e", ".[test]")
    session.run("mypy", *session.posargs)


@nox.session
def pretrain(session: nox.Session) -> None:
    """Make the weights that come with the package again, an hour or two of one core; `-- --seeds 1` for one training of each."""
    install(session, "-e", ".")
    session.run("python", "benchmarks/pretrain.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site and check every link; `-- serve` shows it while you write. Needs no torch: sources are read."""
    install(session, *nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]["docs"])
    serve = session.posargs == ["serve"]
    session.run("mkdocs", *(["serve"] if serve else ["build", "--strict", *session.posargs]))


@nox.session
def bench(session: nox.Session) -> None:
    """Time the kernel's calls; compare with an earlier run by `-- --benchmark-compare`."""
    install(session, "-e", ".[test]")
    session.run("pytest", "benchmarks", *session.posargs)


@nox.session(venv_backend="none")
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest versions of all dependencies."""
    session.run(".ci/lowest", *session.posargs, external=True)


@nox.session(venv_backend="none")
def nightly(session: nox.Session) -> None:
    """Run the slow tests."""
    session.run(".ci/nightly", *session.posargs, external=True)
