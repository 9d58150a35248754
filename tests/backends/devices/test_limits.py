"""What falls off QNN's and Core ML's devices: each limit broken once, and kept once."""

import json

import numpy as np
import onnx_ir as ir
import pytest
from graphopt.backends import coreml, qnn

from graphopt import load, optimize, save
from graphopt.backend import find_target
from graphopt.cli import main
from graphopt.deploy.manifest import read_manifest
from graphopt.testing import parse_model

GRID = {"s": np.float32(0.1), "z": np.uint8(128), "i": np.int8(0)}
Q = "{0}q = QuantizeLinear({0}, s, z)  {0}d = DequantizeLinear({0}q, s, z)  "
OUT = "  oq = QuantizeLinear(o, s, z)  y = DequantizeLinear(oq, s, z)"


def reasons(backend, text, inputs, constants=None, dynamic=False, **given):
    """Reason by operator of the nodes that fall off, in order."""
    model = parse_model(text, inputs=inputs, constants={**GRID, **(constants or {})}, **given)
    if dynamic:
        model.graph.inputs[0].shape = ir.Shape(["batch", *model.graph.inputs[0].shape[1:]])
        for value in (*(o for n in model.graph for o in n.outputs),):
            value.shape = None
    return [(f.operator, f.reason) for f in backend.BACKEND.falls_off(model)]


X = {"x": (1, 3, 8, 8)}
K = {"k": np.ones((4, 3, 3, 3), np.float32), "b": np.ones(4, np.float32)}


def test_qnn_takes_what_is_quantized_throughout_with_its_activation():
    text = Q.format("x") + "kd = DequantizeLinear(k, s, z)  c = Conv(xd, kd)  o = Relu(c)" + OUT
    assert reasons(qnn, text, X, {"k": np.ones((4, 3, 3, 3), np.uint8)}) == []


@pytest.mark.parametrize(("domain", "opset"), [("", 21), ("com.microsoft.", 17)])
def test_qnn_takes_activations_of_16_bits_beside_weights_of_8(domain, opset):
    text = (
        f"xq = {domain}QuantizeLinear(x, s, h)  xd = {domain}DequantizeLinear(xq, s, h)  "
        "kd = DequantizeLinear(k, s, z)  c = Conv(xd, kd)  o = Relu(c)  "
        f"oq = {domain}QuantizeLinear(o, s, h)  y = {domain}DequantizeLinear(oq, s, h)"
    )
    constants = {"k": np.ones((4, 3, 3, 3), np.uint8), "h": np.uint16(32768)}
    assert reasons(qnn, text, X, constants, opset=opset) == []
    signed = reasons(qnn, text, X, {**constants, "h": np.int16(0)}, opset=opset)
    name = f"{domain.replace('microsoft.', 'microsoft:')}QuantizeLinear"
    reason = "it rounds to int16: activations of the HTP are uint8 or uint16"
    assert signed == [(name, reason), (name, reason)]


