"""LSTM and GRU, step by step: the steps are known, as shapes are fixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from graphopt.backends.litert.flatbuffer import Array, Tensor
from graphopt.backends.litert.products import connected
from graphopt.backends.litert.writer import Lower, Refused, Writer

__all__ = ["RECURRENT"]

#: Steps that are written out at most.
STEPS = 512


def _mul(w: Writer, a: Tensor, b: Tensor) -> Tensor:
    return w.emit("MUL", [a, b], a.shape, "Mul")


def _add(w: Writer, a: Tensor, b: Tensor) -> Tensor:
    return w.emit("ADD", [a, b], a.shape, "Add")


def _unary(w: Writer, code: str, a: Tensor) -> Tensor:
    return w.emit(code, [a], a.shape)


def _columns(w: Writer, x: Tensor, k: int, size: int) -> Tensor:
    """Block `k` of the columns of a matrix."""
    shape = (x.shape[0], size)
    given = [x, w.numbers((0, k * size)), w.numbers(shape)]
    return w.moved("SLICE", given, shape, "Slice")


def _unsupported(w: Writer, node: ir.Node, usual: Sequence[str]) -> None:
    names = w.attribute(node, "activations")
    if names and list(names) != list(usual) * (len(names) // len(usual)):
        raise Refused(f"its activations are {', '.join(names)}")
    if w.attribute(node, "clip", 0.0) or w.attribute(node, "layout", 0):
        raise Refused("it clips, or has the batch first")
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        raise Refused("its sequences have lengths of their own")


def recurrent(
    step: Callable[[Writer, ir.Node, Weights, Tensor, list[Tensor]], list[Tensor]],
    states: int,
    activations: Sequence[str],
) -> Lower:
    """A network of `states` states, of which the first is its output."""

    def lower(w: Writer, node: ir.Node) -> None:
        _unsupported(w, node, activations)
        steps, batch, inputs = w.shape(node.inputs[0])
        hidden = w.attribute(node, "hidden_size")
        if steps > STEPS:
            raise Refused(f"{steps} steps, of {STEPS} that are written out")
        x = w.read(node.inputs[0])
        direction = w.attribute(node, "direction")
        backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
        sequences: list[list[Tensor]] = []
        finals: list[list[Tensor]] = []
        rows = w.reshape(x, (steps * batch, inputs))
        for d, back in enumerate(backwards[direction]):
            weights = Weights(w, node, d)
            held = [_initial(w, node, 5 + k, d, (batch, hidden)) for k in range(states)]
            ahead = weights.ahead(rows)
            made: list[Tensor] = []
            for t in reversed(range(steps)) if back else range(steps):
                shape = (batch, ahead.shape[1])
                given = [ahead, w.numbers((t * batch, 0)), w.numbers(shape)]
                held = step(w, node, weights, w.moved("SLICE", given, shape, "Slice"), held)
                made.append(held[0])
            sequences.append(made[::-1] if back else made)
            finals.append(held)
        _give(w, node, sequences, finals, (steps, batch, hidden))

    return lower


def _give(
    w: Writer,
    node: ir.Node,
    sequences: list[list[Tensor]],
    finals: list[list[Tensor]],
    sizes: tuple[int, int, int],
) -> None:
    steps, batch, hidden = sizes
    flat = [t for pair in zip(*sequences, strict=True) for t in pair]
    shape = (steps, len(sequences), batch, hidden)
    w.give(node.outputs[0], w.reshape(_stacked(w, flat), shape))
    for k, value in enumerate(node.outputs[1:]):
        w.give(value, w.reshape(_stacked(w, [f[k] for f in finals]), w.shape(value)))


def _stacked(w: Writer, parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    shape = (len(parts) * parts[0].shape[0], parts[0].shape[1])
    return w.emit("CONCATENATION", parts, shape, "Concatenation", axis=0)


def _initial(w: Writer, node: ir.Node, k: int, d: int, shape: tuple[int, int]) -> Tensor:
    if k >= len(node.inputs) or node.inputs[k] is None:
        return w.floats(np.zeros(shape))
    x = w.read(node.inputs[k])
    given = [x, w.numbers((d, 0, 0)), w.numbers((1, *shape))]
    return w.reshape(w.moved("SLICE", given, (1, *shape), "Slice"), shape)


class Weights:
    """The weights of one direction."""

    def __init__(self, w: Writer, node: ir.Node, d: int) -> None:
        self._w = w
        found = [w.real(v) for v in (*node.inputs[1:4], None)[:3]]
        kernel, recurrence, bias = found
        if kernel is None or recurrence is None:
            raise Refused("its weights are computed at run time")
        self.kernel, self.recurrence = kernel[d], recurrence[d]
        rows = self.kernel.shape[0]
        given = np.zeros((2, rows)) if bias is None else bias[d].reshape(2, rows)
        self.input_bias, self.state_bias = given

    def ahead(self, rows: Tensor) -> Tensor:
        """What the input gives of all steps at once."""
        return self.product(rows, self.kernel, self.input_bias)

    def product(self, x: Tensor, weights: Array, bias: Array) -> Tensor:
        """x @ weights^T + bias"""
        w = self._w
        made = connected(w, x, w.floats(weights), None)
        return _add(w, made, w.floats(bias)) if bias.any() else made


def lstm_step(
    w: Writer, node: ir.Node, weights: Weights, ahead: Tensor, states: list[Tensor]
) -> list[Tensor]:
    """i, o, f, c = gates; C = f C + i c; H = o tanh(C)"""
    if len(node.inputs) > 7 and node.inputs[7] is not None:
        raise Refused("it has peepholes")
    if w.attribute(node, "input_forget"):
        raise Refused("its gates are coupled")
    h, c = states
    gates = _add(w, ahead, weights.product(h, weights.recurrence, weights.state_bias))
    i, o, f, g = (_columns(w, gates, k, h.shape[1]) for k in range(4))
    i, o, f = (_unary(w, "LOGISTIC", t) for t in (i, o, f))
    c = _add(w, _mul(w, f, c), _mul(w, i, _unary(w, "TANH", g)))
    return [_mul(w, o, _unary(w, "TANH", c)), c]


def gru_step(
    w: Writer, node: ir.Node, weights: Weights, ahead: Tensor, states: list[Tensor]
) -> list[Tensor]:
    """z, r = gates; H = (1 - z) tanh(x + r h) + z H"""
    (h,) = states
    size = h.shape[1]
    both, last = slice(0, 2 * size), slice(2 * size, 3 * size)
    gates = weights.product(h, weights.recurrence[both], weights.state_bias[both])
    z, r = (_columns(w, ahead, k, size) for k in range(2))
    z = _unary(w, "LOGISTIC", _add(w, z, _columns(w, gates, 0, size)))
    r = _unary(w, "LOGISTIC", _add(w, r, _columns(w, gates, 1, size)))
    kernel, bias = weights.recurrence[last], weights.state_bias[last]
    if w.attribute(node, "linear_before_reset"):
        inner = _mul(w, r, weights.product(h, kernel, bias))
    else:
        inner = weights.product(_mul(w, r, h), kernel, bias)
    new = _unary(w, "TANH", _add(w, _columns(w, ahead, 2, size), inner))
    moved = _mul(w, z, w.emit("SUB", [h, new], h.shape, "Sub"))
    return [_add(w, new, moved)]


RECURRENT: dict[str, Lower] = {
    "GRU": recurrent(gru_step, 1, ("Sigmoid", "Tanh")),
    "LSTM": recurrent(lstm_step, 2, ("Sigmoid", "Tanh", "Tanh")),
}
