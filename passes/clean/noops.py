"""Identity elimination: operators that return their input, as a table of laws.

Decided by shapes, static or symbolic, and by the operator's own arguments, never by a sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Context, Replacement, Walker
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.graph.building import can_replace
from graphopt.graph.constants import constant_value

__all__ = ["RULES", "Noop"]


def _always(node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Noop(Walker):
    """f(x, ...) -> x for f among `roots`, where `holds(f's node, x, facts)`"""

    name: str
    roots: tuple[str, ...]
    holds: Callable[[ir.Node, ir.Value, Shapes], bool] = _always

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        x = _input(node, 0)
        if x is None or any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
            return None
        if node.op_type == "Identity" and not can_replace(node.outputs[0], x):
            return None
        return Replacement(lambda op: x) if self.holds(node, x, ctx.get(shapes)) else None


def _attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    have = node.attributes.get(name)
    return default if have is None else have.value


def _input(node: ir.Node, k: int) -> ir.Value | None:
    return node.inputs[k] if k < len(node.inputs) else None


def _given(node: ir.Node, name: str, k: int, facts: Shapes) -> Any:
    """Numbers that are an attribute in one opset and an input in another."""
    value = _input(node, k)
    had = _attribute(node, name)
    return facts.data(value) if had is None and value is not None else had


def _same_shape(node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
    """Row-major order is kept, so equal shapes are equal tensors."""
    return facts.same_shape(x, node.outputs[0])


def _same_type(node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
    have = facts.dtype(x)
    return have is not None and have == facts.dtype(node.outputs[0])


def _only_operand(node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
    return not any(node.inputs[1:])


def _one_part(node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
    return len(node.outputs) == 1


def _not_training(node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
    """Opset 12 has an input that turns training on, opset 6 and before an attribute."""
    if facts.opsets.get("", 0) < 7:
        return bool(_attribute(node, "is_test", 0))
    mode = _input(node, 2)
    tensor = constant_value(mode)
    return mode is None or (tensor is not None and not tensor.numpy().any())


def _steps_of_one(node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
    """A forward slice of the same length starts at 0."""
    steps = _input(node, 4)
    if steps is not None:
        data = facts.data(steps)
        if data is None or data.dtype == object or not (data == 1).all():
            return False
    return facts.same_shape(x, node.outputs[0]) or _from_end_to_end(node, facts)


def _from_end_to_end(node: ir.Node, facts: Shapes) -> bool:
    """Whether a Slice starts at 0 and ends beyond any axis, whatever the shape is."""
    starts, ends = (_given(node, n, k, facts) for n, k in (("starts", 1), ("ends", 2)))
    if starts is None or ends is None or any(np.asarray(a).dtype == object for a in (starts, ends)):
        return False
    return not np.any(starts) and bool(np.all(np.asarray(ends) >= _BEYOND))


def _in_order(node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
    """The axes longer than 1 keep their order."""
    dims = facts.shape(x)
    perm = _attribute(node, "perm")
    if perm is not None and list(perm) == sorted(perm):
        return True
    if dims is None:
        return False
    order = list(range(len(dims)))[::-1] if perm is None else list(perm)
    moved = [p for p in order if dims[p] != 1]
    return moved == sorted(moved) and facts.same_shape(x, node.outputs[0])


def _zeros(node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
    """Every pad is 0: equal shapes alone would allow a shift (+1, -1)."""
    old = _attribute(node, "paddings")
    pads = _given(node, "pads", 1, facts) if old is None else old
    return pads is not None and all(isinstance(p, int) and p == 0 for p in np.ravel(pads).tolist())


def _scales_of_one(node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
    """Scales of exactly 1 sample each point at itself, except in a cropped region."""
    if _attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        return False
    if _attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return False
    if not facts.same_shape(x, node.outputs[0]):
        return False
    if _input(node, 3) is not None:  # sizes
        return True
    k = 1 if node.op_type == "Upsample" or len(node.inputs) == 2 else 2
    scales = _given(node, "scales", k, facts)
    return scales is not None and len(scales) > 0 and all(float(s) == 1.0 for s in scales)


def _axes_of_one(node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
    """Same shape, axes known: every reduced axis has one element."""
    dims = facts.shape(x)
    if dims is None or not facts.same_shape(x, node.outputs[0]):
        return False
    axes = _given(node, "axes", 1, facts)
    if axes is None and _input(node, 1) is not None:
        return False
    if axes is None or len(axes) == 0:
        noop = bool(_attribute(node, "noop_with_empty_axes", 0))
        return noop or all(d == 1 for d in dims)
    return all(dims[int(a)] == 1 for a in axes)


def _window_of_one(node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
    """Same shape with a 1-wide window and stride 1, or all positions being one."""
    dims = facts.shape(x)
    if dims is None or not facts.same_shape(x, node.outputs[0]):
        return False
    if node.op_type.startswith("Global"):
        return len(dims) > 2 and all(d == 1 for d in dims[2:])
    kernel = _attribute(node, "kernel_shape", ())
    strides = _attribute(node, "strides", [1] * len(kernel))
    pads = _attribute(node, "pads", ())
    return all(k == 1 for k in kernel) and all(s == 1 for s in strides) and not any(pads)


def _every_index(node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
    index = _input(node, 1)
    if index is None or not facts.same_shape(x, node.outputs[0]):
        return False
    tensor = constant_value(index)
    if tensor is None or len(tensor.shape) != 1:
        return False
    return bool(np.array_equal(tensor.numpy(), np.arange(tensor.size)))


#: No axis is longer: exporters write the largest integer of 32 or of 64 bits.
_BEYOND = 2**31 - 1
_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile")
_REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")

RULES = (
    # Identity(x) -> x
    Noop("Identity", ("Identity",)),
    # Dropout(x) -> x where it is not training and its mask is not used
    Noop("Dropout", ("Dropout",), _not_training),
    # Reshape, Flatten, Squeeze, Unsqueeze, Expand or Tile to the shape x has -> x
    Noop("SameShape", _VIEWS, _same_shape),
    # Slice(x) with steps 1 and as long as x -> x
    Noop("WholeSlice", ("Slice",), _steps_of_one),
    # Transpose(x) that moves no axis but those of size 1, to the same shape -> x
    Noop("StraightTranspose", ("Transpose",), _in_order),
    # Pad(x, pads = 0) -> x
    Noop("ZeroPad", ("Pad",), _zeros),
    # Resize or Upsample of x by 1 along every axis -> x
    Noop("UnitResize", ("Resize", "Upsample"), _scales_of_one),
    # the sum, mean, maximum, minimum or product over axes of size 1, kept -> x
    Noop("UnitReduce", _REDUCTIONS, _axes_of_one),
    # pooling x with a window of one element, or of a single position -> x
    Noop("UnitPool", _POOLS, _window_of_one),
    # Gather(x, [0, 1, ..., n-1]) along an axis of size n -> x
    Noop("GatherAll", ("Gather",), _every_index),
    # Split(x) into one part -> x
    Noop("WholeSplit", ("Split",), _one_part),
    # Cast(x: T, to=T) -> x
    Noop("SameCast", ("Cast", "CastLike"), _same_type),
    # Concat, Sum, Mean, Max or Min of x alone -> x
    Noop("SingleOperand", ("Concat", "Sum", "Mean", "Max", "Min"), _only_operand),
)
