"""Rewrite rules: a pattern and its replacement (`Rule`), or a walk that finds one (`Walker`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from graphopt.context import Context
from graphopt.graph.building import Builder

__all__ = ["Bind", "Found", "Refused", "Replacement", "Rule", "Verdict", "Walker"]


class Bind:
    """A match may be rewritten; `rewrite` can take these further arguments."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments


@dataclasses.dataclass(frozen=True)
class Refused:
    """A match is left alone, for a reason that the user will read."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Replacement:
    """What to put in the place of the node that a walk started from.

    Attributes:
        build: builds and returns the new value (a tuple if the node has several outputs).
        nodes: further nodes that it replaces. Unless the rule is `shared`, nothing else may read
            them.
    """

    build: Callable[[Builder], ir.Value | Sequence[ir.Value]]
    nodes: tuple[ir.Node, ...] = ()


#: What `Rule.check` says of a match; None: it is none after all, and there is nothing to tell.
Verdict = Bind | Refused | None
#: What `Walker.find` says of a node; None: nothing to do here.
Found = Replacement | Refused | None


class Rule:
    """One local rewrite by a pattern; its docstring is its algebra.

    `pattern` says what it matches (see `graphopt.rewriting.patterns`), `check` whether this match
    may be rewritten, and `rewrite` builds the replacement with `op` and returns the new value (a
    tuple if the root has several outputs); it may return a bound value. `check` and `rewrite` take
    the bound names they want as arguments; `ctx` and `match` are among them.

    Values inside a match must not be used outside it, unless `shared` is True. The replacement has
    the shape and type of what it replaces, so `ctx.get(shapes)` stays true while rules run: it can
    be asked in every `check` and about new values. Edits are recorded under `name`, which is the
    class's unless another is given.
    """

    name: str = ""
    shared: bool = False

    def pattern(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the pattern, written as ONNX code."""
        raise NotImplementedError

    def check(self, *args: Any, **kwargs: Any) -> Verdict:
        """`Bind(...)`: rewrite this match; `Refused(reason)`: do not; None: it is no match."""
        return Bind()

    def rewrite(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """Build the replacement of the root's outputs."""
        raise NotImplementedError


class Walker:
    """One local rewrite found by walking the graph, where no pattern can say what belongs to it.

    `roots` are the standard operators that a walk starts from. The laws are those of `Rule`.
    """

    name: str = ""
    shared: bool = False
    roots: tuple[str, ...] = ()

    def find(self, node: ir.Node, ctx: Context) -> Found:
        """What to put in the place of `node`; it changes nothing yet."""
        raise NotImplementedError
