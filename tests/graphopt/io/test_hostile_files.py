"""Bad files are refused on reading, in one line; what can be set right is, and said."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.errors import ModelError
from graphopt.io.reading import source_of

F = TensorProto.FLOAT
node = helper.make_node


def info(name, shape=(2, 3), kind=F):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, *, inits=(), functions=(), inputs=None, outputs=None, opset=17):
    graph = helper.make_graph(
        nodes, "g", inputs or [info("x")], outputs or [info("y")], list(inits)
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("f", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9, functions=list(functions))


def write(folder: Path, proto: onnx.ModelProto | bytes) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    return path


def fails(folder: Path, proto: onnx.ModelProto | bytes, *words: str) -> None:
    path = write(folder, proto)
    with pytest.raises(ModelError) as caught:
        graphopt.load(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert all(w in text for w in words), text


def notes(folder: Path, proto: onnx.ModelProto) -> tuple[graphopt.ir.Model, str]:
    read = graphopt.load(write(folder, proto))
    source = source_of(read)
    assert source is not None
    return read, " ".join(source.notes)


SIGNATURES = [
    ([node("Concat", ["x", "x"], ["y"])], "Concat 'y' lacks the attribute 'axis'"),
    ([node("Add", ["x"], ["y"], name="plus")], "Add 'plus' has 1 inputs, the operator has 2"),
    ([node("MatMul", [], ["y"])], "has 0 inputs"),
    ([node("Relu", ["x", "x"], ["y"])], "has 2 inputs, the operator has 1"),
    ([node("Add", ["", "x"], ["y"])], "lacks its input 0"),
    ([node("Min", ["x", "", "x"], ["y"])], "lacks its input 1"),
    ([node("Concat", ["x", ""], ["y"], axis=0)], "lacks its input 1"),
    ([node("Softmax", ["x"], ["y"], axis="last")], "attribute 'axis': not INT"),
    ([node("Relu", ["x"], ["y", "z"])], "has 2 outputs"),
    ([node("Softmax", ["x"], ["y"], axis=1 << 31)], "no tensor has an axis 2147483648"),
    ([node("Concat", ["x", "x"], ["y"], axis=-1 << 63)], "no tensor has an axis -9223"),
    ([node("Pad", ["x"], ["y"])], "has 1 inputs, the operator has at least 2"),
]


@pytest.mark.parametrize(("nodes", "says"), SIGNATURES)
def test_operators_without_what_they_need(tmp_path, nodes, says):
    fails(tmp_path, model(nodes), says)


def test_a_model_without_outputs(tmp_path):
    proto = model([node("Relu", ["x"], ["y"])])
    del proto.graph.output[:]
    with pytest.raises(ModelError, match=r"m\.onnx has no outputs"):
        graphopt.optimize(write(tmp_path, proto), "clean", measure=False)


def test_operators_in_branches_and_functions_too(tmp_path):
    bad = node("Concat", ["x", "x"], ["t"])
    branch = helper.make_graph([bad], "b", [], [info("t", None)])
    chosen = node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    fails(
        tmp_path,
        model([chosen], inputs=[info("x"), info("c", (), TensorProto.BOOL)]),
        "Concat 't' lacks",
    )
    body = helper.make_function("f", "Join", ["x"], ["t"], [bad], [helper.make_opsetid("", 17)])
    fails(tmp_path, model([node("Join", ["x"], ["y"], domain="f")], functions=[body]), "Concat 't'")


def doubling(levels: int, last: str) -> list[onnx.FunctionProto]:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    made = []
    for k in range(levels):
        inner = f"F{k + 1}" if k + 1 < levels else last
        domain = "f" if inner.startswith("F") else ""
        nodes = [
            node(inner, ["a"], ["t"], domain=domain),
            node(inner, ["t"], ["b"], domain=domain),
        ]
        made.append(helper.make_function("f", f"F{k}", ["a"], ["b"], nodes, imports))
    return made


def test_functions_that_double_are_refused_and_a_few_are_not(tmp_path):
    call = [node("F0", ["x"], ["y"], domain="f")]
    fails(tmp_path, model(call, functions=doubling(30, "Relu")), "1,000,000 nodes")
    graphopt.load(write(tmp_path, model(call, functions=doubling(4, "Relu"))))


def test_a_split_into_more_than_it_says(tmp_path):
    made = node("Split", ["x"], ["y", "z"], num_outputs=3)
    fails(tmp_path, model([made], opset=18), "Split 'y' has 2 outputs, num_outputs=3")


def test_functions_of_another_opset_are_left_as_they_are(tmp_path):
    body = [node("Relu", ["a"], ["b"])]
    act = helper.make_function("f", "act", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    proto = model([node("act", ["x"], ["y"], domain="f")], functions=[act], opset=15)
    made = graphopt.optimize(write(tmp_path, proto), "clean, fold, fuse", measure=False).model
    assert [n.op_type for n in made.graph] == ["act"]


def test_an_output_that_is_listed_twice_is_of_one_type(tmp_path):
    proto = model([node("Relu", ["x"], ["y"])], outputs=[info("y"), info("y", (2, 3, 1), 0)])
    read, _ = notes(tmp_path, proto)
    assert [(v.name, v.dtype.name) for v in read.graph.outputs] == [("y", "FLOAT")] * 2


@pytest.mark.parametrize(
    ("ins", "outs", "says"), [(["x", "x"], ["y"], "2 inputs"), (["x"], ["y", "z"], "2 outputs")]
)
def test_calls_with_more_than_the_function_has(tmp_path, ins, outs, says):
    body = [node("Relu", ["a"], ["b"])]
    act = helper.make_function("f", "act", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    fails(tmp_path, model([node("act", ins, outs, domain="f")], functions=[act]), says)


def test_functions_that_call_themselves(tmp_path):
    call = [node("F0", ["x"], ["y"], domain="f")]
    fails(tmp_path, model(call, functions=doubling(2, "F0")), "call themselves", "F0 -> F1 -> F0")


@pytest.mark.parametrize(
    ("indices", "dims"),
    [
        ([5, 99], [10]),
        ([-1, 2], [10]),
        ([1], [10]),
        ([[0, 1], [3, 0]], [2, 3]),
        ([0, 1], [1 << 40]),
    ],
)
def test_sparse_indices_that_do_not_fit(tmp_path, indices, dims):
    proto = model([node("Identity", ["w"], ["y"])])
    values = numpy_helper.from_array(np.ones(2, np.float32), "w")
    places = numpy_helper.from_array(np.array(indices, np.int64), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, dims))
    fails(tmp_path, proto, "sparse initializer 'w'", str(dims))


def test_names_that_are_not_utf8(tmp_path):
    data = model([node("Relu", ["x"], ["y"], name="NNNN")]).SerializeToString()
    fails(tmp_path, data.replace(b"Relu", b"Re\xffu"), "not UTF-8")
    path = write(tmp_path, data.replace(b"NNNN", b"N\xffNN"))  # which runtimes take
    assert [n.name for n in graphopt.load(path).graph] == ["N\\xffNN"]


@pytest.mark.parametrize("depth", [400, 3000])
def test_graphs_that_nest_without_end(tmp_path, depth):
    def field(number: int, body: bytes) -> bytes:
        length, head = len(body), b""
        while length > 127:
            head += bytes([length & 127 | 128])
            length >>= 7
        return bytes([number << 3 | 2]) + head + bytes([length]) + body

    graph = field(1, node("Relu", ["x"], ["y"]).SerializeToString())
    for _ in range(depth):
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, graph)))
    fails(tmp_path, b"\x08\x08" + field(7, graph), "nest deeper")


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelError, match="not a regular file"):
        graphopt.load(tmp_path / "pipe.onnx")


@pytest.mark.parametrize(
    ("location", "says"), [("pipe", "not a regular file"), ("a\0b", "no name of a file")]
)
def test_external_data_that_is_no_file(tmp_path, location, says):
    os.mkfifo(tmp_path / "pipe")
    proto = model([node("Add", ["x", "w"], ["y"])])
    tensor = proto.graph.initializer.add(name="w", data_type=F, dims=[3])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    fails(tmp_path, proto, says)


def test_equal_node_names_become_different_ones(tmp_path):
    nodes = [
        node("Relu", ["x"], ["a"], name="n"),
        node("Neg", ["a"], ["b"], name="n"),
        node("Abs", ["b"], ["y"], name="n_1"),
    ]
    read, said = notes(tmp_path, model(nodes))
    assert [n.name for n in read.graph] == ["n", "n_2", "n_1"]
    assert "1 node had the name of another" in said
    assert "'n'" in said


def test_sizes_below_zero_are_unknown(tmp_path):
    read, said = notes(tmp_path, model([node("Relu", ["x"], ["y"])], inputs=[info("x", (-1, 3))]))
    shape = read.graph.inputs[0].shape
    assert shape is not None
    assert not isinstance(shape[0], int)
    assert shape[1] == 3
    assert "'x'" in said
    result = graphopt.optimize(read, "clean, fuse", measure=False)
    assert not any("not compared" in n for n in result.report.notes)


def test_maps_are_kept(tmp_path):
    proto = helper.make_model(
        helper.make_graph(
            [
                node(
                    "ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_strings=["a", "b", "c"]
                )
            ],
            "g",
            [info("x")],
            [
                helper.make_value_info(
                    "y",
                    helper.make_sequence_type_proto(
                        helper.make_map_type_proto(
                            TensorProto.STRING, helper.make_tensor_type_proto(F, [])
                        )
                    ),
                )
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)],
        ir_version=9,
    )
    result = graphopt.optimize(graphopt.load(write(tmp_path, proto)), "clean, fuse", measure=False)
    graphopt.save(result.model, tmp_path / "o.onnx")
    made = onnx.load(tmp_path / "o.onnx")
    assert made.graph.output[0].type == proto.graph.output[0].type
    assert not any("not compared" in n for n in result.report.notes)


def test_text_and_docs_pass_through(tmp_path):
    """Labels looked up by index, numbers from text; the output's docs survive being made anew."""
    labels = helper.make_tensor("labels", TensorProto.STRING, [3], [b"cat", b"dog", b"owl"])
    proto = model(
        [
            node("ArgMax", ["x"], ["i"], axis=1, keepdims=0),
            node("Gather", ["labels", "i"], ["y"]),
            node("Cast", ["w"], ["t"], to=TensorProto.STRING),
        ],
        inits=[labels, numpy_helper.from_array(np.array([1.5], np.float32), "w")],
        outputs=[info("y", (2,), TensorProto.STRING), info("t", (1,), TensorProto.STRING)],
    )
    proto.graph.output[0].doc_string = "the animal"
    proto.graph.output[0].metadata_props.add(key="unit", value="name")
    result = graphopt.optimize(
        graphopt.load(write(tmp_path, proto)), "clean, fold, fuse", measure=False
    )
    assert not any("not compared" in n for n in result.report.notes)
    assert result.model.graph.outputs[0].doc_string == "the animal"
    assert result.model.graph.outputs[0].metadata_props["unit"] == "name"


