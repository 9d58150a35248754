"""Checkpoints of calibration: one that was killed goes on where it stopped.

What was observed so far is written every half minute to the user's cache folder, with a digest of
the samples it came from. A calibration of the same values of the same model finds it, reads the
samples up to that place again without running them, and goes on if they are the same. When it is
done the file is deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import __version__
from graphopt.errors import ModelError
from graphopt.io.digest import digest
from graphopt.io.replacing import replace_files

__all__ = ["Progress", "cache_folder"]

Feeds = Mapping[str, np.ndarray[Any, Any]]

#: Seconds between two writings; what takes less is not written at all.
EVERY = 30.0


def cache_folder() -> Path:
    """Where this user's programs keep what they can do without ($XDG_CACHE_HOME, ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "graphopt"


class Progress:
    """The state of one calibration on disk.

    Args:
        model, key: what is calibrated, and how; another model or key is another file.
    """

    def __init__(self, model: ir.Model, key: str) -> None:
        self._model, self._key = model, key
        self._folder = cache_folder() / "calibration"
        self._digest = hashlib.sha256()
        self._due = time.monotonic() + EVERY

    @cached_property
    def path(self) -> Path:
        """The file. Telling models apart reads all their weights, so few calibrations ask."""
        whole = f"{__version__}\n{self._key}\n{digest(self._model)}"
        return self._folder / f"{hashlib.sha256(whole.encode()).hexdigest()[:24]}.state"

    def load(self) -> tuple[int, str, Feeds | None]:
        """How many samples were taken in, their digest, and the state; (0, "", None) if none."""
        if not any(self._folder.glob("*.state")):
            return 0, "", None
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as file:
                state = {name: file[name] for name in file.files}
            return int(state.pop("done")), str(state.pop("digest")), state
        except Exception:  # none, cut off, or of another format: reading fails in many ways
            return 0, "", None

    def skip(self, samples: Iterator[Feeds], done: int, digest: str) -> bool:
        """Read `done` samples; whether they are those that were taken in."""
        for _ in range(done):
            feed = next(samples, None)
            if feed is None:
                return False
            self._take(feed)
        return self._digest.hexdigest() == digest

    def counted(
        self, samples: Iterable[Feeds], done: int, state: Callable[[], Feeds]
    ) -> Iterator[Feeds]:
        """The samples; before each, `state()` (which holds all earlier ones) is written if due."""
        for feed in samples:
            if time.monotonic() >= self._due:
                self._write(done, state())
                self._due = time.monotonic() + EVERY
            yield feed
            self._take(feed)
            done += 1

    def close(self) -> None:
        """The calibration is done: nothing is kept."""
        if "path" in self.__dict__:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def _take(self, feed: Feeds) -> None:
        for name in sorted(feed):
            array = feed[name]
            self._digest.update(f"{name}|{array.dtype}|{array.shape}|".encode())
            data = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
            self._digest.update(data)

    def _write(self, done: int, state: Feeds) -> None:
        file = io.BytesIO()
        given: Any = {**state, "done": done, "digest": self._digest.hexdigest()}
        np.savez(file, **given)
        with contextlib.suppress(OSError, ModelError):  # where nothing can be kept, nothing is
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_files([(self.path, [file.getvalue()])])
