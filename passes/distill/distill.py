"""Distill: train what is left of a model until its outputs are those of the original again.

The loop, the losses and the samples (or a loader of the user's own) are those of
`graphopt.training`, as in quantization-aware training; `features` finds intermediate tensors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir
from graphopt.passes.distill.blocks import train_blocks
from graphopt.passes.distill.features import Feature, shared_features
from graphopt.passes.distill.writing import write

from graphopt.analyses.cost import cost
from graphopt.calibration.padding import Padding, padding_of
from graphopt.context import Context
from graphopt.errors import MissingExtra, ModelError
from graphopt.execution.observe import with_outputs
from graphopt.execution.trainable import trainable
from graphopt.formats import load
from graphopt.graph.constants import QUANTIZATION
from graphopt.pass_ import Pass
from graphopt.rewriting.merging import merge
from graphopt.samples.inputs import inputs_of
from graphopt.samples.rows import first_runs
from graphopt.training.examples import Examples
from graphopt.training.fake_quantization import fake_quantized, settle
from graphopt.training.loader import Loader, Stream
from graphopt.training.loop import train
from graphopt.training.losses import Criterion, counted, kinds_of, untrainable
from graphopt.training.mixing import continuous
from graphopt.training.processes import device_of
from graphopt.training.schedule import Plan
from graphopt.training.teacher import open_teacher

if TYPE_CHECKING:
    import torch

__all__ = ["Distill"]

#: Rows that parts of the model are trained on, at most, before the whole is on all; bytes that one
#: of their values may take for all of these, on disk.
FEW, ROOM = 2048, 2 << 30


@dataclasses.dataclass(frozen=True)
class Distill(Pass):
    """Train the weights that are left until the outputs are the original's again.

    Nothing but unlabelled samples is needed; the original is the model the run started from.
    Structure stays: shapes, factors, zeros of sparse matrices, integers (trained through fake
    quantization). A tenth of the samples (512 at most) is held out, and the best weights by them
    are kept: the model as it was, if none are better. Rows of float inputs are mixed in pairs, and
    the original answers the mixtures. Part after part learns the original's
    intermediate values, on the first 2,048 rows, before the whole does its outputs.

    Attributes:
        epochs: passes over the samples.
        lr: highest learning rate (AdamW), reached after a warm-up; falls as a cosine to 0.
        loss: "kl" (class scores, temperature 2), "mse" (over the variance of each output),
            "features" (intermediate tensors beside the outputs); "auto" is "kl" for outputs that
            are class probabilities, "mse" for others.
        batch: rows of a step.
        data: `file.py:function`, a function that gives an iterable of batches, instead of the
            samples: dicts of arrays by input name and maybe "label", or tuples of inputs and maybe
            labels. It is called every epoch.
        labels: weight of the labels' loss where there are labels, in [0, 1].
        checkpoint: a folder, of this step alone, for what is needed to go on after an interruption.
        teacher: other models to learn from than the original, paths with commas between: the mean
            of their outputs. They have its inputs and as many outputs.
    """

    lossy = True
    needs = frozenset({"torch"})
    speeds_up = False
    recovers = True

    epochs: int = 3
    lr: float = 5e-4
    loss: Literal["auto", "kl", "mse", "features"] = "auto"
    batch: int = 32
    data: str = ""
    labels: float = 0.5
    checkpoint: str = ""
    teacher: str = ""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise ValueError("epochs and batch are 1 or more")
        if not self.lr > 0:
            raise ValueError(f"lr is above 0, not {self.lr}")
        if not 0 <= self.labels <= 1:
            raise ValueError(f"labels is a weight in [0, 1], not {self.labels}")

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Train the weights on the outputs of the source; the number of tensors changed."""
        reason = _unable(self, ctx)
        if reason:
            ctx.refuse(self, "model", reason)
            return 0
        source = self._source(ctx) or ctx.source or model.clone()
        reason = _unlike(source, model)
        if reason:
            ctx.refuse(self, "model", reason)
            return 0
        if not ctx.edit(self, "weights"):
            return 0
        padding = None if self.data else padding_of(model, ctx.samples or (), ctx)
        blocks = self._blocks(source, model, padding, ctx)
        features = self._features(source, model, padding, ctx)
        try:
            seen = with_outputs(model, [f.ours for f in features])
            module = trainable(seen).to(device_of())
        except ModelError as error:
            ctx.refuse(self, "model", str(error))
            return 0
        if any(p.element_size() < 4 for p in module.parameters()):
            ctx.refuse(self, "model", "its weights are 16-bit floats: put distill before fp16")
            return 0
        student = fake_quantized(module, seen)
        with self._batches(source, student, features, padding, ctx) as batches:
            values = [v.name or "" for v in model.graph.outputs] + [f.ours for f in features]
            if isinstance(batches, Stream):
                padding = padding_of(model, _held(model, batches), ctx)
            masks = _masks(model, padding, values)
            held = (
                [counted(t, t, m, b)[0].numpy() for t, m in zip(b.targets, masks, strict=True)]
                for b in batches.held((0, 1))
            )
            outputs = kinds_of((t[: len(model.graph.outputs)] for t in held), self.loss)
            reason = untrainable(batches, outputs)
            if reason:
                ctx.refuse(self, "model", reason)
                return 0
            outputs = [dataclasses.replace(o, mask=m) for o, m in zip(outputs, masks, strict=False)]
            hints = [
                (f.variance, f.kept, m)
                for f, m in zip(features, masks[len(outputs) :], strict=True)
            ]
            criterion = Criterion(outputs, hints, self.labels)
            plan = Plan(
                epochs=self.epochs,
                lr=self.lr,
                patience=self.epochs,  # the loss may rise, and falls when the rate does
                checkpoint=Path(self.checkpoint, "distill.pt") if self.checkpoint else None,
                key=_key(self, student, batches, ctx),
                text="distill",
            )
            report = train(student, batches, criterion, plan, ctx)
        ctx.note(f"distill: {report}")
        settle(module.cpu(), seen)
        return write(module, model, ctx) if report.improved else blocks

    def _blocks(
        self, source: ir.Model, model: ir.Model, padding: Padding | None, ctx: Context
    ) -> int:
        """Part by part first, on the first samples; how many parts changed."""
        quantized = any(node.op_type in QUANTIZATION for node in model.graph)
        if self.data or quantized or ctx.samples is None:
            return 0
        bound = max((form[0] for form in ctx.shapes.values() if form), default=1)
        row = ctx.get(cost).peak_activation_bytes / max(bound, 1)
        samples = first_runs(model, ctx.samples, max(1, min(FEW, int(ROOM / max(row, 1)))))
        if padding is not None:
            padding = padding_of(model, samples, ctx)
        done = train_blocks(source, model, samples, padding, ctx, batch=self.batch)
        if done:
            ctx.note(f"distill: {done} parts of the model first, each on the original's values")
        return done

    def _source(self, ctx: Context) -> ir.Model | None:
        """The models to learn from as one; None: the original."""
        if not self.teacher:
            return None
        paths = [path.strip() for path in self.teacher.split(",")]
        models = [load(path) for path in paths]
        ctx.note(f"distill: taught by {', '.join(paths)}")
        return models[0] if len(models) == 1 else merge(models, "mean")

    def _features(
        self, source: ir.Model, model: ir.Model, padding: Padding | None, ctx: Context
    ) -> list[Feature]:
        if self.loss != "features":
            return []
        assert ctx.samples is not None
        found = shared_features(source, model, next(iter(ctx.samples)), padding)
        if not found:
            ctx.note(
                "no intermediate tensor is shared with the original: outputs alone are matched"
            )
        return found

    @contextlib.contextmanager
    def _batches(
        self,
        source: ir.Model,
        student: Any,
        features: Sequence[Feature],
        padding: Padding | None,
        ctx: Context,
    ) -> Iterator[Examples | Stream]:
        """What to train on: the samples with the original's outputs, or the user's loader."""
        inputs = inputs_of(source)
        with open_teacher(source, [f.theirs for f in features]) as teacher:
            if self.data:
                yield Stream(Loader.open(self.data, inputs), teacher)
                return
            yield Examples.of(
                ctx,
                inputs,
                student,
                teacher,
                size=self.batch,
                large=bool(features),  # intermediate tensors are
                mix=padding is None and continuous(source),
            )


