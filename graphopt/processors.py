"""How many processors this process may use, found at run time."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["processors", "threads_to_ask_for"]


def processors() -> int:
    """Processors this process may use: its affinity, and a container's quota if that is less."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = _quota(Path("/sys/fs/cgroup/cpu.max"))
    return max(1, min(count, math.ceil(quota))) if quota else count


def threads_to_ask_for() -> int:
    """0, which leaves the choice to the runtime, unless this process has only part of the machine.

    Runtimes count the machine's cores and know nothing of a container's quota.
    """
    count = processors()
    return 0 if count == os.cpu_count() else count


def _quota(file: Path) -> float | None:
    """Processors' worth of time in a control group's cpu.max ("150000 100000"); None: no limit."""
    if not file.is_file():
        return None
    allowed, _, period = file.read_text().strip().partition(" ")
    return None if allowed == "max" else int(allowed) / int(period or 100000)
