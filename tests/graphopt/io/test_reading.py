"""Reading models: what is wrong is said in one line; what is right is mapped, not read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt import wire
from graphopt.errors import ModelError
from graphopt.io.reading import source_of
from graphopt.io.skeleton import skeleton_of
from graphopt.io.tensors import MappedTensor, SparseTensor


def linear(rows: int = 64, cols: int = 32, *, opset: int = 20) -> onnx.ModelProto:
    """y = x @ w + b, with `w` large enough to stay in the file."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((rows, cols)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="mm"),
            helper.make_node("Add", ["h", "b"], ["y"], name="add"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", cols])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.ones(cols, "f4"), "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def write(folder: Path, proto: onnx.ModelProto, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def fails(path: Path, *words: str) -> str:
    """Loading `path` raises one line that holds every one of `words`; returns it."""
    with pytest.raises(ModelError) as caught:
        graphopt.load(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return text


def external(folder: Path) -> tuple[Path, onnx.ModelProto]:
    path = folder / "e.onnx"
    onnx.save(linear(), path, save_as_external_data=True, location="e.data", size_threshold=1024)
    return path, onnx.load(path, load_external_data=False)


def test_weights_are_mapped_where_they_lie(tmp_path):
    proto = linear()
    model = graphopt.load(write(tmp_path, proto))
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, MappedTensor)
    array = tensor.numpy()
    assert not array.flags.owndata
    assert not array.flags.writeable
    assert np.array_equal(array, numpy_helper.to_array(proto.graph.initializer[0]))
    assert not isinstance(model.graph.initializers["b"].const_value, MappedTensor)


def test_packed_float_data_is_mapped_too(tmp_path):
    proto = linear()
    values = numpy_helper.to_array(proto.graph.initializer[0])
    proto.graph.initializer[0].CopyFrom(
        helper.make_tensor("w", TensorProto.FLOAT, values.shape, values.ravel().tolist())
    )
    assert len(proto.graph.initializer[0].float_data) == values.size
    tensor = graphopt.load(write(tmp_path, proto)).graph.initializers["w"].const_value
    assert isinstance(tensor, MappedTensor)
    assert np.array_equal(tensor.numpy(), values)


def test_source_is_remembered_by_clones(tmp_path):
    path = write(tmp_path, linear())
    source = source_of(graphopt.load(path).clone())
    assert source is not None
    assert source.path == path


def test_missing_file(tmp_path):
    fails(tmp_path / "none.onnx", "no such file")


def test_folder_names_the_file_in_it(tmp_path):
    write(tmp_path, linear(), "inside.onnx")
    fails(tmp_path, "folder", "inside.onnx")


def test_empty_file(tmp_path):
    path = tmp_path / "m.onnx"
    path.touch()
    fails(path, "empty")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"hello, I am no model\n" * 40, "text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"PK\x03\x04" + bytes(100), "zip"),
        (bytes(range(256)) * 8, "not an ONNX model"),
        (b"\xff" * 64, "not an ONNX model"),
        (b"\x08\x0a", "no graph"),
    ],
)
def test_not_a_model(tmp_path, content, word):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    fails(path, word)


def test_truncated_anywhere(tmp_path):
    data = linear().SerializeToString()
    path = tmp_path / "m.onnx"
    for size in (*range(1, 60), *range(60, len(data) - 1, 97), len(data) - 1):
        path.write_bytes(data[:size])
        fails(path)


def test_truncated_says_so(tmp_path):
    data = linear().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data[: len(data) // 2])
    fails(path, "cut off")


def test_external_data_is_mapped(tmp_path):
    path, _ = external(tmp_path)
    model = graphopt.load(path)
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, MappedTensor)
    assert tensor.external
    assert np.array_equal(tensor.numpy(), numpy_helper.to_array(linear().graph.initializer[0]))


def test_external_data_missing(tmp_path):
    path, _ = external(tmp_path)
    (tmp_path / "e.data").unlink()
    fails(path, "'w'", "e.data", "copy it")


def test_external_data_too_short(tmp_path):
    path, _ = external(tmp_path)
    with open(tmp_path / "e.data", "r+b") as file:
        file.truncate(100)
    fails(path, "'w'", "100 bytes", "cut off")


def test_external_data_of_another_shape(tmp_path):
    path, proto = external(tmp_path)
    proto.graph.initializer[0].dims[0] = 63
    write(tmp_path, proto, "e.onnx")
    fails(path, "'w'", "needs")


@pytest.mark.parametrize("location", ["../e.data", "a/../../e.data", "/etc/passwd", ""])
def test_external_data_escapes(tmp_path, location):
    inner = tmp_path / "inner"
    inner.mkdir()
    _, proto = external(tmp_path)
    proto.graph.initializer[0].external_data[0].value = location
    fails(write(inner, proto), "outside the model's folder")


