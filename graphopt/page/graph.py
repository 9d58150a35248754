"""The graph on the page: models as scenes, joined to the first of them, and the controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from graphopt.context import Context
from graphopt.differing.difference import Difference
from graphopt.differing.fates import explain
from graphopt.differing.flow import Digests, Flow
from graphopt.differing.matching import match
from graphopt.drawing.groups import Group
from graphopt.drawing.scene import Facts, Scene, Strings, scene_of
from graphopt.page.facts import facts_of
from graphopt.page.html import element, section, text

__all__ = ["Drawn", "Stages"]

#: Nodes of all graphs on a page; passes in between are left out when there are more.
MOST_NODES = 24_000
PAIR = "Hover a node to see where it went or came from; click to hold it and find its counterpart."
HOW = (
    "A click opens a block. Drag to move, Ctrl and wheel to zoom; with the keyboard: arrows, "
    "Enter, plus and minus, 0 to fit."
)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One graph of the page: what it is called and how it is drawn."""

    label: str
    scene: Scene
    facts: Mapping[str, Facts]
    before: list[Any]


class Stages:
    """A model, and what it became pass by pass.

    Args:
        label: what the first model is called.
        model: the first model.
        shapes: concrete shapes of its inputs.
        ms: milliseconds of one run by node.
    """

    def __init__(
        self,
        label: str,
        model: ir.Model,
        shapes: Mapping[str, tuple[int, ...]],
        ms: Mapping[str, float] | None = None,
    ) -> None:
        self.strings = Strings()
        self.shapes = shapes
        self.model = model
        self.digests = Digests()
        flow = Flow(model, self.digests)
        facts = facts_of(flow, Context(model, shapes=shapes), ms)
        self.drawn = [Drawn(label, scene_of(flow, self.strings, facts=facts), facts, [])]

    @property
    def blocks(self) -> list[Group]:
        """The blocks of the first model, which are those of the others too."""
        return [g for g in self.drawn[0].scene.groups if g.kind == "block"]

    def add(
        self,
        label: str,
        model: ir.Model,
        *,
        ms: Mapping[str, float] | None = None,
        errors: Mapping[str, float] | None = None,
        found: Difference | None = None,
    ) -> None:
        """Draw what the first model has become; `found` is how it differs, if that is known."""
        matched = found.match if found else match(self.model, model, self.digests)
        before, after = (found.before, found.after) if found else explain(matched)[:2]
        facts = facts_of(matched.b, Context(model, shapes=self.shapes), ms, errors)
        scene = scene_of(matched.b, self.strings, facts=facts, fates=after, blocks=self.blocks)
        self.drawn.append(Drawn(label, scene, facts, before))

    def data(self) -> dict[str, Any]:
        """What the scripts draw."""
        kept = self.drawn
        while len(kept) > 2 and sum(len(d.scene.flow.nodes) for d in kept) > MOST_NODES:
            kept = [*kept[:1], *kept[2:]]
        stages = []
        for drawn in kept:
            stage: dict[str, Any] = {"label": drawn.label, "graph": drawn.scene.data}
            if drawn.before:
                columns: dict[str, list[Any]] = {
                    "fate": [self.strings(e.fate) for e in drawn.before],
                    "reason": [self.strings(e.reason) for e in drawn.before],
                    "by": [self.strings(" ".join(e.by)) for e in drawn.before],
                    "others": [list(e.others) for e in drawn.before],
                }
                stage["left"] = {k: c if any(c) else [] for k, c in columns.items()}
            stages.append(stage)
        by = dict.fromkeys(p for d in kept for e in d.before for p in e.by)
        passes = dict.fromkeys([*(d.label for d in kept if d.label in by), *by])
        return {"stages": stages, "passes": list(passes), "strings": self.strings.all}

    def html(self, passes: Sequence[str] = ()) -> str:
        """The section with the panes."""
        first, last = self.drawn[0], self.drawn[-1]
        pair = len(self.drawn) > 1
        counts = [len(d.scene.flow.nodes) for d in (first, last)]
        hint = PAIR if pair else "Hover a node to see what it makes and holds."
        hint = f"{hint} {HOW}"
        tools = [
            element("input", type="search", id="find", placeholder="Find a node",
                    aria_label="Find a node"),
            element("button", "Open or close all blocks", type="button", id="unfold"),
            element("button", "Fit", type="button", id="fit"),
            element("span", class_="grow"),
        ]  # fmt: skip
        if len(self.data()["stages"]) > 2:
            top = len(self.data()["stages"]) - 1
            tools.append(
                element(
                    "label",
                    "After pass ",
                    element("input", type="range", id="stage", min=1, max=top, value=top, step=1),
                    element("output", text(last.label), id="stage-name"),
                    class_="passes",
                )
            )
        panes = [
            element(
                "div",
                element(
                    "canvas",
                    tabindex=0,
                    role="application",
                    aria_label=f"Graph of {drawn.label}, {n} nodes",
                ),
                element("h3", text(drawn.label), id=f"pane-{k}"),
                class_="pane panel",
            )
            for k, (drawn, n) in enumerate(zip((first, last)[: 1 + pair], counts, strict=False))
        ]
        return section(
            "Graph, before and after" if pair else "Graph",
            hint,
            element("div", *tools, class_="tools"),
            element("div", *panes, class_="panes" if pair else "panes single"),
            element("ul", class_="legend"),
            element("p", id="said", class_="quiet", aria_live="polite"),
            id_="graph",
            wide=True,
        )
