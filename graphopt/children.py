"""Child processes: isolated from the working folder and the environment, dead with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from graphopt.user_code import import_path

__all__ = ["child_command", "die_with"]


def child_command(module: str, function: str) -> list[str]:
    """The command of a process that calls `module.function()`; arguments follow it.

    It ignores Python's environment variables, and imports from where this process does, but never
    from the working folder.
    """
    code = (
        f"import sys; sys.path[:] = {import_path()!r}; "
        f"from graphopt.children import die_with; die_with({os.getpid()}); "
        f"from {module} import {function}; {function}()"
    )
    return [sys.executable, "-E", "-P", "-W", "ignore", "-c", code]


def die_with(parent: int) -> None:
    """Have the system kill this process when `parent` ends (Linux), stopped or not."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent and sys.platform != "win32":  # it ended before that
        os._exit(1)
