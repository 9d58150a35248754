"""The torch backend: a model as a trainable `torch.fx.GraphModule`, and its weights back again.

    module = lower(model)          # parameters are the initializers, by name
    outputs = module(*inputs)      # what ONNX Runtime computes
    write_back(module, model)      # after training

torch is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from graphopt.backends.torch_fx.backend import BACKEND as BACKEND

from graphopt.errors import MissingExtra

if TYPE_CHECKING:
    from torch import fx

__all__ = ["BACKEND", "lower", "write_back"]


def lower(model: ir.Model) -> fx.GraphModule:
    """The model as a module of plain operations; see `graphopt.backends.torch_fx.lowering`.

    It takes the graph's inputs in order and returns the tuple of its outputs.

    Raises:
        MissingExtra: torch is not installed.
        UnknownOperator: naming every operator that cannot be lowered, with its nodes.
    """
    require_torch()
    from graphopt.backends.torch_fx import lowering

    return lowering.lower(model)


def write_back(module: Any, model: ir.Model) -> int:
    """Put the values of a lowered module into `model` as new tensors; returns how many changed."""
    require_torch()
    from graphopt.backends.torch_fx import writing

    return writing.write_back(module, model)


def require_torch() -> None:
    """Raises MissingExtra if torch is not installed."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra("torch", "a trainable module") from error
