"""Tracing PyTorch modules: names, dynamic axes, comparison with the module, messages."""

import copy
import inspect
import re

import numpy as np
import pytest

import graphopt
from graphopt.errors import ModelError, UsageError
from graphopt.execution.runtime import run
from graphopt.io.reading import examples_of
from graphopt.io.weights import warnings_of

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

nn = torch.nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), nn.Dropout(0.5)])
        self.head = nn.Linear(8, 4)
        self.scale = nn.Linear(8, 4)
        nn.init.zeros_(self.head.bias)
        nn.init.zeros_(self.scale.bias)

    def forward(self, image, gain):
        for block in self.blocks:
            image = block(image)
        pooled = image.mean((2, 3))
        return {"logits": self.head(pooled), "more": (self.scale(pooled) * gain, gain)}


def forward(function, *parts):
    """A module whose forward is `function`."""

    class Made(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(parts)

    Made.forward = function
    return Made()


def line_of(function, text):
    """`file.py:12`: where `text` stands in the source of `function`."""
    lines, first = inspect.getsourcelines(function)
    return (
        f"{__file__.rpartition('/')[2]}:{first + next(k for k, s in enumerate(lines) if text in s)}"
    )


def ops(model):
    return [n.op_type for n in model.graph.all_nodes()]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    module = Net()
    module.blocks[1].eval()
    before = copy.deepcopy(module.state_dict())
    inputs = {"image": torch.randn(1, 3, 8, 8), "gain": torch.randn(1, 1)}
    axes = {"image": {0: "batch"}, "gain": {0: "batch"}}
    model = graphopt.trace(module, inputs, axes)
    return module, before, inputs, model


def test_names_are_the_modules(net):
    module, _, _, model = net
    parameters = {n: tuple(p.shape) for n, p in module.named_parameters()}
    held = {n: tuple(v.shape) for n, v in model.graph.initializers.items()}
    assert parameters.items() <= held.items()
    assert [v.name for v in model.graph.inputs] == ["image", "gain"]
    assert [v.name for v in model.graph.outputs] == ["logits", "more_0", "more_1"]
    names = [n.name for n in model.graph]
    assert names[:3] == ["blocks.0.conv/Conv", "blocks.0.norm/BatchNormalization", "blocks.0/Relu"]
    assert {"head/Gemm", "scale/Gemm"} <= set(names)
    assert model.graph.name == "Net"


def test_equal_parameters_stay_two(net):
    _, _, _, model = net
    assert {"head.bias", "scale.bias"} <= set(model.graph.initializers)


def test_a_batch_of_one_can_be_dynamic_and_the_model_computes_what_the_module_does(net):
    module, _, _, model = net
    assert [str(v.shape) for v in model.graph.inputs] == ["[batch,3,8,8]", "[batch,1]"]
    image, gain = torch.randn(5, 3, 8, 8), torch.randn(5, 1)
    module = copy.deepcopy(module).eval()
    with torch.no_grad():
        expected = module(image, gain)["logits"].numpy()
    got = run(model, {"image": image.numpy(), "gain": gain.numpy()})
    np.testing.assert_allclose(got["logits"], expected, rtol=1e-4, atol=1e-6)  # float32 sums of 72


def test_the_module_is_as_it_was_and_its_weights_are_copied(net):
    module, before, _, model = net
    assert module.training
    assert module.blocks[0].training
    assert not module.blocks[1].training
    after = module.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    held = model.graph.initializers["head.weight"].const_value.numpy()
    assert not np.shares_memory(held, module.head.weight.detach().numpy())


def test_no_path_of_the_machine_is_in_the_model(net, tmp_path):
    *_, model = net
    graphopt.save(model, tmp_path / "m.onnx")
    assert b".py" not in (tmp_path / "m.onnx").read_bytes()


def test_example_inputs_come_along_and_the_pipeline_uses_them(net):
    _, _, inputs, model = net
    (examples,) = examples_of(model)
    np.testing.assert_array_equal(examples["image"], inputs["image"].numpy())
    result = graphopt.optimize(model, "clean", measure=False)
    assert result.report.steps[0].error_vs_source is not None or result.report.steps[0].edits == 0
    assert not result.report.validated


def branching(self, x):
    if x.shape[1] > 3:
        return x.mean(1)
    return x.sum(1)


def test_a_branch_on_a_fixed_size_is_resolved():
    model = graphopt.trace(forward(branching), (torch.randn(2, 8),), {"x": {0: "batch"}})
    assert ops(model) == ["ReduceMean"]


def test_a_branch_on_a_dynamic_size_is_refused_with_its_line():
    with pytest.raises(ModelError, match="computes something else than the module") as caught:
        graphopt.trace(forward(branching), (torch.randn(2, 8),), {"x": {1: "width"}})
    assert line_of(branching, "if x.shape[1] > 3") in str(caught.value)
    assert "Dim('width', min=4)" in str(caught.value)


def test_a_bound_says_which_branch_is_meant():
    width = torch.export.Dim("width", min=4)
    model = graphopt.trace(forward(branching), (torch.randn(2, 8),), {"x": {1: width}})
    assert str(model.graph.inputs[0].shape) == "[2,width]"


def test_a_size_that_the_module_itself_refuses_is_no_branch():
    def limited(self, x):
        if x.shape[1] > 9:
            raise ValueError("too wide")
        return x.sum(1)

    model = graphopt.trace(forward(limited), (torch.randn(2, 8),), ({1: "width"},))
    assert str(model.graph.inputs[0].shape) == "[2,width]"


def multiplied(self, x):
    return self.parts[0](x)


def unrolled(self, x):
    total = x[0]
    for k in range(1, x.shape[0]):
        total = total * 0.5 + x[k]
    return total


@pytest.mark.parametrize(
    ("function", "axis", "line"),
    [(multiplied, 1, "self.parts[0](x)"), (unrolled, 0, "in range")],
    ids=["matmul", "loop"],
)
def test_an_axis_that_the_module_fixes_is_refused_with_its_line(function, axis, line):
    module = forward(function, nn.Linear(8, 2))
    with pytest.raises(ModelError, match=f"axis {axis} of 'x' .'n'. cannot be dynamic") as caught:
        graphopt.trace(module, (torch.randn(3, 8),), {"x": {axis: "n"}})
    assert line_of(function, line) in str(caught.value)


def by_value(self, x):
    if x.sum() > 0:
        return x
    return -x


def as_number(self, x):
    return x * int(x.max().item())


def through_numpy(self, x):
    return torch.from_numpy(np.tanh(x.numpy()))


def wrong_width(self, x):
    return self.parts[0](x)


@pytest.mark.parametrize(
    ("function", "line", "advice"),
    [
        (by_value, "if x.sum()", "torch.cond"),
        (as_number, ".item()", "values of a tensor"),
        (through_numpy, "x.numpy()", "Change that line"),
        (wrong_width, "self.parts[0](x)", "example inputs"),
    ],
)
def test_what_cannot_be_traced_is_told_with_its_line(function, line, advice, capfd):
    with pytest.raises(ModelError, match="module Made cannot be traced") as caught:
        graphopt.trace(forward(function, nn.Linear(5, 2)), (torch.randn(2, 3),))
    assert line_of(function, line) in str(caught.value)
    assert advice in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


class SingularValues(nn.Module):
    def forward(self, x):
        y = x * 2
        return torch.linalg.svdvals(y)


def test_what_onnx_has_no_form_for_is_told_with_its_line(capfd):
    with pytest.raises(ModelError, match=r"aten\._linalg_svd .* has no form in ONNX") as caught:
        graphopt.trace(SingularValues(), (torch.randn(3, 4),))
    assert line_of(SingularValues, "svdvals(y)") in str(caught.value)
    assert capfd.readouterr() == ("", "")


class Counter(nn.Module):
    def __init__(self, used):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.used = used

    def forward(self, x):
        self.count.add_(1)
        return x * self.count if self.used else x * 2


def test_state_that_outputs_depend_on_is_refused():
    with pytest.raises(ModelError, match=r"buffer .count. at .*depend on it") as caught:
        graphopt.trace(Counter(True), (torch.randn(2),))
    assert line_of(Counter, "add_(1)") in str(caught.value)


def test_state_that_no_output_depends_on_is_left_out_and_told():
    module = Counter(False)
    model = graphopt.trace(module, (torch.randn(2),))
    assert any("buffer 'count'" in n and "the model does not" in n for n in warnings_of(model))
    assert module.count.item() == 0


def test_randomness_in_evaluation_mode_is_refused():
    def dropping(self, x):
        return nn.functional.dropout(x, 0.5)

    with pytest.raises(ModelError, match="other outputs in every run"):
        graphopt.trace(forward(dropping), (torch.randn(4, 16),))


def test_nested_inputs_outputs_and_in_place_writes():
    def nested(self, pair, options, scale=2.0):
        pair[0].add_(1)
        total = pair[0] * options["k"]
        total[:, 0] = 0
        return (total, [pair[1] * scale, None]), pair[1]

    pair, options = (torch.ones(2, 4), torch.randn(2, 4)), {"k": torch.randn(2, 4)}
    axes = (({0: "batch"}, {0: "batch"}), {"k": {0: "batch"}})
    model = graphopt.trace(forward(nested), (pair, options), axes)
    assert [v.name for v in model.graph.inputs] == ["pair_0", "pair_1", "options_k"]
    assert [v.name for v in model.graph.outputs] == [
        "output_0_0",
        "output_0_1_0",
        "output_1",
    ]
    assert torch.equal(pair[0], torch.ones(2, 4))
    assert any("in place" in n for n in warnings_of(model))


def test_recurrent_layers_are_one_operator_each_with_constant_weights():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 8, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    model = graphopt.trace(Recurrent(), (torch.randn(2, 5, 4),), {"x": {0: "batch"}})
    (node,) = [n for n in model.graph if n.op_type == "LSTM"]
    assert [v.name for v in node.inputs[1:3]] == ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]
    assert all(v.is_initializer() for v in node.inputs[1:4])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize(
    "layer", [{"batch_first": True}, {"num_layers": 2, "bidirectional": True}, {"bias": False}]
)
def test_recurrent_layers_take_any_number_of_steps(kind, layer):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = getattr(nn, kind)(4, 8, **layer)

        def forward(self, x):
            y, state = self.layer(x)
            return y, state[0] if kind == "LSTM" else state

    module = Recurrent()
    model = graphopt.trace(module, (torch.randn(2, 5, 4),), {"x": {0: "a", 1: "b"}})
    assert {n.op_type for n in model.graph} >= {kind}
    assert not {"Loop", "Scan"} & {n.op_type for n in model.graph}
    x = torch.randn(3, 7, 4)
    got = list(run(model, {"x": x.numpy()}).values())
    for y, expected in zip(got, module(x), strict=True):
        assert np.allclose(y, expected.detach().numpy(), atol=1e-5)


