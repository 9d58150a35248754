"""Models of other frameworks: a framework of our own stands for those that are not installed."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

import graphopt
from graphopt.converting.checks import check_against_framework, drawn
from graphopt.converting.converted import (
    KERAS,
    LIGHTGBM,
    PADDLE,
    PICKLE,
    SKOPS,
    TENSORFLOW,
    XGBOOST,
)
from graphopt.converting.mending import mend_16_bits, mend_pools, mend_shape
from graphopt.errors import MissingExtra, ModelError, UsageError
from graphopt.execution.runtime import run
from graphopt.formats import format_of
from graphopt.io.reading import NOTES
from graphopt.testing import parse_model

MODULES = {
    "lightgbm": """
        import json
        class Booster:
            def __init__(self, model_file):
                print("chatter on standard output", flush=True)
                self.told = json.loads(open(model_file).read().partition("\\n")[2])
            def num_feature(self):
                return 3
            def predict(self, x):
                if self.told.get("raises") and len(x) > self.told["raises"]:
                    raise ValueError("too many rows")
                if self.told.get("only") and not all(v in self.told["only"] for v in x.ravel()):
                    raise ValueError("no such number")
                if self.told.get("least") is not None and x.min() < self.told["least"]:
                    raise ValueError("too small a number")
                return x.sum(1) * self.told["factor"]
    """,
    "onnxmltools": """
        import os
        from onnx import parser
        def convert_lightgbm(model, initial_types, zipmap):
            if model.told.get("dies"):
                if model.told["dies"] != 1:
                    said = "\\x1b[31m[" + model.told["dies"] + "] at 3\\x1b[0m"
                    print(said, "afterwards", sep="\\n", flush=True)
                os._exit(7)
            if model.told.get("refuses"):
                raise NotImplementedError("objective " + model.told["refuses"])
            return parser.parse_model('''
            <ir_version: 8, opset_import: ["" : 17]>
            g (float[n, 3] x) => (float[n, 1] y)
            <float[3, 1] w = {2.0, 2.0, 2.0}> { y = MatMul(x, w) }''')
    """,
    "onnxmltools/convert/common/data_types": "FloatTensorType = list",
}


@pytest.fixture
def framework(tmp_path, monkeypatch):
    """A Python that has modules of the names that the script for LightGBM asks for."""
    site = tmp_path / "site"
    for name, text in MODULES.items():
        folder = site / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text(textwrap.dedent(text))
    for name in ("onnxmltools/convert", "onnxmltools/convert/common"):
        (site / name / "__init__.py").touch()
    code = f"import sys, runpy; sys.path.insert(0, {str(site)!r}); "
    code += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift 3\nexec {sys.executable} -c "{code}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("GRAPHOPT_PYTHON_LIGHTGBM", str(python))

    def write(**told):
        path = tmp_path / "m.txt"
        path.write_text("objective=regression\n" + json.dumps({"factor": 2.0, **told}))
        return path

    return write


def test_a_model_is_converted_and_compared(framework):
    model = graphopt.load(framework())
    x = np.ones((4, 3), np.float32)
    assert run(model, {"x": x})["y"].tolist() == [[6.0]] * 4
    assert model.graph.meta[NOTES][0] == "Converted from LightGBM."
    assert model.graph.meta[NOTES][1].startswith("It agrees with LightGBM within")
    result = graphopt.optimize(framework(), "clean", measure=False)
    assert any("Converted from LightGBM" in n for n in result.report.notes)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            {"factor": 2.001},
            "its converter is at fault: output y differs from .* by 0.0005",
        ),
        ({"refuses": "rank"}, "LightGBM's converter does not take it: .*objective rank"),
        ({"dies": 1}, "its converter ended with code 7: chatter on standard output$"),
        ({"dies": "an Error"}, r"its converter ended with code 7: \[an Error\] at 3"),
    ],
)
def test_what_does_not_convert_is_refused(framework, told, message):
    with pytest.raises(ModelError, match=message):
        graphopt.load(framework(**told))


def test_a_size_that_the_framework_does_not_take_is_told(framework):
    model = graphopt.load(framework(raises=4))
    assert "LightGBM does not run at x=5x3" in model.graph.meta[NOTES][1]


@pytest.mark.parametrize("told", [{"least": 0}, {"only": [0, 1]}])
def test_numbers_that_the_framework_takes_are_found(framework, told):
    model = graphopt.load(framework(**told))
    assert model.graph.meta[NOTES][1].startswith("It agrees with LightGBM within")
    with pytest.raises(ModelError, match="its converter is at fault"):
        graphopt.load(framework(factor=3.0, **told))


def test_what_takes_no_numbers_says_what_it_said_of_the_first(framework):
    model = graphopt.load(framework(least=2))
    assert "itself was not asked: ValueError: too small a number" in model.graph.meta[NOTES][1]


def test_files_that_are_not_there(framework):
    with pytest.raises(ModelError, match="no such file"):
        graphopt.load(framework().with_name("other.txt"))


def test_a_missing_framework_is_told_with_both_ways(tmp_path, monkeypatch):
    if importlib.util.find_spec("paddle"):
        pytest.skip("PaddlePaddle is installed")
    monkeypatch.delenv("GRAPHOPT_PYTHON_PADDLE", raising=False)
    (tmp_path / "m.pdmodel").touch()
    with pytest.raises(MissingExtra, match=r"GRAPHOPT_PYTHON_PADDLE .*graphopt\[paddle\]"):
        graphopt.load(tmp_path / "m.pdmodel")


def test_a_pickle_is_read_only_where_that_is_said(tmp_path):
    for ending in ("joblib", "pkl", "pickle"):
        (tmp_path / f"m.{ending}").touch()
        with pytest.raises(UsageError, match="--trust pickle"):
            graphopt.load(tmp_path / f"m.{ending}")
    command = [sys.executable, "-m", "graphopt", "optimize", str(tmp_path / "m.pkl"), "-p", "clean"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "is a pickle" in done.stderr) == (2, True)
    wrong = subprocess.run([*command, "--trust", "pickles"], capture_output=True, text=True)
    assert "'pickles' is not one of checked, assumed, pickle" in wrong.stderr


def test_formats_by_what_a_path_ends_in(tmp_path):
    known = {"a.keras": KERAS, "a.tflite": TENSORFLOW, "a.joblib": PICKLE, "a.skops": SKOPS}
    known |= {"a.json": XGBOOST, "a.ubj": XGBOOST, "a.txt": LIGHTGBM, "a.pdmodel": PADDLE}
    for name, found in known.items():
        assert format_of(name) is found
    (tmp_path / "b.pdiparams").touch()
    assert format_of(tmp_path / "b.json") is PADDLE
    (tmp_path / "c.json").write_text('{"base_code":{"magic":"pir","version":4}}')
    assert format_of(tmp_path / "c.json") is PADDLE  # has no weights
    (tmp_path / "saved_model.pb").touch()
    assert format_of(tmp_path) is TENSORFLOW
    with pytest.raises(UsageError, match="not written for Keras"):
        graphopt.save(parse_model("y = Relu(x)"), tmp_path / "a.keras")


@pytest.mark.parametrize(
    ("text", "framework"),
    [
        ("import jax.numpy as jnp", "jax"),
        ("from jax import lax", "jax"),
        ("import torch", None),
        ("import jax, torch", None),
        ("not python", None),
    ],
)
def test_functions_of_jax_and_of_pytorch(tmp_path, text, framework):
    (tmp_path / "f.py").write_text(text)
    found = format_of(f"{tmp_path}/f.py:build")
    assert getattr(found, "framework", None) == framework


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pools_over_more_axes_than_three(op):
    """JAX's windows (1, 2, 2, 1) over (N, H, W, C)."""
    text = f"""a = Unsqueeze(x, first)  b = Unsqueeze(a, first)
    c = {op} <kernel_shape=[1, 2, 3, 1], strides=[1, 2, 1, 1], pads=[0, 0, 1, 0, 0, 1, 0, 0]> (b)
    y = Squeeze(c, both)"""
    constants = {"first": np.array([0]), "both": np.array([0, 1])}
    model = parse_model(text, inputs={"x": (2, 6, 5, 4)}, constants=constants)
    x = np.random.default_rng(0).standard_normal((2, 6, 5, 4)).astype(np.float32)
    plain = parse_model(
        f"y = {op} <kernel_shape=[2, 3], strides=[2, 1], pads=[0, 1, 1, 0]> (x)",
        inputs={"x": (2, 4, 6, 5)},
    )
    expected = run(plain, {"x": x.transpose(0, 3, 1, 2)})["y"]
    assert mend_pools(model) == ["1 pools over more than 3 axes pool over fewer."]
    got = run(model, {"x": x})["y"]
    assert np.allclose(got, expected.transpose(0, 2, 3, 1), atol=1e-6)
    assert mend_pools(model) == []


