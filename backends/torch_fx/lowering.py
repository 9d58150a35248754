"""Lowering: an ONNX model as a trainable `torch.fx.GraphModule`, one plain operation at a time.

Every operator of the tables in this package writes the torch functions and tensor methods that
compute it into the graph. Sizes are asked of tensors at run time and go from node to node as Python
integers where `graphopt.analyses.shapes` knows what a shape operand holds; nothing is a constant
that depends on the device or on a dynamic axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from graphopt.backends.torch_fx.parameters import Parameters
from graphopt.backends.torch_fx.quantized import Carried, carry, integer
from graphopt.backends.torch_fx.tables import MOVES, TABLE, key_of
from graphopt.backends.torch_fx.types import torch_dtype
from torch import fx

from graphopt.analyses.shapes import Shapes, infer
from graphopt.analyses.symbolic import Expr
from graphopt.errors import ModelError
from graphopt.pattern import default_attribute
from graphopt.traverse import all_nodes

__all__ = ["Op", "UnknownOperator", "lower"]

Proxy = Any


class UnknownOperator(ModelError):
    """The model has operators that cannot be lowered; the message names all and their nodes."""


def lower(model: ir.Model) -> fx.GraphModule:
    """A module that computes what the model computes, and whose parameters are its weights.

    It takes the graph's inputs in order and returns the tuple of its outputs. `module.meta` has
    under "graphopt.parameters" what `write_back` needs: a `Weight` by parameter path.

    Raises:
        UnknownOperator: naming every operator that is not known here, with its nodes.
    """
    _check(model)
    root = torch.nn.Module()
    body = Body(model, infer(model), Parameters(model, root), fx.Graph())
    names = [v.name or "" for v in model.graph.inputs if not v.is_initializer()]
    inputs = [v for v in model.graph.inputs if not v.is_initializer()]
    body.enter(inputs, names)
    body.run(model.graph)
    body.leave(model.graph.outputs)
    module = fx.GraphModule(root, body.graph, "LoweredModel")
    module.meta["graphopt.parameters"] = dict(body.parameters.weights)
    module.meta["graphopt.inputs"] = names
    module.meta["graphopt.outputs"] = [v.name for v in model.graph.outputs]
    return module.eval()


def _check(model: ir.Model) -> None:
    unknown: dict[str, list[str]] = {}
    for node in all_nodes(model.graph):
        key = key_of(node)
        if key not in TABLE:
            place = node.name or (node.outputs[0].name if node.outputs else "") or "?"
            unknown.setdefault(key, []).append(place)
    if unknown:
        listed = "; ".join(f"{key} ({_few(places)})" for key, places in sorted(unknown.items()))
        raise UnknownOperator(
            f"the torch backend has no lowering for {listed}. "
            "Rewrite these nodes first (the clean, fold and fuse passes remove many)"
        )


def _few(places: Sequence[str]) -> str:
    return ", ".join(places[:8]) + (f" and {len(places) - 8} more" if len(places) > 8 else "")


class Body:
    """The graph being written: of the model, or of one of its subgraphs."""

    def __init__(
        self, model: ir.Model, shapes: Shapes, parameters: Parameters, graph: fx.Graph
    ) -> None:
        self.model = model
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
            self._write(node)

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

    def _write(self, node: ir.Node) -> None:
        op = Op(self, node)
        known = [self._known(v) for v in node.outputs]
        if all(k is not None for k in known) and key_of(node) != "Constant":
            return  # every output is made of sizes: written where it is read
        function = TABLE[key_of(node)]
        try:
            if key_of(node) in MOVES and isinstance(self._lookup(node.inputs[0]), Carried):
                result = self._move(op, function)
            else:
                takes = getattr(function, "carried", False)
                args = [None if v is None else self.value(v, takes) for v in node.inputs]
                while args and args[-1] is None:
                    args.pop()
                result = function(op, *args)
        except Exception as error:
            error.add_note(f"while lowering {node.op_type} '{node.name}'")
            raise
        results = result if isinstance(result, tuple) else (result,)
        for value, one in zip(node.outputs, results, strict=False):
            if value.name:
                self.define(value, one)

    def _move(self, op: Op, function: Callable[..., Any]) -> Any:
        """An operator that only moves elements about, on integers carried as floats."""
        args = [None if v is None else self._lookup(v) for v in op.node.inputs]
        first = args[0]
        assert isinstance(first, Carried)
        dtype = first.dtype
        plain = [a.tensor if isinstance(a, Carried) else a for a in args]
        plain = [
            None if v is None else p if p is not None else self.tensor(v)
            for v, p in zip(op.node.inputs, plain, strict=True)
        ]
        result = function(op, *plain)
        results = result if isinstance(result, tuple) else (result,)
        return tuple(Carried(r, dtype) for r in results)

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

    def _lookup(self, value: ir.Value | None) -> Any:
        if value is None:
            return None
        if value not in self.values:
            weight = self.parameters.of(value)
            if weight is not None:
                got = self.held(weight.path)
                self.values[value] = got if weight.grid is None else carry(self, got, weight.grid)
            else:
                known = self._known(value)
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
        found = self._lookup(value)
        return integer(found) if isinstance(found, Carried) and not carried else found

    def tensor(self, value: ir.Value) -> Proxy:
        """The tensor of `value`."""
        return self.value(value)

    def _known(self, value: ir.Value) -> Any:
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
        if any(atom not in self.sizes for atom in dim.atoms):
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


@dataclasses.dataclass(frozen=True)
class Op:
    """One node as the function that lowers it sees it."""

    body: Body
    node: ir.Node

    @property
    def opset(self) -> int:
        """Version of the node's domain."""
        domain = self.node.domain
        imports = self.body.model.graph.opset_imports
        names = ("", "ai.onnx") if domain in ("", "ai.onnx") else (domain,)
        return next((imports[n] for n in names if n in imports), 1)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value, or the default of the standard, or `default`."""
        found = self.node.attributes.get(name)
        if found is not None:
            return list(found.value) if isinstance(found.value, tuple) else found.value
        value = default_attribute(self.node.domain, self.node.op_type, name)
        return default if value is None else value

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Proxy:
        """Record `function(*args, **kwargs)`."""
        return self.body.call(function, *args, **kwargs)

    @property
    def device(self) -> Proxy:
        """The device of new tensors."""
        return self.body.device

    def given(self, k: int) -> bool:
        """Whether input `k` is there."""
        return k < len(self.node.inputs) and self.node.inputs[k] is not None

    def wanted(self, k: int) -> bool:
        """Whether output `k` is read by anyone."""
        if k >= len(self.node.outputs) or not self.node.outputs[k].name:
            return False
        value = self.node.outputs[k]
        return bool(value.uses()) or value.is_graph_output()

    def value(self, k: int) -> ir.Value:
        """Input `k`, which is there."""
        value = self.node.inputs[k]
        assert value is not None, f"{self.node.op_type} '{self.node.name}' lacks input {k}"
        return value

    def rank(self, k: int = 0) -> int:
        """Rank of input `k`. Raises ModelError if it cannot be told."""
        rank = self.body.shapes.rank(self.value(k))
        if rank is None:
            raise ModelError(
                f"the rank of '{self.value(k).name}', read by {self.node.op_type} "
                f"'{self.node.name}', cannot be told; declare the shape of the model's inputs"
            )
        return rank

    def dims(self, k: int = 0) -> list[int | None] | None:
        """The shape of input `k` where it is static; None for other axes."""
        dims = self.body.shapes.shape(self.value(k))
        return None if dims is None else [d if isinstance(d, int) else None for d in dims]

    def dtype(self, k: int = 0) -> ir.DataType:
        """Element type of input `k`."""
        dtype = self.body.shapes.dtype(self.value(k))
        assert dtype is not None, f"the type of '{self.value(k).name}' is not known"
        return dtype

    def constant(self, k: int) -> np.ndarray[Any, Any] | None:
        """The numbers of input `k` if they are the same on every run."""
        if not self.given(k):
            return None
        from graphopt.pattern import constant_value

        tensor = constant_value(self.node.inputs[k])
        if tensor is not None:
            return tensor.numpy()
        fact = self.body.shapes.fact(self.node.inputs[k])
        return fact.concrete

    def numbers(self, k: int) -> Any:
        """Input `k` (rank 0 or 1) as Python numbers; known only at run time if it is data."""
        value = self.value(k)
        known = self.body._known(value)
        if known is not None:
            return known
        fixed = self.constant(k)
        if fixed is not None:
            return fixed.tolist()
        return self.body.tensor(value).tolist()
