"""Float islands: which nodes can compute in half precision, and why the others stay float.

half = the operator takes float16
       and every value it reads or makes stays within +-32752 (half of float16's largest)
       and no weight of it is lost below 2^-24 (float16's smallest step)
       and a product's output moves by at most 2^-6 of itself where its inputs are rounded
       and it lies in a region of half nodes that multiplies matrices: casts must pay off

Masks are excepted: a value far below the range that only flows into a Softmax stands for "never",
and any number that Softmax turns to zero says the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.analyses.shapes.facts import Shapes
from graphopt.calibration.ranges import Observed
from graphopt.graph.constants import constant_value, is_constant

__all__ = [
    "HEAVY",
    "LARGEST",
    "MASKED",
    "ROUNDED",
    "Places",
    "half_nodes",
    "half_places",
    "is_mask",
    "position_nodes",
    "why_float",
]

#: Values beyond this leave no room for inputs that the samples did not show.
LARGEST = float(np.finfo(np.float16).max) / 2
#: Values below this have fewer than float16's ten bits.
SMALLEST = float(np.finfo(np.float16).tiny)
#: What a mask's minus infinity becomes: Softmax gives 0 for it, and sums with it stay finite.
MASKED = -3e4
#: Relative L2 error of a weight rounded to float16 that is the format's own, 2^-11, and no loss.
ROUNDED = 2.0**-10

HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "GRU", "LSTM", "RNN"})
FUSED = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention", "FusedMatMul"})
#: Operators that count or add up, and those that need every digit of what was counted.
POSITIONS, PERIODIC = frozenset({"CumSum", "Range"}), frozenset({"Cos", "Sin"})
#: What a mask may pass through on its way to a Softmax.
CARRIERS = frozenset(
    [
        "Add",
        "Where",
        "Mul",
        "Cast",
        "Expand",
        "Reshape",
        "Unsqueeze",
        "Squeeze",
        "Slice",
        "Concat",
        "Transpose",
        "Identity",
        "Min",
        "Max",
        "Gather",
    ]
)
#: Rounding and casting are their own business.
NEVER = frozenset({"Cast", "CastLike", "DequantizeLinear", "QuantizeLinear"})


@dataclasses.dataclass(frozen=True)
class Places:
    """Positions of a node's inputs and outputs that are half if the node is."""

    inputs: frozenset[int]
    outputs: frozenset[int]


def half_places(node: ir.Node, opset: int) -> Places | None:
    """Where `node` may take and give float16, or None if it must not be half.

    Every output of a type that may be half must share its type variable with an input.
    """
    if node.domain not in ("", "ai.onnx"):
        known = node.domain == "com.microsoft" and node.op_type in FUSED
        every = frozenset(range(len(node.inputs))), frozenset(range(len(node.outputs)))
        return Places(*every) if known else None
    if node.op_type in NEVER or any(a.type in _GRAPHS for a in node.attributes.values()):
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    free = {
        c.type_param_str
        for c in schema.type_constraints
        if {"tensor(float16)", "tensor(float)"} <= set(c.allowed_type_strs)
    }
    taken = [_kind(schema.inputs, i) for i in range(len(node.inputs))]
    given = [_kind(schema.outputs, i) for i in range(len(node.outputs))]
    if any(t in free and t not in taken for t in given) or not free & {*taken}:
        return None
    return Places(
        frozenset(i for i, t in enumerate(taken) if t in free),
        frozenset(i for i, t in enumerate(given) if t in free),
    )


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _kind(parameters: Sequence[Any], i: int) -> str:
    """The type variable (or type) of a formal parameter; the last one may be variadic."""
    return str(parameters[min(i, len(parameters) - 1)].type_str)


