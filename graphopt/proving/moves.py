"""Index maps: operators that move elements about and compute none."""

from __future__ import annotations

from math import prod

import numpy as np

from graphopt.analyses.shapes.symbolic import Dim
from graphopt.proving.indices import reshaped
from graphopt.proving.meaning import Index, Meaning, Operator, affine
from graphopt.proving.polynomials import Poly, Unprovable
from graphopt.proving.terms import Term

__all__ = ["MOVES"]


def _transpose(m: Meaning, t: Term, ix: Index) -> Poly:
    """y[i_0 ...] = x[i_(p^-1)]"""
    perm = m.attribute(t, "perm") or tuple(range(len(ix)))[::-1]
    at: list[Dim] = [0] * len(ix)
    for k, p in enumerate(perm):
        at[p] = ix[k]
    return m.at(t.args[0], tuple(at))


def _reshape(m: Meaning, t: Term, ix: Index) -> Poly:
    """Row-major order is kept."""
    new, old = m.dims(t), m.dims(t.args[0])
    elements = prod(new, start=1), prod(old, start=1)
    if elements[0] != elements[1]:
        m.held.add(elements)  # or it does not run
    if not old:
        return m.at(t.args[0], ())
    at = reshaped(ix, new, old, m.algebra.ranges)
    if at is None:
        raise Unprovable("a Reshape whose axes do not show what belongs together")
    return m.at(t.args[0], at)


def _expand(m: Meaning, t: Term, ix: Index) -> Poly:
    return m.broadcast(t.args[0], ix, m.dims(t))


def _tile(m: Meaning, t: Term, ix: Index) -> Poly:
    own = m.dims(t.args[0])
    at = tuple(
        i if d == n else m.algebra.ranges.modulo(i, d)
        for i, d, n in zip(ix, own, m.dims(t), strict=True)
    )
    return m.at(t.args[0], at)


def _slice(m: Meaning, t: Term, ix: Index) -> Poly:
    """y[i] = x[start + i step]"""
    dims = m.dims(t.args[0])
    starts, ends = (m.sizes(m.argument(t, k)) for k in (1, 2))
    given = m.argument(t, 3)
    axes = list(range(len(starts or ()))) if given is None else m.numbers(given)
    steps = m.argument(t, 4)
    every = [1] * len(starts or ()) if steps is None else m.numbers(steps)
    if starts is None or ends is None or axes is None or every is None:
        raise Unprovable("a Slice whose bounds are not known")
    at = list(ix)
    for axis, start, step in zip(axes, starts, every, strict=True):
        k = m.axis(axis, len(dims))
        size = dims[k]
        if m.dims(t)[k] == size and step > 0:
            continue  # a forward slice of full length starts at 0
        if isinstance(start, int) and start < 0:
            if not isinstance(size, int) and not isinstance(m.dims(t)[k], int):
                raise Unprovable("a Slice that may start before its operand")
            start = size + start
        if isinstance(start, int) and step > 0:
            start = max(start, 0)
        if step < 0 and isinstance(size, int) and isinstance(start, int):
            start = min(start, size - 1)
        elif step < 0:
            raise Unprovable("a backward Slice of an unknown size")
        at[k] = start + at[k] * step
    return m.at(t.args[0], tuple(at))


def _concat(m: Meaning, t: Term, ix: Index) -> Poly:
    """y[i] = sum over parts k of [0 <= i - o_k < n_k] x_k[i - o_k]

    Neighbours that read the same of one tensor are one part: the slices of a whole are the whole.
    """
    axis = m.axis(m.attribute(t, "axis"), len(ix))
    offset: Dim = 0
    parts: list[tuple[Dim, Dim, Poly, Poly]] = []  # offset, size, the element, and it by `here`
    for part in t.args:
        size = m.dims(part)[axis]
        here = ix[axis] - offset
        if m.algebra.inside(here, size):
            free = m.at(part, (*ix[:axis], here, *ix[axis + 1 :]))
            one = m.at(part, (*ix[:axis], 0, *ix[axis + 1 :])) if size == 1 else free
            if parts and parts[-1][3] == free:
                start, before, _, _ = parts.pop()
                parts.append((start, before + size, free, free))
            else:
                parts.append((offset, size, one, free))
        offset = offset + size
    if len(parts) == 1 and parts[0][1] == offset:
        return parts[0][2]
    inside = [m.algebra.inside(ix[axis] - start, size) for start, size, _, _ in parts]
    return m.algebra.add(*(m.algebra.mul(k, p[2]) for k, p in zip(inside, parts, strict=True)))


