"""Recurrent layers unrolled: LSTM and GRU as the products and gates of every step.

For compilers that take no recurrent layer, and cut what PyTorch makes of one into hundreds of
parts. Steps are known, as shapes are fixed; what the input gives of all steps is one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import constant_value
from graphopt.rewriting.driver import apply_rules
from graphopt.rewriting.rules import Replacement, Walker

__all__ = ["in_steps"]

#: Steps that are written out at most.
STEPS = 512
_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}
_BACKWARDS = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
Array = np.ndarray[Any, Any]


def in_steps(model: ir.Model) -> ir.Model:
    """A clone of `model` (it shares the weights) whose recurrent layers are written out."""
    clone = model.clone()
    apply_rules(clone, Context(clone), (Unrolled,))
    return clone


class Unrolled(Walker):
    """LSTM(x) -> Concat(h_1 .. h_T), GRU(x) likewise, of constant weights and the usual gates"""

    roots = ("GRU", "LSTM")

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        dims = None if node.inputs[0] is None else ctx.get(shapes).static(node.inputs[0])
        found = [None if v is None else constant_value(v) for v in node.inputs[1:4]]
        if dims is None or dims[0] > STEPS or not _usual(node):
            return None
        if any(t is None and v is not None for t, v in zip(found, node.inputs[1:4], strict=True)):
            return None
        weights = [None if t is None else t.numpy() for t in found]
        return Replacement(lambda op: _Layer(op, node, dims, weights).run())


def _usual(node: ir.Node) -> bool:
    """Whether the gates are the usual ones, and all sequences are of one length."""
    usual = _USUAL[node.op_type]
    names = attribute(node, "activations") or usual
    beside = [*node.inputs[4:5], *(node.inputs[7:8] if node.op_type == "LSTM" else ())]
    return (
        list(names) == usual * (len(names) // len(usual))
        and not any(attribute(node, name, 0) for name in ("clip", "input_forget", "layout"))
        and all(v is None for v in beside)  # lengths and peepholes
    )


class _Layer:
    """One node: its sizes and weights, and what writes its steps."""

    def __init__(
        self, op: Any, node: ir.Node, dims: Sequence[int], weights: Sequence[Array | None]
    ) -> None:
        self.op, self.node = op, node
        self.steps, self.batch, self.inputs = dims
        kernel, recurrence, bias = (*weights, None)[:3]
        assert kernel is not None
        assert recurrence is not None
        self.kernel, self.recurrence, self.hidden = kernel, recurrence, recurrence.shape[-1]
        both = np.zeros((len(kernel), 2 * kernel.shape[1]), kernel.dtype)
        self.bias = (both if bias is None else bias).reshape(len(kernel), 2, -1)

    def run(self) -> tuple[ir.Value, ...]:
        """y [time, directions, batch, hidden] and the last states [directions, batch, hidden]."""
        direction = attribute(self.node, "direction", "forward")
        rows = self.reshaped(self.node.inputs[0], self.steps * self.batch, self.inputs)
        sequences: list[list[ir.Value]] = []
        last: list[list[ir.Value]] = []
        for d, back in enumerate(_BACKWARDS[direction]):
            made, states = self.one_way(rows, d, back)
            sequences.append(made[::-1] if back else made)
            last.append(states)
        size = (len(last), self.batch, self.hidden)
        flat = [h for step in zip(*sequences, strict=True) for h in step]
        results = [self.reshaped(self.stacked(flat), self.steps, *size)]
        results += [self.reshaped(self.stacked(s), *size) for s in zip(*last, strict=True)]
        return tuple(results[: len(self.node.outputs)])

    def one_way(self, rows: ir.Value, d: int, back: bool) -> tuple[list[ir.Value], list[ir.Value]]:
        """h [batch, hidden] of every step in the order in which they are made, and the states."""
        step = self.lstm if self.node.op_type == "LSTM" else self.gru
        ahead, recurrent = self.ahead(rows, d), self.weights(d)
        states = [self.state(k, d) for k in range(2 if self.node.op_type == "LSTM" else 1)]
        made = []
        for t in reversed(range(self.steps)) if back else range(self.steps):
            part = self.part(ahead, 0, t * self.batch, self.batch)
            states = step(part, states, *recurrent)
            made.append(states[0])
        return made, states

    def ahead(self, rows: ir.Value, d: int) -> ir.Value:
        """What the input and the biases give of all steps; not the bias that GRU resets."""
        bias = self.bias[d].sum(0)
        if self.node.op_type == "GRU":
            bias[2 * self.hidden :] = self.bias[d][0, 2 * self.hidden :]
        product = self.op.MatMul(rows, self.constant(self.kernel[d].T, "kernel"))
        made: ir.Value = self.op.Add(product, self.constant(bias, "bias"))
        return made

    def weights(self, d: int) -> tuple[ir.Value, ...]:
        """Constants that every step reads."""
        kernel = self.recurrence[d].T
        if self.node.op_type == "LSTM":
            return (self.constant(kernel, "recurrence"),)
        cut = 2 * self.hidden
        parts = (kernel[:, :cut], kernel[:, cut:], self.bias[d][1, cut:])
        return tuple(self.constant(p, "recurrence") for p in parts)

    def lstm(
        self, ahead: ir.Value, states: Sequence[ir.Value], recurrence: ir.Value
    ) -> list[ir.Value]:
        """i, o, f, g = gates; c' = f c + i g; h' = o tanh(c')"""
        op, (h, c) = self.op, states
        gates = op.Add(ahead, op.MatMul(h, recurrence))
        i, o, f = (op.Sigmoid(self.part(gates, 1, k * self.hidden, self.hidden)) for k in range(3))
        g = op.Tanh(self.part(gates, 1, 3 * self.hidden, self.hidden))
        c = op.Add(op.Mul(f, c), op.Mul(i, g))
        return [op.Mul(o, op.Tanh(c)), c]

    def gru(
        self,
        ahead: ir.Value,
        states: Sequence[ir.Value],
        both: ir.Value,
        last: ir.Value,
        bias: ir.Value,
    ) -> list[ir.Value]:
        """z, r = gates; n = tanh(x + r h); h' = n + z (h - n)"""
        op, (h,), size = self.op, states, self.hidden
        gates = op.Sigmoid(op.Add(self.part(ahead, 1, 0, 2 * size), op.MatMul(h, both)))
        z, r = (self.part(gates, 1, k * size, size) for k in range(2))
        if attribute(self.node, "linear_before_reset", 0):
            inner = op.Mul(r, op.Add(op.MatMul(h, last), bias))
        else:
            inner = op.Add(op.MatMul(op.Mul(r, h), last), bias)
        n = op.Tanh(op.Add(self.part(ahead, 1, 2 * size, size), inner))
        return [op.Add(n, op.Mul(z, op.Sub(h, n)))]

    def state(self, k: int, d: int) -> ir.Value:
        """State `k` of direction `d` before the first step."""
        given = self.node.inputs[5 + k] if len(self.node.inputs) > 5 + k else None
        if given is None:
            return self.constant(np.zeros((self.batch, self.hidden), self.kernel.dtype), "state")
        return self.reshaped(self.part(given, 0, d, 1), self.batch, self.hidden)

    def part(self, x: ir.Value, axis: int, start: int, size: int) -> ir.Value:
        limits = (self.constant(np.array([k]), "limit") for k in (start, start + size, axis))
        made: ir.Value = self.op.Slice(x, *limits)
        return made

    def stacked(self, parts: Sequence[ir.Value]) -> ir.Value:
        if len(parts) == 1:
            return parts[0]
        made: ir.Value = self.op.Concat(*parts, axis=0)
        return made

    def reshaped(self, x: ir.Value | None, *dims: int) -> ir.Value:
        made: ir.Value = self.op.Reshape(x, self.constant(np.array(dims), "shape"))
        return made

    def constant(self, array: Array, name: str) -> ir.Value:
        made: ir.Value = self.op.constant(np.ascontiguousarray(array), name)
        return made
