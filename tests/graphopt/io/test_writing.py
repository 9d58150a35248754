"""Writing models: the same content, streamed, and never half a file."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.errors import ModelError, UsageError
from graphopt.io.skeleton import skeleton_of
from graphopt.io.tensors import MappedTensor
from graphopt.io.writing import place_weights, size_of

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def model_of(
    tensors: list[onnx.TensorProto], nodes: list[onnx.NodeProto] | None = None
) -> onnx.ModelProto:
    """A model whose outputs are its initializers, and whatever `nodes` add."""
    graph = helper.make_graph(
        [
            *(helper.make_node("Identity", [t.name], [f"{t.name}_out"]) for t in tensors),
            *(nodes or []),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info(f"{t.name}_out", t.data_type, t.dims) for t in tensors],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def big(name: str, n: int = 1000, seed: int = 0) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    return numpy_helper.from_array(values, name)


def save_external(proto: onnx.ModelProto, path: Path, location: str) -> None:
    onnx.save(proto, path, save_as_external_data=True, location=location, size_threshold=1024)


def content(path: Path) -> tuple[object, ...]:
    """Everything a model says, in the reference reader's words; tensors by their bytes."""
    proto = onnx.load(path)

    def tensor(t: onnx.TensorProto) -> object:
        array = numpy_helper.to_array(t)
        data = array.tolist() if array.dtype == object else array.tobytes()
        return t.name, t.data_type, tuple(t.dims), data

    def graph(g: onnx.GraphProto) -> object:
        names = {t.name for t in g.initializer}
        return (
            [tensor(t) for t in sorted(g.initializer, key=lambda t: t.name)],
            sorted(v.SerializeToString() for v in g.value_info if v.name not in names),
            [v.SerializeToString() for v in (*g.input, *g.output)],
            [s.SerializeToString() for s in g.sparse_initializer],
            [node(n) for n in g.node],
        )

    def node(n: onnx.NodeProto) -> object:
        attributes = []
        for a in sorted(n.attribute, key=lambda a: a.name):
            if a.type == onnx.AttributeProto.GRAPH:
                attributes.append((a.name, graph(a.g)))
            elif a.type == onnx.AttributeProto.TENSOR:
                attributes.append((a.name, tensor(a.t)))
            else:
                attributes.append((a.name, a.SerializeToString()))
        return n.name, n.domain, n.op_type, list(n.input), list(n.output), attributes

    functions = [
        (f.name, f.domain, list(f.input), list(f.output), [node(n) for n in f.node])
        for f in proto.functions
    ]
    imports = sorted((o.domain, o.version) for o in proto.opset_import)
    return graph(proto.graph), functions, imports, proto.ir_version, proto.producer_name


def round_trip(folder: Path, proto: onnx.ModelProto) -> Path:
    """Write with onnx, through graphopt, and compare; returns what graphopt wrote."""
    source, out = folder / "in.onnx", folder / "out.onnx"
    source.write_bytes(proto.SerializeToString())
    model = graphopt.load(source)
    graphopt.save(model, out)
    assert content(out) == content(source)
    assert size_of(model, out.name) == out.stat().st_size
    assert source.read_bytes() == proto.SerializeToString()
    return out


@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda p: p.stem)
def test_light_models(tmp_path, path):
    round_trip(tmp_path, onnx.load(path))


