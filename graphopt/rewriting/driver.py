"""Pattern rewrite driver: rules applied by worklist until none matches.

A rule is looked up by the operator of its root, tried once per node, and tried again only around
an edit, so the cost grows linearly with the graph.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from typing import Any, ClassVar, NamedTuple

import onnx_ir as ir

from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context
from graphopt.errors import PassError
from graphopt.graph import provenance
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.traverse import all_nodes
from graphopt.pass_ import Pass
from graphopt.rewriting.patterns import (
    NodePattern,
    check_operator,
    compile_pattern,
    match_at,
    possible,
)
from graphopt.rewriting.rules import Bind, Found, Refused, Replacement, Rule, Walker

__all__ = ["AnyRule", "Rewrite", "apply_rules"]

#: A class of rules without fields, or a rule.
AnyRule = type[Rule] | type[Walker] | Rule | Walker


@dataclasses.dataclass(frozen=True)
class Rewrite(Pass):
    """A pass made of rules: list the rule classes in `rules`."""

    rules: ClassVar[tuple[AnyRule, ...]] = ()

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Apply the rules until none matches; every subgraph is visited, functions are not."""
        return apply_rules(model, ctx, self.rules)


def apply_rules(model: ir.Model, ctx: Context, rules: Sequence[AnyRule]) -> int:
    """Apply `rules` to `model` until none matches; returns the number of edits."""
    table = _table(tuple(rules))
    queue = deque(n for n in all_nodes(model.graph) if n.op_type in table.entries)
    queued = set(queue)
    names = Names(model)
    edits = 0
    while queue:
        node = queue.popleft()
        queued.discard(node)
        if node.graph is None:
            continue
        for entry in table.candidates(node):
            changed = _apply(entry, node, model, ctx, names)
            if changed is None:
                continue
            edits += 1
            ctx.invalidate(preserves=(shapes,))
            for near in changed:
                if near.graph is not None and near not in queued and near.op_type in table.entries:
                    queue.append(near)
                    queued.add(near)
            break
    return edits


class _Entry(NamedTuple):
    """A rule at one operator: a root of its pattern, or None for a walk."""

    rule: Rule | Walker
    root: NodePattern | None

    @property
    def name(self) -> str:
        return self.rule.name or type(self.rule).__name__


class _Table:
    """Rules by the operator they start at."""

    def __init__(self, rules: Sequence[AnyRule]) -> None:
        self.entries: dict[str, list[_Entry]] = {}
        self._near: dict[tuple[str, ...], tuple[_Entry, ...]] = {}
        for given in rules:
            rule = given() if isinstance(given, type) else given
            if isinstance(rule, Walker):
                for op_type in rule.roots:
                    check_operator(op_type)
                    self.entries.setdefault(op_type, []).append(_Entry(rule, None))
            else:
                for root in compile_pattern(rule.pattern):
                    self.entries.setdefault(root.op_type, []).append(_Entry(rule, root))
        self._widths = {
            k: max(0 if e.root is None else len(e.root.inputs) for e in v)
            for k, v in self.entries.items()
        }

    def candidates(self, node: ir.Node) -> tuple[_Entry, ...]:
        """The rules that may apply, by the operators which make the node's inputs."""
        op_type = node.op_type
        makers = [None if v is None else v.producer() for v in node.inputs[: self._widths[op_type]]]
        key = (op_type, *("Constant" if m is None else m.op_type for m in makers))
        near = self._near.get(key)
        if near is None:
            entries = self.entries[op_type]
            near = tuple(e for e in entries if e.root is None or possible(e.root, key[1:]))
            self._near[key] = near
        return near


@lru_cache(maxsize=64)
def _table(rules: tuple[AnyRule, ...]) -> _Table:
    return _Table(rules)


def _apply(
    entry: _Entry, node: ir.Node, model: ir.Model, ctx: Context, names: Names
) -> list[ir.Node] | None:
    """Apply one rule at one node; the nodes nearby, or None where nothing has changed."""
    found = _find(entry, node, ctx)
    if found is None:
        return None
    if isinstance(found, Refused):
        ctx.refuse(entry.name, node, found.reason)
        return None
    nodes = (node, *found.nodes)
    if not (entry.rule.shared or _contained(nodes)) or not ctx.edit(entry.name, node):
        return None
    builder = Builder(model, node, names)
    result = found.build(builder)
    outputs = (result,) if isinstance(result, ir.Value) else tuple(result)
    provenance.derive(builder.nodes, nodes, ctx.pass_name)
    return _replace(nodes, outputs, builder)


def _find(entry: _Entry, node: ir.Node, ctx: Context) -> Found:
    rule, root = entry
    if isinstance(rule, Walker):
        return rule.find(node, ctx) if node.domain in ("", "ai.onnx") else None
    assert root is not None
    match = match_at(root, node)
    if match is None or not (rule.shared or _contained(match.nodes)):
        return None
    given = {**match.bindings, "ctx": ctx, "match": match}
    verdict: Any = rule.check(**_wanted(rule.check, given))
    if verdict is None or isinstance(verdict, Refused):
        return verdict
    if not isinstance(verdict, Bind):
        raise PassError(
            f"{entry.name}.check returned {verdict!r}: return Bind(...) to go on, "
            "Refused(reason) to refuse, or None where it is no match"
        )
    given |= verdict.arguments
    return Replacement(partial(rule.rewrite, **_wanted(rule.rewrite, given)), match.nodes[1:])


def _wanted(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    names = _parameters(getattr(function, "__func__", function))
    return {n: given[n] for n in names if n in given}


@cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _contained(nodes: tuple[ir.Node, ...]) -> bool:
    """Whether nothing outside of `nodes` reads what those after the first compute."""
    if len(nodes) == 1:
        return True
    inside = set(nodes)
    for node in nodes[1:]:
        for value in node.outputs:
            if value.is_graph_output() or any(use.node not in inside for use in value.uses()):
                return False
    return True


def _replace(
    nodes: tuple[ir.Node, ...], outputs: tuple[ir.Value, ...], builder: Builder
) -> list[ir.Node]:
    """Put `outputs` in the place of the first node's and drop what died; the nodes nearby."""
    root = nodes[0]
    read = [o for o in root.outputs if o.uses() or o.is_graph_output()]
    if len(outputs) not in (len(read), len(root.outputs)):
        raise PassError(f"a rewrite of {root.op_type} must return {len(root.outputs)} values")
    users = [use.node for old in root.outputs for use in old.uses()]
    for old, new in zip(root.outputs, outputs, strict=False):
        builder.take_over(old, new)
    before = [v.producer() for n in nodes for v in n.inputs if v is not None]
    remove_dead(nodes)
    return [*builder.nodes, *users, *(n for n in before if n is not None)]
