"""Translation validation: two graphs cut where their values agree, each region proved or checked.

A value keeps its name as long as it keeps its meaning, so equal names are cut points: where the
definitions differ, the two cones down to what both share are a window, whose outputs must be equal
for equal inputs (Pnueli et al., 1998; Necula, PLDI 2000). What is found equal is one value from
there on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import onnx_ir as ir

from graphopt.analyses.shapes.analysis import on_demand
from graphopt.analyses.shapes.symbolic import Dim
from graphopt.proving.arithmetic import ARITHMETIC
from graphopt.proving.attention import ATTENTION
from graphopt.proving.compare import Comparer
from graphopt.proving.conditions import CONDITIONS
from graphopt.proving.congruence import unequal_arguments
from graphopt.proving.cuts import LARGEST, cone, cuts, read_by
from graphopt.proving.ensembles import are_ensembles, same_ensemble
from graphopt.proving.equality import equal
from graphopt.proving.hazards import risky
from graphopt.proving.meaning import Meaning
from graphopt.proving.moves import MOVES
from graphopt.proving.normalizations import NORMALIZATIONS
from graphopt.proving.numbering import Numbered, Walk
from graphopt.proving.polynomials import Unprovable
from graphopt.proving.products import PRODUCTS
from graphopt.proving.quantization import QUANTIZED
from graphopt.proving.recurring import Recurring
from graphopt.proving.reductions import REDUCTIONS
from graphopt.proving.rounding import precision
from graphopt.proving.scalars import Algebra
from graphopt.proving.terms import Term

__all__ = ["Difference", "Window", "windows_of"]

#: Regions that may fail before no more are looked at: what depends on them fails too.
PATIENCE = 24
#: How far down arguments are compared with arguments.
DEEPEST = 12
OPERATORS = {
    **MOVES,
    **ARITHMETIC,
    **REDUCTIONS,
    **CONDITIONS,
    **PRODUCTS,
    **NORMALIZATIONS,
    **ATTENTION,
    **QUANTIZED,
}

Verdict = Literal["proved", "checked", "assumed", "refuted"]


@dataclasses.dataclass(frozen=True)
class Window:
    """A region before and after, with equal inputs and one output.

    Attributes:
        name: of the value that both compute.
        before, after: its terms.
        leaves: the terms that both read.
        inner: terms of either side that are no leaves.
        verdict: what is known of it, and `means` how.
        suspect: cut nearer to its output the two differ, on inputs that may never come.
    """

    name: str
    before: Term
    after: Term
    leaves: tuple[Term, ...]
    inner: tuple[tuple[Term, ...], tuple[Term, ...]]
    verdict: Verdict
    means: str
    suspect: bool = False

    def nodes(self) -> set[str]:
        """Names of the nodes on either side."""
        return {
            t.node.name for side in self.inner for t in side if t.node is not None and t.node.name
        }


@dataclasses.dataclass(frozen=True)
class Difference:
    """How two graphs differ: windows in order, and outputs that nothing joins.

    `after` is the new graph in the table of both, to be compared with what is made of it.
    """

    windows: tuple[Window, ...]
    open: tuple[str, ...]
    after: Numbered


#: Runs both sides of a window: how it went, and by which means.
Check = Callable[[Window], tuple[Verdict, str]]


def windows_of(before: Numbered, after: ir.Model, check: Check) -> Difference:
    """The windows between two graphs with the same inputs and outputs.

    Args:
        before: the graph that is trusted.
        after: the graph that an exact pass made of it.
        check: is asked about a window that is not proved.
    """
    return _Comparison(before, after, check)()


class _Comparison:
    def __init__(self, before: Numbered, after: ir.Model, check: Check) -> None:
        self.before, self.after, self.check = before, after, check
        self.new = Walk(before.terms, after, on_demand(after))
        self.windows: list[Window] = []
        self.proofs = Recurring()
        self.failed = 0
        #: Pairs that were looked at and not joined.
        self.unequal: set[tuple[Term, Term]] = set()
        #: Terms of the new graph that were found to be something else.
        self.apart: dict[Term, Term] = {}
        #: What is proved of arguments of terms that were compared.
        self.alike: dict[tuple[Term, Term], Window | None] = {}
        self.outputs = {v.name for v in after.graph.outputs}

    def __call__(self) -> Difference:
        self.new.met = self._meet
        for node in self.after.graph:
            self.new.visit(node)
        open_ = []
        after = self.new.done(self.after)
        for one, two, b in zip(
            self.before.outputs, after.outputs, self.after.graph.outputs, strict=True
        ):
            if one is not two and not self._joined(b.name or "", one, two):
                open_.append(b.name or "")
        return Difference(tuple(self.windows), tuple(open_), after)

    def _meet(self, value: ir.Value) -> None:
        """Where a value has a trusted one of its name: are they the same?"""
        old = self.before.names.get((self.new.scope, value.name or "")) if value.name else None
        new = self.new.values[value]
        if old is None or old is new:
            return
        if self._joined(value.name or "", old, new):
            self.new.put(value, old)

    def _joined(self, name: str, old: Term | None, new: Term | None) -> bool:
        if old is None or new is None or self.failed > PATIENCE:
            return False
        if any(a in self.apart and self.apart[a] in old.args for a in new.args if a):
            self.apart[new] = old  # both read what is something else already
            if name not in self.outputs:
                return False
        if (old, new) in self.unequal:
            return False
        known: dict[tuple[Term, Term], Window] = self.before.terms.joined
        window = known.get((old, new)) or self._window(name, old, new)
        if window is None:
            return False
        known[old, new] = window
        self.windows.append(window)
        joined = window.verdict in ("proved", "checked")
        self.failed += not joined
        if not joined:
            self.unequal.add((old, new))
        if window.verdict == "refuted":
            self.apart[new] = old
        return joined

    def _window(self, name: str, old: Term, new: Term) -> Window | None:
        """The smallest region that is proved, or else the smallest one that checks."""
        tried: list[Window] = []
        proved = self._proved(name, old, new, tried) or self._congruent(name, old, new)
        if proved is not None:
            return proved
        judged: Window | None = None
        for window in tried:
            verdict, means = self.check(dataclasses.replace(window, suspect=judged is not None))
            judged = dataclasses.replace(window, verdict=verdict, means=means)
            if verdict != "refuted":
                break  # what differs on any input may agree on those that there are
        return judged

    def _proved(self, name: str, old: Term, new: Term, tried: list[Window]) -> Window | None:
        """The smallest region that has one normal form on both sides; `tried` are the others."""
        for leaves in cuts(old, new):
            if any(leaves == set(one.leaves) for one in tried):
                continue
            inner = (cone(old, leaves), cone(new, leaves))
            if max(map(len, inner)) > LARGEST:
                break
            ordered = tuple(sorted(leaves, key=lambda t: t.serial))
            window = Window(name, old, new, ordered, inner, "assumed", "")
            if risky(inner):
                reason = "its arithmetic may fail where the source's does not"
            else:
                reason = self.proofs.reason(old, new, leaves, _attempted)
            if not reason:
                return dataclasses.replace(window, verdict="proved", means="normal form")
            tried.append(dataclasses.replace(window, means=reason))
        return None

    def _congruent(self, name: str, old: Term, new: Term, deep: int = 0) -> Window | None:
        """A region whose two sides are one operator of arguments that are proved to be equal."""
        pairs = unequal_arguments(old, new) if deep < DEEPEST else None
        if pairs is None:
            return None
        parts: list[Window] = []
        for a, b in pairs:
            if (a, b) not in self.alike:
                self.alike[a, b] = None  # until it is known
                self.alike[a, b] = self._proved(name, a, b, []) or self._congruent(
                    name, a, b, deep + 1
                )
            part = self.alike[a, b]
            if part is None:
                return None
            parts.append(part)
        inner = (
            (old, *(t for p in parts for t in p.inner[0])),
            (new, *(t for p in parts for t in p.inner[1])),
        )
        shared = [a for a in old.args if a is not None and a in new.args]
        leaves = dict.fromkeys([*shared, *(t for p in parts for t in p.leaves)])
        return Window(name, old, new, tuple(leaves), inner, "proved", "equal arguments")


def _attempted(old: Term, new: Term, leaves: set[Term]) -> str:
    """Why two terms are not proved to be equal, "" if they are."""
    try:
        return "" if proved(old, new, leaves) else "its normal forms differ"
    except Unprovable as error:
        return str(error)
    except (RecursionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        return f"it is beyond the normal form ({type(error).__name__})"


def proved(old: Term, new: Term, leaves: set[Term]) -> bool:
    """Whether two terms have the same normal form over `leaves`.

    Raises:
        Unprovable: the normal form does not know an operator or a size.
    """
    if are_ensembles(old, new):
        return same_ensemble(old, new)
    if old.dtype != new.dtype or old.dims is None or new.dims is None:
        raise Unprovable("a type or shape that is not known")
    if len(old.dims) != len(new.dims):
        raise Unprovable("another rank")
    algebra = Algebra()
    meaning = Meaning(algebra, leaves, OPERATORS)
    index = tuple(algebra.ranges.variable(d, f"#i{k}") for k, d in enumerate(old.dims))
    p = meaning.at(old, index)
    # the source runs where these are equal, and nowhere else
    held = {*meaning.held, *((b, a) for a, b in meaning.held)}
    reached, vanished = set(meaning.reached), set(algebra.vanished)
    q = meaning.at(new, index)
    if algebra.vanished - vanished:
        raise Unprovable("something vanishes that is no number where an input is infinite")
    if any(not _reaches(reached, size, k) for size, k in meaning.reached):
        raise Unprovable("a position that a smaller size does not have")
    pairs = {(a, b) for a, b in zip(old.dims, new.dims, strict=True) if a != b}
    if not (pairs | meaning.held) <= held:
        raise Unprovable("shapes that are written differently")
    stored = precision(*(read_by(t, leaves) for t in (old, new)))
    return equal(Comparer(algebra, meaning.terms, stored), p, q, index)


def _reaches(known: set[tuple[Dim, int]], size: Dim, k: int) -> bool:
    """Whether a size is at least |k| on the side that is trusted too."""
    return any(s == size and abs(n) >= abs(k) for s, n in known)
