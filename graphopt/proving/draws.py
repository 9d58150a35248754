"""Test inputs of a window: where its constants decide, edges of arithmetic, several sizes.

Boundary values come from the window itself: the numbers that its constants hold, and sizes past
every limit that it names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes.symbolic import Dim, Expr
from graphopt.proving.moves import MOVES
from graphopt.proving.running import LARGEST, TOO_LARGE, Unrunnable, size_at
from graphopt.proving.terms import Term
from graphopt.proving.windows import Window

__all__ = [
    "EXACT", "NEAR", "NORMAL", "ODD", "Kind", "Trial",
    "affordable", "centres", "constants", "drawn", "trials",
]  # fmt: skip

Array = np.ndarray[Any, Any]
#: Sizes of the dynamic axes, a batch above 1 and one of 1 among them; a region whose axes must fit
#: each other, or be 1, runs on the last two, or on some of those where axes are 1 in turn.
SIZES = ((2, 3, 4, 5, 6, 7), (1, 5, 3, 2, 6, 4), (1,), (3,))
WITH_ONES = ((2,), (3, 1), (1, 3))
#: Limits of sizes that are exceeded once.
FURTHEST = 4096
#: The first size where what tells two sides apart is rare.
MANY = 64
#: Axes that are empty, one at a time.
EMPTIED = 4
#: Sizes that are named and tried.
NAMED = 4
#: Constants about which all inputs are drawn once, and large ones that products are to meet.
ABOUT, MET = 8, 2
#: About which share of a large constant products are drawn.
NEARBY = (0.4, 0.7, 1.0, 1.4)


class Kind(NamedTuple):
    """How inputs are drawn: which way, and about or times which number."""

    name: str
    by: float = 1.0


NORMAL, NEAR, LARGE = Kind("normal"), Kind("near"), Kind("large", 32.0)
DRAWS = (
    NORMAL, NORMAL, *[NEAR] * 3, *[Kind("ties")] * 5, LARGE,
    Kind("tiny", 2.0**-12), Kind("minute", 2.0**-122), Kind("ones"), Kind("zeros"),
    *[Kind("infinite")] * 2,
)  # fmt: skip
#: Inputs on which arithmetic is exact, where constants are such numbers too.
EXACT = frozenset(("ones", "ties", "zeros"))
#: Operators whose operands have no infinities: each would make all that it meets no number. Of
#: attention the first three.
PRODUCTS = frozenset(
    """Attention Conv ConvTranspose Einsum FusedConv FusedGemm FusedMatMul Gemm GroupQueryAttention
    MatMul MultiHeadAttention""".split()  # noqa: SIM905
)
#: What operands come through.
SCALED = frozenset((*MOVES, "Cast", "Div", "Mul", "Neg"))
#: Multiplications in all runs of one window, and the fewest runs where each takes many.
WORK, FEWEST = 1 << 28, 8
#: Numbers that some elements are.
ODD = {"infinite": (-np.inf, np.inf), "none": (np.nan,)}


class Trial(NamedTuple):
    """Inputs of one run, the sizes of its axes, and how they were drawn."""

    feeds: dict[Term, Array]
    sizes: dict[str, int]
    kind: Kind

    @property
    def empty(self) -> bool:
        """Whether an axis has no elements."""
        return 0 in self.sizes.values()


def trials(window: Window) -> Iterator[Trial]:
    """The inputs that a window is run on, those that find most faults first."""
    names = _symbols(window)
    rng = np.random.default_rng(0)
    middles = centres(window)
    kinds = [*DRAWS, *_about(middles), *_scales(middles)]
    if any(t.op in ("IsNaN", "IsInf") for side in window.inner for t in side):
        kinds.append(Kind("none"))
    past = tuple(_limit(window) + k for k in SIZES[0])
    rows: list[tuple[tuple[int, ...], list[Kind]]] = [(SIZES[0], kinds)]
    if names:
        rows += [*((row, kinds) for row in SIZES[1:]), (past, [NORMAL])]
        rows += [(row, [NORMAL]) for row in (*WITH_ONES, *((k,) for k in _counts(window)))]
    assigned = [({n: r[k % len(r)] for k, n in enumerate(names)}, some) for r, some in rows]
    first = assigned[0][0]
    factors, apart = _factors(window), (Kind("infinite"), Kind("none"))
    if window.suspect:  # what tells them apart is rare
        many = {**first, **dict.fromkeys(names[:1], MANY)}
        assigned.append((many, [*DRAWS[: DRAWS.index(LARGE) + 1]] * (3 if names else 20)))
    assigned += [({**first, n: 0}, [NORMAL]) for n in names[:EMPTIED]]
    planned = [(sizes, kind) for sizes, some in assigned for kind in some]
    most = affordable(window, first)
    if len(planned) > most:
        others = [one for one in planned if one[0] != first and one[1] is NORMAL]
        planned = [*planned[: most - 2], *others[:2]]
    undrawable: dict[str, int] | None = None
    for sizes, kind in planned:
        if sizes is undrawable:
            continue
        finite = NORMAL if kind in apart else kind
        try:
            feeds = {
                t: drawn(t, sizes, finite if t in factors else kind, rng, middles)
                for t in window.leaves
            }
        except Unrunnable:
            undrawable = sizes
            continue
        yield Trial(feeds, sizes, kind)


def affordable(window: Window, sizes: Mapping[str, int]) -> int:
    """How many runs of a window there is time for."""
    work = 1
    for t in {t for side in window.inner for t in side}:
        try:
            made = math.prod(size_at(d, sizes) for d in t.dims or ())
            factor = t.args[1] if t.op.rpartition(":")[2] in PRODUCTS and len(t.args) > 1 else None
            if factor is not None and factor.dims:
                held = [size_at(d, sizes) for d in factor.dims]
                out = held[0] if "Conv" in t.op else held[-1]
                made *= math.prod(held) // max(out, 1)
        except Unrunnable:
            continue
        work += made
    return max(FEWEST, WORK // work)


def centres(window: Window) -> Array:
    """The numbers about which its sides may decide something."""
    found = [a.ravel()[:64] for a in constants(window) if a.dtype.kind == "f" and a.size]
    whole = np.concatenate([np.zeros(1), *(x.astype(np.float64) for x in found)])
    whole = whole[np.abs(whole) < 1e6]
    return np.unique(np.concatenate([whole, -whole]))  # x + c decides at -c


def constants(window: Window) -> list[Array]:
    """What either side's constants hold."""
    terms = {a for side in window.inner for t in side for a in t.args}
    terms |= {t for t in (window.before, window.after) if t.op == "const"}
    return [t.array() for t in terms if t is not None and t.op == "const"]


