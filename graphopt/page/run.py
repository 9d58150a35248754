"""The page of a run: what `optimize`, `search`, `compare` and `diff` made or found."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import onnx_ir as ir

from graphopt.context import Context
from graphopt.differing.difference import Difference, difference
from graphopt.errors import GraphOptError
from graphopt.graph.provenance import sources
from graphopt.page.cards import CARDS, cards, times
from graphopt.page.document import document
from graphopt.page.facts import profile
from graphopt.page.graph import Stages
from graphopt.page.html import element, section, text
from graphopt.page.layers import layer_rows, layer_section
from graphopt.page.ranges import range_section
from graphopt.page.search import search_section
from graphopt.page.steps import step_section
from graphopt.pipeline.prepare import Setting, prepare
from graphopt.pipeline.result import Result
from graphopt.pipeline.stage import Stage
from graphopt.reporting.records import Figures, Report
from graphopt.verification.layer_errors import layer_errors

__all__ = ["Watched", "compare_page", "diff_page", "search_page"]

#: Runs on which layers are compared.
RUNS = 4


class Watched:
    """What a page needs of a run, gathered while it goes on; `watch` is told of every stage."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    def watch(self, stage: Stage) -> None:
        """Remember a copy of a stage, which shares its weights: the run goes on with the model."""
        self.stages.append(dataclasses.replace(stage, model=stage.model.clone()))

    def page(self, report: Report, search: Mapping[str, Any] | None = None) -> bytes:
        """The page.

        Args:
            report: of the run, with its command.
            search: the report of the search that it ended, as plain data.
        """
        run = self._run_of(report)
        setting, source = run[0].setting, run[0].model
        kept = [
            stage
            for stage, step in zip(run[1:], report.steps, strict=False)
            if step.status == "kept" and stage.step is not None and stage.step.status == "kept"
        ]
        last = kept[-1].model if kept else source
        errors = _errors(source, last, setting)
        ms = [_profile(m, setting) for m in (source, last)]
        stages = Stages("source", source, setting.shapes, ms[0])
        for stage in kept:
            final = stage is kept[-1]
            assert stage.step is not None
            stages.add(
                _short(stage.step.spec),
                stage.model,
                ms=ms[1] if final else None,
                errors=_by_heir(last, errors) if final else None,
            )
        edits = [stage.edits for stage in run[1:]]
        body = [
            _header(report),
            element(
                "main",
                step_section(report, edits),
                search_section(search) if search else "",
                stages.html(),
                layer_section(pair=bool(kept)),
                range_section(last, setting.samples) if setting.given and kept else "",
                _again(report),
            ),
        ]
        data = stages.data() | {"layers": layer_rows(stages, errors)}
        return document(f"{PurePath(report.input).name}: {report}", "\n".join(body), data)

    def _run_of(self, report: Report) -> list[Stage]:
        """The stages of the run that the report is of, where several targets were tried."""
        runs: list[list[Stage]] = []
        for stage in self.stages:
            if stage.step is None:
                runs.append([])
            runs[-1].append(stage)
        return next(r for r in reversed(runs) if r[0].setting.target.name == report.target)


def pair_page(
    title: str,
    names: tuple[str, str],
    models: tuple[ir.Model, ir.Model],
    shapes: Mapping[str, tuple[int, ...]],
    figures: tuple[Figures, Figures],
    *,
    found: Difference | None = None,
    lead: str = "",
    latency: str = "",
    errors: Mapping[str, tuple[float, float]] | None = None,
    above: Sequence[str] = (),
    below: Sequence[str] = (),
) -> bytes:
    """The page of two models side by side, with sections above and below the graphs."""
    found = found or difference(*models)
    stages = Stages(names[0], models[0], shapes)
    stages.add(names[1], models[1], found=found, errors=_by_heir(models[1], errors or {}))
    told = [element("p", text(lead), class_="lead")] if lead else []
    shown = cards(CARDS, figures[0], figures[1], latency)
    body = [
        element("header", element("h1", text(title)), *told, shown),
        element("main", *above, stages.html(), *below, layer_section(pair=True)),
    ]
    return document(title, "\n".join(body), stages.data() | {"layers": layer_rows(stages, errors)})


