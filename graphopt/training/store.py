"""A store of runs: arrays one after another in a temporary file that is mapped and has no name."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["Store", "tensors"]

Array = np.ndarray[Any, Any]


class Store:
    """Runs of a model: the arrays of each, one after another in a temporary file.

    Attributes:
        full: runs were left out for want of room.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="graphopt-")  # noqa: SIM115
        self._places: list[list[tuple[int, np.dtype[Any], tuple[int, ...]]]] = []
        self._flat = np.zeros(0, np.uint8)
        self.full = False

    def add(self, arrays: Iterable[Array]) -> None:
        """Append a run."""
        places = []
        for array in arrays:
            self._file.seek(-self._file.tell() % 64, 1)
            places.append((self._file.tell(), array.dtype, array.shape))
            np.ascontiguousarray(array).reshape(-1).view(np.uint8).tofile(self._file)
        self._places.append(places)

    def finish(self) -> Store:
        """No more runs: map the file, which has no name and goes with the map. Returns self."""
        with self._file as file:
            if file.tell():
                file.flush()
                self._flat = np.memmap(file, np.uint8, "r")
        return self

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, run: int) -> list[Array]:
        """The arrays of a run, as views of the file."""
        found = []
        for at, dtype, shape in self._places[run]:
            size = math.prod(shape) * dtype.itemsize
            found.append(self._flat[at : at + size].view(dtype).reshape(shape))
        return found

    def digest(self) -> str:
        """SHA-256 of everything in it."""
        seen = hashlib.sha256(repr(self._places).encode())
        for at in range(0, len(self._flat), 1 << 24):
            seen.update(self._flat[at : at + (1 << 24)].data)
        return seen.hexdigest()


def tensors(arrays: Iterable[Array]) -> tuple[Any, ...]:
    """Arrays as torch tensors of their own memory."""
    import torch

    return tuple(torch.from_numpy(np.array(a)) for a in arrays)
