"""Cost model: MACs, parameters or units left when dimensions shrink.

Work is multilinear in the dimensions. MACs of a convolution scale with the axes of its weight,
those of a matrix product with the axes of its first operand and the last of its result. An axis
joined of parts (a concatenation) is a sum over its parts, one merged of several dimensions (heads
times head size) their product.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt.analyses.cost import Cost, cost
from graphopt.analyses.dims.dimension import Dimension, Member
from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context
from graphopt.graph.constants import constant_value
from graphopt.graph.traverse import RECURRENT

__all__ = ["Of", "Work", "time_like", "work"]

Array = np.ndarray[Any, Any]
Of = Literal["macs", "params", "units"]
#: An axis as parts: the share of its positions, and the dimensions they belong to.
Axis = tuple[tuple[float, tuple[str, ...]], ...]
#: So much work, shrinking with each of these axes.
Term = tuple[float, tuple[Axis, ...]]
#: By value name, the dimensions and members that describe it.
Tensors = Mapping[str, Sequence[tuple[str, Member]]]

MACS_PER_WEIGHT = 32
CACHE = 32 << 20
#: Fused attention: half of its MACs compare queries with keys, half weigh values.
ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention")


class Work:
    """Work left as a function of the share of units that dimensions keep.

    Attributes:
        total: all the work of the model, whether it can shrink or not.
    """

    def __init__(self, total: float, terms: Sequence[Term]) -> None:
        self.total = total
        self.terms = terms
        self._fixed = total - sum(value for value, _ in terms)
        self._of_dim: dict[str, list[Term]] = defaultdict(list)
        for term in terms:
            for name in {n for axis in term[1] for _, names in axis for n in names}:
                self._of_dim[name].append(term)

    def left(self, share: Mapping[str, float]) -> float:
        """The work left when each named dimension keeps this share of its units (default 1)."""
        return self._fixed + sum(_value(t, share) for t in self.terms)

    def free(self, names: Iterable[str]) -> float:
        """The share of it, in [0, 1], that shrinks with these dimensions."""
        return 1 - self.left(dict.fromkeys(names, 0.0)) / self.total if self.total else 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.total + other.total, [*self.terms, *other.terms])

    def times(self, factor: float) -> Work:
        """The same, each unit of work counted `factor` times."""
        return Work(self.total * factor, [(value * factor, axes) for value, axes in self.terms])

    def saved(self, share: Mapping[str, float], name: str, to: float) -> float:
        """What is saved by shrinking one dimension from share[name] to `to`, others as given."""
        after = {**share, name: to}
        return sum(_value(t, share) - _value(t, after) for t in self._of_dim[name])


def work(dims: Mapping[str, Dimension], of: Of, ctx: Context) -> Work:
    """The work of the context's model in MACs, parameters, or units of `dims`."""
    if of == "units":
        terms: list[Term] = [(float(d.size), (((1.0, (n,)),),)) for n, d in dims.items()]
        return Work(sum(t[0] for t in terms), terms)
    tensors: dict[tuple[str, str], list[tuple[str, Member]]] = defaultdict(list)
    for name, dim in dims.items():
        for member in dim.members:
            tensors[member.node, member.input].append((name, member))
    total = _cost(ctx)
    if of == "params":
        return Work(float(total.params), list(_params(ctx.model, tensors)))
    by_node: dict[str, dict[str, list[tuple[str, Member]]]] = defaultdict(dict)
    for (place, value), members in tensors.items():
        by_node[place][value] = members
    terms = []
    for node in ctx.model.graph.all_nodes():
        counted = total.nodes.get(node.name or "")
        if counted is not None and counted.macs and node.name in by_node:
            terms += _macs(node, float(counted.macs), by_node[node.name], ctx)
    return Work(float(total.macs), terms)


def time_like(dims: Mapping[str, Dimension], ctx: Context) -> Work:
    """Work in proportion to time: MACs, and weights that have to come from memory.

    A weight read from memory takes the time of about `MACS_PER_WEIGHT` MACs (20 GB/s beside 150
    GMAC/s on the two-core CPU where this was measured; most machines stand near that balance).
    Weights of models smaller than `CACHE` bytes stay in the cache from run to run.
    """
    macs = work(dims, "macs", ctx)
    if _cost(ctx).param_bytes <= CACHE:
        return macs
    return macs + work(dims, "params", ctx).times(MACS_PER_WEIGHT)