def search_page(path: str, result: Result, report: Report, told: Mapping[str, Any]) -> bytes:
    """The page of a search: the source, and the model that was chosen.

    Args:
        path: the source.
        result, report: what was chosen, and its report with the command.
        told: the report of the search, as plain data.
    """
    setting = prepare(path, target=result.target, verify="graph", measure=False)
    watched = Watched()
    watched.watch(Stage(setting, None, setting.source.model))
    for step in report.steps:
        watched.watch(Stage(setting, step, result.model))
    return watched.page(report, told)


def compare_page(
    names: tuple[str, str],
    models: tuple[ir.Model, ir.Model],
    shapes: Mapping[str, tuple[int, ...]],
    figures: tuple[Figures, Figures],
    told: Mapping[str, Any],
) -> bytes:
    """The page of a comparison; `told` is what `graphopt compare --json` prints."""
    timing = told["timing"]
    latency = ""
    if timing:
        low, high = timing["ci"]
        noisy = timing["verdict"] == "noisy"
        latency = "no verdict" if noisy else f"{times(timing['ratio'])} ({low:.2f}–{high:.2f})"
    rows = [
        (n, *(f"{e[k]:.3g}" for k in ("rel_l2", "max_abs", "sqnr_db", "cosine")),
         "–" if e["top1"] is None else f"{e['top1']:.4f}")
        for n, e in told["outputs"].items()
    ]  # fmt: skip
    heads = ("Output", "Relative L2", "Max abs", "SQNR dB", "Cosine", "Top-1")
    lead = told["broken"] or ("outputs are equal" if told["equal"] else "outputs differ")
    if told["synthetic_inputs"]:
        lead += "; inputs were drawn at random"
    lead = "; ".join([lead, *told["missed"]])
    errors = {e["node"]: (e["rel_l2"], e["added"]) for e in told["layers"]}
    short = (PurePath(names[0]).name, PurePath(names[1]).name)
    if short[0] == short[1]:
        short = names
    return pair_page(
        " and ".join(short), short, models, shapes, figures,
        lead=lead, latency=latency, errors=errors, above=[_table("Outputs", heads, rows)],
    )  # fmt: skip


def diff_page(
    names: tuple[str, str],
    models: tuple[ir.Model, ir.Model],
    shapes: Mapping[str, tuple[int, ...]],
    figures: tuple[Figures, Figures],
    found: Difference,
) -> bytes:
    """The page of a diff: both graphs, what differs in weights, metadata and interface."""
    counts = ", ".join(f"{n} {fate}" for fate, n in found.structure.items())
    weights = found.weights
    lead = f"nodes: {counts}; weights: {weights.same} the same, {len(weights.changed)} changed"
    lead += f", {len(weights.gone)} gone, {len(weights.new)} new"
    changed = []
    for c in weights.changed:
        figures_of = ("–" if v is None else f"{v:.3g}" for v in (c.rel_l2, c.max_abs))
        changed.append((c.name, c.before, c.after, *figures_of, c.note))
    sections = [
        _table(
            "Weights that changed", ("Weight", "Was", "Is", "Relative L2", "Max abs", ""), changed
        ),
        *(
            _table(
                title,
                ("Name", "Was", "Is"),
                [(k, a or "–", b or "–") for k, (a, b) in each.items()],
            )
            for title, each in (("Interface", found.interface), ("Metadata", found.metadata))
        ),
    ]
    title = " and ".join(names)
    return pair_page(title, names, models, shapes, figures, found=found, lead=lead, below=sections)


