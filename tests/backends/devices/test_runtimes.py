"""A small network through each runtime that is installed; its own outputs beside ONNX Runtime's."""

import dataclasses
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import quantized_nets
from graphopt.backends.devices.quantized import in_floats

from graphopt.backend import backend_of, find_target
from graphopt.deploy.manifest import read_manifest
from graphopt.deploy.sessions import session
from graphopt.errors import MissingExtra, ModelError
from graphopt.execution.runtime import run
from graphopt.testing import parse_model

#: What ExecuTorch uses is deprecated in places.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)
CONSTANTS = {
    "k": RNG.standard_normal((4, 3, 3, 3)).astype(np.float32),
    "w": RNG.standard_normal((4, 5)).astype(np.float32),
    "shape": np.array([2, 4]),
}
NET = """
c = Conv<pads=[1,1,1,1]>(x, k)  r = Relu(c)  g = GlobalAveragePool(r)  f = Reshape(g, shape)
m = MatMul(f, w)  y = Softmax(m)
"""
#: Target, packages it needs, and what lies beside its file.
TARGETS = {
    "executorch": (("executorch", "torch"), {"m.io.json"}),
    "litert": (("ai_edge_litert",), set()),
    "mnn": (("MNN",), set()),
    "ncnn": (("ncnn", "pnnx"), {"m.bin", "m.io.json"}),
    "ort": ((), {"m.required_operators.config"}),
    "stablehlo": (("jax", "torchax"), {"m.io.json"}),
}


def made(name):
    """The target, or a skip."""
    if any(importlib.util.find_spec(p) is None for p in TARGETS[name][0]):
        pytest.skip(f"needs the {name} extra")
    return find_target(name)


@pytest.mark.parametrize("name", TARGETS)
def test_the_file_computes_what_the_model_computes(name, tmp_path):
    target = made(name)
    model = parse_model(NET, inputs={"x": X.shape}, constants=CONSTANTS)
    path = backend_of(target).lower(model, target, tmp_path / "m.onnx")
    assert path == tmp_path / f"m{target.suffix}"
    manifest = read_manifest(path)
    assert set(manifest.files) == TARGETS[name][1]
    assert {p.name for p in tmp_path.iterdir()} == {
        path.name,
        f"{path.name}.session.json",
        *manifest.files,
    }
    expected = run(model, {"x": X})["y"]
    for opened in (backend_of(target).session(path, target), session(path)):
        got = opened({"x": X})
        assert list(got) == ["y"]
        assert got["y"].dtype == np.float32
        np.testing.assert_allclose(got["y"], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["executorch", "ort"])
def test_threads_are_those_of_the_target(name, tmp_path):
    """Both take every processor by themselves."""
    target = made(name)
    model = parse_model(NET, inputs={"x": X.shape}, constants=CONSTANTS)
    path = backend_of(target).lower(model, target, tmp_path / "m.onnx")
    for threads in (1, 2):
        chosen = dataclasses.replace(target, threads=threads)
        opened = backend_of(target).session(path, chosen, beside=True)
        if name == "ort":
            options = opened.raw.get_session_options()
            assert options.intra_op_num_threads == threads
            assert options.get_session_config_entry("session.force_spinning_stop") == "1"
        else:
            from executorch.extension.pybindings import portable_lib

            assert portable_lib._threadpool_get_thread_count() == threads


