"""Cost model: latency, size, MACs and memory of a choice, predicted from the cost table.

    latency = sum over forms f of (u_f kernels_f + v_f share_f others) + w conversions + c

*kernels* is the sum of the table's entries at the sizes and in the forms that a choice leaves,
*conversions* what lies between operators of different forms, *others* every other node's time in
the model as it is, shrunk as its activations shrink; *share* is the form's part of the MACs, since
a runtime merges other nodes into operators of one form and not of another. The weights begin at 1
and c at 0, and are fitted on whole models (`CostModel.correct`): sums of parts miss what lies
between them.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from glob import escape
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims import dimensions
from graphopt.context import Context
from graphopt.layers import pattern_of
from graphopt.pipeline.prepare import Setting
from graphopt.searching.branches import Cutter
from graphopt.searching.space import Choice, Space
from graphopt.searching.table import Entry, Form, Table, Wanted
from graphopt.searching.unpriced import neighbours, others_of
from graphopt.target import Target

__all__ = ["OBJECTIVES", "CostModel", "Prediction"]

Array = np.ndarray[Any, Any]
#: What may be made small, in the order of `Prediction`.
OBJECTIVES = ("latency", "size", "macs", "memory")
#: A form that neighbours share without converting between them.
STATIC = " static"
#: Choices around which sums are kept: a solver comes back to most of them.
KEPT = 64
#: How far whole models are believed to lie from their prediction, and weights from a common one,
#: relative; and milliseconds of what no sum tells.
NOISE, SPREAD, OVERHEAD_MS = 0.03, 0.3, 0.02


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predicted milliseconds, bytes of the file, MACs, bytes of file and activations at work."""

    latency: float
    size: float
    macs: float
    memory: float


