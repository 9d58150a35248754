"""Differential testing of a window: both sides run alone on inputs drawn for it, in float64.

Node by node, so that no optimizer of a runtime is between; an operator without a kernel for float64
is run in float32. The tolerance is what rounding its inputs and constants anew does to the source's
side (Higham, Accuracy and Stability of Numerical Algorithms, 2002, chapter 1), never a fixed one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes.symbolic import Dim, Expr
from graphopt.proving.running import LARGEST, Run, Shared, Unrunnable, size_at
from graphopt.proving.terms import Term
from graphopt.proving.windows import Verdict, Window

__all__ = ["check"]

Array = np.ndarray[Any, Any]
#: Sizes of the dynamic axes: two assignments, a batch above 1 and one of 1 among them.
SIZES = ((2, 3, 4, 5, 6, 7), (1, 5, 3, 2, 6, 4))
#: Limits of sizes that are exceeded once.
FURTHEST = 4096
#: How the inputs are drawn: normal twice, about the constants of both sides, large, small, edges.
DRAWS = (
    "normal", "normal", "near", "near", "near", "large", "tiny", "minute", "ones", "zeros",
    "infinite", "infinite",
)  # fmt: skip
#: About which share of a large constant products are drawn.
NEARBY = (0.4, 0.7, 1.0, 1.4)
#: Magnitudes, and numbers that some elements are.
TIMES: dict[str | float, float] = {
    "normal": 1.0,
    "large": 32.0,
    "tiny": 2.0**-12,
    "minute": 2.0**-122,
}
ODD = {"infinite": (-np.inf, np.inf), "none": (np.nan,)}
#: Scales of inputs on which float32 must not do worse than the source's side, and by how much.
SCALES = (1.0, 64.0, 4096.0, 2.0**34, 2.0**-20)
LOST = 256
#: Perturbations that measure the effect of rounding.
ROUNDINGS = 3


class _Stops(Exception):
    """The new side does not run where the source's does."""


def check(window: Window) -> tuple[Verdict, str]:
    """Run both sides of a window on the same inputs; `means` says on what, or why not."""
    ran: list[dict[str, int]] = []
    shared = Shared()
    reason = window.means
    stopped: dict[str, int] | None = None
    for feeds, sizes, kind in _inputs(window):
        try:
            verdict = _compare(window, feeds, sizes, shared)
        except _Stops as error:
            stopped = sizes
            reason = f"{window.means}; {error}"
            continue
        except Unrunnable as error:
            reason = f"{window.means}; {error}"
            continue
        if verdict is None:
            continue
        if not verdict:
            return "refuted", f"its outputs differ on {kind} inputs"
        ran.append(sizes)
    operators = [{t.op for t in side} for side in window.inner]
    if stopped is not None and (ran or operators[1] <= operators[0]):
        return "refuted", f"it does not run at sizes {stopped}"
    if len(ran) < 2:
        return "assumed", reason
    untaken = _untaken(window, shared)
    if untaken:
        return "assumed", untaken
    unstable = _instability(window, shared, ran[0])
    if unstable:
        return "refuted", unstable
    return "checked", f"equal on {len(ran)} inputs of its own"


def _untaken(window: Window, shared: Shared) -> str:
    """A branch in the window that no run took, "" if there is none."""
    for term in {t for side in window.inner for t in side if t.op == "If"}:
        if len({truth for t, truth in shared.branches if t is term}) < 2:
            return f"no input takes both branches of {term.node.name if term.node else 'If'}"
    return ""


def _instability(window: Window, shared: Shared, sizes: Mapping[str, int]) -> str:
    """How the new side fails in float32 where the source's does not, "" if it does not."""
    rng = np.random.default_rng(1)
    for scale in (s * sign for s in SCALES for sign in (1, -1)):
        if scale > 0:
            drawn = {t: _drawn(t, sizes, "normal", rng, np.zeros(1)) for t in window.leaves}
        single = Run(shared, sizes, wide=np.float32)
        feeds = {t: single.wide(x * scale) if x.dtype.kind == "f" else x for t, x in drawn.items()}
        try:
            before = single(window.before, feeds)
            if before.dtype.kind != "f" or not np.isfinite(before).all():
                continue
            after = single(window.after, feeds)
            double = Run(shared, sizes)
            exact = double(window.before, {t: double.wide(x) for t, x in feeds.items()})
        except Unrunnable:
            continue
        if not np.isfinite(after).all():
            return "it overflows where the source does not"
        own, lost = np.abs(before - exact), np.abs(after - exact)
        unit = 2.0**-24 * (np.abs(exact) + _typical(exact))
        if (lost > LOST * np.maximum(own + unit, _typical(own))).any():
            return "it loses digits where the source does not"
    return ""


