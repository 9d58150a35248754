"""Sequences taken apart as soon as they are made: what they hold, as terms without a sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes.symbolic import Dim
from graphopt.proving.terms import Term, Terms

__all__ = ["WITHOUT_SEQUENCE"]


def _element(terms: Terms, node: ir.Node, args: Sequence[Term | None], opset: int) -> Term | None:
    """SequenceAt of a list or of parts: the element itself, a part or an index of what was split"""
    whole, at = args
    if whole is None or at is None:
        return None
    k = int(at.array().reshape(-1)[0]) if at.op == "const" else None
    if whole.op == "SequenceConstruct" and k is not None:
        return whole.args[k] if -len(whole.args) <= k < len(whole.args) else None
    x = whole.args[0] if whole.op == "SplitToSequence" else None
    if x is None or x.dims is None:
        return None
    axis = int(whole.attributes.get("axis", 0))
    if len(whole.args) == 1:
        if whole.attributes.get("keepdims", 1) or at.dims != ():
            return None
        dims = tuple(d for j, d in enumerate(x.dims) if j != axis % len(x.dims))
        return _made(terms, "Gather", (x, at), {"axis": axis} if axis else {}, dims, opset)
    sizes, size = whole.args[1], x.dims[axis]
    if sizes is None or sizes.op != "const" or not isinstance(size, int) or k is None:
        return None
    given = [int(s) for s in np.ravel(sizes.array())]
    if sizes.dims == ():
        given = [min(given[0], size - j) for j in range(0, size, given[0])]
    k += len(given) if k < 0 else 0
    if not 0 <= k < len(given):
        return None
    split = terms.constant(ir.Tensor(np.array(given, np.int64)))
    dims = (*x.dims[:axis], given[k], *x.dims[axis % len(x.dims) + 1 :])
    attributes = {} if axis == 0 else {"axis": axis}
    return _made(terms, "Split", (x, split), attributes, dims, opset, k, len(given))


def _joined(terms: Terms, node: ir.Node, args: Sequence[Term | None], opset: int) -> Term | None:
    """ConcatFromSequence(SequenceConstruct(a, b, ...)) = Concat(a, b, ...)"""
    made = args[0]
    stacked = "new_axis" in node.attributes and node.attributes["new_axis"].value
    if made is None or made.op != "SequenceConstruct" or stacked:
        return None
    axis = int(node.attributes["axis"].value)
    dims: tuple[Dim, ...] | None = None
    known = [t.dims for t in made.args if t is not None and t.dims is not None]
    if len(known) == len(made.args):
        total: Dim = 0
        for one in known:
            total = total + one[axis]
        first, k = known[0], axis % len(known[0])
        dims = (*first[:k], total, *first[k + 1 :])
    return _made(terms, "Concat", made.args, {"axis": axis}, dims, opset)


def _made(
    terms: Terms,
    op: str,
    args: tuple[Term | None, ...],
    attributes: dict[str, int],
    dims: tuple[Dim, ...] | None,
    opset: int,
    output: int = 0,
    outputs: int = 1,
) -> Term:
    """The term that a node of these arguments would get."""
    key = ((op, args, tuple(attributes.items()), 0, None), output)
    node = ir.Node(
        "", op, [], [ir.AttrInt64(k, v) for k, v in attributes.items()], num_outputs=outputs
    )
    for k, value in enumerate(node.outputs):
        value.name = f"part{k}"
    dtype = args[0].dtype if args[0] is not None else None
    return terms.named(
        key, lambda: Term(op, args, attributes, output, dims, dtype, None, node, opset)
    )


#: By operator: what it computes without a sequence, None where that is not known.
WITHOUT_SEQUENCE: dict[str, Callable[[Terms, ir.Node, Sequence[Term | None], int], Term | None]] = {
    "ConcatFromSequence": _joined,
    "SequenceAt": _element,
}