def test_stablehlo_starts_with_the_threads_of_its_first_session(tmp_path):
    """XLA reads them once, in a process of its own here."""
    target = made("stablehlo")
    model = parse_model(NET, inputs={"x": X.shape}, constants=CONSTANTS)
    path = backend_of(target).lower(model, target, tmp_path / "m.onnx")
    code = (
        "import dataclasses, os; from pathlib import Path\n"
        "from graphopt.backend import backend_of, find_target\n"
        "target = dataclasses.replace(find_target('stablehlo'), threads=3)\n"
        f"opened = backend_of(target).session(Path({str(path)!r}), target)\n"
        "import numpy as np; opened({'x': np.zeros((2, 3, 8, 8), np.float32)})\n"
        "tasks = Path('/proc/self/task').iterdir()\n"
        "print(sum('XLAEigen' in (t / 'comm').read_text() for t in tasks), 'NPROC' in os.environ)"
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("threads are counted in /proc")
    environment = {k: v for k, v in os.environ.items() if k != "NPROC"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["3", "False"]


@pytest.mark.parametrize("name", ["executorch", "litert", "mnn", "ncnn", "ort"])
def test_integers_stay_integers_in_the_file(name, tmp_path):
    target = made(name)
    model = quantized_nets.net()
    floats, _ = in_floats(model)
    backend = backend_of(target)
    sizes = {}
    for form, one in (("integers", model), ("floats", floats)):
        (tmp_path / form).mkdir()
        path = backend.lower(one, target, tmp_path / form / "m.onnx")
        files = [path, *(path.with_name(n) for n in read_manifest(path).files)]
        sizes[form] = sum(f.stat().st_size for f in files if f.suffix not in (".json", ".config"))
    assert sizes["floats"] - sizes["integers"] > 2.5 * (
        quantized_nets.W.size + quantized_nets.P.size
    )
    path = tmp_path / "integers" / f"m{target.suffix}"
    got = backend.session(path, target)({"x": quantized_nets.X})["y"]
    expected = run(model, {"x": quantized_nets.X})["y"]
    exact = run(floats, {"x": quantized_nets.X})["y"]
    # as near to the model as rounding has taken it from the floats, and not the floats themselves
    assert np.abs(got - expected).max() <= 2.5 * np.abs(expected - exact).max()
    if name != "mnn":  # there products with float results compute in floats
        assert np.abs(got - exact).max() > 1e-6


def test_executorch_runs_what_its_fast_kernels_leave(tmp_path):
    target = made("executorch")
    text = """
    q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  e = Exp(d)
    k = DequantizeLinear<axis=0>(w, ws)  y = Gemm<transB=1>(e, k)
    """
    constants = {"s": np.float32(0.02), "z": np.uint8(128), "w": quantized_nets.integers(16, 8)}
    constants["ws"] = np.linspace(0.01, 0.02, 16).astype(np.float32)
    x = RNG.standard_normal((2, 8)).astype(np.float32)
    model = parse_model(text, inputs={"x": x.shape}, constants=constants)
    path = backend_of(target).lower(model, target, tmp_path / "m.onnx")
    got = backend_of(target).session(path, target)({"x": x})["y"]
    np.testing.assert_allclose(got, run(model, {"x": x})["y"], rtol=1e-5, atol=1e-5)


def test_executorch_gives_a_recurrent_layer_to_its_fast_kernels_as_one(tmp_path):
    target = made("executorch")
    x = RNG.standard_normal((4, 1, 3)).astype(np.float32)
    constants = {
        n: RNG.uniform(-0.5, 0.5, dims).astype(np.float32)
        for n, dims in {"w": (2, 20, 3), "r": (2, 20, 5), "b": (2, 40)}.items()
    }
    text = 'y, h, c = LSTM<hidden_size=5, direction="bidirectional">(x, w, r, b)'
    model = parse_model(text, inputs={"x": x.shape}, constants=constants)
    path = backend_of(target).lower(model, target, tmp_path / "m.onnx")
    assert path.read_bytes().count(b"XnnpackBackend") == 1
    got, expected = backend_of(target).session(path, target)({"x": x}), run(model, {"x": x})
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(TARGETS) - {"ort"}))
def test_without_its_packages_the_target_is_one_plain_sentence(name, monkeypatch):
    from graphopt.backends.devices import device

    monkeypatch.setattr(device, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=rf"pip install 'graphopt\[{name}\]'"):
        find_target(name)


def test_mnn_names_what_it_does_not_take(tmp_path):
    target = made("mnn")
    model = parse_model("y = Hardmax(x)", inputs={"x": (2, 3)})
    with pytest.raises(
        ModelError, match="MNN does not convert it: These Op Not Support: ONNX::Hardmax"
    ):
        backend_of(target).lower(model, target, tmp_path / "m.mnn")
    assert list(tmp_path.iterdir()) == []


def test_the_converter_of_mnn_loads_no_client_that_reports(tmp_path):
    """Its command installs one with pip, and calls a server."""
    made("mnn")
    code = (
        "import sys; sys.argv = ['c', '--help']\n"
        "from graphopt.backends.mnn import convert\n"
        "convert(); print('loaded:', [m for m in sys.modules if 'aliyun' in m or 'utils.log' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_a_runtime_that_crashes_refuses_the_file_and_nothing_else_ends(tmp_path, monkeypatch):
    from graphopt.backends.devices import trial

    code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(
        "graphopt.backends.devices.process.child_command",
        lambda module, function: [sys.executable, "-c", code],
    )
    with pytest.raises(ModelError, match=r"the runtime of 'ort' failed \(exit code -11\)"):
        trial.run_apart(tmp_path / "m.ort", find_target("ort"), [{"x": X}])
    assert list(tmp_path.iterdir()) == []
