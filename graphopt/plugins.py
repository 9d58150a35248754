"""Plugins: passes, backends and formats by name, from the entry-point groups.

`graphopt.passes` maps a pass name to its class, `graphopt.backends` a backend name to its module
or object, `graphopt.formats` what a path ends in to a `graphopt.formats.Format`. Built-in ones are
found the same way as anybody else's.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

__all__ = ["BACKENDS", "FORMATS", "PASSES", "find", "name_of"]

PASSES, BACKENDS, FORMATS = "graphopt.passes", "graphopt.backends", "graphopt.formats"


@cache
def find(group: str) -> dict[str, EntryPoint]:
    """Every entry point of `group` by name; nothing is imported."""
    return {e.name: e for e in sorted(entry_points(group=group), key=lambda e: e.name)}


def name_of(group: str, cls: type[Any]) -> str | None:
    """The entry-point name of a class, or None; nothing is imported.

    The entry point may name the module that defines the class or a package above it.
    """
    for name, entry in find(group).items():
        inside = f"{cls.__module__}.".startswith(f"{entry.module}.")
        if inside and entry.attr == cls.__qualname__:
            return name
    return None
