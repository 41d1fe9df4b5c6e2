"""The ways a command can end badly, as exceptions: the user's mistake, a damaged file of a run store, a failed trial."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable


class UsageError(Exception):
    """A mistake that the user can mend: bad flags, names, files or data. The CLI prints it and exits with 2.

    The text says what was wrong, where, the valid choices and, where there is one, the command that mends it.
    """


class Unreadable(UsageError):
    """A file of a run store that is of no use: damaged, planted, or of a newer version. Its trial is left out, the others are
    shown; the CLI exits with 1, as for a failed trial.

    The text names the file, what is wrong with it, and what to do.
    """


class TrialFailed(Exception):
    """A trial that gives no result however often it is run, such as one whose loss is not finite. Stored as a failure; the
    CLI exits 1, and a search takes it as what this configuration is worth."""


class TrialDisturbed(Exception):
    """A trial that gave no result this time, and may give one the next: its process was killed, another device's was lost,
    its checkpoint is damaged. Stored as a failure; the CLI exits 1, and a search goes no further.

    Attributes:
        kind: of the failure, as in `failure.json`.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind = kind

    def __str__(self) -> str:
        return str(self.args[1])


def shortage(error: BaseException) -> str | None:
    """Say what the machine has too little of, where that is why something failed; None where the reason is another."""
    cause: BaseException | None = error
    while cause is not None:
        code = cause.errno if isinstance(cause, OSError) else None
        if isinstance(cause, OSError) and code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return f"{cause.filename or 'the output'} cannot be written: {os.strerror(code)}"
        if code in (errno.EMFILE, errno.ENFILE):
            return "there are too many open files (ulimit -n)"
        if isinstance(cause, MemoryError) or code == errno.ENOMEM or any(sign in str(cause) for sign in _NO_MEMORY):
            return "there is not enough memory: give this process more (ulimit -v, a container's or a job's limit)"
        cause = cause.__cause__ or cause.__context__
    return None


#: How libraries say it: the loader, torch, C++, and the threads of Python and of Arrow.
_NO_MEMORY = (
    "Cannot allocate memory",
    "failed to map segment",
    "can't allocate memory",
    "std::bad_alloc",
    "can't start new thread",
    "Failed to launch worker thread",
)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Make the error for a misspelt name: what was given, the nearest known name, all valid choices."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UsageError(f"unknown {kind} {name!r}.{hint} Valid choices: {', '.join(choices) or 'none'}.")
