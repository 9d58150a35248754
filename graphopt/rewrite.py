"""Rule and Rewrite: local rewrites, applied by worklist until none matches.

A rule is looked up by the operator of its root, tried once per node, and tried again only around
an edit, so the cost of a `Rewrite` grows linearly with the graph.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import provenance
from graphopt.analyses.shapes import shapes
from graphopt.context import Context
from graphopt.pass_ import Pass
from graphopt.pattern import Match, NodePattern, compile_pattern, match_at, possible
from graphopt.spill import spill
from graphopt.traverse import all_graphs, all_nodes, subgraphs

__all__ = ["Builder", "Names", "Rewrite", "Rule", "can_replace", "remove_dead", "rewrite"]


class Rule:
    """One local rewrite; its docstring is its algebra.

    `pattern` says what it matches (see `graphopt.pattern`). `check` may refuse: None or True means
    go on, False means this is not a match after all, and a string is a reason the user will read;
    a dict means go on too, and its items are further arguments of `rewrite`; its item "nodes", if
    any, are nodes beyond the pattern that belong to the match. `rewrite` builds the replacement
    with `op` and returns the new value (a tuple if the root has several outputs); it may return a
    bound value. `check` and `rewrite` take the bound names they want as arguments;
    `ctx` and `match` are among them.

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


def remove_dead(nodes: Iterable[ir.Node]) -> int:
    """Remove those of `nodes` that nothing uses, then what only they used; returns how many."""
    removed = 0
    stack = list(nodes)[::-1]
    while stack:
        node = stack.pop()
        graph = node.graph
        if graph is None or any(o.uses() or o.is_graph_output() for o in node.outputs):
            continue
        values = [v for v in node.inputs if v is not None]
        values += _detach_subgraphs(node)
        graph.remove(node, safe=True)
        removed += 1
        for value in values:
            producer = value.producer()
            if producer is not None:
                stack.append(producer)
            elif value.is_initializer() and not (
                value.uses() or value.is_graph_input() or value.is_graph_output()
            ):
                owner = value.graph
                if isinstance(owner, ir.Graph) and value.name is not None:
                    owner.initializers.pop(value.name, None)
    return removed


def _detach_subgraphs(node: ir.Node) -> list[ir.Value]:
    """End the uses that a dying node's subgraphs make of outer values; returns those values."""
    values: list[ir.Value] = []
    for graph in subgraphs(node):
        for inner in all_nodes(graph):
            for k, value in enumerate(inner.inputs):
                if value is not None:
                    values.append(value)
                    inner.replace_input_with(k, None)
    return values


def can_replace(old: ir.Value, new: ir.Value) -> bool:
    """Whether `new` can take the place of `old` by name, without an Identity between them.

    The name of a graph output can pass on only to a node's output in the same graph that is no
    graph output itself.
    """
    return not old.is_graph_output() or not (
        new.producer() is None or new.is_graph_output() or new.graph is not old.graph
    )


class Names:
    """Every value and node name in a model; `fresh` never returns one that is taken."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}

    def _collect(self) -> None:
        for graph in all_graphs(self._model.graph):
            self._taken.update(v.name or "" for v in graph.inputs)
            self._taken.update(graph.initializers)
            for node in graph:
                self._taken.add(node.name or "")
                self._taken.update(o.name or "" for o in node.outputs)

    def fresh(self, base: str) -> str:
        """`base`, or `base_1`, `base_2`, ..."""
        if not self._taken:
            self._collect()
        name, k = base, self._next.get(base, 0)
        while name in self._taken:
            k += 1
            name = f"{base}_{k}"
        self._next[base] = k
        self._taken.add(name)
        return name


class Builder:
    """The `op` handed to `Rule.rewrite`: `op.Name(*inputs, **attributes)` adds a node.

    Nodes go right before `at`, in its graph, with fresh names. Keyword arguments `domain_` and
    `outputs_` choose the operator's domain and how many outputs it has; an attribute that is None
    is left out.
    """

    def __init__(self, model: ir.Model, at: ir.Node, names: Names | None = None) -> None:
        self.model = model
        self.at = at
        self.nodes: list[ir.Node] = []
        self._names = names if names is not None else Names(model)

    def constant(self, array: np.ndarray[Any, Any] | ir.TensorProtocol, name: str) -> ir.Value:
        """A new initializer of the main graph holding `array`, named `name` if that is free."""
        fresh = self._names.fresh(name)
        held = ir.Tensor(array, name=fresh) if isinstance(array, np.ndarray) else array
        tensor = spill(held)
        value = ir.Value(
            name=fresh, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype)
        )
        value.const_value = tensor
        self.model.graph.register_initializer(value)
        return value

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
    ) -> ir.Node:
        """Add one node before `at` and return it."""
        given = {k: v for k, v in (attributes or {}).items() if v is not None}
        base = self.at.name or self.at.outputs[0].name or op_type
        node = ir.Node(
            domain,
            op_type,
            inputs,
            ir.convenience.convert_attributes(given),
            num_outputs=outputs,
            name=self._names.fresh(f"{base}/{op_type}"),
        )
        for value in node.outputs:
            value.name = self._names.fresh(f"{node.name}:{value.index()}")
        if domain not in self.model.graph.opset_imports:
            self.model.graph.opset_imports[domain] = 1
        graph = self.at.graph
        assert isinstance(graph, ir.Graph)
        graph.insert_before(self.at, node)
        self.nodes.append(node)
        return node

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Let `new` stand wherever `old` stood: its users, its name, its type, its outputs."""
        if new is old:
            return
        if new.type is None:
            new.type = old.type
        if new.shape is None:
            new.shape = old.shape
        if not old.is_graph_output():
            old.replace_all_uses_with(new)
            return
        ours = any(new.producer() is n for n in self.nodes)
        if not ours and not can_replace(old, new):
            new = self.node("Identity", [new]).outputs[0]
            new.type, new.shape = old.type, old.shape
        name = old.name
        old.name = self._names.fresh(f"{name}_replaced")
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name = name

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def make(
            *inputs: ir.Value | None, domain_: str = "", outputs_: int = 1, **attributes: Any
        ) -> ir.Value | tuple[ir.Value, ...]:
            node = self.node(op_type, inputs, attributes, domain=domain_, outputs=outputs_)
            return node.outputs[0] if outputs_ == 1 else tuple(node.outputs)

        return make
