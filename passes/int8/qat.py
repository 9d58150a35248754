"""Quantization-aware training: scales and weights of the integer model, taught by the float model.

Every quantizer is fake quantization with gradients straight through the rounding (LSQ: Esser et
al., ICLR 2020). Trained are the logarithms of the scales, so that a scale stays positive and can
shrink tenfold, and the weights as the floats they were before rounding:

    s = exp(t K)          w in [-top s, top s], rounded on every run

Zero points stay. A bias of 32 bits follows its weights and data at the end: its scale is their
product. The training loop, the samples and the losses are those of distillation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.mixed_precision import float_nodes, meets_budget
from graphopt.passes.int8.plan import Plan as IntegerPlan
from graphopt.passes.int8.plan import Quantize

from graphopt.context import Context
from graphopt.errors import MissingExtra, SamplesError
from graphopt.execution.trainable import trainable, write_back
from graphopt.graph.constants import constant_value
from graphopt.samples.stream import inputs_of
from graphopt.training.examples import Examples, alike_rows, gather, joins
from graphopt.training.loop import train
from graphopt.training.losses import Criterion, kinds_of, untrainable
from graphopt.training.processes import device_of
from graphopt.training.schedule import Plan, TrainReport
from graphopt.training.teacher import open_teacher

if TYPE_CHECKING:
    import torch

__all__ = ["Trained", "train_integers", "trained_within_budget", "why_not"]

#: Highest learning rate of weights; rows of a step; epochs, and the fewest steps in all of them.
LR, BATCH, EPOCHS, STEPS = 3e-4, 64, 2, 300
#: A scale's logarithm moves this many times as fast as a weight.
K = 30.0


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training found.

    Attributes:
        module: the integer model as a module, trained.
        report: how training went.
        bits: of the integer weights.
    """

    module: torch.nn.Module
    report: TrainReport
    bits: int

    def put(self, integer: ir.Model, float_: ir.Model, ctx: Context) -> None:
        """Write scales, weights and biases into `integer`, which was made of `float_`.

        If other nodes became integer than in training, what is there is trained anew.
        """
        names = {w.name for w in self.module.meta["graphopt.parameters"].values()}
        trained = self
        if not names <= set(integer.graph.initializers) | _constants(integer):
            trained = train_integers(integer, float_, ctx, self.bits)
        if trained.report.improved:
            write_back(trained.module, integer)


def _constants(model: ir.Model) -> set[str]:
    return {n.outputs[0].name or "" for n in model.graph if n.op_type == "Constant"}


def trained_within_budget(
    model: ir.Model,
    ctx: Context,
    draft: IntegerPlan,
    slow: Mapping[str, str],
    quantize: Quantize,
    bits: int,
) -> tuple[dict[str, str], Trained]:
    """Nodes to leave in float, and the training of the others.

    All of `draft` but what is slow is trained first. Only if that misses the budget, nodes go back
    to float as they would without training, and the rest is trained.
    """

    def attempt(denied: Mapping[str, str]) -> tuple[Trained, ir.Model]:
        integer = model.clone()
        quantize(integer, denied)
        trained = train_integers(integer, model, ctx, bits)
        trained.put(integer, model, ctx)
        return trained, integer

    denied = dict(slow)
    trained, integer = attempt(denied)
    if not meets_budget(model, integer, ctx):
        back = float_nodes(model, ctx, draft, slow, quantize)
        if back:
            denied |= back
            trained, _ = attempt(denied)
    return denied, trained


def why_not(ctx: Context) -> str:
    """Why nothing can be trained, or "". Raises MissingExtra if torch is not installed."""
    if find_spec("torch") is None:
        raise MissingExtra("torch", "int8(qat=True)")
    if ctx.samples is None or ctx.samples.synthetic:
        return "qat=True trains on samples, and there are none: give unlabelled ones with --samples"
    return ""


