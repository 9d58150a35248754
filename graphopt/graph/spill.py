"""Temporary files for large computed arrays, mapped from there instead of held in memory.

Passes compute new weights (folded norms, pruned or factorized layers). Kept in memory they would
add up to the size of the model; in a file, which the system can drop and read back, they cost none.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["SPILLED", "spill"]

#: Arrays of at least this many bytes are spilled.
SPILLED = 1 << 22


def spill(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The same tensor, its elements mapped from a temporary file if it is held and large."""
    if not isinstance(tensor, ir.Tensor) or tensor.nbytes < SPILLED:
        return tensor
    array = tensor.numpy()
    if isinstance(array.base, np.memmap) or isinstance(array, np.memmap) or array.dtype.hasobject:
        return tensor
    mapped = _mapped(np.ascontiguousarray(array))
    return ir.Tensor(mapped, dtype=tensor.dtype, shape=ir.Shape(array.shape), name=tensor.name)


def _mapped(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A read-only view of a copy of `array` in a file that goes when the view does."""
    with tempfile.TemporaryFile(prefix="graphopt-") as file:
        array.reshape(-1).view(np.uint8).tofile(file)
        file.flush()
        flat = np.memmap(file, np.uint8, "r")
    view: np.ndarray[Any, Any] = flat.view(array.dtype).reshape(array.shape)
    return view