def test_an_axis_that_tracing_alone_fixes_is_not_said_to_be_the_modules_fault():
    with pytest.raises(graphopt.GraphOptError, match="works with other sizes, but tracing"):
        graphopt.trace(nn.RNN(4, 8), (torch.randn(5, 2, 4),), {"input": {0: "steps"}})


def test_tied_weights_are_stored_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 16)
            self.head = nn.Linear(16, 50, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids):
            return self.head(torch.tanh(self.table(ids)))

    model = graphopt.trace(Tied(), (torch.randint(0, 50, (2, 6)),))
    sizes = [v.const_value.size for v in model.graph.initializers.values()]
    assert sizes.count(50 * 16) == 1


def test_half_precision_is_kept():
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU()).half()
    model = graphopt.trace(module, (torch.randn(2, 8).half(),))
    assert model.graph.outputs[0].dtype.name == "FLOAT16"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((lambda x: x, (1,)), "a torch.nn.Module can be traced, not function"),
        ((nn.ReLU(), (torch.ones(1), torch.ones(1))), "too many positional"),
        ((nn.ReLU(), {"x": torch.ones(1)}), "missing a required argument"),
        ((nn.ReLU(), (torch.ones(1),), {"input": {3: "n"}}), "has no 3"),
        ((nn.ReLU(), (torch.ones(1),), {"x": {0: "n"}}), "no input 'x'. There are: input"),
        ((nn.ReLU(), (torch.ones(1),), {"input": {0: 2.5}}), "2.5 is no axis size"),
    ],
)
def test_wrong_requests(given, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        graphopt.trace(*given)