def test_strings_functions_subgraphs_and_custom_domains(tmp_path):
    branch = helper.make_graph(
        [helper.make_node("Add", ["x", "inner"], ["t"])],
        "b",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
        [big("inner", 3), big("large", 900)],
    )
    proto = model_of(
        [
            helper.make_tensor("text", TensorProto.STRING, [2], [b"a", "\u00e9".encode()]),
            big("w"),
            numpy_helper.from_array(np.array(True), "c"),
        ],
        [
            helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=branch),
            helper.make_node("Odd", ["x", "", "w"], ["o", "", "p"], domain="my.ops", level=3),
            helper.make_node("Twice", ["x"], ["q"], domain="my.functions"),
            helper.make_node("Constant", [], ["k"], value=big("k", 5000)),
        ],
    )
    proto.opset_import.extend(
        [helper.make_opsetid("my.ops", 2), helper.make_opsetid("my.functions", 1)]
    )
    proto.functions.append(
        helper.make_function(
            "my.functions",
            "Twice",
            ["a"],
            ["b"],
            [
                helper.make_node("Constant", [], ["k"], value=big("", 2000)),
                helper.make_node("Add", ["a", "a"], ["b"]),
            ],
            [helper.make_opsetid("", 23)],
        )
    )
    round_trip(tmp_path, proto)


@pytest.mark.parametrize("count", [7, 5000])
@pytest.mark.parametrize(
    "dtype",
    [
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e8m0fnu",
        "int4",
        "uint4",
        "float4_e2m1fn",
        "float16",
        "complex64",
        "bool",
        "uint64",
    ],
)
@pytest.mark.parametrize("typed", [False, True])
def test_element_types(tmp_path, dtype, count, typed):
    bits = np.random.default_rng(1).integers(1, 3, count).astype(np.int8)
    kind = getattr(ml_dtypes, dtype, None) or np.dtype(dtype)
    array = bits.astype(kind)
    raw = numpy_helper.from_array(array, "w")
    if typed:
        raw = helper.make_tensor("w", raw.data_type, [count], array.tolist())
        assert not raw.raw_data
    out = round_trip(tmp_path, model_of([raw]))
    loaded = graphopt.load(out).graph.initializers["w"].const_value
    assert loaded is not None
    assert np.array_equal(loaded.numpy().astype(np.complex64), array.astype(np.complex64))


def test_sparse_initializer_survives(tmp_path):
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [5.0, 7.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [2], [1, 5])
    proto = model_of([], [helper.make_node("Add", ["x", "w"], ["y"])])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 3]))
    out = round_trip(tmp_path, proto)
    assert len(onnx.load(out).graph.sparse_initializer) == 1


def test_weights_of_every_origin(tmp_path):
    """Arrays, views that are not contiguous, lazy and packed tensors, and `ir.load`."""
    matrix = np.arange(4000, dtype=np.float32).reshape(40, 100)
    model = ir.from_proto(model_of([big("a"), big("b"), big("c")]))
    values = model.graph.initializers
    values["a"].const_value = ir.tensor(matrix.T, name="a")
    values["b"].const_value = ir.LazyTensor(
        lambda: ir.tensor(matrix * 2), ir.DataType.FLOAT, ir.Shape([40, 100]), name="b"
    )
    values["c"].const_value = ir.PackedTensor(
        np.arange(2000, dtype=np.uint8) % 100, ir.DataType.INT4, shape=[4000], name="c"
    )
    for value in values.values():
        assert value.const_value is not None
        value.shape = ir.Shape(value.const_value.shape.numpy())
        value.type = ir.TensorType(value.const_value.dtype)
    graphopt.save(model, tmp_path / "m.onnx")
    got = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer
    }
    assert np.array_equal(got["a"], matrix.T)
    assert np.array_equal(got["b"], matrix * 2)
    assert got["c"].size == 4000
    external = tmp_path / "e.onnx"
    onnx.save(
        model_of([big("w")]),
        external,
        save_as_external_data=True,
        location="e.data",
        size_threshold=0,
    )
    graphopt.save(ir.load(external), tmp_path / "f.onnx")
    assert content(tmp_path / "f.onnx") == content(external)


def test_initializers_leave_no_value_info(tmp_path):
    out = round_trip(tmp_path, model_of([big("w")]))
    assert not onnx.load(out).graph.value_info


