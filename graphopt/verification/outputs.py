"""Verification: is the graph valid, and did the outputs stay as they were.

*Equal* means, per output: relative L2 difference at most max(1e-5, 4 x the difference that the
runtime's own optimizations make on the source), and at most 0.1; of each channel at most 1 % of
itself; integers and booleans the same element by element, NaN and Inf at the same positions, and
outputs in one order. Where every edit is proved, what rounding the inputs moves the source by is no
difference either: inputs that saturate it leave nothing else of an output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.execution.runtime import in_parts, opened, run_each
from graphopt.graph.attributes import attribute
from graphopt.graph.traverse import all_nodes
from graphopt.io.skeleton import Skeleton, skeleton_of
from graphopt.verification.comparison import Comparison, Outputs, compare_outputs

__all__ = ["FLOOR", "Judge"]

#: Smallest relative L2 difference that counts: about 100 float32 roundings.
FLOOR = 1e-5
#: How many times the runtime's own noise still counts as equal.
NOISE_FACTOR = 4.0
#: How many times what rounding the inputs moves, where every edit is proved: each layer rounds.
ROUNDING_FACTOR = 16.0
_SPACINGS = {
    ir.DataType.FLOAT: 2.0**-23,
    ir.DataType.FLOAT16: 2.0**-10,
    ir.DataType.BFLOAT16: 2.0**-7,
}
#: What still counts as equal at most: a model that differs by more from itself tells nothing apart.
MOST_NOISE = 0.1
#: Bytes of weights above which the noise is taken as none: the runtime's optimizations copy them.
NOISE_LIMIT = 2 << 30
#: A channel (along axis 1 or the last) may differ by this much of itself.
PART = 1e-2


class Judge:
    """The source model's outputs on the probe inputs, and what counts as equal to them.

    Args:
        source: the model everything is compared with; it is not changed.
        probe: the inputs, a few runs.
        extra: runs at other sizes and values, on which exact passes are compared too; those that
            the source does not run on are left out.

    Attributes:
        source: its outputs on `probe`, one mapping per run.
        beyond: its outputs on `extra`.
        unable: why the source cannot be run here; "" if it can.
    """

    def __init__(
        self,
        source: ir.Model | Skeleton,
        probe: Sequence[Outputs],
        extra: Sequence[Outputs] = (),
    ) -> None:
        self.probe = probe
        self._skeleton = skeleton_of(source)
        self.unable = ""
        self.source: list[Outputs] = []
        self.beyond: list[Outputs] = []
        self.extra: list[Outputs] = []
        try:
            with opened(self._skeleton, optimize=False) as predict:
                self.source += map(predict, probe)
                for feeds in extra:
                    with contextlib.suppress(ModelError):
                        self.beyond.append(predict(feeds))
                        self.extra.append(feeds)
        except ModelError as error:
            self.unable = str(error)

    @cached_property
    def noise(self) -> Comparison:
        """The difference the runtime's own optimizations make, run when first asked for."""
        if sum(one.tensor.nbytes for one in self._skeleton.held) > NOISE_LIMIT:
            return Comparison({})
        try:
            feeds = [*self.probe, *self.extra]
            compared = compare_outputs(self.all, run_each(self._skeleton, feeds, optimize=True))
        except ModelError:
            return Comparison({})
        return Comparison({}) if compared.broken else compared

    @cached_property
    def costly(self) -> bool:
        """Whether each run reads all weights anew: what is proved is then not run as well."""
        return in_parts(self._skeleton)

    @cached_property
    def rounded(self) -> list[Outputs]:
        """The source's outputs on all inputs, each moved by a rounding of what it computes in."""
        rng, unit = np.random.default_rng(0), _spacing(self._skeleton.model)
        runs = (*self.probe, *self.extra)
        feeds = [{n: _moved(a, unit, rng) for n, a in run.items()} for run in runs]
        return list(run_each(self._skeleton, feeds))

    @property
    def all(self) -> list[Outputs]:
        """The source's outputs on `probe`, then on `extra`."""
        return [*self.source, *self.beyond]

    @property
    def silent(self) -> list[str]:
        """Outputs that are empty or NaN on every run: agreeing about them means nothing."""
        names = dict.fromkeys(n for run in self.source for n in run)
        return [n for n in names if all(_says_nothing(run[n]) for run in self.source)]

    def outputs(self, model: ir.Model | Skeleton) -> list[Outputs]:
        """The model's outputs on `probe`, then on `extra`, with the runtime's optimizations off."""
        return list(run_each(model, [*self.probe, *self.extra]))

    def as_deployed(self, model: ir.Model | Skeleton) -> list[Outputs]:
        """The model's outputs on `probe` as users run it: lossy kernels are in what is optimized.

        Integer products are fused there, and activations rounded for them.
        """
        return list(run_each(model, self.probe, optimize=True))

    def equal(self, compared: Comparison) -> bool:
        """Whether a comparison passes the equality rule of this module."""
        if compared.broken:
            return False
        close = all(e.rel_l2 <= FLOOR for e in compared.errors.values())
        if (
            close
            and not any(compared.changed.values())
            and not any(part > PART for part in compared.parts.values())
        ):
            return True
        noise = self.noise
        return (
            all(e.rel_l2 <= self.tolerance(name) for name, e in compared.errors.items())
            and all(
                part <= max(PART, NOISE_FACTOR * noise.parts.get(name, 0.0))
                for name, part in compared.parts.items()
            )
            and all(
                share <= NOISE_FACTOR * noise.changed.get(name, 0.0)
                for name, share in compared.changed.items()
            )
        )

    def rounds_alike(self, compared: Comparison, runs: slice) -> bool:
        """Whether a comparison on these runs is within what rounding does to the source there."""
        if compared.broken:
            return False
        try:
            moved = compare_outputs(self.all[runs], self.rounded[runs])
        except ModelError:
            return False
        return not moved.broken and all(
            found.get(name, 0.0) <= ROUNDING_FACTOR * x
            for found, own in (
                (_figures(compared), _figures(moved)),
                (compared.parts, moved.parts),
                (compared.changed, moved.changed),
            )
            for name, x in own.items()
        )

    def tolerance(self, output: str) -> float:
        """The largest relative L2 difference that still counts as equal."""
        noise = self.noise.errors.get(output)
        return max(FLOOR, min(NOISE_FACTOR * noise.rel_l2, MOST_NOISE)) if noise else FLOOR


def _figures(compared: Comparison) -> dict[str, float]:
    return {name: error.rel_l2 for name, error in compared.errors.items()}


def _spacing(model: ir.Model) -> float:
    """From 1 to the next number of the coarsest type that a model is given or casts to."""
    given = {v.dtype for v in model.graph.inputs}
    casts = {attribute(n, "to", 1) for n in all_nodes(model.graph) if n.op_type == "Cast"}
    kinds = given | {ir.DataType(to) for to in casts}
    return max(size for kind, size in _SPACINGS.items() if kind in {*kinds, ir.DataType.FLOAT})


def _moved(x: Any, unit: float, rng: np.random.Generator) -> Any:
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
        return x
    return (x * (1 + unit * rng.choice((-1, 1), x.shape))).astype(x.dtype)


def _says_nothing(a: Any) -> bool:
    if not isinstance(a, np.ndarray):
        return False
    return a.size == 0 or (a.dtype.kind == "f" and bool(np.isnan(a).all()))
