import numpy as np
import onnx
import pytest

from graphopt.cli import main

NET = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[batch, 16] x) => (float[batch, 4] y) {
    h = MatMul(x, w1)
    a = Add(h, b1)
    r = Relu(a)
    y = MatMul(r, w2)
}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with model.onnx, samples calib.npz, and nothing else."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(NET)
    for name, shape in (("w1", (16, 32)), ("b1", (32,)), ("w2", (32, 4))):
        array = rng.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, "model.onnx")
    np.savez("calib.npz", x=rng.normal(size=(64, 16)).astype(np.float32))
    return tmp_path


BRIEF = """
import sys
if "compare" in sys.orig_argv:
    from graphopt.measuring import statistics, worker
    worker.BURST, statistics.ENOUGH_ROUNDS, statistics.PRECISE = 0.002, 10, 1.0
"""


@pytest.fixture
def brief(tmp_path_factory, monkeypatch):
    """A comparison in a process of its own takes ten short turns."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(BRIEF)
    monkeypatch.setenv("PYTHONPATH", str(site))


@pytest.fixture
def graphopt(capsys):
    """Run the command line in this process: exit code, stdout, stderr."""

    def run(*argv):
        try:
            main([str(a) for a in argv])
        except SystemExit as exit_:
            code = exit_.code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run