def test_same_bytes_every_time(tmp_path):
    source = tmp_path / "in.onnx"
    source.write_bytes(model_of([big("w"), big("v", 10)]).SerializeToString())
    model = graphopt.load(source)
    for name in ("a.onnx", "b.onnx"):
        graphopt.save(model, tmp_path / name)
    graphopt.save(graphopt.load(tmp_path / "a.onnx"), tmp_path / "c.onnx")
    first = (tmp_path / "a.onnx").read_bytes()
    assert first == (tmp_path / "b.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()


def test_a_weights_file_that_is_not_written_stays(tmp_path):
    model = graphopt.load(written(tmp_path / "in.onnx"))
    out, data = tmp_path / "out.onnx", tmp_path / "out.onnx.data"
    graphopt.save(model, out)
    data.write_bytes(b"somebody else's")
    graphopt.save(model, out)
    assert data.read_bytes() == b"somebody else's"


def written(path):
    path.write_bytes(model_of([big("w", 5000)]).SerializeToString())
    return path


def test_one_file_whatever_the_source_had(tmp_path):
    source = tmp_path / "in.onnx"
    proto = model_of([big("w", 5000)])
    save_external(proto, source, "in.data")
    model = graphopt.load(source)
    graphopt.save(model, tmp_path / "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.data", "in.onnx", "out.onnx"]
    assert content(tmp_path / "out.onnx") == content(source)
    assert size_of(model) == (tmp_path / "out.onnx").stat().st_size
    beside = place_weights(model, external=True).clone()
    graphopt.save(beside, tmp_path / "two.onnx")
    assert (tmp_path / "two.onnx.data").stat().st_size == 20_000
    assert content(tmp_path / "two.onnx") == content(source)


def test_external_data_and_ties_stay_tied(tmp_path):
    proto = model_of([big("w", 5000), big("v", 6000, 1), big("u", 5000)])
    source = tmp_path / "in.onnx"
    save_external(proto, source, "in.data")
    tied = onnx.load(source, load_external_data=False)
    first, last = tied.graph.initializer[0], tied.graph.initializer[2]
    del last.external_data[:]
    last.external_data.extend(first.external_data)
    source.write_bytes(tied.SerializeToString())
    model = graphopt.load(source)
    out = tmp_path / "out.onnx"
    graphopt.save(model, out, external=True)
    data = tmp_path / "out.onnx.data"
    assert data.stat().st_size < 5000 * 4 + 6000 * 4 + 64
    assert content(out) == content(source)
    assert size_of(model, "out.onnx", external=True) == out.stat().st_size + data.stat().st_size
    onnx.checker.check_model(str(out))
    graphopt.save(graphopt.load(out), tmp_path / "again.onnx", external=False)
    assert not (tmp_path / "again.onnx.data").exists()
    assert content(tmp_path / "again.onnx") == content(source)


def test_too_large_for_one_file(tmp_path):
    model = ir.from_proto(model_of([big("w")]))
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (3_000_000_000,), (0,))
    lazy = ir.LazyTensor(lambda: ir.tensor(huge), ir.DataType.UINT8, ir.Shape([3_000_000_000]))
    model.graph.initializers["w"].const_value = lazy
    with pytest.raises(ModelError, match="external data"):
        graphopt.save(model, tmp_path / "m.onnx", external=False)
    assert size_of(model) > 3_000_000_000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("link", ["same", "symlink", "hardlink"])
def test_input_is_never_overwritten(tmp_path, link):
    source = tmp_path / "in.onnx"
    source.write_bytes(model_of([big("w", 4)]).SerializeToString())
    out = source if link == "same" else tmp_path / "out.onnx"
    if link == "symlink":
        out.symlink_to(source)
    elif link == "hardlink":
        out.hardlink_to(source)
    before = source.read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        graphopt.save(graphopt.load(source).clone(), out)
    assert source.read_bytes() == before


def test_external_input_is_never_overwritten(tmp_path):
    source = tmp_path / "in.onnx"
    onnx.save(
        model_of([big("w")]),
        source,
        save_as_external_data=True,
        location="out.onnx.data",
        size_threshold=0,
    )
    for load in (graphopt.load, ir.load):
        with pytest.raises(UsageError, match=r"out\.onnx\.data"):
            graphopt.save(load(source), tmp_path / "out.onnx", external=True)


