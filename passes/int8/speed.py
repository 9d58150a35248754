"""Measured gains: integer nodes are timed beside what they replace, and losers stay float.

Products and LSTMs are cut out and timed alone, once for each kind (operator and shapes): they are
many and alike, and what was found is remembered (`gains`). What is static hangs together, so it is
timed inside the model: first all of it, then without one class of nodes after the other (depthwise
convolutions, sums, ...), keeping what is faster. So are lookups: alone, integer rows always take
longer than a copy, but few microseconds of a model weigh little beside three quarters of a table.
The decisions go into the recipe; a replay repeats them and times nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.dynamic import addend_after
from graphopt.passes.int8.operators import describe
from graphopt.passes.int8.plan import CORE, POOLS, Plan, Quantize
from graphopt.passes.int8.speed_cache import Gains
from graphopt.passes.int8.weights import weight_of

from graphopt.analyses.shapes.analysis import bound_shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.backend import Backend, Timing, backend_of
from graphopt.context import Context
from graphopt.samples import bind_shapes, synthetic

__all__ = ["FACT", "slower_nodes"]

#: The name of the decisions in the recipe.
FACT = "int8.float"
#: Shares of the time for one comparison that a timed pair gets: cut out, and inside the model.
ALONE, INSIDE = 0.06, 0.3
#: A class of nodes is taken back for a gain above this; lookups, which save bytes, for more.
GAIN, LOOKUPS_GAIN = 0.99, 0.95
LOOKUPS = "lookups"
SLOWER = "integers are slower there than float"


def slower_nodes(model: ir.Model, ctx: Context, plan: Plan, quantize: Quantize) -> dict[str, str]:
    """Nodes of `plan` to leave in float, by name, and why. `model` is not changed."""
    if FACT in ctx.facts:
        return dict.fromkeys(ctx.facts[FACT], SLOWER)
    backend = backend_of(ctx.target) if ctx.target.measured else None
    if backend is None or not len(plan):
        return {}
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        found = _Trials(model, ctx, plan, quantize, backend, Path(folder)).run()
    ctx.facts[FACT] = sorted(found)
    return found


class _Trials:
    def __init__(
        self,
        model: ir.Model,
        ctx: Context,
        plan: Plan,
        quantize: Quantize,
        backend: Backend,
        folder: Path,
    ) -> None:
        self.model, self.ctx, self.plan, self.quantize = model, ctx, plan, quantize
        self.backend, self.folder = backend, folder
        self.bound, _ = bind_shapes(model, ctx.shapes)
        self.shapes: Shapes = bound_shapes(model, self.bound)
        self.feeds = next(iter(synthetic(model, seed=ctx.seed, shapes=self.bound)))
        self.count = 0
        self.slow: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        """Products first, then classes of nodes, then all against the float model."""
        units = _units(self.plan)
        gains = Gains(self.ctx.target)
        text = "timing integer products"
        for key, nodes, cut in self.ctx.track(units, len(units), text):
            signature = " ".join((key, *(self._signature(n) for n in nodes)))
            ratio = gains.get(signature)
            if ratio is None:
                ratio = self._alone(nodes, cut)
                if ratio is not None:
                    gains.put(signature, ratio)
            if ratio is not None and ratio > 1:
                self._drop(nodes)
        gains.save()
        if self.plan.nodes or self.plan.tables:
            self._by_class()
        elif len(self.slow) < len(self.plan):
            self._whole()
        return self.slow

    def _drop(self, nodes: Iterable[ir.Node]) -> None:
        self.slow.update((n.name, SLOWER) for n in nodes if n.name)

    # --- cut out ----------------------------------------------------------------------------

    def _signature(self, node: ir.Node) -> str:
        shapes = [self.shapes.static(v) if v is not None else None for v in node.inputs]
        return f"{node.op_type} {' '.join(str(list(s)) if s else '?' for s in shapes)}"

    def _alone(self, nodes: list[ir.Node], cut: list[ir.Value]) -> float | None:
        """Time as integers over time as floats of these nodes alone, above 1 only if it surely is.

        None if they can't be cut out: then the whole model decides.
        """
        given = {
            v
            for n in nodes
            for v in n.inputs
            if v is not None and weight_of(v) is None and v.producer() not in nodes
        }
        feeds = {}
        for value in given:
            shape, dtype = self.shapes.static(value), self.shapes.dtype(value)
            if shape is None or dtype is None or not value.name:
                return None
            feeds[value.name] = _fill(shape, dtype.numpy())
        inside = self.model.clone()
        graph = ir.convenience.extract(inside.graph, sorted(feeds), [v.name or "" for v in cut])
        for value in graph.inputs:
            value.shape = ir.Shape(feeds[value.name or ""].shape)
            value.dtype = ir.DataType.from_numpy(feeds[value.name or ""].dtype)
        alone = ir.Model(graph, ir_version=self.model.ir_version)
        alone.graph.opset_imports.update(self.model.graph.opset_imports)
        integer = alone.clone()
        if not len(self.quantize(integer, {})):
            return None
        first = self._time(alone, integer, feeds, ALONE)
        if first.ci[0] <= 1:
            return min(first.ratio, 1.0)
        again = self._time(alone, integer, feeds, 2 * ALONE)
        return again.ratio if again.ci[0] > 1 else min(again.ratio, 1.0)

    # --- inside the model -------------------------------------------------------------------

    def _by_class(self) -> None:
        best = self._build(self.slow)
        classes = _classes(self.plan)
        text = "timing integer regions"
        for name, nodes in self.ctx.track(classes.items(), len(classes), text):
            worth = LOOKUPS_GAIN if name == LOOKUPS else GAIN
            trial = {**self.slow, **{n.name: SLOWER for n in nodes if n.name}}
            other = self._build(trial)
            timing = self._time(best, other, self.feeds, INSIDE)
            if timing.ratio < worth and timing.ci[1] < 1.0:
                best, self.slow = other, trial
        self._whole(best)

    def _whole(self, best: ir.Model | None = None) -> None:
        """Against the float model: static nodes go back to float if that is faster, then all."""
        best = best or self._build(self.slow)
        if not self._slower(self.model, best, self.feeds, INSIDE):
            return
        if self.plan.nodes:
            self._drop(self.plan.nodes)
            if len(self.slow) == len(self.plan):
                return
            best = self._build(self.slow)
            if not self._slower(self.model, best, self.feeds, INSIDE):
                return
        self._drop(self.plan.modes())

    def _build(self, denied: Mapping[str, str]) -> ir.Model:
        made = self.model.clone()
        self.quantize(made, denied)
        return made

    def _slower(
        self, a: ir.Model, b: ir.Model, feeds: Mapping[str, np.ndarray[Any, Any]], share: float
    ) -> bool:
        """Whether `b` is slower beyond noise, and is so again: one bad moment proves nothing."""
        return all(self._time(a, b, feeds, times * share).ci[0] > 1.0 for times in (1.0, 2.0))

    def _time(
        self, a: ir.Model, b: ir.Model, feeds: Mapping[str, np.ndarray[Any, Any]], share: float
    ) -> Timing:
        seconds = share * self.ctx.measure_seconds
        paths = []
        for model in (a, b):
            self.count += 1
            folder = self.folder / str(self.count)
            folder.mkdir()
            paths.append(self.backend.lower(model, self.ctx.target, folder / "model.onnx"))
        timing = self.backend.measure(paths[0], paths[1], feeds, self.ctx.target, seconds)
        for path in paths:
            for file in path.parent.iterdir():
                file.unlink()
        return timing


def _units(plan: Plan) -> list[tuple[str, list[ir.Node], list[ir.Value]]]:
    """What is timed alone: products that share an activation, LSTMs; and their results."""
    groups: dict[ir.Value | None, list[ir.Node]] = {}
    for node in plan.dynamic:
        groups.setdefault(node.inputs[0], []).append(node)
    units: list[tuple[str, list[ir.Node], list[ir.Value]]] = []
    for nodes in groups.values():
        adds = [addend_after(n) for n in nodes]
        ends = [n if a is None else a[0] for n, a in zip(nodes, adds, strict=True)]
        key = "".join("+" if a else "." for a in adds)
        units.append((key, nodes, [n.outputs[0] for n in ends]))
    for node in plan.recurrent:
        units.append((node.op_type, [node], [o for o in node.outputs if o.name and o.uses()]))
    return units


def _classes(plan: Plan) -> dict[str, list[ir.Node]]:
    """Nodes that are likely to win or lose together; the bulk of the work comes last."""
    found: dict[str, list[ir.Node]] = {}
    for node in plan.nodes:
        found.setdefault(_class(node), []).append(node)
    if len(found) == 1:
        found.clear()  # without them there is nothing static: that is the last comparison
    if plan.tables and len(plan) > len(plan.tables):
        found[LOOKUPS] = list(plan.tables)
    return dict(sorted(found.items(), key=lambda item: item[0] in ("convolutions", "products")))


def _class(node: ir.Node) -> str:
    if node.op_type == "Conv":
        weight = weight_of(node.inputs[1])
        shape = weight.shape if weight is not None else ()
        if node.attributes.get_int("group", 1) > 1:
            return "depthwise convolutions" if shape[1] == 1 else "grouped convolutions"
        return "convolutions of few channels" if shape[1] <= 4 else "convolutions"
    if node.op_type in CORE:
        return "products"
    if node.op_type in POOLS:
        return "pools"
    kind = describe(node)
    moves = kind is not None and not isinstance(kind, str) and kind.output == "same"
    return "moves" if moves else f"{node.op_type} nodes"


def _fill(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Numbers of this type: normal floats, zeros and ones."""
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)