@pytest.mark.parametrize("sizes", [[-1, 1], [1 << 35, 1 << 35]])
@pytest.mark.parametrize("spec", ["clean, fold, fuse", "fuse"])
def test_what_never_runs_may_be_wrong(tmp_path, spec, sizes):
    """Expand to -1, and sizes of 2^70, in a branch that is not taken."""
    sizes = numpy_helper.from_array(np.array(sizes, np.int64), "s")
    there = helper.make_graph([node("Expand", ["x", "s"], ["t"])], "t", [], [info("t", None)])
    other = helper.make_graph([node("Neg", ["x"], ["e"])], "e", [], [info("e", None)])
    chosen = node("If", ["c"], ["y"], then_branch=there, else_branch=other)
    proto = model(
        [node("ReduceSum", ["x"], ["r"], keepdims=0), node("IsNaN", ["r"], ["c"]), chosen],
        inits=[sizes],
        inputs=[info("x", (1, 1))],
        outputs=[info("y", None)],
    )
    result = graphopt.optimize(graphopt.load(write(tmp_path, proto)), spec, measure=False)
    assert [n for n in result.report.notes if "not compared" in n] == []


def test_convolution_weights_from_constant_nodes(tmp_path):
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32))
    ones = [numpy_helper.from_array(np.ones(4, np.float32), k) for k in "sbmv"]
    proto = model(
        [
            node("Constant", [], ["w"], value=weight),
            node("Conv", ["x", "w"], ["c"]),
            node("BatchNormalization", ["c", *"sbmv"], ["y"]),
        ],
        inits=ones,
        inputs=[info("x", ("b", 3, 8, 8))],
        outputs=[info("y", ("b", 4, 6, 6))],
    )
    result = graphopt.optimize(graphopt.load(write(tmp_path, proto)), "fuse", measure=False)
    assert "BatchNormalization" not in {n.op_type for n in result.model.graph}


