"""Trainable: a model as a torch module, and its weights back, by whichever backend is "torch".

    module = trainable(model)      # a torch.nn.Module; its parameters are the initializers
    write_back(module, model)      # the trained values, as new tensors of the model

Passes that follow gradients use these two, since passes know no backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt import plugins
from graphopt.errors import MissingExtra

if TYPE_CHECKING:
    import torch

__all__ = ["trainable", "write_back"]


def trainable(model: ir.Model) -> torch.nn.Module:
    """A module that computes what the model computes, its float weights as parameters.

    It takes the graph's inputs in order and returns the tuple of its outputs.

    Raises:
        MissingExtra: torch is not installed.
        ModelError: the model has operators that cannot be lowered; all of them are named.
    """
    return _backend().lower(model)


def write_back(module: torch.nn.Module, model: ir.Model) -> int:
    """Put the module's values into `model`, or into a copy of it; returns how many changed.

    Raises:
        ModelError: an initializer is not in `model`, or has another shape there.
    """
    return int(_backend().write_back(module, model))


def _backend() -> Any:
    entry = plugins.find(plugins.BACKENDS).get("torch")
    if entry is None:
        raise MissingExtra("torch", "a trainable module")
    from importlib import import_module

    return import_module(entry.module)
