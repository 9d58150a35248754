"""Training: one loop for distillation and for quantization-aware training.

The loop knows no teacher and no graph: it is given a module, batches and a loss, and brings to them
a warm-up and a cosine decay of the learning rate, early stopping on held-out batches, checkpoints
that continue to the same result, mixed precision, and several processes.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphopt.context import Context
from graphopt.training.batches import Batch, Batches, Loss
from graphopt.training.checkpoint import Checkpoint
from graphopt.training.processes import Group
from graphopt.training.schedule import Plan, TrainReport

if TYPE_CHECKING:
    import torch

__all__ = ["train"]

#: Longest gradient (L2 over all weights) that a step takes; a longer one is scaled down.
CLIP = 1.0
#: A matrix with at least this share of exact zeros is sparse: its zeros stay.
SPARSE = 0.1


def train(
    student: torch.nn.Module, batches: Batches, loss: Loss, plan: Plan, ctx: Context
) -> TrainReport:
    """Train the parameters of `student` that require gradients, in place; the best weights stay.

    Held-out batches decide: if no epoch is better than the weights given, those are put back.
    Exact zeros of sparse matrices stay zero. On CUDA, and on processors with units for products of
    bfloat16, the forward pass is bfloat16 (weights and held-out losses are float32). Started by
    torchrun, each process takes its share of every step and gradients are averaged: the result is
    that of one process, up to rounding.

    Args:
        student: takes a batch's inputs, gives a tuple of outputs.
        batches: what to train on and what to judge by.
        loss: the mean over a batch's rows.
        plan: epochs, learning rate and the rest.
        ctx: its seed and its progress are used.
    """
    with Group() as group:
        return _Training(student, batches, loss, plan, ctx, group).run()


def half_precision(device: torch.device) -> bool:
    """Whether the forward pass gains from bfloat16 here.

    AVX512-BF16 without AMX does not count: torch's products take twice as long there as in float32,
    steps of whole models 1.2 to 1.6 times (bench/results/recover.md).
    """
    import torch

    from graphopt.deploy.processors import extensions

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool({"amx-bf16", "bf16"} & set(extensions()))


class _Training:
    """One training: what changes from step to step."""

    def __init__(
        self,
        student: torch.nn.Module,
        batches: Batches,
        loss: Loss,
        plan: Plan,
        ctx: Context,
        group: Group,
    ) -> None:
        import torch

        self.student, self.batches, self.loss = student, batches, loss
        self.plan, self.ctx, self.group = plan, ctx, group
        named = {n: p for n, p in student.named_parameters() if p.requires_grad}
        self.weights: dict[str, torch.nn.Parameter] = named
        for weight in named.values():
            weight.data = _laid_out(weight.data)
        self.device = next((p.device for p in named.values()), torch.device("cpu"))
        self.half = half_precision(self.device)
        self.masks = {n: (p != 0) for n, p in named.items() if _sparse(p)}
        matrices = [p for p in named.values() if p.ndim > 1]
        vectors = [p for p in named.values() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": plan.decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=plan.lr,
        )
        self.total = max(1, plan.epochs * batches.steps)
        self.epoch = self.step = self.best_epoch = 0
        self.before = self.best_loss = math.inf
        self.best: dict[str, torch.Tensor] = {}
        self.history: list[float] = []
        self.stopped = ""
        self.spent = 0.0

    def run(self) -> TrainReport:
        import torch

        plan = self.plan
        self.began = self.saved = time.perf_counter()
        store = Checkpoint(plan.checkpoint, plan.key) if plan.checkpoint else None
        state = store.read() if store else None
        torch.manual_seed(self.ctx.seed)
        if state is not None:
            self._restore(state)
        else:
            self.group.same(self.weights.values())
            self.before = self.best_loss = self._held_loss()
            self._keep_best()
            self._track("held_out_loss", self.before)
            if not math.isfinite(self.before):
                self.stopped = "the held-out loss is not finite"
        if not self.weights:
            self.stopped = "there are no weights to train"
        while not self.stopped:
            self._run_epoch(store)
            self._judge()
            self._save(store)
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.data = self.best[name].contiguous()
        return TrainReport(
            self.epoch,
            self.step,
            self.before,
            self.best_loss,
            self.stopped,
            self._seconds(),
            tuple(self.history),
        )

    def _run_epoch(self, store: Checkpoint | None) -> None:
        """The rest of the epoch that is under way."""
        plan, steps = self.plan, self.batches.steps
        first = self.step - self.epoch * steps
        smooth = math.nan
        for k, batches in enumerate(self.batches.epoch(self.epoch, self.group.share)):
            if k >= steps:
                break
            if k < first:
                continue
            for part in self.optimizer.param_groups:
                part["lr"] = self._rate()
            value = self._take_step(batches)
            if not math.isfinite(value):
                self.stopped = f"the loss became {value}"
                return
            self._track("loss", value)
            self._track("learning_rate", self._rate())
            self.step += 1
            smooth = value if math.isnan(smooth) else 0.95 * smooth + 0.05 * value
            text = f"{plan.text}: epoch {self.epoch + 1}/{plan.epochs}, loss {smooth:.4g}"
            self.ctx.progress(text, self.step, self.total)
            if time.perf_counter() - self.saved >= plan.every:
                self._save(store)
        self.epoch += 1
        self.step = self.epoch * steps

    def _take_step(self, batches: Sequence[Batch]) -> float:
        """One step of the optimizer on all of `batches`; the mean loss before it."""
        import torch

        self.optimizer.zero_grad(set_to_none=True)
        rows = self.group.sum(float(sum(b.rows for b in batches)))
        total = 0.0
        for batch in batches:
            value = self._loss(batch, self.half) * (batch.rows / rows)
            if value.requires_grad:
                value.backward()
            total += float(value.detach())
        weights = list(self.weights.values())
        self.group.add_gradients(weights)
        for name, mask in self.masks.items():
            gradient = self.weights[name].grad
            if gradient is not None:
                gradient.mul_(mask)
        total = self.group.sum(total)
        if math.isfinite(total):
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            self.optimizer.step()
        return total

    def _loss(self, batch: Batch, half: bool) -> torch.Tensor:
        import torch

        inputs = tuple(_laid_out(x.to(self.device)) for x in batch.inputs)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            outputs = self.student(*inputs)
        value: torch.Tensor = self.loss(tuple(outputs), _moved(batch, self.device))
        return value

    def _held_loss(self) -> float:
        """The mean loss over all held-out rows, in float32."""
        import torch

        total = rows = 0.0
        self.ctx.progress(f"{self.plan.text}: held-out samples", self.step, self.total)
        with torch.no_grad():
            for batch in self.batches.held(self.group.share):
                total += float(self._loss(batch, False)) * batch.rows
                rows += batch.rows
        rows = self.group.sum(rows)
        return self.group.sum(total) / rows if rows else math.nan

    def _judge(self) -> None:
        """Compare the epoch's weights with the best, and say whether to go on."""
        if self.stopped:
            return
        value = self._held_loss()
        self.history.append(value)
        self._track("held_out_loss", value)
        if value < self.best_loss:
            self.best_loss, self.best_epoch = value, self.epoch
            self._keep_best()
        since = self.epoch - self.best_epoch
        if self.epoch >= self.plan.epochs:
            self.stopped = "all epochs done"
        elif since >= self.plan.patience:
            self.stopped = f"no better for {since} epochs"

    def _rate(self) -> float:
        """Linear warm-up, then lr (1 + cos(pi t)) / 2 (Loshchilov and Hutter, ICLR 2017)."""
        warm = max(1, round(self.plan.warmup * self.total))
        if self.step < warm:
            return self.plan.lr * (self.step + 1) / warm
        done = (self.step - warm) / max(1, self.total - warm)
        return self.plan.lr * 0.5 * (1 + math.cos(math.pi * done))

    def _keep_best(self) -> None:
        self.best = {n: p.detach().clone() for n, p in self.weights.items()}

    def _track(self, name: str, value: float) -> None:
        if self.group.first:
            self.ctx.scalar(f"{self.plan.text}/{name}", value, self.step)

    def _seconds(self) -> float:
        return self.spent + time.perf_counter() - self.began

    def _save(self, store: Checkpoint | None) -> None:
        self.saved = time.perf_counter()
        if store is None or not self.group.first:
            return
        store.write(
            {
                "epoch": self.epoch,
                "step": self.step,
                "weights": {n: p.detach() for n, p in self.weights.items()},
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
                "best_epoch": self.best_epoch,
                "before": self.before,
                "best_loss": self.best_loss,
                "history": self.history,
                "stopped": self.stopped,
                "seconds": self._seconds(),
            }
        )

    def _restore(self, state: dict[str, Any]) -> None:
        import torch

        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = {n: t.to(self.device) for n, t in state["best"].items()}
        self.epoch, self.step = state["epoch"], state["step"]
        self.best_epoch = state["best_epoch"]
        self.before, self.best_loss = state["before"], state["best_loss"]
        self.history, self.stopped = list(state["history"]), state["stopped"]
        self.spent = state["seconds"]


def _sparse(weight: torch.Tensor) -> bool:
    return weight.ndim > 1 and float((weight == 0).float().mean()) >= SPARSE


def _laid_out(x: torch.Tensor) -> torch.Tensor:
    """Images with their channels last, which convolutions are faster on."""
    import torch

    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _moved(batch: Batch, device: torch.device) -> Batch:
    label = None if batch.label is None else batch.label.to(device)
    return dataclasses.replace(
        batch, targets=tuple(t.to(device) for t in batch.targets), label=label
    )