def _split(m: Meaning, t: Term, ix: Index) -> Poly:
    axis = m.axis(m.attribute(t, "axis", 0), len(ix))
    sizes = m.sizes(m.argument(t, 1))
    offset: Dim = 0
    if sizes is not None:
        for size in sizes[: t.output]:
            offset = offset + size
    elif t.output:
        whole = m.dims(t.args[0])[axis]
        count = m.attribute(t, "num_outputs") or (len(t.node.outputs) if t.node else 0)
        if not isinstance(whole, int) or not count:
            raise Unprovable("a Split of an unknown size")
        offset = -(-whole // count) * t.output
    return m.at(t.args[0], (*ix[:axis], offset + ix[axis], *ix[axis + 1 :]))


def _gather(m: Meaning, t: Term, ix: Index) -> Poly:
    """y[a, j, b] = x[a, i_j, b]"""
    x, where = t.args[0], t.args[1]
    dims, own = m.dims(x), m.dims(where)
    axis = m.axis(m.attribute(t, "axis", 0), len(dims))
    j = ix[axis : axis + len(own)]
    before, after = ix[:axis], ix[axis + len(own) :]
    return m.gathered(x, axis, before, where, j, after)


def _gather_nd(m: Meaning, t: Term, ix: Index) -> Poly:
    """y[b, j, r] = x[b, w[b, j], r] for constant positions w that follow each other"""
    x, where = t.args
    dims, own = m.dims(x), m.dims(where)
    batch = m.attribute(t, "batch_dims", 0)
    if where is None or where.op != "const" or not where.array().size:
        return m.leaf(t, ix)
    lines: list[Dim] = []
    for k, found in enumerate(np.moveaxis(where.array(), -1, 0)):
        size = dims[batch + k]
        if isinstance(size, int):
            found = np.where(found < 0, found + size, found)
        line = affine(found, ix) if found.min() >= 0 else None
        if line is None:
            return m.leaf(t, ix)
        m.reached.add((size, int(found.max()) + 1))
        lines.append(line)
    return m.at(x, (*ix[:batch], *lines, *ix[len(own) - 1 :]))


def _filled(m: Meaning, t: Term, ix: Index) -> Poly:
    """ConstantOfShape holds one number."""
    tensor = t.attributes.get("value")
    return m.number(0.0 if tensor is None else tensor.numpy().reshape(-1)[0])


def _resize(m: Meaning, t: Term, ix: Index) -> Poly:
    """Scales of 1 sample each point at itself, except where TensorFlow's modes shift it."""
    mode = m.attribute(t, "coordinate_transformation_mode", "")
    if mode.startswith("tf_") or m.dims(t) != m.dims(t.args[0]):
        return m.leaf(t, ix)
    scales = m.argument(t, 1 if t.op == "Upsample" or len(t.args) == 2 else 2)
    if scales is None:
        if t.op == "Upsample":
            return m.leaf(t, ix)
    elif scales.op != "const" or not (scales.array() == 1).all():
        return m.leaf(t, ix)
    return m.at(t.args[0], ix)


def _pad(m: Meaning, t: Term, ix: Index) -> Poly:
    """y[i] = x[i - p] inside; outside the value, or x where the mode says"""
    mode = m.attribute(t, "mode", "constant")
    pads, dims = m.numbers(m.argument(t, 1)), m.dims(t.args[0])
    axes = m.numbers(m.argument(t, 3)) or list(range(len(dims)))
    if pads is None or (mode != "constant" and min(pads, default=0) < 0):
        raise Unprovable("a Pad whose pads are not known, or crop in another mode")
    at = list(ix)
    inside = m.algebra.number(1)
    for k, axis in enumerate(axes):
        axis = m.axis(axis, len(dims))
        if pads[k] or pads[k + len(axes)]:
            at[axis] = ix[axis] - pads[k]
            if mode != "constant":
                at[axis] = m.algebra.ranges.padded(mode, at[axis], dims[axis])
                continue
            inside = m.algebra.mul(inside, m.algebra.inside(at[axis], dims[axis]))
    value = m.argument(t, 2) if mode == "constant" else None
    fill = m.at(value, (0,) * len(m.dims(value))) if value is not None else ()
    if any(a.data == ("inf",) for n, _ in fill for a, _ in n.factors):
        return m.algebra.function("where", inside, m.at(t.args[0], tuple(at)), fill)
    kept = m.algebra.mul(inside, m.at(t.args[0], tuple(at)))
    if not fill:
        return kept
    return m.algebra.add(kept, m.algebra.mul(fill, m.algebra.sub(m.algebra.number(1), inside)))


def _identity(m: Meaning, t: Term, ix: Index) -> Poly:
    return m.at(t.args[0], ix)


def _shape(m: Meaning, t: Term, ix: Index) -> Poly:
    """y[k] = the size of axis k"""
    dims = m.dims(t.args[0])
    start = m.axis(m.attribute(t, "start", 0), len(dims))
    sizes = dims[start:]
    if isinstance(ix[0], int):
        return m.algebra.size(sizes[ix[0]])
    count = m.dims(t)[0]
    if not isinstance(count, int):
        raise Unprovable("a Shape of unknown length")
    parts = [
        m.algebra.mul(m.algebra.inside(ix[0] - k, 1), m.algebra.size(sizes[k]))
        for k in range(count)
    ]
    return m.algebra.add(*parts)


MOVES: dict[str, Operator] = {
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Identity": _identity,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _reshape,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
