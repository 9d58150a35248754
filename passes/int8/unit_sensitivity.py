"""Sensitivity of units: how far each, changed alone, moves the model towards its limits.

By the guard's own measure where a guard judges (`graphopt.verification.strain`), else by the
squared error of the outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from itertools import islice
from typing import Any

import onnx_ir as ir
from graphopt.passes.int8.plan import FOLDS, Choice, Plan, Quantize

from graphopt.analyses.cost import cost
from graphopt.calibration.sensitivity import sensitivities
from graphopt.context import Context
from graphopt.graph.traverse import all_nodes
from graphopt.samples.inputs import inputs_of

__all__ = [
    "Unit",
    "folds",
    "folds_of",
    "measured_on",
    "movements",
    "unit_sensitivities",
    "units_of",
]

#: Nodes that become integer together, by name.
Unit = tuple[str, ...]
#: Runs of single units, at least and at most, and multiply-accumulates that they may take where a
#: guard measures them. Where these many runs take more, some rows of each, so many in all at least.
UNIT_RUNS, MOST, UNIT_MACS, UNIT_ROWS = 2, 16, 2e9, 4
#: Runs of samples from which on ranges are judged on those they do not know.
ENOUGH = 8


def unit_sensitivities(
    model: ir.Model, ctx: Context, plan: Plan, quantize: Quantize, start: Choice
) -> dict[Unit, float]:
    """How far each unit of `plan`, made integer alone, moves the model towards its limits.

    What `start` leaves in float stays there, and it says how the rest is rounded.
    """
    slow = start.left
    every = {n.name: "another unit" for n in plan.modes() if n.name}
    bits = {n.name: 0 for n in all_nodes(model.graph) if n.name}
    units = [tuple(n.name for n in u if n.name and n.name not in slow) for u in units_of(plan)]

    def alone(names: Unit) -> Choice:
        others = {n: why for n, why in every.items() if n not in names}
        return dataclasses.replace(start, left={**others, **slow}, bits=bits)

    return movements(model, ctx, [u for u in units if u], alone, quantize)


def movements(
    model: ir.Model,
    ctx: Context,
    units: Collection[Unit],
    alone: Callable[[Unit], Choice],
    quantize: Quantize,
) -> dict[Unit, float]:
    """How far the model with each unit `alone` changed is towards the limits."""
    assert ctx.samples is not None
    runs, rows = measured_on(ctx)
    tracked = ctx.track(units, len(units), "measuring the error of single layers")
    if ctx.referee is not None:
        strain = ctx.referee.strain
        return {u: strain(folds(model, ctx, alone(u), quantize), runs, rows) for u in tracked}
    probe = list(islice(ctx.samples, runs))

    def made(chosen: Choice) -> ir.Model:
        trial = model.clone()
        quantize(trial, chosen)
        return trial

    return sensitivities(model, probe, ((u, made(alone(u))) for u in tracked))


def folds(model: ir.Model, ctx: Context, chosen: Choice, quantize: Quantize) -> list[ir.Model]:
    """The model made as chosen for each part of the samples, with ranges found without it.

    Of few samples no part can be spared: then there is one, with ranges that know them all.
    """
    parts = range(folds_of(ctx)) or [None]
    made = [model.clone() for _ in parts]
    for part, trial in zip(parts, made, strict=True):
        quantize(trial, chosen, part)
    return made


def folds_of(ctx: Context) -> int:
    """In how many parts a guard judges the samples, each without knowing it; 0: as a whole."""
    return FOLDS if ctx.referee is not None and ctx.referee.runs >= ENOUGH else 0


def measured_on(ctx: Context) -> tuple[int, int]:
    """On how many runs single changes are measured, and how many rows of each (0: all)."""
    if ctx.referee is None:
        return UNIT_RUNS, 0
    rows = ctx.referee.rows
    counted = sum(c.macs or 0 for c in ctx.get(cost).nodes.values())
    macs = max(counted * rows / _rows(ctx) if rows else counted, 1)
    able = int(UNIT_MACS / macs)
    if able >= UNIT_RUNS or rows < 2:
        return min(ctx.referee.runs, MOST, max(UNIT_RUNS, able)), 0
    some = max(UNIT_ROWS, int(UNIT_MACS * rows / macs))
    runs = min(ctx.referee.runs, MOST, some)
    return runs, some // runs


def _rows(ctx: Context) -> int:
    """Of a run at the sizes that work is counted at."""
    shapes = [ctx.shapes.get(i.name) for i in inputs_of(ctx.model) if i.batch is None]
    return max((s[0] for s in shapes if s), default=1)


def units_of(plan: Plan) -> list[list[ir.Node]]:
    """Products that share an activation are one unit; static followers are none."""
    shared: dict[Any, list[ir.Node]] = {}
    for node in plan.dynamic:
        shared.setdefault(node.inputs[0], []).append(node)
    units = [[n] for n, k in plan.nodes.items() if k.weight is not None]
    return [*units, *shared.values(), *([n] for n in (*plan.blocks, *plan.recurrent, *plan.tables))]
