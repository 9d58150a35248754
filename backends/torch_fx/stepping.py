"""Recurrent layers step by step: any activation, clipping, peepholes, lengths per sequence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from graphopt.backends.torch_fx.integers import dynamic_grid

__all__ = ["rounded", "step_through"]

_DEFAULT = {
    "leakyrelu": (0.01, 0.0),
    "thresholdedrelu": (1.0, 0.0),
    "scaledtanh": (1.0, 1.0),
    "hardsigmoid": (0.2, 0.5),
    "elu": (1.0, 0.0),
    "affine": (1.0, 0.0),
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sigmoid": lambda x, a, b: torch.sigmoid(x),
    "tanh": lambda x, a, b: torch.tanh(x),
    "relu": lambda x, a, b: torch.relu(x),
    "affine": lambda x, a, b: a * x + b,
    "leakyrelu": lambda x, a, b: F.leaky_relu(x, a),
    "thresholdedrelu": lambda x, a, b: torch.where(x > a, x, torch.zeros_like(x)),
    "scaledtanh": lambda x, a, b: a * torch.tanh(b * x),
    "hardsigmoid": lambda x, a, b: torch.clamp(a * x + b, 0.0, 1.0),
    "elu": lambda x, a, b: F.elu(x, a),
    "softsign": lambda x, a, b: F.softsign(x),
    "softplus": lambda x, a, b: F.softplus(x),
}


def _functions(
    names: list[str], alphas: list[float], betas: list[float]
) -> list[Callable[[Any], Any]]:
    """The activations with their parameters, which are listed only for those that take any."""
    found: list[Callable[[Any], Any]] = []
    alphas, betas = list(alphas), list(betas)
    for name in names:
        key = name.lower()
        a, b = _DEFAULT.get(key, (0.0, 0.0))
        if key in _DEFAULT:
            a = alphas.pop(0) if alphas else a
            if key in ("scaledtanh", "hardsigmoid", "affine"):
                b = betas.pop(0) if betas else b
        found.append(partial(_FUNCTIONS[key], a=a, b=b))
    return found


def step_through(
    kind: str,
    way: str,
    x: Any,
    w: Any,
    r: Any,
    b: Any,
    lengths: Any,
    h0: Any,
    c0: Any,
    p: Any,
    *,
    activations: list[str],
    alphas: list[float],
    betas: list[float],
    clip: float,
    coupled: bool,
    before_reset: bool,
    round_state: bool = False,
) -> tuple[Any, Any, Any]:
    """x [time, batch, input] -> y [time, directions, batch, hidden], last h, last c.

    With `round_state` products read h on the 8-bit grid of its own range.
    """
    functions = _functions(activations, alphas, betas)
    count = len(functions) // w.size(0)
    results = []
    for d in range(w.size(0)):
        back = way == "reverse" or d == 1
        f = functions[d * count : (d + 1) * count]
        bias = None if b is None else b[d]
        peep = None if p is None else p[d]
        step = _STEPS[kind](w[d], r[d], bias, peep, f, clip, coupled, before_reset)
        if round_state:
            step = partial(_rounding, step)
        results.append(_one_way(x, h0[d], c0[d], lengths, back, step))
    ys, hs, cs = zip(*results, strict=True)
    return torch.stack(ys, 1), torch.stack(hs, 0), torch.stack(cs, 0)


def rounded(x: Any) -> Any:
    """x on the 8-bit grid of its own range."""
    q, scale, zero = dynamic_grid(x)
    return (q - zero) * scale


def _rounding(step: Callable[..., tuple[Any, Any]], x: Any, h: Any, c: Any) -> tuple[Any, Any]:
    """A step whose products read h rounded (LSTM and RNN read h nowhere else)."""
    return step(x, rounded(h), c)


def _one_way(
    x: Any, h: Any, c: Any, lengths: Any, back: bool, step: Callable[..., tuple[Any, Any]]
) -> tuple[Any, Any, Any]:
    """One direction; beyond its length a sequence keeps its state and gives 0."""
    outputs: list[Any] = [None] * x.size(0)
    for t in reversed(range(x.size(0))) if back else range(x.size(0)):
        new_h, new_c = step(x[t], h, c)
        if lengths is None:
            h, c = new_h, new_c
            outputs[t] = h
            continue
        inside = (lengths > t).reshape(-1, 1)
        h, c = torch.where(inside, new_h, h), torch.where(inside, new_c, c)
        outputs[t] = torch.where(inside, h, torch.zeros_like(h))
    return torch.stack(outputs, 0), h, c


def _limit(x: Any, clip: float) -> Any:
    return torch.clamp(x, -clip, clip) if clip else x


def _lstm(
    w: Any, r: Any, b: Any, p: Any, f: Any, clip: float, coupled: bool, _: bool
) -> Callable[..., tuple[Any, Any]]:
    pi, po, pf = (0.0, 0.0, 0.0) if p is None else p.chunk(3)

    def step(x: Any, h: Any, c: Any) -> tuple[Any, Any]:
        gates = x @ w.t() + h @ r.t()
        if b is not None:
            wb, rb = b.chunk(2)
            gates = gates + wb + rb
        i, o, forget, cell = gates.chunk(4, -1)
        i = f[0](_limit(i + pi * c, clip))
        forget = 1 - i if coupled else f[0](_limit(forget + pf * c, clip))
        new_c = forget * c + i * f[1](_limit(cell, clip))
        o = f[0](_limit(o + po * new_c, clip))
        return o * f[2](new_c), new_c

    return step


def _gru(
    w: Any, r: Any, b: Any, p: Any, f: Any, clip: float, coupled: bool, before_reset: bool
) -> Callable[..., tuple[Any, Any]]:
    def step(x: Any, h: Any, c: Any) -> tuple[Any, Any]:
        wb, rb = (0.0, None) if b is None else b.chunk(2)
        xz, xr, xh = (x @ w.t() + wb).chunk(3, -1)
        rz, rr, rh = r.chunk(3)
        bz, br, bh = (0.0, 0.0, 0.0) if rb is None else rb.chunk(3)
        z = f[0](_limit(xz + h @ rz.t() + bz, clip))
        reset = f[0](_limit(xr + h @ rr.t() + br, clip))
        inner = reset * (h @ rh.t() + bh) if before_reset else (reset * h) @ rh.t() + bh
        new = f[1](_limit(xh + inner, clip))
        return (1 - z) * new + z * h, c

    return step


def _rnn(
    w: Any, r: Any, b: Any, p: Any, f: Any, clip: float, coupled: bool, _: bool
) -> Callable[..., tuple[Any, Any]]:
    def step(x: Any, h: Any, c: Any) -> tuple[Any, Any]:
        total = x @ w.t() + h @ r.t()
        if b is not None:
            wb, rb = b.chunk(2)
            total = total + wb + rb
        return f[0](_limit(total, clip)), c

    return step


_STEPS: dict[str, Callable[..., Callable[..., tuple[Any, Any]]]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN": _rnn,
}
