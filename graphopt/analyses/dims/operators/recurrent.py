"""LSTM, GRU and RNN: the hidden size, in every gate and direction.

W (d, gates*h, in), R (d, gates*h, h), B (d, 2*gates*h), peepholes P (d, 3*h), states (d, batch, h);
Y (steps, d, batch, h). A hidden unit is the same position in every gate, and in each direction:
directions share their indices, since they share the tensors.
"""

from __future__ import annotations

import numpy as np

from graphopt.analyses.dims.axes import Tensor
from graphopt.analyses.dims.operation import Operation, Unsupported

__all__ = ["OPERATORS"]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(op: Operation) -> None:
    """One layer, in one or both directions."""
    x, w, r = op.x(0), op.x(1), op.x(2)
    gates = GATES[op.node.op_type]
    hidden, directions = r.sizes[2], r[0]
    if not isinstance(hidden, int):
        raise Unsupported("the hidden size is not known")
    h = op.virtual(hidden)
    op.means("hidden", h)
    layout = int(op.attribute("layout", 0))
    batch = x[0] if layout else x[1]
    op.same(x[2], w[2])
    op.reads(x, 2)
    op.reads(w, 2)
    op.same(r[2], h)
    op.reads(r, 2)
    for t in (w, r):
        op.same(t[0], directions)
        stacked(op, t, 1, h, hidden, gates)
    if op.has(3):
        op.same(op.x(3)[0], directions)
        stacked(op, op.x(3), 1, h, hidden, 2 * gates)
    if op.has(4):
        op.same(op.x(4)[0], batch)
    if op.has(7):
        op.same(op.x(7)[0], directions)
        stacked(op, op.x(7), 1, h, hidden, 3)
    states = [op.x(k) for k in (5, 6) if op.has(k)]
    states += [op.y(k) for k in (1, 2) if op.made(k)]
    for t in states:
        state(op, t, h, t[1] if layout else t[0], directions, t[0] if layout else t[1], batch)
    if op.made(0):
        y = op.y(0)
        op.same(y[1] if layout else y[0], x[1] if layout else x[0])
        state(op, y, h, y[2] if layout else y[1], directions, y[0] if layout else y[2], batch)
        op.writes(y, 3)
    op.count(h, attribute="hidden_size")
    op.freeze(directions, "a recurrent layer's directions")
    op.freeze(x[1] if layout else x[0], "steps of a recurrence")


def stacked(op: Operation, t: Tensor, axis: int, h: int, hidden: int, times: int) -> None:
    """`axis` is `times` blocks of the hidden size, one below the other."""
    at = np.arange(hidden * times)
    if h >= 0:
        op.part(h, t[axis], at, at % hidden)
    op.writes(t, axis)


def state(
    op: Operation, t: Tensor, h: int, own: int, directions: int, rows: int, batch: int
) -> None:
    """A state's last axis is the hidden size."""
    op.same(t[-1], h)
    op.same(own, directions)
    op.same(rows, batch)


OPERATORS = {"GRU": recurrent, "LSTM": recurrent, "RNN": recurrent}
