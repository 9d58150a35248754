"""Loss table: how far the outputs move when one option alone is taken, compensation included.

Each option is made by its own pass on the model, every other layer left as it is, and the movement
of the outputs is measured on a few samples (`graphopt.calibration.sensitivity`: squared relative
L2 error, which adds up over layers that know nothing of each other). A choice is predicted to lose

    L(choice) = sum over kinds of c_kind * sum over groups of loss(group, option)

with a coefficient for each kind of option, fitted on choices that were evaluated for real (Frantar
and Alistarh, SPDY, ICML 2022).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import __version__
from graphopt.calibration.sensitivity import BROKEN, movement
from graphopt.context import Context
from graphopt.errors import GraphOptError
from graphopt.execution.runtime import run_each
from graphopt.pipeline.prepare import Setting
from graphopt.samples import Samples
from graphopt.samples.rows import first_runs
from graphopt.searching.space import Choice, Group, Space

__all__ = ["Losses", "measure_losses"]

Array = np.ndarray[Any, Any]
#: Samples that single options are judged on.
ROWS = 64
#: Values of one pass in one group that are measured; between them losses are interpolated.
POINTS = 2
#: What an option that cannot be had would lose.
NEVER = float("inf")


@dataclasses.dataclass(frozen=True)
class Losses:
    """The table, and how much of each kind of loss counts.

    Attributes:
        rows: by group, the loss of each option; inf where a pass refuses it.
        kinds: by group, the kind of each option.
        coefficients: by kind; kinds that are not named count 1.
    """

    rows: tuple[tuple[float, ...], ...]
    kinds: tuple[tuple[str, ...], ...]
    coefficients: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def of(self, choice: Choice) -> float:
        """The predicted loss of a choice."""
        return sum(self.coefficients.get(k, 1.0) * v for k, v in self.by_kind(choice).items())

    def by_kind(self, choice: Choice) -> dict[str, float]:
        """The sum of each kind that a choice takes."""
        found: dict[str, float] = {}
        for row, kinds, k in zip(self.rows, self.kinds, choice, strict=True):
            if k:
                found[kinds[k]] = found.get(kinds[k], 0.0) + row[k]
        return found

    def weighted(self) -> list[Array]:
        """The rows times their coefficients."""
        return [
            np.array(
                [self.coefficients.get(kind, 1.0) * loss for loss, kind in zip(*both, strict=True)]
            )
            for both in zip(self.rows, self.kinds, strict=True)
        ]

    def shaken(self, by: float, rng: np.random.Generator) -> Losses:
        """With the losses of each group times a random factor, whose log has deviation `by`."""
        factors = np.exp(by * rng.standard_normal(len(self.rows)))
        rows = tuple(
            tuple(float(f * v) for v in row) for f, row in zip(factors, self.rows, strict=True)
        )
        return dataclasses.replace(self, rows=rows)

    def fitted(self, seen: Sequence[tuple[Choice, float]], scale: float) -> Losses:
        """With coefficients under which the choices seen lose what they did.

        Args:
            seen: choices and their real losses.
            scale: losses near and below this count most.
        """
        names = sorted({kind for kinds in self.kinds for kind in kinds if kind})
        rows = np.array([[self.by_kind(c).get(n, 0.0) for n in names] for c, _ in seen])
        y = np.array([max(loss, 0.0) for _, loss in seen])
        if not len(y) or not rows.any():
            return self
        weight = 1 / (y + scale)
        one = max(float((y * weight) @ (rows.sum(1) * weight)), 1e-12) / max(
            float(np.square(rows.sum(1) * weight).sum()), 1e-300
        )  # the one coefficient that fits best; each kind's own stays near it
        x = rows * weight[:, None] * one
        ridge = 0.1 * max(float(np.square(x).sum()) / max(len(names), 1), 1e-12)
        free = _least_squares(x, y * weight, ridge)
        return dataclasses.replace(
            self, coefficients={n: float(one * f) for n, f in zip(names, free, strict=True)}
        )


def measure_losses(setting: Setting, space: Space, told: Callable[[str, int, int], None]) -> Losses:
    """The table of the setting's model; what an earlier search measured is taken from it."""
    few = first_runs(setting.source.model, setting.samples, ROWS)
    samples = Samples(list(few), few.source, few.synthetic)  # few enough to hold
    known = _Known(setting, samples)
    alone = _Alone(setting, space, samples)
    rows = []
    for g, group in enumerate(space.groups):
        told(f"measuring what {group.name} loses", g, len(space.groups))
        rows.append(_row(group, lambda k, group=group: known.loss(alone, group, k)))  # type: ignore[misc]
    kinds = tuple(tuple(o.kind for o in g.options) for g in space.groups)
    return Losses(tuple(rows), kinds)


