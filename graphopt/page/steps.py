"""The passes on the page: what each did, its evidence, what was undone, refused and left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from graphopt.page.charts import waterfall
from graphopt.page.html import element, listed, section, text
from graphopt.reporting.records import Report, Step
from graphopt.reporting.text import agreed, bound
from graphopt.reporting.units import milliseconds, size

__all__ = ["Edits", "step_section", "waterfalls"]

#: Rule, node, evidence.
Edits = Sequence[tuple[str, str, str]]
STATUS = {"kept": "good", "unchanged": "", "undone": "bad", "refused": "warn"}
#: Nodes named of one rule.
NAMED = 60
#: Lines of a pass that are shown at once.
LINES = 5


def waterfalls(report: Report) -> str:
    """Bytes and latency, from the source to the result, pass by pass."""
    kept = [s for s in report.steps if s.status == "kept"]
    weights = [("source", report.before.bytes, None), *((s.spec, s.bytes, None) for s in kept)]
    weights.append(("result", report.after.bytes, None))
    latency: list[tuple[str, float | None, tuple[float, float] | None]] = []
    level = report.before.latency_ms
    latency.append(("source", level, None))
    for step in kept:
        ratio, ci = step.latency_ratio, step.latency_ratio_ci
        if level is None or ratio is None or step.verdict == "noisy":
            latency.append((step.spec, None, None))
            continue
        interval = (level * ci[0], level * ci[1]) if ci else None
        level *= ratio
        latency.append((step.spec, level, interval))
    total = report.latency_ratio_ci
    before = report.before.latency_ms
    interval = (before * total[0], before * total[1]) if total and before else None
    latency.append(("result", report.after.latency_ms, interval))
    charts = [waterfall("Size of the file", weights, size)]
    if report.before.latency_ms is not None:
        charts.append(waterfall(f"Latency on {report.target}", latency, milliseconds))
    shown = [c for c in charts if c]
    return element("div", *shown, class_="charts") if shown else ""


def step_section(report: Report, edits: Sequence[Edits]) -> str:
    """Every pass, in order."""
    empty: Edits = ()
    rows = [
        _step(step, edits[k] if k < len(edits) else empty) for k, step in enumerate(report.steps)
    ]
    hint = (
        "Every pass runs on a copy; what it made is checked, compared, timed, and kept or undone."
    )
    told = [waterfalls(report)]
    told.append(element("div", *rows, class_="panel"))
    if report.evidence is not None:
        told.append(element("p", text(report.evidence), class_="more"))
    return section("Passes", hint, *told, id_="passes")


def _step(step: Step, edits: Edits) -> str:
    chip = element("span", text(step.status), class_=f"chip {STATUS[step.status]}")
    told = [f"{step.edits} edit{'s' if step.edits != 1 else ''}"] if step.edits else []
    if step.latency_ratio and step.verdict:
        told.append(
            "timing too noisy" if step.verdict == "noisy"
            else f"{1 / step.latency_ratio:.2f}x speed" + _interval(step)
        )  # fmt: skip
    if step.error_vs_source:
        told.append(f"error {max(e.rel_l2 for e in step.error_vs_source.values()):.2g}")
    told.append(f"{step.seconds:.1f} s")
    head = [element("span", text(step.spec), class_="spec"), chip]
    head.append(element("span", text(", ".join(told)), class_="what"))
    lines = [text(step.reason)] if step.reason else []
    if step.status == "kept":
        lines += [text(f"{name}: {found}{bound(found)}") for name, found in agreed(step)]
    lines += [
        element("b", "undone") + text(f" at {u.node} ({u.rule}): {u.reason}") for u in step.undone
    ]
    lines += [text(note) for note in step.notes]
    if step.evidence is not None and step.edits:
        lines.append(text(step.evidence))
    inner = element("div", *head, class_="head") + listed(lines[:LINES]) + _edits(edits)
    if len(lines) > LINES:
        rest = len(lines) - LINES
        label = f"{rest} more line{'s' if rest > 1 else ''}"
        inner += element("details", element("summary", label), listed(lines[LINES:]))
    return element("div", inner, class_="step")


def _interval(step: Step) -> str:
    if step.latency_ratio_ci is None:
        return ""
    low, high = step.latency_ratio_ci
    return f" ({1 / high:.2f} to {1 / low:.2f})"


def _edits(edits: Edits) -> str:
    """Edits by rule, each with how many are proved, checked and assumed, and where."""
    if not edits:
        return ""
    rules: dict[str, list[tuple[str, str]]] = {}
    for rule, node, verdict in edits:
        rules.setdefault(rule, []).append((node, verdict))
    parts = []
    for rule, places in sorted(rules.items(), key=lambda i: -len(i[1])):
        counts = Counter(v for _, v in places if v)
        known = ", ".join(f"{n} {v}" for v, n in counts.most_common())
        nodes = ", ".join(dict.fromkeys(node for node, _ in places[:NAMED]))
        more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
        parts.append(
            element("b", text(rule)) + text(f" ×{len(places)}" + (f", {known}" if known else ""))
            + element("br") + element("span", text(nodes + more), class_="mono")
        )  # fmt: skip
    label = f"{len(edits)} edits by {len(rules)} rule{'s' if len(rules) > 1 else ''}"
    return element("details", element("summary", text(label)), listed(parts))
