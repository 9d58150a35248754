"""The built-in passes. They use only graphopt's public API, as a pass of your own would."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.passes.fuse import Fuse as Fuse
    from graphopt.passes.int8 import Int8 as Int8

_WHERE = {"Fuse": "fuse", "Int8": "int8"}

__all__ = ["Fuse", "Int8"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'graphopt.passes' has no attribute '{name}'")
    return getattr(import_module(f"graphopt.passes.{_WHERE[name]}"), name)
