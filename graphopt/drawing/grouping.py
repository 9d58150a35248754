"""Repeated blocks and constant subtrees of a graph, which a drawing shows as one box each.

Between two places where a single value passes lies a segment; segments that come again and again in
the same order (the layers of a transformer, the blocks of a residual network) are blocks.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from graphopt.differing.flow import Flow
from graphopt.drawing.groups import Group, cyclic
from graphopt.drawing.scopes import scope_of

__all__ = ["body_groups", "constant_groups", "repeated_blocks"]

#: Blocks have at least and at most so many nodes.
LEAST, MOST = 4, 400
#: Segments that one block may consist of.
PERIOD = 24
#: A value that lives for this share of the graph, and so many nodes, is no bottleneck, nor
#: is what is computed for it alone: an attention mask.
LASTING, SHORTEST = 1 / 3, 48


def constant_groups(flow: Flow, constant: set[int], home: Mapping[int, int]) -> list[Group]:
    """The constant nodes behind each node, or behind each block that shares them with others.

    Args:
        flow: the graph.
        constant: its constant nodes; one that several read is with the first.
        home: the block of each node that is in one.
    """
    parts: dict[tuple[str, int, int | None], list[int]] = {}
    taken: set[int] = set()
    serves = _served(flow, constant, home)
    for k, values in enumerate(flow.reads):
        if k in constant:
            continue
        stack = [m for v in values if (m := flow.maker(v)) is not None and m in constant]
        while stack:
            m = stack.pop()
            if m in taken:
                continue
            taken.add(m)
            block = home.get(k)
            inside = block is not None and serves[m] == block
            key = ("block", block, None) if block is not None and not inside else ("node", k, block)
            parts.setdefault(key, []).append(m)
            stack += [u for v in flow.reads[m] if (u := flow.maker(v)) is not None]
    found = []
    for (_, _, within), part in parts.items():
        label = f"{len(part)} constant" + ("s" if len(part) > 1 else "")
        found.append(Group("constant", label, tuple(sorted(part)), within))
    return found


def body_groups(flow: Flow, apart: set[int], home: Mapping[int, int]) -> list[Group]:
    """The nodes inside of each node with subgraphs; `apart` are constant nodes."""
    parts: dict[int, list[int]] = {}
    holder = 0
    for k, node in enumerate(flow.nodes):
        if node.graph is flow.model.graph:
            holder = k  # those of its subgraphs follow
        elif k not in apart:
            parts.setdefault(holder, []).append(k)
    return [
        Group("block", f"inside {flow.nodes[k].op_type}", tuple(part), home.get(k))
        for k, part in parts.items()
    ]


#: That a constant serves nodes outside of blocks, or of several.
_MANY = -1


def _served(flow: Flow, constant: set[int], home: Mapping[int, int]) -> dict[int, int]:
    """The one block that each constant node's value is for in the end, or `_MANY`."""
    found: dict[int, int] = {}
    for k in sorted(constant, reverse=True):
        blocks = set()
        for value in flow.nodes[k].outputs:
            for r, _ in flow.readers.get(value, ()):
                blocks.add(found.get(r, _MANY) if r in constant else home.get(r, _MANY))
            if value in flow.outputs:
                blocks.add(_MANY)
        found[k] = blocks.pop() if len(blocks) == 1 else _MANY
    return found


def repeated_blocks(flow: Flow, apart: set[int]) -> list[Group]:
    """Blocks of the main graph; `apart` are constant nodes.

    Modules that are numbered, where the exporter noted modules; else segments that come at least
    twice in a row.
    """
    nodes = [k for k, n in enumerate(flow.nodes) if k not in apart and n.graph is flow.model.graph]
    if modules := _modules(flow, nodes):
        return modules
    segments = _segments(flow, nodes)
    signatures = _signatures(flow, segments, apart)
    found: list[Group] = []
    at = 0
    while at < len(segments):
        period, times = _run_at(signatures, segments, at)
        if not times:
            at += 1
            continue
        for k in range(times):
            part = [i for s in segments[at : at + period] for i in s]
            found.append(Group("block", _label(flow, part, k, times), tuple(part)))
            at += period
    return found


