"""Writing: new nodes and constants under fresh names, each constant stored once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.grid import Grid

from graphopt.context import Context
from graphopt.graph import provenance
from graphopt.graph.building import Builder, Names

__all__ = ["Writer"]

Array = np.ndarray[Any, Any]


class Writer:
    """Adds nodes and initializers to one model for one run of the pass."""

    def __init__(self, model: ir.Model, ctx: Context) -> None:
        self.model = model
        self.ctx = ctx
        self.names = Names(model)
        #: Lookup tables that products read too: rows [n, k] of int8 and their scales, by the table.
        self.tied: dict[ir.Value, tuple[Array, Array]] = {}
        #: Float weights computed from integers, by what they were made of.
        self.restored: dict[Any, ir.Value] = {}
        self._shared: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}
        self._kept: dict[Any, ir.Value] = {}

    def initializer(self, array: Array, name: str) -> ir.Value:
        """A new initializer."""
        builder = Builder(self.model, self.model.graph[0], self.names)
        return builder.constant(np.asarray(array), name)

    def shared(self, array: Array, name: str) -> ir.Value:
        """An initializer with these numbers: small ones occur often and are stored once."""
        key = (str(array.dtype), array.tobytes(), array.shape)
        if key not in self._shared:
            self._shared[key] = self.initializer(array, name)
        return self._shared[key]

    def kept(self, key: Any, array: Array, name: str) -> ir.Value:
        """The initializer made for `key`, or a new one."""
        if key not in self._kept:
            self._kept[key] = self.initializer(array, name)
        return self._kept[key]

    def grid(self, grid: Grid) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of a grid."""
        scale = self.shared(np.asarray(grid.scale, np.float32), "scale")
        return scale, self.shared(np.asarray(grid.zero, grid.dtype), "zero")

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        *,
        origin: Sequence[ir.Node],
        before: ir.Node | None = None,
        after: ir.Node | None = None,
        attributes: dict[str, Any] | None = None,
        domain: str = "",
        outputs: int = 1,
    ) -> ir.Node:
        """Add one node at a place, with the provenance of `origin`.

        Without `before` or `after` it goes to the start of the graph.
        """
        node = ir.Node(
            domain,
            op_type,
            inputs,
            ir.convenience.convert_attributes(attributes or {}),
            num_outputs=outputs,
            name=self.names.fresh(name),
        )
        for k, value in enumerate(node.outputs):
            value.name = node.name if k == 0 else self.names.fresh(f"{name}_{k}")
        place = after or before or self.model.graph[0]
        graph = place.graph
        assert isinstance(graph, ir.Graph)
        if after is not None:
            graph.insert_after(after, node)
        else:
            graph.insert_before(place, node)
        self.model.graph.opset_imports.setdefault(domain, 1)
        if origin:
            provenance.derive([node], origin, self.ctx.pass_name)
        return node

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Let `new` stand wherever `old` stood: its users, type, shape, and name as an output."""
        new.type, new.shape = old.type, old.shape
        output, name = old.is_graph_output(), old.name
        old.replace_all_uses_with(new, replace_graph_outputs=output)
        if output:
            old.name = self.names.fresh(f"{name}_float")
            new.name = name

    def dequantize(
        self,
        q: ir.Value,
        scale: ir.Value,
        zero: ir.Value | None,
        axis: int | None,
        before: ir.Node,
        name: str,
        *,
        domain: str = "",
    ) -> ir.Value:
        """A constant as float again; it is part of `before`, so its provenance is not repeated.

        No `zero` means 0: one for each channel and each size of a layer adds up in a small file.
        """
        node = self.node(
            "DequantizeLinear",
            [q, scale, zero] if zero is not None else [q, scale],
            name,
            origin=[],
            before=before,
            domain=domain,
            attributes=None if axis is None else {"axis": axis},
        )
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), q.shape
        return node.outputs[0]
