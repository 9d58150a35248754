"""Branches: single operators cut out of a model at other sizes, side by side in one model.

What an operator costs is measured on it alone, at the shapes that a choice leaves it and in the
form that a pass gives it. Many of them, independent of each other, stand in one model, so that one
session measures all.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.cost import cost
from graphopt.analyses.dims import Dimension
from graphopt.analyses.shapes.analysis import bound_shapes
from graphopt.context import Context
from graphopt.graph.attributes import attribute
from graphopt.graph.traverse import RECURRENT
from graphopt.measuring.parts import cut_out

__all__ = ["PRICED", "Branch", "Cutter", "branch_name", "side_by_side"]

Array = np.ndarray[Any, Any]
#: Operators that are priced at every size; the others follow their activations.
PRICED = frozenset({"Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})


@dataclasses.dataclass(frozen=True)
class Branch:
    """One operator as a model of its own.

    Attributes:
        key: operator, attributes and shapes: equal for equal costs.
        model, feeds: what computes it, and inputs for that.
    """

    key: str
    model: ir.Model
    feeds: Mapping[str, Array]


class Cutter:
    """Cuts single operators out of a model, with fewer units of its dimensions.

    Attributes:
        nodes: the priced operators by name, in graph order.
        touches: by operator, the dimensions that its tensors carry.
    """

    def __init__(
        self, model: ir.Model, dims: Mapping[str, Dimension], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.model, self.dims = model, dims
        self._shapes = bound_shapes(model, dict(shapes))
        macs = cost(Context(model, shapes=shapes)).nodes
        self.nodes = {
            n.name or "": n
            for n in model.graph
            if n.op_type in PRICED
            and n.domain in ("", "ai.onnx")
            and n.name in macs
            and macs[n.name or ""].macs
        }
        self.macs = {name: float(macs[name].macs or 0) for name in self.nodes}
        self._axes: dict[tuple[str, str], list[tuple[str, int, Array]]] = defaultdict(list)
        self.touches: dict[str, tuple[str, ...]] = {}
        touched: dict[str, dict[str, None]] = defaultdict(dict)
        for name, dim in dims.items():
            for m in dim.members:
                self._axes[m.node, m.input].append((name, m.axis, m.positions))
                touched[m.node][name] = None
        self.touches = {name: tuple(touched[name]) for name in self.nodes}

    def cut(self, name: str, keep: Mapping[str, int]) -> Branch | None:
        """The operator with so many units of each dimension left; None where it can't be cut."""
        node = self.nodes[name]
        outputs = [o for o in node.outputs if o.name and (o.uses() or o.is_graph_output())]
        made = cut_out(self.model, [node], outputs, self._form)
        if made is None:
            return None
        model, feeds = made[0], dict(made[1])
        graph = model.graph
        inner = next(n for n in graph if n.op_type == node.op_type)
        held = {v.name: v for v in (*graph.inputs, *graph.initializers.values())}
        before = _channels(inner, feeds)
        for value in inner.inputs:
            masks = self._masks(name, value.name or "", keep) if value is not None else {}
            if not masks or value is None:
                continue
            if value.name not in held:
                return None
            array = feeds[value.name] if value.name in feeds else _numbers(value)
            for axis, mask in masks.items():
                array = np.compress(mask, array, axis)
            if value.name in feeds:
                feeds[value.name] = array
            else:
                value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
            value.shape = ir.Shape(array.shape)
        self._fit_attributes(inner, feeds, before)
        for output in graph.outputs:
            output.shape = None
        return Branch(_key(inner, feeds), model, feeds)

    def _masks(self, node: str, value: str, keep: Mapping[str, int]) -> dict[int, Array]:
        """By axis of a value, the positions that stay."""
        masks: dict[int, Array] = {}
        for dim, axis, positions in self._axes.get((node, value), ()):
            count = keep.get(dim, self.dims[dim].size)
            if count < self.dims[dim].size:
                mask = positions < count
                masks[axis] = masks[axis] & mask if axis in masks else mask
        return masks

    def _fit_attributes(self, node: ir.Node, feeds: Mapping[str, Array], before: int) -> None:
        """Numbers that follow from sizes: groups of a convolution, hidden units."""
        if node.op_type in RECURRENT and node.inputs[2] is not None:
            node.attributes["hidden_size"] = ir.AttrInt64(
                "hidden_size", int(_numbers(node.inputs[2]).shape[-1])
            )
        groups = int(attribute(node, "group", 1)) if node.op_type.startswith("Conv") else 1
        after = _channels(node, feeds)
        if groups > 1 and after != before:
            node.attributes["group"] = ir.AttrInt64("group", groups * after // before)

    def _form(self, value: ir.Value) -> tuple[tuple[int, ...], ir.DataType] | None:
        shape, dtype = self._shapes.static(value), self._shapes.dtype(value)
        return None if shape is None or dtype is None else (shape, dtype)


def branch_name(k: int) -> str:
    """The name of the operator of branch `k`, which no other begins with."""
    return f"k{k}n"


def side_by_side(branches: Sequence[Branch]) -> tuple[ir.Model, dict[str, Array]]:
    """One model that computes all branches, independent of each other, and its inputs.

    The branches are taken apart. Operators are called `branch_name(k)`, values begin with `k{k}v`.
    """
    inputs: list[ir.Value] = []
    outputs: list[ir.Value] = []
    nodes: list[ir.Node] = []
    initializers: list[ir.Value] = []
    feeds: dict[str, Array] = {}
    for k, branch in enumerate(branches):
        graph = branch.model.graph
        for n, name in enumerate([v.name for v in graph.inputs]):
            feeds[f"k{k}v_in{n}"] = branch.feeds[name or ""]
        every = [v for node in graph for v in node.outputs]
        constants = list(graph.initializers.values())
        inner = list(graph)
        ins, outs = list(graph.inputs), list(graph.outputs)
        graph.inputs.clear()
        graph.outputs.clear()
        graph.initializers.clear()
        graph.remove(inner)
        for n, value in enumerate(ins):
            value.name = f"k{k}v_in{n}"
        for n, value in enumerate([*constants, *every]):
            if value.name:
                value.name = f"k{k}v_{n}"
        for node in inner:
            priced = node.op_type in PRICED
            node.name = branch_name(k) if priced else f"k{k}before"
            node.metadata_props.clear()
        inputs += ins
        outputs += outs
        nodes += inner
        initializers += constants
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=nodes,
        initializers=initializers,
        opset_imports=branches[0].model.graph.opset_imports,
        name="branches",
    )
    return ir.Model(graph, ir_version=branches[0].model.ir_version), feeds


def _numbers(value: ir.Value) -> Array:
    assert value.const_value is not None
    array: Array = value.const_value.numpy()
    return array


def _channels(node: ir.Node, feeds: Mapping[str, Array]) -> int:
    """Input channels of a convolution, else 1."""
    x = node.inputs[0]
    if x is None or not node.op_type.startswith("Conv") or x.name not in feeds:
        return 1
    return int(feeds[x.name or ""].shape[1])


def _key(node: ir.Node, feeds: Mapping[str, Array]) -> str:
    attributes = ",".join(
        f"{a.name}={a.value}" for a in sorted(node.attributes.values(), key=lambda a: a.name)
    )
    shapes = ["-" if v is None else "x".join(map(str, v.shape or ())) for v in node.inputs]
    constant = "".join("-" if v is None else "x" if v.name in feeds else "w" for v in node.inputs)
    return f"{node.op_type}[{attributes}] {constant} {' '.join(shapes)}"