def test_rounding_to_16_bits_before_opset_21():
    text = "q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)"
    constants = {"s": np.float32(0.5), "z": np.array(3, np.int16)}
    model = parse_model(text, inputs={"x": (2, 3)}, constants=constants, opset=17)
    assert mend_16_bits(model) == ["2 operators round to 16 bits as ONNX Runtime does."]
    x = np.array([[0.2, 0.3, 1000], [-1, 20000, 0]], np.float32)
    assert run(model, {"x": x})["y"].tolist() == [[0, 0.5, 1000], [-1, 16382, 0]]
    assert mend_16_bits(model) == []


class Framework:
    """Has one output, `made` of the input x."""

    def __init__(self, made):
        self.made = made

    def predict(self, feeds):
        return {0: self.made(feeds["x"])}


def test_what_rounds_on_the_way_is_compared_as_a_whole():
    text = "q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)"
    constants = {"s": np.float32(0.01), "z": np.array(128, np.uint8)}
    model = parse_model(text, inputs={"x": ("n", 300)}, constants=constants)

    def off(steps, share):
        def made(x):
            y = run(model, {"x": x})["y"].copy()
            y[np.random.default_rng(0).random(y.shape) < share] += 0.01 * steps
            return y

        return Framework(made)

    told = check_against_framework(model, off(1, 0.1), "F")
    assert "of the root mean square, rounded, at 2 sizes" in told
    with pytest.raises(ModelError, match=r"fault: .* of the root mean square"):
        check_against_framework(model, off(4, 1), "F")
    told = check_against_framework(model, off(0, 0), "F")
    assert told.startswith("It agrees with F within 0 of the root mean square")