def drawn(
    term: Term, sizes: Mapping[str, int], kind: Kind, rng: np.random.Generator, middles: Array
) -> Array:
    """One input. Raises Unrunnable where its type or size cannot be drawn."""
    if term.dims is None or term.dtype is None:
        raise Unrunnable("an input of unknown shape or type")
    shape = tuple(size_at(d, sizes) for d in term.dims)
    if int(np.prod(shape)) > LARGEST:
        raise Unrunnable(TOO_LARGE)
    if term.dtype is ir.DataType.BOOL:
        return rng.random(shape) < (0.7 if np.prod(shape) > 1 else 0.5)
    if term.dtype.is_integer():
        return _whole(term.dtype, shape, kind, rng)
    if not term.dtype.is_floating_point():
        raise Unrunnable(f"inputs of type {term.dtype.name}")
    made: Array = rng.standard_normal(shape)
    if kind.name == "zeros":
        made = rng.choice([-0.0, 0.0], shape)
    elif kind.name == "ones":
        made = np.ones(shape)
    elif kind.name == "ties":
        made = rng.integers(-2, 3, shape) / 2
    elif kind.name in ("near", "about"):
        middle = rng.choice(middles, shape) if kind.name == "near" else np.full(shape, kind.by)
        close, far = np.abs(middle) / 2, np.maximum(1.0, np.abs(middle) / 2)
        which = rng.random(shape)  # the number itself, about it, or as far as 1
        spread = np.where(which < 0.2, 0.0, np.where((which < 0.6) & (close > 0), close, far))
        made = middle + made * spread
    elif kind.name in ODD:
        odd = np.asarray(rng.random(shape) < 0.25)
        if odd.size:
            odd.flat[rng.integers(odd.size)] = True
        made = np.where(odd, rng.choice(ODD[kind.name], shape), made)
    else:
        made = made * kind.by
    return _held(made, term.dtype)