class CostModel:
    """Predicts what choices cost; see the module.

    Args:
        setting: the model after the exact passes.
        space: what is chosen among.
        table: prices of operators.
        target: where they are measured.
        plain: the model that the choice of nothing gives, for the nodes without a price.
    """

    def __init__(
        self, setting: Setting, space: Space, table: Table, target: Target, plain: ir.Model
    ) -> None:
        self.space, self.table = space, table
        model = setting.source.model
        dims = Context(model, shapes=setting.shapes).get(dimensions).prunable
        self.cutter = Cutter(model, dims, setting.shapes)
        layers = [g for g in space.groups if not (g.sized or g.graded)]
        forms = {o.kind for group in layers for o in group.options if not o.gone}
        self.forms = sorted({"", *forms})
        self._statics = [k for k, form in enumerate(self.forms) if form.endswith(STATIC)]
        self.weights = np.append(np.ones(2 * len(self.forms) + 1), 0.0)
        places: dict[tuple[str, bool], list[int]] = defaultdict(list)
        for k, group in enumerate(space.groups):
            places[group.name, group.sized].append(k)
        self._dim_of = {name: next(iter(places[escape(name), True]), None) for name in dims}
        self._sizes = {name: d.size for name, d in dims.items()}
        self._forms_of = {n: places[pattern_of(v), False] for n, v in self.cutter.nodes.items()}
        self._keys: dict[tuple[str, tuple[int, ...]], str | None] = {}
        #: By node, the groups that its price depends on; by their options, what was found of it.
        self._groups_of = {n: self._groups(n) for n in self.cutter.nodes}
        self._entries: dict[tuple[str, Choice], Entry] = {}
        self._known_forms: dict[tuple[str, Choice], int] = {}
        self._around: dict[Choice, list[list[Array]]] = {}
        self._before, self._after = neighbours(model, self.cutter.nodes)
        self._others = others_of(plain, setting, target, self.cutter, dims)
        figures = setting.source.figures()
        self._peak = float(figures.peak_activation_bytes or 0)
        self._affected = self._affects()
        self._fixed = np.zeros(2)
        self._ready(self._wanted(space.nothing, self.cutter.nodes), lambda *_: None)
        nothing = self._sums(space.nothing, self.cutter.nodes)
        self._fixed = np.array([float(figures.bytes or 0), float(figures.macs or 0)]) - nothing[3:5]

    # --- prediction -------------------------------------------------------------------------

    def predict(self, choice: Choice) -> Prediction:
        """What a choice costs; what is missing in the table is measured first."""
        self._ready(self._wanted(choice, self.cutter.nodes), lambda *_: None)
        return self._prediction(self._sums(choice, self.cutter.nodes, every=True))

    def features(self, choice: Choice) -> Array:
        """The parts that the weights multiply, milliseconds [2 * forms + 2]."""
        self._ready(self._wanted(choice, self.cutter.nodes), lambda *_: None)
        return self._features(self._sums(choice, self.cutter.nodes, every=True))

    def around(
        self, choice: Choice, told: Callable[[int, int], None] = lambda *_: None
    ) -> list[list[Prediction]]:
        """For each group and option, the prediction of `choice` with that option instead."""
        if choice not in self._around:
            if len(self._around) == KEPT:
                self._around.clear()
            self._around[choice] = self._sums_around(choice, told)
        return [[self._prediction(sums) for sums in row] for row in self._around[choice]]

    def _sums_around(self, choice: Choice, told: Callable[[int, int], None]) -> list[list[Array]]:
        wanted: list[Wanted] = []
        variants: list[list[Choice]] = []
        for g, group in enumerate(self.space.groups):
            made = [(*choice[:g], k, *choice[g + 1 :]) for k in range(len(group.options))]
            variants.append(made)
            for one in made:
                wanted += self._wanted(one, self._affected[g][0])
        self._ready(wanted, told)
        whole = self._sums(choice, self.cutter.nodes, every=True)
        found = []
        for (nodes, others), made in zip(self._affected, variants, strict=True):
            rest = whole - self._sums(choice, nodes, others)
            found.append([rest + self._sums(one, nodes, others) for one in made])
        return found

    def correct(self, choices: Sequence[Choice], latencies: Sequence[float]) -> float:
        """Fit the weights on whole models' milliseconds; returns the median relative error.

        Least squares of the relative errors, no weight negative, with what is believed beforehand:
        that weights are near a common one, the closer the fewer models speak of them.
        """
        rows = np.array([self.features(c) for c in choices])
        y = np.array(latencies)
        scale = float(np.median(y / np.maximum(rows[:, :-1].sum(1), 1e-9)))
        prior = np.append(np.full(rows.shape[1] - 1, scale), 0.0)
        trust = NOISE / np.append(np.full(rows.shape[1] - 1, scale * SPREAD), OVERHEAD_MS)
        x = rows / y[:, None]
        gram, sums = x.T @ x + np.diag(trust**2), x.sum(0) + trust**2 * prior
        weights = prior.copy()
        for _ in range(500):  # coordinate descent: none may be negative
            for k in range(len(weights)):
                rest = sums[k] - gram[k] @ weights + gram[k, k] * weights[k]
                weights[k] = max(rest / gram[k, k], 0.0)
        self.weights = weights
        error: float = float(np.median(np.abs(x @ self.weights - 1)))
        return error

    # --- parts ------------------------------------------------------------------------------

    def _groups(self, node: str) -> list[int]:
        carried = (self._dim_of[d] for d in self.cutter.touches.get(node, ()))
        return sorted({*self._forms_of[node], *(g for g in carried if g is not None)})

    def _place(self, node: str, choice: Choice) -> tuple[str, Choice]:
        """A node with the options of `choice` that its price depends on."""
        return node, tuple(choice[g] for g in self._groups_of[node])

    def _keep(self, node: str, choice: Choice) -> dict[str, int]:
        """Units left of the dimensions that a node carries."""
        return {d: self._left(d, choice) for d in self.cutter.touches.get(node, ())}

    def _left(self, dim: str, choice: Choice) -> int:
        group = self._dim_of[dim]
        size = self._sizes[dim]
        if group is None or not choice[group]:
            return size
        return max(1, round(size * (1 - float(self.space.option(group, choice).value))))

    def _form(self, node: str, choice: Choice) -> Form:
        taken = [self.space.option(g, choice) for g in self._forms_of[node] if choice[g]]
        taken.sort(key=lambda option: option.step)
        return Form(tuple((self.space.steps[o.step], o.value) for o in taken))

    def _which(self, node: str, choice: Choice) -> int:
        """The place of a node's form in `forms`."""
        place = self._place(node, choice)
        if place not in self._known_forms:
            self._known_forms[place] = self._looked_up(node, choice)
        return self._known_forms[place]

    def _looked_up(self, node: str, choice: Choice) -> int:
        kinds = [
            self.space.option(g, choice).kind
            for g in self._forms_of[node]
            if choice[g] and not self.space.groups[g].graded
        ]
        return self.forms.index(kinds[0]) if kinds and kinds[0] in self.forms else 0

    def _static(self, node: str, choice: Choice) -> bool:
        """Whether a node's form is one that neighbours share without converting between them."""
        return self._which(node, choice) in self._statics

    def _wanted(self, choice: Choice, nodes: Iterable[str]) -> list[Wanted]:
        found = []
        for node in nodes:
            if self._place(node, choice) in self._entries:
                continue
            keep = self._keep(node, choice)
            key = self._key(node, keep)
            if key is not None:
                form = self._form(node, choice)
                found.append(Wanted(key, form, lambda n=node, k=keep: self._cut(n, k)))  # type: ignore[misc]
        return found

    def _key(self, node: str, keep: Mapping[str, int]) -> str | None:
        place = node, tuple(keep.values())
        if place not in self._keys:
            branch = self.cutter.cut(node, keep)
            self._keys[place] = None if branch is None else branch.key
        return self._keys[place]

    def _cut(self, node: str, keep: Mapping[str, int]) -> Any:
        branch = self.cutter.cut(node, keep)
        assert branch is not None
        return branch

    def _ready(self, wanted: Sequence[Wanted], told: Callable[[int, int], None]) -> None:
        self.table.ask(wanted, told)

    def _entry(self, node: str, choice: Choice) -> Entry:
        """The price of a node, which is in the table."""
        place = self._place(node, choice)
        if place not in self._entries:
            self._entries[place] = self._price(node, choice)
        return self._entries[place]

    def _price(self, node: str, choice: Choice) -> Entry:
        """What the table says; a node that cannot be cut out shrinks as its dimensions do."""
        keep = self._keep(node, choice)
        key = self._key(node, keep)
        if key is not None:
            return self.table.entries[Wanted(key, self._form(node, choice), lambda: None).name]  # type: ignore[arg-type,return-value]
        share = float(np.prod([c / self._sizes[d] for d, c in keep.items()]))
        return Entry(0.0, 0.0, 0.0, self.cutter.macs[node] * share)

    def _sums(
        self,
        choice: Choice,
        nodes: Iterable[str],
        others: Iterable[int] = (),
        *,
        every: bool = False,
    ) -> Array:
        """Conversions, others, activations, bytes, MACs; then kernels and MACs by form."""
        count = len(self.forms)
        found = np.zeros(5 + 2 * count)
        gone = self.space.gone(choice)
        for node in nodes:
            if node in gone:
                continue
            entry, form = self._entry(node, choice), self._which(node, choice)
            found[3] += entry.bytes
            found[4] += entry.macs
            found[5 + form] += entry.ms
            found[5 + count + form] += self.cutter.macs[node]
            if self._static(node, choice):
                for ends in (self._before[node], self._after[node]):
                    if not ends or not all(self._static(n, choice) for n in ends):
                        found[0] += entry.border_ms / 2
        for k in range(len(self._others)) if every else others:
            ms, size, carried, made_of = self._others[k]
            if made_of and made_of <= gone:
                continue
            share = float(
                np.prod([self._left(d, choice) / self._sizes[d] for d in carried], initial=1.0)
            )
            found[1] += ms * share
            found[2] += size * share
        return found

    def _features(self, sums: Array) -> Array:
        kernels, macs = sums[5:].reshape(2, -1)
        share = macs / max(macs.sum(), 1.0) if macs.any() else np.eye(len(macs))[0]
        return np.concatenate([kernels, sums[1] * share, [sums[0], 1.0]])

    def _prediction(self, sums: Array) -> Prediction:
        size, macs = sums[3:5] + self._fixed
        by_form = sums[5 + len(self.forms) :]
        static = by_form[self._statics].sum() / max(by_form.sum(), 1.0)
        whole = sum(o.size for o in self._others) or 1.0
        peak = self._peak * sums[2] / whole * (1 - 0.75 * static)
        latency = float(self._features(sums) @ self.weights)
        return Prediction(latency, float(size), float(macs), float(size + peak))

    def _affects(self) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
        """By group, the priced nodes and the others whose cost it changes."""
        found = []
        for g in range(len(self.space.groups)):
            dims = {d for d, k in self._dim_of.items() if k == g}
            gone = {n for option in self.space.groups[g].options for n in option.gone}
            nodes = dict.fromkeys(
                n
                for n in self.cutter.nodes
                if g in self._forms_of[n] or dims & set(self.cutter.touches[n]) or n in gone
            )
            ends = [m for n in nodes for m in (*self._before[n], *self._after[n])]
            if any(g in self._forms_of[n] for n in nodes):
                nodes.update(dict.fromkeys(ends))  # conversions at their ends
            others = tuple(
                k for k, o in enumerate(self._others) if dims & set(o.carried) or o.made_of & gone
            )
            found.append((tuple(nodes), others))
        return found
