"""The two ways a run can end badly, as exceptions: the user's mistake and a failed trial."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """A mistake that the user can mend: bad flags, names, files or data. The CLI prints it and exits with 2.

    The text says what was wrong, where, the valid choices and, where there is one, the command that mends it.
    """


class TrialFailed(Exception):
    """A trial that cannot give a result: non-finite loss, crash, timeout. Stored as a failure; the CLI exits 1."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a misspelt name: what was asked for, the nearest known name, all valid choices."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UsageError(f"unknown {kind} {name!r}.{hint} Valid choices: {', '.join(choices) or 'none'}.")
