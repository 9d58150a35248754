"""Cache of measured gains: each kind of integer product is timed once on a machine.

`gains.json` in the user's cache folder (`graphopt.calibration.resume`) holds, by runtime,
instruction set and threads, the time of each operator as integers over its time as floats:

    {"cpu avx2 avx512-vnni, 2 threads, onnxruntime 1.31.1": {"MatMul [128, 768] [768, 768]": 0.31}}

A ratio above 1 leaves that operator in float. Whoever knows better edits the number, or deletes it
to have it measured again.
"""

from __future__ import annotations

import contextlib
import json
from importlib.metadata import version
from typing import Any

from graphopt.calibration.resume import cache_folder
from graphopt.errors import ModelError
from graphopt.io.replacing import alone_in, replace_files
from graphopt.target import Target

__all__ = ["Gains"]


class Gains:
    """The ratios of one target on this machine."""

    def __init__(self, target: Target) -> None:
        self.path = cache_folder() / "gains.json"
        self.machine = (
            f"{target.name} {' '.join(target.isa)}, {target.threads} threads, "
            f"onnxruntime {version('onnxruntime')}"
        )
        self._known: dict[str, float] = self._read().get(self.machine, {})
        self._new: dict[str, float] = {}

    def get(self, key: str) -> float | None:
        """Time as integers over time as floats, if it was measured before."""
        return self._known.get(key)

    def put(self, key: str, ratio: float) -> None:
        """Remember a ratio."""
        self._known[key] = self._new[key] = round(ratio, 3)

    def save(self) -> None:
        """Write what is new beside what others have written meanwhile."""
        if not self._new:
            return
        with contextlib.suppress(OSError, ModelError):  # a cache that cannot be kept is no loss
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with alone_in(self.path.parent):
                every = self._read()
                every[self.machine] = {**every.get(self.machine, {}), **self._new}
                text = json.dumps(every, indent=1, sort_keys=True)
                replace_files([(self.path, [text.encode()])])

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}  # there is none yet, or somebody's editing broke it: measured again
        return found if isinstance(found, dict) else {}
