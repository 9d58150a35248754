"""Denotational semantics of operators: the element of a value at an index, as a polynomial.

One function per operator, from the ONNX operator specification; what has none is a leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes.symbolic import Dim, capped
from graphopt.graph.attributes import default_attribute
from graphopt.proving.polynomials import Poly, TooLarge, Unprovable
from graphopt.proving.scalars import Algebra
from graphopt.proving.terms import FLOATS, Term

__all__ = ["Index", "Meaning", "Operator", "affine"]

Array = np.ndarray[Any, Any]
Index = tuple[Dim, ...]
#: The element of a term's value at an index.
Operator = Callable[["Meaning", Term, Index], Poly]

#: Elements of a constant that others are gathered of.
MOST_GATHERED = 1 << 20
#: Elements of inner terms looked at in one proof.
MOST_ELEMENTS = 600


class Meaning:
    """Elements of terms; those in `leaves` are not looked into."""

    def __init__(self, algebra: Algebra, leaves: set[Term], operators: dict[str, Operator]) -> None:
        self.algebra = algebra
        self.leaves = leaves
        self.opened = 0
        #: Sizes that meet in a broadcast, the one being the other up to a limit.
        self.held: set[tuple[Dim, Dim]] = set()
        #: Sizes that must be at least as large as a number, from the front or (negative) the back.
        self.reached: set[tuple[Dim, int]] = set()
        #: Terms by their number, those made here among them.
        self.terms: dict[int, Term] = {}
        self._taken: dict[tuple[Term, Term, int], Term] = {}
        self._operators = operators
        self._known: dict[tuple[Term, Index], Poly] = {}

    def at(self, term: Term | None, index: Index) -> Poly:
        """The element of `term` at `index`.

        Raises:
            Unprovable: its operator's arguments are not known well enough.
        """
        if term is None:
            raise Unprovable("an absent input")
        index = tuple(self.algebra.ranges.joined(e) for e in index)
        key = (term, index)
        made = self._known.get(key)
        if made is None:
            made = self._known[key] = self._made(term, index)
        return made

    def leaf(self, term: Term, index: Index) -> Poly:
        """An element of which nothing more is said."""
        dims = self.dims(term)
        index = tuple(0 if d == 1 else i for i, d in zip(index, dims, strict=True))
        self.terms[term.serial] = term
        return self.algebra.atom(
            self.algebra.made("elem", (term.serial, term.op == "const"), index)
        )

    def _made(self, term: Term, index: Index) -> Poly:
        if term.op == "const":
            return self._constant(term, index)
        if term.op == "data" and all(isinstance(i, int) for i in index):
            return self.algebra.size(self.element(term, index))
        function = None if term in self.leaves else self._operators.get(term.op)
        if function is None:
            return self.leaf(term, index)
        self.opened += 1
        if self.opened > MOST_ELEMENTS:
            raise TooLarge("too many elements are looked at")
        return function(self, term, index)

    def _constant(self, term: Term, index: Index) -> Poly:
        dims = self.dims(term)
        kind = term.dtype.numpy() if term.dtype is not None else np.dtype(object)
        if kind.kind not in "fiub" or kind.num >= 256:
            return self.leaf(term, index)
        if all(d == 1 for d in dims) or all(isinstance(i, int) for i in index):
            at: Any = tuple(0 if d == 1 else i for i, d in zip(index, dims, strict=True))
            return self.number(term.array()[at])
        same = term.uniform
        return self.leaf(term, index) if same is None else self.number(same)

    def number(self, x: Any) -> Poly:
        """A stored number, exactly; infinities and NaN are symbols."""
        algebra = self.algebra
        if np.isnan(x):
            return algebra.function("nan")
        if np.isinf(x):
            return algebra.scale(algebra.function("inf"), 1 if x > 0 else -1)
        return algebra.number(x.item() if hasattr(x, "item") else x)

    # --- what operators ask ------------------------------------------------------------------

    def dims(self, term: Term | None) -> tuple[Dim, ...]:
        """A term's shape; raises Unprovable where it is unknown."""
        if term is None or term.dims is None:
            raise Unprovable("a shape that is not known")
        return term.dims

    def real(self, term: Term | None) -> bool:
        """Whether a term holds floating-point numbers."""
        return term is not None and term.dtype in FLOATS

    def argument(self, term: Term, k: int) -> Term | None:
        """Input `k`, None where it is absent."""
        return term.args[k] if k < len(term.args) else None

    def attribute(self, term: Term, name: str, default: Any = None) -> Any:
        """An attribute, or what the standard says where it is left out."""
        if name in term.attributes:
            return term.attributes[name]
        domain, _, op = term.op.rpartition(":")
        known = default_attribute(domain, op, name, term.opset if not domain else None)
        return default if known is None else known

    def numbers(self, term: Term | None) -> list[int] | None:
        """The elements of a constant of integers."""
        if term is None or term.op != "const":
            return None
        return [int(x) for x in np.ravel(term.array()).tolist()]

    def sizes(self, term: Term | None) -> list[Dim] | None:
        """The elements of a shape, some perhaps symbolic."""
        if term is not None and term.op == "data":
            return list(term.attributes["elements"])
        found = self.numbers(term)
        return None if found is None else list(found)

    def element(self, term: Term, index: Index) -> Dim:
        """One element of shape data."""
        flat = int(np.ravel_multi_index(index, self.dims(term))) if index else 0  # type: ignore[arg-type]
        return term.attributes["elements"][flat]  # type: ignore[no-any-return]

    def broadcast(self, term: Term | None, index: Index, dims: Sequence[Dim]) -> Poly:
        """The element that meets `index` of a result of shape `dims`."""
        own = self.dims(term)
        if len(own) > len(index):
            raise Unprovable("a result of lower rank")
        shift = len(index) - len(own)
        at: list[Dim] = []
        for k, size in enumerate(own):
            if size == 1:
                at.append(0)
            elif size == dims[k + shift]:
                at.append(index[k + shift])
            elif capped(size, dims[k + shift]):
                self.held.add((size, dims[k + shift]))
                at.append(index[k + shift])
            else:
                raise Unprovable(f"sizes {size} and {dims[k + shift]} side by side")
        return self.at(term, tuple(at))

    def gathered(
        self,
        x: Term | None,
        axis: int,
        before: Index,
        where: Term | None,
        j: Index,
        after: Index,
    ) -> Poly:
        """x[before, where[j], after]: positions that follow each other are an index again."""
        if x is None or where is None:
            raise Unprovable("an absent input")
        size = self.dims(x)[axis]
        found = where.array() if where.op == "const" else None
        if found is not None and found.size and isinstance(size, int):
            found = np.where(found < 0, found + size, found)
            line = affine(found, j)
            if line is not None:
                return self.at(x, (*before, line, *after))
            if x.op == "const" and found.size * x.array().size <= MOST_GATHERED * size:
                array = np.take(x.array(), found, axis)
                return self.at(self._constant_of(x, where, array, axis), (*before, *j, *after))
        elif found is not None and found.size == 1:
            k = int(found.reshape(-1)[0])
            self.reached.add((size, k if k < 0 else k + 1))
            return self.at(x, (*before, size + k if k < 0 else k, *after))
        self.terms[x.serial] = x
        atom = self.algebra.made(
            "fn", ("gather", x.serial, axis), (*before, *after), (self.at(where, j),)
        )
        return self.algebra.atom(atom)

    def _constant_of(self, x: Term, where: Term, array: Array, axis: int) -> Term:
        key = (x, where, axis)
        made = self._taken.get(key)
        if made is None:
            tensor = ir.Tensor(np.ascontiguousarray(array), dtype=x.dtype)
            made = self._taken[key] = Term("const", dims=array.shape, dtype=x.dtype, tensor=tensor)
        return made

    def axis(self, axis: int, rank: int) -> int:
        """An axis counted from the front."""
        return axis + rank if axis < 0 else axis

    def fresh(self, sizes: Sequence[Dim]) -> list[Dim]:
        """New index variables below these sizes."""
        return [self.algebra.ranges.variable(s) for s in sizes]


def affine(array: Array, index: Index) -> Dim | None:
    """a_0 + sum_k step_k i_k, if an array of positions is that everywhere."""
    grid = np.full(array.shape, int(array.reshape(-1)[0]))
    line: Dim = int(array.reshape(-1)[0])
    for k, size in enumerate(array.shape):
        if size > 1:
            step = int(np.take(array, 1, k).reshape(-1)[0]) - int(array.reshape(-1)[0])
            shape = [-1 if k == n else 1 for n in range(array.ndim)]
            grid = grid + step * np.arange(size).reshape(shape)
            line = line + index[k] * step
    return line if np.array_equal(grid, array) else None
