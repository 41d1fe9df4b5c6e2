"""The exit codes of the command line other than 0, which means that everything was done."""

from __future__ import annotations

#: In order: a trial failed or a file of a run store is damaged; the user made a mistake; SIGINT stopped the command.
FAILED, USAGE, INTERRUPTED = 1, 2, 130
