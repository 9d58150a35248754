"""Every error graphopt raises on purpose, and the exit code a script sees.

    GraphOptError            1  internal error
    ├── UsageError           2  a wrong spec, option or argument
    ├── InputError           3  a bad model, samples or file
    │   ├── ModelError
    │   └── SamplesError
    ├── BudgetMissed         4  the pipeline ran, the budget was not met
    ├── MissingExtra         5  an optional dependency is not installed
    └── PassError            1  a pass raised or broke the graph

Each message says what happened, where, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BudgetMissed",
    "GraphOptError",
    "InputError",
    "MissingExtra",
    "ModelError",
    "PassError",
    "SamplesError",
    "UsageError",
    "nearest",
]


class GraphOptError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command line exits with."""

    exit_code = 1


class UsageError(GraphOptError):
    """The request itself is wrong: an unknown pass, option, target or an impossible argument."""

    exit_code = 2


class InputError(GraphOptError):
    """A file or value handed to graphopt cannot be used."""

    exit_code = 3


class ModelError(InputError):
    """The model cannot be read, is not valid ONNX, or cannot be written."""


class SamplesError(InputError):
    """The samples do not fit the model's inputs, are empty, or cannot be read."""


class BudgetMissed(GraphOptError):
    """No model within the budget was found; the report holds the closest one."""

    exit_code = 4


class MissingExtra(GraphOptError):
    """An optional dependency is needed: the message carries the install line."""

    exit_code = 5

    def __init__(self, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the '{extra}' extra. Install it: pip install 'graphopt[{extra}]'"
        )
        self.extra = extra


class PassError(GraphOptError):
    """A pass raised or left an invalid graph; `__cause__` is the original exception."""


def nearest(word: str, words: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest spelling, or nothing."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
