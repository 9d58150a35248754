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
from graphopt.graph.evaluation import by_runtime, deterministic, quick
from graphopt.proving.terms import Term
from graphopt.proving.windows import Verdict, Window

__all__ = ["check"]

Array = np.ndarray[Any, Any]
STANDARD = ("", "ai.onnx")
#: Elements of everything in a window, above which it is not run.
LARGEST = 1 << 23
#: Sizes of the dynamic axes: two assignments, a batch above 1 and one of 1 among them.
SIZES = ((2, 3, 4, 5, 6, 7), (1, 5, 3, 2, 6, 4))
#: Limits of sizes that are exceeded once.
FURTHEST = 4096
#: How the inputs are drawn: normal twice, about the constants of both sides, large, small, edges.
DRAWS = ("normal", "normal", "near", "near", "near", "large", "tiny", "ones", "zeros")
#: Scales of inputs on which float32 must not do worse than the source's side, and by how much.
SCALES = (1.0, 64.0, 4096.0, 2.0**34, 2.0**-20)
LOST = 256
#: Perturbations that measure the effect of rounding.
ROUNDINGS = 3


class _Unrunnable(Exception):
    """No kernel, sizes that do not fit, or values that no run of the model has."""


class _Stops(Exception):
    """The new side does not run where the source's does."""


def check(window: Window) -> tuple[Verdict, str]:
    """Run both sides of a window on the same inputs; `means` says on what, or why not."""
    runs = 0
    reason = window.means
    stopped: dict[str, int] | None = None
    for feeds, sizes, kind in _inputs(window):
        try:
            verdict = _compare(window, feeds, sizes)
        except _Stops as error:
            stopped = sizes
            reason = f"{window.means}; {error}"
            continue
        except _Unrunnable as error:
            reason = f"{window.means}; {error}"
            continue
        if verdict is None:
            continue
        if not verdict:
            return "refuted", f"its outputs differ on {kind} inputs"
        runs += 1
    operators = [{t.op for t in side} for side in window.inner]
    if stopped is not None and (runs or operators[1] <= operators[0]):
        return "refuted", f"it does not run at sizes {stopped}"
    if runs < 2:
        return "assumed", reason
    unstable = _instability(window)
    if unstable:
        return "refuted", unstable
    return "checked", f"equal on {runs} inputs of its own"


def _instability(window: Window) -> str:
    """How the new side fails in float32 where the source's does not, "" if it does not."""
    rng = np.random.default_rng(1)
    sizes = {n: SIZES[0][k % len(SIZES[0])] for k, n in enumerate(_symbols(window))}
    for scale in SCALES:
        drawn = {t: _drawn(t, sizes, "normal", rng, np.zeros(1)) for t in window.leaves}
        single = _Run(sizes, wide=np.float32)
        feeds = {t: single.wide(x * scale) if x.dtype.kind == "f" else x for t, x in drawn.items()}
        try:
            before = single(window.before, window.inner[0], feeds)
            if before.dtype.kind != "f" or not np.isfinite(before).all():
                continue
            after = single(window.after, window.inner[1], feeds)
            double = _Run(sizes)
            wide = {t: double.wide(x) for t, x in feeds.items()}
            exact = double(window.before, window.inner[0], wide)
        except _Unrunnable:
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


def _inputs(window: Window) -> Iterator[tuple[dict[Term, Array], dict[str, int], str]]:
    names = _symbols(window)
    rng = np.random.default_rng(0)
    centres = _centres(window)
    further = tuple(_limit(window) + k for k in SIZES[0])
    for row in (*SIZES, further) if names else SIZES[:1]:
        sizes = {n: row[k % len(row)] for k, n in enumerate(names)}
        for kind in DRAWS if row is not further else DRAWS[:1]:
            try:
                feeds = {t: _drawn(t, sizes, kind, rng, centres) for t in window.leaves}
            except _Unrunnable:
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


def _size(e: Dim, sizes: Mapping[str, int]) -> int:
    found = e if isinstance(e, int) else e.at(sizes)
    if found is None or found < 0:
        raise _Unrunnable("a size that depends on data")
    return found


def _drawn(
    term: Term, sizes: Mapping[str, int], kind: str, rng: np.random.Generator, centres: Array
) -> Array:
    if term.dims is None or term.dtype is None:
        raise _Unrunnable("an input of unknown shape or type")
    shape = tuple(_size(d, sizes) for d in term.dims)
    if int(np.prod(shape)) > LARGEST:
        raise _Unrunnable("it is too large to be run")
    if term.dtype is ir.DataType.BOOL:
        return rng.random(shape) < 0.7
    if term.dtype.is_integer():
        low, high = {"near": (-9, 10), "large": (0, 100)}.get(kind, (0, 2))
        low = low if np.issubdtype(term.dtype.numpy(), np.signedinteger) else 0
        whole: Array = rng.integers(low, high, shape).astype(term.dtype.numpy())
        return whole
    if not term.dtype.is_floating_point():
        raise _Unrunnable(f"inputs of type {term.dtype.name}")
    if kind == "zeros":
        signs: Array = rng.choice([-0.0, 0.0], shape)
        return signs
    if kind == "ones":
        return np.ones(shape)
    if kind == "near":
        middle: Array = rng.choice(centres, shape)
        return middle + rng.standard_normal(shape) * np.maximum(1.0, np.abs(middle) / 2)
    scale = {"normal": 1.0, "large": 32.0, "tiny": 2.0**-12}[kind]
    drawn: Array = rng.standard_normal(shape) * scale
    return drawn


