"""Factorized layers written into the graph: a chain of stages where a matrix was.

    MatMul   y = x M + c            ->  y = (x A) B + (c + s)
    Gemm     y = a x M + b c        ->  y = a (x A) B + b (c + a s / b)
    Conv     y = W * x + c          ->  y = Wn * ... * W1 * x + (c + s)
    LSTM     gates = W x + U h + c  ->  gates = B' (A' x) + U h + (c + s)
    Gather   y = M[i]               ->  y = A[i] B

s = m (M - A B), for inputs of mean m, is what the bias absorbs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.svd.layers import Array, Layer, Use
from graphopt.passes.svd.stages import Stage

from graphopt.graph import provenance
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.constants import constant_array

__all__ = ["drop", "replace"]


def replace(
    model: ir.Model,
    layer: Layer,
    stages: Sequence[Stage],
    shifts: Mapping[Use, Array],
    *,
    why: str,
    pass_name: str = "",
    names: Names | None = None,
) -> None:
    """Rewrite every use of `layer` as `stages`; uses share the new weights.

    Args:
        model: edited in place.
        layer: found in this model.
        stages: the factors in order.
        shifts: per use what the output lacks on average [N]; a use not named lacks nothing.
        why: recorded on every new node.
        pass_name: recorded in the provenance.
        names: names taken so far, if many layers are edited.
    """
    names = names or Names(model)
    dtype = layer.uses[0].weight.dtype or ir.DataType.FLOAT
    weights = _Weights(model, layer, stages, dtype, names)
    for use in layer.uses:
        builder = Builder(model, use.node, names)
        shift = shifts.get(use)
        make = _MAKERS[use.node.op_type]
        out = make(builder, use, weights, None if shift is None else _cast(shift, dtype))
        provenance.derive(builder.nodes, [use.node], pass_name)
        provenance.explain(builder.nodes, why)
        if out is None:  # changed in place
            provenance.explain([use.node], why)
            continue
        old = use.node.outputs[0]
        builder.take_over(old, out)
        remove_dead([use.node])


class _Weights:
    """The stages as initializers, made once, transposed by a node where a use needs it so."""

    def __init__(
        self,
        model: ir.Model,
        layer: Layer,
        stages: Sequence[Stage],
        dtype: ir.DataType,
        names: Names,
    ) -> None:
        self.layer, self.stages, self.dtype = layer, stages, dtype
        self._builder = Builder(model, layer.node, names)
        self._made: dict[tuple[int, bool], ir.Value] = {}
        last = len(stages) - 1
        matmuls = [u for u in layer.uses if u.node.op_type == "MatMul"]
        #: factors stored transposed: as every MatMul reads them, but a table by its rows
        self.flipped = {
            k for k in range(last + 1) if matmuls and all(u.reverse ^ u.left for u in matmuls)
        }
        if any(u.lookup and u.reverse for u in layer.uses):
            self.flipped.add(last)

    def get(self, builder: Builder, k: int, *, flip: bool = False) -> ir.Value:
        """Factor k as a matrix value, transposed if `flip`, readable at `builder`'s place."""
        stored = k in self.flipped
        value = self._stored(k, stored)
        if flip == stored:
            return value
        out: ir.Value = builder.Transpose(value, perm=[1, 0])
        out.type = ir.TensorType(self.dtype)
        assert value.shape is not None
        out.shape = ir.Shape(list(value.shape)[::-1])
        return out

    def flips(self, k: int) -> bool:
        """Whether factor k is stored transposed."""
        return k in self.flipped

    def stored(self, k: int) -> ir.Value:
        """Factor k as it is stored."""
        return self._stored(k, self.flips(k))

    def _stored(self, k: int, flip: bool) -> ir.Value:
        if (k, flip) not in self._made:
            array = self.stages[k].weight
            array = array.T if flip else array
            name = f"{self.layer.weight_name}.svd{k}"
            self._made[k, flip] = self.constant(array, name)
        return self._made[k, flip]

    def constant(self, array: Array, name: str) -> ir.Value:
        """A new initializer of the layer's element type."""
        return self._builder.constant(_cast(array, self.dtype), name)


