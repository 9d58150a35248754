import dataclasses

import numpy as np
import pytest
from graphopt.passes.int8 import Int8
from graphopt.passes.int8 import mixed_precision as precision
from graphopt.passes.int8.plan import Choice

from graphopt.budget import Budget
from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.samples import Samples
from graphopt.target import ONNX
from graphopt.testing import parse_model

# Three convolutions; the input of the second has one channel a thousand times the others, which the
# third never sees: its weights cancel that channel in the second.
BEFORE = "a = Conv(x, u)  b = Conv(a, v)  y = Conv(b, w)"


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def poisoned():
    u, v, w = (normal(8, 8, 1, 1, seed=s) for s in (1, 2, 3))
    u[0] *= 1000
    v[:, 0] /= 1000
    model = parse_model(BEFORE, inputs={"x": (1, 8, 6, 6)}, constants={"u": u, "v": v, "w": w})
    return model, [{"x": normal(1, 8, 6, 6, seed=s)} for s in range(4)]


def error(model, expected, feeds):
    pairs = [(a, run(model, f)["y"]) for a, f in zip(expected, feeds, strict=True)]
    return np.sqrt(sum(np.sum((a - b) ** 2) for a, b in pairs)) / np.sqrt(
        sum(np.sum(a**2) for a, _ in pairs)
    )


def quantize(budget, facts=None):
    model, feeds = poisoned()
    expected = [run(model, f)["y"] for f in feeds]
    ctx = Context(model, samples=Samples(feeds), budget=budget, facts=facts)
    edits = Int8(balance=False).run(model, ctx)
    return edits, error(model, expected, feeds), ctx


def test_a_poisonous_layer_is_named_and_left_in_float():
    _, free, _ = quantize(None)
    assert free > 0.3, "the test's outlier must spoil the whole model"
    edits, kept, ctx = quantize(Budget(max_error=0.05))
    assert kept <= 0.05
    assert edits > 0
    assert {r.node for r in ctx.refusals} == {"Conv_0", "Conv_1"}
    assert any("most sensitive" in n and ("Conv_0" in n or "Conv_1" in n) for n in ctx.notes)


def test_a_budget_that_int8_meets_takes_nothing_back():
    edits, _, ctx = quantize(Budget(max_error=10.0))
    assert edits == 3
    assert ctx.facts[precision.FACT] == dataclasses.asdict(Choice())


def test_a_budget_no_integer_meets_leaves_the_model_float():
    edits, kept, _ = quantize(Budget(max_error=1e-7))
    assert (edits, kept) == (0, 0)


def test_a_replay_measures_nothing(monkeypatch):
    _, _, ctx = quantize(Budget(max_error=0.05))
    monkeypatch.setattr(precision, "unit_sensitivities", None)
    _, kept, again = quantize(Budget(max_error=0.05), facts=ctx.facts)
    assert kept <= 0.05
    assert again.refusals == ctx.refusals


@pytest.mark.parametrize("drop", [0.0, 0.02])
def test_a_limit_on_the_metric(drop):
    _, feeds = poisoned()
    target = [run(poisoned()[0], f)["y"] for f in feeds]

    def evaluate(predict):
        got = [predict(f)["y"] for f in feeds]
        return float(np.mean([(a > 0) == (b > 0) for a, b in zip(target, got, strict=True)]))

    model, _ = poisoned()
    ctx = Context(model, samples=Samples(feeds), budget=Budget(max_drop=drop, evaluate=evaluate))
    Int8(balance=False).run(model, ctx)
    agree = [(a > 0) == (run(model, f)["y"] > 0) for a, f in zip(target, feeds, strict=True)]
    assert np.mean(agree) >= 1 - drop


class Referee:
    """Bears the first and third layer in integers, and the second at most if nothing else is."""

    runs, rows = 4, 0

    def __init__(self):
        self.asked = 0

    def over(self, models):
        self.asked += 1
        return 2.0 if any("v_q" in m.graph.initializers for m in models) else 0.5

    def strain(self, models, runs, rows=0):
        return 50.0 if any("v_q" in m.graph.initializers for m in models) else 0.01


def test_the_guard_s_own_measure_finds_the_layer_that_spoils():
    model, feeds = poisoned()
    ctx = Context(model, samples=Samples(feeds), referee=Referee())
    assert Int8(balance=False).run(model, ctx) == 2
    assert {r.node for r in ctx.refusals} == {"Conv_1"}
    assert ctx.referee.asked < 10


class Fold(Referee):
    """Keeps the scales of what it is asked about."""

    runs = 8

    def __init__(self):
        self.scales = []

    def over(self, models):
        self.scales += [
            sorted(
                float(v.const_value.numpy())
                for n, v in m.graph.initializers.items()
                if n == "scale"
            )
            for m in models
        ]
        return 0.5


def test_ranges_are_judged_on_samples_that_they_do_not_know():
    """Every second run is ten times the others: ranges found without those fall short on them."""
    model, _ = poisoned()
    feeds = [{"x": normal(1, 8, 6, 6, seed=s) * (10 if s % 2 else 1)} for s in range(8)]
    ctx = Context(model, samples=Samples(feeds), referee=Fold())
    Int8(balance=False).run(model, ctx)
    even, odd, every = ctx.referee.scales
    assert even == pytest.approx([10 * s for s in odd], rel=0.5)
    assert every == even, "what is made in the end is judged too"


def test_a_pass_that_makes_nothing_integer_leaves_the_model_as_it_was():
    """Weights that were opened and balanced for integers go back too, for the passes after it."""
    model, feeds = poisoned()
    ctx = Context(model, samples=Samples(feeds), budget=Budget(max_error=1e-7))
    assert Int8().run(model, ctx) == 0
    assert error(ctx.model, [run(poisoned()[0], f)["y"] for f in feeds], feeds) == 0


def test_half_precision_is_left_to_itself_where_the_target_has_it():
    """Types that no shape inference has told: the weights say them."""
    half = normal(8, 8).astype(np.float16)
    model = parse_model(
        "h = Cast<to=10>(x)  m = MatMul(h, w)  y = Cast<to=1>(m)",
        inputs={"x": (4, 8)},
        constants={"w": half},
    )
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = None
    has = dataclasses.replace(ONNX, precisions=("float32", "float16"))
    ctx = Context(model, samples=Samples([{"x": normal(4, 8)}]), target=has)
    assert Int8().run(model, ctx) == 0
    assert [r.reason for r in ctx.refusals] == ["it computes in float16, not in float32"]
