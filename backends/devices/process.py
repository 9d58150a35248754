"""Converters in a process of their own: what they print, log, load and crash with stays there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from graphopt.children import child_command
from graphopt.errors import ModelError

__all__ = ["run_function", "run_module", "run_program"]

#: Seconds after which a converter is taken for hanging.
LIMIT = 1800


def run_module(module: str, arguments: Sequence[object], folder: Path) -> str:
    """Run `python -m module` in `folder`; what it prints. Raises ModelError if it fails."""
    command = [sys.executable, "-P", "-W", "ignore", "-m", module]
    return run_program([*command, *arguments], folder, module.partition(".")[0])


def run_function(
    module: str, function: str, arguments: Sequence[object], folder: Path, name: str
) -> str:
    """Call a function of a module in a process of its own; as `run_program`."""
    return run_program([*child_command(module, function), *arguments], folder, name)


def run_program(command: Sequence[object], folder: Path, name: str) -> str:
    """Run a converter's program in `folder`; what it prints.

    Raises ModelError: it ended with an error, in its own last words, or did not end.
    """
    try:
        done = subprocess.run(
            [str(c) for c in command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{name} did not end within {LIMIT} s") from error
    if done.returncode:
        said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        last = said[-1][:300] if said else "it said nothing"
        raise ModelError(f"{name} failed (exit code {done.returncode}): {last}")
    return done.stdout
