"""Body: an fx graph as it is written, node after node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from graphopt.backends.torch_fx.parameters import Parameters
from graphopt.backends.torch_fx.quantized import Carried, integer
from graphopt.backends.torch_fx.types import torch_dtype
from torch import fx

from graphopt.analyses.shapes.facts import Shapes
from graphopt.analyses.shapes.symbolic import Expr, symbol
from graphopt.errors import ModelError

__all__ = ["Body"]

Proxy = Any


class Body:
    """The graph being written: of the model, or of one of its subgraphs."""

    def __init__(
        self,
        model: ir.Model,
        shapes: Shapes,
        parameters: Parameters,
        graph: fx.Graph,
        write: Callable[[Body, ir.Node], None],
    ) -> None:
        self.model = model
        self._write = write
        self.shapes = shapes
        self.parameters = parameters
        self.graph = graph
        self.tracer = fx.proxy.GraphAppendingTracer(graph)
        self.values: dict[ir.Value, Any] = {}
        self.sizes: dict[str, tuple[Any, int]] = {}
        self._size_of: dict[str, Any] = {}
        self._device: Any = None

    # --- the graph --------------------------------------------------------------------------

    def enter(self, inputs: Sequence[ir.Value], names: Sequence[str]) -> None:
        """Placeholders for `inputs`."""
        for value, name in zip(inputs, names, strict=True):
            safe = "".join(c if c.isalnum() else "_" for c in name) or "input"
            node = self.graph.placeholder(safe if not safe[0].isdigit() else f"input_{safe}")
            self.define(value, fx.Proxy(node, self.tracer))

    def run(self, graph: ir.Graph) -> None:
        """Write every node of `graph`."""
        for node in graph:
            self._write(self, node)

    def leave(self, outputs: Sequence[ir.Value]) -> None:
        """Return `outputs`, drop what none of them needs."""
        self.graph.output(tuple(self.tensor(v).node for v in outputs))
        self.graph.eliminate_dead_code()
        self.graph.lint()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Proxy:
        """Record `function(*args, **kwargs)`."""
        return self.tracer.create_proxy("call_function", function, args, kwargs)

    def held(self, path: str) -> Proxy:
        """The parameter or buffer at `path`."""
        return fx.Proxy(self.graph.get_attr(path), self.tracer)

    # --- values -----------------------------------------------------------------------------

    def define(self, value: ir.Value, result: Any) -> None:
        """`value` is `result`; its axes give the sizes that have no expression yet."""
        self.values[value] = result
        tensor = result.tensor if isinstance(result, Carried) else result
        for axis, dim in enumerate(self.shapes.shape(value) or ()):
            if isinstance(dim, Expr) and len(dim.terms) == 1:
                monomial, factor = dim.terms[0]
                if factor == 1 and len(monomial) == 1:
                    self.sizes.setdefault(monomial[0], (tensor, axis))

    def lookup(self, value: ir.Value | None) -> Any:
        """What stands for `value`, carried integers as they are; None if nothing does."""
        if value is None:
            return None
        if value not in self.values:
            weight = self.parameters.of(value)
            if weight is not None:
                got = self.held(weight.path)
                grid = weight.grid
                self.values[value] = (
                    got if grid is None else Carried(grid.round(got, self.held), grid.dtype)
                )
            else:
                known = self.known(value)
                if known is None:
                    return None
                dtype = self.shapes.dtype(value)
                assert dtype is not None
                self.values[value] = self.call(
                    torch.tensor, known, dtype=torch_dtype(dtype), device=self.device
                )
        return self.values[value]

    def value(self, value: ir.Value, carried: bool = False) -> Any:
        """What stands for `value`: a tensor, or as is for those who take carried integers."""
        found = self.lookup(value)
        return integer(found) if isinstance(found, Carried) and not carried else found

    def tensor(self, value: ir.Value) -> Proxy:
        """The tensor of `value`. Raises ModelError if nothing stands for it (text, say)."""
        found = self.value(value)
        if found is None:
            raise ModelError(f"torch has nothing that could hold '{value.name}'")
        return found

    def known(self, value: ir.Value) -> Any:
        """Its elements as nested lists of numbers and sizes, or None if they are data."""
        data = self.shapes.data(value)
        dtype = self.shapes.dtype(value)
        if data is None or dtype not in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL):
            return None
        flat = [self.dim(d) for d in data.ravel()]
        if any(d is None for d in flat):
            return None
        if data.ndim == 0:
            return flat[0]
        return flat if data.ndim == 1 else None

    def dim(self, dim: Any) -> Any:
        """A size as a Python integer at run time, or None if it has no expression here."""
        if not isinstance(dim, Expr):
            return dim.item() if isinstance(dim, np.generic) else dim
        total: Any = 0
        if any(a not in self.sizes and a not in self._size_of for a in dim.atoms):
            return None
        for monomial, factor in dim.terms:
            term: Any = factor
            for atom in monomial:
                size = self._size(atom)
                term = size if isinstance(term, int) and term == 1 else size * term
            total = term if isinstance(total, int) and total == 0 else total + term
        return total

    def _size(self, atom: str) -> Proxy:
        if atom not in self._size_of:
            tensor, axis = self.sizes[atom]
            self._size_of[atom] = tensor.size(axis)
        return self._size_of[atom]

    # --- subgraphs ----------------------------------------------------------------------------

    def nested(self, graph: ir.Graph) -> tuple[Proxy, list[Proxy]]:
        """A subgraph as a module of its own, and what it is to be handed before its inputs."""
        inner = Inner(self)
        inner.enter(list(graph.inputs), [v.name or "" for v in graph.inputs])
        inner.run(graph)
        inner.leave(graph.outputs)
        module = fx.GraphModule(torch.nn.Module(), inner.graph, "Subgraph")
        return self.held(self.parameters.adopt(module)), inner.reads()

    @property
    def device(self) -> Proxy:
        """Where new tensors belong: with the parameters, or else the inputs."""
        if self._device is None:
            anchor = self.parameters.anchor()
            if anchor is not None:
                at = self.held(anchor)
            else:
                at = next(v for v in self.values.values() if isinstance(v, fx.Proxy))
            self._device = self.call(getattr, at, "device")
        return self._device


class Inner(Body):
    """The graph of a subgraph: what it reads from outside becomes its first inputs."""

    def __init__(self, outer: Body) -> None:
        super().__init__(outer.model, outer.shapes, outer.parameters, fx.Graph(), outer._write)
        self.outer = outer
        self._read: dict[Any, tuple[Proxy, fx.Node]] = {}

    def reads(self) -> list[Proxy]:
        """What the graph is handed, in the order of its placeholders."""
        given = {node: proxy for proxy, node in self._read.values()}
        return [given[n] for n in self.graph.nodes if n in given]

    def _capture(self, key: Any, proxy: Proxy) -> Proxy:
        if key not in self._read:
            first = next(iter(self.graph.nodes), None)
            if first is None:
                node = self.graph.placeholder("outer_0")
            else:
                with self.graph.inserting_before(first):
                    node = self.graph.placeholder(f"outer_{len(self._read)}")
            self._read[key] = (proxy, node)
        return fx.Proxy(self._read[key][1], self.tracer)

    def held(self, path: str) -> Proxy:
        """The parameter or buffer at `path`, handed in."""
        return self._capture(path, self.outer.held(path))

    def lookup(self, value: ir.Value | None) -> Any:
        """A value of this subgraph, or one of the graphs around it, handed in."""
        found = super().lookup(value)
        if found is not None or value is None:
            return found
        outside = self.outer.value(value)
        self.values[value] = self._capture(value, outside)
        return self.values[value]

    def dim(self, dim: Any) -> Any:
        """A size; those of the graphs around are handed in."""
        if isinstance(dim, Expr):
            for atom in dim.atoms:
                if atom not in self.sizes and atom not in self._size_of:
                    outside = self.outer.dim(symbol(atom))
                    if outside is None:
                        return None
                    self._size_of[atom] = self._capture(atom, outside)
        return super().dim(dim)

    @property
    def device(self) -> Proxy:
        """The device of the graph around, handed in."""
        return self._capture("the device", self.outer.device)