def test_external_data_escapes_by_link(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    _, proto = external(tmp_path)
    os.symlink(tmp_path / "e.data", inner / "e.data")
    fails(write(inner, proto), "link", "outside")


def test_external_data_beside_the_target_of_a_link(tmp_path):
    """The Hugging Face cache links both files of a snapshot into one folder of blobs."""
    snapshot = tmp_path / "snapshot"
    blobs = tmp_path / "blobs"
    snapshot.mkdir()
    blobs.mkdir()
    external(tmp_path)
    for name in ("e.onnx", "e.data"):
        os.rename(tmp_path / name, blobs / f"{name}-hash")
        os.symlink(blobs / f"{name}-hash", snapshot / name)
    assert graphopt.load(snapshot / "e.onnx").graph.initializers["w"].const_value is not None


def test_cycle(tmp_path):
    proto = linear()
    proto.graph.node[0].input[0] = "y"
    fails(write(tmp_path, proto), "cycle", "MatMul 'mm'", "Add 'add'")


def test_self_loop(tmp_path):
    proto = linear()
    proto.graph.node[1].input[1] = "y"
    fails(write(tmp_path, proto), "cycle")


def test_value_made_twice(tmp_path):
    proto = linear()
    proto.graph.node[1].output[0] = "h"
    fails(write(tmp_path, proto), "'h'", "twice", "MatMul 'mm'")


def test_initializer_twice(tmp_path):
    proto = linear()
    proto.graph.initializer[1].name = "w"
    fails(write(tmp_path, proto), "'w'", "twice")


def test_node_overwrites_an_input(tmp_path):
    proto = linear()
    proto.graph.node[0].output[0] = "x"
    fails(write(tmp_path, proto), "'x'", "twice")


def test_undefined_input(tmp_path):
    proto = linear()
    proto.graph.node[0].input[1] = "nowhere"
    fails(write(tmp_path, proto), "MatMul 'mm'", "'nowhere'")


def test_undefined_output(tmp_path):
    proto = linear()
    proto.graph.output[0].name = "nowhere"
    fails(write(tmp_path, proto), "output 'nowhere'")


def test_undefined_name_in_a_subgraph(tmp_path):
    branch = helper.make_graph(
        [helper.make_node("Add", ["x", "ghost"], ["t"])],
        "b",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
        "g",
        [
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    fails(write(tmp_path, helper.make_model(graph, ir_version=10)), "'ghost'")


def test_nodes_out_of_order_are_sorted(tmp_path):
    proto = linear()
    first = proto.graph.node.pop(0)
    proto.graph.node.append(first)
    model = graphopt.load(write(tmp_path, proto))
    assert [n.op_type for n in model.graph] == ["MatMul", "Add"]
    source = source_of(model)
    assert source is not None
    assert "sorted" in source.notes[0]


@pytest.mark.parametrize(("opset", "word"), [(6, "too old"), (999, "unknown")])
def test_opset_out_of_range(tmp_path, opset, word):
    fails(write(tmp_path, linear(opset=opset)), f"opset {opset}", word)


def test_no_opset(tmp_path):
    proto = linear()
    del proto.opset_import[:]
    fails(write(tmp_path, proto), "opset")


def test_of_two_opsets_the_last_is_read(tmp_path):
    proto = linear()
    proto.opset_import.insert(0, helper.make_opsetid("ai.onnx", 12))
    model = graphopt.load(write(tmp_path, proto))
    assert model.opset_imports == {"": proto.opset_import[1].version}
    source = source_of(model)
    assert source is not None
    assert "several versions" in source.notes[0]
    proto.opset_import.append(helper.make_opsetid("", 12))
    assert graphopt.load(write(tmp_path, proto)).opset_imports == {"": 12}


def test_an_output_of_a_body_that_is_its_input_keeps_the_shape(tmp_path):
    proto = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 17]>
        g (int64 n, bool c, float[2] x) => (float[2] y, float[k, 2] z) {
            y, z = Loop(n, c, x) <body = b (int64 i, bool go, float[2] v) => (go, v, float[] v) {}>
        }""")
    body = proto.graph.node[0].attribute[0].g
    for value in body.output:
        value.type.tensor_type.ClearField("shape")
    model = graphopt.load(write(tmp_path, proto))
    inside = model.graph[0].attributes["body"].as_graph()
    assert inside.outputs[1] is inside.inputs[2]
    assert inside.inputs[2].shape == [2]


def test_graphs_without_a_name_get_one(tmp_path):
    branch = helper.make_graph(
        [helper.make_node("Neg", ["h"], ["t"])],
        "",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    proto = linear()
    proto.graph.name = ""
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    del proto.graph.node[1]
    proto.graph.node.append(
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    )
    result = graphopt.optimize(write(tmp_path, proto), "clean", measure=False)
    onnx.checker.check_model(ir.to_proto(result.model))
    assert any("3 graphs had no name" in note for note in result.report.notes)


def test_alias_of_the_default_domain(tmp_path):
    proto = linear()
    proto.opset_import[0].domain = "ai.onnx"
    proto.graph.node[0].domain = "ai.onnx"
    model = graphopt.load(write(tmp_path, proto))
    assert model.graph.opset_imports == {"": 20}
    assert {n.domain for n in model.graph} == {""}


def test_ir_version_too_new(tmp_path):
    proto = linear()
    proto.ir_version = 99
    fails(write(tmp_path, proto), "IR version 99")


@pytest.mark.parametrize("size", [5, 5000])
def test_wrong_size_of_raw_data(tmp_path, size):
    proto = linear()
    proto.graph.initializer[0].raw_data = bytes(size)
    fails(write(tmp_path, proto), "'w'", f"{size} bytes", "8192")


def test_no_data(tmp_path):
    proto = linear()
    proto.graph.initializer[1].ClearField("raw_data")
    fails(write(tmp_path, proto), "'b'", "0 values")


def test_unknown_element_type(tmp_path):
    proto = linear()
    proto.graph.initializer[1].data_type = 77
    fails(write(tmp_path, proto), "'b'", "type 77")


def test_training_info_is_refused(tmp_path):
    proto = linear()
    proto.training_info.add()
    fails(write(tmp_path, proto), "training_info")


def test_sparse_initializer_is_seen_dense(tmp_path):
    model = graphopt.load(write(tmp_path, sparse()))
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, SparseTensor)
    expected = np.zeros((2, 3), "f4")
    expected[0, 1], expected[1, 2] = 5, 7
    assert np.array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("columns", [False, True])
def test_sparse_indices_linear_or_by_axis(tmp_path, columns):
    model = graphopt.load(write(tmp_path, sparse(columns=columns)))
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    assert tensor.numpy()[1, 2] == 7


def sparse(*, columns: bool = False) -> onnx.ModelProto:
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [5.0, 7.0])
    flat = [0, 1, 1, 2] if columns else [1, 5]
    indices = helper.make_tensor("i", TensorProto.INT64, [2, 2] if columns else [2], flat)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        sparse_initializer=[helper.make_sparse_tensor(values, indices, [2, 3])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda p: p.stem)
def test_light_models_load(path):
    model = graphopt.load(path)
    assert len(ir.to_proto(model).graph.node) == len(onnx.load(path).graph.node)


@pytest.mark.parametrize("last", [True, False])
def test_attributes_of_numbers_are_not_walked(last):
    """One that says so at its end is passed over; tensors beside it are found all the same."""
    big = np.arange(4096, dtype=np.float32)
    node = helper.make_node("Op", [], ["y"], domain="my")
    numbers = helper.make_attribute("numbers", list(range(3000)))
    held = helper.make_attribute("held", onnx.numpy_helper.from_array(big))
    node.attribute.extend([held, numbers] if last else [numbers, held])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph([node], "g", [], [out]))
    data = memoryview(model.SerializeToString())
    stripped, spans = wire.strip(data, 1024, lambda k: f"place{k}")
    assert [bytes(data[s.offset : s.offset + s.length]) for s in spans] == [big.tobytes()]
    read = onnx.ModelProto.FromString(stripped).graph.node[0]
    assert next(a for a in read.attribute if a.name == "numbers").ints == list(range(3000))
    assert next(a for a in read.attribute if a.name == "held").t.external_data


@pytest.mark.parametrize("kind", ["BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"])
def test_weights_in_the_body_of_a_search_for_words(tmp_path, kind):
    """ONNX Runtime's generators hold the decoder as an attribute: its weights are read there."""
    inner = linear().graph
    inner.node[0].name = "inner"
    node = helper.make_node(
        kind, ["ids", "n", "n"], ["out"], domain="com.microsoft", eos_token_id=0, pad_token_id=0,
        decoder=inner,
    )  # fmt: skip
    ids, n = (helper.make_tensor_value_info(k, TensorProto.INT32, s) for k, s in
              (("ids", [1, 4]), ("n", [1])))  # fmt: skip
    out = helper.make_tensor_value_info("out", TensorProto.INT32, [1, "N"])
    graph = helper.make_graph([node], "g", [ids, n], [out])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=8)
    onnx.save(proto, tmp_path / "m.onnx")
    runnable, _ = skeleton_of(graphopt.load(tmp_path / "m.onnx")).runnable
    (held,) = (a.g for a in runnable.graph.node[0].attribute if a.HasField("g"))
    want = {t.name: numpy_helper.to_array(t) for t in inner.initializer}
    for tensor in held.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), want[tensor.name])
