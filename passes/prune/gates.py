"""Gate influence: how far the states of a recurrent layer move for an error of what a gate sums up.

A gate that is saturated, or that scales next to nothing, hardly counts, and what goes into a cell
stays there as long as the forget gate lets it (backpropagation through time along the cell alone):

    LSTM  a_t = (o (1 - tanh(c)^2))^2 + f_(t+1)^2 a_(t+1)
    GRU   a_t = 1 + z_(t+1)^2 a_(t+1)

Influences are squares of derivatives, summed over the states from a step on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.attributes import attribute

__all__ = ["influences"]

Array = np.ndarray[Any, Any]

#: What the gates of a direction are unless the node says otherwise.
ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
#: The input that holds an LSTM's peepholes.
PEEPHOLES = 7


def influences(node: ir.Node, from_x: Array, from_h: Array, states: Array) -> list[Array] | None:
    """Of every sum, by the blocks that are fitted together; None where gates are not the usual.

    Args:
        node: an LSTM, GRU or RNN.
        from_x: W x + b of all gates [steps, batch, gates * hidden], in the order of time.
        from_h: likewise R h + b.
        states: h before each step [steps, batch, hidden].
    """
    if not _usual(node):
        return None
    if node.op_type == "LSTM":
        return [_lstm(from_x + from_h)]
    if node.op_type == "GRU":
        return _gru(from_x, from_h, states) if attribute(node, "linear_before_reset") else None
    return [np.square(1 - np.square(np.tanh(from_x + from_h)))]


def _usual(node: ir.Node) -> bool:
    """Whether gates are what the functions below take them for."""
    usual = ACTIVATIONS[node.op_type]
    said = node.attributes.get("activations")
    found = usual if said is None else list(said.as_strings())
    peepholes = len(node.inputs) > PEEPHOLES and node.inputs[PEEPHOLES] is not None
    odd = peepholes or attribute(node, "clip", 0) or attribute(node, "input_forget", 0)
    return not odd and found == usual * (len(found) // len(usual))


def _lstm(sums: Array) -> Array:
    i, o, f, g = np.split(sums, 4, axis=-1)
    i, o, f, g = _sigmoid(i), _sigmoid(o), _sigmoid(f), np.tanh(g)
    cells = np.zeros((len(i) + 1, *i.shape[1:]), i.dtype)
    for t in range(len(i)):
        cells[t + 1] = f[t] * cells[t] + i[t] * g[t]
    shown = np.tanh(cells[1:])
    later = _later(np.square(o * (1 - shown**2)), f)
    moved = [g * i * (1 - i), cells[:-1] * f * (1 - f), i * (1 - g**2)]
    into_i, into_f, into_g = (later * np.square(m) for m in moved)
    return np.concatenate([into_i, np.square(shown * o * (1 - o)), into_f, into_g], axis=-1)


def _gru(from_x: Array, from_h: Array, states: Array) -> list[Array]:
    (zx, rx, nx), (zh, rh, nh) = (np.split(part, 3, axis=-1) for part in (from_x, from_h))
    z, r = _sigmoid(zx + zh), _sigmoid(rx + rh)
    n = np.tanh(nx + r * nh)
    later = _later(np.ones_like(z), z)
    into_n = later * np.square((1 - z) * (1 - n**2))
    into_z = later * np.square((states - n) * z * (1 - z))
    into_r = into_n * np.square(nh * r * (1 - r))
    return [np.concatenate([into_z, into_r], axis=-1), into_n, into_n * r**2]


def _later(now: Array, stays: Array) -> Array:
    """a_t = now_t + stays_(t+1)^2 a_(t+1)"""
    found = now.copy()
    for t in range(len(now) - 2, -1, -1):
        found[t] += np.square(stays[t + 1]) * found[t + 1]
    return found


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -60, 60))))
