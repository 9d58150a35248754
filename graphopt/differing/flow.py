"""Dataflow of a model: its nodes numbered, what each reads, who reads what it makes.

A value that a node only passes on (Identity, Dropout when it does nothing) counts as the value that
goes in, so that a graph with and without such nodes flows alike.
"""

from __future__ import annotations

import hashlib
from typing import Any

import onnx_ir as ir

from graphopt.graph.attributes import default_attribute
from graphopt.graph.constants import constant_value
from graphopt.graph.traverse import all_graphs, all_nodes, subgraphs
from graphopt.io.tensors import chunks

__all__ = ["Digests", "Flow", "attributes_of", "form_of", "passes_on"]


class Digests:
    """What tensors hold, told apart by hash, each read once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[ir.TensorProtocol, bytes]] = {}

    def __call__(self, tensor: ir.TensorProtocol) -> bytes:
        """The hash of a tensor's element type, shape and bytes."""
        held = self._known.get(id(tensor))
        if held is None:
            seen = hashlib.blake2b(f"{tensor.dtype}|{tensor.shape}|".encode(), digest_size=16)
            for chunk in chunks(tensor):
                seen.update(chunk)
            held = self._known[id(tensor)] = (tensor, seen.digest())
        return held[1]


class Flow:
    """The nodes of a model in order, those of its subgraphs each after the node that holds them.

    Attributes:
        nodes: every node.
        names: of each; a node without one is called after its first output.
        number: place of each in `nodes`.
        reads: per node, the values it reads, looked at through nodes that pass on; None if absent.
        readers: per value, (node, slot) of those that read it.
        made: per value, (node, output) that makes it.
        outputs: names of the model's outputs, by value; several may share one.
    """

    def __init__(self, model: ir.Model, digests: Digests) -> None:
        self.model, self.digests = model, digests
        self.nodes = list(all_nodes(model.graph))
        self.names = [n.name or (n.outputs[0].name if n.outputs else "") or "" for n in self.nodes]
        self.number = {node: k for k, node in enumerate(self.nodes)}
        self.made = {v: (k, j) for k, n in enumerate(self.nodes) for j, v in enumerate(n.outputs)}
        self._same: dict[ir.Value, ir.Value] = {}
        for node in self.nodes:
            if passes_on(node) and node.inputs[0] is not None:
                self._same[node.outputs[0]] = self.source(node.inputs[0])
        self.reads = [
            [None if v is None else self.source(v) for v in node.inputs] for node in self.nodes
        ]
        self.readers: dict[ir.Value, list[tuple[int, int]]] = {}
        for k, values in enumerate(self.reads):
            for slot, value in enumerate(values):
                if value is not None:
                    self.readers.setdefault(value, []).append((k, slot))
        self.outputs: dict[ir.Value, list[str]] = {}
        for value in model.graph.outputs:
            self.outputs.setdefault(self.source(value), []).append(value.name or "")
        self._held = self._holders()

    def source(self, value: ir.Value) -> ir.Value:
        """The value that `value` only repeats, itself if it is computed."""
        return self._same.get(value, value)

    def maker(self, value: ir.Value | None) -> int | None:
        """The node that computes a value; None for inputs and constants."""
        found = self.made.get(value) if value is not None else None
        return None if found is None else found[0]

    def constant(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """The tensor that a value always holds."""
        return constant_value(value)

    def inner(self, k: int) -> list[ir.Value]:
        """Outputs of the bodies of a node with subgraphs: what it reads of them."""
        return [self.source(v) for v in self._held.get(k, ())]

    def _holders(self) -> dict[int, list[ir.Value]]:
        if len(all_graphs(self.model.graph)) == 1:
            return {}
        return {
            k: [v for graph in subgraphs(node) for v in graph.outputs]
            for k, node in enumerate(self.nodes)
        }

    def living(self) -> set[int]:
        """Nodes that an output of the model depends on."""
        stack = [k for v in self.outputs if (k := self.maker(v)) is not None]
        found: set[int] = set()
        while stack:
            k = stack.pop()
            if k in found:
                continue
            found.add(k)
            values = [*self.reads[k], *self.inner(k)]
            stack += [m for v in values if (m := self.maker(v)) is not None]
        return found

    def constants(self) -> set[int]:
        """Nodes that compute the same on every run: all they read is constant, or a known size."""
        found: set[int] = set()
        for k, values in enumerate(self.reads):
            if self.nodes[k].op_type.startswith("Random") or (k in self._held and self.inner(k)):
                continue
            makers = ((v, self.maker(v)) for v in values if v is not None)
            if self.nodes[k].op_type == "Shape" and values[0] is not None and _sized(values[0]):
                found.add(k)
            if all(m in found if m is not None else self.constant(v) for v, m in makers):
                found.add(k)
        return found


def _sized(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(d, int) for d in value.shape)


def passes_on(node: ir.Node) -> bool:
    """Whether a node's first output is its first input."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Dropout":
        return len(node.inputs) < 3 and not any(o.uses() for o in node.outputs[1:])
    return node.op_type == "Identity"


def attributes_of(node: ir.Node, digests: Digests) -> dict[str, Any]:
    """A node's attributes as plain values that compare, without those at their default.

    Tensors are their hashes; subgraphs are left out, since their nodes are compared themselves.
    """
    found: dict[str, Any] = {}
    for name, held in node.attributes.items():
        if held.is_ref():
            found[name] = f"ref {held.ref_attr_name}"
        elif held.type is ir.AttributeType.TENSOR:
            found[name] = digests(held.as_tensor())
        elif held.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            value = tuple(held.value) if isinstance(held.value, (list, tuple)) else held.value
            if value != default_attribute(node.domain, node.op_type, name):
                found[name] = value if isinstance(value, (int, float, str, tuple)) else repr(value)
    return found


def form_of(tensor: ir.TensorProtocol) -> str:
    """Type and shape of a tensor, in words: "FLOAT 3x4"."""
    return f"{tensor.dtype.name} {'x'.join(map(str, tensor.shape.numpy())) or 'scalar'}"
