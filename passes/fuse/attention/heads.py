"""Heads around Attention: repeated key heads are shared, and packed operands stay packed."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from graphopt.passes.fuse.layout.axes import Layout, Steps
from graphopt.passes.fuse.layout.views import apply_steps, is_view, view_step, writable

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.analyses.shapes.symbolic import Dim
from graphopt.rewriting.patterns import Match

__all__ = ["PackHeads", "RepeatedHeads", "packed_steps"]


class RepeatedHeads(Rule):
    """Attention(Q, repeat(K, n), repeat(V, n)) -> Attention(Q, K, V)

    where repeat writes every head n times in a row, [b, h, t, d] -> [b, h n, t, d], as in
    grouped-query attention (Ainslie et al., arXiv:2305.13245); Attention itself shares the heads.
    """

    def pattern(self, op: Any, q: Any, k: Any, v: Any) -> Any:
        """Any Attention; where the heads are repeated is found by their axes."""
        return op.Attention(q, k, v, ...)

    def check(self, ctx: Context, match: Match, k: ir.Value, v: ir.Value) -> bool | dict[str, Any]:
        """Both repeat alike, inside the axis of heads."""
        if "q_num_heads" in match.root.attributes:
            return False
        facts = ctx.get(shapes)
        found = [_unrepeated(x, facts) for x in (k, v)]
        if any(f is None for f in found) or len({f[3] for f in found if f is not None}) != 1:
            return False
        return {"found": found}

    def rewrite(
        self,
        op: Any,
        match: Match,
        q: ir.Value,
        found: list[tuple[ir.Value, Steps, tuple[Dim, ...], Dim]],
    ) -> ir.Value:
        """Attention on the heads as they are."""
        root = match.root
        narrow = [apply_steps(op, x, steps, dims) for x, steps, dims, _ in found]
        out: ir.Value = op.node(
            "Attention", [q, *narrow, *root.inputs[3:]], dict(root.attributes)
        ).outputs[0]
        return out


def _unrepeated(x: ir.Value, facts: Shapes) -> tuple[ir.Value, Steps, tuple[Dim, ...], Dim] | None:
    """The value x, [b, h n, t, d], repeats n times: source, steps to [b, h, t, d], its shape, n."""
    links: list[ir.Node] = []
    at = x
    while True:
        node = at.producer()
        if node is None or node.inputs[0] is None:
            return None
        if node.op_type == "Expand":
            break
        if not is_view(node) or len(links) > 8:
            return None
        links.append(node)
        at = node.inputs[0]
    source = node.inputs[0]
    dims, narrow = facts.shape(at), facts.shape(source)
    if dims is None or narrow is None or len(dims) != len(narrow):
        return None
    wide = [i for i, (a, b) in enumerate(zip(dims, narrow, strict=True)) if a != b]
    if len(wide) != 1 or narrow[wide[0]] != 1:
        return None
    layout = Layout(dims)
    if not all(view_step(layout, link, facts) for link in reversed(links)):
        return None
    if len(layout.dims) != 4 or layout.drop(wide[0]) != (1, 0):
        return None
    steps = layout.steps()
    return (source, steps, narrow, dims[wide[0]]) if writable(steps, narrow) else None


def packed_steps(x: ir.Value, facts: Shapes) -> tuple[ir.Value, Steps, tuple[Dim, ...], int] | None:
    """How to get [b, s, h d] for the value x, [b, h, s, d]: source, steps, its shape, gain.

    The gain is how many view operators fewer there are when x itself is not needed any more.
    """
    dims = facts.shape(x)
    if dims is None or len(dims) != 4:
        return None
    b, h, s, d = dims
    links: list[ir.Node] = []
    best: tuple[ir.Value, Steps, tuple[Dim, ...], int] | None = None
    at = x
    while True:
        source = facts.shape(at)
        if source is not None:
            layout = Layout(source)
            done = all(view_step(layout, link, facts) for link in reversed(links))
            if done:
                layout.transpose((0, 2, 1, 3))
                if layout.reshape((b, s, h * d)):
                    steps = layout.steps()
                    gain = len(links) - len(steps)
                    if writable(steps, source) and (best is None or gain > best[3]):
                        best = (at, steps, source, gain)
        node = at.producer()
        if node is None or not is_view(node) or node.inputs[0] is None:
            return best
        if len(at.uses()) != 1 or at.is_graph_output():
            return best
        links.append(node)
        at = node.inputs[0]


class PackHeads(Rule):
    """Transpose(Attention(apart(Q), apart(K), apart(V))) -> Reshape(Attention(Q, K, V))

    where apart is [b, s, h d] -> [b, h, s, d]: the operator takes packed operands as well and
    returns a packed result, and does the same work on either.
    """

    def pattern(self, op: Any, q: Any, k: Any, v: Any) -> Any:
        """The transposed result of an Attention on four axes."""
        return op.Transpose(op.Attention(q, k, v, ..., as_="attention"), perm=[0, 2, 1, 3])

    def check(
        self,
        ctx: Context,
        match: Match,
        attention: ir.Node,
        q: ir.Value,
        k: ir.Value,
        v: ir.Value,
    ) -> bool | dict[str, Any]:
        """Fewer view operators in all, and a known number of heads."""
        facts = ctx.get(shapes)
        if "q_num_heads" in attention.attributes or len(attention.outputs) != 1:
            return False
        if _unrepeated(k, facts) is not None and _unrepeated(v, facts) is not None:
            return False  # RepeatedHeads comes first
        packed = [packed_steps(x, facts) for x in (q, k, v)]
        dims, kv, out = facts.shape(q), facts.shape(k), facts.shape(match.root.outputs[0])
        if any(p is None for p in packed) or dims is None or kv is None or out is None:
            return False
        if not isinstance(dims[1], int) or not isinstance(kv[1], int):
            return False
        result = match.root.outputs[0]
        users = result.consumers()
        merges = len(users) == 1 and not result.is_graph_output() and is_view(users[0])
        gain = sum(p[3] for p in packed if p is not None) + int(merges)
        b, s, h, e = out
        apart: Steps = [("Reshape", out)]
        if gain <= 0 or not writable(apart, (b, s, h * e)):
            return False
        return {
            "packed": packed,
            "heads": (dims[1], kv[1]),
            "apart": apart,
            "flat": (b, s, h * e),
        }

    def rewrite(
        self,
        op: Any,
        attention: ir.Node,
        packed: list[tuple[ir.Value, Steps, tuple[Dim, ...], int]],
        heads: tuple[int, int],
        apart: Steps,
        flat: tuple[Dim, ...],
    ) -> ir.Value:
        """Attention on packed operands."""
        operands = [apply_steps(op, x, steps, dims) for x, steps, dims, _ in packed]
        attributes: dict[str, Any] = dict(attention.attributes)
        attributes |= {"q_num_heads": heads[0], "kv_num_heads": heads[1]}
        out = op.node("Attention", [*operands, *attention.inputs[3:]], attributes).outputs[0]
        return apply_steps(op, out, apart, flat)
