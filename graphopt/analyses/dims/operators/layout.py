"""Joining, cutting and repeating along an axis: Concat, Split, Slice, Pad, Expand, Tile."""

from __future__ import annotations

import numpy as np

from graphopt.analyses.dims.axes import Sizes, Tensor
from graphopt.analyses.dims.operation import Operation, Unsupported
from graphopt.analyses.dims.system import ONE

__all__ = ["OPERATORS", "join"]


def join(op: Operation, parts: list[Tensor], whole: Tensor, axis: int) -> None:
    """`whole` is the parts one after the other along `axis`."""
    axis %= whole.rank
    start = 0
    for p in parts:
        for k in range(whole.rank):
            if k != axis:
                op.same(p[k], whole[k])
        size = p.sizes[axis]
        if not isinstance(size, int):
            op.freeze((whole[axis], *(q[axis] for q in parts)), "it is joined with an unknown size")
            return
        op.part(p[axis], whole[axis], np.arange(start, start + size))
        start += size


def concat(op: Operation) -> None:
    """The inputs one after the other."""
    if len(op.inputs()) == 1:
        op.all_same(op.x(0), op.y())
    else:
        join(op, op.inputs(), op.y(), int(op.attribute("axis")))


def split(op: Operation) -> None:
    """The outputs are the input cut along `axis`, at explicit sizes or in equal parts."""
    x, ys = op.x(0), op.outputs()
    axis = int(op.attribute("axis", 0)) % x.rank
    if len(ys) != len(op.node.outputs):
        raise Unsupported("an output of Split has no name")
    if len(ys) == 1:
        op.all_same(x, ys[0])
    else:
        join(op, ys, x, axis)
    sizes = [y.sizes[axis] for y in ys]
    if op.opset() >= 13 and all(isinstance(s, int) for s in sizes) and x[axis] >= 0:
        numbers = tuple(s for s in sizes if isinstance(s, int))
        op.derive(Sizes(1, tuple(y[axis] for y in ys), numbers, drop=("num_outputs",)))
    elif op.opset() < 13 and "split" in op.node.attributes:
        for k, y in enumerate(ys):
            op.count(y[axis], attribute="split", element=k)


def sequence_at(op: Operation) -> None:
    """One piece of a SplitToSequence, by a constant index."""
    source = op.node.inputs[0].producer() if op.node.inputs[0] is not None else None
    index = op.integers(1)
    if source is None or source.op_type != "SplitToSequence" or index is None:
        raise Unsupported("a sequence whose making is not known")
    cut = Operation(source, op.axes)
    x, y = cut.x(0), op.y()
    axis = int(cut.attribute("axis", 0)) % x.rank
    total, sizes = x.sizes[axis], cut.integers(1)
    if not isinstance(total, int) or sizes is None or not int(cut.attribute("keepdims", 1)):
        raise Unsupported("a sequence cut at unknown sizes")
    scalar = cut.array(1)
    if scalar is not None and scalar.ndim == 0:
        step = sizes[0]
        sizes = [min(step, total - s) for s in range(0, total, step)]
    at = index[0] % len(sizes)
    start = sum(sizes[:at])
    for k in range(x.rank):
        if k != axis:
            op.same(x[k], y[k])
    op.part(y[axis], x[axis], np.arange(start, start + sizes[at]))


def split_to_sequence(op: Operation) -> None:
    """Cut into a sequence; every use must take a piece by a constant index."""
    x = op.x(0)
    axis = int(op.attribute("axis", 0)) % x.rank
    uses = [u.node for u in op.node.outputs[0].uses()]
    if any(u.op_type != "SequenceAt" for u in uses) or op.node.outputs[0].is_graph_output():
        op.freeze(x, "its pieces go into a sequence")
    sizes, given = op.integers(1), op.array(1)
    total = x.sizes[axis]
    if x[axis] < 0 or not isinstance(total, int):
        return
    if sizes is None or given is None:
        op.freeze(x[axis], "it is cut at unknown sizes")
    elif given.ndim == 0:
        step = sizes[0]
        bounds = [(s, min(s + step, total)) for s in range(0, total, step)]
        op.derive(
            Sizes(
                1, (x[axis],) * len(bounds), tuple(b - a for a, b in bounds), bounds=tuple(bounds)
            )
        )
    else:
        stops = np.cumsum(sizes).tolist()
        op.derive(
            Sizes(
                1,
                (x[axis],) * len(sizes),
                tuple(sizes),
                bounds=tuple((b - n, b) for n, b in zip(sizes, stops, strict=True)),
            )
        )


