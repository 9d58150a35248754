"""States: which output an input takes in the next run."""

import onnx
import onnx_ir as ir
import pytest

from graphopt.samples.states import states_of


def model(inputs, outputs):
    def values(pairs):
        return [
            onnx.helper.make_tensor_value_info(
                n, onnx.TensorProto.INT64 if n.startswith("ids") else onnx.TensorProto.FLOAT, dims
            )
            for n, dims in pairs.items()
        ]

    first = next(iter(inputs))
    nodes = [onnx.helper.make_node("Identity", [first], [name]) for name in outputs]
    graph = onnx.helper.make_graph(nodes, "g", values(inputs), values(outputs))
    return ir.from_proto(onnx.helper.make_model(graph))


CASES = [
    # inputs, outputs, what takes what
    ("x:1,512 h:2,1,64 c:2,1,64", "p:1,1 hn:2,1,64 cn:2,1,64", "h:hn c:cn"),
    ("input:1,512 state:2,b,128", "output:1,512 stateN:2,b,128", "state:stateN"),
    ("x:1,5 h_0:1,8 c_0:1,8", "y:1,5 h_n:1,8 c_n:1,8", "h_0:h_n c_0:c_n"),
    (
        "ids:1,s past_key_values.0.key:b,4,p,64 past_key_values.0.value:b,4,p,64",
        "logits:1,s,9 present.0.key:b,4,t,64 present.0.value:b,4,t,64",
        "past_key_values.0.key:present.0.key past_key_values.0.value:present.0.value",
    ),
    (
        "ids:1,s past_0:b,4,p,64 past_1:b,4,p,64",
        "logits:1,s,9 present_0:b,4,t,64 present_1:b,4,t,64",
        "past_0:present_0 past_1:present_1",
    ),
    ("x:1,80 in_cache:1,8,3", "y:1,80 out_cache:1,8,3", "in_cache:out_cache"),
    # another size, another type, no name but the direction, two axes that differ
    ("x:1,5 h:1,8", "y:1,5 hn:1,9", ""),
    ("ids:1,5", "ids_out:1,5", ""),
    ("input:1,5", "output:1,5", ""),
    ("x:1,5 h:a,b", "y:1,5 hn:c,d", ""),
]


def named(text):
    pairs = (one.split(":") for one in text.split())
    return {n: tuple(int(d) if d.isdigit() else d for d in dims.split(",")) for n, dims in pairs}


@pytest.mark.parametrize(("inputs", "outputs", "expected"), CASES)
def test_which_output_an_input_takes_next(inputs, outputs, expected):
    found = states_of(model(named(inputs), named(outputs)))
    assert found == dict(one.split(":") for one in expected.split())