def _held(model: ir.Model, batches: Stream) -> list[dict[str, Any]]:
    """The loader's runs that are held out, as samples."""
    names = [i.name for i in inputs_of(model)]
    return [
        dict(zip(names, (x.numpy() for x in batch.inputs), strict=True))
        for batch in batches.held((0, 1))
    ]


def _masks(model: ir.Model, padding: Padding | None, values: Sequence[str]) -> list[int | None]:
    """For each value, which input masks the tokens that its rows [..., channels] are of."""
    if padding is None:
        return [None] * len(values)
    mask = [i.name for i in inputs_of(model)].index(padding.mask)
    return [mask if padding.by_token(name) else None for name in values]


def _unlike(teacher: ir.Model, model: ir.Model) -> str:
    """Why a model cannot be taught by `teacher`, or ""."""
    theirs, ours = ([i.name for i in inputs_of(m)] for m in (teacher, model))
    if theirs != ours:
        return f"the teacher takes {', '.join(theirs)}, the model {', '.join(ours)}"
    counts = [len(m.graph.outputs) for m in (teacher, model)]
    if counts[0] != counts[1]:
        return f"the teacher has {counts[0]} outputs, the model {counts[1]}"
    return ""


def _unable(one: Distill, ctx: Context) -> str:
    """Why there can be no training, or ""."""
    if find_spec("torch") is None:
        raise MissingExtra("torch", "distill")
    real = ctx.samples is not None and not ctx.samples.synthetic
    if not real and not one.data:
        return (
            "it trains on samples, and there are none: give unlabelled ones with --samples, or a "
            "loader with data='file.py:function'"
        )
    if not real and one.loss == "features":
        return "loss='features' looks at a sample first: give --samples too"
    return ""


def _key(one: Distill, student: torch.nn.Module, batches: Any, ctx: Context) -> str:
    """What a training depends on: options, seed, weights to start from, samples and outputs."""
    seen = hashlib.sha256(str(dataclasses.replace(one, checkpoint="")).encode())
    seen.update(f"{ctx.seed}|{batches.steps}".encode())
    for name, weight in student.named_parameters():
        seen.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
    if isinstance(batches, Examples):
        seen.update(batches.store.digest().encode())
    return seen.hexdigest()
