"""Congruence: one operator with equal attributes, of arguments that may be equal.

f(a, b) = f(c, d) where a = c and b = d: so what reads a rewritten value needs no form of its own,
be it a loop whose sizes nothing tells.
"""

from __future__ import annotations

from graphopt.graph.evaluation import NOT_FUNCTIONS
from graphopt.proving.bodies import Body, captured
from graphopt.proving.spelling import hashable, version_of
from graphopt.proving.terms import Term

__all__ = ["unequal_arguments"]

GRAPHS = "\0graphs"
#: Inputs that say nothing but the shape of the output.
SIZES = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Resize": 3}


def unequal_arguments(old: Term, new: Term) -> list[tuple[Term, Term]] | None:
    """The pairs that must be equal for the two terms to be; None if that would not be enough."""
    if _function(old) != _function(new) or not old.args:
        return None
    if old.node is None or new.node is None or old.node.op_type in NOT_FUNCTIONS:
        return None
    if _written(old) != _written(new):
        return None
    bodies: tuple[tuple[Body, ...], ...] = tuple(t.attributes.get(GRAPHS, ()) for t in (old, new))
    if [b.inputs for b in bodies[0]] != [b.inputs for b in bodies[1]]:
        return None
    sides = [
        [*t.args[: len(t.args) - len(captured(graphs))], *(o for b in graphs for o in b.outputs)]
        for t, graphs in zip((old, new), bodies, strict=True)
    ]
    if len(sides[0]) != len(sides[1]):
        return None
    told = SIZES.get(old.op) if old.dims is not None and old.dims == new.dims else None
    every = enumerate(zip(*sides, strict=True))
    pairs = [(a, b) for k, (a, b) in every if a is not b and k != told]
    if any(a is None or b is None for a, b in pairs):
        return None
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _function(term: Term) -> tuple[str, int, int]:
    return term.op, term.output, version_of(term.op, term.opset)


def _written(term: Term) -> dict[str, object]:
    return {k: hashable(v) for k, v in term.attributes.items() if k != GRAPHS}
