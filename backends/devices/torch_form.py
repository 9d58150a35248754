"""The torch form of a model at fixed shapes, exported for runtimes that PyTorch writes for."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphopt.samples import bind_shapes, stand_ins

__all__ = ["exported"]


def exported(model: ir.Model) -> tuple[Any, tuple[Any, ...]]:
    """The program of `torch.export`, and the inputs it was exported with."""
    import torch
    from graphopt.backends.torch_fx.lowering import lower
    from graphopt.backends.torch_fx.types import tensor_of

    shapes, _ = bind_shapes(model)
    feeds = next(iter(stand_ins(model, shapes=shapes)))
    module = lower(model)
    given = tuple(tensor_of(ir.tensor(feeds[n])) for n in module.meta["graphopt.inputs"])
    return torch.export.export(module, given), given
