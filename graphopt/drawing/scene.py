"""Scene: a model as a browser draws it, with coordinates, blocks and what is known of each node.

Plain data, strings in one table and numbers in columns, so that it packs well:

* `nodes`: per node its operator, name, shapes, weights, and what became of it, in columns;
* `plans`: levels of boxes. A plan has items (a node, a group, or an input or output), each with the
  layer it is in and the x of its centre; `edges` as [from, to, source, dummies...]. Plan 0 is the
  whole graph, plan g + 1 the inside of group g.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from graphopt.differing.fates import Explained
from graphopt.differing.flow import Flow
from graphopt.drawing.grouping import (
    body_groups,
    constant_groups,
    repeated_blocks,
)
from graphopt.drawing.groups import Group, transferred
from graphopt.drawing.layering import layered, topological

__all__ = ["Facts", "Scene", "Strings", "scene_of"]

#: Letters are about so wide, boxes so much wider.
LETTER, SMALL, EDGE, LEAST = 7.4, 5.9, 24.0, 46.0


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a node besides the graph.

    Attributes:
        shapes: of its outputs, as text.
        weights: of the constants it reads, as text.
        macs, bytes: multiply-accumulates, and bytes of its constants.
        ms: time of one run, None if it was not told apart.
        error: relative L2 to the source's values.
    """

    shapes: str = ""
    weights: str = ""
    macs: int | None = None
    bytes: int = 0
    ms: float | None = None
    error: float | None = None


