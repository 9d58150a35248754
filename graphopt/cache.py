"""Cache: what was measured on this machine and how far a calibration came, kept between runs.

    DIR/timings/3f2a....json      {"what": "int8 . MatMul [4, 768] [768, 768]", "ratio": 0.31, ...}
    DIR/calibration/81c0....npz   a calibration that has not finished
    DIR/weights/5b7e.../          matrices of a quantization that has not finished

An entry is one file, put in place whole, so any number of processes read and write one folder and
lose nothing of each other; folders merge by copying. A timing names the processor, runtime and
graphopt version it was taken with, and is not read by another. Whoever knows better edits `ratio`
(above 1: the change is slower) or deletes the file. What cannot be read or written is measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from graphopt import __version__
from graphopt.deploy.processors import processor
from graphopt.errors import ModelError
from graphopt.replacing import replace_files
from graphopt.target import Target
from graphopt.user_code import digest_of

__all__ = ["OFF", "Cache", "default_folder", "open_cache", "versions_of"]

#: What to give instead of a folder to keep nothing.
OFF = "off"
#: Packages whose version a timing depends on.
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/graphopt`, or `~/.cache/graphopt`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "graphopt"


def open_cache(given: str | Path | None = None) -> Cache | None:
    """The cache in a folder (None: the default one), or None for "off"."""
    if given == OFF:
        return None
    return Cache(Path(given) if given else default_folder())


class Cache:
    """The entries in one folder, which is made with the first of them.

    Args:
        folder: where they are.
        afresh: timings of before are not read, but taken anew and kept.
    """

    def __init__(self, folder: Path, *, afresh: bool = False) -> None:
        self.folder, self.afresh = folder, afresh

    def timing(self, target: Target, what: str) -> float | None:
        """Time after a change over time before it, if it was measured here before."""
        if self.afresh:
            return None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(self._timing(target, what).read_text())
            if all(found[k] == v for k, v in versions_of(target, what).items()):
                return float(found["ratio"])
        return None

    def keep_timing(self, target: Target, what: str, ratio: float) -> None:
        """Remember a ratio."""
        entry = {**versions_of(target, what), "ratio": ratio}
        text = json.dumps(entry, indent=1) + "\n"
        self.write(self._timing(target, what), text.encode())

    def _timing(self, target: Target, what: str) -> Path:
        key = hashlib.sha256(json.dumps(versions_of(target, what)).encode()).hexdigest()[:24]
        return self.folder / "timings" / f"{key}.json"

    def write(self, path: Path, content: bytes) -> None:
        """Put a whole file in place; where nothing can be kept, nothing is."""
        with contextlib.suppress(OSError, ModelError):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_files([(path, [content])])


def versions_of(target: Target, what: str) -> dict[str, Any]:
    """What a timing was taken of, where, and by which code."""
    return {
        "what": what,
        "target": f"{target.name} {digest_of(target.backend)}".strip(),
        "threads": target.threads,
        "processor": f"{processor()} {' '.join(target.isa)}".strip(),
        "runtime": _runtimes(),
        "graphopt": __version__,
    }


def _runtimes() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in RUNTIMES:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)
