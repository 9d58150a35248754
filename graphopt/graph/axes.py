"""Names of dynamic axes: axes that share one have the same size in every run."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["axis_name"]


def axis_name(size: int | ir.SymbolicDim) -> str | None:
    """The name of a size; None for a number, and for "" and "?", which exporters write for any."""
    return None if isinstance(size, int) or size.value in ("", "?") else size.value
