"""Calibration that was killed goes on where it stopped.

What was observed so far is written every half minute to the user's cache folder, with a digest of
the samples it came from. A calibration of the same values of the same model finds it, reads the
samples up to that place again without running them, and goes on if they are the same. When it is
done the file is deleted.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import __version__

__all__ = ["Progress", "cache_folder"]

Feeds = Mapping[str, np.ndarray[Any, Any]]

#: Seconds between two writings; what takes less is not written at all.
EVERY = 30.0
#: Bytes at each end of a weight that tell models apart.
ENDS = 64


def cache_folder() -> Path:
    """Where this user's programs keep what they can do without ($XDG_CACHE_HOME, ~/.cache)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "graphopt"


class Progress:
    """The state of one calibration on disk.

    Args:
        model, key: what is calibrated, and how; another model or key is another file.
        folder: where the file lies; None: `cache_folder`.
    """

    def __init__(self, model: ir.Model, key: str, folder: Path | None = None) -> None:
        whole = f"{__version__}\n{key}\n{_identity(model)}"
        name = hashlib.sha256(whole.encode()).hexdigest()[:24]
        self.path = (folder or cache_folder()) / "calibration" / f"{name}.state"
        self._digest = hashlib.sha256()
        self._due = time.monotonic() + EVERY

    def load(self) -> tuple[int, str, Any]:
        """How many samples were taken in, their digest, and the state; (0, "", None) if none."""
        try:
            done, digest, state = pickle.loads(self.path.read_bytes())
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            return 0, "", None  # there is none, or it was cut off while being written
        return int(done), str(digest), state

    def skip(self, samples: Iterator[Feeds], done: int, digest: str) -> bool:
        """Read `done` samples; whether they are those that were taken in."""
        for _ in range(done):
            feed = next(samples, None)
            if feed is None:
                return False
            self._take(feed)
        return self._digest.hexdigest() == digest

    def counted(self, samples: Iterable[Feeds], done: int, state: Any) -> Iterator[Feeds]:
        """The samples; before each, `state` (which holds all earlier ones) is written if due."""
        for feed in samples:
            if time.monotonic() >= self._due:
                self._write(done, state)
                self._due = time.monotonic() + EVERY
            yield feed
            self._take(feed)
            done += 1

    def close(self) -> None:
        """The calibration is done: nothing is kept."""
        self.path.unlink(missing_ok=True)

    def _take(self, feed: Feeds) -> None:
        for name in sorted(feed):
            self._digest.update(name.encode())
            self._digest.update(np.ascontiguousarray(feed[name]).data)

    def _write(self, done: int, state: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent)
        with os.fdopen(handle, "wb") as file:
            pickle.dump((done, self._digest.hexdigest(), state), file)
        Path(name).replace(self.path)


def _identity(model: ir.Model) -> str:
    """A digest of the graph and of the ends of its weights (weights may be many gigabytes)."""
    digest = hashlib.sha256()
    for node in model.graph:
        text = [node.domain, node.op_type, *(v.name or "" for v in node.inputs if v is not None)]
        text += [o.name or "" for o in node.outputs]
        digest.update("\0".join(text).encode())
    for name, value in sorted(model.graph.initializers.items()):
        digest.update(name.encode())
        tensor = value.const_value
        if tensor is not None and tensor.size:
            flat = tensor.numpy().reshape(-1)
            digest.update(flat[:ENDS].tobytes())
            digest.update(flat[-ENDS:].tobytes())
    return digest.hexdigest()
