"""Checkpoints of a quantization: one that was killed goes on at the matrix where it was.

    DIR/weights/<model, samples, options>/<matrix>.q.npy ..., values/

Only large models are worth it. What is finished is mapped from there instead of held, and goes with
the model it is in; what a kill leaves is taken up by the next run of the same pass over the same
model with the same samples.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import weakref
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import __version__
from graphopt.context import Context
from graphopt.errors import ModelError
from graphopt.io.digest import digest
from graphopt.replacing import replace_files
from graphopt.samples import Samples

__all__ = ["SHARE", "Finished"]

Array = np.ndarray[Any, Any]

#: Bytes of matrices from which on they are kept.
LARGE = 1 << 30
#: What is kept of a product that is done.
SHARE = "share"


class Finished:
    """The matrices that are done, by name.

    Args:
        model: as it is before the pass.
        ctx: of the pass; without a cache nothing is kept.
        options: the pass as text.
        nbytes: of all matrices.
        runs: of the samples, as many as the pass looks at.
    """

    def __init__(self, model: ir.Model, ctx: Context, options: str, nbytes: int, runs: int) -> None:
        self._folder: Path | None = None
        if ctx.cache is None or nbytes < LARGE:
            return
        real = ctx.samples is not None and not ctx.samples.synthetic
        samples = Samples(list(islice(ctx.samples or (), runs))).digest() if real else ""
        about = [__version__, options, str(ctx.seed), samples, digest(model)]
        name = hashlib.sha256("\n".join(about).encode()).hexdigest()[:24]
        self._folder = ctx.cache.folder / "weights" / name
        if self._folder.is_dir():
            count = len(list(self._folder.glob(f"*.{SHARE}.npy")))
            done = f", {count} products" if count else ""
            ctx.note(f"goes on from what a run that was ended had finished ({self._folder}{done})")

    @property
    def values(self) -> Path | None:
        """Where values of the samples stay until all is done."""
        return None if self._folder is None else self._folder / "values"

    def share(self, name: str, make: Callable[[], float]) -> float:
        """What `make` gives of a product whose matrix is done, as an earlier run left it."""
        known = self.known(name, [SHARE])
        if known is None:
            known = self.keep(name, {SHARE: np.array([make()])})
        return float(known[SHARE][0])

    def known(self, name: str, parts: Iterable[str]) -> dict[str, Array] | None:
        """The arrays of a matrix, mapped, if it is done."""
        if self._folder is None:
            return None
        try:
            return {part: np.load(self._path(name, part), mmap_mode="r") for part in parts}
        except (OSError, ValueError, EOFError):
            return None

    def keep(self, name: str, arrays: dict[str, Array]) -> dict[str, Array]:
        """The same arrays, mapped from where they are kept; as they are if there is no room."""
        if self._folder is None:
            return arrays
        with contextlib.suppress(OSError, ModelError):
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_files([(self._path(name, part), _file(a)) for part, a in arrays.items()])
        return self.known(name, arrays) or arrays

    def leave_with(self, model: ir.Model) -> None:
        """All is done: what was kept goes when the model does, or with the process."""
        if self._folder is not None:
            weakref.finalize(model, shutil.rmtree, self._folder, ignore_errors=True)

    def _path(self, name: str, part: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.{part}.npy"


def _file(array: Array) -> Iterable[bytes | memoryview]:
    """What `numpy.save` writes."""
    array = np.ascontiguousarray(array)
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(header, np.lib.format.header_data_from_array_1_0(array))
    return [header.getvalue(), array.reshape(-1).view(np.uint8).data]
