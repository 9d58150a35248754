"""Plain forms: what ONNX Runtime takes and converters do not, written so that both do."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.backends.openvino_forms import PoolAll

from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context
from graphopt.rewriting.driver import apply_rules
from graphopt.rewriting.rules import Bind, Replacement, Rule, Verdict, Walker

__all__ = ["in_plain_forms"]

#: What scores are made with that no mask has put an infinity into.
_FINITE = frozenset({"MatMul", "Mul", "Div", "Transpose", "Reshape", "Gemm"})


class SoftmaxGuard(Rule):
    """Where(IsNaN(s), c, s), s = Softmax(x) -> s, x a product that nothing was added to

    Exporters guard attention against rows that are masked as a whole; here there is no mask.
    """

    def pattern(self, op: Any, x: Any, c: Any, axis: Any) -> Any:
        s = op.Softmax(x, axis=axis)
        return op.Where(op.IsNaN(s), c, s)

    def check(self, x: ir.Value) -> Verdict:
        node = x.producer()
        return Bind() if node is not None and node.op_type in _FINITE else None

    def rewrite(self, op: Any, x: Any, axis: Any) -> Any:
        return op.Softmax(x, axis=axis)


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
    for rules in ((SoftmaxGuard, PoolAll, SignalNorm), (IsNan,)):
        apply_rules(clone, Context(clone), rules)
    return clone
