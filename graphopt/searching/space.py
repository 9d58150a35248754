"""Search space: the options of every layer and dimension, and a choice among them as a pipeline.

Passes say what they could do (`Pass.choices`) and do what was chosen (`Pass.only`). A layer has one
group for how far it goes (graded values: ranks) and one for its form (the others: precisions), so
that forms of several passes exclude each other and go with any rank. A dimension is a group of its
own. What lies in a branch that is taken out as a whole has no other option besides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from glob import escape
from typing import Any

from graphopt.analyses.dims import dimensions
from graphopt.context import Context
from graphopt.errors import UsageError
from graphopt.layers import pattern_of
from graphopt.pass_ import Pass, format_pass
from graphopt.pipeline.prepare import Setting
from graphopt.spec import format_spec, parse, passes_of

__all__ = [
    "PIPELINE",
    "STAY",
    "Choice",
    "Group",
    "Option",
    "Space",
    "passes_for",
    "shared",
    "space_of",
]

#: What a search uses where nobody says otherwise; -p narrows it.
PIPELINE = 'clean, fold, depth, prune(scope="all"), svd, fuse, int8, weight_only'
#: Index of the option chosen in each group.
Choice = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Option:
    """What is done to a layer: the pass, by its place in the pipeline, and the value of `layers`.

    `kind` names options that lose in the same way: "prune", "int8 static", "weight_only 4". `gone`
    are the nodes that it takes out of the model.
    """

    step: int
    value: Any
    kind: str
    gone: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.step < 0:
            return "as it is"
        if self.gone:
            return "removed"
        name, _, form = self.kind.partition(" ")
        if form:
            return f"{name} {form}"
        return f"{name} {self.value:.0%}" if 0 < self.value < 1 else f"{name} {self.value:g}"


#: A layer that is left as it is.
STAY = Option(-1, None, "")


@dataclasses.dataclass(frozen=True)
class Group:
    """Options that exclude each other; the first is `STAY`.

    Attributes:
        name: pattern of a node or dimension, as `layers=` takes it.
        options: mildest first within each pass.
        sized: it is a dimension, and values are shares of its units that go.
        graded: values are numbers, of which neighbours differ little.
        nodes: those that it changes.
    """

    name: str
    options: tuple[Option, ...]
    sized: bool = False
    graded: bool = False
    nodes: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Space:
    """Everything that may be chosen.

    Attributes:
        base: exact passes that come before any choice.
        steps: the passes after them, searched and fixed.
        groups: what is chosen among.
    """

    base: tuple[Pass, ...]
    steps: tuple[Pass, ...]
    groups: tuple[Group, ...]

    @property
    def nothing(self) -> Choice:
        """The choice that leaves every layer as it is."""
        return (0,) * len(self.groups)

    def option(self, group: int, choice: Choice) -> Option:
        """The option that `choice` takes of a group."""
        return self.groups[group].options[choice[group]]

    def gone(self, choice: Choice) -> frozenset[str]:
        """The nodes that a choice takes out."""
        return frozenset(n for g, k in enumerate(choice) for n in self.groups[g].options[k].gone)

    def passes(self, choice: Choice) -> list[Pass]:
        """The steps after the base that make `choice`: each pass on the layers chosen for it."""
        layers: dict[int, list[tuple[str, Any]]] = {}
        others: dict[int, list[str]] = {}
        gone = self.gone(choice)
        for group, k in zip(self.groups, choice, strict=True):
            if group.nodes and group.nodes <= gone:
                continue
            chosen = group.options[k]
            for step in {o.step for o in group.options if o.step >= 0}:
                if step == chosen.step:
                    layers.setdefault(step, []).append((group.name, chosen.value))
                else:
                    others.setdefault(step, []).append(group.name)
        made = []
        for k, one in enumerate(self.steps):
            if k in layers:
                made.append(one.only(tuple(layers[k]), others.get(k, ())))
            elif not _searchable(one):
                made.append(one)
        return made

    def spec(self, choice: Choice) -> str:
        """The whole pipeline that makes `choice` of the source model."""
        return format_spec([*self.base, *self.passes(choice)])


def passes_for(given: str | Sequence[Any] | None) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
    """The exact passes before any choice, and the rest.

    A pipeline that names searched passes alone gets the exact ones of `PIPELINE` around them.

    Raises:
        UsageError: it leaves nothing to choose.
    """
    whole = parse(PIPELINE)
    passes: list[Any] = whole
    if given is not None:
        passes = passes_of(given)
        if all(_searchable(p) for p in passes):
            passes = _around(passes, whole)
    first = next((k for k, p in enumerate(passes) if _searchable(p)), None)
    if first is None:
        raise UsageError(
            f"-p '{format_spec(passes)}' leaves nothing to choose: name a pass whose layers= says "
            "how far it goes, such as prune or int8"
        )
    return tuple(passes[:first]), tuple(passes[first:])


def space_of(base: Sequence[Pass], steps: Sequence[Pass], setting: Setting) -> Space:
    """The options there are for the model of `setting`, which has the base behind it."""
    model = setting.source.model
    prunable = Context(model).get(dimensions).prunable
    nodes = {(escape(n), True): frozenset(m.node for m in d.members) for n, d in prunable.items()}
    dims = {name for name, _ in nodes}
    for node in model.graph:
        place = pattern_of(node), False
        nodes[place] = nodes.get(place, frozenset()) | {node.name or ""}
    found: dict[tuple[str, bool, bool], list[Option]] = {}
    for k, one in enumerate(steps):
        if not _searchable(one):
            continue
        ctx = Context(model, target=setting.target, samples=setting.samples, shapes=setting.shapes)
        name = format_pass(one).partition("(")[0]
        choices, removed = one.choices(model, ctx), one.removes(model, ctx)
        sized = choices.keys() <= dims  # a node may be called like a dimension
        for layer, values in choices.items():
            for value in values:
                graded = isinstance(value, float)
                gone = removed.get(layer, ())
                kind = name if graded or gone else f"{name} {value}"
                found.setdefault((layer, sized, graded), []).append(Option(k, value, kind, gone))
    groups = tuple(
        Group(name, (STAY, *options), sized, graded, nodes.get((name, sized), frozenset()))
        for (name, sized, graded), options in found.items()
    )
    if not groups:
        raise UsageError(
            f"{format_spec(steps)} finds nothing to choose in this model for "
            f"{setting.target.name}: see `graphopt inspect --dims`, or name other passes with -p"
        )
    return Space(tuple(base), tuple(steps), groups)


def shared(spaces: Sequence[Space]) -> Space:
    """The options that several targets have in common.

    Raises:
        UsageError: there are none.
    """
    first = spaces[0]
    offered = [
        {(g.name, g.sized, g.graded): set(g.options) for g in space.groups} for space in spaces[1:]
    ]
    groups = []
    for group in first.groups:
        place = group.name, group.sized, group.graded
        options = tuple(o for o in group.options if all(o in s.get(place, ()) for s in offered))
        if len(options) > 1:
            groups.append(dataclasses.replace(group, options=options))
    if not groups:
        raise UsageError("the targets have no option in common: search for each alone")
    return dataclasses.replace(first, groups=tuple(groups))


def _searchable(one: Any) -> bool:
    return isinstance(one, Pass) and type(one).choices is not Pass.choices


def _around(passes: Sequence[Pass], whole: Sequence[Pass]) -> list[Pass]:
    """The exact passes of `whole` in their places around `passes`."""
    place = {type(p): k for k, p in enumerate(whole)}
    fixed = [(k, p) for k, p in enumerate(whole) if not _searchable(p)]
    made: list[Pass] = []
    for one in passes:
        at = place.get(type(one), len(whole))
        while fixed and fixed[0][0] < at:
            made.append(fixed.pop(0)[1])
        made.append(one)
    return [*made, *(p for _, p in fixed)]
