"""Evidence: for every edit of an exact pass, whether it is proved, checked or assumed, and how."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir

from graphopt.context import Edit
from graphopt.graph.traverse import all_nodes
from graphopt.proving.numbering import Numbered, numbered
from graphopt.proving.regions import check
from graphopt.proving.windows import Difference, Verdict, Window, windows_of

__all__ = ["Examined", "examine"]

#: From the strongest to the weakest.
ORDER: tuple[Verdict, ...] = ("proved", "checked", "assumed", "refuted")


@dataclasses.dataclass(frozen=True)
class Examined:
    """What is known of the difference between two graphs.

    Attributes:
        windows: the regions that differ, in order.
        edits: the verdict of each edit.
        open: outputs that were not joined: their value is only as good as a run of the model.
        after: the values of the new graph.
    """

    windows: tuple[Window, ...]
    edits: tuple[tuple[Edit, Verdict], ...]
    open: tuple[str, ...]
    after: Numbered

    @property
    def counts(self) -> dict[str, int]:
        """How many edits are proved, checked and assumed."""
        found = Counter(v for _, v in self.edits)
        return {v: found[v] for v in ("proved", "checked", "assumed")}

    @property
    def proved(self) -> bool:
        """Whether all that differs is proved, and every output is joined: no run adds to it."""
        return not self.open and all(w.verdict == "proved" for w in self.windows)

    def whole(self, runs: int) -> Examined:
        """With what the whole model agreed on in so many runs, as the region around the others.

        Not for a region with a branch in it: no run need have taken it.
        """
        unknown = [w for w in self.windows if w.verdict == "assumed"]
        if runs < 2 or any(t.op == "If" for w in unknown for side in w.inner for t in side):
            return self

        def better(verdict: Verdict) -> Verdict:
            return "checked" if verdict == "assumed" else verdict

        means = f"the whole model agrees on {runs} runs"
        windows = tuple(
            dataclasses.replace(w, verdict="checked", means=means) if w in unknown else w
            for w in self.windows
        )
        edits = tuple((e, better(v)) for e, v in self.edits)
        return dataclasses.replace(self, windows=windows, edits=edits)

    @property
    def refuted(self) -> Window | None:
        """The first region that computes something else, if an output depends on it."""
        if not self.open:
            return None
        return next((w for w in self.windows if w.verdict == "refuted"), None)


def examine(
    before: ir.Model, after: ir.Model, edits: Sequence[Edit], known: Numbered | None = None
) -> Examined:
    """Compare a graph with what an exact pass made of it, region by region.

    An edit has the verdict of the regions that its node is in. One outside of every region changed
    nothing that any value depends on, which congruence proves; one at a node that was made and
    replaced again has the weakest verdict of all.

    Args:
        before, after: the graphs; neither is changed.
        edits: what the pass did, in order.
        known: the values of `before`, where an earlier comparison numbered them.
    """
    found = windows_of(known or numbered(before), after, check)
    verdicts = _by_node(found)
    standing = {n.name for m in (before, after) for n in all_nodes(m.graph)}
    standing |= {v.name for m in (before, after) for n in all_nodes(m.graph) for v in n.outputs}
    standing |= set(before.graph.initializers) | set(after.graph.initializers)
    lasting: list[Verdict] = [w.verdict for w in _lasting(found)]
    weakest: Verdict = max(lasting, key=ORDER.index, default="proved")
    if found.open and weakest == "proved":
        weakest = "assumed"
    judged: list[tuple[Edit, Verdict]] = []
    for edit in edits:
        verdict = verdicts.get(edit.node)
        if verdict is None:
            untouched = edit.node in standing and not found.open
            verdict = "proved" if untouched else weakest
        judged.append((edit, verdict))
    return Examined(found.windows, tuple(judged), found.open, found.after)


def _lasting(found: Difference) -> list[Window]:
    """Windows that count: one that was refuted and met again further on is part of that one."""
    if found.open:
        return list(found.windows)
    return [w for w in found.windows if w.verdict in ("proved", "checked")]


def _by_node(found: Difference) -> dict[str, Verdict]:
    verdicts: dict[str, Verdict] = {}
    for window in _lasting(found):
        for name in window.nodes():
            have = verdicts.get(name, "proved")
            verdicts[name] = max(have, window.verdict, key=ORDER.index)
    return verdicts
