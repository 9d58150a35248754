"""Checkpoints of calibration: one that was killed goes on where it stopped.

What was observed so far is written every half minute to the cache (`graphopt.cache`), with a digest
of the samples it came from. A calibration of the same values of the same model finds it, reads the
samples up to that place again without running them, and goes on if they are the same. When it is
done the file is deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import __version__
from graphopt.cache import Cache
from graphopt.io.digest import digest

__all__ = ["Progress"]

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

#: Seconds between two writings; what takes less is not written at all.
EVERY = 30.0


class Progress:
    """The state of one calibration on disk.

    Args:
        cache: where it is; None: nowhere.
        model, key: what is calibrated, and how; another model or key is another file.

    Attributes:
        done: samples that were taken in; those that are read are numbered so.
    """

    def __init__(self, cache: Cache | None, model: ir.Model, key: str) -> None:
        self._cache, self._model, self._key = cache, model, key
        self._digest = hashlib.sha256()
        self.done = 0

    @cached_property
    def path(self) -> Path:
        """The file. Telling models apart reads all their weights, so few calibrations ask."""
        assert self._cache is not None
        whole = f"{__version__}\n{self._key}\n{digest(self._model)}"
        name = hashlib.sha256(whole.encode()).hexdigest()[:24]
        return self._cache.folder / "calibration" / f"{name}.npz"

    def resumed(
        self, samples: Callable[[], Iterator[Feeds]], state: Sequence[Array]
    ) -> Iterator[Feeds]:
        """The samples still to be taken in; before the first of them `state` is what is known.

        Args:
            samples: starts reading them from the beginning.
            state: arrays that hold all that was taken in; written when due, filled when read.
        """
        self.done, before, arrays = self._load(len(state))
        runs = samples()
        if self.done and self._skip(runs, self.done) == before:
            for mine, read in zip(state, arrays, strict=True):
                mine[...] = read
        elif self.done:
            self._digest, runs, self.done = hashlib.sha256(), samples(), 0
        due = time.monotonic() + EVERY
        for feed in runs:
            if self._cache is not None and time.monotonic() >= due:
                self._write(self.done, state)
                due = time.monotonic() + EVERY
            yield feed
            self._take(feed)
            self.done += 1

    def close(self) -> None:
        """The calibration is done: nothing is kept."""
        if "path" in self.__dict__:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def _load(self, count: int) -> tuple[int, str, list[Array]]:
        """How many samples were taken in, their digest, and the state; 0 if there is none."""
        if self._cache is None or not any((self._cache.folder / "calibration").glob("*.npz")):
            return 0, "", []
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as file:
                arrays = [file[f"state{k}"] for k in range(count)]
                return int(file["done"]), str(file["digest"]), arrays
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # none, or cut off
            return 0, "", []

    def _skip(self, samples: Iterator[Feeds], done: int) -> str:
        """Read `done` samples; their digest ("" if there are fewer)."""
        for _ in range(done):
            feed = next(samples, None)
            if feed is None:
                return ""
            self._take(feed)
        return self._digest.hexdigest()

    def _take(self, feed: Feeds) -> None:
        if self._cache is None:
            return
        for name in sorted(feed):
            array = feed[name]
            self._digest.update(f"{name}|{array.dtype}|{array.shape}|".encode())
            data = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
            self._digest.update(data)

    def _write(self, done: int, state: Sequence[Array]) -> None:
        assert self._cache is not None
        file = io.BytesIO()
        arrays: dict[str, Any] = {f"state{k}": array for k, array in enumerate(state)}
        np.savez(file, **arrays, done=done, digest=self._digest.hexdigest())
        self._cache.write(self.path, file.getvalue())
