"""Grouped-query and packed attention: repeated key heads are shared, operands stay packed."""

from __future__ import annotations

from typing import Any, NamedTuple

import onnx_ir as ir
from graphopt.passes.fuse.layout.axes import Layout, Steps
from graphopt.passes.fuse.layout.views import apply_steps, is_view, view_step, writable

from graphopt import Bind, Context, Replacement, Rule, Walker
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.analyses.shapes.symbolic import Dim
from graphopt.graph.building import Builder
from graphopt.rewriting.patterns import Match

__all__ = ["PackHeads", "RepeatedHeads", "packed"]


class RepeatedHeads(Walker):
    """Attention(Q, repeat(K, n), repeat(V, n)) -> Attention(Q, K, V)

    where repeat writes every head n times in a row, [b, h, t, d] -> [b, h n, t, d], as in
    grouped-query attention (Ainslie et al., arXiv:2305.13245); Attention itself shares the heads.
    """

    roots = ("Attention",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        if "q_num_heads" in node.attributes:
            return None
        q, k, v, *others = node.inputs
        keys, values = (_unrepeated(x, ctx.get(shapes)) for x in (k, v))
        if keys is None or values is None or keys.times != values.times:
            return None
        return Replacement(
            lambda op: op.again(node, [q, keys.write(op), values.write(op), *others])
        )


class _Source(NamedTuple):
    """A value written as `steps` on `value`, of shape `dims`.

    `times`: how often each head is repeated; `gain`: how many view operators fewer there are.
    """

    value: ir.Value
    steps: Steps
    dims: tuple[Dim, ...]
    times: Dim = 1
    gain: int = 0

    def write(self, op: Builder) -> ir.Value:
        return apply_steps(op, self.value, self.steps, self.dims)


def _unrepeated(x: ir.Value | None, facts: Shapes) -> _Source | None:
    """What the value x, [b, h n, t, d], repeats n times, as [b, h, t, d]."""
    links: list[ir.Node] = []
    at = x
    while True:
        node = None if at is None else at.producer()
        if at is None or node is None or node.inputs[0] is None:
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
    return _Source(source, steps, narrow, dims[wide[0]]) if writable(steps, narrow) else None


def packed(x: ir.Value, facts: Shapes) -> _Source | None:
    """How to get [b, s, h d] for the value x, [b, h, s, d].

    The gain counts view operators when x itself is not needed any more.
    """
    dims = facts.shape(x)
    if dims is None or len(dims) != 4:
        return None
    b, h, s, d = dims
    links: list[ir.Node] = []
    best: _Source | None = None
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
                    if writable(steps, source) and (best is None or gain > best.gain):
                        best = _Source(at, steps, source, gain=gain)
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
        return op.Transpose(op.Attention(q, k, v, ..., as_="attention"), perm=[0, 2, 1, 3])

    def check(
        self,
        ctx: Context,
        match: Match,
        attention: ir.Node,
        q: ir.Value,
        k: ir.Value,
        v: ir.Value,
    ) -> Bind | None:
        facts, result = ctx.get(shapes), match.root.outputs[0]
        if "q_num_heads" in attention.attributes or len(attention.outputs) != 1:
            return None
        if _unrepeated(k, facts) is not None and _unrepeated(v, facts) is not None:
            return None  # RepeatedHeads comes first
        sources = [s for s in (packed(x, facts) for x in (q, k, v)) if s is not None]
        dims, kv, out = facts.shape(q), facts.shape(k), facts.shape(result)
        if len(sources) < 3 or dims is None or kv is None or out is None:
            return None
        if not isinstance(dims[1], int) or not isinstance(kv[1], int):
            return None
        users = result.consumers()
        merges = len(users) == 1 and not result.is_graph_output() and is_view(users[0])
        b, s, h, e = out
        apart: Steps = [("Reshape", out)]
        if sum(x.gain for x in sources) + merges <= 0 or not writable(apart, (b, s, h * e)):
            return None
        heads = {"q_num_heads": dims[1], "kv_num_heads": kv[1]}
        return Bind(sources=sources, heads=heads, apart=apart, flat=(b, s, h * e))

    def rewrite(
        self,
        op: Builder,
        attention: ir.Node,
        sources: list[_Source],
        heads: dict[str, int],
        apart: Steps,
        flat: tuple[Dim, ...],
    ) -> ir.Value:
        operands = [x.write(op) for x in sources]
        out = op.again(attention, [*operands, *attention.inputs[3:]], **heads)
        return apply_steps(op, out, apart, flat)