def test_output_through_a_link_keeps_the_link(tmp_path):
    model = ir.from_proto(model_of([big("w")]))
    (tmp_path / "real.onnx").touch()
    (tmp_path / "link.onnx").symlink_to(tmp_path / "real.onnx")
    graphopt.save(model, tmp_path / "link.onnx")
    assert (tmp_path / "link.onnx").is_symlink()
    assert content(tmp_path / "real.onnx")


@pytest.mark.parametrize("path", ["missing/m.onnx", "folder", "/dev/null"])
def test_impossible_output(tmp_path, path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError) as caught:
        graphopt.save(ir.from_proto(model_of([big("w")])), tmp_path / path)
    assert "\n" not in str(caught.value)
    assert os.path.exists("/dev/null")


def test_interrupted_save_leaves_nothing(tmp_path):
    model = ir.from_proto(model_of([big("w")]))

    def interrupt() -> ir.TensorProtocol:
        raise KeyboardInterrupt

    lazy = ir.LazyTensor(interrupt, ir.DataType.FLOAT, ir.Shape([1000]), name="w")
    model.graph.initializers["w"].const_value = lazy
    (tmp_path / "m.onnx").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        graphopt.save(model, tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("external", [False, True])
def test_disk_full(tmp_path, external):
    """A limit on file size stands in for a full disk: the write fails part-way."""
    model = ir.from_proto(model_of([big("w", 400_000)]))
    (tmp_path / "m.onnx").write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        with pytest.raises(ModelError, match="cannot be written: File too large") as caught:
            graphopt.save(model, tmp_path / "m.onnx", external=external)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"old"


SAVER = """
import os, random, signal, sys, time
from pathlib import Path
import graphopt

folder, external, rounds = Path(sys.argv[1]), sys.argv[2] == "external", int(sys.argv[3])
out = folder / "out" / "m.onnx"
models = [graphopt.load(folder / f"{k}.onnx") for k in range(2)]

def written():
    data = out.with_name("m.onnx.data")
    return out.read_bytes(), external and data.read_bytes()

complete = []
for model in models:
    graphopt.save(model, out, external=external)
    complete.append(written())
assert complete[0] != complete[1]
rng = random.Random(0)
present = strays = 0
k = 0
while k < rounds or (k < 50 * rounds and not (present and strays)):
    k += 1
    child = os.fork()
    if child == 0:
        while True:
            for model in models:
                graphopt.save(model, out, external=external)
    time.sleep(rng.uniform(0.0, 0.04) * (1 + k // rounds))  # a busy machine saves slowly
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    strays += len(list(out.parent.iterdir())) > 1 + external
    if out.exists():
        present += 1
        assert written() in complete, f"round {k}: neither of the two models"
graphopt.save(models[0], out, external=external)
assert written() == complete[0]
assert len(list(out.parent.iterdir())) == 1 + external, "strays were not swept"
print(present, strays)
"""


@pytest.mark.parametrize("external", [False, True])
def test_killed_at_random_moments(tmp_path, external):
    """After SIGKILL the output is absent or one of the two models, complete; strays are swept."""
    (tmp_path / "out").mkdir()
    for k in range(2):
        proto = model_of([big("w", 300_000 + k, k), big("v", 2000, k)])
        (tmp_path / f"{k}.onnx").write_bytes(proto.SerializeToString())
    mode = "external" if external else "embedded"
    done = subprocess.run(
        [sys.executable, "-c", SAVER, str(tmp_path), mode, "60"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    present, strays = map(int, done.stdout.split())
    assert present > 0
    assert strays > 0, "no kill hit a save: the test shows nothing"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["float32", "float64", "int64", "int32", "uint8", "bool", "float16"]),
            st.lists(st.integers(0, 40), max_size=3),
            st.sampled_from(["raw", "typed", "constant"]),
        ),
        max_size=6,
    ),
    st.booleans(),
)
def test_any_tensors_round_trip(tmp_path_factory, specs, external):
    rng = np.random.default_rng(0)
    tensors, nodes = [], []
    for k, (dtype, shape, how) in enumerate(specs):
        array = rng.integers(0, 100, shape).astype(dtype)
        tensor = numpy_helper.from_array(array, f"t{k}")
        if how == "typed":
            tensor = helper.make_tensor(f"t{k}", tensor.data_type, shape, array.ravel().tolist())
        if how == "constant":
            nodes.append(helper.make_node("Constant", [], [f"t{k}"], value=tensor))
        else:
            tensors.append(tensor)
    folder = tmp_path_factory.mktemp("any")
    out = round_trip(folder, model_of(tensors, nodes))
    graphopt.save(graphopt.load(out), folder / "e.onnx", external=external)
    assert content(folder / "e.onnx") == content(out)


