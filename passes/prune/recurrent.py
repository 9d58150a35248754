"""Recurrent layers: their gates are linear in the input and the last state, and are refitted so.

A gate of an LSTM, GRU or RNN computes W x_t + R h_(t-1) + b before its nonlinearity. Both x and all
h are values of the graph (Y holds every state), so what the gates of the original model computed is
known without looking inside the node. W, R and b of the cut layer are fitted to it, first from the
original states that are left (as in teacher forcing), then from the states that gives. An error
counts by what it does to the states (`gates`), in the choice of units too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.prune.gates import influences
from graphopt.passes.prune.least_squares import Gram, fit_weighted
from graphopt.passes.prune.linear import put
from graphopt.passes.prune.reconstruct import Reader
from graphopt.passes.prune.sampling import ROWS_LEAST, fit_share

from graphopt.calibration.moments import Moments
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import array_of, is_constant

__all__ = ["Cell", "cell"]

Array = np.ndarray[Any, Any]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A recurrent node with constant weights whose states are all in the graph.

    Attributes:
        node: the LSTM, GRU or RNN.
        gates: gates stacked in its weights.
        reverse: per direction, whether it runs from the last step to the first.
    """

    node: ir.Node
    gates: int
    reverse: tuple[bool, ...]

    def values(self) -> list[ir.Value]:
        """What has to be known on samples: input, states, and the first state if there is one."""
        first = self.node.inputs[5] if len(self.node.inputs) > 5 else None
        x = self.node.inputs[0]
        assert x is not None
        return [x, self.node.outputs[0], *([first] if first is not None else [])]

    def weights(self, direction: int) -> tuple[Array, Array, Array]:
        """W [gates * hidden, inputs], R [gates * hidden, hidden], and W's and R's bias [2, ...]."""
        w, r = (array_of(self.node.inputs[k])[direction].astype(np.float64) for k in (1, 2))
        held = self.node.inputs[3] if len(self.node.inputs) > 3 else None
        if held is None:
            return w, r, np.zeros((2, len(w)))
        return w, r, array_of(held)[direction].astype(np.float64).reshape(2, -1)

    def rows(self, x: Array, y: Array, first: Array | None, direction: int) -> tuple[Array, Array]:
        """x_t as [batch * steps, inputs] and h_(t-1) as [batch * steps, hidden], beside it.

        Args:
            x: [steps, batch, inputs].
            y: [steps, directions, batch, hidden].
            first: [directions, batch, hidden] or None.
            direction: which.
        """
        states = y[:, direction]
        start = np.zeros_like(states[:1]) if first is None else first[direction][None]
        if self.reverse[direction]:
            before = np.concatenate([states[1:], start])
        else:
            before = np.concatenate([start, states[:-1]])
        x, before = x.swapaxes(0, 1), before.swapaxes(0, 1)
        return x.reshape(-1, x.shape[-1]), before.reshape(-1, before.shape[-1])

    def blocks(self, hidden: int) -> list[tuple[Array, bool, bool]]:
        """Rows of the stacked weights that are fitted together, and whether from x, from h.

        All gates see W x + R h, but for the last of a GRU, which scales R h + b before the sum (or,
        without linear_before_reset, h itself, which is not in the graph: its R stays).
        """
        count = self.gates * hidden
        if self.node.op_type != "GRU":
            return [(np.arange(count), True, True)]
        last = np.arange(2 * hidden, count)
        found = [(np.arange(2 * hidden), True, True), (last, True, False)]
        if attribute(self.node, "linear_before_reset"):
            found.append((last, False, True))
        return found

    def refit(
        self,
        source: Cell,
        pairs: Iterable[tuple[list[Array], list[Array]]],
        kept: Array,
        runs: int,
        *,
        forced: bool,
    ) -> list[tuple[Array, Array, Array]]:
        """Refitted (W, R, biases) per direction.

        Args:
            source: the cell before the cut.
            pairs: its `values` on samples, and the present ones.
            kept: hidden units of `source` that are left.
            runs: number of samples.
            forced: fit to the original's states instead of the actual ones.
        """
        mine = [self.weights(d) for d in range(len(self.reverse))]
        blocks = self.blocks(len(kept))
        grams: dict[tuple[int, int], Gram] = {}
        drawn: dict[tuple[int, int], list[tuple[Array, ...]]] = {}
        rng = np.random.default_rng(0)
        for run, (before, now) in enumerate(pairs):
            for key, f, y, influence in self._fitted(source, before, now, kept, forced=forced):
                if key not in grams:
                    grams[key] = Gram(1, f.shape[1], y.shape[1], shift=True)
                grams[key].add(f[None], y[None], fit_share(run, runs))
                if influence is not None:
                    some = rng.permutation(len(f))[: -(-ROWS_LEAST // runs)]
                    drawn.setdefault(key, []).append((f[some], y[some], influence[some]))
        for (d, k), gram in grams.items():
            w, r, b = mine[d]
            at, x, h = blocks[k]
            prior = np.concatenate([*([w[at]] if x else []), *([r[at]] if h else [])], axis=1)
            bias = _sum([*([b[0][at]] if x else []), *([b[1][at]] if h else [])])
            weight, shift, ridge = gram.fit(prior[None], bias)
            assert shift is not None
            if (d, k) in drawn and np.isfinite(ridge):
                rows = [np.concatenate(part) for part in zip(*drawn[d, k], strict=True)]
                start = weight[0], shift
                weight[0], shift = fit_weighted(
                    rows[0], rows[1], rows[2], start, (prior, bias), ridge
                )
            inner = w.shape[1] if x else 0
            if x:
                w[at] = weight[0][:, :inner]
            if h:
                r[at] = weight[0][:, inner:]
            b[0 if x else 1][at] = shift
            if x and h:
                b[1][at] = 0
        return mine

    def _fitted(
        self, source: Cell, before: list[Array], now: list[Array], kept: Array, *, forced: bool
    ) -> Iterator[tuple[tuple[int, int], Array, Array, Array | None]]:
        """By direction and block: features, sums to reach, and how much the states mind an error.

        All are [batch * steps, ...].
        """
        (x0, y0, *f0), (x1, y1, *f1) = before, now
        blocks = self.blocks(len(kept))
        for d, reverse in enumerate(self.reverse):
            w, r, b = source.weights(d)
            rows = np.concatenate([g * r.shape[1] + kept for g in range(self.gates)])
            given, state = self.rows(x0, y0, f0[0] if f0 else None, d)
            state = state.astype(np.float32)
            from_x = (given @ w[rows].T + b[0][rows]).astype(np.float32)
            from_h = (state @ r[rows].T + b[1][rows]).astype(np.float32)
            steps = (_in_time(a, len(x0), reverse) for a in (from_x, from_h, state[:, kept]))
            found = influences(self.node, *steps)
            inputs, states = self.rows(x1, y1, f1[0] if f1 else None, d)
            states = state[:, kept] if forced else states
            for k, (at, x, h) in enumerate(blocks):
                f = np.concatenate([*([inputs] if x else []), *([states] if h else [])], axis=1)
                y = _sum([*([from_x[:, at]] if x else []), *([from_h[:, at]] if h else [])])
                yield (d, k), f, y, None if found is None else _by_row(found[k], reverse)

    def store(self, model: ir.Model, fitted: list[tuple[Array, Array, Array]]) -> None:
        """Put refitted weights into the node."""
        for k in (1, 2, 3):
            array = np.stack([f[k - 1].reshape(-1) if k == 3 else f[k - 1] for f in fitted])
            put(model, self.node, k, array.astype(array_of(self.node.inputs[1]).dtype))

    def readers(
        self, units_x: Array | None, units_h: Array | None, observed: Iterable[list[Array]]
    ) -> list[Reader]:
        """The gates as readers of the units of the input and of the hidden state, per direction.

        Their sums count by what they do to the states.
        """
        weights = [self.weights(d) for d in range(len(self.reverse))]
        hidden = weights[0][1].shape[1]
        moments: list[Moments] = []
        minded = [[np.zeros(len(at)) for at, _, _ in self.blocks(hidden)] for _ in weights]
        for x, y, *first in observed:
            for d in range(len(weights)):
                given, state = self.rows(x, y, first[0] if first else None, d)
                f = np.concatenate([given, state], axis=1)
                if len(moments) <= d:
                    moments.append(Moments.zero(1, f.shape[1]))
                moments[d].add(f[None])
                found = self._influences(weights[d], given, state, len(x), d)
                for k, total in enumerate(minded[d]):
                    total += np.float64(len(f)) if found is None else found[k].sum(axis=(0, 1))
        made = []
        for d, (w, r, _) in enumerate(weights):
            covariance = moments[d].covariance()[0]
            for (at, in_w, in_r), total in zip(self.blocks(hidden), minded[d], strict=True):
                scale = np.sqrt(total / moments[d].rows)[:, None]
                if in_w:
                    w[at] *= scale
                if in_r:
                    r[at] *= scale
            both = np.concatenate([w, r], axis=1)
            square = float(np.einsum("mn,nk,mk->", both, covariance, both, optimize=True))
            none_x, none_h = np.full(w.shape[1], -1), np.full(r.shape[1], -1)
            units = [none_x if units_x is None else units_x, none_h if units_h is None else units_h]
            made.append(Reader(both, covariance, np.concatenate(units), max(square, 1e-30)))
        return made

    def _influences(
        self,
        weights: tuple[Array, Array, Array],
        given: Array,
        state: Array,
        steps: int,
        direction: int,
    ) -> list[Array] | None:
        """`gates.influences` of sums of these weights, from what `rows` gave."""
        w, r, b = weights
        sums = (given @ w.T + b[0], state @ r.T + b[1], state)
        reverse = self.reverse[direction]
        return influences(self.node, *(_in_time(a, steps, reverse) for a in sums))


def cell(node: ir.Node) -> Cell | str:
    """`node` as a recurrent cell, or why it is none (empty if it is no candidate at all)."""
    if node.op_type not in GATES or node.domain not in ("", "ai.onnx"):
        return ""
    held = [*node.inputs[1:4], *([None] * 4)]
    if not all(is_constant(v) for v in held[:2]) or not (held[2] is None or is_constant(held[2])):
        return "its weights are computed"
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        return "its sequences have lengths of their own"
    if attribute(node, "layout", 0):
        return "its batch is the first axis"
    if not node.outputs or not node.outputs[0].name:
        return "its states are not an output"
    direction = attribute(node, "direction")
    reverse = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    return Cell(node, GATES[node.op_type], reverse)


def _in_time(rows: Array, steps: int, reverse: bool) -> Array:
    """Rows [batch * steps, ...] as [steps, batch, ...], in the order the layer takes them."""
    found = rows.reshape(-1, steps, rows.shape[-1]).swapaxes(0, 1)
    return found[::-1] if reverse else found


def _by_row(found: Array, reverse: bool) -> Array:
    """The reverse of `_in_time`."""
    return (found[::-1] if reverse else found).swapaxes(0, 1).reshape(-1, found.shape[-1])


def _sum(terms: list[Array]) -> Array:
    """The sum of one or more arrays of the same shape."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
