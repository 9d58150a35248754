"""Writing one node into an fx graph, by the table of operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
from graphopt.backends.torch_fx.body import Body
from graphopt.backends.torch_fx.keys import key_of
from graphopt.backends.torch_fx.op import Op
from graphopt.backends.torch_fx.quantized import Carried
from graphopt.backends.torch_fx.tables import MOVES

__all__ = ["by_table"]


Table = Mapping[str, Callable[..., Any]]


def by_table(table: Table) -> Callable[[Body, ir.Node], None]:
    """What writes one node into the graph, by the function that `table` has for its operator."""
    return lambda body, node: _write(body, node, table)


def _write(body: Body, node: ir.Node, table: Table) -> None:
    op = Op(body, node)
    known = [body.known(v) for v in node.outputs]
    if all(k is not None for k in known) and key_of(node) != "Constant":
        return  # every output is made of sizes: written where it is read
    function = table[key_of(node)]
    try:
        if key_of(node) in MOVES and isinstance(body.lookup(node.inputs[0]), Carried):
            result = _move(body, op, function)
        else:
            takes = getattr(function, "carried", False)
            args = [None if v is None else body.value(v, takes) for v in node.inputs]
            while args and args[-1] is None:
                args.pop()
            result = function(op, *args)
    except Exception as error:
        error.add_note(f"while lowering {node.op_type} '{node.name}'")
        raise
    results = result if isinstance(result, tuple) else (result,)
    for value, one in zip(node.outputs, results, strict=False):
        if value.name:
            body.define(value, one)


def _move(body: Body, op: Op, function: Callable[..., Any]) -> Any:
    """An operator that only moves elements about, on integers carried as floats."""
    args = [None if v is None else body.lookup(v) for v in op.node.inputs]
    first = args[0]
    assert isinstance(first, Carried)
    dtype = first.dtype
    plain = [a.tensor if isinstance(a, Carried) else a for a in args]
    plain = [
        None if v is None else p if p is not None else body.tensor(v)
        for v, p in zip(op.node.inputs, plain, strict=True)
    ]
    result = function(op, *plain)
    results = result if isinstance(result, tuple) else (result,)
    kinds = [body.shapes.dtype(v) for v in op.node.outputs]  # indices are no such integers
    return tuple(
        Carried(r, dtype) if kind == dtype else r for r, kind in zip(results, kinds, strict=False)
    )
