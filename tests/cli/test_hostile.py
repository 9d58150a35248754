"""What a broken input, a full disk or a kill does: one clear line, the right code, nothing lost."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

FAILS = ("optimize", "model.onnx", "-p", "fuse", "--no-measure", "-o", "o.onnx")


def write(proto):
    Path("model.onnx").write_bytes(proto.SerializeToString())


def empty():
    Path("model.onnx").write_bytes(b"")


def text():
    Path("model.onnx").write_text("hello, this is no model\n" * 9)


def truncated():
    data = Path("model.onnx").read_bytes()
    Path("model.onnx").write_bytes(data[: len(data) // 2])


def cyclic():
    proto = onnx.load("model.onnx")
    proto.graph.node[0].input[0] = "r"
    write(proto)


def duplicate_names():
    proto = onnx.load("model.onnx")
    proto.graph.node[2].output[0] = "a"
    write(proto)


def opset_of_the_future():
    proto = onnx.load("model.onnx")
    proto.opset_import[0].version = 99
    write(proto)


def opset_of_the_past():
    proto = onnx.load("model.onnx")
    proto.opset_import[0].version = 3
    write(proto)


def external(location):
    proto = onnx.load("model.onnx")
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    write(proto)


def missing_external():
    external("weights.bin")


def escaping_external():
    Path("../outside.bin").write_bytes(bytes(4 * 16 * 32))
    external("../outside.bin")


def unknown_standard_operator():
    proto = onnx.load("model.onnx")
    proto.graph.node[2].op_type = "Rellu"
    write(proto)


BROKEN = [
    (empty, "empty"),
    (text, "text"),
    (truncated, "cut off"),
    (cyclic, "cycle"),
    (duplicate_names, "'a' is defined twice"),
    (opset_of_the_future, "opset 99"),
    (opset_of_the_past, "opset 3"),
    (missing_external, "weights.bin"),
    (escaping_external, "outside"),
    (unknown_standard_operator, "Rellu"),
]


@pytest.mark.parametrize(("make", "says"), BROKEN, ids=[m.__name__ for m, _ in BROKEN])
def test_a_broken_model_is_one_clear_line(folder, graphopt, make, says):
    make()
    before = Path("model.onnx").read_bytes()
    code, out, err = graphopt(*FAILS)
    assert (code, err.count("\n"), out) == (3, 1, ""), err
    assert says in err
    assert Path("model.onnx").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["calib.npz", "model.onnx"]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"z": (8, 16)}, "z"),
        ({"x": (8, 17)}, "16"),
        ({"x": (0, 16)}, "no samples"),
        ({}, "holds: nothing"),
    ],
)
def test_samples_that_do_not_fit_are_one_clear_line(folder, graphopt, arrays, says):
    np.savez("calib.npz", **{k: np.zeros(s, np.float32) for k, s in arrays.items()})
    code, _, err = graphopt(*FAILS, "--samples", "calib.npz")
    assert (code, err.count("\n")) == (3, 1), err
    assert says in err
    assert not Path("o.onnx").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_told(folder, graphopt, value):
    proto = onnx.load("model.onnx")
    weights = onnx.numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weights[0, 0] = value
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w1"))
    write(proto)
    code, out, _ = graphopt(*FAILS)
    assert code == 0
    assert "w1" in out
    assert "NaN" in out


def test_operators_of_another_domain_are_left_as_they_are(folder, graphopt):
    proto = onnx.load("model.onnx")
    proto.graph.node[2].op_type = "Magic"
    proto.graph.node[2].domain = "com.example"
    proto.opset_import.add(domain="com.example", version=1)
    write(proto)
    code, out, _ = graphopt(*FAILS)
    assert code == 0
    assert "outputs were not compared" in out
    kept = [n for n in onnx.load("o.onnx").graph.node if n.domain == "com.example"]
    assert [n.op_type for n in kept] == ["Magic"]


def test_a_full_disk_leaves_nothing_behind(folder):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    argv = [sys.executable, "-m", "graphopt", *FAILS, "--verify", "graph"]
    subprocess.run(argv, check=True, capture_output=True)
    old = Path("o.onnx").read_bytes()
    done = subprocess.run(argv, capture_output=True, text=True, preexec_fn=limited)
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("\n") == 1
    assert "o.onnx" in done.stderr
    assert Path("o.onnx").read_bytes() == old
    names = ["calib.npz", "model.onnx", "o.onnx", "o.session.json"]
    assert sorted(p.name for p in folder.iterdir()) == names


def test_a_kill_at_any_moment_leaves_a_whole_output_or_none(folder):
    """Ten kills spread over a run's length: what is there afterwards is complete."""
    argv = [sys.executable, "-m", "graphopt", *FAILS]
    began = time.monotonic()
    subprocess.run(argv, check=True, capture_output=True)
    length = time.monotonic() - began
    whole = Path("o.onnx").read_bytes()
    os.unlink("o.onnx")
    for k in range(10):
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(length * (0.5 + 0.06 * k))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if Path("o.onnx").exists():
            assert Path("o.onnx").read_bytes() == whole
            os.unlink("o.onnx")
