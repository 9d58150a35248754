import numpy as np
import onnx
import onnx_ir as ir
from graphopt.passes.clean.clean import Clean
from onnx import helper

from graphopt import Context, optimize
from graphopt.testing import check

TRACE = 'File "/home/someone/net.py", line 3, in forward\n    return x.relu()'
OLD = "/home/someone/net.py(3): forward\n/usr/lib/torch/nn/module.py(118): _call_impl\n"


def traced() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Exp", ["x"], ["b"], "exp", doc_string=OLD)],
        "then",
        [],
        [helper.make_tensor_value_info("b", 1, [3])],
    )
    other = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["c"], "abs", doc_string="Written by hand: see net.py")],
        "else",
        [],
        [helper.make_tensor_value_info("c", 1, [3])],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "net/relu"),
        helper.make_node("If", ["k"], ["y"], "net/if", then_branch=body, else_branch=other),
    ]
    kept = {"namespace": "net: Net/relu: relu", "pkg.torch.onnx.name_scopes": "['net', 'relu']"}
    dropped = {
        "pkg.torch.onnx.stack_trace": TRACE,
        "pkg.torch.onnx.fx_node": "%relu : [num_users=1]",
    }
    for key, text in {**kept, **dropped}.items():
        nodes[0].metadata_props.add(key=key, value=text)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [3]), helper.make_tensor_value_info("k", 9, [])],
        [helper.make_tensor_value_info(n, 1, [3]) for n in ("y", "r")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def nodes_of(model: ir.Model) -> dict[str, ir.Node]:
    return {n.name: n for n in model.graph.all_nodes()}


def test_traces_of_the_exporter_go_and_names_and_documentation_stay():
    model = ir.from_proto(traced())
    check(Clean(), model, inputs={"k": np.array(True)})
    relu, exp, absolute = (nodes_of(model)[n] for n in ("net/relu", "exp", "abs"))
    assert relu.metadata_props["namespace"] == "net: Net/relu: relu"
    assert set(relu.metadata_props) == {"namespace", "pkg.torch.onnx.name_scopes"}
    assert relu.name == "net/relu"
    assert not exp.doc_string
    assert absolute.doc_string == "Written by hand: see net.py"


def test_a_model_with_traces_alone_is_changed_once(tmp_path):
    onnx.save(traced(), tmp_path / "m.onnx")
    result = optimize(tmp_path / "m.onnx", "clean", measure=False)
    assert result.report.steps[0].status == "kept"
    assert Clean().run(result.model, Context(result.model)) == 0
