"""The real command in a real pseudo-terminal of a chosen width."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path

#: What a terminal obeys and does not show.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Shown:
    """What stood in the terminal, line by line, and the exit code."""

    text: str
    code: int

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


def in_terminal(*arguments: object, columns: int, cwd: Path, typed: str = "", **more_env: str) -> Shown:
    """Run `flowers-bench` in a terminal of so many columns; `typed` is what the user types. stderr is shown there, too."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    env |= {"TERM": "xterm", "XDG_CACHE_HOME": str(cwd / "cache"), "HF_HUB_OFFLINE": "1", **more_env}
    script = Path(sys.executable).with_name("flowers-bench")
    process = subprocess.Popen(
        [str(script), *map(str, arguments)], cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    if typed:
        os.write(ours, typed.encode())
    found = b""
    while True:
        try:
            block = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not block:
            break
        found += block
    os.close(ours)
    return Shown(_CONTROL.sub("", found.decode()).replace("\r\n", "\n"), process.wait(timeout=60))