def _held(x: Array, dtype: ir.DataType) -> Array:
    """The nearest numbers that a type has."""
    with np.errstate(over="ignore"):
        return np.asarray(x, dtype.numpy()).astype(np.float64)


def _factors(window: Window) -> set[Term]:
    """The inputs that are operands of products."""
    found: set[Term] = set()
    stack = [
        a
        for side in window.inner
        for t in side
        if t.op.rpartition(":")[2] in PRODUCTS
        for a in t.args[:3]
    ]
    while stack:
        term = stack.pop()
        if term is None or term in found:
            continue
        found.add(term)
        if term not in window.leaves and term.op in SCALED:
            stack += term.args
    return found


def _whole(dtype: ir.DataType, shape: Sequence[int], kind: Kind, rng: Any) -> Array:
    """Integers: small ones, as positions and counts are, and such as nearly fill their type."""
    span = np.iinfo(dtype.numpy())
    most = min(int(span.max), 1 << (dtype.bitwidth * 5 // 8))
    reach = {"near": (-9, 10), "ties": (-9, 10), "large": (0, 100), "minute": (-most, most)}
    low, high = reach.get(kind.name, (0, 2))
    made: Array = rng.integers(max(low, int(span.min)), high, shape)
    return made.astype(dtype.numpy())


# --- what the window itself names ------------------------------------------------------------


def _about(middles: Array) -> list[Kind]:
    return [Kind("about", float(x)) for x in middles[:: max(1, len(middles) // ABOUT)]]


def _scales(middles: Array) -> list[Kind]:
    """Scales at which products of two inputs meet large constants (what a mask adds)."""
    large = np.sqrt(middles[middles > 64])
    chosen = large[:: max(1, len(large) // MET)][:MET]
    return [Kind("scaled", float(x * k)) for x in chosen for k in NEARBY]


def _limit(window: Window) -> int:
    """The largest number that a size may be held to."""
    return max(_integers(window), default=8)


def _counts(window: Window) -> list[int]:
    """Sizes that it may be compared with."""
    known = {n for row in SIZES for n in row[:1]}
    return sorted(k for k in _integers(window) if 0 < k <= MANY and k not in known)[:NAMED]


def _integers(window: Window) -> set[int]:
    """The whole numbers in its shapes and constants, up to the furthest size."""
    found = [int(k) for d in map(str, _all_dims(window)) for k in re.findall(r"\b\d+\b", d)]
    whole = [a for a in constants(window) if a.dtype.kind in "iu" and 0 < a.size <= 64]
    found += [int(x) for a in whole for x in np.abs(a.astype(np.float64)).ravel()]
    return {k for k in found if k <= FURTHEST}


def _all_dims(window: Window) -> list[Dim]:
    return [d for side in window.inner for t in (*side, *window.leaves) for d in _dims(t)]


def _symbols(window: Window) -> list[str]:
    """The sizes that its inputs leave open."""
    terms = dict.fromkeys(window.leaves)
    for side in window.inner:
        for t in side:
            terms.update(dict.fromkeys(a for a in t.args if a is not None))
    dims = [d for t in terms for d in _dims(t) if isinstance(d, Expr)]
    return sorted({a for d in dims for a in d.atoms})


def _dims(term: Term) -> tuple[Dim, ...]:
    return (*(term.dims or ()), *(term.attributes["elements"] if term.op == "data" else ()))
