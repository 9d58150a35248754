"""Rule and Rewrite: local rewrites, applied by worklist until none matches.

A rule is looked up by the operator of its root, tried once per node, and tried again only around
an edit, so the cost of a `Rewrite` grows linearly with the graph.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, ClassVar

import onnx_ir as ir

from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context
from graphopt.graph import provenance
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.traverse import all_nodes
from graphopt.pass_ import Pass
from graphopt.rewriting.patterns import Match, NodePattern, compile_pattern, match_at, possible

__all__ = ["Rewrite", "Rule", "rewrite"]


class Rule:
    """One local rewrite; its docstring is its algebra.

    `pattern` says what it matches (see `graphopt.rewriting.patterns`). `check` may refuse: None
    or True means go on, False means this is not a match after all, and a string is a reason the
    user will read; a dict means go on too, and its items are further arguments of `rewrite`;
    its item "nodes", if any, are nodes beyond the pattern that belong to the match. `rewrite`
    builds the replacement with `op` and returns the new value (a tuple if the root has several
    outputs); it may return a bound value. `check` and `rewrite` take the bound names they want
    as arguments; `ctx` and `match` are among them.

    Values inside a match must not be used outside it, unless `shared` is True. The replacement has
    the shape and type of what it replaces, so `ctx.get(shapes)` stays true while rules run: it can
    be asked in every `check` and about new values.
    """

    shared: ClassVar[bool] = False

    def pattern(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the pattern, written as ONNX code."""
        raise NotImplementedError

    def check(self, *args: Any, **kwargs: Any) -> bool | str | dict[str, Any] | None:
        """Whether this match may be rewritten: None, True or a dict; False; a reason to refuse."""
        return None

    def rewrite(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """Build the replacement of the root's outputs."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Rewrite(Pass):
    """A pass made of rules: list the rule classes in `rules`."""

    rules: ClassVar[tuple[type[Rule], ...]] = ()

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Apply the rules until none matches; every subgraph is visited, functions are not."""
        return rewrite(model, ctx, self.rules)


def rewrite(model: ir.Model, ctx: Context, rules: Sequence[type[Rule]]) -> int:
    """Apply `rules` to `model` until none matches; returns the number of edits."""
    table = _by_operator(tuple(rules))
    queue = deque(n for n in all_nodes(model.graph) if n.op_type in table)
    queued = set(queue)
    names = Names(model)
    edits = 0
    while queue:
        node = queue.popleft()
        queued.discard(node)
        if node.graph is None:
            continue
        for rule, root in table.get(node.op_type, ()):
            if not possible(root, node):
                continue
            changed = _apply(rule, root, node, model, ctx, names)
            if changed is None:
                continue
            edits += 1
            ctx.invalidate(preserves=(shapes,))
            for near in changed:
                if near.graph is not None and near not in queued and near.op_type in table:
                    queue.append(near)
                    queued.add(near)
            break
    return edits


@lru_cache(maxsize=64)
def _by_operator(
    rules: tuple[type[Rule], ...],
) -> dict[str, tuple[tuple[Rule, NodePattern], ...]]:
    table: dict[str, list[tuple[Rule, NodePattern]]] = {}
    for cls in rules:
        rule = cls()
        for root in compile_pattern(rule.pattern):
            table.setdefault(root.op_type, []).append((rule, root))
    return {k: tuple(v) for k, v in table.items()}


def _apply(
    rule: Rule, root: NodePattern, node: ir.Node, model: ir.Model, ctx: Context, names: Names
) -> list[ir.Node] | None:
    match = match_at(root, node)
    if match is None or not (rule.shared or _contained(match)):
        return None
    given = {**match.bindings, "ctx": ctx, "match": match}
    verdict = rule.check(**_wanted(rule.check, given))
    if isinstance(verdict, str):
        ctx.refuse(rule, node, verdict)
        return None
    if isinstance(verdict, dict):
        given |= verdict
        if "nodes" in verdict:
            match = Match(match.bindings, (*match.nodes, *verdict["nodes"]))
            if not (rule.shared or _contained(match)):
                return None
    if verdict is False or not ctx.edit(rule, node):
        return None
    builder = Builder(model, node, names)
    result = rule.rewrite(builder, **_wanted(rule.rewrite, given))
    outputs = (result,) if isinstance(result, ir.Value) else tuple(result)
    provenance.derive(builder.nodes, match.nodes, ctx.pass_name)
    return _replace(match, outputs, builder)


def _wanted(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    names = _parameters(getattr(function, "__func__", function))
    return {n: given[n] for n in names if n in given}


@cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _contained(match: Match) -> bool:
    inside = set(match.nodes)
    for node in match.nodes[1:]:
        for value in node.outputs:
            if value.is_graph_output() or any(use.node not in inside for use in value.uses()):
                return False
    return True


def _replace(match: Match, outputs: tuple[ir.Value, ...], builder: Builder) -> list[ir.Node]:
    """Put `outputs` in the place of the root's and drop what died; returns the nodes nearby."""
    root = match.root
    if len(outputs) != len([o for o in root.outputs if o.uses() or o.is_graph_output()]) and len(
        outputs
    ) != len(root.outputs):
        raise ValueError(f"a rewrite of {root.op_type} must return {len(root.outputs)} values")
    users = [use.node for old in root.outputs for use in old.uses()]
    for old, new in zip(root.outputs, outputs, strict=False):
        builder.take_over(old, new)
    before = [v.producer() for n in match.nodes for v in n.inputs if v is not None]
    remove_dead([root, *match.nodes[1:]])
    return [*builder.nodes, *users, *(n for n in before if n is not None)]