def attribute_of(**fields):
    made = helper.make_node("Softmax", ["x"], ["y"], "s", axis=1)
    for key, value in fields.items():
        setattr(made.attribute[0], key, value)
    return made


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (attribute_of(ref_attr_name="k"), "no attribute 'k' of a function"),
        (attribute_of(type=0), "attribute 'axis': it has no type"),
        (attribute_of(name="axes"), "unknown attribute 'axes'"),
        (node("Cast", ["x"], ["y"], to=0), "0 is no element type"),
        (node("EyeLike", ["x"], ["y"], dtype=99), "99 is no element type"),
        (node("Constant", [], ["y"], value_int=1, value_float=1.0), "holds 2 values, not one"),
    ],
)
def test_attributes_that_the_operator_cannot_have(tmp_path, made, words):
    fails(tmp_path, model([made]), words)


def test_attributes_that_stand_for_those_of_a_function(tmp_path):
    body = attribute_of(ref_attr_name="k", type=onnx.AttributeProto.INT)
    body.attribute[0].ClearField("i")
    function = helper.make_function(
        "f", "F", ["x"], ["y"], [body], [helper.make_opsetid("", 17)], ["k"]
    )
    proto = model([node("F", ["x"], ["y"], domain="f", k=1)], functions=[function])
    assert [n.op_type for n in graphopt.load(write(tmp_path, proto)).graph] == ["F"]