@pytest.mark.parametrize(
    ("declared", "mended"),
    [
        (["n", 1], ["n", None]),
        (["n", 2], ["n", 2]),
        ([5, 2], [None, 2]),
        (["n"], [None, None]),
        (None, None),
    ],
)
def test_a_shape_that_a_converter_declares_wrongly(declared, mended):
    value = ir.Value(name="y", shape=None if declared is None else ir.Shape(declared))
    told = mend_shape(value, np.zeros((3, 2), np.float32))
    if mended is None:
        assert value.shape is None
    else:
        assert value.shape == ir.Shape(mended)
    assert bool(told) == (declared != mended)
    if told:
        assert told == f"Output y was declared {ir.Shape(declared)} and is of shape [3, 2]."
    assert mend_shape(value, np.zeros((3, 2), np.float32)) == ""


def test_what_trees_ask_for_categories_is_drawn_whole():
    leaf = {"nodes_modes": ["BRANCH_EQ", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF"]}
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1, **leaf,
        nodes_treeids=[0] * 5, nodes_nodeids=[0, 1, 2, 3, 4], nodes_featureids=[2, 0, 0, 0, 0],
        nodes_values=[4.0, -2.0, 0.0, 0.0, 0.0],
        nodes_truenodeids=[1, 3, 0, 0, 0], nodes_falsenodeids=[2, 4, 0, 0, 0],
        target_treeids=[0] * 3, target_nodeids=[2, 3, 4], target_ids=[0] * 3,
        target_weights=[1.0, 2.0, 3.0],
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 3])],
        [helper.make_tensor_value_info("y", 1, ["n", 1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    x = drawn(model, 200, 8, 0)["x"]
    assert (x[:, 2] == np.rint(x[:, 2])).all()
    assert 4 in x[:, 2]
    assert len(set(x[:, 2].tolist())) > 1
    assert 0 < (x[:, :2] == 0).mean() < 0.2, "some zeros, which trees may take for missing values"
    assert not (x[:, :2] == np.rint(x[:, :2]))[x[:, :2] != 0].any()


REAL = Path(__file__).with_name("models.py")


def python_of(framework, module):
    found = os.environ.get(f"GRAPHOPT_PYTHON_{framework.upper()}")
    if found is None and not importlib.util.find_spec(module):
        pytest.skip(f"{module} is not installed, and no GRAPHOPT_PYTHON_{framework.upper()} is set")
    return found or sys.executable


@pytest.mark.parametrize(
    ("framework", "module", "files"),
    [
        (
            "sklearn",
            "skl2onnx",
            ["forest.joblib", "forest.skops", "table.joblib", "two_numbers.joblib"],
        ),
        ("sklearn", "skl2onnx", ["histogram.joblib", "histogram_classes.joblib"]),
        ("sklearn", "skl2onnx", ["bins.joblib", "mixture.joblib", "counts.joblib"]),
        ("sklearn", "skl2onnx", ["gaps.joblib", "gaps_labels.joblib"]),
        ("xgboost", "xgboost", ["classes.json", "classes.ubj", "numbers.json", "rank.json"]),
        ("xgboost", "xgboost", ["labels.json", "best.json", "categories.json"]),
        ("xgboost", "xgboost", ["dart.json", "dart_number.json", "share.json", "score.json"]),
        ("xgboost", "xgboost", ["quantiles.json", "several.json", "two_labels.json"]),
        ("xgboost", "xgboost", ["hinge.json", "counts.json", "hazard.json", "forest.json"]),
        ("lightgbm", "lightgbm", ["categories.txt", "classes.txt", "numbers.txt"]),
        ("lightgbm", "lightgbm", ["forest.txt", "steep.txt", "dart.txt", "each.txt", "zeros.txt"]),
        ("lightgbm", "lightgbm", ["fair.txt", "cross_entropy.txt", "roots.txt", "own.txt"]),
        ("lightgbm", "lightgbm", ["cross_entropy_lambda.txt"]),
        ("keras", "keras", ["dense.keras", "pooled.keras", "both_ways.keras"]),
        ("jax", "jax2onnx", ["functions.py:dense"]),
        ("tensorflow", "tensorflow", ["dense", "constant", "dense.tflite"]),
        ("paddle", "paddle", ["dense.json", "plain.json"]),
    ],
)
def test_real_models(framework, module, files, tmp_path):
    python = python_of(framework, module)
    subprocess.run([python, str(REAL), framework, str(tmp_path)], check=True, capture_output=True)
    for name in files:
        model = graphopt.load(tmp_path / name, trust="pickle")
        assert any("It agrees with" in n for n in model.graph.meta[NOTES])
        result = graphopt.optimize(model, "trees,clean,fold,fuse", measure=False)
        assert all(s.status in ("kept", "unchanged") for s in result.report.steps)
        assert not any("left alone" in n for n in result.report.steps[0].notes)  # trees


@pytest.mark.parametrize(
    ("framework", "name", "why"),
    [
        ("xgboost", "linear.json", "linear.json: its booster is 'gblinear', which has no trees"),
        ("xgboost", "vectors.json", "multi_strategy='one_output_per_tree'"),
        ("xgboost", "early.json", r"it was stopped early.*save booster\[:4\]"),
        (
            "xgboost",
            "no_model.json",
            "no_model.json: XGBoost does not read it: Invalid cast, [^:]*$",
        ),
        ("lightgbm", "linear.txt", "linear.txt: its leaves hold linear models"),
    ],
)
def test_real_models_that_are_refused(framework, name, why, tmp_path):
    python = python_of(framework, framework)
    subprocess.run([python, str(REAL), framework, str(tmp_path)], check=True, capture_output=True)
    (tmp_path / "no_model.json").write_text('{"a": 1}')
    with pytest.raises(ModelError, match=why):
        graphopt.load(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("own_layer.keras", r"its class 'Doubled' is defined elsewhere: .*write model.export\("),
        ("lambda.keras", r"a Lambda layer of it holds Python code.*write model.export\("),
        ("cut.keras", r"cut.keras: it is no whole .keras file: write one by model.save\(.*\)$"),
    ],
)
def test_keras_files_that_are_refused_say_what_to_do(name, why, tmp_path):
    python = python_of("keras", "keras")
    subprocess.run([python, str(REAL), "keras", str(tmp_path)], check=True, capture_output=True)
    (tmp_path / "cut.keras").write_bytes((tmp_path / "dense.keras").read_bytes()[:1000])
    with pytest.raises(ModelError, match=why):
        graphopt.load(tmp_path / name)
