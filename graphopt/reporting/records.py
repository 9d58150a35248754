"""Report: what the pipeline did, as frozen records; `to_json` is the contract with scripts."""

from __future__ import annotations

import dataclasses
import math
from pathlib import PurePath
from typing import Any, Literal

from graphopt.reporting.notebook import table_html
from graphopt.reporting.units import count, milliseconds, size

__all__ = [
    "Agreement",
    "Evidence",
    "Figures",
    "OutputError",
    "Report",
    "Status",
    "Step",
    "Undone",
    "Verdict",
    "finite",
]

SCHEMA = 1
#: Of at least so many cases a single one may differ, whatever the limit.
FEW = 32
Status = Literal["kept", "unchanged", "undone", "refused"]
Verdict = Literal["faster", "same", "slower", "noisy"]


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a model weighs and costs. None: not measured.

    Attributes:
        bytes: size of the written model, external data included.
        nodes: nodes in the main graph and all subgraphs.
        params: elements of all initializers and constant tensors.
        macs: multiply-accumulates of one run at the measured shapes.
        peak_activation_bytes: most bytes of activations alive at once, in graph order.
        latency_ms: median milliseconds of one run on the target.
        metric: what the evaluation function returned.
        operators: nodes by operator, `domain:Operator` outside the standard.
    """

    bytes: int | None = None
    nodes: int | None = None
    params: int | None = None
    macs: int | None = None
    peak_activation_bytes: int | None = None
    latency_ms: float | None = None
    metric: float | None = None
    operators: dict[str, int] | None = None


@dataclasses.dataclass(frozen=True)
class OutputError:
    """How far one output moved, over all probe inputs.

    Attributes:
        rel_l2: ||a - b|| / ||a||.
        max_abs: largest absolute difference.
        sqnr_db: 20 log10(||a|| / ||a - b||); inf if equal.
        cosine: cosine of the angle between the two.
        top1: share of rows whose argmax agrees, where the output looks like logits, else None.
    """

    rel_l2: float
    max_abs: float
    sqnr_db: float
    cosine: float
    top1: float | None = None


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far an output still says what the source says (`graphopt.verification.agreement`).

    Attributes:
        kind: what is compared: "decisions", "scores", "sequences", "chances", "embedding" or
            "values".
        n: cases that were compared: decisions, or runs of what is not decided.
        disagreements: how many differ; None of what is not decided.
        figure: their share; 1 - cosine of embeddings; error over spread of values.
        limit: the largest figure that agrees.
    """

    kind: str
    n: int
    disagreements: int | None
    figure: float
    limit: float

    @property
    def over(self) -> float:
        """The figure over its limit: above 1 the output says something else.

        One case of a few dozen is no share: it alone is never over.
        """
        if self.disagreements == 1 and self.n >= FEW:
            return min(1.0, self.figure / self.limit) if self.limit else math.inf
        return self.figure / self.limit if self.limit else math.inf if self.figure else 0.0

    def __str__(self) -> str:
        if self.disagreements is None:
            what = "1 - cosine" if self.kind == "embedding" else "error over spread"
            return f"{what} {self.figure:.2g} (at most {self.limit:.2g})"
        return (
            f"{self.disagreements} of {self.n} {self.kind} differ ({self.figure:.1%}, "
            f"at most {self.limit:.1%})"
        )


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of the edits of exact passes (`graphopt.proving`).

    Attributes:
        proved: equal for every input, by congruence or by normal form.
        checked: equal on inputs drawn for their region alone, in float64.
        assumed: neither could be done; kept only where `trust` says so.
    """

    proved: int = 0
    checked: int = 0
    assumed: int = 0

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(
            self.proved + other.proved, self.checked + other.checked, self.assumed + other.assumed
        )

    def __str__(self) -> str:
        total = self.proved + self.checked + self.assumed
        return (
            f"{total} edits: {self.proved} proved, {self.checked} checked, {self.assumed} assumed"
        )


@dataclasses.dataclass(frozen=True)
class Undone:
    """An edit that was taken back."""

    rule: str
    node: str
    reason: str


@dataclasses.dataclass(frozen=True, repr=False)
class Step:
    """One pass of the pipeline; see the fields of `Figures` and `OutputError` for units.

    `latency_ratio` is latency after over latency before, with its 95 % interval, and `verdict` what
    it allows to say: "noisy" is nothing.
    """

    spec: str
    status: Status
    reason: str = ""
    edits: int = 0
    seconds: float = 0.0
    bytes: int | None = None
    nodes: int | None = None
    params: int | None = None
    macs: int | None = None
    latency_ms: float | None = None
    latency_ratio: float | None = None
    latency_ratio_ci: tuple[float, float] | None = None
    verdict: Verdict | None = None
    error_vs_source: dict[str, OutputError] | None = None
    error_vs_previous: dict[str, OutputError] | None = None
    metric: float | None = None
    agreement: dict[str, Agreement] | None = None
    evidence: Evidence | None = None
    undone: tuple[Undone, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        ratio = self.latency_ratio
        speed = f", {1 / ratio:.2f}x speed" if ratio and self.verdict != "noisy" else ""
        return f"<Step {_short(self.spec)}: {self.status}, {self.edits} edits{speed}>"


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """The whole run.

    `validated` is False if neither samples nor a budget judged the result. `latency_ratio` is the
    result's latency over the source's, from interleaved pairs, with its 95 % interval, and
    `verdict` what it allows to say: "noisy" is nothing.

    `machine` is where it ran (processor, extensions, processors and threads used), `command` what
    was typed (None from Python), `tuned` every session option that was tried on the written model.
    """

    graphopt: str
    input: str
    output: str | None
    target: str
    seed: int
    limits: dict[str, Any]
    met: bool | None
    before: Figures
    after: Figures
    steps: tuple[Step, ...]
    latency_ratio: float | None = None
    latency_ratio_ci: tuple[float, float] | None = None
    verdict: Verdict | None = None
    validated: bool = False
    evidence: Evidence | None = None
    machine: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    command: str | None = None
    tuned: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def gain(self) -> str:
        """What the result is to the source: `0.27x size, 2.10x speed`."""
        parts = []
        if self.before.bytes and self.after.bytes:
            parts.append(f"{self.after.bytes / self.before.bytes:.2f}x size")
        if self.latency_ratio and self.verdict != "noisy":
            parts.append(f"{1 / self.latency_ratio:.2f}x speed")
        return ", ".join(parts)

    @property
    def changed_operators(self) -> dict[str, tuple[int, int]]:
        """Operators of which there are more or fewer than before: how many were, how many are."""
        before, after = self.before.operators or {}, self.after.operators or {}
        names = sorted({*before, *after})
        pairs = {name: (before.get(name, 0), after.get(name, 0)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def __str__(self) -> str:
        kept = sum(step.status == "kept" for step in self.steps)
        name = _short(PurePath(self.input).name)
        told = [f"{name} on {self.target}: {kept} of {len(self.steps)} steps kept", self.gain]
        told += ["budget missed"] if self.met is False else []
        return ", ".join(filter(None, told))

    def __repr__(self) -> str:
        return f"<Report {self}>"

    def _repr_html_(self) -> str:
        heads = ("step", "", "size", "nodes", "params", "MACs", "latency")
        rows = [_cells("source", "", self.before)]
        rows += [_cells(step.spec, step.status, step) for step in self.steps]
        rows.append(_cells("result", self.gain, self.after))
        reasons = ["", *(step.reason for step in self.steps), ""]
        return table_html(heads, list(zip(rows, reasons, strict=True)), self.notes)

    def to_json(self) -> dict[str, Any]:
        """Plain data: `{schema, graphopt, input, output, target, seed, budget, before, ...}`."""
        data = dataclasses.asdict(self)
        budget = {"limits": data.pop("limits"), "met": data.pop("met")}
        validated = data.pop("validated")
        return {"schema": SCHEMA, **data, "budget": budget, "unvalidated": not validated}


def _cells(name: str, status: str, f: Figures | Step) -> list[str]:
    """A row of the table: what a model weighs and costs."""
    figures = [size(f.bytes), count(f.nodes), count(f.params), count(f.macs)]
    return [name, status, *figures, milliseconds(f.latency_ms)]


def _short(text: str) -> str:
    return text if len(text) <= 32 else f"{text[:29]}..."


def finite(data: Any) -> Any:
    """`data` with NaN and infinities as None, since JSON has neither."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {k: finite(v) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(v) for v in data]
    return data