def test_unaligned_weights_run_the_same(tmp_path):
    """Offsets in a protobuf are arbitrary: arrays over them are unaligned and still right."""
    from graphopt.execution.runtime import run

    for extra in range(1, 5):
        proto = model_of([big("w", 3000)], [helper.make_node("Relu", ["x"], ["r"])])
        proto.doc_string = "d" * extra
        path = tmp_path / f"{extra}.onnx"
        path.write_bytes(proto.SerializeToString())
        model = graphopt.load(path)
        tensor = model.graph.initializers["w"].const_value
        assert isinstance(tensor, MappedTensor)
        got = run(model, {"x": np.zeros((1, 3), np.float32)})
        assert np.array_equal(got["w_out"], numpy_helper.to_array(proto.graph.initializer[0]))


def test_bytes_count_external_data(tmp_path):
    from graphopt.pipeline.state import file_bytes

    model = ir.from_proto(model_of([big("w", 5000)]))
    for external in (False, True):
        path = tmp_path / f"{external}.onnx"
        graphopt.save(model, path, external=external)
        data = tmp_path / f"{external}.onnx.data"
        written = path.stat().st_size + (data.stat().st_size if external else 0)
        assert written > 20000
        assert file_bytes(path) == file_bytes(path, graphopt.load(path)) == written
        assert file_bytes(path, model) == written


def test_new_metadata_makes_what_serializing_anew_makes():
    inner = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["t"], "inner")],
        "inner",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    both = {"then_branch": inner, "else_branch": inner}
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "outer"),
        helper.make_node("If", ["c"], ["y"], "if", **both),
    ]
    proto = model_of([numpy_helper.from_array(np.array(True), "c"), big("w")], nodes)
    model = ir.from_proto(proto)
    for node in model.graph.all_nodes():
        node.metadata_props.update({"b": node.name, "a": "1"})
    before = skeleton_of(model)
    model.metadata_props.update({"z": "new", "k": "new"})
    for node in model.graph.all_nodes():
        node.metadata_props.pop("a")
        node.metadata_props.update({"0": "new", "b": f"{node.name} again"})
    after = before.with_metadata(model)
    assert after.proto == skeleton_of(model).proto
    assert before.proto != after.proto
    assert after.held == before.held
    assert after.model is model


def test_a_small_tensor_is_decoded_once_and_written_as_it_came(tmp_path):
    stored = helper.make_tensor("w", TensorProto.FLOAT16, [2, 2], [1, 2, 3, 4])  # in int32_data
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    source.write_bytes(model_of([stored]).SerializeToString())
    model = graphopt.load(source)
    tensor = model.graph.initializers["w"].const_value
    assert (tensor.dtype, tensor.size, tensor.nbytes) == (ir.DataType.FLOAT16, 4, 8)
    assert tensor.shape.numpy() == (2, 2)
    assert tensor.numpy() is tensor.numpy()
    assert not tensor.numpy().flags.writeable
    assert tensor.numpy().tolist() == [[1, 2], [3, 4]]
    graphopt.save(model, out)
    assert onnx.load(out).graph.initializer[0] == stored
