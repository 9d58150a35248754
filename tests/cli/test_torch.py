"""Models from PyTorch on the command line; PyTorch is not loaded where it is not asked for."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

BUILD = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = torch.nn.Linear(8, 16)
        self.head = torch.nn.Linear(16, 4)

    def forward(self, features):
        return {"logits": self.head(torch.relu(self.hidden(features)))}

def build_model():
    torch.manual_seed(0)
    return Net(), (torch.randn(2, 8),), {"features": {0: "batch"}}

def alone():
    return Net()

def branches():
    class Branching(torch.nn.Module):
        def forward(self, x):
            if x.sum() > 0:  # the guilty line
                return x
            return -x
    return Branching(), (torch.randn(2, 3),)

def number():
    return 3

def raising():
    raise KeyError("weights.bin")
"""


@pytest.fixture
def net(folder):
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    Path("net.py").write_text(BUILD)
    return folder


def test_a_function_that_builds_a_module(net, graphopt):
    code, out, err = graphopt(
        "optimize", "net.py:build_model", "-p", "fuse", "--no-measure", "--measure-seconds", "0.1"
    )
    assert code == 0, err
    assert "wrote net.opt.onnx" in out
    code, out, _ = graphopt("inspect", "net.opt.onnx")
    assert "features  FLOAT  batchx8" in out


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("alone", "without example inputs (features): return (module, example_inputs)"),
        ("branches", "net.py:23: the code branches"),
        ("number", "returned int; it should return (module, example_inputs)"),
        ("raising", "raised KeyError at net.py:32: 'weights.bin'"),
    ],
)
def test_what_cannot_be_traced_is_one_line_and_code_3(net, graphopt, function, message):
    code, out, err = graphopt("optimize", f"net.py:{function}", "-p", "fuse")
    assert code == 3
    assert message in err
    assert len(err.splitlines()) == 1
    assert out == ""
    assert sorted(p.name for p in net.glob("*.onnx")) == ["model.onnx"]


def test_an_unknown_function_is_a_wrong_request(net, graphopt):
    code, _, err = graphopt("inspect", "net.py:build")
    assert code == 2
    assert "did you mean 'build_model'?" in err


def test_a_program_file(net, graphopt):
    import torch

    inputs = (torch.randn(2, 8),)
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())
    torch.export.save(torch.export.export(module, inputs), "net.pt2")
    torch.save(module.state_dict(), "weights.pt2")
    Path("text.pt2").write_text("hello")
    with zipfile.ZipFile("script.pt2", "w") as script:
        script.writestr("script/code/__torch__.py", "")
    before = Path("net.pt2").read_bytes()
    code, out, _ = graphopt("optimize", "net.pt2", "-p", "fuse", "--no-measure")
    assert code == 0
    assert "wrote net.opt.onnx" in out
    assert Path("net.pt2").read_bytes() == before
    code, out, _ = graphopt("compare", "net.pt2", "net.opt.onnx", "--no-measure")
    assert code == 0
    assert "outputs are equal" in out
    for name, message in (
        ("weights.pt2", "a PyTorch checkpoint (weights without a graph)"),
        ("text.pt2", "not a program written by torch.export.save: where the module is at hand"),
        ("script.pt2", "this is a TorchScript program, not one of torch.export: where"),
        ("none.pt2", "no such file"),
    ):
        code, _, err = graphopt("inspect", name)
        assert code == 3
        assert f"{name}: " in err
        assert message in err


LOADED = "print('loaded:', [m for m in ('torch', 'onnxscript') if m in sys.modules])"


@pytest.mark.parametrize(
    "argv", [[], ["--help"], ["optimize", "model.onnx", "-p", "fuse", "--no-measure"]]
)
def test_pytorch_is_not_loaded_until_it_is_used(folder, argv):
    code = "import sys, graphopt, graphopt.cli\n"
    if argv:
        code += f"try: graphopt.cli.main({argv!r})\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code + LOADED], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize("model", ["net.pt2", "net.py:build_model"])
def test_without_pytorch_the_install_line_is_told(folder, model):
    Path("net.pt2").write_bytes(b"PK")
    Path("net.py").write_text("def build_model():\n    import torch\n")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"import graphopt.cli; graphopt.cli.main(['optimize', {model!r}, '-p', 'fuse'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 5, done.stderr
    assert "pip install 'graphopt[torch]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_emit_torch(net, graphopt):
    import torch

    code, out, _ = graphopt(
        "optimize", "net.py:build_model", "-p", "fuse", "--no-measure", "-o", "small.pt2"
    )
    assert code == 0
    assert "wrote small.pt2" in out
    logits = torch.export.load("small.pt2").module()(torch.zeros(3, 8))[0]
    assert logits.shape == (3, 4)
    code, out, _ = graphopt("show", "small.pt2")
    assert code == 0
    assert "fuse" in out
    code, out, _ = graphopt(
        "optimize", "model.onnx", "-p", "fuse", "--no-measure", "--emit", "torch"
    )
    assert code == 0
    assert "wrote model.opt.pt2" in out
    code, _, err = graphopt(
        "optimize", "model.onnx", "-p", "fuse", "--emit", "torch", "-o", "a.onnx"
    )
    assert code == 2
    assert "--emit torch writes .pt2" in err