#: Rows of a table, letters of a cell.
ROWS, LETTERS = 200, 240


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = element("tr", *(element("th", text(h), scope="col") for h in heads))
    lines = [
        element("tr", element("th", text(first), scope="row", class_="mono"),
                *(element("td", text(c if len(c) <= LETTERS else f"{c[:LETTERS]}…")) for c in rest))
        for first, *rest in rows[:ROWS]
    ]  # fmt: skip
    hint = "" if len(rows) <= ROWS else f"The first {ROWS} of {len(rows)}."
    table = element("table", element("thead", head), element("tbody", *lines))
    scroll = element(
        "div", table, class_="panel scroll", tabindex=0, role="region", aria_label=title
    )
    return section(title, hint, scroll)


def _header(report: Report) -> str:
    lead = ", ".join(
        filter(None, (report.gain, f"on {report.target}", f"graphopt {report.graphopt}"))
    )
    chips = []
    if report.met is not None:
        chips.append(("budget met", "good") if report.met else ("budget missed", "bad"))
    chips.append(
        ("judged on your data", "good") if report.validated else ("not judged on your data", "warn")
    )
    if report.verdict:
        known = {"faster": "good", "slower": "bad", "noisy": "warn", "same": ""}
        words = "timing too noisy to say" if report.verdict == "noisy" else report.verdict
        chips.append((words, known[report.verdict]))
    latency = ""
    if report.verdict == "noisy":
        latency = "no verdict"
    elif report.latency_ratio and report.latency_ratio_ci:
        low, high = report.latency_ratio_ci
        latency = f"{times(report.latency_ratio)} ({low:.2f}–{high:.2f})"
    return element(
        "header",
        element("p", text(report.input), class_="eyebrow mono"),
        element("h1", text(PurePath(report.input).name)),
        element("p", text(lead), class_="lead"),
        element(
            "ul", *(element("li", text(w), class_=f"chip {k}") for w, k in chips), class_="chips"
        ),
        cards(CARDS, report.before, report.after, latency),
        element("ul", *(element("li", text(n)) for n in report.notes), class_="notes")
        if report.notes
        else "",
    )


def _again(report: Report) -> str:
    """What to type to do it again, and where it was done."""
    parts = []
    if report.command:
        copy = element("button", "Copy", type="button", class_="copy")
        pre = element("pre", text(report.command), tabindex=0)
        parts.append(element("div", pre, copy, class_="panel repeat"))
    machine = report.machine
    facts = {
        "Processor": f"{machine.get('processor', '')} ({', '.join(machine.get('extensions', ()))})",
        "Threads": f"{machine.get('threads')} of {machine.get('processors')} processors",
        "Versions": ", ".join(f"{k} {v}" for k, v in report.versions.items()),
        "Target, seed": f"{report.target}, {report.seed}",
        "Written": report.output or "nothing",
    }
    if report.tuned:
        facts["Session options"] = ", ".join(
            f"{t['option']} {times(t['ratio'])}{'' if t['kept'] else ' (left out)'}"
            for t in report.tuned
        )
    parts.append(
        element("dl", *(element("dt", k) + element("dd", text(v)) for k, v in facts.items()),
                class_="facts")
    )  # fmt: skip
    return section("Do it again", "", *parts)


def _errors(source: ir.Model, last: ir.Model, setting: Setting) -> dict[str, tuple[float, float]]:
    """Per source node, relative L2 of what it makes, and what it adds to that itself."""
    if setting.judge is None or source is last:
        return {}
    with contextlib.suppress(GraphOptError):
        found = layer_errors(source, last, setting.judge.probe[:RUNS])
        return {e.node: (e.rel_l2, e.added) for e in found}
    return {}


def _by_heir(model: ir.Model, errors: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Errors by the nodes of the second model: the largest of what each came from."""
    found: dict[str, float] = {}
    for node in model.graph.all_nodes() if errors else ():
        known = [errors[n][0] for n in sources(node) if n in errors]
        if known and node.name:
            found[node.name] = max(known)
    return found


def _profile(model: ir.Model, setting: Setting) -> dict[str, float]:
    if not setting.target.measured:
        return {}
    return profile(
        Context(model, target=setting.target, shapes=setting.shapes), setting.target, setting.feeds
    )


def _short(spec: str) -> str:
    return spec.partition("(")[0].rpartition("/")[2]
