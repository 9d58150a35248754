"""The inputs a model must be given, and which of their axes holds the samples of a run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.axes import axis_name
from graphopt.samples.time_axis import first_is_time

__all__ = ["Input", "inputs_of"]

Array = np.ndarray[Any, Any]
#: Names of axes that are not a batch, though they come first.
_NOT_BATCH = re.compile(
    r"seq|len|time|token|frame|step|height|width|point|node|edge|channel|^t$", re.I
)
#: Names of axes that are one, wherever they stand.
_BATCH = re.compile(r"batch|^(b|n|bs)$", re.I)


@dataclasses.dataclass(frozen=True)
class Input:
    """One input a model must be given.

    Attributes:
        dims: per axis its size, the name of its size, or None; None in all if the rank is unknown.
        axis: the one that holds the samples of a run; None if none does.
    """

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | str | None, ...] | None
    axis: int | None

    @property
    def batch(self) -> int | None:
        """Samples in one run along axis 0: a fixed number, or None if any number goes.

        0 if axis 0 is no batch.
        """
        if not self.dims or self.axis != 0:
            return 0
        return self.dims[0] if isinstance(self.dims[0], int) else None

    def takes(self, array: Array) -> bool:
        """Whether one run takes this array as it is."""
        return self.dims is None or (
            array.ndim == len(self.dims)
            and all(
                not isinstance(d, int) or d == n
                for d, n in zip(self.dims, array.shape, strict=True)
            )
        )

    def __str__(self) -> str:
        if self.dims is None:
            return str(self.dtype)
        return f"{self.dtype}[{', '.join('?' if d is None else str(d) for d in self.dims)}]"


def inputs_of(model: ir.Model) -> list[Input]:
    """The inputs that must be given: tensors without an initializer.

    Sequences, optionals and maps are left out: a model that needs one is not run.
    """
    found: dict[str, tuple[np.dtype[Any], tuple[int | str | None, ...] | None]] = {}
    timed: set[str] = set()
    for value in model.graph.inputs:
        if value.name is None or value.name in model.graph.initializers:
            continue
        if not isinstance(value.type, ir.TensorType):
            continue
        dims = None
        if value.shape is not None:
            dims = tuple(d if isinstance(d, int) else axis_name(d) for d in value.shape)
        found[value.name] = value.type.dtype.numpy(), dims
        if dims and not isinstance(dims[0], int) and not _BATCH.search(dims[0] or ""):
            timed |= {value.name} if first_is_time(value) else set()
    axis = _batch_axes([d for n, (_, d) in found.items() if d and n not in timed])
    return [
        Input(n, dtype, dims, None if n in timed else axis(dims))
        for n, (dtype, dims) in found.items()
    ]


def _batch_axes(
    every: list[tuple[int | str | None, ...]],
) -> Callable[[tuple[int | str | None, ...] | None], int | None]:
    """Which axis of an input holds the samples, by the names of the axes of `every` input.

    A name is a batch's if it says so, or else stands first somewhere and does not deny it. The
    axis of such a name is taken wherever it stands, else the first one if it has no other meaning.
    """
    first = {d[0] for d in every if isinstance(d[0], str) and d[0] not in d[1:]}
    said = {d for d in first if _BATCH.search(d)}
    leading = said or {d for d in first if not _NOT_BATCH.search(d)}
    within = {name for d in every for name in d[1:]}

    def axis(dims: tuple[int | str | None, ...] | None) -> int | None:
        if not dims:
            return None
        inner = next((k for k, d in enumerate(dims) if k and d in leading), None)
        if not isinstance(dims[0], str):
            return 0 if inner is None else inner
        if inner is not None and dims[0] not in said:
            return None if dims[0] in dims[1:] else inner
        named = dims[0] in leading or not (dims[0] in within or _NOT_BATCH.search(dims[0]))
        return 0 if named and dims[0] not in dims[1:] else None

    return axis
