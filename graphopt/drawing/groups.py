"""Groups of nodes that a drawing shows as one box, and those of one graph found on another."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

from graphopt.differing.flow import Flow

__all__ = ["Group", "cyclic", "transferred"]


@dataclasses.dataclass(frozen=True)
class Group:
    """Nodes in one box: a block, or the constants that one node reads.

    Attributes:
        kind: "block" or "constant".
        label: what it is called.
        nodes: their numbers, in order.
        within: the group that it stands in, by number; None outside of all.
    """

    kind: str
    label: str
    nodes: tuple[int, ...]
    within: int | None = None


def transferred(
    blocks: Sequence[Group], others: Sequence[Iterable[int]], flow: Flow, apart: set[int]
) -> list[Group]:
    """The blocks of one graph on another: a node is in the block that most it came from are in.

    Nodes of no origin are in a block that is all there is around them. A block that would stand on
    both sides of a node outside of it is dissolved.
    """
    place = {x: b for b, group in enumerate(blocks) for x in group.nodes}
    home: list[int | None] = []
    for k, origin in enumerate(others):
        inside = Counter(place[x] for x in origin if x in place)
        main = flow.nodes[k].graph is flow.model.graph and k not in apart
        home.append(inside.most_common(1)[0][0] if inside and main else None)
    _adopt(flow, home, {k for k in range(len(home)) if k not in apart and not list(others[k])})
    around = cyclic(flow, home)
    parts: dict[int, list[int]] = {}
    for k, b in enumerate(home):
        if b is not None and b not in around:
            parts.setdefault(b, []).append(k)
    return [
        Group("block", blocks[b].label, tuple(part)) for b, part in parts.items() if len(part) > 1
    ]


def _adopt(flow: Flow, home: list[int | None], new: set[int]) -> None:
    """Put new nodes into the block that is above and below them, through other new nodes."""
    above: dict[int, set[int | None]] = {}
    below: dict[int, set[int | None]] = {}
    for k in sorted(new):
        makers = [m for v in flow.reads[k] if (m := flow.maker(v)) is not None]
        parts = [above[m] if m in new else {home[m]} for m in makers]
        above[k] = set().union(*parts)
    for k in sorted(new, reverse=True):
        values = [flow.source(v) for v in flow.nodes[k].outputs]
        readers = [r for v in values for r, _ in flow.readers.get(v, ())]
        parts = [below.get(r, set()) if r in new else {home[r]} for r in readers]
        below[k] = set().union(*parts) | (
            {None} if any(v in flow.outputs for v in values) else set()
        )
    for k in new:
        around = above[k] | below[k]
        if len(around) == 1:
            home[k] = next(iter(around))


def cyclic(flow: Flow, home: list[int | None]) -> set[int]:
    """Blocks that both feed and read one node, or one another block, from outside."""
    last: dict[int, set[int]] = {}  # per node outside: blocks above it, by number
    found: set[int] = set()
    upon: dict[int, set[int]] = {}
    for k, values in enumerate(flow.reads):
        own = home[k]
        over: set[int] = set()
        for m in (flow.maker(v) for v in values):
            if m is None:
                continue
            there = home[m]
            if there is None:
                over |= last.get(m, set())
            elif there != own:
                over |= {there} | upon.get(there, set())
        if own is None:
            last[k] = over
        else:
            if own in over:
                found.add(own)
            upon.setdefault(own, set()).update(over - {own})
    return found
