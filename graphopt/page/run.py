"""The page of a run: what `optimize` and `search` made, pass by pass."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import onnx_ir as ir

from graphopt.context import Context
from graphopt.errors import GraphOptError
from graphopt.page.cards import CARDS, cards, times
from graphopt.page.document import document
from graphopt.page.facts import profile
from graphopt.page.graph import Stages
from graphopt.page.html import element, section, text
from graphopt.page.layers import layer_rows, layer_section
from graphopt.page.pair import by_heir
from graphopt.page.ranges import range_section
from graphopt.page.search import search_section
from graphopt.page.steps import step_section
from graphopt.pipeline.prepare import Setting
from graphopt.pipeline.result import Result
from graphopt.pipeline.stage import Stage
from graphopt.reporting.records import Report
from graphopt.verification.layer_errors import layer_errors

__all__ = ["Watched", "search_page"]

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
                errors=by_heir(last, errors) if final else None,
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


def search_page(setting: Setting, result: Result, report: Report, told: Mapping[str, Any]) -> bytes:
    """The page of a search: the source, and the model that was chosen.

    Args:
        setting: the source.
        result: what was chosen.
        report: its report, with the command.
        told: the report of the search, as plain data.
    """
    watched = Watched()
    watched.watch(Stage(setting, None, setting.source.model))
    for step in report.steps:
        watched.watch(Stage(setting, step, result.model))
    return watched.page(report, told)


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


def _profile(model: ir.Model, setting: Setting) -> dict[str, float]:
    if not setting.target.measured:
        return {}
    return profile(
        Context(model, target=setting.target, shapes=setting.shapes), setting.target, setting.feeds
    )


def _short(spec: str) -> str:
    return spec.partition("(")[0].rpartition("/")[2]
