"""Equality of two polynomials: as they are, by cases of an index, or window by window."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from graphopt.analyses.shapes.symbolic import Dim, Expr
from graphopt.proving.compare import Comparer
from graphopt.proving.polynomials import Poly, Unprovable
from graphopt.proving.taps import alone_and_summed, reads, spread, written_out

__all__ = ["equal"]

#: Remainders of an index that are looked at one by one.
CASES = 4


def equal(comparer: Comparer, p: Poly, q: Poly, index: Sequence[Dim]) -> bool:
    """Whether p = q at every `index`, p trusted to run.

    Raises:
        Unprovable: more coefficients than are compared, or taps than are written out.
    """
    with contextlib.suppress(Unprovable):  # its coefficients may be too many, those of a part not
        if comparer.equal(p, q):
            return True
    return _by_cases(comparer, p, q, index) or _by_taps(comparer, p, q)


def _by_cases(comparer: Comparer, p: Poly, q: Poly, index: Sequence[Dim]) -> bool:
    """For i = n k + r, p = q for every k and each r < n, where an index is divided by a small n.

    What an indicator leaves out of a case is not read there (`_by_taps`).
    """
    algebra = comparer.algebra
    places = [*algebra.indices(p), *algebra.indices(q)]
    for e in index:
        name = e.name if isinstance(e, Expr) else None
        whole, n = (name and algebra.ranges.parted(places, name)) or (0, 0)
        if name and isinstance(n, int) and 1 < n <= CASES:
            k = algebra.ranges.variable(whole)
            cases = ({name: k * n + r} for r in range(n))
            return all(
                _by_taps(comparer, algebra.renamed(p, case), algebra.renamed(q, case))
                for case in cases
            )
    return False


def _by_taps(comparer: Comparer, p: Poly, q: Poly) -> bool:
    """Windows written out and, if need be, single channels as sums.

    Where q reads what p does not, 0 times an infinity could be in the way: that is not equal.
    """
    algebra = comparer.algebra
    p, q = (written_out(algebra, side) for side in (p, q))
    read = reads(p)
    if not reads(q) <= read:
        return False
    return comparer.equal(p, q) or any(
        comparer.equal(*(spread(algebra, side, axis, comparer.terms) for side in (p, q)))
        for axis in (1, -1)
        if alone_and_summed(read, axis)
    )
