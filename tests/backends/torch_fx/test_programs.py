"""Programs: `.pt2` files of models, written, opened by PyTorch alone, and read again."""

import os
import re

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.errors import ModelError, UsageError
from graphopt.execution.runtime import run

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from graphopt.backends.torch_fx import lower, programs  # noqa: E402
from graphopt.backends.torch_fx.types import array_of  # noqa: E402

from graphopt.testing import parse_model  # noqa: E402

nn = torch.nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.table = nn.Embedding(10, 8)
        self.mixed = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4, bias=False)

    def forward(self, image, kind):
        rows = torch.relu(self.norm(self.conv(image))).flatten(2).transpose(1, 2)
        mixed = self.mixed(rows) + self.table(kind)[:, None]
        return {"logits": self.head(mixed.mean(1)), "shares": torch.softmax(mixed, -1)}


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, 6, 6), torch.tensor([1, 3]))
    axes = {"image": {0: "batch"}, "kind": {0: "batch"}}
    return graphopt.trace(Net().eval(), inputs, axes)


@pytest.fixture(scope="module")
def feeds():
    rng = np.random.default_rng(0)
    return {"image": rng.normal(size=(5, 3, 6, 6)).astype(np.float32), "kind": np.arange(5)}


def interface(model):
    return [(v.name, str(v.shape), v.dtype) for v in (*model.graph.inputs, *model.graph.outputs)]


def parameters(model):
    return {
        n: tuple(v.shape)
        for n, v in model.graph.initializers.items()
        if not re.fullmatch(r"val_\d+", n)
    }


def same_outputs(a, b, feeds):
    expected, got = run(a, feeds), run(b, feeds)
    assert expected.keys() == got.keys()
    for name, array in expected.items():
        # float32, sums of 27 and 8 terms
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-6)


def test_tracing_a_lowered_model_gives_the_model_back(traced, feeds):
    given = (torch.randn(2, 3, 6, 6), torch.tensor([1, 3]))
    again = graphopt.trace(lower(traced), given, ({0: "batch"}, {0: "batch"}))
    assert interface(again) == interface(traced)
    assert parameters(again) == parameters(traced)
    same_outputs(traced, again, feeds)


@pytest.fixture(scope="module")
def written(traced, tmp_path_factory):
    path = tmp_path_factory.mktemp("programs") / "net.pt2"
    model = traced.clone()
    model.metadata_props["graphopt.recipe"] = "{}"
    graphopt.save(model, path)
    return path


def test_pytorch_opens_the_file_and_its_batch_is_free(traced, written, feeds):
    program = torch.export.load(written)
    with torch.no_grad():
        logits, shares = program.module()(*(torch.from_numpy(a) for a in feeds.values()))
    expected = run(traced, feeds)
    np.testing.assert_allclose(logits.numpy(), expected["logits"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(shares.numpy(), expected["shares"], rtol=1e-4, atol=1e-6)
    assert os.listdir(written.parent) == ["net.pt2"]


def test_the_file_reads_back_with_names_axes_and_recipe(traced, written, feeds):
    again = graphopt.load(written)
    assert interface(again) == interface(traced)
    assert parameters(again) == parameters(traced)
    assert again.metadata_props["graphopt.recipe"] == "{}"
    same_outputs(traced, again, feeds)


def test_the_file_a_model_was_read_from_is_not_overwritten(written):
    with pytest.raises(UsageError, match="the input is never overwritten"):
        graphopt.save(graphopt.load(written), written)


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "net.pt2"
    path.write_bytes(b"before")
    model = parse_model("y = StringNormalizer(x)", inputs={"x": np.array(["a"], dtype=object)})
    with pytest.raises(ModelError, match="StringNormalizer"):
        graphopt.save(model, path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["net.pt2"]


def test_quantized_models_keep_their_integers_rounding(tmp_path):
    rng = np.random.default_rng(0)
    model = parse_model(
        "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  "
        "w = DequantizeLinear(v, t)  y = MatMul(d, w)",
        inputs={"x": (2, 16)},
        constants={
            "s": np.array(0.03, np.float32),
            "z": np.array(128, np.uint8),
            "t": np.array(0.02, np.float32),
            "v": rng.integers(-127, 128, (16, 4)).astype(np.int8),
        },
    )
    graphopt.save(model, tmp_path / "q.pt2")
    program = torch.export.load(tmp_path / "q.pt2").module()
    x = rng.normal(size=(2, 16)).astype(np.float32)
    got = program(torch.from_numpy(x))[0].detach().numpy()
    # the same integers: what remains is the order of a sum of 16
    np.testing.assert_allclose(got, run(model, {"x": x})["y"], rtol=1e-4, atol=1e-5)


def test_parameters_called_as_the_exporter_calls_its_values(tmp_path):
    model = parse_model(
        "a = MatMul(x, val_0)  b = ReduceMean <keepdims=0> (a, axes)  y = Add(b, val_2)",
        inputs={"x": (2, 16)},
        constants={
            "val_0": np.ones((16, 4), np.float32),
            "val_2": np.arange(2, dtype=np.float32),
            "axes": np.array([1]),
        },
    )
    graphopt.save(model, tmp_path / "m.pt2")
    again = graphopt.load(tmp_path / "m.pt2")
    assert {"val_0", "val_2"} <= set(again.graph.initializers)
    same_outputs(model, again, {"x": np.ones((2, 16), np.float32)})


def test_bfloat16_that_the_runtime_lacks_is_written_and_checked_elsewhere(tmp_path, monkeypatch):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).bfloat16().eval()
    x = torch.randn(2, 32).bfloat16()
    model = graphopt.trace(module, (x,))
    with pytest.raises(ModelError, match="Could not find an implementation"):
        run(model, {model.graph.inputs[0].name: x.float().numpy()})
    file = tmp_path / "m.pt2"
    graphopt.save(model, file)
    (made,) = torch.export.load(file).module()(x)
    assert made.dtype is torch.bfloat16
    torch.testing.assert_close(made, module(x), rtol=0.02, atol=0.02)
    program, names = programs.open_program(file)
    (array,) = programs.run_program(
        program, names, {names["inputs"][0]: array_of(x, ir.DataType.BFLOAT16)}
    ).values()
    assert array.dtype.name == "bfloat16"
    np.testing.assert_array_equal(array.astype(np.float32), made.detach().float().numpy())
    monkeypatch.setattr(
        programs, "run_program", lambda *a: {model.graph.outputs[0].name: array * array}
    )
    with pytest.raises(ModelError, match="computes something else"):
        graphopt.save(model, file)
