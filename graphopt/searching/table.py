"""Cost table: what one operator costs in each form and size, measured once on the target.

    DIR/costs/9c1f....json    {"target": "cpu", "processor": ..., "entries": {"Conv[...] ...": ...}}

An entry is milliseconds of the operator's kernels, of the conversions at its ends that a
neighbour in the same form would spare, bytes of its constants, and MACs. The file holds one
processor, runtime and target; files are merged by taking all entries.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from graphopt.analyses.cost import cost
from graphopt.backend import backend_of
from graphopt.cache import Cache, versions_of
from graphopt.context import Context
from graphopt.errors import GraphOptError
from graphopt.graph.provenance import sources
from graphopt.pass_ import Pass
from graphopt.replacing import alone_in
from graphopt.samples import Samples
from graphopt.searching.branches import Branch, branch_name, side_by_side
from graphopt.target import Target

__all__ = ["Entry", "Form", "Table", "Wanted"]

#: Branches measured in one session, and bytes of their constants.
BATCH, BATCH_BYTES = 48, 128 << 20
#: Sessions that each batch is measured in; the least of their medians counts.
SESSIONS = 3
CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_NAMED = re.compile(r"k(\d+)([nbv])")


@dataclasses.dataclass(frozen=True)
class Form:
    """The passes that change an operator, in order, each with the value of its `layers`."""

    steps: tuple[tuple[Pass, Any], ...] = ()

    def __str__(self) -> str:
        return ", ".join(f"{type(one).__name__} {value}" for one, value in self.steps)


@dataclasses.dataclass(frozen=True)
class Entry:
    """What an operator costs: milliseconds, those of its conversions, constant bytes, MACs."""

    ms: float
    border_ms: float
    bytes: float
    macs: float


@dataclasses.dataclass(frozen=True)
class Wanted:
    """An operator whose cost is asked for: its key, its form, and what makes it."""

    key: str
    form: Form
    branch: Callable[[], Branch]

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.key} {self.form}".strip()


class Table:
    """Costs of operators on a target; what is not known yet is measured when it is asked for.

    Args:
        target: where the operators run. Where it is not measured milliseconds are 0, and the file
            is another one.
        cache: the folder that keeps what was measured; None keeps nothing.
    """

    def __init__(self, target: Target, cache: Cache | None) -> None:
        self.target, self._cache = target, cache
        self.entries: dict[str, Entry] = {}
        #: Entries measured by this object.
        self.measured = 0
        self._versions = versions_of(target, "costs" if target.measured else "sizes")
        self._read()

    def ask(self, wanted: Sequence[Wanted], told: Callable[[int, int], None]) -> None:
        """Measure those of `wanted` that are not known, all of them side by side."""
        missing = list({w.name: w for w in wanted if w.name not in self.entries}.values())
        done = 0
        while done < len(missing):
            told(done, len(missing))
            batch: list[tuple[Wanted, Branch]] = []
            size = 0
            while done + len(batch) < len(missing) and len(batch) < BATCH and size < BATCH_BYTES:
                one = missing[done + len(batch)]
                branch = one.branch()
                size += sum(
                    v.const_value.nbytes
                    for v in branch.model.graph.initializers.values()
                    if v.const_value is not None
                )
                batch.append((one, branch))
            found = _measure([w for w, _ in batch], [b for _, b in batch], self.target)
            for (one, _), entry in zip(batch, found, strict=True):
                self.entries[one.name] = entry
            done += len(batch)
            self.measured += len(batch)
        if missing:
            self._write()

    # --- the file ---------------------------------------------------------------------------

    def _path(self) -> Path | None:
        if self._cache is None:
            return None
        key = hashlib.sha256(json.dumps(self._versions, sort_keys=True).encode()).hexdigest()[:24]
        return self._cache.folder / "costs" / f"{key}.json"

    def _read(self) -> None:
        path = self._path()
        if path is None:
            return
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            data = json.loads(path.read_text())
            if all(data[k] == v for k, v in self._versions.items()):
                known = {name: Entry(*map(float, row)) for name, row in data["entries"].items()}
                self.entries = {**known, **self.entries}

    def _write(self) -> None:
        path = self._path()
        if path is None or self._cache is None:
            return
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        with alone_in(path.parent):  # what another process has measured meanwhile stays
            self._read()
            rows = {n: dataclasses.astuple(e) for n, e in sorted(self.entries.items())}
            text = json.dumps({**self._versions, "entries": rows}, indent=0) + "\n"
            self._cache.write(path, text.encode())


def _measure(wanted: Sequence[Wanted], branches: list[Branch], target: Target) -> list[Entry]:
    """An entry for each branch; one that a runtime refuses spoils no other."""
    copies = [Branch(b.key, b.model.clone(), b.feeds) for b in branches]
    try:
        return _measured(wanted, copies, target)
    except GraphOptError:
        if len(wanted) == 1:
            return [Entry(float("inf"), 0.0, float("inf"), float("inf"))]
    middle = len(wanted) // 2
    return [
        *_measure(wanted[:middle], branches[:middle], target),
        *_measure(wanted[middle:], branches[middle:], target),
    ]


def _measured(wanted: Sequence[Wanted], branches: list[Branch], target: Target) -> list[Entry]:
    model, feeds = side_by_side(branches)
    shapes = {name: a.shape for name, a in feeds.items()}
    here = dataclasses.replace(target, measured=False)
    #: Of each pass its branches: where another comes after it, and where it is the last.
    forms: tuple[dict[Pass, list[tuple[str, Any]]], ...] = ({}, {})
    for k, one in enumerate(wanted):
        for place, (one_pass, value) in enumerate(one.form.steps):
            last = len(one.form.steps) - place == 1
            forms[last].setdefault(one_pass, []).append((branch_name(k), value))
    for one_pass, layers in (*forms[False].items(), *forms[True].items()):
        chosen = {name for name, _ in layers}
        others = [branch_name(k) for k in range(len(wanted)) if branch_name(k) not in chosen]
        samples = Samples([dict(feeds)], "drawn", synthetic=True, placeholders=True)
        ctx = Context(model, target=here, samples=samples, shapes=shapes, pass_name="search")
        one_pass.only(tuple(layers), others).run(model, ctx)
    kinds = _rename(model)
    counted = cost(Context(model, shapes=shapes)).nodes
    bytes_, macs = [0.0] * len(wanted), [0.0] * len(wanted)
    for name, node_cost in counted.items():
        if name in kinds:
            macs[kinds[name]] += node_cost.macs or 0
    for name, value in model.graph.initializers.items():
        whose = _NAMED.match(name)
        if whose is not None and value.const_value is not None:
            bytes_[int(whose[1])] += value.const_value.nbytes
    ms, border = _times(model, feeds, target, len(wanted))
    return [Entry(*row) for row in zip(ms, border, bytes_, macs, strict=True)]


def _rename(model: Any) -> dict[str, int]:
    """Name every node by its branch, so that a profile tells whose it is; the branch by name."""
    found: dict[str, int] = {}
    for j, node in enumerate(model.graph):
        whose = next((m for s in sources(node) if (m := _NAMED.match(s))), None)
        whose = whose or _NAMED.match(node.name or "")
        if whose is None:
            continue
        border = node.op_type in CONVERSIONS
        node.name = f"k{whose[1]}{'b' if border else 'n'}_{j}"
        found[node.name] = int(whose[1])
    return found


def _times(
    model: Any, feeds: Mapping[str, Any], target: Target, count: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of each branch's operators and of its conversions."""
    backend = backend_of(target) if target.measured else None
    if backend is None:
        return [0.0] * count, [0.0] * count
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = backend.lower(model, target, Path(folder, "model.onnx"))
        for _ in range(SESSIONS):
            for name, spent in backend.profile(path, feeds, target).items():
                best[name] = min(spent, best.get(name, spent))
    ms, border = [0.0] * count, [0.0] * count
    for name, spent in best.items():
        whose = _NAMED.match(name)
        if whose is not None:
            (border if whose[2] == "b" else ms)[int(whose[1])] += spent
    return ms, border