def _typical(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0


def _inputs(window: Window) -> Iterator[tuple[dict[Term, Array], dict[str, int], str | float]]:
    names = _symbols(window)
    rng = np.random.default_rng(0)
    centres = _centres(window)
    further = tuple(_limit(window) + k for k in SIZES[0])
    for row in (*SIZES, further) if names else SIZES[:1]:
        sizes = {n: row[k % len(row)] for k, n in enumerate(names)}
        kinds: list[str | float] = [*DRAWS, *_scales(centres)]
        if any(t.op in ("IsNaN", "IsInf") for side in window.inner for t in side):
            kinds.append("none")
        for kind in kinds if row is not further else DRAWS[:1]:
            try:
                feeds = {t: _drawn(t, sizes, kind, rng, centres) for t in window.leaves}
            except Unrunnable:
                break
            yield feeds, sizes, kind


def _constants(window: Window) -> list[Array]:
    terms = {a for side in window.inner for t in side for a in t.args}
    terms |= {t for t in (window.before, window.after) if t.op == "const"}
    return [t.array() for t in terms if t is not None and t.op == "const"]


def _centres(window: Window) -> Array:
    """The numbers about which its sides may decide something."""
    found = [a.ravel()[:64] for a in _constants(window) if a.dtype.kind == "f" and a.size]
    whole = np.concatenate([np.zeros(1), *(x.astype(np.float64) for x in found)])
    whole = whole[np.abs(whole) < 1e6]
    return np.unique(np.concatenate([whole, -whole]))  # x + c decides at -c


def _limit(window: Window) -> int:
    """The largest number that a size may be held to."""
    found = [int(k) for d in map(str, _all_dims(window)) for k in re.findall(r"\b\d+\b", d)]
    whole = [a for a in _constants(window) if a.dtype.kind in "iu" and 0 < a.size <= 64]
    found += [int(x) for a in whole for x in np.abs(a.astype(np.float64)).ravel()]
    return max((k for k in found if k <= FURTHEST), default=8)


def _all_dims(window: Window) -> list[Dim]:
    return [d for side in window.inner for t in (*side, *window.leaves) for d in _dims(t)]


def _symbols(window: Window) -> list[str]:
    """The sizes that its inputs leave open."""
    dims = [d for t in _read(window) for d in _dims(t) if isinstance(d, Expr)]
    return sorted({a for d in dims for a in d.atoms})


def _read(window: Window) -> list[Term]:
    terms = dict.fromkeys(window.leaves)
    for side in window.inner:
        for t in side:
            terms.update(dict.fromkeys(a for a in t.args if a is not None))
    return list(terms)


def _dims(term: Term) -> tuple[Dim, ...]:
    return (*(term.dims or ()), *(term.attributes["elements"] if term.op == "data" else ()))


def _scales(centres: Array) -> list[float]:
    """Scales at which products of two inputs meet large constants (what a mask adds)."""
    large = np.sqrt(centres[centres > 64])
    return [float(x * k) for x in large[:: max(1, len(large) // 2)][:2] for k in NEARBY]


def _drawn(
    term: Term,
    sizes: Mapping[str, int],
    kind: str | float,
    rng: np.random.Generator,
    centres: Array,
) -> Array:
    if term.dims is None or term.dtype is None:
        raise Unrunnable("an input of unknown shape or type")
    shape = tuple(size_at(d, sizes) for d in term.dims)
    if int(np.prod(shape)) > LARGEST:
        raise Unrunnable("it is too large to be run")
    if term.dtype is ir.DataType.BOOL:
        return rng.random(shape) < 0.7
    if term.dtype.is_integer():
        low, high = {"near": (-9, 10), "large": (0, 100)}.get(str(kind), (0, 2))
        low = low if np.issubdtype(term.dtype.numpy(), np.signedinteger) else 0
        whole: Array = rng.integers(low, high, shape).astype(term.dtype.numpy())
        return whole
    if not term.dtype.is_floating_point():
        raise Unrunnable(f"inputs of type {term.dtype.name}")
    if kind == "zeros":
        signs: Array = rng.choice([-0.0, 0.0], shape)
        return signs
    if kind == "ones":
        return np.ones(shape)
    if kind == "near":
        middle: Array = rng.choice(centres, shape)
        close, far = np.abs(middle) / 2, np.maximum(1.0, np.abs(middle) / 2)
        spread = np.where((rng.random(shape) < 0.5) & (close > 0), close, far)
        return middle + rng.standard_normal(shape) * spread
    scale = 1.0 if kind in ODD else TIMES.get(kind) or float(kind)
    drawn: Array = rng.standard_normal(shape) * scale
    if kind in ODD:
        drawn = np.where(rng.random(shape) < 0.25, rng.choice(ODD[str(kind)], shape), drawn)
    return drawn


def _compare(
    window: Window, feeds: dict[Term, Array], sizes: Mapping[str, int], shared: Shared
) -> bool | None:
    """Whether both sides agree where the source's is finite; None where it is nowhere."""
    run = Run(shared, sizes)
    before = run(window.before, feeds)
    finite = np.isfinite(before) if before.dtype.kind == "f" else np.ones(before.shape, bool)
    if before.size and not finite.any():
        return None
    try:
        after = run(window.after, feeds)
    except Unrunnable as error:
        raise _Stops(str(error)) from error
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    if before.dtype.kind != "f":
        return bool(np.array_equal(before, after))
    constants = [
        {t for s in side for t in s.args if t is not None and t.op == "const"}
        for side in window.inner
    ]
    unit = 2.0**-24 if run.narrow or constants[0] != constants[1] else 2.0**-50
    values = before[finite]
    moved = np.zeros_like(values)
    for k in range(ROUNDINGS):
        rounded = Run(shared, sizes, np.random.default_rng(k), unit)
        given = {t: rounded.rounded(x) for t, x in feeds.items()}
        again = rounded(window.before, given)[finite]
        moved = np.maximum(moved, np.abs(np.where(np.isfinite(again), again, values) - values))
    allowed = 16 * np.maximum(moved, _typical(moved)) + 64 * unit * np.abs(values) + 1e-300
    return bool((np.abs(after[finite] - values) <= allowed).all())
