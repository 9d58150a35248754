"""What exporters and clients of deployed models do, each in a model of a few nodes."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import Samples, optimize

RNG = np.random.default_rng(0)
FLOAT = TensorProto.FLOAT


def normal(*shape, scale=1.0):
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


def proto(nodes, inputs, outputs, constants, opset=17, domains=()):
    held = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    values = [
        [
            v if not isinstance(v, tuple) else helper.make_tensor_value_info(v[0], v[1], v[2])
            for v in group
        ]
        for group in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "g", *values, held)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(*d) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def outputs(model, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)


def check(model, feeds, spec="clean,fold,fuse", bound=1e-5, samples=None):
    """Optimize `model`, compare on `feeds`; returns the report and what was made."""
    result = optimize(model, spec, samples=samples, measure=False)
    with tempfile.TemporaryDirectory() as folder:
        result.write(Path(folder) / "m.onnx")
        made = onnx.load(Path(folder) / "m.onnx")
    for one in feeds:
        for want, got in zip(outputs(model, one), outputs(made, one), strict=True):
            if isinstance(want, np.ndarray):
                assert want.shape == got.shape
                assert np.linalg.norm(want - got) <= bound * np.linalg.norm(want)
            else:
                assert want == got
    return result.report, made


@pytest.mark.parametrize("first", [-1, "?", "", None])
def test_sizes_that_are_no_sizes(first):
    """PaddlePaddle writes -1, its converter '?' for every axis that it does not know."""
    free = "?" if first == "?" else None
    dims = [first, 3, free, free]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    model = proto(
        nodes, [("x", FLOAT, dims)], [("y", FLOAT, [first, 4, free, free])],
        {"w": normal(4, 3, 1, 1)}, opset=11,
    )  # fmt: skip
    feeds = [{"x": normal(2, 3, 8, 32)}, {"x": normal(1, 3, 5, 7)}]
    check(model, feeds)
    check(model, feeds, "int8", 0.05, Samples([{"x": normal(2, 3, 8, 32)} for _ in range(4)]))


def test_an_output_declared_with_another_rank():
    """[1, seqlen] for [t, b, c]: nothing may follow from that."""
    shape = helper.make_node("Shape", ["x"], ["s"])
    nodes = [
        shape,
        helper.make_node("Gather", ["s", "first"], ["t"]),
        helper.make_node("Gather", ["s", "second"], ["b"]),
        helper.make_node("Concat", ["t", "b", "five"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "flat"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["m"]),
        helper.make_node("Reshape", ["m", "to"], ["y"]),
    ]
    constants = {"first": [0], "second": [1], "five": [5], "flat": [-1, 4], "w": normal(4, 5)}
    model = proto(
        nodes, [("x", FLOAT, ["t", "b", 4])], [("y", FLOAT, [1, "seqlen"])], constants, opset=13
    )
    check(model, [{"x": normal(3, 2, 4)}, {"x": normal(7, 1, 4)}])


def test_a_classifier_that_gives_maps():
    trees = helper.make_node(
        "TreeEnsembleClassifier", ["x"], ["label", "p"], domain="ai.onnx.ml",
        classlabels_int64s=[0, 1], class_ids=[0, 1], class_nodeids=[1, 2], class_treeids=[0, 0],
        class_weights=[1.0, 1.0], nodes_falsenodeids=[2, 0, 0], nodes_truenodeids=[1, 0, 0],
        nodes_featureids=[0, 0, 0], nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_nodeids=[0, 1, 2], nodes_treeids=[0, 0, 0], nodes_values=[0.0, 0.0, 0.0],
        post_transform="NONE",
    )  # fmt: skip
    maps = helper.make_node(
        "ZipMap", ["p"], ["chances"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]
    )
    entry = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, None)
    )
    chances = helper.make_value_info("chances", helper.make_sequence_type_proto(entry))
    model = proto(
        [trees, maps], [("x", FLOAT, [None, 4])], [("label", TensorProto.INT64, [None]), chances],
        {}, domains=[("ai.onnx.ml", 1)],
    )  # fmt: skip
    check(model, [{"x": normal(6, 4)}])


@pytest.mark.parametrize("how", ["scaled", "transposed"])
def test_a_product_that_fusing_took_something_into_is_integer(how):
    """The largest matrix of a text recognizer stayed float: its product had a factor."""
    first = helper.make_node("Relu", ["x"], ["r"])
    if how == "scaled":
        shape, nodes = [8, 24], [helper.make_node("MatMul", ["r", "w"], ["m"])]
        nodes.append(helper.make_node("Mul", ["m", "half"], ["k"]))
    else:
        shape, nodes = [24, 8], [helper.make_node("Transpose", ["r"], ["q"], perm=[0, 2, 1])]
        nodes.append(helper.make_node("MatMul", ["q", "w"], ["k"]))
    nodes.append(helper.make_node("Add", ["k", "bias"], ["y"]))
    constants = {"w": normal(24, 640, scale=0.1), "bias": normal(640), "half": np.float32(0.5)}
    model = proto(
        [first, *nodes], [("x", FLOAT, ["b", *shape])], [("y", FLOAT, ["b", 8, 640])], constants
    )
    runs = [{"x": normal(2, *shape)} for _ in range(4)]
    _, made = check(model, runs, "fuse,int8", 0.03, Samples(runs))
    held = made.graph.initializer
    assert [t.data_type for t in held if t.dims == [24, 640]] == [TensorProto.INT8]


def test_a_session_with_a_state_is_calibrated_run_by_run():
    """A state [2, batch, n] beside inputs [batch, k], as streaming models have them."""
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["a"]),
        helper.make_node("ReduceSum", ["state", "axis"], ["b"], keepdims=0),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Tanh", ["c"], ["output"]),
        helper.make_node("Unsqueeze", ["output", "axis"], ["u"]),
        helper.make_node("Mul", ["u", "half"], ["v"]),
        helper.make_node("Mul", ["state", "half"], ["d"]),
        helper.make_node("Add", ["d", "v"], ["next"]),
    ]
    constants = {"w": normal(16, 64), "axis": np.array([0]), "half": np.float32(0.5)}
    model = proto(
        nodes,
        [("input", FLOAT, ["batch", 16]), ("state", FLOAT, [2, "batch", 64])],
        [("output", FLOAT, ["batch", 64]), ("next", FLOAT, [2, "batch", 64])],
        constants,
    )
    runs = [{"input": normal(b, 16), "state": normal(2, b, 64)} for b in (1, 1, 3)]
    report, _ = check(model, runs, "clean,fold,fuse,int8", 0.05, Samples(runs))
    assert report.validated
    assert [s.status for s in report.steps][-1] == "kept"


@pytest.mark.parametrize("spec", ["clean,fold,fuse", "prune(ratio=0.3)", "int8"])
def test_a_model_without_inputs(spec):
    nodes = [
        helper.make_node("Constant", [], ["a"], value=numpy_helper.from_array(normal(4))),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    check(proto(nodes, [], [("y", FLOAT, [4])], {}), [{}], spec)


@pytest.mark.parametrize("spec", ["prune(ratio=0.3)", "svd(ratio=0.4)", "int8"])
def test_products_over_nothing(spec):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["y"]),
    ]
    constants = {"w": normal(16, 0), "v": normal(0, 4)}
    model = proto(nodes, [("x", FLOAT, ["n", 16])], [("y", FLOAT, ["n", 4])], constants)
    report, _ = check(model, [{"x": normal(2, 16)}], spec, samples={"x": normal(8, 16)})
    assert [s.status for s in report.steps] == ["unchanged"]


@pytest.mark.parametrize("factor", [1e-42, 1e-20, 1e-9, 0.0, 1e6])
def test_channels_of_any_size_in_integers(factor):
    """A bias that its channel's weights are nothing against fits in no 32 bits of their scale."""
    w = normal(16, 16, 3, 3, scale=0.1)
    w[3] *= factor
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["y"]),
    ]
    constants = {"w": w, "b": np.where(np.arange(16) % 2, 5, -4.5).astype(np.float32)}
    constants["v"] = normal(8, 16, 1, 1, scale=0.2)
    model = proto(nodes, [("x", FLOAT, ["n", 16, 6, 6])], [("y", FLOAT, ["n", 8, 6, 6])], constants)
    x = normal(16, 16, 6, 6)
    check(model, [{"x": x}], "int8", 0.05, {"x": x})