class Strings:
    """Strings by number, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {"": 0}

    def __call__(self, text: str) -> int:
        """The number of a text."""
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def all(self) -> list[str]:
        """Every text, in the order of its number."""
        return list(self._numbers)


@dataclasses.dataclass(frozen=True)
class Scene:
    """One graph, drawn; `data` is what the page is given, `groups` its boxes of several nodes."""

    flow: Flow
    groups: list[Group]
    data: dict[str, Any]


def scene_of(
    flow: Flow,
    strings: Strings,
    *,
    facts: Mapping[str, Facts] | None = None,
    fates: Sequence[Explained] | None = None,
    blocks: Sequence[Group] | None = None,
) -> Scene:
    """Draw a graph.

    Args:
        flow: the graph.
        strings: where texts are put.
        facts: what is known of nodes, by name.
        fates: what became of each node, in relation to another graph.
        blocks: that graph's blocks, to be the blocks of this one too.
    """
    apart = flow.constants()
    if blocks is not None and fates is not None:
        found = transferred(blocks, [e.others for e in fates], flow, apart)
    else:
        found = repeated_blocks(flow, apart)
    found = [*found, *body_groups(flow, apart, _homes(found))]
    home = _homes(found)
    groups = [*found, *constant_groups(flow, apart, home)]
    data = {
        "nodes": _columns(flow, strings, facts or {}, fates),
        "groups": [[g.kind, strings(g.label)] for g in groups],
        "plans": _Planning(flow, groups, strings, facts or {}).plans(),
    }
    return Scene(flow, groups, data)


def _homes(groups: Sequence[Group]) -> dict[int, int]:
    return {k: g for g, group in enumerate(groups) for k in group.nodes}


def _columns(
    flow: Flow,
    strings: Strings,
    facts: Mapping[str, Facts],
    fates: Sequence[Explained] | None,
) -> dict[str, list[Any]]:
    known = [facts.get(name, Facts()) for name in flow.names]
    told = fates or [Explained("same")] * len(flow.nodes)
    columns: dict[str, list[Any]] = {
        "op": [strings(n.op_type) for n in flow.nodes],
        "name": [strings(name) for name in flow.names],
        "shapes": [strings(f.shapes) for f in known],
        "weights": [strings(f.weights) for f in known],
        "macs": [f.macs or 0 for f in known],
        "bytes": [f.bytes for f in known],
        "ms": [None if f.ms is None else float(f"{f.ms:.3g}") for f in known],
        "error": [None if f.error is None else float(f"{f.error:.3g}") for f in known],
        "fate": [strings(e.fate) for e in told],
        "reason": [strings(e.reason) for e in told],
        "by": [strings(" ".join(e.by)) for e in told],
        "others": [list(e.others) for e in told],
    }
    return {k: c if any(c) else [] for k, c in columns.items()}


class _Planning:
    """The plans of one graph: every level laid out by itself."""

    def __init__(
        self, flow: Flow, groups: list[Group], strings: Strings, facts: Mapping[str, Facts]
    ) -> None:
        self.flow, self.groups, self.strings, self.facts = flow, groups, strings, facts
        #: Per node, the group it is in.
        self.home = _homes(groups)
        self.inputs = {v: k for k, v in enumerate(flow.model.graph.inputs)}
        #: Names of the model's outputs that each node makes.
        self.outputs: dict[int, list[str]] = {}
        for value, names in flow.outputs.items():
            made = flow.maker(value)
            if made is not None:
                self.outputs.setdefault(made, []).extend(names)

    def plans(self) -> list[dict[str, Any]]:
        members: list[list[tuple[str, int]]] = [[] for _ in range(len(self.groups) + 1)]
        seen: set[int] = set()
        for k in range(len(self.flow.nodes)):
            g = self.home.get(k)
            if g is None:
                members[0].append(("node", k))
                continue
            members[g + 1].append(("node", k))
            if g not in seen:
                seen.add(g)
                over = self.groups[g].within
                members[0 if over is None else over + 1].append(("group", g))
        return [self._plan(level - 1, items) for level, items in enumerate(members)]

    def _plan(self, level: int, members: list[tuple[str, int]]) -> dict[str, Any]:
        """Items: ports in, members, ports out; a port stands for a value from, or for, outside."""
        flow = self.flow
        place = {member: i for i, member in enumerate(members)}
        items: list[tuple[str, int]] = []
        edges: list[tuple[tuple[str, int], tuple[str, int], int]] = []
        ports_in: dict[int, None] = {}
        ports_out: dict[int, None] = {}
        for k, values in enumerate(flow.reads):
            target = self._in_plan(level, k)
            for value in (*values, *flow.inner(k)):
                if value is None or (flow.constant(value) is not None and value not in flow.made):
                    continue
                made = flow.maker(value)
                source = -1 - self.inputs.get(value, len(self.inputs)) if made is None else made
                start = None if made is None else self._in_plan(level, made)
                if start == target:
                    continue  # inside one box, or both outside
                if start is None and target is not None:
                    ports_in.setdefault(source)
                    edges.append((("in", source), target, source))
                elif target is None and start is not None:
                    ports_out.setdefault(source)
                elif start is not None and target is not None:
                    edges.append((start, target, source))
        if level < 0:
            ports_out = dict.fromkeys(self.outputs)
        for source in ports_out:
            start = self._in_plan(level, source)
            if start is not None:
                edges.append((start, ("out", source), source))
        within = [(place[a], place[b]) for a, b, _ in edges if a in place and b in place]
        order = topological(len(members), within)
        items = [*(("in", s) for s in ports_in), *(members[i] for i in order)]
        items += [("out", s) for s in ports_out]
        number = {item: i for i, item in enumerate(items)}
        unique = dict.fromkeys((number[a], number[b], s) for a, b, s in edges)
        widths = [self._width(level, item) for item in items]
        drawn = self._drawn_through(items, [(a, b) for a, b, _ in unique])
        aside = [i for i, item in enumerate(items) if self._constant(item)]
        layout = layered(widths, [edge for edge in drawn if edge[0] < edge[1]], aside)
        depth = {i: d for d, layer in enumerate(layout.layers) for i in layer}
        count = len(items)
        return {
            "items": [
                [KINDS.index(kind), ref, depth[i], round(layout.x[i]), round(widths[i])]
                for i, (kind, ref) in enumerate(items)
            ],
            "labels": [self.strings(self._label(level, item)) for item in items],
            "dummies": [[depth[d], round(layout.x[d])] for d in range(count, len(layout.x))],
            "edges": [
                [a, b, s, -1]
                if a > b or (a, b) in layout.far or (a, b) not in drawn
                else [a, b, s, *(d - count for d in layout.chains[a][: depth[b] - depth[a] - 1])]
                for a, b, s in unique
            ],
        }

    def _drawn_through(
        self, items: list[tuple[str, int]], edges: list[tuple[int, int]]
    ) -> dict[tuple[int, int], None]:
        """Edges that are drawn from end to end: of constants only the one to what they stand at."""
        constant = [self._constant(item) for item in items]
        first: dict[int, int] = {}
        for a, b in edges:
            if constant[a] and not constant[b]:
                first[a] = min(first.get(a, b), b)
        return dict.fromkeys((a, b) for a, b in edges if not constant[a] or first.get(a) == b)

    def _constant(self, item: tuple[str, int]) -> bool:
        kind, ref = item
        return kind == "group" and self.groups[ref].kind == "constant"

    def _in_plan(self, level: int, k: int) -> tuple[str, int] | None:
        """The item that a node is, or is in, on a level; None if it is elsewhere."""
        g = self.home.get(k)
        inner: tuple[str, int] = ("node", k)
        while g is not None and g != level:
            inner, g = ("group", g), self.groups[g].within
        return inner if g is not None or level < 0 else None

    def _label(self, level: int, item: tuple[str, int]) -> str:
        """What is written in a box: for a port of the whole graph the input's or output's name."""
        kind, ref = item
        if kind == "node":
            return self.flow.nodes[ref].op_type
        if kind == "group":
            return self.groups[ref].label
        if level >= 0:
            return ""
        if kind == "out":
            return ", ".join(self.outputs[ref])
        inputs = self.flow.model.graph.inputs
        return inputs[-1 - ref].name or "" if -1 - ref < len(inputs) else "value"

    def _width(self, level: int, item: tuple[str, int]) -> float:
        kind, ref = item
        if level >= 0 and kind in ("in", "out"):
            return 12.0
        second = ""
        if kind == "node":
            second = self.facts.get(self.flow.names[ref], Facts()).weights.partition(",")[0]
        elif kind == "group" and self.groups[ref].kind == "block":
            second = f"{len(self.groups[ref].nodes)} nodes   "
        label = self._label(level, item)
        return max(LEAST, LETTER * len(label) + EDGE, SMALL * len(second) + EDGE)


#: Kinds of items, by number.
KINDS = ("node", "group", "in", "out")
