"""Accuracy levels: what rounding activations to 8 bits at run time does to a product's answers.

`accuracy_level` 4 of MatMulNBits multiplies integers, 0 the floats; now and then the largest output
is another one (onnxruntime#29849).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.execution.runtime import run

__all__ = ["LEVELS", "agreement", "said", "told"]

Array = np.ndarray[Any, Any]

#: `accuracy_level` of products whose activations stay as they are, and are rounded to 8 bits.
LEVELS = (0, 4)
#: Nodes that a note names.
NAMED = 16


def agreement(node: ir.Node, x: Array) -> float:
    """Share of the rows x [n, K] whose largest output the levels agree on, by the runtime."""
    scales = node.inputs[2]
    assert scales is not None
    assert scales.dtype is not None
    x = x.astype(scales.dtype.numpy())  # rows of moments are wider than a model of halves
    given = ir.val("x", scales.dtype, x.shape)
    held = {v: _copy(v) for v in node.inputs[1:] if v is not None}
    rows = node.inputs[1]
    maker = rows.producer() if rows is not None else None
    if rows is not None and maker is not None:  # a reshaped table
        table, shape = (v.const_value for v in maker.inputs if v is not None)
        assert table is not None
        assert shape is not None
        held[rows] = _held(rows.name, table.numpy().reshape(shape.numpy()))
    made = []
    for level in LEVELS:
        attributes = {**node.attributes, "accuracy_level": ir.AttrInt64("accuracy_level", level)}
        inputs = [given, *(None if v is None else held[v] for v in node.inputs[1:])]
        one = ir.Node(node.domain, node.op_type, inputs, list(attributes.values()))
        one.outputs[0].name = f"y{level}"
        one.outputs[0].type = ir.TensorType(scales.dtype)
        made.append(one)
    graph = ir.Graph(
        [given],
        [one.outputs[0] for one in made],
        nodes=made,
        initializers=list(held.values()),
        opset_imports={"": 21, node.domain: 1},
    )
    a, b = run(ir.Model(graph, ir_version=10), {"x": x}, optimize=True).values()
    return float((a.argmax(axis=-1) == b.argmax(axis=-1)).mean())


def said(share: float) -> str:
    """What `agreement` is of one product."""
    return f"accuracy levels 0 and 4 have one largest output in {share:.3g} of the rows"


def told(shares: Sequence[tuple[str, float]]) -> str:
    """A note of what `agreement` is of each product by name, the least first."""
    ordered = sorted(shares, key=lambda s: s[1])
    each = ", ".join(f"{name} {share:.3g}" for name, share in ordered[:NAMED])
    rest = f", {ordered[NAMED][1]:.3g} or more elsewhere" if len(ordered) > NAMED else ""
    return f"accuracy levels 0 and 4 have one largest output in this share of rows: {each}{rest}"


def _copy(value: ir.Value) -> ir.Value:
    tensor = value.const_value
    return _held(value.name, np.zeros(0) if tensor is None else tensor.numpy())


def _held(name: str | None, array: Array) -> ir.Value:
    return ir.val(name or "held", const_value=ir.Tensor(array, name=name))