class _Known:
    """Losses measured before for the same model and samples: `DIR/losses/7ab2....json`."""

    def __init__(self, setting: Setting, samples: Samples) -> None:
        self._cache = setting.cache
        about = (__version__, setting.digest, samples.digest(), setting.target.name, setting.seed)
        what = " ".join(map(str, about))
        self._name = hashlib.sha256(what.encode()).hexdigest()[:24]
        self._entries: dict[str, float] = {}
        if self._cache is not None:
            with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
                found = json.loads(self._path().read_text())
                self._entries = {str(k): float(v) for k, v in found.items()}

    def _path(self) -> Path:
        assert self._cache is not None
        return self._cache.folder / "losses" / f"{self._name}.json"

    def loss(self, alone: _Alone, group: Group, k: int) -> float:
        """What option `k` of a group loses."""
        option = group.options[k]
        name = f"{group.name} {alone.space.steps[option.step]} {option.value}"
        if name not in self._entries:
            self._entries[name] = alone.loss(group, k)
            if self._cache is not None:
                self._cache.write(self._path(), json.dumps(self._entries).encode())
        return self._entries[name]


def _row(group: Group, loss: Callable[[int], float]) -> tuple[float, ...]:
    """The losses of a group's options; of a graded pass some are measured."""
    row = [0.0] * len(group.options)
    for step in dict.fromkeys(o.step for o in group.options[1:]):
        mine = [k for k, o in enumerate(group.options) if o.step == step]
        points = min(len(mine), POINTS)
        # the mildest ones lose next to nothing, which says little of the others
        some = np.linspace(len(mine) - 1, (len(mine) - 1) / 3, points).round().astype(int)
        measured = sorted(set(some.tolist())) if group.graded else range(len(mine))
        found = {j: loss(mine[j]) for j in measured}
        able = {j: value for j, value in found.items() if value != NEVER}
        for j, k in enumerate(mine):
            row[k] = found[j] if j in found else _between(j, able)
    return tuple(row)


class _Alone:
    """Takes single options, by their own pass, and measures how far the outputs move."""

    def __init__(self, setting: Setting, space: Space, samples: Samples) -> None:
        self.setting, self.space, self.samples = setting, space, samples
        self.expected = list(run_each(setting.source.model, samples))

    def loss(self, group: Group, k: int) -> float:
        """What option `k` of a group loses; inf if its pass refuses it."""
        setting, option = self.setting, group.options[k]
        others = [
            g.name
            for g in self.space.groups
            if g is not group and any(o.step == option.step for o in g.options)
        ]
        model = setting.source.model.clone()
        ctx = Context(
            model,
            target=dataclasses.replace(setting.target, measured=False),
            samples=self.samples,
            seed=setting.seed,
            shapes=setting.shapes,
            source=setting.source.model,
            pass_name="search",
        )
        one = self.space.steps[option.step].only(((group.name, option.value),), others)
        with contextlib.suppress(GraphOptError):
            if one.run(model, ctx):
                moved = movement(self.expected, run_each(ctx.model, self.samples))
                return moved if moved < BROKEN else NEVER
        return NEVER


def _between(j: int, able: Mapping[int, float]) -> float:
    """The loss at place j: a power of the place between and beyond those measured."""
    if not able:
        return NEVER
    places = np.log(np.array(list(able)) + 1.0)
    logs = np.maximum.accumulate(np.log(np.maximum(list(able.values()), 1e-12)))
    at = float(np.log(j + 1.0))
    if len(places) > 1 and not places[0] <= at <= places[-1]:
        slope = (logs[-1] - logs[0]) / (places[-1] - places[0])
        end = 0 if at < places[0] else -1
        return float(np.exp(logs[end] + slope * (at - places[end])))
    return float(np.exp(np.interp(at, places, logs)))


def _least_squares(x: Array, y: Array, ridge: float) -> Array:
    """argmin |x f - y|^2 + ridge |f - 1|^2 with 0.05 <= f <= 20, by coordinate descent."""
    f = np.ones(x.shape[1])
    square = np.square(x).sum(0) + ridge
    for _ in range(200):
        for k in range(len(f)):
            rest = y - x @ f + x[:, k] * f[k]
            f[k] = np.clip((x[:, k] @ rest + ridge) / square[k], 0.05, 20.0)
    return f
