"""Plain forms: what ONNX Runtime takes and converters do not, written so that both do."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.backends.openvino_forms import PoolAll

from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context
from graphopt.graph.constants import constant_value
from graphopt.rewriting.driver import apply_rules
from graphopt.rewriting.rules import Replacement, Rule, Walker

__all__ = ["FOR_MNN", "FOR_NCNN", "in_plain_forms"]

#: What scores are made with that no mask has put an infinity into.
_FINITE = frozenset({"MatMul", "Mul", "Div", "Transpose", "Reshape", "Gemm"})


class SoftmaxGuard(Walker):
    """Where(IsNaN(s), c, s), s = Softmax(x) -> s, x a product that nothing was added to

    Exporters guard attention against rows that are masked as a whole; here there is no mask.
    """

    roots = ("Where",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        test, _, s = node.inputs
        guard, softmax = (None if v is None else v.producer() for v in (test, s))
        if s is None or guard is None or guard.op_type != "IsNaN" or guard.inputs[0] is not s:
            return None
        if softmax is None or softmax.op_type != "Softmax" or softmax.inputs[0] is None:
            return None
        source = softmax.inputs[0].producer()
        if source is None or source.op_type not in _FINITE:
            return None
        return Replacement(lambda op: s, (guard,))


class ZeroState(Walker):
    """LSTM(x, w, r, b, , 0, 0) -> LSTM(x, w, r, b), GRU likewise"""

    roots = ("GRU", "LSTM")

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        tensors = [constant_value(v) for v in node.inputs[5:7] if v is not None]
        if not tensors or any(t is None or t.numpy().any() for t in tensors):
            return None
        if len(node.outputs) != 1 or any(v is not None for v in (node.inputs[4], *node.inputs[7:])):
            return None
        return Replacement(lambda op: op.again(node, node.inputs[:4]))


class BatchFirst(Walker):
    """Reshape(Transpose(y, [2, 0, 1, 3])) -> Transpose(Reshape(Transpose(y, [0, 2, 1, 3])))

    Both directions of y[t, 2, b, h] side by side as [b, t, 2 h], the way exporters write it.
    """

    roots = ("Reshape",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        turn = None if node.inputs[0] is None else node.inputs[0].producer()
        if turn is None or turn.op_type != "Transpose" or turn.inputs[0] is None:
            return None
        y, states = turn.inputs[0], turn.inputs[0].producer()
        if states is None or states.op_type not in ("GRU", "LSTM"):
            return None
        made = ctx.get(shapes).static(node.outputs[0])
        perm = tuple(turn.attributes.get_ints("perm", ()))
        if perm != (2, 0, 1, 3) or made is None or len(made) != 3:
            return None
        b, t, both = made

        def build(op: Any) -> Any:
            whole = op.Reshape(
                op.Transpose(y, perm=[0, 2, 1, 3]), op.constant(np.array([t, b, both]), "shape")
            )
            return op.Transpose(whole, perm=[1, 0, 2])

        return Replacement(build, (turn,))


class SequenceMean(Walker):
    """ReduceMean(x[n, t, c], 1) -> GlobalAveragePool(x[n, c, t]), without its last axis"""

    roots = ("ReduceMean",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        axes = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
        x = node.inputs[0]
        dims = None if x is None else ctx.get(shapes).static(x)
        keeps = node.attributes.get_int("keepdims", 1)
        if dims is None or len(dims) != 3 or axes is None or axes.numpy().tolist() != [1] or keeps:
            return None

        def build(op: Any) -> Any:
            pooled = op.GlobalAveragePool(op.Transpose(x, perm=[0, 2, 1]))
            return op.Reshape(pooled, op.constant(np.array([dims[0], dims[2]]), "shape"))

        return Replacement(build)


class OneTaken(Walker):
    """Gather(x, i), one i that is known -> Reshape(Slice(x, i, i + 1)), where axis 0 is kept"""

    roots = ("Gather",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        x, at, axis = (
            node.inputs[0],
            constant_value(node.inputs[1]),
            node.attributes.get_int("axis", 0),
        )
        known = ctx.get(shapes)
        dims, made = (None if v is None else known.static(v) for v in (x, node.outputs[0]))
        if at is None or at.shape.rank() or not axis or dims is None or made is None:
            return None
        first = int(at.numpy()) % dims[axis]

        def build(op: Any) -> Any:
            limits = [op.constant(np.array([k]), "limit") for k in (first, first + 1, axis)]
            return op.Reshape(op.Slice(x, *limits), op.constant(np.array(made), "shape"))

        return Replacement(build)


class ColumnsTaken(Walker):
    """Transpose(GatherND(Transpose(x), i)) -> MatMul(x, the columns of the identity that i names)

    For matrices of finite numbers: no network of ncnn gathers from what it computes.
    """

    roots = ("Transpose",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        taken = None if node.inputs[0] is None else node.inputs[0].producer()
        if taken is None or taken.op_type != "GatherND" or taken.inputs[0] is None:
            return None
        turn, indices = taken.inputs[0].producer(), constant_value(taken.inputs[1])
        if turn is None or turn.op_type != "Transpose" or turn.inputs[0] is None:
            return None
        x = turn.inputs[0]
        dims = ctx.get(shapes).static(x)
        if indices is None or indices.numpy().shape[1:] != (1,) or dims is None or len(dims) != 2:
            return None
        columns = np.eye(dims[1], dtype=np.float32)[:, indices.numpy()[:, 0]]
        return Replacement(lambda op: op.MatMul(x, op.constant(columns, "columns")), (taken,))


class IsNan(Rule):
    """IsNaN(x) -> Not(Equal(x, x))"""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.IsNaN(x)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Not(op.Equal(x, x))


class SignalNorm(Walker):
    """InstanceNormalization(x[n, c, w]) -> that of x[n, c, 1, w], reshaped back"""

    roots = ("InstanceNormalization",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        x, scale, bias = node.inputs
        dims = None if x is None else ctx.get(shapes).static(x)
        if dims is None or len(dims) != 3:
            return None
        epsilon = node.attributes.get_float("epsilon", 1e-5)

        def build(op: Any) -> Any:
            image = op.Reshape(x, op.constant(np.array([*dims[:2], 1, dims[2]]), "shape"))
            made = op.InstanceNormalization(image, scale, bias, epsilon=epsilon)
            return op.Reshape(made, op.constant(np.array(dims), "shape"))

        return Replacement(build)


class GeluByErf(Walker):
    """Gelu(x) -> x / 2 (1 + Erf(x / sqrt(2)))"""

    roots = ("Gelu",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        x = node.inputs[0]
        if node.attributes.get_string("approximate", "none") != "none":
            return None

        def build(op: Any) -> Any:
            one, half, root = (
                op.constant(np.array(c, np.float32), name)
                for c, name in ((1, "one"), (0.5, "half"), (2**-0.5, "root"))
            )
            return op.Mul(op.Mul(x, half), op.Add(op.Erf(op.Mul(x, root)), one))

        return Replacement(build)


#: What MNN computes by an approximation in no other form.
FOR_MNN = (GeluByErf,)
#: What pnnx and ncnn take in no other form.
FOR_NCNN = (SignalNorm, ZeroState, BatchFirst, SequenceMean, OneTaken, ColumnsTaken)


def in_plain_forms(model: ir.Model, *more: type[Walker]) -> ir.Model:
    """A clone of `model` (it shares the weights) in forms that converters take, `more` included."""
    clone = model.clone()
    for node in clone.graph.all_nodes():
        if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0:
            node.attributes.pop("axis", None)  # pnnx knows an embedding by its absence
    apply_rules(clone, Context(clone), (SoftmaxGuard, PoolAll, *more))
    apply_rules(clone, Context(clone), (IsNan,))
    return clone
