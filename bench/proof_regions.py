"""Regions that exact passes change, each written as two models: what broken rewrites are made of.

From folders of models, and from random graphs (`random_graphs`); a random graph with branches or
loops is taken whole. A pair is taken in both directions, since a rewrite may go either way.
"""

from __future__ import annotations

import collections
import pickle
import time
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from graphopt.backends import cpu
from graphopt.passes.clean import Clean
from graphopt.passes.fold import Fold
from graphopt.passes.fuse import Fuse
from hypothesis import HealthCheck, Phase, given, seed, settings
from random_graphs import graphs

from graphopt import Context
from graphopt.analyses.shapes.symbolic import Expr
from graphopt.errors import GraphOptError
from graphopt.formats import load
from graphopt.proving.evidence import examine
from graphopt.proving.numbering import numbered
from graphopt.proving.regions import check
from graphopt.proving.windows import windows_of

__all__ = ["Region", "examined", "gathered", "verdict_of"]

TARGET = cpu.TARGETS["cpu-avx512-vnni"]
#: Elements of a constant above which a region is not broken.
LARGEST = 1 << 14
#: Regions of one form, which differ in sizes, attributes and constants alone.
ALIKE = 8


class Unfit(Exception):
    """A region that cannot be written as a model."""


class Region(NamedTuple):
    """A graph that is trusted, one that equals it and gets broken, and the operators of both."""

    trusted: bytes
    equal: bytes
    form: str


def steps(model):
    """(graph before, after, edits, seconds) of each pass."""
    for one in (Clean, Fold, Fuse):
        before = model.clone()
        ctx = Context(model, pass_name=one.__name__, target=TARGET)
        start = time.perf_counter()
        one().run(model, ctx)
        yield before, model, ctx.edits, time.perf_counter() - start


def examined(model):
    """(evidence or None, seconds of the pass, seconds of its evidence) of each pass.

    As in the pipeline a graph is numbered once: as what a pass made, then as what the next one got.
    """
    known = None
    for before, after, edits, spent in steps(model):
        start = time.perf_counter()
        found = examine(before, after, edits, known) if edits else None
        known = found.after if found else known
        yield found, spent, time.perf_counter() - start


def verdict_of(trusted, other):
    """(verdict on a whole rewrite, by which means); what no window joins is not proved."""
    difference = windows_of(numbered(ir.from_proto(trusted)), ir.from_proto(other), check)
    verdicts = {w.verdict for w in difference.windows}
    means = difference.windows[-1].means if difference.windows else "one term"
    if difference.open:
        return ("refuted" if "refuted" in verdicts else "assumed"), means
    return ("checked" if "checked" in verdicts else "proved"), means


# --- gathering -------------------------------------------------------------------------------


class Gathering:
    """Pairs of models by what they compute with; few of one form."""

    def __init__(self):
        self.found = {}
        self.forms = collections.Counter()

    def add(self, pair):
        key = tuple(
            str([(n.op_type, list(n.input), str(n.attribute)) for n in m.graph.node])
            + str([(list(t.dims), t.data_type) for t in m.graph.initializer])
            for m in pair
        )
        form = " -> ".join(" ".join(n.op_type for n in m.graph.node) for m in pair)
        if key not in self.found and self.forms[form] < ALIKE:
            self.forms[form] += 1
            self.found[key] = (pair, form)

    def model(self, model):
        """The regions that the passes change in a model."""
        for evidence, _, _ in examined(model):
            for window in evidence.windows if evidence else ():
                pair = extracted(window) if window.verdict in ("proved", "checked") else None
                if pair is not None:
                    self.add(pair)

    def random(self, count):
        """The regions of random graphs, and whole graphs with branches."""

        @seed(16)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(graphs())
        def one(case):
            model = ir.from_proto(case.model)
            if not any(n.op_type in ("If", "Loop") for n in case.model.graph.node):
                self.model(model)
            elif sum(len(edits) for _, _, edits, _ in steps(model)):
                self.add((case.model, ir.to_proto(model)))

        one()

    def regions(self):
        """Both directions of each pair, where they are not refuted as they are."""
        for (a, b), form in self.found.values():
            for trusted, equal in ((a, b), (b, a)):
                try:
                    verdict, _ = verdict_of(trusted, equal)
                except GraphOptError:
                    continue
                if verdict in ("proved", "checked"):
                    yield Region(trusted.SerializeToString(), equal.SerializeToString(), form)


