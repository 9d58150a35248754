"""Proof reuse: a window of the form of one that was proved before is proved by the same proof.

Layers repeat. Windows of one form differ in what their inputs are and in constants that the proof
did not read; of the others it needs the same constants, and the same answers to what it asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from graphopt.proving.spelling import hashable
from graphopt.proving.terms import Term

__all__ = ["Recurring"]

Prove = Callable[[Term, Term, set[Term]], str]


class _Proof(NamedTuple):
    """What a proof found, and what of a window's terms it rests on, by their places."""

    reason: str
    read: tuple[tuple[int, Term], ...]
    asked: tuple[tuple[int, str, Any], ...]

    def holds_for(self, terms: list[Term]) -> bool:
        return all(terms[k] is constant for k, constant in self.read) and all(
            terms[k].answer(question) == answer for k, question, answer in self.asked
        )


class Recurring:
    """Proofs by the form of their window."""

    def __init__(self) -> None:
        self._known: dict[Any, list[_Proof]] = {}

    def reason(self, old: Term, new: Term, leaves: set[Term], prove: Prove) -> str:
        """Why two terms are not proved equal over `leaves`, "" if they are, as `prove` says."""
        terms, form = _form(old, new, leaves)
        proofs = self._known.setdefault(form, [])
        for proof in proofs:
            if proof.holds_for(terms):
                return proof.reason
        for t in terms:
            t.forget()
        reason = prove(old, new, leaves)
        read = tuple((k, t) for k, t in enumerate(terms) if t.read)
        asked = tuple((k, *pair) for k, t in enumerate(terms) for pair in t.asked.items())
        proofs.append(_Proof(reason, read, asked))
        return reason


def _form(old: Term, new: Term, leaves: set[Term]) -> tuple[list[Term], Any]:
    """The terms of a window in a fixed order, and what it says of them but their names."""
    places: dict[Term, int] = {}
    parts: list[Any] = []
    stack = [new, old]
    while stack:
        t = stack[-1]
        inner = () if t in leaves else t.args
        waiting = [a for a in inner if a is not None and a not in places]
        if t in places or not waiting:
            stack.pop()
            if t not in places:
                places[t] = len(places)
                parts.append(_said(t, t in leaves, places))
        else:
            stack += reversed(waiting)
    return list(places), (tuple(parts), places[old], places[new])


def _said(t: Term, leaf: bool, places: dict[Term, int]) -> Any:
    if t.op == "data":
        return t
    args = () if leaf else tuple(None if a is None else places[a] for a in t.args)
    written = () if leaf else tuple(sorted((k, hashable(v)) for k, v in t.attributes.items()))
    return (t.op, leaf, args, written, t.output, t.dims, t.dtype, t.opset)