def _modules(flow: Flow, nodes: list[int]) -> list[Group]:
    """Nodes by the outermost module they are of that has a number and siblings."""
    scopes = {k: scope_of(flow.nodes[k]) for k in nodes}
    numbered: dict[tuple[str, ...], set[str]] = {}
    for scope in scopes.values():
        for at, part in enumerate(scope):
            if part.isdigit():
                numbered.setdefault(tuple(scope[:at]), set()).add(part)
    home: list[int | None] = [None] * len(flow.nodes)
    found: dict[tuple[str, ...], int] = {}
    for k, scope in scopes.items():
        for at, part in enumerate(scope):
            if part.isdigit() and len(numbered[tuple(scope[:at])]) > 1:
                home[k] = found.setdefault(tuple(scope[: at + 1]), len(found))
                break
    around = cyclic(flow, home)
    parts: dict[int, list[int]] = {}
    for k, b in enumerate(home):
        if b is not None and b not in around:
            parts.setdefault(b, []).append(k)
    labels = [f"module {p[0]}" if len(p) == 1 else ".".join(p[-3:]) for p in found]
    return [
        Group("block", labels[b], tuple(p)) for b, p in parts.items() if LEAST <= len(p) <= MOST
    ]


def _segments(flow: Flow, nodes: list[int]) -> list[list[int]]:
    """Nodes between places where one value, or none, passes on."""
    place = {k: at for at, k in enumerate(nodes)}
    until = list(range(len(nodes)))
    aside = [False] * len(nodes)
    limit = max(SHORTEST, int(LASTING * len(nodes)))
    for at in range(len(nodes) - 1, -1, -1):
        values = [flow.source(v) for v in flow.nodes[nodes[at]].outputs]
        readers = [place[r] for v in values for r, _ in flow.readers.get(v, ()) if r in place]
        until[at] = max([at, *readers])
        aside[at] = until[at] > at + limit or (bool(readers) and all(aside[r] for r in readers))
    passing = [0] * (len(nodes) + 1)
    for at, end in enumerate(until):
        if at < end and not aside[at]:
            passing[at] += 1
            passing[end] -= 1
    for value in flow.model.graph.inputs:
        readers = [place[r] for r, _ in flow.readers.get(value, ()) if r in place]
        if readers and max(readers) <= limit:
            passing[0] += 1
            passing[max(readers)] -= 1
    found: list[list[int]] = [[]]
    alive = 0
    for at, k in enumerate(nodes):
        alive += passing[at]
        if not aside[at]:
            found[-1].append(k)
            if alive <= 1:
                found.append([])
    return [part for part in found if part]


def _signatures(flow: Flow, segments: list[list[int]], apart: set[int]) -> list[int]:
    """A number per segment, the same for segments of the same operators joined in the same way."""
    table: dict[Hashable, int] = {}
    found = []
    for part in segments:
        place = {k: at for at, k in enumerate(part)}
        rows = []
        for k in part:
            values = [v for v in flow.reads[k] if v is not None and flow.constant(v) is None]
            makers = [m if (m := flow.maker(v)) is not None else -1 for v in values]
            joined = tuple(place.get(m, -1) for m in makers if m not in apart)
            rows.append((flow.nodes[k].op_type, joined))
        found.append(table.setdefault(tuple(rows), len(table)))
    return found


def _run_at(signatures: list[int], segments: list[list[int]], at: int) -> tuple[int, int]:
    """Segments in a block that begins here and comes again at once, and how often it comes."""
    best = (0, 0, 0)
    for period in range(1, min(PERIOD, (len(signatures) - at) // 2) + 1):
        block = signatures[at : at + period]
        size = sum(len(s) for s in segments[at : at + period])
        if not LEAST <= size <= MOST:
            continue
        times = 1
        while signatures[at + times * period : at + (times + 1) * period] == block:
            times += 1
        if times > 1 and times * size > best[0]:
            best = (times * size, period, times)
    return best[1], best[2]


def _label(flow: Flow, part: list[int], k: int, times: int) -> str:
    """The module its nodes are of, as the exporter says, or its number."""
    scopes = [s for s in (scope_of(flow.nodes[i]) for i in part) if s]
    if len(scopes) * 2 > len(part):
        common = list(scopes[0])
        for scope in scopes[1:]:
            same = [a == b for a, b in zip(common, scope, strict=False)]
            common = common[: same.index(False) if False in same else len(same)]
        if common and any(c.isdigit() for c in common[-1]):
            return ".".join(common[-3:])
    return f"block {k + 1} of {times}"
