"""Plain forms: what ONNX Runtime takes and converters do not, written so that both do."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.backends.openvino_forms import PoolAll

from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context
from graphopt.rewriting.driver import apply_rules
from graphopt.rewriting.rules import Replacement, Rule, Walker

__all__ = ["in_plain_forms"]

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


def in_plain_forms(model: ir.Model) -> ir.Model:
    """A clone of `model` (it shares the weights) in forms that converters take."""
    clone = model.clone()
    for node in clone.graph.all_nodes():
        if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0:
            node.attributes.pop("axis", None)  # pnnx knows an embedding by its absence
    for rules in ((SoftmaxGuard, PoolAll, SignalNorm), (IsNan,)):
        apply_rules(clone, Context(clone), rules)
    return clone
