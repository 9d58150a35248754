"""What shape functions share: broadcasting, counting elements."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes.facts import Fact, Shapes
from graphopt.analyses.shapes.symbolic import Dim, capped
from graphopt.graph.attributes import attribute

__all__ = ["Facts", "axes_of", "broadcast", "matrix_product", "product", "unknown_sizes"]

#: Axes a tensor can have: NumPy's limit.
MOST_AXES = 64

Facts = Sequence[Fact]


def broadcast(shapes: Shapes, *operands: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    """The shape of an elementwise operator's result (NumPy's rule, on symbols too)."""
    if any(o is None for o in operands):
        return None
    known = [o for o in operands if o is not None]
    rank = max(len(o) for o in known)
    result: list[Dim] = []
    for k in range(-rank, 0):
        dims = {o[k] for o in known if len(o) >= -k} - {1}
        if len(dims) > 1:  # min(n, 512) beside n: they agree, or the model fails
            dims = {d for d in dims if not any(capped(d, n) for n in dims)}
        sizes = [d for d in dims if isinstance(d, int)]
        if not dims:
            result.append(1)
        elif sizes:
            result.append(sizes[0])
        elif len(dims) == 1:
            result.append(dims.pop())
        else:
            result.append(shapes.fresh())
    return tuple(result)


def matrix_product(
    shapes: Shapes, a: tuple[Dim, ...] | None, b: tuple[Dim, ...] | None
) -> tuple[Dim, ...] | None:
    """The shape of a product of stacked matrices, or of vectors (NumPy's rule)."""
    if not a or not b:
        return None
    batch = broadcast(shapes, a[:-2], b[:-2]) or ()
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    return (*batch, *rows, *columns)


def unknown_sizes(shapes: Shapes, rank: object) -> tuple[Dim, ...] | None:
    """A shape of which the rank alone is known; None if that is no number a tensor could have."""
    if not isinstance(rank, int) or rank > MOST_AXES:
        return None
    return tuple(shapes.fresh() for _ in range(rank))


def product(dims: Sequence[Dim]) -> Dim:
    """The number of elements of a shape."""
    return prod(dims, start=1)


def axes_of(node: ir.Node, ins: Facts, k: int) -> list[int] | None:
    """The `axes` of a node: its attribute or its input `k`; None where absent or not constant."""
    given = attribute(node, "axes")
    if given is None and k < len(ins) and ins[k].concrete is not None:
        given = ins[k].concrete
    return None if given is None else [int(a) for a in np.ravel(given)]
