"""Lazy import (importlib's LazyLoader) of what a dependency loads at once and hardly a run needs.

onnx_ir imports SymPy for arithmetic on symbolic sizes, which graphopt does not ask it for: 0.25
seconds of every start. Whoever uses a deferred module gets it, at its first attribute.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

__all__ = ["Deferred"]


class Deferred(MetaPathFinder):
    """Finds the modules of these names, and leaves running them to their first use."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a deferred module, which its first attribute runs; None of the others."""
        if name not in self.names:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec

    def install(self) -> None:
        """Ask this finder before the others; nothing is done for what is imported already."""
        sys.meta_path.insert(0, self)
