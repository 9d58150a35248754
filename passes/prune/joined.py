"""Parallel branches: what an error at the end of one is worth where branches are concatenated.

The error of a layer is told as a share of what its outputs vary by. If these are a tenth of the
channels that the next layer reads, beside those of other branches, that layer sees a tenth of it.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from graphopt.analyses.shapes.facts import Shapes

__all__ = ["joined_share"]

#: Operators that keep an error where it is.
_PASS = frozenset(
    """Abs Add AveragePool BatchNormalization Cast Clip Div Dropout Elu Erf Flatten Gelu
    GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish Identity LeakyRelu Max MaxPool Min Mul Neg
    PRelu Pad Relu Reshape Resize Selu Sigmoid Softplus Squeeze Sub Sum Tanh Transpose Unsqueeze
    Upsample""".split()  # noqa: SIM905
)
#: Operators between a layer and the next join.
_MOST = 64


def joined_share(outputs: Iterable[ir.Value], facts: Shapes) -> float:
    """Of what reads these values, the share that they are; 1 where they are not joined to others.

    The largest where they are joined more than once.
    """
    waiting, seen, share = list(outputs), set[ir.Value](), 0.0
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.is_graph_output() or len(seen) > _MOST:
            return 1.0
        for use in value.uses():
            node = use.node
            if node.op_type == "Concat" and not node.domain:
                share = max(share, _part(node, use.idx, facts))
            elif node.op_type in _PASS and not node.domain:
                waiting += node.outputs
            else:
                return 1.0
    return share or 1.0


def _part(concat: ir.Node, k: int, facts: Shapes) -> float:
    """How much of the axis that is joined the k-th operand is; 1 where that is not known."""
    axis = concat.attributes["axis"].as_int()
    sizes = [None if v is None else facts.shape(v) for v in concat.inputs]
    along = [d[axis] if d else None for d in sizes]
    known = [d for d in along if isinstance(d, int)]
    return known[k] / max(sum(known), 1) if len(known) == len(along) else 1.0
