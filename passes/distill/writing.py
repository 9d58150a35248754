"""Trained values into a model: zeros of sparse tensors are still there, nodes are marked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.context import Context
from graphopt.execution.trainable import write_back
from graphopt.graph import provenance
from graphopt.io.tensors import SparseTensor

if TYPE_CHECKING:
    import torch

__all__ = ["write"]


def write(
    module: torch.nn.Module, model: ir.Model, ctx: Context, part: ir.Model | None = None
) -> int:
    """Put the trained values into the model; how many changed.

    Args:
        module: what was trained.
        model: the model.
        ctx: is told that the model changed.
        part: what the module was made of, if it is a part of the model with its names.
    """
    before = {v: v.const_value for v in model.graph.initializers.values()}
    changed = write_back(module, model if part is None else part)
    if part is not None:
        for name, value in part.graph.initializers.items():
            model.graph.initializers[name].const_value = value.const_value
    for value, tensor in before.items():
        made = value.const_value
        if made is not tensor and made is not None:
            if isinstance(tensor, SparseTensor):  # its zeros are still there
                value.const_value = SparseTensor.of(made.numpy(), value.name or "") or made
            for use in value.uses():
                provenance.mark(use.node, ctx.pass_name)
    ctx.invalidate()
    return changed
