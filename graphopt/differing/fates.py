"""What became of every node: the same, changed, replaced, removed or added, and why."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import onnx_ir as ir

from graphopt.differing.flow import attributes_of, form_of, passes_on
from graphopt.differing.hashes import Table
from graphopt.differing.matching import Match
from graphopt.differing.regions import Region, regions_of, slots
from graphopt.graph.provenance import made_by, why

__all__ = ["Explained", "Fate", "explain"]

Fate = Literal["same", "rewired", "changed", "replaced", "removed", "added"]


@dataclasses.dataclass(frozen=True)
class Explained:
    """What became of one node.

    Attributes:
        fate: "same"; "rewired": the same, but reads something else; "changed": in its attributes or
            weights; "replaced": by, or for, nodes of the other model; "removed"; "added".
        kind: in a few words without names, "" for the same: what those of one kind share.
        reason: in words; "" for the same.
        others: the nodes of the other model that it corresponds to.
        by: passes that did it, as provenance says.
    """

    fate: Fate
    kind: str = ""
    reason: str = ""
    others: tuple[int, ...] = ()
    by: tuple[str, ...] = ()


def explain(found: Match) -> tuple[list[Explained], list[Explained], list[Region]]:
    """What became of every node of the first model, where every node of the second is from, and the
    regions between; in time linear in the size of the two."""
    return _Explaining(found).run()


class _Explaining:
    def __init__(self, found: Match) -> None:
        self.m, self.a, self.b = found, found.a, found.b
        self.before: list[Explained | None] = [None] * len(self.a.nodes)
        self.after: list[Explained | None] = [None] * len(self.b.nodes)
        #: Per node of the first model, those of the second that say they came from it.
        self.heirs: dict[int, list[int]] = {}
        for y, origin in enumerate(found.origins):
            for x in origin:
                self.heirs.setdefault(x, []).append(y)

    def run(self) -> tuple[list[Explained], list[Explained], list[Region]]:
        regions = list(regions_of(self.m, self.heirs))
        for region in regions:
            for x in region.before:
                self.before[x] = self._gone(x, region)
            for y in region.after:
                self.after[y] = self._new(y, region)
        for x, twin in enumerate(self.m.to):
            if twin is not None:
                self.before[x], self.after[twin] = self._twins(x, twin)
        return (
            [e for e in self.before if e is not None],
            [e for e in self.after if e is not None],
            regions,
        )

    # --- twins ------------------------------------------------------------------------------

    def _twins(self, x: int, y: int) -> tuple[Explained, Explained]:
        by = made_by(self.b.nodes[y])
        taken = [o for o in self.m.origins[y] if o != x]
        parts = {
            "attributes": list(self._attributes(x, y)),
            "weights": list(self._weights(x, y)),
        }
        if taken:
            kind = f"took in {_listed([self.a.nodes[o].op_type for o in taken])}"
            parts[kind] = [f"took in {_listed([self.a.names[o] for o in taken])}"]
        fate: Fate = "changed" if any(parts.values()) else "same"
        if fate == "same" and (moved := self._rewired(x, y)):
            fate, parts = "rewired", {"inputs": moved}
        kind = ", ".join(k for k, lines in parts.items() if lines)
        told = [line for lines in parts.values() for line in lines]
        if note := _without_options(why(self.b.nodes[y])):
            told.append(note)
        reason = "; ".join(told)
        if self.a.names[x] != self.b.names[y]:
            reason = "; ".join(filter(None, [reason, f"now called {self.b.names[y]}"]))
        heirs = tuple(dict.fromkeys([y, *self.heirs.get(x, ())]))
        origin = tuple(dict.fromkeys([x, *self.m.origins[y]]))
        by = by if fate != "same" else ()
        return Explained(fate, kind, reason, heirs, by), Explained(fate, kind, reason, origin, by)

    def _attributes(self, x: int, y: int) -> Iterator[str]:
        p = attributes_of(self.a.nodes[x], self.a.digests)
        q = attributes_of(self.b.nodes[y], self.b.digests)
        for name in sorted({*p, *q}):
            if p.get(name) != q.get(name):
                old, new = (_written(n, name) for n in (self.a.nodes[x], self.b.nodes[y]))
                yield f"{name} {old} -> {new}"

    def _weights(self, x: int, y: int) -> Iterator[str]:
        for slot, (p, q) in enumerate(slots(self.a.reads[x], self.b.reads[y])):
            s, t = self.a.constant(p), self.b.constant(q)
            if s is not None and (held := self._dequantized(q)) is not None:
                yield f"input {slot} is held as {held.dtype.name}"
            elif s is not None and t is not None and self.a.digests(s) != self.b.digests(t):
                shapes = [form_of(u) for u in (s, t)]
                what = " -> ".join(dict.fromkeys(shapes))
                yield f"input {slot} holds other numbers ({what})"

    def _dequantized(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """The constant that DequantizeLinear makes a value of the second model from."""
        k = self.b.maker(value)
        if k is None or self.b.nodes[k].op_type != "DequantizeLinear":
            return None
        return self.b.constant(self.b.reads[k][0])

    def _rewired(self, x: int, y: int) -> list[str]:
        """Inputs that come from elsewhere; values that a region replaced count as themselves."""
        told = []
        for slot, (p, q) in enumerate(slots(self.a.reads[x], self.b.reads[y])):
            if self._same_value(p, q):
                continue
            k = self.b.maker(q)
            if k is not None and self.b.nodes[k].op_type == "DequantizeLinear":
                told.append(f"input {slot} is quantized now")
            else:
                told.append(f"input {slot} was {_called(p)}, is {_called(q)}")
        return told

    def _same_value(self, p: ir.Value | None, q: ir.Value | None) -> bool:
        if p is None or q is None:
            return p is q
        s, t = self.a.constant(p), self.b.constant(q)
        if s is not None or t is not None:
            return s is not None and t is not None and self.a.digests(s) == self.b.digests(t)
        made, remade = self.a.made.get(p), self.b.made.get(q)
        if made is None or remade is None:
            here, there = self.m.inputs
            return made is remade and here.get(p.name or "", -1) == there.get(q.name or "", -2)
        if self.m.to[made[0]] is None and self.m.back[remade[0]] is None:
            return True  # what made it was replaced
        return self.m.to[made[0]] == remade[0] and made[1] == remade[1]

    # --- nodes without a twin ---------------------------------------------------------------

    def _gone(self, x: int, region: Region) -> Explained:
        node = self.a.nodes[x]
        heirs = self.heirs.get(x, [])
        by = tuple(dict.fromkeys(p for y in heirs for p in made_by(self.b.nodes[y])))
        if heirs:
            return self._into("replaced", "became part of", heirs, by)
        if found := self._needless(x, node):
            return Explained("removed", *found, self._served(x), by)
        by = tuple(dict.fromkeys(p for y in region.after for p in made_by(self.b.nodes[y])))
        if region.after:
            return self._into("replaced", "gave way to", region.after, by)
        served = self._served(x)
        by = tuple(dict.fromkeys(p for y in served for p in made_by(self.b.nodes[y])))
        if not served:
            return Explained("removed", "unused", "no output needs it any more")
        return self._into("removed", "what it did is left to", served, by)

    def _into(self, fate: Fate, how: str, to: Sequence[int], by: tuple[str, ...]) -> Explained:
        operators = _listed([self.b.nodes[y].op_type for y in to])
        named = _listed([f"{self.b.names[y]} ({self.b.nodes[y].op_type})" for y in to])
        return Explained(fate, f"{how} {operators}", f"{how} {named}", tuple(to), by)

    def _needless(self, x: int, node: ir.Node) -> tuple[str, str] | None:
        """Kind and reason for a node that nothing has to replace."""
        if passes_on(node):
            return "passed on", "it only passed its input on"
        if x not in self._living:
            return "unused", "no output needs it"
        if x in self._constant:
            return "constant", "constant: computed ahead"
        twin = self._first.get(x)
        return None if twin is None else ("duplicate", f"the same as {self.a.names[twin]}")

    @cached_property
    def _living(self) -> set[int]:
        return self.a.living()

    @cached_property
    def _constant(self) -> set[int]:
        return self.a.constants()

    @cached_property
    def _first(self) -> dict[int, int]:
        """Per node that repeats another with a twin, that one."""
        inputs = {v.name or "": k for k, v in enumerate(self.a.model.graph.inputs)}
        keys = Table().from_inputs(self.a, "exact", inputs)
        kept = {key: x for x, key in enumerate(keys) if self.m.to[x] is not None}
        return {x: kept[k] for x, k in enumerate(keys) if kept.get(k, x) != x}

    def _served(self, x: int) -> tuple[int, ...]:
        """What became of the first nodes with a twin or heirs that read what `x` makes."""
        if x not in self._below:
            stack = [x]
            while stack:  # readers first, since what they serve is what this serves
                k = stack[-1]
                values = (self.a.source(v) for v in self.a.nodes[k].outputs)
                readers = {r for v in values for r, _ in self.a.readers.get(v, ()) if r > k}
                open_ = [r for r in readers if not self._stands(r) and r not in self._below]
                if open_:
                    stack += open_
                    continue
                stack.pop()
                found: dict[int, None] = {}
                for r in sorted(readers):
                    found.update(dict.fromkeys(self._stands(r) or self._below[r]))
                self._below[k] = tuple(found)[:MOST]
        return self._below[x]

    def _stands(self, x: int) -> tuple[int, ...]:
        """What of the second model stands for a node: its twin, or its heirs."""
        twin = self.m.to[x]
        return (twin,) if twin is not None else tuple(self.heirs.get(x, ()))

    @cached_property
    def _below(self) -> dict[int, tuple[int, ...]]:
        return {}

    def _new(self, y: int, region: Region) -> Explained:
        node = self.b.nodes[y]
        by, note = made_by(node), _without_options(why(node))
        origin = self.m.origins[y] or region.before
        if origin:
            kind = f"for {_listed([self.a.nodes[x].op_type for x in origin])}"
            told = f"for {_listed([self.a.names[x] for x in origin])}"
            return Explained("replaced", kind, f"{note}; {told}" if note else told, origin, by)
        return Explained("added", "new", note or self._between(y), (), by)

    def _between(self, y: int) -> str:
        if self.b.nodes[y].op_type == "Constant":
            return "a constant"
        values = self.b.reads[y]
        source = next((_called(v) for v in values if v is not None), "")
        return f"reads {source}" if source else ""


#: Nodes named where there may be many.
MOST = 8


def _without_options(note: str) -> str:
    """What a pass says of a node, without the options it was run with."""
    return re.sub(r"^([^(:]+)\(.*?\): ", r"\1: ", note)


def _called(value: ir.Value | None) -> str:
    return "absent" if value is None else value.name or "a value"


def _listed(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - 3} more" if len(unique) > 4 else ""
    return ", ".join(unique[:3] if more else unique) + more


def _written(node: ir.Node, name: str) -> str:
    """An attribute's value as text."""
    held = node.attributes.get(name)
    if held is None:
        return "default"
    value: Any = held.ref_attr_name if held.is_ref() else held.value
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, ir.TensorProtocol):
        return form_of(value)
    return str(value)
