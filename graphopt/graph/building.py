"""Graph editing: nodes and constants with fresh names, replaced values, dead nodes removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, overload

import numpy as np
import onnx_ir as ir

from graphopt.graph.spill import spill
from graphopt.graph.traverse import all_graphs, all_nodes, subgraphs

__all__ = ["Builder", "Names", "can_replace", "remove_dead"]


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


class _Make(Protocol):
    """Adds a node; returns its output, or all of them where `outputs_` is not 1."""

    @overload
    def __call__(
        self, *inputs: ir.Value | None, domain_: str = "", outputs_: int, **attributes: Any
    ) -> Any: ...
    @overload
    def __call__(
        self, *inputs: ir.Value | None, domain_: str = "", **attributes: Any
    ) -> ir.Value: ...


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

    def constant(
        self, array: np.ndarray[Any, Any] | ir.TensorProtocol, name: str | None
    ) -> ir.Value:
        """A new initializer of the main graph holding `array`, named `name` if that is free."""
        fresh = self._names.fresh(name or "constant")
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
        attributes: Mapping[str, Any] | None = None,
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

    def again(self, node: ir.Node, inputs: Sequence[ir.Value | None], **changed: Any) -> ir.Value:
        """A node of `node`'s operator and attributes, but those `changed` (None: left out)."""
        kept = {k: a for k, a in node.attributes.items() if k not in changed}
        domain = "" if node.domain == "ai.onnx" else node.domain
        return self.node(node.op_type, inputs, kept | changed, domain=domain).outputs[0]

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Let `new` stand wherever `old` stood: its users, its name, its type, its outputs.

        A value keeps its name as long as it keeps its meaning, so a node made here gives its output
        the name of what it replaces.
        """
        if new is old:
            return
        if new.type is None:
            new.type = old.type
        if new.shape is None:
            new.shape = old.shape
        ours = any(new.producer() is n for n in self.nodes)
        if not old.is_graph_output():
            old.replace_all_uses_with(new)
            if ours:
                new.name, old.name = old.name, new.name
            return
        if not ours and not can_replace(old, new):
            new = self.node("Identity", [new]).outputs[0]
            new.type, new.shape = old.type, old.shape
        if old.shape is not None:  # what is declared of an output is the model's interface
            new.shape = old.shape
        name = old.name
        old.name = self._names.fresh(f"{name}_replaced")
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name = name

    def __getattr__(self, op_type: str) -> _Make:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def make(
            *inputs: ir.Value | None, domain_: str = "", outputs_: int = 1, **attributes: Any
        ) -> Any:
            node = self.node(op_type, inputs, attributes, domain=domain_, outputs=outputs_)
            return node.outputs[0] if outputs_ == 1 else tuple(node.outputs)

        return make
