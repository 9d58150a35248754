"""Graph matching: pairs of nodes of two models that are the same node.

By provenance where it is there; then by what cannot be chance (all that a node computes, all that
is computed from it, the weights it reads), by names, by the shape of the graph, and last by what
stands next to nodes that are paired. Every stage looks at each node and edge a bounded number of
times, so the time is linear in the size of the graphs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence

import onnx_ir as ir

from graphopt.differing.flow import Digests, Flow
from graphopt.differing.hashes import Detail, Table
from graphopt.differing.neighbours import STEPS, WEIGHT, chain, readers, readers_of_weights
from graphopt.graph.provenance import BY, TRIMMED, sources

__all__ = ["Match", "match"]

#: Names that agree with so much of what is certain are believed before the graph's shape is.
BELIEVED = 0.8
#: What makes nodes of the two models alike.
_Keys = tuple[Sequence[Hashable], Sequence[Hashable]]


@dataclasses.dataclass(frozen=True)
class Match:
    """Two models' nodes, paired.

    Attributes:
        a, b: the models.
        to: per node of `a`, its twin in `b`, or None.
        back: per node of `b`, its twin in `a`, or None.
        how: per node of `a` with a twin, what told: "provenance", "computes", "used", "weights",
            "name", "shape" or "neighbours".
        origins: per node of `b`, the nodes of `a` that it came from, as its provenance says.
        kin: nodes of the two, maybe of other operators, that alone read the same weights.
        inputs: of `a` and `b`, a number for each input by name, equal for those that correspond.
    """

    a: Flow
    b: Flow
    to: list[int | None]
    back: list[int | None]
    how: list[str]
    origins: list[tuple[int, ...]]
    kin: list[tuple[int, int]]
    inputs: tuple[dict[str, int], dict[str, int]]


def match(a: ir.Model, b: ir.Model, digests: Digests | None = None) -> Match:
    """Pair the nodes of two models; in time linear in their nodes, edges and bytes of weights.

    Args:
        a, b: the models.
        digests: hashes of weights that are known, for several models that share them.
    """
    digests = digests or Digests()
    return _Matching(Flow(a, digests), Flow(b, digests)).run()


class _Matching:
    """Pairs found so far."""

    def __init__(self, a: Flow, b: Flow) -> None:
        self.a, self.b = a, b
        self.to: list[int | None] = [None] * len(a.nodes)
        self.back: list[int | None] = [None] * len(b.nodes)
        self.how = [""] * len(a.nodes)
        self.origins: list[tuple[int, ...]] = [()] * len(b.nodes)
        self.table = Table()
        self.inputs = _interface(a.model, b.model)
        own, other = readers_of_weights(a), readers_of_weights(b)
        self.kin = [(k, other[w]) for w, k in own.items() if w in other]

    def run(self) -> Match:
        self._provenance()
        self._hashes("exact")
        self._keys("weights", *(self.table.by_weights(f, WEIGHT) for f in (self.a, self.b)))
        if self._names_agree():
            self._names()
            self._neighbours()
            self._hashes("shapes")
        else:
            self._neighbours()
            self._hashes("shapes")
            self._names()
        self._hashes("operators")
        self._neighbours()
        return Match(
            self.a, self.b, self.to, self.back, self.how, self.origins, self.kin, self.inputs
        )

    def pair(self, x: int, y: int, how: str) -> None:
        self.to[x], self.back[y], self.how[x] = y, x, how

    def _alike(self, x: int, y: int) -> bool:
        """Whether two nodes are both free and of one operator."""
        if self.to[x] is not None or self.back[y] is not None:
            return False
        p, q = self.a.nodes[x], self.b.nodes[y]
        return p.op_type == q.op_type and (p.domain or "ai.onnx") == (q.domain or "ai.onnx")

    # --- provenance -------------------------------------------------------------------------

    def _provenance(self) -> None:
        """What the nodes themselves say they came from."""
        told = [_tells(f) for f in (self.a, self.b)]
        if not any(told) or any(TRIMMED in f.model.metadata_props for f in (self.a, self.b)):
            return
        if told[0] and told[1]:  # both came from a third: what came from the same nodes there
            keys = [[_origin_key(f, k) for k in range(len(f.nodes))] for f in (self.a, self.b)]
            self._keys("provenance", *keys)
            return
        if told[0]:
            return  # the first came from the second: their names and hashes say the rest
        place: dict[str, int] = {}
        for k, name in enumerate(self.a.names):
            place.setdefault(name, k)
        for y, node in enumerate(self.b.nodes):
            known = [place[n] for n in sources(node) if n in place]
            if BY not in node.metadata_props:
                known = known or [place[n] for n in (self.b.names[y],) if n in place]
            self.origins[y] = tuple(sorted(known)) if BY in node.metadata_props else ()
            same = [x for x in known if self._alike(x, y)]
            if same:
                self.pair(max(same), y, "provenance")

    # --- keys -------------------------------------------------------------------------------

    def _hashes(self, detail: Detail) -> None:
        how = "shape" if detail != "exact" else ""
        down = [self.table.from_inputs(f, detail, i) for f, i in self._sides()]
        self._keys(how or "computes", *down)
        up = [self.table.from_outputs(f, detail) for f, _ in self._sides()]
        if detail == "operators":
            both = [list(zip(d, u, strict=True)) for d, u in zip(down, up, strict=True)]
            self._keys(how, *both)
        self._keys(how or "used", *up)

    def _sides(self) -> Iterable[tuple[Flow, dict[str, int]]]:
        return zip((self.a, self.b), self.inputs, strict=True)

    def _keys(
        self, how: str, of_a: Sequence[Hashable | None], of_b: Sequence[Hashable | None]
    ) -> None:
        """Pair free nodes with the same key: those of one name, then the rest in order.

        Of a key with more nodes on one side the rest is left alone, unless all compute the same.
        """
        there: dict[Hashable, list[int]] = {}
        for y, key in enumerate(of_b):
            if key is not None and self.back[y] is None:
                there.setdefault(key, []).append(y)
        here: dict[Hashable, list[int]] = {}
        for x, key in enumerate(of_a):
            if key in there and self.to[x] is None:
                here.setdefault(key, []).append(x)
        for key, xs in here.items():
            ys = there[key]
            if len(xs) > 1 or len(ys) > 1:
                named = {self.b.names[y]: y for y in ys}
                for x in xs:
                    twin = named.get(self.a.names[x])
                    if twin is not None and self._alike(x, twin):
                        self.pair(x, twin, how)
                xs = [x for x in xs if self.to[x] is None]
                ys = [y for y in ys if self.back[y] is None]
            if len(xs) == len(ys) or how == "computes":
                for x, y in zip(xs, ys, strict=False):
                    if self._alike(x, y):
                        self.pair(x, y, how)

    # --- names ------------------------------------------------------------------------------

    def _names_agree(self) -> bool:
        """Whether names say the same as what is certain does; True if nothing is certain."""
        named: dict[str, int] = {name: y for y, name in enumerate(self.b.names)}
        pairs = [(x, y) for x, y in enumerate(self.to) if y is not None]
        judged = [named[self.a.names[x]] == y for x, y in pairs if self.a.names[x] in named]
        return sum(judged) >= BELIEVED * len(judged)

    def _names(self) -> None:
        """Nodes of one operator with the same name, or whose first outputs have."""
        for key in (_output_name, _node_name):
            named: dict[str, int] = {}
            for y, node in enumerate(self.b.nodes):
                if self.back[y] is None:
                    named.setdefault(key(node), y)
            for x, node in enumerate(self.a.nodes):
                if self.to[x] is None and (name := key(node)):
                    twin = named.get(name)
                    if twin is not None and self._alike(x, twin):
                        self.pair(x, twin, "name")

    # --- neighbours -------------------------------------------------------------------------

    def _neighbours(self) -> None:
        """What feeds and what reads paired nodes, when only one there is its like.

        Those with the same attributes and constants first, then those of one operator; and direct
        neighbours first, then those behind new nodes.
        """
        self._ends()
        pairs = [(x, y) for x, y in enumerate(self.to) if y is not None]
        pairs += [(x, y) for x, y in self.kin if self.to[x] is None and self.back[y] is None]
        exact = self.table.alone(self.a), self.table.alone(self.b)
        rough = [n.op_type for n in self.a.nodes], [n.op_type for n in self.b.nodes]
        ways = [(keys, steps, list(pairs)) for keys in (exact, rough) for steps in (1, STEPS)]
        while (way := next((w for w in ways if w[2]), None)) is not None:
            keys, steps, work = way
            x, y = work.pop()
            found = (*self._above(x, y, steps, keys), *self._below(x, y, steps, keys))
            for p, q in found:
                if self._alike(p, q):
                    self.pair(p, q, "neighbours")
                    for _, _, others in ways:
                        others.append((p, q))

    def _ends(self) -> None:
        """The nodes that make outputs of the same name."""
        there = {n: self.b.maker(v) for v, names in self.b.outputs.items() for n in names}
        for value, names in self.a.outputs.items():
            x, y = self.a.maker(value), there.get(names[0])
            if x is not None and y is not None and self._alike(x, y):
                self.pair(x, y, "neighbours")

    def _above(self, x: int, y: int, steps: int, keys: _Keys) -> Iterable[tuple[int, int]]:
        inner = zip(self.a.inner(x), self.b.inner(y), strict=False)
        for p, q in (*zip(self.a.reads[x], self.b.reads[y], strict=False), *inner):
            ups = chain(self.a, p, self.to, steps)
            downs = chain(self.b, q, self.back, steps)
            ways = sorted((i + j, i, j) for i in range(len(ups)) for j in range(len(downs)))
            for _, i, j in ways:
                if keys[0][ups[i]] == keys[1][downs[j]]:
                    yield ups[i], downs[j]
                    break

    def _below(self, x: int, y: int, steps: int, keys: _Keys) -> Iterable[tuple[int, int]]:
        for p, q in zip(self.a.nodes[x].outputs, self.b.nodes[y].outputs, strict=False):
            here = readers(self.a, p, self.to, steps, keys[0])
            there = readers(self.b, q, self.back, steps, keys[1])
            for key, xs in here.items():
                ys = there.get(key, [])
                if len(xs) == len(ys):
                    yield from zip(xs, ys, strict=True)


def _interface(a: ir.Model, b: ir.Model) -> tuple[dict[str, int], dict[str, int]]:
    """A number for each input of the two, equal for those of one name, or else of one place."""
    sides = [
        [v.name or "" for v in m.graph.inputs if v.name not in m.graph.initializers] for m in (a, b)
    ]
    if set(sides[0]) == set(sides[1]):
        sides[1] = sides[0]
    first, second = ({name: k for k, name in enumerate(names)} for names in sides)
    return first, second


def _tells(flow: Flow) -> bool:
    return any(BY in node.metadata_props for node in flow.nodes)


def _origin_key(flow: Flow, k: int) -> Hashable | None:
    node = flow.nodes[k]
    found = sources(node) or (() if BY in node.metadata_props else (flow.names[k],))
    return (node.domain, node.op_type, found) if found else None


def _output_name(node: ir.Node) -> str:
    return node.outputs[0].name or "" if node.outputs else ""


def _node_name(node: ir.Node) -> str:
    return node.name or ""
