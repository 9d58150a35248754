"""Context: what a pass is given — analyses, samples, target, budget — and asks before it edits."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast

import numpy as np
import onnx_ir as ir

from graphopt.budget import Budget
from graphopt.graph import provenance
from graphopt.samples.stream import Samples
from graphopt.target import ONNX, Target

__all__ = ["Analysis", "Context", "Edit", "Progress", "Refusal"]

logger = logging.getLogger("graphopt")

T = TypeVar("T")
#: A plain function of a context; `ctx.get(f)` runs it once per state of the model.
Analysis = Callable[["Context"], T]
#: Called with (what is going on, how much of it is done, how much there is; 0: nobody knows).
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Edit:
    """One change a pass was allowed to make: which rule, at which node (or tensor)."""

    rule: str
    node: str


@dataclasses.dataclass(frozen=True)
class Refusal:
    """One place a rule could have changed and did not, and why."""

    rule: str
    node: str
    reason: str


class Context:
    """Everything a pass may ask for, and the permission it needs before an edit.

    Args:
        model: the model the pass works on.
        target: where the model will run. Passes read its data and never ask which backend it is.
        samples: input data for calibration and scores, or None.
        budget: what may be lost and must be gained, or None.
        seed: seeds `rng`; the same seed gives the same edits.
        allow: called with each `Edit` before it is made; False denies it (bisecting uses this).
        pass_name: recorded as the maker of every node that is edited.
        shapes: concrete shape per graph input, for costs and measuring; dynamic axes are bound.
        progress: called with (text, done, total) while something long runs.
        measure_seconds: about how long one comparison of two models may take.
        source: the model as it came into the run, not to be changed; None outside a pipeline.

    Attributes:
        facts: decisions made by measuring, by name, as plain JSON data. They go into the recipe;
            on a replay they are there from the start, and must be used instead of measuring.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        target: Target = ONNX,
        samples: Samples | None = None,
        budget: Budget | None = None,
        seed: int = 0,
        allow: Callable[[Edit], bool] | None = None,
        pass_name: str = "",
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        facts: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        measure_seconds: float = 5.0,
        source: ir.Model | None = None,
    ) -> None:
        self.model = model
        self.source = source
        self.target = target
        self.samples = samples
        self.budget = budget
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.pass_name = pass_name
        self.edits: list[Edit] = []
        self.refusals: list[Refusal] = []
        self.notes: list[str] = []
        self.facts: dict[str, Any] = dict(facts or {})
        self.shapes = dict(shapes or {})
        self.measure_seconds = measure_seconds
        self._progress = progress
        self._allow = allow
        self._cache: dict[Analysis[Any], Any] = {}
        self._needs: dict[Analysis[Any], set[Analysis[Any]]] = {}
        self._running: list[Analysis[Any]] = []

    # --- analyses ---------------------------------------------------------------------------

    def get(self, analysis: Analysis[T]) -> T:
        """The analysis' result for the model as it is now: computed once, cached until an edit."""
        if self._running:
            self._needs.setdefault(self._running[-1], set()).add(analysis)
        if analysis not in self._cache:
            if analysis in self._running:
                names = [getattr(a, "__name__", repr(a)) for a in (*self._running, analysis)]
                raise RecursionError(f"analyses need each other: {' -> '.join(names)}")
            self._running.append(analysis)
            try:
                self._cache[analysis] = analysis(self)
            finally:
                self._running.pop()
        return cast(T, self._cache[analysis])

    def invalidate(self, preserves: Iterable[Analysis[Any]] = ()) -> None:
        """Drop every cached analysis but those preserved whose own needs are preserved too."""
        kept = set(preserves)

        def stays(analysis: Analysis[Any]) -> bool:
            return analysis in kept and all(stays(n) for n in self._needs.get(analysis, ()))

        self._cache = {a: r for a, r in self._cache.items() if stays(a)}

    def cached(self) -> dict[Analysis[Any], Any]:
        """The analyses computed so far and their results (a copy; the debug mode compares them)."""
        return dict(self._cache)

    # --- edits ------------------------------------------------------------------------------

    def edit(self, rule: object, node: ir.Node | ir.Value | str) -> bool:
        """Ask to change the model at `node`; True grants and records it, False denies it.

        Ask *before* changing anything: the record is the provenance of the change, and denying
        single edits is how a faulty one is found.

        Args:
            rule: the rule or pass that asks (its class name is recorded), or a name.
            node: the node (or value, or name) that will change or be replaced.
        """
        edit = Edit(_rule_name(rule), _place_name(node))
        if self._allow is not None and not self._allow(edit):
            return False
        self.edits.append(edit)
        if isinstance(node, ir.Node):
            provenance.mark(node, self.pass_name)
        return True

    def refuse(self, rule: object, node: ir.Node | ir.Value | str, reason: str) -> None:
        """Record that a rule left this place alone, with the reason a user will read."""
        self.refusals.append(Refusal(_rule_name(rule), _place_name(node), reason))

    def track(self, items: Iterable[T], total: int, text: str) -> Iterator[T]:
        """Iterate over `items`, telling the user how far along `text` is."""
        for done, item in enumerate(items):
            self.progress(text, done, total)
            yield item

    def progress(self, text: str, done: int, total: int) -> None:
        """Tell the user what is going on and how far along it is (`total` 0: nobody knows)."""
        if self._progress is not None:
            self._progress(text, done, total)

    def adopt(self, other: Context) -> None:
        """Take over what `other` analysed of the very same model object, unchanged since."""
        assert other.model is self.model
        self._cache, self._needs = other._cache, other._needs

    def note(self, text: str) -> None:
        """Add one plain sentence to the report of this step (once)."""
        if text not in self.notes:
            self.notes.append(text)


def _rule_name(rule: object) -> str:
    return rule if isinstance(rule, str) else type(rule).__name__


def _place_name(node: ir.Node | ir.Value | str) -> str:
    if isinstance(node, str):
        return node
    if isinstance(node, ir.Node):
        return node.name or (node.outputs[0].name if node.outputs else "") or node.op_type
    return node.name or "?"