def _cost(ctx: Context) -> Cost:
    """The cost at the context's input shapes; axes that nothing binds have size 1."""
    inputs = {v.name: v.shape for v in ctx.model.graph.inputs if v.name and v.shape is not None}
    if ctx.shapes or all(isinstance(d, int) for shape in inputs.values() for d in shape):
        return ctx.get(cost)
    bound = {n: tuple(d if isinstance(d, int) else 1 for d in s) for n, s in inputs.items()}
    return cost(Context(ctx.model, shapes=bound))


def _value(term: Term, share: Mapping[str, float]) -> float:
    value, axes = term
    for axis in axes:
        left = 0.0
        for part, names in axis:
            for name in names:
                part *= share.get(name, 1.0)
            left += part
        value *= left
    return value


def _params(
    model: ir.Model, tensors: Mapping[tuple[str, str], list[tuple[str, Member]]]
) -> Iterable[Term]:
    """One term per constant, shared ones once."""
    seen: set[str] = set()
    sizes = {
        v.name: tensor.size
        for node in model.graph.all_nodes()
        for v in node.inputs
        if (tensor := constant_value(v)) is not None and v is not None
    }
    for (_, value), members in tensors.items():
        if members[0][1].constant and value not in seen:
            seen.add(value)
            yield float(sizes[value]), tuple(_axes(members).values())


def _macs(node: ir.Node, macs: float, tensors: Tensors, ctx: Context) -> Iterable[Term]:
    """The terms of one node."""

    def axes(value: ir.Value | None) -> dict[int, Axis]:
        return _axes(tensors.get(value.name or "", ()) if value is not None else ())

    if node.op_type in ("MatMul", "Gemm"):
        result = axes(node.outputs[0])
        rank = ctx.get(shapes).rank(node.outputs[0])
        last = [axis for k, axis in result.items() if rank is not None and k == rank - 1]
        yield macs, (*axes(node.inputs[0]).values(), *last)
    elif node.op_type in ("Conv", "ConvTranspose"):
        yield macs, tuple(axes(node.inputs[1]).values())
    elif node.op_type in RECURRENT:
        weights = [v for v in node.inputs[1:3] if v is not None]
        sizes = [math.prod(ctx.get(shapes).static(v) or (0,)) for v in weights]
        for value, size in zip(weights, sizes, strict=True):
            yield macs * size / max(sum(sizes), 1), tuple(axes(value).values())
    elif node.op_type in ATTENTION and _apart(node):
        q, v = (list(axes(k).values()) for k in (node.inputs[0], node.inputs[2]))
        yield from ((macs / 2, tuple(q)), (macs / 2, tuple(v)))
    else:
        names = dict.fromkeys(name for members in tensors.values() for name, _ in members)
        yield macs, tuple(((1.0, (name,)),) for name in names)


def _apart(node: ir.Node) -> bool:
    """Whether query, key and value are three inputs, not packed into one."""
    packed = node.op_type == "Attention" and node.domain == "com.microsoft"
    return not packed and len(node.inputs) > 2 and None not in node.inputs[:3]


def _axes(members: Sequence[tuple[str, Member]]) -> dict[int, Axis]:
    """The axes of one tensor that its members describe."""
    by_axis: dict[int, dict[str, Array]] = defaultdict(dict)
    for name, member in members:
        mine = by_axis[member.axis]
        belongs = member.positions >= 0
        mine[name] = mine[name] | belongs if name in mine else belongs
    axes: dict[int, Axis] = {}
    for axis, dims in by_axis.items():
        names = list(dims)
        kinds, counts = np.unique(np.stack(list(dims.values())), axis=1, return_counts=True)
        size = float(counts.sum())
        axes[axis] = tuple(
            (float(count) / size, tuple(n for n, b in zip(names, kind, strict=True) if b))
            for kind, count in zip(kinds.T, counts, strict=True)
        )
    return axes
