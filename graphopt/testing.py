"""A harness for testing passes: a model as text in, the expected text out, outputs compared.

    check(CollapseRelu(), before="a = Relu(x)  y = Relu(a)", after="y = Relu(x)")

Text is one node per line or separated by two spaces, in the ONNX text format
(`y = Conv <pads=[1, 1, 1, 1]> (x, w)`). Names never assigned are inputs (or, in `constants`,
initializers); values never used are outputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.analyses.shapes.analysis import infer
from graphopt.context import Analysis, Context
from graphopt.execution.runtime import run
from graphopt.pass_ import Pass
from graphopt.target import ONNX, Target

__all__ = ["check", "parse_model", "structure"]

Array = np.ndarray[Any, Any]


def check(
    one: Pass,
    before: str | ir.Model,
    after: str | None = None,
    *,
    unchanged: bool = False,
    because: str | None = None,
    inputs: Mapping[str, Sequence[int] | Array] | None = None,
    constants: Mapping[str, Array] | None = None,
    target: Target = ONNX,
    samples: Any = None,
    opset: int = 20,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> ir.Model:
    """Run one pass on a small model and check everything a pass promises; returns the result.

    Checks that the graph is valid afterwards, that it is `after` (up to names) or untouched,
    that outputs on seeded inputs are as before, that a second run makes no edit, and that what the
    pass claims to preserve is preserved.

    Args:
        one: the pass.
        before: the model, as text (see the module) or as an `onnx_ir.Model`.
        after: the expected graph, as text. Names it never assigns, other than the inputs, stand
            for any constant.
        unchanged: expect no edit at all.
        because: text that the reason of some refusal must contain (implies `unchanged`).
        inputs: shape or array per input; inputs not named are float32 of shape (2, 3).
        constants: initializers by name.
        target: the target passes read.
        samples: handed to the pass.
        opset: default-domain opset of `before` when it is text.
        tolerance: largest relative L2 difference per output; None in lossy passes' stead is not
            accepted: state what you expect.
        seed: seeds inputs and the pass.

    Raises:
        AssertionError: naming what does not hold.
    """
    model = (
        parse_model(before, inputs=inputs, constants=constants, opset=opset)
        if isinstance(before, str)
        else before
    )
    feeds = _feeds(model, inputs or {}, np.random.default_rng(seed))
    expected = run(model, feeds)
    was = _everything(model)
    ctx = Context(model, target=target, samples=samples, seed=seed, pass_name="pass")
    preserved: dict[Analysis[Any], Any] = {a: ctx.get(a) for a in one.preserves}
    edits = one.run(model, ctx)
    onnx.checker.check_model(ir.to_proto(model))
    assert (edits == 0) == (_everything(model) == was), f"{edits} edits reported, graph disagrees"
    if unchanged or because is not None:
        assert edits == 0, f"expected no edit, got {edits}: {ctx.edits}"
    if because is not None:
        reasons = [r.reason for r in ctx.refusals]
        assert any(because in r for r in reasons), f"no refusal says {because!r}: {reasons}"
    if after is not None:
        wanted = parse_model(after, inputs=inputs, constants=constants, opset=opset, loose=True)
        got, want = structure(model), structure(wanted)
        assert got == want, f"\nexpected {_show(want)}\ngot      {_show(got)}"
    _compare(expected, run(model, feeds), tolerance)
    fresh = Context(model, target=target)
    for analysis, result in preserved.items():
        assert fresh.get(analysis) == result, f"{analysis.__name__} was not preserved"
    again = one.run(model, Context(model, target=target, samples=samples, seed=seed))
    assert again == 0, f"a second run made {again} edits"
    return model


def parse_model(
    text: str,
    *,
    inputs: Mapping[str, Sequence[int] | Array] | None = None,
    constants: Mapping[str, Array] | None = None,
    opset: int = 20,
    loose: bool = False,
) -> ir.Model:
    """A model from node text. `loose`: names in neither `inputs` nor `constants` are constants."""
    inputs, constants = dict(inputs or {}), dict(constants or {})
    lines = [s.strip() for s in re.split(r"\n|  +", text) if s.strip()]
    body = "\n".join(lines)
    skeleton = onnx.parser.parse_graph(f"g () => () {{ {body} }}")
    made = {o for n in skeleton.node for o in n.output if o}
    used = {i for n in skeleton.node for i in n.input if i}
    free = [i for n in skeleton.node for i in n.input if i and i not in made]
    for name in dict.fromkeys(free):
        if name in constants:
            skeleton.initializer.append(onnx.numpy_helper.from_array(constants[name], name))
        elif loose and name not in inputs and inputs:
            skeleton.initializer.append(onnx.numpy_helper.from_array(np.zeros(0, "f4"), name))
        else:
            given = inputs.get(name, (2, 3))
            dtype = given.dtype if isinstance(given, np.ndarray) else np.dtype(np.float32)
            shape = given.shape if isinstance(given, np.ndarray) else given
            kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
            skeleton.input.append(onnx.helper.make_tensor_value_info(name, kind, list(shape)))
    for name in dict.fromkeys(o for n in skeleton.node for o in n.output if o and o not in used):
        skeleton.output.append(onnx.ValueInfoProto(name=name))
    domains = {n.domain for n in skeleton.node if n.domain not in ("", "ai.onnx")}
    opsets = [onnx.helper.make_opsetid("", opset)]
    opsets += [onnx.helper.make_opsetid(d, 1) for d in sorted(domains)]
    proto = onnx.helper.make_model(skeleton, opset_imports=opsets, ir_version=10)
    if not loose:
        proto = onnx.shape_inference.infer_shapes(proto)
    for k, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{k}"
    model: ir.Model = ir.from_proto(proto)
    if not loose:
        found = infer(model)
        for value in model.graph.outputs:
            dtype, dims = found.dtype(value), found.static(value)
            if value.type is None and dtype is not None:
                value.dtype = dtype
                value.shape = None if dims is None else ir.Shape(dims)
    return model


def structure(model: ir.Model) -> tuple[Any, ...]:
    """The graph up to names: per output, the tree of operators that computes it."""
    seen: dict[ir.Value, Any] = {}
    order: list[Any] = []
    index = {v: i for i, v in enumerate(model.graph.inputs)}
    for node in model.graph:
        args = tuple(_term(v, seen, index) for v in node.inputs)
        attributes = tuple(
            sorted(
                (a.name, str(a.value)) for a in node.attributes.values() if not _is_default(a, node)
            )
        )
        while args and args[-1] is None:
            args = args[:-1]
        order.append((f"{node.domain}:{node.op_type}".removeprefix(":"), args, attributes))
        for value in node.outputs:
            seen[value] = ("node", len(order) - 1, value.index())
    outputs = tuple(_term(v, seen, index) for v in model.graph.outputs)
    return (_canonical(order, outputs),)


def _everything(model: ir.Model) -> tuple[Any, ...]:
    """The structure, and what it leaves out: names, absent outputs, subgraphs, notes of others."""
    names = [sorted(g.initializers) for g in (model.graph, *model.graph.subgraphs())]
    nodes, notes = [], []
    for n in model.graph.all_nodes():
        nodes.append((n.op_type, [bool(o.name) for o in n.outputs]))
        foreign = {k: v for k, v in n.metadata_props.items() if not k.startswith("graphopt.")}
        notes.append((n.doc_string or "", foreign))
    return structure(model), names, nodes, notes, [v.name for v in model.graph.inputs]


def _canonical(order: list[Any], outputs: tuple[Any, ...]) -> Any:
    """Number nodes in the order a walk from the outputs meets them."""
    number: dict[int, int] = {}
    listed: list[Any] = []

    def visit(term: Any) -> Any:
        if not (isinstance(term, tuple) and term and term[0] == "node"):
            return term
        _, k, output = term
        if k not in number:
            op, args, attributes = order[k]
            done = tuple(visit(a) for a in args)
            if k not in number:
                number[k] = len(listed)
                listed.append((op, done, attributes))
        return ("node", number[k], output)

    ends = tuple(visit(t) for t in outputs)
    return tuple(listed), ends, len(order) - len(listed)


def _term(value: ir.Value | None, seen: dict[ir.Value, Any], index: dict[ir.Value, int]) -> Any:
    if value is None:
        return None
    if value in seen:
        return seen[value]
    return ("input", index[value]) if value in index else ("constant",)


def _is_default(attribute: ir.Attr, node: ir.Node) -> bool:
    from graphopt.graph.attributes import default_attribute

    value = default_attribute(node.domain, node.op_type, attribute.name)
    have = attribute.value
    return value is not None and (
        list(have) == list(value) if isinstance(value, (list, tuple)) else have == value
    )


def _feeds(
    model: ir.Model, given: Mapping[str, Sequence[int] | Array], rng: np.random.Generator
) -> dict[str, Array]:
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        assert value.name is not None
        if value.name in model.graph.initializers:
            continue
        array = given.get(value.name)
        if isinstance(array, np.ndarray):
            feeds[value.name] = array
            continue
        assert value.shape is not None
        shape = [d if isinstance(d, int) else 2 for d in value.shape]
        assert value.dtype is not None
        feeds[value.name] = rng.standard_normal(shape).astype(value.dtype.numpy())
    return feeds


def _compare(expected: dict[str, Array], got: dict[str, Array], tolerance: float) -> None:
    assert expected.keys() == got.keys(), f"outputs {list(expected)} became {list(got)}"
    for name, a in expected.items():
        b = got[name]
        assert a.shape == b.shape, f"{name}: shape {a.shape} became {b.shape}"
        assert a.dtype == b.dtype, f"{name}: dtype {a.dtype} became {b.dtype}"
        if a.dtype.kind != "f":
            assert np.array_equal(a, b), f"{name}: values differ"
            continue
        finite = np.isfinite(a)
        assert np.array_equal(finite, np.isfinite(b)), f"{name}: NaN or Inf moved"
        a64, b64 = a[finite].astype(np.float64), b[finite].astype(np.float64)
        error = float(np.linalg.norm(a64 - b64) / max(float(np.linalg.norm(a64)), 1e-30))
        assert error <= tolerance, f"{name}: relative L2 difference {error:.3g} > {tolerance:g}"


def _show(form: Any) -> str:
    listed, ends, dead = form[0]
    lines = [f"%{i} = {op}{args} {dict(attrs) or ''}" for i, (op, args, attrs) in enumerate(listed)]
    lines += [f"return {ends}", f"({dead} dead nodes)"]
    return "\n  " + "\n  ".join(lines)