def _cast(array: Array, dtype: ir.DataType) -> Array:
    return np.ascontiguousarray(array).astype(dtype.numpy(), copy=False)


def _typed(value: ir.Value, like: ir.Value, last: int, axis: int = -1) -> ir.Value:
    """Annotate a stage's output: `like`'s shape with `last` along `axis`."""
    value.type = like.type
    if like.shape is not None:
        shape = list(like.shape)
        shape[axis] = last
        value.shape = ir.Shape(shape)
    return value


def _matmul(builder: Builder, use: Use, weights: _Weights, shift: Array | None) -> ir.Value:
    y = use.node.outputs[0]
    rank = weights.stages[0].weight.shape[1]
    order = (1, 0) if use.reverse else (0, 1)
    axis = -2 if use.left else -1
    value = use.x
    for step, k in enumerate(order):
        # y = x A B; reversed y = x Bᵀ Aᵀ; from the left y = Bᵀ Aᵀ x, or A B x
        matrix = weights.get(builder, k, flip=use.reverse ^ use.left)
        value = builder.MatMul(matrix, value) if use.left else builder.MatMul(value, matrix)
        columns = rank if step == 0 else _columns(use, weights.layer)
        if y.type is not None:
            _typed(value, y, columns, axis)
    if shift is None:
        return value
    shift = shift[:, None] if use.left else shift
    if _absorbed(use.node, shift, weights):
        return value
    bias = weights.constant(shift, f"{weights.layer.weight_name}.svd_bias")
    out: ir.Value = builder.Add(value, bias)
    return out


def _columns(use: Use, layer: Layer) -> int:
    return layer.rows if use.reverse else layer.columns


