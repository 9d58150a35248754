"""Recovery: rounded weights trained, on the grid they are stored on, until outputs are as before.

Quantization-aware training from the integers that rounding chose: every run rounds the weights to
their steps, gradients pass straight through (Bengio et al., 2013), and zeros stay zero, so that
what is learned takes no more bytes. The targets are the original's outputs: no labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.context import Context, Progress
from graphopt.execution.trainable import trainable
from graphopt.packing.rounding import Layer
from graphopt.samples import Samples
from graphopt.samples.inputs import inputs_of
from graphopt.training.examples import Examples
from graphopt.training.loop import train
from graphopt.training.losses import Criterion, kinds_of, untrainable
from graphopt.training.processes import device_of
from graphopt.training.schedule import Plan
from graphopt.training.teacher import open_teacher

if TYPE_CHECKING:
    import torch

__all__ = ["Recovery"]

Array = np.ndarray[Any, Any]

#: Of one trial: least number of updates, rows of each, and the highest learning rate in steps of
#: the grid, which is one for weights of every size.
UPDATES, BATCH, RATE = 300, 64, 0.015


class Recovery:
    """Trains the rounded layers of one model; nothing else of it changes.

    Args:
        source: the original, whose outputs are learned.
        model: what is packed: the original, or what passes made of it.
        layers: of `model`, as they are rounded.
        samples: unlabelled; a tenth is held out.
        seed: of the order of the samples.
        progress: called with (text, done, total).

    Raises:
        MissingExtra: torch is not installed.
        ModelError: the model has operators that cannot be trained.
    """

    def __init__(
        self,
        source: ir.Model,
        model: ir.Model,
        layers: Sequence[Layer],
        samples: Samples,
        seed: int,
        progress: Progress,
    ) -> None:
        from torch.nn.utils import parametrize

        self.ctx = Context(model, samples=samples, seed=seed, progress=progress)
        self.module = trainable(model).to(device_of())
        self.module.requires_grad_(False)
        paths = {w.name: p for p, w in self.module.meta["graphopt.parameters"].items()}
        self.held: list[tuple[Any, torch.nn.Parameter] | None] = []
        for one in layers:
            holder, _, leaf = paths.get(one.name, "").rpartition(".")
            owner = self.module.get_submodule(holder) if leaf else None
            if owner is None or parametrize.is_parametrized(owner, leaf):
                self.held.append(None)  # it shares its numbers with another layer
                continue
            grid = _grid()
            parametrize.register_parametrization(owner, leaf, grid)
            weight = owner.parametrizations[leaf].original
            self.held.append((grid, weight.requires_grad_()))
        self.layers = list(layers)
        with open_teacher(source, []) as teacher:
            self.examples = Examples.of(
                self.ctx, inputs_of(source), self.module, teacher, size=BATCH
            )
        outputs = kinds_of(self.examples.targets(), "auto")
        self.loss = Criterion(outputs)
        #: Why there is nothing to learn from, or "".
        self.unable = untrainable(self.examples, outputs)

    def trained(self, found: Sequence[Array], step: float) -> list[Array]:
        """The integers of each layer [rows, columns] after training from `found`, at one step."""
        import torch

        if self.unable:
            return list(found)
        for one, q, held in zip(self.layers, found, self.held, strict=True):
            if held is None:
                continue
            grid, weight = held
            steps = one.stored(one.steps * step)
            with torch.no_grad():
                grid.steps = torch.from_numpy(steps.astype(np.float32)).to(weight.device)
                weight.copy_(torch.from_numpy(one.stored(q)))
        epochs = math.ceil(UPDATES / self.examples.steps)
        plan = Plan(epochs=epochs, lr=RATE, patience=epochs, text="recovering")
        train(self.module, self.examples, self.loss, plan, self.ctx)
        return [
            q if held is None else one.unstored(held[1].detach().round().cpu().numpy())
            for one, q, held in zip(self.layers, found, self.held, strict=True)
        ]


def _grid() -> Any:
    """A parametrization: a weight in units of its steps, rounded on every run."""
    import torch

    class Grid(torch.nn.Module):  # type: ignore[misc]
        steps = torch.ones(())

        def forward(self, x: Any) -> Any:
            return (x + (x.round() - x).detach()) * self.steps

    return Grid()
