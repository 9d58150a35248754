"""Emitting: operators added to a `.tflite` file, on the grid of the node that is being written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from graphopt.backends.litert.flatbuffer import Grid, Tensor, TfLite

__all__ = ["Emitter"]


class Emitter:
    """What adds operators.

    Attributes:
        file: what is written to.
        grid: of the result, while a node is written in integers.
    """

    def __init__(self) -> None:
        self.file = TfLite()
        self.grid: Grid | None = None
        self._requantized: dict[tuple[Tensor, Grid], Tensor] = {}

    def emit(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        options: str = "",
        dtype: str = "float32",
        **given: Any,
    ) -> Tensor:
        """An operator with one result: of floats, on the grid of the node while there is one."""
        grid = self.grid if dtype == "float32" else None
        made = self.file.tensor(shape, "int8" if grid is not None else dtype, grid=grid)
        self.file.operator(code, inputs, [made], options, given)
        return made

    def moved(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        options: str = "",
        **given: Any,
    ) -> Tensor:
        """An operator that moves elements of its first input about."""
        x = inputs[0]
        assert x is not None
        made = self.file.tensor(shape, x.dtype, grid=x.grid)
        self.file.operator(code, inputs, [made], options, given)
        return made

    def numbers(self, values: Sequence[int]) -> Tensor:
        """A constant of int32."""
        return self.file.constant(np.array(values, np.int32))

    def floats(self, array: Any) -> Tensor:
        """A constant of float32."""
        return self.file.constant(np.asarray(array, np.float32))

    def transpose(self, x: Tensor, order: Sequence[int]) -> Tensor:
        """Axis `k` of the result is axis `order[k]` of `x`."""
        if list(order) == list(range(x.rank)):
            return x
        shape = [x.shape[k] for k in order]
        kept = [k for k in order if x.shape[k] != 1]
        if kept == sorted(kept):  # nothing moves but axes of one element
            return self.reshape(x, shape)
        return self.moved("TRANSPOSE", [x, self.numbers(order)], shape, "Transpose")

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The same elements in another shape."""
        if tuple(shape) == x.shape:
            return x
        given = np.array(shape, np.int32)
        return self.moved("RESHAPE", [x, self.numbers(shape)], shape, "Reshape", newShape=given)

    def requantize(self, x: Tensor, grid: Grid) -> Tensor:
        """The same numbers on another grid."""
        if x.grid == grid and x.dtype == "int8":
            return x
        if (x, grid) not in self._requantized:
            made = self.file.tensor(x.shape, "int8", grid=grid)
            self.file.operator("QUANTIZE", [x], [made])
            self._requantized[x, grid] = made
        return self._requantized[x, grid]
