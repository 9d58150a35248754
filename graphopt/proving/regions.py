"""Differential testing of a window: both sides run alone on inputs drawn for it, in float64.

The tolerance is what rounding its inputs and constants once more does to the source's side (Higham,
Accuracy and Stability of Numerical Algorithms, 2002, chapter 1), never a fixed one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from graphopt.proving.draws import (
    EXACT,
    NEAR,
    NORMAL,
    ODD,
    Trial,
    affordable,
    centres,
    constants,
    drawn,
    trials,
)  # fmt: skip
from graphopt.proving.rounding import SINGLE, precision
from graphopt.proving.running import Fails, Run, Shared, Unrunnable
from graphopt.proving.terms import Term
from graphopt.proving.windows import Verdict, Window

__all__ = ["check"]

Array = np.ndarray[Any, Any]
#: How inputs are drawn at each scale.
DRAWN = (NORMAL, NEAR)
#: Scales of inputs on which float32 must not do worse than the source's side, and by how much.
SCALES = (1.0, 4.0, 64.0, 4096.0, 2.0**34, 2.0**-20, 2.0**-60, 2.0**-110)
LOST = 256
#: Leaves in which zeros, ordinary and large numbers are side by side.
MIXED = 4
#: Perturbations that measure the effect of rounding.
ROUNDINGS = 3
#: Numbers that are multiples of its inverse, and their sums, are exact.
GRAIN = 64


class _Stops(Exception):
    """The new side does not run where the source's does."""


def check(window: Window) -> tuple[Verdict, str]:
    """Run both sides of a window on the same inputs; `means` says on what, or why not."""
    ran: list[dict[str, int]] = []
    shared = Shared()
    reason = window.means
    stopped: dict[str, int] | None = None
    dead: list[dict[str, int]] = []
    for trial in trials(window):
        if trial.sizes in dead:
            continue
        try:
            verdict = _compare(window, trial, shared)
        except _Stops as error:
            if isinstance(error.__cause__, Fails):
                return "refuted", f"it does not run{_at(trial.sizes)}"
            stopped = trial.sizes
            reason = f"{window.means}; {error}"
            continue
        except Unrunnable as error:
            reason = f"{window.means}; {error}"
            if trial.kind is NORMAL and trial.sizes not in ran:
                dead.append(trial.sizes)  # axes of these sizes do not fit
            continue
        if verdict is None:
            continue
        if not verdict:
            return "refuted", f"its outputs differ on {trial.kind.name} inputs"
        if not trial.empty:
            ran.append(trial.sizes)
    operators = [{t.op for t in side} for side in window.inner]
    if stopped is not None and (ran or operators[1] <= operators[0]):
        return "refuted", f"it does not run{_at(stopped)}"
    if len(ran) < 2:
        return "assumed", reason
    untaken = _untaken(window, shared)
    if untaken:
        return "assumed", untaken
    unstable = _instability(window, shared, ran[0])
    if unstable:
        return "refuted", unstable
    return "checked", f"equal on {len(ran)} inputs of its own"


def _at(sizes: Mapping[str, int]) -> str:
    return f" at sizes {dict(sizes)}" if sizes else ""


def _untaken(window: Window, shared: Shared) -> str:
    """A branch in the window that no run took, "" if there is none."""
    for term in {t for side in window.inner for t in side if t.op == "If"}:
        if len({truth for t, truth in shared.branches if t is term}) < 2:
            return f"no input takes both branches of {term.node.name if term.node else 'If'}"
    return ""