@pytest.mark.parametrize("word", ["gggg", "xxxx", "dddd", "tttt", "mmmm", "pppp"])
def test_text_that_is_not_utf8_is_escaped_wherever_it_stands(tmp_path, word):
    relu = node("Relu", ["xxxx"], ["y"], doc_string="dddd")
    proto = model([relu], inputs=[info("xxxx", ("pppp", 3))])
    proto.graph.name, proto.graph.doc_string = "gggg", "tttt"
    proto.metadata_props.add(key="k", value="mmmm")
    data = proto.SerializeToString().replace(word.encode(), word[0].encode() * 3 + b"\xff")
    written = tmp_path / "out.onnx"
    graphopt.optimize(write(tmp_path, data), "clean", measure=False).write(written)
    assert f"{word[0] * 3}\\xff".encode() in written.read_bytes()


def test_an_input_without_element_type(tmp_path):
    fails(tmp_path, model([node("Relu", ["x"], ["y"])], inputs=[info("x", kind=0)]), "'x' has no")


def test_a_value_declared_without_element_type(tmp_path):
    proto = model([node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["y"])])
    proto.graph.value_info.append(info("a", kind=0))
    result = graphopt.optimize(write(tmp_path, proto), "clean,fold,fuse", measure=False)
    assert [n.op_type for n in result.model.graph] == ["Relu", "Neg"]


def test_an_input_that_is_an_output_too_is_declared_as_the_input(tmp_path):
    proto = model([node("Relu", ["x"], ["y"])], outputs=[info("y"), info("x", (7, 7, 7))])
    read = graphopt.load(write(tmp_path, proto))
    assert [list(v.shape) for v in (read.graph.inputs[0], read.graph.outputs[1])] == [[2, 3]] * 2


ONE, NONE, FEW = [1], [0], [1, 0]


@pytest.mark.parametrize("steps", [NONE, FEW])
@pytest.mark.parametrize("how", ["initializer", "Constant", "value_ints"])
def test_a_slice_with_a_step_of_0(tmp_path, steps, how):
    array = numpy_helper.from_array(np.array(steps, np.int64), "s")
    makers = {
        "initializer": ([], [array]),
        "Constant": ([node("Constant", [], ["s"], value=array)], []),
        "value_ints": ([node("Constant", [], ["s"], value_ints=steps)], []),
    }
    first, inits = makers[how]
    axes = numpy_helper.from_array(np.arange(len(steps)), "a")
    proto = model([*first, node("Slice", ["x", "a", "a", "a", "s"], ["y"])], inits=[axes, *inits])
    fails(tmp_path, proto, "Slice 'y' has a step of 0")


