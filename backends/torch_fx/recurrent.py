"""Recurrent layers. The usual forms are torch's own; the others are stepped through in Python.

ONNX stacks gates as i o f c (LSTM) and z r h (GRU), torch as i f g o and r z n. Weights are put in
that order on every run, so that gradients reach them as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from graphopt.backends.torch_fx.quantized import carried, floats
from graphopt.backends.torch_fx.stepping import rounded, step_through

__all__ = ["TABLE"]

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def _ordered(kind: str, weight: Any, d: int) -> Any:
    """Direction `d` of a stack of gates along axis 1, in torch's order."""
    one = weight.select(0, d)
    if kind == "RNN":
        return one
    parts = one.chunk(_GATES[kind], 0)
    return torch.cat([parts[k] for k in _ORDER[kind]], 0)


def _activations(op: Any, kind: str, directions: int) -> list[str]:
    """The activations of all directions (their default in the standard lists one direction)."""
    given = op.node.attributes.get("activations")
    return _USUAL[kind] * directions if given is None else [str(n) for n in given.value]


def _unusual(op: Any, kind: str, directions: int) -> bool:
    """Whether torch's own layer does not compute this node."""
    names = [a.lower() for a in _activations(op, kind, directions)]
    usual = [a.lower() for a in _USUAL[kind]] * directions
    return bool(
        names != usual
        or op.attribute("clip")
        or op.attribute("input_forget", 0)
        or op.attribute("direction", "forward") == "reverse"
        or op.given(4)
        or (kind == "LSTM" and op.given(7))
        or (kind == "GRU" and not op.attribute("linear_before_reset", 0))
    )


def _recurrent(kind: str) -> Callable[..., Any]:
    def lower(
        op: Any,
        x: Any,
        w: Any,
        r: Any,
        b: Any = None,
        lengths: Any = None,
        h0: Any = None,
        c0: Any = None,
        p: Any = None,
    ) -> Any:
        way = op.attribute("direction", "forward")
        directions = 2 if way == "bidirectional" else 1
        batch_first = bool(op.attribute("layout", 0))
        hidden = op.attribute("hidden_size") or (op.dims(2) or [None])[-1]
        if batch_first:
            x = x.transpose(0, 1)
            h0 = None if h0 is None else h0.transpose(0, 1)
            c0 = None if c0 is None else c0.transpose(0, 1)
        zeros = op.call(torch.zeros, directions, x.size(1), hidden, dtype=x.dtype, device=op.device)
        h0, c0 = zeros if h0 is None else h0, zeros if c0 is None else c0
        if _unusual(op, kind, directions):
            done = op.call(
                step_through,
                *(kind, way, x, w, r, b, lengths, h0, c0, p),
                activations=_activations(op, kind, directions),
                alphas=[float(a) for a in op.attribute("activation_alpha") or ()],
                betas=[float(a) for a in op.attribute("activation_beta") or ()],
                clip=float(op.attribute("clip", 0.0) or 0.0),
                coupled=bool(op.attribute("input_forget", 0)),
                before_reset=bool(op.attribute("linear_before_reset", 0)),
            )
            y, h, c = done[0], done[1], done[2]
        else:
            y, h, c = _native(op, kind, directions, hidden, (x, w, r, b, h0, c0))
        if batch_first:
            y, h = y.permute(2, 0, 1, 3), h.transpose(0, 1)
            c = None if c is None else c.transpose(0, 1)
        return (y, h, c) if kind == "LSTM" else (y, h)

    return lower


def _native(
    op: Any, kind: str, directions: int, hidden: int, given: tuple[Any, ...]
) -> tuple[Any, Any, Any]:
    x, w, r, b, h0, c0 = given
    weights: list[Any] = []
    for d in range(directions):
        weights += [_ordered(kind, w, d), _ordered(kind, r, d)]
        if b is not None:
            both = b.select(0, d).reshape(2, -1)
            weights += [_ordered(kind, both, 0), _ordered(kind, both, 1)]
    fixed = (b is not None, 1, 0.0, False, directions == 2, False)
    if kind == "LSTM":
        done = op.call(torch.lstm, x, [h0, c0], weights, *fixed)
    else:
        layer = torch.gru if kind == "GRU" else torch.rnn_tanh
        done = op.call(layer, x, h0, weights, *fixed)
    y = done[0].reshape(x.size(0), x.size(1), directions, hidden).permute(0, 2, 1, 3)
    return y, done[1], done[2] if kind == "LSTM" else None


def _weights(op: Any, w: Any, scale: Any, zero: Any, k: int) -> Any:
    """[d, in, 4h] integers as [d, 4h, in] floats; scales are one a direction, or one a row."""
    q = floats(w)
    per_row = op.rank(k) == 2
    if zero is not None:
        z = zero.to(torch.float32)
        q = q - (z.unsqueeze(1) if per_row else z.reshape(-1, 1, 1))
    return (q * (scale.unsqueeze(1) if per_row else scale.reshape(-1, 1, 1))).transpose(1, 2)


@carried
def _dynamic_lstm(
    op: Any,
    x: Any,
    w: Any,
    r: Any,
    b: Any,
    lengths: Any,
    h0: Any,
    c0: Any,
    p: Any,
    ws: Any,
    wz: Any,
    rs: Any,
    rz: Any,
) -> Any:
    way = op.attribute("direction", "forward")
    directions = 2 if way == "bidirectional" else 1
    hidden = op.attribute("hidden_size")
    zeros = op.call(torch.zeros, directions, x.size(1), hidden, dtype=x.dtype, device=op.device)
    done = op.call(
        step_through,
        *("LSTM", way, op.call(rounded, x), _weights(op, w, ws, wz, 8)),
        *(_weights(op, r, rs, rz, 10), b, lengths),
        *(zeros if h0 is None else h0, zeros if c0 is None else c0, p),
        activations=_activations(op, "LSTM", directions),
        alphas=[float(a) for a in op.attribute("activation_alpha") or ()],
        betas=[float(a) for a in op.attribute("activation_beta") or ()],
        clip=float(op.attribute("clip", 0.0) or 0.0),
        coupled=bool(op.attribute("input_forget", 0)),
        before_reset=False,
        round_state=True,
    )
    return done[0], done[1], done[2]


TABLE: dict[str, Callable[..., Any]] = {
    **{kind: _recurrent(kind) for kind in _GATES},
    "com.microsoft:DynamicQuantizeLSTM": _dynamic_lstm,
}
