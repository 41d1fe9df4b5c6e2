"""What only some systems tell: each function says what it gives where this one does not, and nothing else asks the system.

Linux tells all of it. macOS lacks `/proc`, `/sys` and the affinity of processes.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path

#: Where Linux tells of its processes and devices.
PROC, SYS = Path("/proc"), Path("/sys")
#: Settings of glibc's `mallopt`, from its `malloc.h`.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def available_cores() -> int:
    """Count the cores that this process may use: fewer than the machine has under a job scheduler or in a container. Where
    the system does not say which, count all."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def processor_name() -> str:
    """Name the processor's model; where the system does not tell, its kind."""
    for line in (_read(PROC / "cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def processor_words() -> frozenset[str]:
    """List all words that the system says of the processor, its instructions among them; empty where it says none."""
    return frozenset((_read(PROC / "cpuinfo") or "").split())


def load_average() -> list[float]:
    """Give how many processes wanted to compute, on average over 1, 5 and 15 minutes; empty where the system counts none."""
    try:
        return list(os.getloadavg())
    except (AttributeError, OSError):
        return []


def governor() -> str | None:
    """Read the processor's frequency governor, such as `performance`; None where it is not readable."""
    text = _read(SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return None if text is None else text.strip()


def busy_seconds() -> float | None:
    """Read the processor time, in seconds, that the whole machine has spent on work since it started; None where it is not
    counted."""
    try:
        fields = (_read(PROC / "stat") or "").split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, irq, softirq, *_ = map(int, fields)
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError):
        return None


def energy_zones(folder: Path | None = None) -> list[Path]:
    """List the folders of the energy counters of the processor packages, in `folder` or where the system has them; empty
    where there are none."""
    # `intel-rapl:0` is a package (AMD's too), `intel-rapl:0:1` a part of it that is in its count already.
    return sorted(zone for zone in (folder or SYS / "class/powercap").glob("intel-rapl:*") if zone.name.count(":") == 1)


def address_space() -> int | None:
    """Read how many bytes of address space this process may have; None where there is no limit, or none is told."""
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, AttributeError, OSError, ValueError):
        return None
    return limit if limit >= 0 else None


def peak_memory() -> int | None:
    """Read the peak of this process's resident memory, in bytes; None where the system does not count it."""
    try:
        import resource
    except ImportError:
        return None
    # In kibibytes on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def unreserved_mapping() -> int:
    """Give the flag that maps a file without reserving memory for writes to it; 0 where there is none."""
    import mmap

    return int(getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0))


def keep_freed_memory() -> None:
    """Let this process keep what memory it frees for what it allocates next. Where the C library is not glibc, nothing
    changes.

    Arithmetic allocates and frees arrays of a megabyte all the time. By its defaults glibc gives each of them back to
    the system, which clears every page before it gives it out again: that took half the time of drawing petals, and a
    seventh of a small network's trial.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, 32 * 2**20)  # the most that every glibc takes
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)


class OtherLoad:
    """Measures, from when it is made, how many cores other processes keep busy."""

    def __init__(self) -> None:
        self._busy, self._own, self._start = busy_seconds(), time.process_time(), time.perf_counter()

    def cores_busy(self) -> float | None:
        """Tell, on average so far; None where the system does not tell."""
        busy, elapsed = busy_seconds(), time.perf_counter() - self._start
        if self._busy is None or busy is None or elapsed <= 0:
            return None
        return max(0.0, (busy - self._busy - (time.process_time() - self._own)) / elapsed)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