def slice_(op: Operation) -> None:
    """y = x[start:stop:step] along some axes; bounds become counts of kept positions."""
    x, y = op.x(0), op.y()
    old = "starts" in op.node.attributes
    starts, stops = op.elements(1), op.elements(2)
    if old:
        starts, stops = list(op.attribute("starts")), list(op.attribute("ends"))
    axes = op.integers(3, "axes") if op.has(3) or "axes" in op.node.attributes else None
    if axes is None:
        if op.has(3):
            raise Unsupported("the sliced axes are not known")
        axes = list(range(len(starts) if starts is not None else 0))
    steps = op.elements(4) if op.has(4) else [1] * len(axes)
    sliced = {a % x.rank for a in axes}
    for k in range(x.rank):
        if k not in sliced:
            op.same(x[k], y[k])
    if starts is None or stops is None or steps is None:
        op.freeze([t[a] for a in sliced for t in (x, y)], "it is cut at unknown places")
        return
    for n, a in enumerate(axes):
        _slice_axis(op, x, y, a % x.rank, n, (starts[n], stops[n], steps[n]), old)


def _slice_axis(
    op: Operation,
    x: Tensor,
    y: Tensor,
    axis: int,
    element: int,
    bounds: tuple[int | None, int | None, int | None],
    old: bool,
) -> None:
    a, b, size = x[axis], y[axis], x.sizes[axis]
    start, stop, step = bounds
    if a == ONE:
        return
    if start is None or stop is None or step is None or not isinstance(size, int):
        op.freeze((a, b), "it is cut at unknown places")
        return
    where = np.arange(size)[slice(start, None if step < 0 and stop < -size else stop, step)]
    if step == 1:
        op.part(b, a, where)
        first = int(where[0]) if len(where) else 0
        end = int(where[-1]) + 1 if len(where) else 0

        def bound(name: str, operand: int, stop: int) -> None:
            if old:
                op.count(a, attribute=name, element=element, stop=stop, always=True)
            else:
                op.count(a, operand=operand, element=element, stop=stop, always=True)

        if start != 0:
            bound("starts", 1, first)
        if -size < stop <= size:
            bound("ends", 2, end)
    elif step > 1 and size % step == 0 and len(where) == size // step and 0 <= start < step:
        picked = op.virtual(step, frozen="every so many positions of it are taken")
        op.merge(a, (b, picked))
    elif step == -1 and len(where) == size and (start == -1 or start >= size):
        op.part(b, a, where)
    else:
        op.freeze((a, b), "every so many positions of it are taken")


def pad(op: Operation) -> None:
    """Positions are put before and after; with constants, their number may change."""
    x, y = op.x(0), op.y()
    pads = op.elements(1) if op.has(1) else list(op.attribute("pads") or op.attribute("paddings"))
    axes = op.integers(3) if op.has(3) else list(range(x.rank))
    mode = op.attribute("mode", "constant")
    if pads is None or axes is None:
        raise Unsupported("the number of pads is not known")
    padded = {a % x.rank: n for n, a in enumerate(axes)}
    for k in range(x.rank):
        if k not in padded:
            op.same(x[k], y[k])
            continue
        n, size = padded[k], x.sizes[k]
        before, after = pads[n], pads[n + len(axes)]
        if before == 0 and after == 0:
            op.same(x[k], y[k])
        elif mode not in ("constant", b"constant") or not op.has(1):
            op.freeze((x[k], y[k]), "it is padded with its own values")
        elif (
            before is None or after is None or before < 0 or after < 0 or not isinstance(size, int)
        ):
            op.freeze((x[k], y[k]), "it is padded by unknown sizes")
        else:
            op.part(x[k], y[k], np.arange(before, before + size))
            op.count(y[k], operand=1, element=n, stop=before)
            op.count(y[k], operand=1, element=n + len(axes), start=before + size)


def expand(op: Operation) -> None:
    """Broadcast to a shape; an axis of size 1 that grows is a new axis."""
    x, y = op.x(0), op.y()
    op.broadcast([x], y)
    shape = op.elements(1)
    length = len(shape) if shape is not None else y.rank
    for k in range(length):
        op.count(y[y.rank - length + k], operand=1, element=k)


def tile(op: Operation) -> None:
    """Each axis repeated: the number of repeats is an axis of its own, in front."""
    x, y = op.x(0), op.y()
    repeats = op.elements(1)
    if repeats is None:
        raise Unsupported("the number of repeats is not known")
    for k, r in enumerate(repeats):
        if r == 1:
            op.same(x[k], y[k])
        elif r is None:
            op.freeze((x[k], y[k]), "it is repeated an unknown number of times")
        else:
            times = op.virtual(r)
            op.merge(y[k], (times, x[k]))
            op.count(times, operand=1, element=k)


OPERATORS = {
    "Concat": concat,
    "Expand": expand,
    "Pad": pad,
    "SequenceAt": sequence_at,
    "Slice": slice_,
    "Split": split,
    "SplitToSequence": split_to_sequence,
    "Tile": tile,
}
