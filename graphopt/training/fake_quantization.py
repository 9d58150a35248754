"""Fake quantization: an integer model as a module whose scales and weights can be trained.

Every quantizer passes gradients straight through the rounding (LSQ: Esser et al., ICLR 2020).
Trained are the logarithms of the scales, so that a scale stays positive and can shrink tenfold, and
the weights as the floats they were before rounding:

    s = exp(t K)          w in [-top s, top s], rounded on every run

Zero points stay. A bias of 32 bits follows its weights and data at the end: its scale is their
product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt.graph.constants import constant_value

if TYPE_CHECKING:
    import torch

__all__ = ["fake_quantized", "settle"]

#: A scale's logarithm moves this many times as fast as a weight.
K = 30.0


def fake_quantized(module: torch.nn.Module, model: ir.Model) -> torch.nn.Module:
    """What to train of `module`, the trainable form of `model`: itself, if nothing is quantized.

    Else it runs in float32 throughout, and its parameters are replaced until `settle`.
    """
    import torch
    from torch.nn.utils import parametrize

    class Positive(torch.nn.Module):  # type: ignore[misc]
        def forward(self, t: Any) -> Any:
            return torch.exp(t * K)

        def right_inverse(self, s: Any) -> Any:
            return torch.log(s) / K

    class Within(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, grid: Any, top: int) -> None:
            super().__init__()
            self.grid, self.top = grid, top

        def forward(self, w: Any) -> Any:
            limit = self.grid.over(_get(module, self.grid.scale)) * (self.top + 0.49)
            return torch.maximum(torch.minimum(w, limit), -limit)

        def right_inverse(self, w: Any) -> Any:
            return w

    class Float32(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *inputs: Any) -> Any:
            with torch.autocast(inputs[0].device.type, enabled=False):
                return self.inner(*inputs)

    weights = module.meta["graphopt.parameters"]
    paths = {w.name: p for p, w in weights.items()}
    grids = {p: w.grid for p, w in weights.items() if w.grid is not None}
    quantizers = [n for n in model.graph if n.op_type == "QuantizeLinear"]
    if not grids and not quantizers:
        return module
    steps = [n.inputs[1] for n in quantizers]
    tops = {p: _top(module, p, g) for p, g in grids.items() if _symmetric(module, g)}
    scales = {paths[v.name] for v in steps if v is not None and v.name in paths}
    scales |= {g.scale for g in grids.values() if g.dtype is not ir.DataType.INT32}
    fixed = {g.scale for g in grids.values() if g.dtype is ir.DataType.INT32}
    for path in sorted(scales - fixed):
        parametrize.register_parametrization(*_holder(module, path), Positive())
    for path, top in tops.items():
        parametrize.register_parametrization(*_holder(module, path), Within(grids[path], top))
    for path in fixed:
        _get(module, path).requires_grad_(False)
    return Float32()


def settle(module: torch.nn.Module, model: ir.Model) -> None:
    """Plain parameters again; the scale of a bias is that of its data times that of its weight."""
    import torch
    from torch.nn.utils import parametrize

    weights = module.meta["graphopt.parameters"]
    for path in weights:
        holder, leaf = _holder(module, path)
        if parametrize.is_parametrized(holder, leaf):
            parametrize.remove_parametrizations(holder, leaf, leave_parametrized=True)
    paths = {w.name: p for p, w in weights.items()}
    with torch.no_grad():
        for scale, data, weight in _biases(model, paths):
            _get(module, scale).copy_(_get(module, data) * _get(module, weight))


def _symmetric(module: Any, grid: Any) -> bool:
    """Whether the grid of a weight has as many steps below zero as above, but for one."""
    if grid.dtype is ir.DataType.INT8:
        return True
    if grid.dtype is not ir.DataType.UINT8 or grid.zero is None:
        return False
    return bool((_get(module, grid.zero) == 128).all())


def _top(module: Any, path: str, grid: Any) -> int:
    """The largest integer of a weight's grid: 63 if it was given 7 bits."""
    held = _get(module, path).detach() / grid.over(_get(module, grid.scale).detach())
    return 63 if float(held.abs().max()) < 64.5 else 127


def _biases(model: ir.Model, paths: dict[str, str]) -> list[tuple[str, str, str]]:
    """Of every bias of 32 bits: the paths of its scale, and of its data's and its weight's."""
    found = []
    for node in model.graph:
        q = constant_value(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        uses = list(node.outputs[0].uses()) if q is not None else []
        if q is None or q.dtype is not ir.DataType.INT32 or len(uses) != 1:
            continue
        pairs = [v.producer() for v in uses[0].node.inputs[:2] if v is not None]
        scales = [p.inputs[1] for p in pairs if p is not None and len(p.inputs) > 1]
        names = [v.name or "" for v in (node.inputs[1], *scales) if v is not None]
        if len(names) == 3 and all(n in paths for n in names):
            found.append((paths[names[0]], paths[names[1]], paths[names[2]]))
    return found


def _holder(module: Any, path: str) -> tuple[Any, str]:
    *folders, leaf = path.split(".")
    for folder in folders:
        module = module._modules[folder]
    return module, leaf


def _get(module: Any, path: str) -> Any:
    holder, leaf = _holder(module, path)
    return getattr(holder, leaf)
