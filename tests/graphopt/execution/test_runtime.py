"""Running models: weights where they lie, and errors in one line."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.errors import ModelError
from graphopt.execution import runtime
from graphopt.execution.parts import proto_of
from graphopt.execution.runtime import open_session, run, run_each
from graphopt.testing import parse_model

X = {"x": np.ones((2, 40), np.float32)}


def large() -> ir.Model:
    """y = x @ w, `w` large enough to stay outside the graph."""
    w = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    return parse_model("y = MatMul(x, w)", inputs={"x": (2, 40)}, constants={"w": w})


@pytest.mark.parametrize("optimize", [False, True])
def test_outputs_from_memory_and_from_a_mapped_file(tmp_path, optimize):
    model = large()
    graphopt.save(model, tmp_path / "m.onnx")
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    for one in (model, graphopt.load(tmp_path / "m.onnx"), ir.load(tmp_path / "m.onnx")):
        got = run(one, X, optimize=optimize)["y"]
        assert np.allclose(got, X["x"] @ weight.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("kind", ["bfloat16", "float8_e4m3fn", "int4", "float16", "bool", "int8"])
def test_weights_of_every_type(kind, optimize):
    dtype = getattr(ml_dtypes, kind, None) or np.dtype(kind)
    w = (np.arange(4000) % 2).astype(dtype)
    tensor = numpy_helper.from_array(w, "w")
    graph = helper.make_graph(
        [helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4000])],
        [tensor],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    got = run(ir.from_proto(proto), {}, optimize=optimize)["y"]
    assert np.array_equal(got, w.astype(np.float32))


def test_initializers_that_are_inputs_too():
    """As every model before IR version 4 has them."""
    proto = ir.to_proto(large())
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [40, 30]))
    for version in (3, 8):
        proto.ir_version = version
        assert np.array_equal(run(ir.from_proto(proto), X)["y"], run(large(), X)["y"])


def test_no_files_are_left_while_a_session_is_open(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for optimize in (False, True):
        for _ in run_each(large(), [X, X], optimize=optimize):
            assert list(tmp_path.iterdir()) == []


def test_no_folder_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(ModelError, match="TMPDIR"):
        run(large(), X)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("y = Nonsense(x)", "Nonsense"),
        ("y = Reshape(x, s)", "Reshape"),
        ("y = com.nowhere.Odd(x)", "Odd"),
    ],
)
def test_errors_are_one_line_with_the_operator(text, words):
    constants = {"s": np.array([7, 7])} if "s)" in text else {}
    proto = ir.to_proto(parse_model("y = Relu(x)", constants={}))
    node = onnx.parser.parse_graph(f"g () => () {{ {text} }}").node[0]
    proto.graph.node[0].CopyFrom(node)
    proto.opset_import.append(helper.make_opsetid("com.nowhere", 1))
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    with pytest.raises(ModelError) as caught:
        run(ir.from_proto(proto), {"x": np.ones((2, 3), np.float32)})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "ONNXRuntimeError" not in str(caught.value)


def test_wrong_feeds():
    for feeds in ({}, {"x": np.ones((2, 40))}, {"x": np.ones((2, 41), np.float32)}):
        with pytest.raises(ModelError, match="x"):
            run(large(), feeds)


def test_a_file_that_is_no_model(tmp_path):
    path = Path(tmp_path, "m.onnx")
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"m\.onnx"):
        open_session(path)


MADE_IN_PARTS = """
    a = MatMul(x, w)
    n = Shape(a)
    b = Relu(a)
    c = MatMul(b, v)
    d = If(flag) <then_branch = t () => (t0) { t0 = MatMul(c, w) },
                  else_branch = e () => (e0) { e0 = Add(a, b) }>
    y = Add(d, a)
    z = Reshape(y, n)
"""


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_a_model_in_parts_gives_what_the_whole_gives(monkeypatch, optimize, flag, half):
    rng = np.random.default_rng(0)
    dtype = np.float16 if half else np.float32
    w, v = (rng.standard_normal((40, 40)).astype(dtype) / 6 for _ in "wv")
    feeds = {"x": rng.standard_normal((3, 40)).astype(dtype), "flag": np.array(flag)}
    model = parse_model(MADE_IN_PARTS, inputs=feeds, constants={"w": w, "v": v})
    whole = run(model, feeds, optimize=optimize)
    opened_parts = []
    monkeypatch.setattr(runtime, "IN_PARTS", 1000)
    monkeypatch.setattr(
        runtime, "proto_of", lambda *a: opened_parts.append(proto_of(*a)) or opened_parts[-1]
    )
    in_parts = run(model, feeds, optimize=optimize)
    assert list(in_parts) == list(whole)
    for name in whole:
        most = 2e-3 if half else 1e-5
        np.testing.assert_allclose(in_parts[name], whole[name], rtol=most, atol=most)
    if optimize or half:  # float weights are not copied otherwise
        assert [len(p.graph.node) for p in opened_parts] == [1, 3, 1, 2]
        held = [{t.name for t in p.graph.initializer} for p in opened_parts]
        assert held == [{"w"}, {"v"}, {"w"}, set()]
    else:
        assert opened_parts == []


def test_parts_end_where_blocks_do_and_read_their_weights_once_for_several_runs(monkeypatch):
    """Bytes alone would cut inside of a block, where the residual stream and its branch cross."""
    streams = ["x", *(f"x{k}" for k in range(1, 6)), "y"]
    text = " ".join(
        f"a{k} = MatMul({x}, up{k}) b{k} = Relu(a{k}) c{k} = MatMul(b{k}, down{k}) "
        f"s{k} = Mul({x}, scale) {y} = Add(c{k}, s{k})"
        for k, (x, y) in enumerate(itertools.pairwise(streams))
    )
    rng = np.random.default_rng(0)
    weights = {f"up{k}": rng.standard_normal((32, 48)).astype(np.float16) / 8 for k in range(6)}
    weights |= {f"down{k}": rng.standard_normal((48, 32)).astype(np.float16) / 8 for k in range(6)}
    weights["scale"] = np.ones(1, np.float16)
    feeds = [{"x": rng.standard_normal((3, 32)).astype(np.float16)} for _ in range(5)]
    model = parse_model(text, inputs=feeds[0], constants=weights)
    whole = list(run_each(model, feeds))
    opened_parts = []
    monkeypatch.setattr(runtime, "IN_PARTS", 4 * 16_000)  # a block copies 12,288 bytes of floats
    monkeypatch.setattr(
        runtime, "proto_of", lambda *a: opened_parts.append(proto_of(*a)) or opened_parts[-1]
    )
    in_parts = list(run_each(model, feeds))
    for ours, theirs in zip(in_parts, whole, strict=True):
        np.testing.assert_allclose(ours["y"], theirs["y"], rtol=1e-2, atol=1e-2)
    assert [[o.name for o in p.graph.output] for p in opened_parts] == [[y] for y in streams[1:]]