def _absorbed(node: ir.Node, shift: Array, weights: _Weights) -> bool:
    """Add `shift` to the constant of the one Add that follows, if there is one."""
    y = node.outputs[0]
    uses = list(y.uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or y.is_graph_output():
        return False
    add, at = uses[0].node, 1 - uses[0].idx
    bias = add.inputs[at]
    array = constant_array(bias)
    if array is None or bias is None or array.dtype != shift.dtype:
        return False
    rank = None if y.shape is None else len(y.shape)
    if array.ndim > (rank or 1) or array.size > max(shift.size, 1):
        return False
    add.replace_input_with(at, weights.constant(array + shift, f"{bias.name}.svd"))
    drop(bias)
    return True


def drop(value: ir.Value) -> None:
    """Remove an initializer nobody reads any more (or the nodes that computed it)."""
    producer = value.producer()
    if producer is not None:
        remove_dead([producer])
    elif not value.uses() and not value.is_graph_output() and isinstance(value.graph, ir.Graph):
        value.graph.initializers.pop(value.name or "", None)


def _gemm(builder: Builder, use: Use, weights: _Weights, shift: Array | None) -> ir.Value:
    node = use.node
    y = node.outputs[0]
    order = (1, 0) if use.reverse else (0, 1)
    first, last = order
    h: ir.Value = builder.Gemm(
        use.x,
        weights.stored(first),
        transA=int(use.op.turned) or None,
        transB=int(weights.flips(first) ^ use.reverse) or None,
    )
    if y.type is not None:
        _typed(h, y, weights.stages[0].weight.shape[1])
    bias = use.op.bias
    alpha, beta = use.op.alpha, use.op.beta
    if shift is not None:
        old = constant_array(bias) if bias is not None else None
        if bias is None or beta == 0:
            beta = 1.0
            bias = weights.constant(alpha * shift, f"{weights.layer.weight_name}.svd_bias")
        elif old is not None:
            moved = (old + alpha / beta * shift).astype(shift.dtype)
            bias = weights.constant(moved, f"{bias.name}.svd")
        else:
            extra = weights.constant(alpha / beta * shift, f"{bias.name}.svd")
            bias = builder.Add(bias, extra)
    out: ir.Value = builder.Gemm(
        h,
        weights.stored(last),
        *([bias] if bias is not None else []),
        alpha=alpha if alpha != 1 else None,
        beta=beta if beta != 1 else None,
        transB=int(weights.flips(last) ^ use.reverse) or None,
    )
    return out


def _conv(builder: Builder, use: Use, weights: _Weights, shift: Array | None) -> ir.Value:
    node, bias = use.node, use.op.bias
    if shift is not None:
        old = constant_array(bias) if bias is not None else np.zeros((), shift.dtype)
        name = f"{weights.layer.weight_name}.svd_bias"
        if old is None:
            assert bias is not None
            bias = builder.Add(bias, weights.constant(shift, name))
        else:
            bias = weights.constant((old + shift).astype(shift.dtype), name)
    value = use.x
    last = len(weights.stages) - 1
    for k, stage in enumerate(weights.stages):
        inputs = [value, weights.stored(k)]
        if k == last and bias is not None:
            inputs.append(bias)
        made = builder.node("Conv", inputs, _window(node, stage))
        value = made.outputs[0]
        if node.outputs[0].type is not None:
            value.type = node.outputs[0].type
            value.shape = _conv_shape(use, weights.stages[: k + 1])
    return value


def _window(node: ir.Node, stage: Stage) -> dict[str, Any]:
    """A stage's attributes: the node's own along the axes it carries, neutral along others."""
    kernel = stage.weight.shape[2:]
    rank = len(kernel)
    out: dict[str, Any] = {"kernel_shape": list(kernel)}
    for name, neutral, length in (
        ("strides", 1, rank),
        ("dilations", 1, rank),
        ("pads", 0, 2 * rank),
    ):
        given = attribute(node, name)
        if given is not None:
            out[name] = [given[i] if i % rank in stage.axes else neutral for i in range(length)]
    auto = attribute(node, "auto_pad")
    if auto != "NOTSET":
        out["auto_pad"] = auto
        out.pop("pads", None)
    return out


def _conv_shape(use: Use, stages: Sequence[Stage]) -> ir.Shape | None:
    before, after = use.x.shape, use.node.outputs[0].shape
    if before is None or after is None:
        return None
    done = {a for stage in stages for a in stage.axes}
    sizes = [after[i] if i - 2 in done or i == 0 else before[i] for i in range(len(after))]
    sizes[1] = stages[-1].weight.shape[0]
    return ir.Shape(sizes)


def _recurrent(builder: Builder, use: Use, weights: _Weights, shift: Array | None) -> None:
    """x A goes in; W [D, G H, I] becomes Bᵀ [D, G H, r]; the shift joins the input biases."""
    node = use.node
    before = use.weight
    directions, gates = use.op.shape[:2]
    rank = weights.stages[0].weight.shape[1]
    h: ir.Value = builder.MatMul(use.x, weights.stored(0))
    if use.x.type is not None:
        _typed(h, use.x, rank)
    last = weights.stages[1].weight.T.reshape(directions, gates, rank)
    node.replace_input_with(0, h)
    node.replace_input_with(1, weights.constant(last, f"{weights.layer.weight_name}.svd1"))
    drop(before)
    if shift is None:
        return
    bias = node.inputs[3] if len(node.inputs) > 3 else None
    old = constant_array(bias) if bias is not None else None
    moved = np.zeros((directions, 2 * gates), shift.dtype) if old is None else old.copy()
    moved[:, :gates] += shift.reshape(directions, gates)
    if len(node.inputs) < 4:
        node.resize_inputs(4)
    node.replace_input_with(3, weights.constant(moved, f"{weights.layer.weight_name}.svd_bias"))
    if bias is not None:
        drop(bias)


def _gather(builder: Builder, use: Use, weights: _Weights, shift: Array | None) -> ir.Value:
    y = use.node.outputs[0]
    first, last = (1, 0) if use.reverse else (0, 1)
    table = weights.get(builder, first, flip=use.reverse)
    found: ir.Value = builder.Gather(table, use.x)
    if y.type is not None:
        _typed(found, y, weights.stages[0].weight.shape[1])
    out: ir.Value = builder.MatMul(found, weights.get(builder, last, flip=use.reverse))
    return out


_MAKERS: dict[str, Any] = {
    "Conv": _conv,
    "GRU": _recurrent,
    "Gather": _gather,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "MatMul": _matmul,
}