def _compare(window: Window, feeds: dict[Term, Array], sizes: Mapping[str, int]) -> bool | None:
    """Whether both sides agree where the source's is finite; None where it is nowhere."""
    run = _Run(sizes)
    before = run(window.before, window.inner[0], feeds)
    finite = np.isfinite(before) if before.dtype.kind == "f" else np.ones(before.shape, bool)
    if before.size and not finite.any():
        return None
    try:
        after = run(window.after, window.inner[1], feeds)
    except _Unrunnable as error:
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
        rounded = _Run(sizes, np.random.default_rng(k), unit)
        given = {t: rounded.rounded(x) for t, x in feeds.items()}
        again = rounded(window.before, window.inner[0], given)[finite]
        moved = np.maximum(moved, np.abs(np.where(np.isfinite(again), again, values) - values))
    allowed = 16 * np.maximum(moved, _typical(moved)) + 64 * unit * np.abs(values) + 1e-300
    return bool((np.abs(after[finite] - values) <= allowed).all())


class _Run:
    """Values of one side's terms, floating point in float64."""

    def __init__(
        self,
        sizes: Mapping[str, int],
        rng: np.random.Generator | None = None,
        unit: float = 0.0,
        wide: Any = np.float64,
    ) -> None:
        self.sizes, self.rng, self.unit, self.dtype = sizes, rng, unit, wide
        self.narrow = False

    def wide(self, x: Array) -> Array:
        """Floating point in the type that this run computes in."""
        return x.astype(self.dtype) if x.dtype.kind == "f" else x

    def rounded(self, x: Array) -> Array:
        """Each number moved by about one rounding."""
        if self.rng is None or x.dtype.kind != "f":
            return x
        moved: Array = x * (1 + self.unit * self.rng.uniform(-1, 1, x.shape))
        return moved

    def __call__(self, top: Term, inner: tuple[Term, ...], feeds: Mapping[Term, Array]) -> Array:
        values: dict[Term, Array] = dict(feeds)
        if top in values:
            return values[top]
        made: dict[ir.Node, list[Array]] = {}
        for term in _ordered(top, set(inner)):
            node = term.node
            if node is None:
                raise _Unrunnable(f"{term.op} cannot be run")
            if node not in made:
                inputs = [None if a is None else self._value(a, values) for a in term.args]
                made[node] = self._outputs(term, node, inputs)
            if term.output >= len(made[node]):
                raise _Unrunnable(f"{term.op} gives too few outputs")
            values[term] = made[node][term.output]
            if sum(v.size for v in values.values()) > LARGEST:
                raise _Unrunnable("it is too large to be run")
        return values[top]

    def _value(self, term: Term, values: dict[Term, Array]) -> Array:
        if term in values:
            return values[term]
        if term.op == "const":
            array = term.array()
            if array.dtype.num >= 256 or array.dtype.kind not in "fiub":
                raise _Unrunnable(f"a constant of type {array.dtype}")
            found = self.rounded(self.wide(array)) if array.size > 1 else self.wide(array)
        elif term.op == "data" and term.dtype is not None:
            numbers = [_size(e, self.sizes) for e in term.attributes["elements"]]
            shape = [d for d in term.dims or () if isinstance(d, int)]
            found = np.array(numbers, term.dtype.numpy()).reshape(shape)
        else:
            raise _Unrunnable(f"{term.op} cannot be run")
        values[term] = found
        return found

    def _outputs(self, term: Term, node: ir.Node, inputs: list[Array | None]) -> list[Array]:
        if node.domain in STANDARD and not deterministic(node):
            raise _Unrunnable(f"{node.op_type} cannot be run alone")
        x = inputs[0] if inputs else None
        if (
            node.op_type == "Cast"
            and x is not None
            and x.dtype.kind == "f"
            and ir.DataType(node.attributes["to"].value).is_floating_point()
        ):
            return [x]  # computed in one type throughout
        inputs = inputs[: len(node.inputs)]
        found = quick(node, inputs)
        if found is None:
            found = self._by_runtime(term, node, inputs)
        return [self.wide(np.asarray(x)) for x in found]

    def _by_runtime(self, term: Term, node: ir.Node, inputs: list[Array | None]) -> list[Array]:
        """One node in ONNX Runtime: in float64, else in float32."""
        opsets = {"": term.opset, node.domain: term.opset if node.domain in STANDARD else 1}
        for dtype in dict.fromkeys((self.dtype, np.float32)):
            given = [
                None if x is None else np.asarray(x, dtype if x.dtype.kind == "f" else None)
                for x in inputs  # one of rank 0 may have become a number
            ]
            found = by_runtime(node, given, opsets)
            if found is not None:
                self.narrow = self.narrow or dtype is not np.float64
                made = iter(found)
                return [next(made) if o.name else np.zeros(0) for o in node.outputs]
        raise _Unrunnable(f"no kernel runs {node.op_type}")


def _ordered(top: Term, inner: set[Term]) -> list[Term]:
    order: dict[Term, None] = {}
    stack = [top]
    while stack:
        term = stack[-1]
        waiting = [a for a in term.args if a in inner and a not in order]
        if waiting:
            stack += [a for a in waiting if a is not None]
        else:
            order[stack.pop()] = None
    return list(order)
