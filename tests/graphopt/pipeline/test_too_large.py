"""Small files that stand for much: never run, never unrolled, and said so."""

import contextlib
import time
import tracemalloc

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.errors import ModelError

F = TensorProto.FLOAT
node = helper.make_node


def model(nodes, inits, size=1):
    """y = x + r, of weights alone; x holds `size` elements."""
    x, y = (helper.make_tensor_value_info(n, F, [size]) for n in "xy")
    made = [numpy_helper.from_array(np.asarray(v), n) for n, v in inits.items()]
    graph = helper.make_graph([*nodes, node("Add", ["x", "r"], ["y"])], "g", [x], [y], made)
    imports = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def outer():
    """A product of 60,000 rows and 60,000 columns."""
    long = np.ones(60_000, np.float32)
    made = [node("MatMul", ["a", "b"], ["c"]), node("ReduceSum", ["c"], ["r"], keepdims=0)]
    return model(made, {"a": long[:, None], "b": long[None]})


def doubling():
    """Thirty Concats, each of the one before with itself."""
    made = [node("Concat", [f"c{k}", f"c{k}"], [f"c{k + 1}"], axis=0) for k in range(30)]
    made.append(node("ReduceSum", ["c30"], ["r"], keepdims=0))
    return model(made, {"c0": np.ones(8, np.float32)})


def endless():
    """A loop of 2^50 turns."""
    ins = [("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("v", F, [1])]
    outs = [("on", TensorProto.BOOL, []), ("w", F, [1])]
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Add", ["v", "v"], ["w"])],
        "body",
        [helper.make_tensor_value_info(*v) for v in ins],
        [helper.make_tensor_value_info(*v) for v in outs],
    )
    held = {"n": np.int64(1 << 50), "yes": np.bool_(True), "one": np.ones(1, np.float32)}
    return model([node("Loop", ["n", "yes", "one"], ["r"], body=body)], held)


@pytest.mark.parametrize(
    ("make", "says"),
    [(outer, "its values need 14.4 GB"), (doubling, "GB: too large"), (endless, "too often")],
)
def test_what_is_too_much_to_run_is_not_run(make, says):
    tracemalloc.start()
    start = time.process_time()
    for spec in ("clean,fold,fuse", "fp16"):
        result = graphopt.optimize(make(), spec, measure=False)
        assert any("outputs were not compared" in n and says in n for n in result.report.notes)
    with contextlib.suppress(ModelError):  # of samples, if there is something to prune
        graphopt.optimize(make(), "prune(ratio=0.3)", measure=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 28
    assert time.process_time() - start < 30
    with pytest.raises(ModelError, match="the model is not run"):
        graphopt.optimize(make(), "int8", measure=False)


def test_what_is_large_in_proportion_is_run():
    size = 1 << 22
    made = [node("Concat", ["x", "x"], ["c"], axis=0), node("ReduceMax", ["c"], ["r"])]
    result = graphopt.optimize(model(made, {}, size), "clean", measure=False)
    assert not any("not compared" in n for n in result.report.notes)


def test_an_empty_weight_with_an_endless_axis():
    proto = model([node("Identity", ["w"], ["r"])], {"w": np.ones(1, np.float32)})
    del proto.graph.initializer[:]
    proto.graph.initializer.append(helper.make_tensor("w", F, [0, 1 << 40], []))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    for spec in ("clean,fold,fuse", "prune(ratio=0.3)"):
        made = graphopt.optimize(proto, spec, measure=False).model
        assert made.graph.initializers["w"].shape == [0, 1 << 40]


def test_a_loop_that_a_condition_ends_is_run():
    """As while loops are written: the largest limit there is, and a condition of the body's."""
    one = endless()
    body = one.graph.node[0].attribute[0].g
    del body.node[:]
    body.node.extend(
        [
            node("Add", ["v", "v"], ["w"]),
            node("ReduceMax", ["w"], ["m"], keepdims=0),
            node("Less", ["m", "end"], ["on"]),
        ]
    )
    one.graph.initializer.append(numpy_helper.from_array(np.float32(1000), "end"))
    result = graphopt.optimize(one, "clean", measure=False)
    assert not any("not compared" in note for note in result.report.notes)
