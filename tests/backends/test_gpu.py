"""What the GPU backends write, looked at on a machine without a GPU, and run where there is one."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphopt.backends import cuda, gpu, tensorrt
from graphopt.passes.fp16 import Fp16
from graphopt.passes.int8 import Int8

from graphopt.backend import find_target
from graphopt.context import Context
from graphopt.deploy.manifest import Manifest, manifest_path, read_manifest, write_manifest
from graphopt.deploy.opened import BoundSession
from graphopt.deploy.sessions import open_manifest, session
from graphopt.errors import MissingExtra, ModelError
from graphopt.pipeline.optimize import optimize
from graphopt.pipeline.recipe import versions
from graphopt.samples import Samples
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)
W = RNG.standard_normal((8, 4, 3, 3)).astype(np.float32)
B = RNG.standard_normal(8).astype(np.float32)
X = {"x": RNG.standard_normal((1, 4, 8, 8)).astype(np.float32)}


def convnet():
    text = "a = Conv <pads = [1, 1, 1, 1]> (x, w, b)  y = Relu(a)"
    return parse_model(text, inputs={"x": (1, 4, 8, 8)}, constants={"w": W, "b": B})


def dynamic(model):
    model.graph.inputs[0].shape = ir.Shape(["n", 4, "h", 8])
    model.graph.outputs[0].shape = ir.Shape(["n", 8, "h", 8])
    return model


@pytest.mark.parametrize("name", ["cuda", "cuda-sm70", "cuda-sm90", "tensorrt", "tensorrt-sm75"])
def test_targets_are_data(name):
    target = find_target(name)
    assert target.name == name
    assert "float16" in target.precisions
    if "sm" in name:
        assert target.isa == (name.partition("-")[2],)
        assert not target.measured


def test_a_newer_gpu_has_at_least_what_the_newest_known_one_has():
    assert gpu.precisions("sm120") == gpu.CAPABILITIES["sm90"]
    assert gpu.precisions("sm60") == ("float32",)


def test_the_answer_of_nvidia_smi_is_read():
    assert gpu.parse_capability("9.0\n9.0\n") == "sm90"
    assert gpu.parse_capability("") is None
    assert gpu.parse_capability("No devices were found\n") is None


def test_cuda_replays_a_graph_only_where_shapes_are_static(tmp_path):
    target = find_target("cuda-sm80")
    path = cuda.BACKEND.lower(convnet(), target, tmp_path / "m.onnx")
    fixed = read_manifest(path)
    assert fixed is not None
    assert fixed.provider == "CUDAExecutionProvider"
    assert fixed.bind == "cuda"
    assert fixed.provider_options["enable_cuda_graph"] == "1"
    assert fixed.provider_options["prefer_nhwc"] == "1"
    free = cuda.manifest(dynamic(convnet()), target)
    assert free.provider_options["enable_cuda_graph"] == "0"
    matmul = parse_model("y = MatMul(x, w)", constants={"w": np.eye(3, dtype="f4")})
    assert cuda.manifest(matmul, target).provider_options["prefer_nhwc"] == "0"


def test_tensorrt_gets_profiles_for_dynamic_axes_only():
    target = find_target("tensorrt")
    fixed = tensorrt.manifest(convnet(), target).provider_options
    assert not any("profile" in k for k in fixed)
    assert fixed["trt_cuda_graph_enable"] == "1"
    free = tensorrt.manifest(dynamic(convnet()), target).provider_options
    assert free["trt_profile_min_shapes"] == "x:1x4x1x8"
    assert free["trt_profile_opt_shapes"] == "x:1x4x128x8"
    assert free["trt_profile_max_shapes"] == "x:16x4x512x8"
    assert free["trt_cuda_graph_enable"] == "0"


def test_tensorrt_is_allowed_the_types_the_model_holds():
    target = find_target("tensorrt")
    plain = tensorrt.manifest(convnet(), target).provider_options
    assert not tensorrt.FLAGS.keys() & plain.keys()
    model = convnet()
    Int8().run(model, Context(model, target=target, samples=Samples([X])))
    assert tensorrt.manifest(model, target).provider_options["trt_int8_enable"] == "1"


def test_int8_for_tensorrt_has_the_form_it_takes():
    """Zero points 0 or left out, signed integers, weights per channel, float biases."""
    model = convnet()
    assert (
        Int8().run(model, Context(model, target=find_target("tensorrt"), samples=Samples([X]))) > 0
    )
    proto = ir.to_proto(model)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    rounding = [n for n in proto.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert rounding
    assert all(len(n.input) == 3 for n in rounding if n.op_type == "QuantizeLinear")
    for node in (n for n in rounding if len(n.input) == 3):
        zero = arrays[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    conv = next(n for n in proto.graph.node if n.op_type == "Conv")
    made = {o: n for n in proto.graph.node for o in n.output}
    assert arrays[conv.input[2]].dtype == np.float32
    assert arrays[made[conv.input[1]].input[1]].shape == (8,)


@pytest.mark.parametrize("backend", [cuda, tensorrt])
def test_without_the_gpu_build_opening_is_one_plain_sentence(backend, tmp_path):
    import onnxruntime as ort

    if backend.PROVIDER in ort.get_available_providers():
        pytest.skip("this machine has the provider")
    target = find_target(backend.BACKEND.name)
    path = backend.BACKEND.lower(convnet(), target, tmp_path / "m.onnx")
    with pytest.raises(MissingExtra, match=rf"graphopt\[{backend.BACKEND.name}\]"):
        session(path)


def test_caches_lie_beside_the_model_wherever_it_is_opened_from(monkeypatch, tmp_path):
    import onnxruntime as ort

    asked = {}

    class Raw:
        def get_inputs(self):
            return []

        get_outputs = get_inputs

        def io_binding(self):
            return None

        def get_providers(self):
            return [tensorrt.PROVIDER]

    def open_(path, options, providers, enable_fallback):
        asked["providers"] = providers
        return Raw()

    target = find_target("tensorrt")
    path = tensorrt.BACKEND.lower(convnet(), target, tmp_path / "m.onnx")
    monkeypatch.setattr(ort, "get_available_providers", lambda: [tensorrt.PROVIDER])
    monkeypatch.setattr(ort, "InferenceSession", open_)
    tensorrt.BACKEND.session(path, target)
    (name, options), second, third = asked["providers"]
    assert (name, second, third) == (
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    )
    assert options["trt_engine_cache_path"] == str(tmp_path / "trt-cache")


def test_bound_memory_gives_the_same_outputs(tmp_path):
    """On the CPU's own memory: what is bound, updated in place and copied back is the same."""
    from graphopt.backends.cpu import BACKEND as CPU

    path = CPU.lower(convnet(), find_target("cpu"), tmp_path / "m.onnx")
    bound = open_manifest(path, Manifest("cpu", bind="cpu"))
    assert isinstance(bound, BoundSession)
    plain = open_manifest(path, Manifest("cpu"))
    for feeds in (X, {"x": -X["x"]}):
        np.testing.assert_array_equal(bound(feeds)["y"], plain(feeds)["y"])


