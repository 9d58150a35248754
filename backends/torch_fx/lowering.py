"""Lowering: an ONNX model as a trainable `torch.fx.GraphModule`, one plain operation at a time.

Every operator of the tables in this package writes the torch functions and tensor methods that
compute it into the graph. Sizes are asked of tensors at run time and go from node to node as Python
integers where `graphopt.analyses.shapes` knows what a shape operand holds; nothing is a constant
that depends on the device or on a dynamic axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
import torch
from graphopt.backends.torch_fx import decomposed
from graphopt.backends.torch_fx.body import Body
from graphopt.backends.torch_fx.keys import key_of
from graphopt.backends.torch_fx.node_writing import by_table
from graphopt.backends.torch_fx.parameters import Parameters
from graphopt.backends.torch_fx.tables import TABLE
from torch import fx

from graphopt.analyses.shapes.analysis import infer
from graphopt.errors import ModelError
from graphopt.graph.traverse import all_nodes

__all__ = ["UnknownOperator", "lower"]


#: The newest opset whose operators are known here.
NEWEST = 24


class UnknownOperator(ModelError):
    """The model has operators that cannot be lowered; the message names all and their nodes."""


def lower(model: ir.Model, *, integers: bool = False) -> fx.GraphModule:
    """A module that computes what the model computes, and whose parameters are its weights.

    It takes the graph's inputs in order and returns the tuple of its outputs. `module.meta` has
    under "graphopt.parameters" what `write_back` needs: a `Weight` by parameter path.

    Q/DQ pass gradients, and integer weights are trained as floats; with `integers` they are
    PyTorch's own operators on integers (`decomposed`), which the compilers of devices read.

    Raises:
        UnknownOperator: naming every operator that is not known here, with its nodes.
    """
    _check(model)
    root = torch.nn.Module()
    parameters = Parameters(model, root, grids=not integers)
    write = by_table({**TABLE, **decomposed.TABLE} if integers else TABLE)
    body = Body(model, infer(model), parameters, fx.Graph(), write)
    names = [v.name or "" for v in model.graph.inputs if not v.is_initializer()]
    inputs = [v for v in model.graph.inputs if not v.is_initializer()]
    body.enter(inputs, names)
    body.run(model.graph)
    body.leave(model.graph.outputs)
    module = fx.GraphModule(root, body.graph, "LoweredModel")
    held = {p for p, _ in module.named_parameters(remove_duplicate=False)}
    held |= {p for p, _ in module.named_buffers(remove_duplicate=False)}
    module.meta["graphopt.parameters"] = {  # fx drops what nothing reads
        path: weight for path, weight in body.parameters.weights.items() if path in held
    }
    module.meta["graphopt.inputs"] = names
    module.meta["graphopt.outputs"] = [v.name for v in model.graph.outputs]
    return module.eval()


def _check(model: ir.Model) -> None:
    unknown: dict[str, list[str]] = {}
    for node in all_nodes(model.graph):
        key = key_of(node)
        if key not in TABLE or _too_new(node, model):
            place = node.name or (node.outputs[0].name if node.outputs else "") or "?"
            unknown.setdefault(key, []).append(place)
    if unknown:
        listed = "; ".join(f"{key} ({_few(places)})" for key, places in sorted(unknown.items()))
        raise UnknownOperator(
            f"the torch backend has no lowering for {listed}. "
            "Rewrite these nodes first (the clean, fold and fuse passes remove many)"
        )


def _too_new(node: ir.Node, model: ir.Model) -> bool:
    """Whether a standard operator has attributes or inputs that came after the opset known here."""
    imports = model.graph.opset_imports
    opset = imports.get("", imports.get("ai.onnx", 1))
    if node.domain not in ("", "ai.onnx") or opset <= NEWEST:
        return False
    try:
        schema = onnx.defs.get_schema(node.op_type, NEWEST)
    except onnx.defs.SchemaError:
        return True
    return len(node.inputs) > schema.max_input or not set(node.attributes) <= set(schema.attributes)


def _few(places: Sequence[str]) -> str:
    return ", ".join(places[:8]) + (f" and {len(places) - 8} more" if len(places) > 8 else "")