def train_integers(integer: ir.Model, float_: ir.Model, ctx: Context, bits: int) -> Trained:
    """Train `integer`, which was made of `float_`, on the outputs of the model the run began with.

    Args:
        integer: with Q/DQ or dynamic operators; not changed.
        float_: the model before insertion: its weights are where training starts.
        ctx: samples, seed, progress and the source.
        bits: of the integer weights.

    Raises:
        SamplesError: there is one sample alone, or no output to learn from.
    """
    assert ctx.samples is not None
    module = trainable(integer)
    weights = module.meta["graphopt.parameters"]
    _start(module, weights, float_)
    steps = [n.inputs[1] for n in integer.graph if n.op_type == "QuantizeLinear"]
    paths = {w.name: p for p, w in weights.items()}
    biases = _biases(integer, paths)
    scales = {paths[v.name] for v in steps if v is not None and v.name in paths}
    fixed = {scale for scale, _ in biases}
    student = _student(module, weights, scales - fixed, 2 ** (bits - 1) - 1)
    for path in fixed:
        _get(module, path).requires_grad_(False)
    source = ctx.source or float_
    names = [i.name for i in inputs_of(source)]
    with open_teacher(source, []) as teacher:
        feeds = ctx.track(ctx.samples, 0, "qat: the float model's outputs")
        store = gather(feeds, names, teacher)
    free = all(i.batch is None for i in inputs_of(source))
    rows = (free or joins(student, store, len(names))) and alike_rows(store)
    batches = Examples(store, len(names), rows=rows, size=BATCH, seed=ctx.seed)
    outputs = kinds_of(batches.targets(), "auto")
    reason = untrainable(batches, outputs)
    if reason:
        raise SamplesError(f"int8(qat=True): {reason}")
    epochs = max(EPOCHS, math.ceil(STEPS / batches.steps))
    plan = Plan(epochs=epochs, lr=LR, patience=max(3, epochs // 4), text="qat")
    report = train(student.to(device_of()), batches, Criterion(outputs), plan, ctx)
    _settle(module.cpu(), weights, biases)
    ctx.note(f"qat: {report}")
    return Trained(module, report, bits)


def _start(module: Any, weights: dict[str, Any], float_: ir.Model) -> None:
    """Weights begin as the floats that were rounded, where those can be told."""
    import torch

    floats = float_.graph.initializers
    for path, weight in weights.items():
        if weight.grid is None or weight.dtype is ir.DataType.INT32:
            continue
        base = weight.name.rsplit("_q", 1)[0]
        tensor = constant_value(floats.get(base))
        held = module.get_parameter(path)
        if tensor is None:
            continue
        step = float(weight.grid.over(module.get_parameter(weight.grid.scale).detach()).max())
        array = tensor.numpy()
        for form in (array, array.T if array.ndim == 2 else array):
            if form.shape != tuple(held.shape):
                continue
            exact = torch.from_numpy(np.array(form, np.float32))
            # half a step from rounding, more for weights that were scaled up to the last integer
            if float((exact - held.detach()).abs().max()) <= 0.51 * step:
                with torch.no_grad():
                    held.copy_(exact)
                break


def _biases(integer: ir.Model, paths: dict[str, str]) -> list[tuple[str, tuple[str, str]]]:
    """Of every bias of 32 bits: the path of its scale, and those of its data's and weight's."""
    found = []
    for node in integer.graph:
        q = constant_value(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        if q is None or q.dtype is not ir.DataType.INT32:
            continue
        (use,) = node.outputs[0].uses()
        pairs = [v.producer() for v in use.node.inputs[:2] if v is not None]
        scales = [p.inputs[1] for p in pairs if p is not None]
        names = [v.name or "" for v in (node.inputs[1], *scales) if v is not None]
        scale, data, weight = (paths[n] for n in names)
        found.append((scale, (data, weight)))
    return found


def _student(module: Any, weights: dict[str, Any], scales: set[str], top: int) -> Any:
    """The module with scales as logarithms, weights within their grid, and float32 throughout."""
    import torch
    from torch.nn.utils import parametrize

    class Positive(torch.nn.Module):  # type: ignore[misc]
        def forward(self, t: Any) -> Any:
            return torch.exp(t * K)

        def right_inverse(self, s: Any) -> Any:
            return torch.log(s) / K

    class Within(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, grid: Any) -> None:
            super().__init__()
            self.grid = grid

        def forward(self, w: Any) -> Any:
            limit = self.grid.over(_get(module, self.grid.scale)) * (top + 0.49)
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

    grids = {p: w.grid for p, w in weights.items() if w.grid is not None}
    inner = {g.scale for g in grids.values() if g.dtype is not ir.DataType.INT32}
    for path in sorted(scales | inner):
        parametrize.register_parametrization(*_holder(module, path), Positive())
    for path, grid in grids.items():
        if grid.dtype is ir.DataType.INT8:
            parametrize.register_parametrization(*_holder(module, path), Within(grid))
    return Float32()


def _settle(
    module: Any, weights: dict[str, Any], biases: list[tuple[str, tuple[str, str]]]
) -> None:
    """Plain parameters again; the scale of a bias is that of its data times that of its weight."""
    import torch
    from torch.nn.utils import parametrize

    for path in weights:
        holder, leaf = _holder(module, path)
        if parametrize.is_parametrized(holder, leaf):
            parametrize.remove_parametrizations(holder, leaf, leave_parametrized=True)
    with torch.no_grad():
        for scale, (data, weight) in biases:
            _get(module, scale).copy_(_get(module, data) * _get(module, weight))


def _holder(module: Any, path: str) -> tuple[Any, str]:
    *folders, leaf = path.split(".")
    for folder in folders:
        module = module._modules[folder]
    return module, leaf


def _get(module: Any, path: str) -> Any:
    holder, leaf = _holder(module, path)
    return getattr(holder, leaf)