@pytest.mark.parametrize("bind", ["", "cpu"])
def test_the_script_runs_the_model_without_graphopt(tmp_path, bind):
    path = cuda.BACKEND.lower(convnet(), find_target("cuda"), tmp_path / "m.onnx")
    script = tmp_path / "m.run.py"
    assert "import graphopt" not in script.read_text()
    assert "from graphopt" not in script.read_text()
    write_manifest(path, Manifest("cpu", bind=bind, threads=1))
    np.savez(tmp_path / "in.npz", **X)
    subprocess.run(
        [sys.executable, script, tmp_path / "in.npz", tmp_path / "out.npz"], check=True, timeout=600
    )
    expected = open_manifest(path, Manifest("cpu", threads=1))(X)
    with np.load(tmp_path / "out.npz") as got:
        np.testing.assert_array_equal(got["y"], expected["y"])


def script_of(path):
    spec = importlib.util.spec_from_file_location("script", path.with_name("m.run.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_says_what_is_missing(tmp_path):
    path = cuda.BACKEND.lower(convnet(), find_target("cuda"), tmp_path / "m.onnx")
    data = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps({**data, "provider": "NoSuchProvider"}))
    with pytest.raises(SystemExit, match=r"NoSuchProvider.*graphopt\[cuda\]"):
        script_of(path).Model()


def test_bound_outputs_take_the_shapes_of_each_run(tmp_path):
    """In the same session and in the script, both ways: larger, and smaller again."""
    path = cuda.BACKEND.lower(dynamic(convnet()), find_target("cuda"), tmp_path / "m.onnx")
    write_manifest(path, Manifest("cpu", bind="cpu"))
    bound, script = session(path), script_of(path).Model()
    plain = open_manifest(path, Manifest("cpu"))
    for n, h in ((1, 8), (3, 12), (2, 4), (1, 8)):
        feeds = {"x": RNG.standard_normal((n, 4, h, 8)).astype(np.float32)}
        for call in (bound, script):
            np.testing.assert_array_equal(call(feeds)["y"], plain(feeds)["y"])


class Opened:
    """A runtime's session that replays no graph, on the providers that `loads` names."""

    loads = (cuda.PROVIDER,)

    def __init__(self, path, options, providers, enable_fallback):
        assert enable_fallback == 0, "the runtime would print and take the CPU"
        self.given = providers[0][1]
        if self.given["enable_cuda_graph"] == "1":
            raise RuntimeError("This session cannot use the graph capture feature as requested")

    def get_providers(self):
        return [*self.loads, "CPUExecutionProvider"]

    def get_outputs(self):
        return []

    get_inputs = io_binding = get_outputs


def test_a_model_that_replays_no_graph_is_opened_without(monkeypatch, tmp_path):
    import onnxruntime as ort

    path = cuda.BACKEND.lower(convnet(), find_target("cuda"), tmp_path / "m.onnx")
    monkeypatch.setattr(ort, "get_available_providers", lambda: [cuda.PROVIDER])
    monkeypatch.setattr(ort, "InferenceSession", Opened)
    for raw in (session(path).raw, script_of(path).Model().session):
        assert raw.given["enable_cuda_graph"] == "0"
        assert raw.given["prefer_nhwc"] == "1"


def test_a_provider_that_does_not_load_is_told_and_the_cpu_not_taken(monkeypatch, tmp_path):
    import onnxruntime as ort

    path = cuda.BACKEND.lower(convnet(), find_target("cuda"), tmp_path / "m.onnx")
    monkeypatch.setattr(ort, "get_available_providers", lambda: [cuda.PROVIDER])
    monkeypatch.setattr(ort, "InferenceSession", Opened)
    monkeypatch.setattr(Opened, "loads", ())
    with pytest.raises(ModelError, match="could not load CUDAExecutionProvider for 'cuda'"):
        session(path)
    with pytest.raises(SystemExit, match="could not load CUDAExecutionProvider"):
        script_of(path).Model()


def test_half_precision_for_tensorrt_is_allowed_by_its_flag():
    model = convnet()
    target = find_target("tensorrt-sm90")
    assert Fp16().run(model, Context(model, target=target, samples=Samples([X]))) == 2
    options = tensorrt.manifest(model, target).provider_options
    assert options["trt_fp16_enable"] == "1"
    assert "trt_int8_enable" not in options


def test_the_gpu_build_of_the_runtime_is_a_package_of_another_name(monkeypatch):
    import importlib.metadata as metadata

    import onnxruntime as ort

    known = metadata.version

    def version(name):
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(metadata, "version", version)
    assert versions()["onnxruntime"] == ort.__version__
    found = optimize(convnet(), "fuse", target="cuda-sm80", measure=False)
    assert found.report.steps[0].edits > 0


def test_a_target_is_measured_only_where_its_provider_opens_a_model(monkeypatch):
    """onnxruntime-gpu lists TensorRT's provider with and without TensorRT."""
    import onnxruntime as ort

    monkeypatch.setattr(gpu, "capability", lambda: "sm90")
    monkeypatch.setattr(ort, "get_available_providers", lambda: [tensorrt.PROVIDER, cuda.PROVIDER])
    monkeypatch.setattr(ort, "InferenceSession", Listed)
    gpu.opens.cache_clear()
    try:
        assert find_target("cuda").measured
        assert find_target("cuda").isa == ("sm90",)
        assert not find_target("tensorrt").measured
    finally:
        gpu.opens.cache_clear()


class Listed(Opened):
    def __init__(self, path, options, providers, enable_fallback):
        if providers[0][0] == tensorrt.PROVIDER:
            raise RuntimeError(
                "/src/python/state.cc:729 void register(Options&) Please install TensorRT"
            )


def test_a_refusal_leaves_the_runtimes_source_out(monkeypatch, tmp_path):
    import onnxruntime as ort

    path = tensorrt.BACKEND.lower(convnet(), find_target("tensorrt"), tmp_path / "m.onnx")
    monkeypatch.setattr(ort, "get_available_providers", lambda: [tensorrt.PROVIDER])
    monkeypatch.setattr(ort, "InferenceSession", Listed)
    with pytest.raises(ModelError, match=r"for 'tensorrt': Please install TensorRT$"):
        session(path)


MATRIX = (RNG.standard_normal((256, 512)) / 16).astype(np.float32)
CALLED = "a = MatMul(x, w)  b = Gelu(a)  c = MatMul(b, v)  y = Softmax(c)"
ROWS = {"x": RNG.standard_normal((16, 256)).astype(np.float32)}


def perceptron():
    constants = {"w": MATRIX, "v": np.ascontiguousarray(MATRIX.T)}
    return parse_model(CALLED, inputs={"x": (16, 256)}, constants=constants)


def close(got, expected, tolerance=0.01):
    """Within what TF32 and half precision leave: 10 bits an operand."""
    assert got.shape == expected.shape
    assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


@pytest.fixture
def here():
    target = find_target("cuda")
    if not target.measured:
        pytest.skip("needs an NVIDIA GPU and onnxruntime-gpu")
    return target


def test_on_a_gpu_a_replayed_graph_sees_every_input(here, tmp_path):
    path = cuda.BACKEND.lower(convnet(), here, tmp_path / "m.onnx")
    script = script_of(path).Model()
    for call in (session(path), script):
        for k in range(4):
            feeds = {"x": (k - 1.5) * X["x"]}
            close(call(feeds)["y"], open_manifest(path, Manifest("cpu"))(feeds)["y"])
    assert script.session.get_providers()[0] == cuda.PROVIDER


def test_on_a_gpu_shapes_may_change(here, tmp_path):
    path = cuda.BACKEND.lower(dynamic(convnet()), here, tmp_path / "m.onnx")
    opened, plain = session(path), open_manifest(path, Manifest("cpu"))
    for n, h in ((1, 8), (3, 12), (2, 4), (1, 8)):
        feeds = {"x": RNG.standard_normal((n, 4, h, 8)).astype(np.float32)}
        close(opened(feeds)["y"], plain(feeds)["y"])


@pytest.mark.parametrize("text", ["y = Det(x)", "a = Relu(x)  b = Det(a)  y = Exp(b)"])
def test_on_a_gpu_what_it_has_no_kernel_for_runs_beside_it(here, tmp_path, text):
    model = parse_model(text, inputs={"x": (3, 2, 2)})
    feeds = {"x": RNG.standard_normal((3, 2, 2)).astype(np.float32)}
    path = cuda.BACKEND.lower(model, here, tmp_path / "m.onnx")
    close(session(path)(feeds)["y"], open_manifest(path, Manifest("cpu"))(feeds)["y"])


@pytest.mark.parametrize("spec", ["fuse", "fp16", "weight_only(bits=4)", "weight_only, fp16"])
@pytest.mark.parametrize(("made", "feeds"), [(convnet, X), (perceptron, ROWS)])
def test_on_a_gpu_every_form_computes_what_it_does_on_the_cpu(here, tmp_path, spec, made, feeds):
    found = optimize(made(), spec, target=here, samples=Samples([feeds]), measure=False)
    path = cuda.BACKEND.lower(found.model, here, tmp_path / "m.onnx")
    close(session(path)(feeds)["y"], open_manifest(path, Manifest("cpu"))(feeds)["y"])