def gathered(folders, drawn, cache):
    """Form to regions: of folders of models and of so many random graphs, kept in a file."""
    if not cache.exists():
        found = Gathering()
        for folder in folders:
            for path in sorted(folder.glob("*.onnx")):
                found.model(load(path))
        found.random(drawn)
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_bytes(pickle.dumps([tuple(r) for r in found.regions()]))
    forms = collections.defaultdict(list)
    for region in pickle.loads(cache.read_bytes()):
        forms[region[2]].append(Region(*region))
    return dict(forms)


# --- a region as two models ------------------------------------------------------------------


def extracted(window):
    """Both sides of a window as models over its leaves; None where that cannot be written."""
    names = {t: f"x{k}" for k, t in enumerate(window.leaves)}
    try:
        return tuple(
            side_model(names, top, set(inner), side)
            for side, top, inner in zip(
                "ab", (window.before, window.after), window.inner, strict=True
            )
        )
    except Unfit:
        return None


def side_model(leaves, top, inner, side):
    names, nodes, tensors = dict(leaves), [], []

    def name(term):
        if term is None:
            return ""
        if term in names:
            return names[term]
        label = names[term] = f"{side}{len(names)}"
        if term.op == "const":
            if np.prod(term.array().shape) > LARGEST or term.array().dtype.num >= 256:
                raise Unfit("a large constant")
            tensors.append(onnx.numpy_helper.from_array(np.array(term.array()), label))
        elif term.op == "data":
            nodes.extend(sizes(term, label, leaves))
        elif term in inner and term.node is not None and term.op not in ("If", "Loop", "Scan"):
            inputs = [name(a) for a in term.args][: len(term.node.inputs) or None]
            node = onnx.NodeProto(op_type=term.node.op_type, domain=term.node.domain)
            node.attribute.extend(
                ir.serde.serialize_attribute(a) for a in term.node.attributes.values()
            )
            node.input.extend(inputs)
            node.output.extend([*(f"{label}_{k}" for k in range(term.output)), label])
            node.name = f"n_{label}"
            nodes.append(node)
        else:
            raise Unfit(term.op)
        return label

    if top in leaves:
        nodes.append(onnx.helper.make_node("Identity", [leaves[top]], ["y"], name="n_y"))
    else:
        last = name(top)
        for node in nodes:
            node.output[:] = ["y" if o == last else o for o in node.output]
    opset = max((t.opset for t in inner | {top}), default=0) or 20
    graph = onnx.helper.make_graph(
        nodes, "region", [info(n, t) for t, n in leaves.items()], [info("y", top)], tensors
    )
    imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)


def info(name, term):
    if term.dtype is None or term.dims is None:
        raise Unfit("an unknown shape")
    dims = [d if isinstance(d, int) else d.name for d in term.dims]
    if name != "y" and any(d is None or "?" in str(d) for d in dims):
        raise Unfit("a size that is no name")
    return onnx.helper.make_tensor_value_info(name, term.dtype.value, dims)


def sizes(term, label, leaves):
    """Nodes for shape data whose symbolic elements are sizes of leaves."""
    parts = []
    for k, e in enumerate(term.attributes["elements"]):
        part = f"{label}_{k}"
        if not isinstance(e, Expr):
            one = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [1], [e])
            parts.append(onnx.helper.make_node("Constant", [], [part], value=one))
            continue
        found = [(n, j) for t, n in leaves.items() for j, d in enumerate(t.dims or ()) if d == e]
        if not found:
            raise Unfit("a size of no leaf")
        leaf, axis = found[0]
        parts.append(onnx.helper.make_node("Shape", [leaf], [part], start=axis, end=axis + 1))
    inputs = [p.output[0] for p in parts]
    joined = onnx.helper.make_node("Concat", inputs, [f"{label}_c"], axis=0)
    back = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [len(term.dims)], term.dims)
    shape = onnx.helper.make_node("Constant", [], [f"{label}_s"], value=back)
    shaped = onnx.helper.make_node("Reshape", [f"{label}_c", f"{label}_s"], [label])
    return [*parts, joined, shape, shaped]