@pytest.mark.parametrize(
    ("text", "inputs", "constants", "operator", "reason"),
    [
        ("o = IsNaN(xd)  y = Not(o)", X, {}, "IsNaN", "QNN has no such operator"),
        ("y = Exp(x)", X, {}, "Exp", "it computes in float"),
        ("o = Neg(xd)  y = Exp(o)", X, {}, "Neg", "it computes in float"),
        ("y = Neg(xd)", X, {}, "Neg", "it computes in float"),
        (
            "o = Reshape(xd, n)" + OUT,
            X,
            {"n": np.array([1, 3, 2, 4, 2, 4])},
            "Reshape",
            "it has more than five axes",
        ),
        ("o = Gather(xd, j)" + OUT, X, {"j": np.array([-1])}, "Gather", "its indices count from"),
        (
            "o = MatMul(xd, w)" + OUT,
            X,
            {"w": np.ones((8, 4), np.float32)},
            "MatMul",
            "its weights are floats",
        ),
        (
            "o = LSTM<hidden_size=2>(xd, w, r)" + OUT,
            {"x": (5, 1, 3)},
            {"w": np.ones((1, 8, 3), np.float32), "r": np.ones((1, 8, 2), np.float32)},
            "LSTM",
            "its weights are floats",
        ),
        (
            "o = Neg(xd)  oq = QuantizeLinear(o, s, h)  y = DequantizeLinear(oq, s, h)",
            X,
            {"h": np.uint16(0)},
            "Neg",
            "it reads 8 bits and makes 16",
        ),
        ("o = LpNormalization<p=1>(xd)" + OUT, X, {}, "LpNormalization", "only the second norm"),
        (
            "wd = DequantizeLinear(w, s, i)  o = MatMul(xd, wd)" + OUT,
            X,
            {"w": np.ones((8, 4), np.int8)},
            "MatMul",
            "its operands are signed",
        ),
        (
            "wd = DequantizeLinear<block_size=4, axis=0>(w, v)  o = MatMul(xd, wd)" + OUT,
            X,
            {"w": np.ones((8, 4), np.uint8), "v": np.ones((2, 4), np.float32)},
            "DequantizeLinear",
            "its scales are given for blocks",
        ),
    ],
)
def test_qnn_leaves(text, inputs, constants, operator, reason):
    prefix = Q.format("x") if "xd" in text else ""
    found = reasons(qnn, prefix + text, inputs, constants, opset=21)
    assert any(o == operator and r.startswith(reason) for o, r in found), found


@pytest.mark.parametrize("backend", [qnn, coreml])
def test_dynamic_shapes_fall_off(backend):
    found = reasons(backend, "y = Relu(x)", X, dynamic=True)
    assert "its shape is dynamic" in found[0][1]


def test_coreml_takes_a_float_model():
    assert (
        reasons(coreml, "c = Conv(x, k, b)  o = Relu(c)  y = MaxPool<kernel_shape=[2,2]>(o)", X, K)
        == []
    )


@pytest.mark.parametrize(
    ("text", "inputs", "constants", "operator", "reason"),
    [
        ("y = Neg(x)", X, {}, "Neg", "Core ML has no such operator"),
        ("y = QuantizeLinear(x, s, z)", X, {}, "QuantizeLinear", "Core ML has no such operator"),
        ("y = Relu(x)", {"x": (1, 1, 1, 1, 1, 2)}, {}, "Relu", "it has more than five axes"),
        (
            "y = Conv(x, k)",
            {"x": (1, 3, 4, 4, 4)},
            {"k": np.ones((4, 3, 3, 3, 3), np.float32)},
            "Conv",
            "only one and two axes are convolved",
        ),
        ("y = Conv(x, k, v)", {**X, "v": (4,)}, K, "Conv", "its bias is computed at run time"),
        ("y = GlobalAveragePool(x)", {"x": (1, 3, 8)}, {}, "GlobalAveragePool", "only two axes"),
        (
            "y = ConvTranspose(x, w)",
            {**X, "w": (3, 4, 3, 3)},
            {},
            "ConvTranspose",
            "its weights are computed at run time",
        ),
        (
            "y = ConvTranspose<strides=[2,2], output_padding=[1,1]>(x, w)",
            X,
            {"w": np.ones((3, 4, 3, 3), np.float32)},
            "ConvTranspose",
            "it names the shape or padding of its output",
        ),
        (
            'y = ConvTranspose<auto_pad="SAME_UPPER">(x, w)',
            X,
            {"w": np.ones((3, 4, 3, 3), np.float32)},
            "ConvTranspose",
            "its padding is SAME",
        ),
        ("y = Gemm(x, w)", {"x": (2, 3), "w": (3, 4)}, {}, "Gemm", "its second factor is computed"),
        (
            "y = GatherND<batch_dims=1>(x, j)",
            X,
            {"j": np.zeros((1, 1), np.int64)},
            "GatherND",
            "it has batch axes",
        ),
        (
            "y = Slice(x, j, e)",
            {**X, "j": np.zeros(1, np.int64)},
            {"e": np.array([1])},
            "Slice",
            "its limits are computed at run time",
        ),
        (
            "y = Split(x, j)",
            {**X, "j": np.zeros(1, np.int64)},
            {},
            "Split",
            "its sizes are computed at run time",
        ),
        ("y = Pow(x, n)", X, {"n": np.int64(2)}, "Pow", "both operands must be float32"),
    ],
)
def test_coreml_leaves(text, inputs, constants, operator, reason):
    found = reasons(coreml, text, inputs, constants)
    assert any(o == operator and reason in r for o, r in found), found


