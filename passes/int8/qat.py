"""Quantization-aware training: scales and weights of the integer model, taught by the float model.

The weights begin as the floats they were before rounding. Fake quantization, the training loop, the
samples and the losses are those of distillation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.limits import meets_budget
from graphopt.passes.int8.mixed_precision import choose
from graphopt.passes.int8.plan import Choice, Quantize
from graphopt.passes.int8.plan import Plan as IntegerPlan

from graphopt.context import Context
from graphopt.errors import MissingExtra, SamplesError
from graphopt.execution.trainable import trainable, write_back
from graphopt.graph.constants import constant_value
from graphopt.samples.inputs import inputs_of
from graphopt.training.examples import Examples
from graphopt.training.fake_quantization import fake_quantized, settle
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


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training found.

    Attributes:
        module: the integer model as a module, trained.
        report: how training went.
    """

    module: torch.nn.Module
    report: TrainReport

    def put(self, integer: ir.Model, float_: ir.Model, ctx: Context) -> None:
        """Write scales, weights and biases into `integer`, which was made of `float_`.

        If other nodes became integer than in training, what is there is trained anew.
        """
        names = {w.name for w in self.module.meta["graphopt.parameters"].values()}
        trained = self
        if not names <= set(integer.graph.initializers) | _constants(integer):
            trained = train_integers(integer, float_, ctx)
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
) -> tuple[Choice, Trained]:
    """What becomes of single nodes, and the training of those that are integers.

    All of `draft` but what is slow is trained first. Only if that misses the budget, nodes go back
    to float as they would without training, and the rest is trained.
    """

    def attempt(choice: Choice) -> tuple[Trained, ir.Model]:
        integer = model.clone()
        quantize(integer, choice)
        trained = train_integers(integer, model, ctx)
        trained.put(integer, model, ctx)
        return trained, integer

    choice = Choice(slow)
    trained, integer = attempt(choice)
    if not meets_budget(model, integer, ctx):
        choice = choose(model, ctx, draft, slow, quantize)
        if choice != Choice(slow):
            trained, _ = attempt(choice)
    return choice, trained


def why_not(ctx: Context) -> str:
    """Why nothing can be trained, or "". Raises MissingExtra if torch is not installed."""
    if find_spec("torch") is None:
        raise MissingExtra("torch", "int8(qat=True)")
    if ctx.samples is None or ctx.samples.synthetic:
        return "qat=True trains on samples, and there are none: give unlabelled ones with --samples"
    return ""


def train_integers(integer: ir.Model, float_: ir.Model, ctx: Context) -> Trained:
    """Train `integer`, which was made of `float_`, on the outputs of the model the run began with.

    Args:
        integer: with Q/DQ or dynamic operators; not changed.
        float_: the model before insertion: its weights are where training starts.
        ctx: samples, seed, progress and the source.

    Raises:
        SamplesError: there is one sample alone, or no output to learn from.
    """
    module = trainable(integer)
    _start(module, float_)
    student = fake_quantized(module, integer).to(device_of())
    source = ctx.source or float_
    with open_teacher(source, []) as teacher:
        batches = Examples.of(ctx, inputs_of(source), student, teacher, size=BATCH)
        outputs = kinds_of(batches.targets(), "auto")
        reason = untrainable(batches, outputs)
        if reason:
            raise SamplesError(f"int8(qat=True): {reason}")
        epochs = max(EPOCHS, math.ceil(STEPS / batches.steps))
        plan = Plan(epochs=epochs, lr=LR, patience=max(3, epochs // 4), text="qat")
        report = train(student, batches, Criterion(outputs), plan, ctx)
    settle(module.cpu(), integer)
    ctx.note(f"qat: {report}")
    return Trained(module, report)


def _start(module: torch.nn.Module, float_: ir.Model) -> None:
    """Weights begin as the floats that were rounded, where those can be told."""
    import torch

    floats = float_.graph.initializers
    for path, weight in module.meta["graphopt.parameters"].items():
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
