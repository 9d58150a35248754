"""Lossless packs of ONNX files: byte for byte, external data too, opened as a session."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.cli import main
from graphopt.entropy.container import unpack
from graphopt.packing.lossless import pack_lossless

pytest.importorskip("constriction")


def model(seed=0):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((64, 96)).astype("f4")
    tensors = [
        numpy_helper.from_array(w, "w"),
        numpy_helper.from_array(rng.integers(-9, 9, (96, 10)).astype("i1"), "q"),
        numpy_helper.from_array(np.float32(0.1), "s"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["v"]),
        helper.make_node("MatMul", ["h", "v"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 9
    return made


def run(argv):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    return ended.value.code


def test_from_the_command_line_and_back(tmp_path, capsys):
    source, pack, back = (tmp_path / n for n in ("m.onnx", "m.gopt", "back.onnx"))
    onnx.save(model(), source)
    assert run(["pack", str(source), "--lossless", "-o", str(pack), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (
        said["after"] == pack.stat().st_size < 0.84 * source.stat().st_size == 0.84 * said["before"]
    )
    assert said["ratio"] == said["before"] / said["after"]
    assert run(["unpack", str(pack), "-o", str(back)]) == 0
    assert back.read_bytes() == source.read_bytes()
    assert run(["pack", str(pack), "--lossless", "-o", str(tmp_path / "twice.gopt")]) == 2
    assert "is a pack already: graphopt unpack gives" in capsys.readouterr().err


def test_external_data_comes_back_under_its_name(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    source = tmp_path / "a" / "m.onnx"
    onnx.save(model(), source, save_as_external_data=True, location="m.bin", size_threshold=16)
    pack_lossless(source, tmp_path / "m.gopt")
    unpack(tmp_path / "m.gopt", tmp_path / "b" / "other.onnx")
    for one, other in (("m.onnx", "other.onnx"), ("m.bin", "m.bin")):
        assert (tmp_path / "a" / one).read_bytes() == (tmp_path / "b" / other).read_bytes()


def test_a_session_opens_it_and_load_and_save_know_it(tmp_path):
    source, pack = tmp_path / "m.onnx", tmp_path / "m.gopt"
    onnx.save(model(), source)
    graphopt.save(graphopt.load(source), pack)
    x = np.random.default_rng(1).standard_normal((3, 64)).astype("f4")
    expected = graphopt.session(source)({"x": x})["y"]
    assert (graphopt.session(pack)({"x": x})["y"] == expected).all()
    again = graphopt.load(pack)
    assert (again.graph.initializers["w"].const_value.numpy().shape) == (64, 96)


@pytest.mark.parametrize("command", ["unpack", "inspect"])
def test_a_damaged_pack_is_one_line_and_nothing_is_written(tmp_path, capsys, command):
    source, pack, back = (tmp_path / n for n in ("m.onnx", "m.gopt", "back.onnx"))
    onnx.save(model(), source)
    pack_lossless(source, pack)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 4
    pack.write_bytes(data)
    argv = [command, str(pack), *(["-o", str(back)] if command == "unpack" else [])]
    assert run(argv) == 3
    said = capsys.readouterr().err
    assert "m.gopt: the pack is damaged" in said
    assert said.count("\n") == 1
    assert not back.exists()


def test_what_is_no_model_is_refused(tmp_path, capsys):
    (tmp_path / "m.onnx").write_text("hello there")
    assert run(["pack", str(tmp_path / "m.onnx"), "--lossless"]) == 3
    assert "text file, not an ONNX model" in capsys.readouterr().err
    assert not (tmp_path / "m.gopt").exists()
