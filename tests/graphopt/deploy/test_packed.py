"""Packs in memory: the runtime gets what the file holds, weights of any type, wherever they are."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.deploy import packed, sessions
from graphopt.deploy.packed import decoded
from graphopt.deploy.sessions import session
from graphopt.entropy.container import Run, Stored, write_pack
from graphopt.entropy.integers import Rounded, counts_of, tables_of
from graphopt.errors import ModelError
from graphopt.packing.files import files_of
from graphopt.packing.lossless import pack_lossless

pytest.importorskip("constriction")

N = 160  # N x N floats are above packed.SMALLEST, N x N bytes are not


def held(array, name):
    return numpy_helper.from_array(np.ascontiguousarray(array), name)


def model():
    """Weights of float, half, int8 (small and large), int64; one in a node, one in a branch."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inner"], ["then"])],
        "then",
        [],
        [helper.make_tensor_value_info("then", TensorProto.FLOAT, None)],
        [held(normal((N, N)).astype("f4"), "inner")],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["else"])],
        "else",
        [],
        [helper.make_tensor_value_info("else", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Constant", [], ["node"], value=held(normal((N, N)).astype("f4"), "w")),
        helper.make_node("Cast", ["half"], ["half_"], to=TensorProto.FLOAT),
        helper.make_node("DequantizeLinear", ["wide", "s"], ["wide_"]),
        helper.make_node("DequantizeLinear", ["small", "s"], ["small_"]),
        helper.make_node("If", ["yes"], ["a"], then_branch=inner, else_branch=other),
        *(
            helper.make_node("MatMul", [a, w], [b])
            for a, w, b in zip(
                "abcde", ["w", "node", "half_", "wide_", "small_"], "bcdef", strict=True
            )
        ),
        helper.make_node("Gather", ["places", "i"], ["p"]),
        helper.make_node("Cast", ["p"], ["p_"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "p_"], ["y"]),
    ]
    tensors = [
        held(normal((N, N)).astype("f4"), "w"),
        held(normal((N, 2 * N)).astype("f2"), "half"),
        held(rng.integers(-9, 9, (2 * N, 3 * N)).astype("i1"), "wide"),
        held(rng.integers(-9, 9, (3 * N, 10)).astype("i1"), "small"),
        held(np.arange(N * N), "places"),
        held(np.float32(0.01), "s"),
        held(np.array(True), "yes"),
        held(np.array(7), "i"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", N])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 9
    return made


X = np.random.default_rng(1).standard_normal((3, N)).astype("f4")


@pytest.fixture
def no_file(monkeypatch):
    def unpack(*_):
        raise AssertionError

    monkeypatch.setattr(sessions, "unpack", unpack)


def test_outputs_are_those_of_the_file_and_none_is_written(tmp_path, no_file):
    source, pack = tmp_path / "m.onnx", tmp_path / "m.gopt"
    onnx.save(model(), source)
    pack_lossless(source, pack)
    assert (session(pack)({"x": X})["y"] == session(source)({"x": X})["y"]).all()
    weights = decoded(pack)[1]
    assert {n: (w.dtype.str, w.shape) for n, w in weights.items()} == {
        "w": ("<f4", (N, N)),
        "half": ("<f2", (N, 2 * N)),
        "wide": ("|i1", (2 * N, 3 * N)),
    }


def test_a_rounded_weight_of_several_pieces_is_whole(tmp_path, no_file):
    source, pack = tmp_path / "m.onnx", tmp_path / "m.gopt"
    rng = np.random.default_rng(2)
    q = rng.integers(-3, 4, (N, N)).astype(np.int32)
    levels = np.zeros(N, np.uint8)
    whole = Rounded(q, np.float32(0.1), levels, levels[: N // 8], 8, False)
    made = model()
    made.graph.initializer[0].CopyFrom(held(whole.values(), "w"))
    onnx.save(made, source)
    pieces = [
        Rounded(q[k : k + 50], whole.step, levels[k : k + 50], whole.column, 8, False)
        for k in range(0, N, 50)
    ]
    files = files_of(source, {"w": pieces})
    assert sum(run.kind == "rounded" for run in files[0][1]) == 4
    pack.write_bytes(b"".join(write_pack(files, tables_of(map(counts_of, pieces)))))
    assert (decoded(pack)[1]["w"] == whole.values()).all()
    assert (session(pack)({"x": X})["y"] == session(source)({"x": X})["y"]).all()


def test_a_part_that_lies_in_several_runs_or_in_none_is_put_together():
    runs = (("text", 3), ("f4", 1 << 16), ("f4", 1 << 16), ("text", 5))
    data = np.random.default_rng(3).bytes(sum(n for _, n in runs))
    image = packed._Image(
        Stored(
            "m.onnx",
            runs,
            iter([data[:3], data[3 : 3 + (1 << 16)], data[3 + (1 << 16) : -5], data[-5:]]),
        )
    )
    for offset, length in ((0, 3), (3, 1 << 16), (9, 70000), (1, 1 << 17), (len(data) - 5, 5)):
        assert image.bytes_at(offset, length) == data[offset : offset + length]


def test_models_with_external_data_are_unpacked(tmp_path):
    source, pack = tmp_path / "m.onnx", tmp_path / "m.gopt"
    onnx.save(model(), source, save_as_external_data=True, location="m.bin", size_threshold=1024)
    pack_lossless(source, pack)
    assert decoded(pack) is None
    assert (session(pack)({"x": X})["y"] == session(source)({"x": X})["y"]).all()


def test_a_damaged_pack_one_of_no_model_and_one_too_large_are_errors(tmp_path, monkeypatch):
    source, pack = tmp_path / "m.onnx", tmp_path / "m.gopt"
    onnx.save(model(), source)
    pack_lossless(source, pack)
    pack.write_bytes(pack.read_bytes()[:-9])
    with pytest.raises(ModelError, match="damaged or cut off"):
        session(pack)
    pack.write_bytes(b"".join(write_pack([("m.onnx", [Run("text", b"hello there")])])))
    with pytest.raises(ModelError, match="no ONNX model"):
        session(pack)
    too_large = Stored("m.onnx", (("f4", 1 << 62),), iter(()))
    monkeypatch.setattr(packed, "read_pack", lambda file: [too_large])
    with pytest.raises(ModelError, match="more than there is memory for"):
        session(pack)