def test_and_of_something_else_than_booleans_falls_off_coreml():
    (limit,) = [o for o in coreml.LIMITS if o.operators == {"And"}]
    model = parse_model("a = Less(x, x)  y = And(a, a)", inputs={"x": (2, 3)})
    node = model.graph[1]
    from graphopt.analyses.shapes.analysis import infer

    shapes = infer(model)
    assert not limit.broken(node, shapes)
    shapes.learn(node.inputs[0], ir.DataType.INT8, (2, 3))
    assert limit.broken(node, shapes)


@pytest.mark.parametrize("name", ["qnn", "coreml"])
def test_models_are_written_at_fixed_shapes_with_the_provider_s_manifest(name, tmp_path):
    model = parse_model("y = Relu(x)", inputs=X)
    model.graph.inputs[0].shape = ir.Shape(["batch", 3, 8, 8])
    target = find_target(name)
    backend = {"qnn": qnn, "coreml": coreml}[name].BACKEND
    path = backend.lower(model, target, tmp_path / "m.onnx")
    assert list(load(path).graph.inputs[0].shape) == [1, 3, 8, 8]
    provider = {"qnn": "QNNExecutionProvider", "coreml": "CoreMLExecutionProvider"}[name]
    assert read_manifest(path).provider == provider
    assert not target.measured


def test_the_command_says_it_node_by_node(tmp_path, capsys):
    save(parse_model("a = Neg(x)  y = Relu(a)", inputs=X), tmp_path / "m.onnx")
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit):
            main(["targets", str(tmp_path / "m.onnx"), *more])
        said = capsys.readouterr().out
        if more:
            falls = json.loads(said)["falls_off"]["coreml"]
            assert falls == [
                {"node": "Neg_0", "operator": "Neg", "reason": "Core ML has no such operator"}
            ]
        else:
            assert "coreml: 1 of 2 nodes fall off" in said
            assert "qnn: 2 of 2 nodes fall off" in said


@pytest.mark.parametrize(("text", "left"), [("y = Sigmoid(x)", 1), ("y = Hardmax(x)", 2)])
def test_optimize_says_how_much_of_its_result_falls_off(text, left, tmp_path):
    """Known from data; of what the device takes nothing is said."""
    model = parse_model(f"a = Asinh(x) {text.replace('(x)', '(a)')}", inputs={"x": ("n", 4)})
    made = optimize(model, "clean", target=find_target("coreml"), measure=False)
    written = made.write(tmp_path / "m.onnx")
    told = f"{left} of 2 nodes fall off the device; graphopt targets m.onnx says why"
    assert told in written.report.notes
    made = optimize(parse_model("y = Sigmoid(x)"), "clean", target=find_target("coreml"))
    notes = made.write(tmp_path / "n.onnx").report.notes
    assert not any("fall off" in n for n in notes)


def test_why_a_target_has_no_integers_is_said(capsys):
    with pytest.raises(SystemExit):
        main(["targets"])
    assert "coreml: no int8, the provider takes no Q/DQ" in capsys.readouterr().out
    model = parse_model(
        "y = MatMul(x, w)", inputs={"x": (1, 4)}, constants={"w": np.eye(4, dtype="f4")}
    )
    result = optimize(model, "int8", target="coreml", measure=False)
    (step,) = result.report.steps
    assert "coreml gains nothing from integers: the provider takes no Q/DQ." in step.notes
