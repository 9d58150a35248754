"""Operators that return their input: decided by shapes, static or symbolic, never by sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.graph.building import can_replace
from graphopt.graph.constants import constant_value
from graphopt.rewriting.patterns import Match

__all__ = ["RULES", "Noop"]


def _attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    have = node.attributes.get(name)
    return default if have is None else have.value


def _input(node: ir.Node, k: int) -> ir.Value | None:
    return node.inputs[k] if k < len(node.inputs) else None


class Noop(Rule):
    """f(x, ...) -> x, where `holds` shows that f does nothing."""

    def check(self, ctx: Context, match: Match, x: ir.Value) -> bool | str | None:
        """Whether the node keeps shape and type and nothing else of it is used."""
        node = match.root
        if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
            return False
        if node.op_type == "Identity" and not can_replace(node.outputs[0], x):
            return False
        facts = ctx.get(shapes)
        return self.holds(node, x, facts)

    def holds(self, node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
        """Whether the node returns `x` unchanged."""
        raise NotImplementedError

    def rewrite(self, op: Any, x: ir.Value) -> ir.Value:
        """The input stands for the output."""
        return x


class Identity(Noop):
    """Identity(x) -> x"""

    def pattern(self, op: Any, x: Any) -> Any:
        """Match any Identity."""
        return op.Identity(x)

    def holds(self, node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
        """Always."""
        return True


class Dropout(Noop):
    """Dropout(x) -> x where it is not training and its mask is not used"""

    def pattern(self, op: Any, x: Any) -> Any:
        """Match Dropout with or without ratio and mode."""
        return op.Dropout(x, ...)

    def holds(self, node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
        """Opset 12 has an input that turns training on, opset 6 and before an attribute."""
        if facts.opsets.get("", 0) < 7:
            return bool(_attribute(node, "is_test", 0))
        mode = _input(node, 2)
        tensor = constant_value(mode)
        return mode is None or (tensor is not None and not tensor.numpy().any())


class SameShape(Noop):
    """Reshape, Flatten, Squeeze, Unsqueeze, Expand or Tile to the shape x has -> x"""

    def pattern(self, op: Any, x: Any) -> Any:
        """Match operators that only change the shape."""
        names = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile")
        return op.any(*(getattr(op, name)(x, ...) for name in names))

    def holds(self, node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
        """Row-major order is kept, so equal shapes are equal tensors."""
        return facts.same_shape(x, node.outputs[0])


class WholeSlice(Noop):
    """Slice with steps 1 and as long as x -> x"""

    def pattern(self, op: Any, x: Any) -> Any:
        """Match any Slice."""
        return op.Slice(x, ...)

    def holds(self, node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
        """A forward slice of the same length starts at 0."""
        steps = _input(node, 4)
        if steps is not None:
            data = facts.data(steps)
            if data is None or data.dtype == object or not (data == 1).all():
                return False
        return facts.same_shape(x, node.outputs[0])


class StraightTranspose(Noop):
    """Transpose that moves no axis but those of size 1, to the same shape -> x"""

    def pattern(self, op: Any, x: Any) -> Any:
        """Match any Transpose."""
        return op.Transpose(x)

    def holds(self, node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
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


class ZeroPad(Noop):
    """Pad(x, pads = 0) -> x"""

    def pattern(self, op: Any, x: Any) -> Any:
        """Match any Pad."""
        return op.Pad(x, ...)

    def holds(self, node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
        """Every pad is 0: equal shapes alone would allow a shift (+1, -1)."""
        pads = _attribute(node, "pads", _attribute(node, "paddings"))
        given = _input(node, 1)
        if pads is None and given is not None:
            pads = facts.data(given)
        if pads is None:
            return False
        return all(isinstance(p, int) and p == 0 for p in np.ravel(pads).tolist())


class UnitResize(Noop):
    """Resize or Upsample by 1 along every axis -> x"""

    def pattern(self, op: Any, x: Any) -> Any:
        """Match Resize and Upsample."""
        return op.any(op.Resize(x, ...), op.Upsample(x, ...))

    def holds(self, node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
        """Scales of exactly 1 sample each point at itself, except in a cropped region."""
        if _attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
            return False
        if _attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
            return False
        if not facts.same_shape(x, node.outputs[0]):
            return False
        k = 1 if node.op_type == "Upsample" or len(node.inputs) == 2 else 2
        sizes = _input(node, 3)
        scales = _attribute(node, "scales")
        given = _input(node, k)
        if sizes is not None:
            return True
        if scales is None and given is not None:
            scales = facts.data(given)
        return scales is not None and len(scales) > 0 and all(float(s) == 1.0 for s in scales)


class UnitReduce(Noop):
    """Reduce(x) over axes of size 1, kept -> x, for sum, mean, max, min and product"""

    def pattern(self, op: Any, x: Any) -> Any:
        """Match reductions that return a lone element as it is."""
        names = ("Sum", "Mean", "Max", "Min", "Prod")
        return op.any(*(getattr(op, f"Reduce{name}")(x, ...) for name in names))

    def holds(self, node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
        """Same shape, axes known: every reduced axis has one element."""
        dims = facts.shape(x)
        return (
            dims is not None
            and facts.same_shape(x, node.outputs[0])
            and _reduced_axes_are_one(node, dims, facts)
        )


def _reduced_axes_are_one(node: ir.Node, dims: tuple[Any, ...], facts: Shapes) -> bool:
    given = _input(node, 1)
    axes = _attribute(node, "axes")
    if axes is None and given is not None:
        axes = facts.data(given)
        if axes is None:
            return False
    if axes is None or len(axes) == 0:
        noop = bool(_attribute(node, "noop_with_empty_axes", 0))
        return noop or all(d == 1 for d in dims)
    return all(dims[int(a)] == 1 for a in axes)


class UnitPool(Noop):
    """Pooling with a window of one element, or of a single position -> x"""

    def pattern(self, op: Any, x: Any) -> Any:
        """Match poolings."""
        names = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
        return op.any(*(getattr(op, name)(x) for name in names))

    def holds(self, node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
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


class GatherAll(Noop):
    """Gather(x, [0, 1, ..., n-1]) along an axis of size n -> x"""

    def pattern(self, op: Any, x: Any) -> Any:
        """Match Gather by a constant."""
        return op.Gather(x, ...)

    def holds(self, node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
        """Every index in its place."""
        index = _input(node, 1)
        if index is None or not facts.same_shape(x, node.outputs[0]):
            return False
        tensor = constant_value(index)
        if tensor is None or len(tensor.shape) != 1:
            return False
        return bool(np.array_equal(tensor.numpy(), np.arange(tensor.size)))


class WholeSplit(Noop):
    """Split(x) into one part -> x"""

    def pattern(self, op: Any, x: Any) -> Any:
        """Match any Split."""
        return op.Split(x, ...)

    def holds(self, node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
        """One output holds all of it."""
        return len(node.outputs) == 1


RULES: tuple[type[Rule], ...] = (
    Identity,
    Dropout,
    SameShape,
    WholeSlice,
    StraightTranspose,
    ZeroPad,
    UnitResize,
    UnitReduce,
    UnitPool,
    GatherAll,
    WholeSplit,
)
