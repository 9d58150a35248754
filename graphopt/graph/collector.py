"""Cyclic garbage collection, paused where graphs of many objects are made and all of them stay.

The collector looks at every object again whenever their number has grown by a quarter; a graph is
some hundred objects a node, of which reading, rewriting and proving free next to none.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["resting_collector"]


@contextmanager
def resting_collector() -> Iterator[None]:
    """Collect no cycles while the context is open."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()