def position_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that compute with positions alone, up to their Sin and Cos: half counts only to 2048.

    Positions are what Range and CumSum make, and what follows from them and constants, but for
    products with weights that no Sin or Cos reads.
    """
    order = [n for n in graph if n.domain in ("", "ai.onnx")]
    made: set[ir.Value] = set()
    found: list[ir.Node] = []
    for node in order:
        read = [v for v in node.inputs if v is not None and not is_constant(v)]
        if node.op_type in POSITIONS or (read and all(v in made for v in read)):
            found.append(node)
            if node.op_type not in PERIODIC:
                made.update(node.outputs)
    ending: set[ir.Value] = set()
    kept: set[ir.Node] = set()
    for node in reversed(found):
        periodic = node.op_type in PERIODIC or any(v in ending for v in node.outputs)
        if periodic:
            ending.update(v for v in node.inputs if v is not None)
        if periodic or node.op_type not in HEAVY:
            kept.add(node)
    stack = list(kept)
    while stack:  # and what gives the constants among them
        for value in stack.pop().inputs:
            producer = value.producer() if value is not None and is_constant(value) else None
            if producer is not None and producer not in kept:
                kept.add(producer)
                stack.append(producer)
    return kept


def why_float(
    node: ir.Node, places: Places, ranges: Mapping[str, Observed | None], known: Shapes
) -> str:
    """Why `node`, whose operator could, must not compute in half precision; "" if it may."""
    inputs = [node.inputs[i] for i in sorted(places.inputs)]
    for value in (*inputs, *(node.outputs[i] for i in sorted(places.outputs))):
        if value is None or not value.name:
            continue
        dtype = known.dtype(value)
        if dtype is None:
            return f"the type of {value.name} is unknown"
        tensor = constant_value(value)
        if tensor is not None and dtype == ir.DataType.FLOAT:
            reason = _constant(value, tensor)
        else:
            reason = _activation(value, ranges.get(value.name))
        if reason:
            return reason
    return ""


def _constant(value: ir.Value, tensor: ir.TensorProtocol) -> str:
    array = tensor.numpy()
    finite = array[np.isfinite(array)]
    if finite.size and finite.max() > LARGEST:
        return f"{value.name} holds {finite.max():.3g}"
    if array.size and array.min() < -LARGEST:
        return "" if is_mask(value) else f"{value.name} holds {array.min():.3g}"
    with np.errstate(over="ignore"):
        lost = np.linalg.norm(array - array.astype(np.float16).astype(array.dtype))
    if lost > ROUNDED * np.linalg.norm(array):
        return f"{value.name} has weights that are too small for half precision"
    return ""


def _activation(value: ir.Value, seen: Observed | None) -> str:
    if seen is None:
        return ""
    if seen.hi > LARGEST:
        return f"{value.name} reaches {seen.hi:.3g}"
    if seen.lo < -LARGEST and not is_mask(value):
        return f"{value.name} reaches {seen.lo:.3g}"
    if 0 < max(abs(seen.lo), abs(seen.hi)) < SMALLEST:
        return f"{value.name} stays below {SMALLEST:.2g}"
    return ""


def is_mask(value: ir.Value) -> bool:
    """Whether `value` ends in Softmax wherever it flows, and only sums and moves on the way."""
    seen: set[ir.Value] = set()
    stack = [value]
    while stack:
        at = stack.pop()
        if at in seen:
            continue
        seen.add(at)
        if at.is_graph_output() or not at.uses():
            return False
        for use in at.uses():
            if use.node.op_type in CARRIERS:
                stack.extend(use.node.outputs)
            elif use.node.op_type != "Softmax":
                return False
    return True


def half_nodes(able: Iterable[ir.Node]) -> set[ir.Node]:
    """Those of `able` whose region (connected through values) multiplies matrices somewhere."""
    left = dict.fromkeys(able)
    chosen: set[ir.Node] = set()
    while left:
        stack = [next(iter(left))]
        region: list[ir.Node] = []
        while stack:
            node = stack.pop()
            if node not in left:
                continue
            del left[node]
            region.append(node)
            stack += [p for v in node.inputs if v is not None and (p := v.producer()) is not None]
            stack += [use.node for v in node.outputs for use in v.uses()]
        if any(n.op_type in HEAVY or n.op_type in FUSED for n in region):
            chosen.update(region)
    return chosen
