"""Weights that are not finite: found by one streaming look, told in plain sentences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt.io.reading import NOTES, graphs_of, source_of
from graphopt.io.tensors import chunks

__all__ = ["warnings_of"]

#: Operators whose constants are weights, where an Inf is a fault too. Elsewhere (masks that add
#: minus infinity, bounds of Clip) it is meant.
_WEIGHTED = frozenset(
    {
        *("Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul", "GRU", "LSTM", "RNN"),
        *("BatchNormalization", "GroupNormalization", "InstanceNormalization"),
        *("LayerNormalization", "RMSNormalization", "Gather", "PRelu"),
        *("QuantizeLinear", "DequantizeLinear"),
    }
)
_FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
)
_SHOWN = 3


def warnings_of(model: ir.Model) -> list[str]:
    """Plain sentences on what is wrong with a model but does not keep it from being used.

    What was set right while reading, and weights that hold NaN or Inf. Every weight is read once,
    in chunks.
    """
    source = source_of(model)
    found: list[str] = []
    for graph in graphs_of(model):
        for name, tensor, weighted, chosen in _constants(graph):
            nan, inf = _count(tensor)
            if (nan and not chosen) or (inf and weighted):
                counts = f"{nan} NaN" if not inf else f"{nan} NaN and {inf} Inf"
                found.append(f"'{name}' ({counts} of {tensor.size} values)")
    notes = [*(source.notes if source is not None else ()), *model.graph.meta.get(NOTES, ())]
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        listed = ", ".join(found[:_SHOWN]) + more
        notes.append(
            f"Weights are not finite: {listed}. Outputs computed from them are not meaningful; "
            "check the export or the training."
        )
    return notes


def _constants(graph: ir.Graph) -> Iterator[tuple[str, ir.TensorProtocol, bool, bool]]:
    """Float constants of a graph, whether they are weights, and whether Where chooses them."""
    for name, value in graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype in _FLOATS:
            yield name, value.const_value, _is_weight(value), _is_chosen(value)
    for node in graph:
        if node.op_type != "Constant":
            continue
        made = node.outputs[0]
        tensor = ir.convenience.get_const_tensor(made)
        if tensor is not None and tensor.dtype in _FLOATS:
            yield made.name or "Constant", tensor, _is_weight(made), _is_chosen(made)


def _is_weight(value: ir.Value) -> bool:
    return any(node.op_type in _WEIGHTED for node, _ in value.uses())


def _is_chosen(value: ir.Value) -> bool:
    """Whether Where alone reads it: JAX gives NaN for what lies beyond a table."""
    users = [node for node, _ in value.uses()]
    return bool(users) and all(
        n.op_type == "Where" or (n.op_type == "Expand" and _is_chosen(n.outputs[0])) for n in users
    )


def _count(tensor: ir.TensorProtocol) -> tuple[int, int]:
    """How many NaN and how many Inf."""
    kind = tensor.dtype.numpy()
    nan = inf = 0
    for part in chunks(tensor):
        array = np.frombuffer(part, dtype=kind)
        if not np.isfinite(array).all():
            nan += int(np.isnan(array).sum())
            inf += int(np.isinf(array).sum())
    return nan, inf
