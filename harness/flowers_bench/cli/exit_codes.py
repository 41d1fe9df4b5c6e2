"""What the command line exits with beside 0, which is done."""

from __future__ import annotations

#: A trial failed, or a file of a run store is damaged; the user's mistake; stopped by SIGINT.
FAILED, USAGE, INTERRUPTED = 1, 2, 130