@pytest.mark.parametrize("perm", [[0, 0], [5, 1], [-1, 0], [1]])
def test_a_permutation_that_is_none(tmp_path, perm):
    fails(tmp_path, model([node("Transpose", ["x"], ["y"], perm=perm)]), "is no permutation")


def test_sizes_that_are_fractions_are_left_to_the_runtime(tmp_path):
    target = numpy_helper.from_array(np.array([3, 2], np.float32), "s")
    outputs = [info("y", (3, 2))]
    proto = model([node("Reshape", ["x", "s"], ["y"])], inits=[target], outputs=outputs)
    result = graphopt.optimize(write(tmp_path, proto), "clean,fold,fuse", measure=False)
    assert [n.op_type for n in result.model.graph] == ["Reshape"]


@pytest.mark.parametrize("spec", ["clean,fold,fuse", "prune(ratio=0.3)", "svd", "int8", "fp16"])
def test_weights_of_size_zero_and_a_flag_that_is_no_flag_pass_through(tmp_path, spec):
    weights = {"z": np.ones((3, 0), "f"), "w": np.ones((3, 4), "f")}
    nodes = [
        node("Gemm", ["x", "z"], ["a"]),
        node("Concat", ["a", "x"], ["c"], axis=1),
        node("Gemm", ["c", "w"], ["g"]),
        node("ReduceSum", ["g"], ["y"], keepdims=2**31),
    ]
    inits = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    proto = model(nodes, inits=inits, outputs=[helper.make_tensor_value_info("y", F, None)])
    result = graphopt.optimize(write(tmp_path, proto), spec, measure=False)
    assert [v.name for v in result.model.graph.outputs] == ["y"]


def listing(version: int, count: int, listed: int, shape=(2, 3)) -> onnx.ModelProto:
    """y = x * w0 * w1 ..., the first so many weights inputs too."""
    names = [f"w{k}" for k in range(count)]
    weights = [numpy_helper.from_array(np.full(shape, 2, np.float32), n) for n in names]
    values = ["x", *(f"h{k}" for k in range(count - 1)), "y"]
    nodes = [
        node("Mul", [values[k], names[k]], [values[k + 1]], name=n) for k, n in enumerate(names)
    ]
    made = model(nodes, inits=weights)
    made.graph.input.extend(helper.make_tensor_value_info(n, F, shape) for n in names[:listed])
    made.ir_version = version
    return made


@pytest.mark.parametrize("listed", [0, 1, 2])
def test_initializers_of_old_versions_are_constants_listed_or_not(tmp_path, listed):
    """Version 3 lists them all; runtimes open files that do not, and onnxruntime ships one."""
    read, said = notes(tmp_path, listing(3, 2, listed))
    assert ("no input beside it, which IR version 3 asks for" in said) == (listed < 2)
    result = graphopt.optimize(read, "clean,fold,fuse", measure=False)
    assert [v.name for v in result.model.graph.inputs] == ["x"]


def test_who_lists_every_weight_means_none_to_be_overridden(tmp_path):
    made = write(tmp_path, listing(4, 5, 5))
    result = graphopt.optimize(made, "fold", measure=False)
    assert any("All 5 initializers were inputs too" in n for n in result.report.notes)
    assert [v.name for v in result.model.graph.inputs] == ["x"]


@pytest.mark.parametrize(("count", "listed", "shape"), [(5, 4, (2, 3)), (1, 1, (2, 3)), (5, 5, ())])
def test_defaults_that_callers_may_override_stay(tmp_path, count, listed, shape):
    made = write(tmp_path, listing(4, count, listed, shape))
    result = graphopt.optimize(made, "clean,fold,fuse", measure=False)
    assert any(n.startswith("Callers may override 'w0'") for n in result.report.notes)
    assert len(result.model.graph.inputs) == 1 + listed