def _instability(window: Window, shared: Shared, sizes: Mapping[str, int]) -> str:
    """How the new side fails in float32 where the source's does not, "" if it does not."""
    rng = np.random.default_rng(1)
    middles = centres(window)
    planned = [(kind, scale) for kind in DRAWN for scale in SCALES]
    for kind, scale in planned[: max(len(SCALES), affordable(window, sizes) // 2)]:
        one = {t: drawn(t, sizes, kind, rng, middles) for t in window.leaves}
        opposite = {t: _opposite(x, rng) for t, x in one.items()}
        mixed = [
            {**one, t: one[t] * rng.choice((0.0, 1 / scale, 1.0), one[t].shape)}
            for t in window.leaves[:MIXED]
            if one[t].dtype.kind == "f"
        ]
        for feeds in (one, opposite, *mixed):
            scaled = {t: x * scale if x.dtype.kind == "f" else x for t, x in feeds.items()}
            try:
                fault = _in_single(window, shared, sizes, scaled)
            except Unrunnable:
                continue
            if fault:
                return fault
    return ""


def _opposite(x: Array, rng: np.random.Generator) -> Array:
    """The number with the other sign, the other truth; integers in another order."""
    if x.dtype.kind == "f":
        return -x
    return ~x if x.dtype.kind == "b" else rng.permutation(x.ravel()).reshape(x.shape)


def _in_single(
    window: Window, shared: Shared, sizes: Mapping[str, int], given: Mapping[Term, Array]
) -> str:
    """How float32 on the new side is worse than on the source's, "" if it is not."""
    single = Run(shared, sizes, wide=np.float32)
    feeds = {t: single.wide(x) for t, x in given.items()}
    before, after = single(window.before, feeds), single(window.after, feeds)
    wide = {t: x.astype(np.float64) if x.dtype.kind == "f" else x for t, x in feeds.items()}
    exact = Run(shared, sizes)(window.before, wide)
    if before.dtype.kind != "f":
        settled = before == exact  # and no rounding decides it
        for k in range(ROUNDINGS):
            run = Run(shared, sizes, np.random.default_rng(k), LOST * 2.0**-24)
            again = run(window.before, {t: run.rounded(x) for t, x in wide.items()})
            if again.shape == exact.shape:
                settled &= again == exact
        return "it decides otherwise in float32" if (settled & (after != exact)).any() else ""
    told = np.isfinite(before) & np.isfinite(exact)
    if not np.isfinite(after[told]).all():
        return "it overflows where the source does not"
    moved = _moved(window, wide, sizes, shared, exact, SINGLE.unit)[told]
    whole, before, after, exact = exact, before[told], after[told], exact[told]
    own, lost = np.abs(before - exact), np.abs(after - exact)
    # what a Relu cuts off on one side alone is as far as rounding moves the others
    edge = (before == 0) | (after == 0) | (exact == 0)
    near = np.where(edge, 16 * max(_typical(own), _typical(moved)), 0.0)
    allowed = LOST * (own + moved + SINGLE.unit * np.abs(exact)) + near
    stored = precision(*_terms(window))
    if stored != SINGLE:
        moved = _moved(window, wide, sizes, shared, whole, stored.unit)[told]
        allowed += stored.slack * (np.maximum(moved, _typical(moved)) + stored.unit * np.abs(exact))
    if (lost > allowed).any():
        return "it loses digits where the source does not"
    return ""


def _typical(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0


def _compare(window: Window, trial: Trial, shared: Shared) -> bool | None:
    """Whether both sides agree where the source's is finite; None where it is nowhere.

    Infinities that it has of its constants (what a mask hides) are told as numbers are.
    """
    feeds, sizes = trial.feeds, trial.sizes
    run = Run(shared, sizes, plain=trial.empty)
    before = run(window.before, feeds)
    finite = np.isfinite(before) if before.dtype.kind == "f" else np.ones(before.shape, bool)
    hidden = np.isinf(before) if _masks(window) and trial.kind.name not in ODD else ~finite & False
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
    if (before[hidden] != after[hidden]).any():
        return False
    used = _terms(window)
    own = [{t for t in side if t.op == "const"} for side in used]
    stored = precision(*used)
    unit = stored.unit if run.narrow or own[0] != own[1] else 2.0**-50
    exact = trial.kind.name in EXACT and not run.narrow and all(map(_grained, constants(window)))
    values = before[finite]
    moved = np.zeros_like(values)
    if not exact:
        moved = _moved(window, feeds, sizes, shared, before, unit)[finite]
    allowed = stored.slack * (np.maximum(moved, _typical(moved)) + 4 * unit * np.abs(values))
    allowed += 1e-300
    return bool((np.abs(after[finite] - values) <= allowed).all())


def _terms(window: Window) -> tuple[set[Term], set[Term]]:
    """All that is inside on both sides, constants too."""
    one, two = ({*side, *(t for s in side for t in s.args if t)} for side in window.inner)
    return one, two


def _masks(window: Window) -> bool:
    """Whether a constant of the source's side is infinite."""
    terms = {t for s in window.inner[0] for t in s.args if t and t.op == "const"}
    return any(t.array().dtype.kind == "f" and np.isinf(t.array()).any() for t in terms)


def _moved(
    window: Window,
    feeds: Mapping[Term, Array],
    sizes: Mapping[str, int],
    shared: Shared,
    values: Array,
    unit: float,
) -> Array:
    """How far rounding moves each element of the source's side: of what it reads, and in it."""
    moved = np.zeros_like(values)
    for k in range(ROUNDINGS):
        run = Run(shared, sizes, np.random.default_rng(k), unit * (-1) ** k)
        again = run(window.before, {t: run.rounded(x) for t, x in feeds.items()})
        if again.shape != values.shape:
            continue  # what was rounded decides a size (scales of a Resize)
        with np.errstate(invalid="ignore"):
            moved = np.maximum(moved, np.where(np.isfinite(again), np.abs(again - values), 0))
    if unit >= SINGLE.unit:  # what was stored is no nearer than the source's own sums
        single = Run(shared, sizes, wide=np.float32)
        again = single(window.before, {t: single.wide(x) for t, x in feeds.items()})
        if again.shape == values.shape:
            with np.errstate(invalid="ignore"):
                moved = np.maximum(moved, np.where(np.isfinite(again), np.abs(again - values), 0))
    return moved


def _grained(x: Array) -> bool:
    """Whether arithmetic on these numbers is exact: no rounding decides what they decide."""
    if x.dtype.kind != "f":
        return True
    if x.size > 1 << 12:
        return False
    x = x.astype(np.float64)  # half precision does not reach the bound
    if not (np.abs(x) < 1 << 20).all():
        return False
    return bool((x * GRAIN == np.round(x * GRAIN)).all())
