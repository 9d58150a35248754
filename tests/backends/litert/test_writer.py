"""Layouts, names, refusals; and the file through the command line."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphopt.backends.litert import BACKEND
from litert_graphs import drawn, operators

from graphopt import save
from graphopt.backend import find_target
from graphopt.cli import main
from graphopt.deploy.sessions import session
from graphopt.errors import MissingExtra, ModelError
from graphopt.testing import parse_model

IMAGE = {"x": (2, 3, 8, 8)}
K = {"k": drawn(4, 3, 3, 3), "l": drawn(4, 4, 1, 1), "b": drawn(4, 1, 1)}


COMMAND = (
    "optimize m.onnx -p fuse,int8 --samples s.npz --no-measure --max-error none --target litert "
    "-o m.tflite"
)


def test_axes_move_once_before_and_once_behind_what_has_channels_last(lowered):
    text = "a = Conv(x, k)  c = Sigmoid(a)  d = Mul(a, c)  e = Add(d, b)  y = Conv(e, l)"
    _, written = lowered(text, IMAGE, K)
    assert written == ["TRANSPOSE", "CONV_2D", "LOGISTIC", "MUL", "ADD", "CONV_2D", "TRANSPOSE"]


def test_a_transpose_to_channels_last_is_a_renaming(lowered):
    _, written = lowered("a = Conv(x, k)  y = Transpose<perm=[0,2,3,1]>(a)", IMAGE, K)
    assert written == ["TRANSPOSE", "CONV_2D"]


def test_axes_of_one_element_move_by_a_reshape(lowered):
    _, written = lowered("y = Transpose<perm=[0,2,1]>(x)", {"x": (3, 1, 4)})
    assert written == ["RESHAPE"]


def test_a_value_read_in_two_orders_is_transposed_once(lowered):
    text = "a = Conv(x, k)  f = Reshape(a, s)  g = Reshape(a, t)  y = MatMul(f, g)"
    shapes = {"s": np.array([2, 4, 36]), "t": np.array([2, 36, 4])}
    _, written = lowered(text, IMAGE, {**K, **shapes})
    assert written.count("TRANSPOSE") == 2


def test_an_output_that_is_an_input_or_a_constant_is_copied(lowered):
    made, _ = lowered("y = Identity(x)", {"x": (2, 3)}, feeds={"x": drawn(2, 3)})
    assert made["y"].shape == (2, 3)


def test_every_node_that_is_not_taken_is_named_with_the_reason(lowered):
    text = "a = Erf(x)  b = Conv<pads=[1,1,1,1,1,1]>(v, w)  y = Erf(a)  z = Relu(b)"
    with pytest.raises(ModelError) as refused:
        lowered(text, {"x": (2, 3), "v": (1, 2, 4, 4, 4)}, {"w": drawn(2, 2, 3, 3, 3)})
    said = str(refused.value)
    assert "LiteRT does not take 3 nodes" in said
    assert "Erf (node 'Erf_0': there is no such operator)" in said
    assert "Conv (node 'Conv_1': a convolution over 3 axes)" in said


def test_dynamic_axes_have_the_size_that_the_manifest_tells(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = parse_model("y = Relu(x)", inputs={"x": (2, 3)})
    model.graph.inputs[0].shape = ir.Shape(["batch", 3])
    path = BACKEND.lower(model, find_target("litert"), tmp_path / "m.tflite")
    manifest = json.loads((tmp_path / "m.tflite.session.json").read_text())
    assert manifest["free_dimensions"] == {"batch": 1}
    assert manifest["backend"] == "litert"
    x = drawn(1, 3)
    np.testing.assert_array_equal(session(path)({"x": x})["y"], np.maximum(x, 0))


def test_names_with_any_signs_and_their_order_are_kept(lowered):
    feeds = {"b": drawn(2, 3), "a": drawn(2, 3)}
    made, _ = lowered("z = Sub(b, a)  y = Sub(a, b)", dict.fromkeys(feeds, (2, 3)), feeds=feeds)
    assert list(made) == ["z", "y"]
    np.testing.assert_allclose(made["z"], feeds["b"] - feeds["a"], atol=1e-6)


def test_without_its_package_the_target_is_one_plain_sentence(monkeypatch):
    from graphopt.backends.devices import device

    monkeypatch.setattr(device, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'graphopt\[litert\]'"):
        find_target("litert")


def test_a_file_that_is_none_does_not_open(tmp_path):
    pytest.importorskip("ai_edge_litert")
    (tmp_path / "m.tflite").write_text("no model")
    with pytest.raises(ModelError, match=r"m\.tflite does not open for 'litert'"):
        BACKEND.session(tmp_path / "m.tflite", find_target("litert"))


BRANCHES = """
a = Conv<pads=[1,1,1,1]>(x, k)  c = Relu(a)  p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)
d = Conv(p, l)  e = Conv(p, n)  f = Concat<axis=1>(d, e)  g = Conv(f, m)
y = GlobalAveragePool(g)
"""


def test_the_command_writes_int8_that_litert_computes_on_equal_grids(tmp_path, monkeypatch, capsys):
    pytest.importorskip("ai_edge_litert")
    monkeypatch.chdir(tmp_path)
    shapes = {"k": (32, 3), "l": (32, 32), "n": (32, 32), "m": (32, 64)}
    constants = {name: drawn(*shape, 1, 1) for name, shape in shapes.items()}
    constants["k"] = drawn(32, 3, 3, 3)
    save(parse_model(BRANCHES, inputs=IMAGE, constants=constants), "m.onnx")
    np.savez("s.npz", x=drawn(16, 3, 8, 8))
    with pytest.raises(SystemExit) as ended:
        main(COMMAND.split())
    assert ended.value.code == 0, capsys.readouterr()
    assert "wrote m.tflite, m.tflite.session.json" in capsys.readouterr().out
    found = operators(Path("m.tflite"))
    assert {o: found.count(o) for o in ("CONV_2D", "MAX_POOL_2D", "CONCATENATION")} == {
        "CONV_2D": 4,
        "MAX_POOL_2D": 1,
        "CONCATENATION": 1,
    }
    assert found.count("QUANTIZE") == 1  # of the input: none between
