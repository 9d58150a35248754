"""Op: one node as the function that lowers it sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.backends.torch_fx.body import Body

from graphopt.errors import ModelError
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import constant_value

__all__ = ["Op"]

Proxy = Any


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
        value = attribute(self.node, name, default, opset=self.opset)
        return list(value) if isinstance(value, tuple) else value

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
        tensor = constant_value(self.node.inputs[k])
        if tensor is not None:
            return tensor.numpy()
        fact = self.body.shapes.fact(self.node.inputs[k])
        return fact.concrete

    def numbers(self, k: int) -> Any:
        """Input `k` (rank 0 or 1) as Python numbers; known only at run time if it is data."""
        value = self.value(k)
        known = self.body.known(value)
        if known is not None:
            return known
        fixed = self.constant(k)
        if fixed is not None:
            return fixed.tolist()
        return self.body.tensor(value).tolist()
