"""Control flow as terms: branches, loops turn by turn, and bodies over inputs of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes.facts import Shapes
from graphopt.graph.traverse import passed_on
from graphopt.proving.terms import Term, Terms

__all__ = ["Body", "ControlFlow", "captured"]

#: Loops of up to so many turns are followed turn by turn.
TURNS = 16


class Body(NamedTuple):
    """The subgraph of a loop."""

    inputs: tuple[Term, ...]
    outputs: tuple[Term, ...]


class ControlFlow(ABC):
    """What a walk through a graph does where a node has graphs of its own.

    Attributes:
        terms, facts: the table, and the shapes of the graph.
        values: the terms of values that were visited.
        scope: names the subgraph that is walked.
        opset: of the standard domain.
    """

    terms: Terms
    facts: Shapes
    values: dict[ir.Value, Term]
    scope: tuple[str, ...]
    opset: int

    @abstractmethod
    def visit(self, node: ir.Node) -> None:
        """Give every output of `node` its term."""

    @abstractmethod
    def of(self, value: ir.Value | None) -> Term | None:
        """The term of a value."""

    @abstractmethod
    def leaf(self, key: Any, op: str, value: ir.Value) -> Term:
        """The term of a value that no operator makes."""

    def branches(self, node: ir.Node, args: Sequence[Term | None]) -> list[Term]:
        """An If: the branch that is always taken, or both."""
        condition = args[0]
        bodies = [node.attributes[k].as_graph() for k in ("then_branch", "else_branch")]
        if condition is not None and condition.op == "const":
            k = 0 if condition.array().ravel()[0] else 1
            return self._inside(node, bodies[k], k)
        inside = [self._inside(node, b, k) for k, b in enumerate(bodies)]
        if any(len(b) != len(node.outputs) for b in inside):
            return []
        made = []
        for k, value in enumerate(node.outputs):
            pair = tuple(b[k] for b in inside)
            key = ("If", condition, pair)

            def make(pair: tuple[Term, ...] = pair, value: ir.Value = value) -> Term:
                fact = self.facts.fact(value)
                return Term(
                    "If", (condition, *pair), {}, 0, fact.dims, fact.dtype, None, node, self.opset
                )

            made.append(self.terms.named(key, make))
        return made

    def turns(self, node: ir.Node, args: Sequence[Term | None]) -> list[Term] | None:
        """A Loop of few turns, one after the other; None if nothing says how many."""
        limit, start, *state = args
        body = node.attributes["body"].as_graph()
        if limit is None or limit.op != "const" or (start is not None and start.op != "const"):
            return None
        turns = int(limit.array().reshape(-1)[0])
        if not 0 < turns <= TURNS or len(body.outputs) != len(state) + 1 or None in state:
            return None
        if start is not None and not start.array().all():
            return None
        outside = [self.facts.fact(v) for v in body.inputs]
        found = self._followed(node, body, turns, [s for s in state if s is not None])
        self.facts.forget(body)
        self.facts.enter(body, outside)
        return found

    def _followed(
        self, node: ir.Node, body: ir.Graph, turns: int, state: list[Term]
    ) -> list[Term] | None:
        """The state after so many turns; None if one of them may be the last."""
        going = self.terms.constant(ir.Tensor(np.array(True)))
        for turn in range(turns):
            count = self.terms.constant(ir.Tensor(np.array(turn, np.int64)))
            self.facts.forget(body)  # each turn has shapes and data of its own
            for value, term in zip(body.inputs, [count, going, *state], strict=False):
                self.values[value] = term
                self.facts.learn(value, term.dtype, term.dims, term.tensor)
            again, *state = self._inside(node, body, turn)
            if again is not going:
                return None
        return state

    def _inside(self, node: ir.Node, graph: ir.Graph, k: int) -> list[Term]:
        """The outputs of the k-th subgraph of a node."""
        self.facts.forget(graph)  # its values have the sizes of their terms
        outer = self.scope
        self.scope = (*outer, f"{node.name or node.outputs[0].name}.{k}")
        for inner in graph:
            self.visit(inner)
        self.scope = outer
        return [self.of(v) for v in graph.outputs]  # type: ignore[misc]

    def body(
        self, node: ir.Node, graph: ir.Graph, k: int, known: Mapping[int, Term] | None = None
    ) -> Body:
        """A loop's body: its outputs as terms over its own inputs, but those that are `known`."""
        known = known or {}
        changing = [o.name for j, o in enumerate(node.outputs, 2) if o.name and j not in known]
        holder = next(iter(changing), node.name)
        free = [value for j, value in enumerate(graph.inputs) if j not in known]
        for j, value in enumerate(free):
            self.values[value] = self.leaf(("bound", holder, k, j, len(free)), "bound", value)
        for j, term in known.items():
            self.values[graph.inputs[j]] = term
            self.facts.learn(graph.inputs[j], term.dtype, term.dims, term.tensor)
        return Body(tuple(self.values[v] for v in free), tuple(self._inside(node, graph, k)))

    def varying(
        self, node: ir.Node, args: list[Term | None]
    ) -> tuple[list[Term | None], Body, dict[int, Term]]:
        """A Loop without the state that no turn changes: s' = s means s = s_0 throughout.

        Its inputs, its body, and by place the outputs that are an input of it.
        """
        graph = node.attributes["body"].as_graph()
        fixed = {
            k: term
            for k, (term, outer, inner) in enumerate(
                zip(args[2:], graph.inputs[2:], graph.outputs[1:], strict=False)
            )
            if term is not None and passed_on(inner) is outer
        }
        whole = self.body(node, graph, 0, {2 + k: t for k, t in fixed.items()})
        outputs = tuple(t for k, t in enumerate(whole.outputs) if k - 1 not in fixed)
        left = [t for k, t in enumerate(args) if k - 2 not in fixed]
        return left, Body(whole.inputs, outputs), fixed


def captured(bodies: Sequence[Body]) -> list[Term]:
    """What bodies read of the values outside: the largest terms without an input of theirs."""
    depends: dict[Term, bool] = {t: True for body in bodies for t in body.inputs}
    stack = [t for body in bodies for t in body.outputs]
    found = dict.fromkeys(stack)
    while stack:
        term = stack[-1]
        args = [a for a in term.args if a is not None]
        waiting = [a for a in args if a not in depends]
        if term in depends or not waiting:
            stack.pop()
            if term not in depends:
                depends[term] = any(depends[a] for a in args)
            if depends[term]:
                found.update(dict.fromkeys(args))
        else:
            stack += waiting
    return [t for t in found if not depends[t] and t.op not in ("const", "data")]
