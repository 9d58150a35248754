"""Context: what a pass is given — analyses, samples, target, budget — and asks before it edits."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import onnx_ir as ir

from graphopt.backend import Arrays, Timing
from graphopt.budget import Budget
from graphopt.cache import Cache
from graphopt.graph import provenance
from graphopt.reporting.tracking import Scalar
from graphopt.samples.stream import Samples
from graphopt.target import ONNX, Target

__all__ = ["Analysis", "Context", "Edit", "Pair", "Progress", "Referee", "Refusal", "Timer"]

logger = logging.getLogger("graphopt")

T = TypeVar("T")
#: A plain function of a context; `ctx.get(f)` runs it once per state of the model.
Analysis = Callable[["Context"], T]
#: Called with (what is going on, how much of it is done, how much there is; 0: nobody knows).
Progress = Callable[[str, int, int], None]
#: Two models that take the same inputs, and those inputs.
Pair = tuple[ir.Model, ir.Model, Arrays]
#: Times the models of a pair beside each other on the same feeds for about so many seconds.
Timer = Callable[[ir.Model, ir.Model, Arrays, float], Timing]
#: In `Context.facts`: what `Context.faster` found.
FASTER = "faster"


def silent(text: str, done: int, total: int) -> None:
    """Progress that nobody is told of."""


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


class Referee(Protocol):
    """The guard as a pass may ask it: two figures in units of what is allowed, so that 1 is all.

    Of several models the k-th is run on every k-th run of samples: each on what it has not seen.
    """

    @property
    def runs(self) -> int:
        """How many runs of samples it has."""

    @property
    def rows(self) -> int:
        """How many rows of the first run may be run without the others; 0 if none."""

    def over(self, models: Sequence[ir.Model]) -> float:
        """By what has changed and what is likely to: above 1 other inputs may say otherwise."""

    def strain(self, models: Sequence[ir.Model], runs: int, rows: int = 0) -> float:
        """By what may at most change, on the first runs (so many rows of each; 0: all).

        Small changes add up in it.
        """


class Context:
    """Everything a pass may ask for, and the permission it needs before an edit.

    Args:
        model: the model the pass works on.
        target: where the model will run. Passes read its data and never ask which backend it is.
        samples: input data for calibration and scores, or None; how far they are read is told.
        budget: what may be lost and must be gained, or None.
        seed: seeds `rng`; the same seed gives the same edits.
        allow: called with each `Edit` before it is made; False denies it (bisecting uses this).
        pass_name: recorded as the maker of every node that is edited.
        shapes: concrete shape per graph input, for costs and measuring; dynamic axes are bound.
        progress: called with (text, done, total) while something long runs.
        measure_seconds: about how long one comparison of two models may take.
        timer: times two models on the target, for `faster`; None where nothing is to be timed.
        cache: what was timed before on this machine is taken from it; None keeps nothing.
        source: the model as it came into the run, not to be changed; None outside a pipeline.
        referee: how far from saying what the source says a model is on the samples; None where no
            guard judges.
        scalar: called with (name, value, step) while something is trained; None keeps nothing.

    Attributes:
        facts: decisions made by measuring, by name, as plain JSON data. They go into the recipe;
            on a replay they are there from the start, and must be used instead of measuring.
        idle: why the pass found nothing to do ("" if it has not said).
        recalled: something was decided by timings of an earlier run.
        scratch: what the parts of a pass tell each other while it runs; recorded nowhere.
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
        timer: Timer | None = None,
        cache: Cache | None = None,
        source: ir.Model | None = None,
        referee: Referee | None = None,
        scalar: Scalar | None = None,
    ) -> None:
        self.model = model
        self.source = source
        self.referee = referee
        self.target = target
        if samples is not None and progress is not None:
            samples = samples.watched(self._reading)
        self.samples = samples
        self.budget = budget
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.pass_name = pass_name
        self.edits: list[Edit] = []
        self.refusals: list[Refusal] = []
        self.notes: list[str] = []
        self.idle = ""
        self.recalled = False
        self.facts: dict[str, Any] = copy.deepcopy(dict(facts or {}))
        self.scratch: dict[str, Any] = {}
        self.shapes = dict(shapes or {})
        self.measure_seconds = measure_seconds
        self.cache = cache
        self._timer = timer
        self._progress = progress
        self._scalar = scalar
        self._tracked = False
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

    def know(self, analysis: Analysis[T], result: T) -> None:
        """Take `result` for what the analysis, which needs no other, would find."""
        self._cache[analysis] = result

    def cached(self) -> dict[Analysis[Any], Any]:
        """The analyses computed so far and their results (a copy; the debug mode compares them)."""
        return dict(self._cache)

    # --- timing -----------------------------------------------------------------------------

    @property
    def timed(self) -> bool:
        """Whether `faster` can give any answer."""
        return self._timer is not None or bool(self.facts.get(FASTER))

    def faster(
        self,
        what: str,
        pair: Callable[[], Pair | None],
        *,
        share: float = 0.06,
        remembered: bool = True,
    ) -> float | None:
        """Time of `b` over `a` on the target: below 1 if `b` surely is faster, above 1 if slower.

        1 where the 95 % interval holds 1. Slower must be seen twice: one bad moment proves nothing.
        The answer becomes a fact, so a recipe replays it, and is remembered on this machine.

        Args:
            what: names the comparison among the facts: what is compared, at which shapes.
            pair: makes (a, b, feeds), asked only if it must be timed; None: it can't be made.
            share: of `measure_seconds`, that it may take.
            remembered: `what` says all that the answer depends on, so the cache may know it.

        Returns:
            None if nothing is timed here (the target is elsewhere, or there is no pair).
        """
        known: dict[str, float] = self.facts.get(FASTER, {})
        if what in known:
            return known[what]
        if self._timer is None:
            return None
        cache = self.cache if remembered else None
        ratio = cache.timing(self.target, what) if cache is not None else None
        if cache is not None and ratio is not None:
            self.recalled = True
            self.note(f"some of its timings are of an earlier run: {cache.folder} (--cache off)")
        elif (made := pair()) is not None:
            ratio = self._ratio(self._timer, made, share * self.measure_seconds)
            if cache is not None:
                cache.keep_timing(self.target, what, ratio)
        if ratio is not None:
            self.facts.setdefault(FASTER, {})[what] = ratio
        return ratio

    @staticmethod
    def _ratio(timer: Timer, pair: Pair, seconds: float) -> float:
        timing = timer(*pair, seconds)
        if timing.ci[0] > 1:
            timing = timer(*pair, 2 * seconds)
        sure = timing.ci[0] > 1 or timing.ci[1] < 1
        return round(timing.ratio, 3) if sure else 1.0

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

    def nothing(self, why: str) -> int:
        """Say why the pass makes no edit; returns 0, which is what its `run` then returns."""
        self.idle = why
        return 0

    def track(self, items: Iterable[T], total: int, text: str) -> Iterator[T]:
        """Iterate over `items`, telling the user how far along `text` is.

        What goes on for one of them (samples read, items of its own) is not told meanwhile.
        """
        if self._tracked:
            yield from items
            return
        self._tracked = True
        try:
            for done, item in enumerate(items):
                self.progress(text, done, total)
                yield item
        finally:
            self._tracked = False

    def _reading(self, done: int, total: int) -> None:
        if not self._tracked:
            self.progress("running samples", done, total)

    def progress(self, text: str, done: int, total: int) -> None:
        """Tell the user what is going on and how far along it is (`total` 0: nobody knows)."""
        if self._progress is not None:
            own = text.startswith(self.pass_name)
            self._progress(text if own else f"{self.pass_name}: {text}", done, total)

    def scalar(self, name: str, value: float, step: int) -> None:
        """Keep a figure of a training, where the user asked for that (`--track`)."""
        if self._scalar is not None:
            self._scalar(name, value, step)

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
