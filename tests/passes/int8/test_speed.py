import numpy as np
import pytest
from graphopt.passes.int8 import Int8
from graphopt.passes.int8 import speed as trials

from graphopt.backend import Timing, find_target
from graphopt.context import Context
from graphopt.samples import Samples
from graphopt.testing import parse_model


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Clock:
    """Models take a time by what is in them."""

    def __init__(self, cost):
        self.cost, self.calls = cost, 0

    def __call__(self, a, b, feeds, seconds):
        self.calls += 1
        x, y = (float(self.cost([n.op_type for n in model.graph])) for model in (a, b))
        return Timing(x, y, y / x, (y / x - 0.001, y / x + 0.001), 0.0, 30)


TARGET = find_target("cpu")
CONSTANTS = {"w": normal(16, 16), "v": normal(16, 16, seed=1)}
BEFORE = "a = MatMul(x, w)  b = Tanh(a)  y = MatMul(b, v)"
REGION = "a = Conv(x, w)  b = Conv(x, v)  y = Add(a, b)"


def quantize(before, inputs, constants, cost, facts=None):
    model = parse_model(before, inputs=inputs, constants=constants)
    clock = Clock(cost)
    feeds = {k: normal(*v) if isinstance(v, tuple) else v for k, v in inputs.items()}
    ctx = Context(model, target=TARGET, samples=Samples([feeds]), facts=facts, timer=clock)
    edits = Int8().run(model, ctx)
    return edits, [n.op_type for n in model.graph], ctx, clock


def test_products_that_lose_stay_float():
    edits, ops, ctx, clock = quantize(BEFORE, {"x": (4, 16)}, CONSTANTS, lambda ops: 1 + len(ops))
    assert edits == 0
    assert ops == ["MatMul", "Tanh", "MatMul"]
    assert {r.reason for r in ctx.refusals} == {trials.SLOWER}
    assert ctx.facts == {"faster": {"int8 . MatMul [4, 16] [16, 16]": 1.5}}
    assert clock.calls == 2, "two products of one kind are timed once, and once more to be sure"


def test_products_that_win_are_integer():
    def cost(ops):
        return 1 + ops.count("MatMul")

    edits, _, ctx, _ = quantize(BEFORE, {"x": (4, 16)}, CONSTANTS, cost)
    assert edits == 2
    assert all(ratio < 1 for ratio in ctx.facts["faster"].values())


@pytest.mark.parametrize("cost", [len, lambda ops: 1 + ops.count("MatMul")])
def test_a_replay_times_nothing_and_decides_the_same(cost):
    edits, ops, ctx, _ = quantize(BEFORE, {"x": (4, 16)}, CONSTANTS, cost)
    again, same, replay, clock = quantize(BEFORE, {"x": (4, 16)}, CONSTANTS, cost, facts=ctx.facts)
    assert clock.calls == 0
    assert (again, same, replay.facts) == (edits, ops, ctx.facts)


@pytest.mark.parametrize("slow", ["Add", "none", "all"])
def test_a_class_of_nodes_that_loses_is_taken_back(slow):
    constants = {"w": normal(8, 8, 1, 1), "v": normal(8, 8, 1, 1, seed=1)}

    def cost(ops):
        pairs = ops.count("QuantizeLinear")
        if slow == "all":
            return 1 + pairs
        return 10 - pairs + (5 if slow == "Add" and pairs == 4 else 0)

    _, ops, ctx, _ = quantize(REGION, {"x": (1, 8, 5, 5)}, constants, cost)
    left = {r.node for r in ctx.refusals}
    assert left == {"Add": {"Add_2"}, "none": set(), "all": {"Conv_0", "Conv_1"}}[slow]
    assert ("QuantizeLinear" in ops) == (slow != "all")


@pytest.mark.parametrize(("more", "left"), [(1, "GatherBlockQuantized"), (50, "Gather")])
def test_a_lookup_is_judged_by_what_it_costs_the_model(more, left):
    """Alone integer rows are always slower than a copy: the bytes would stay for nothing."""
    _, ops, ctx, _ = quantize(
        "e = Gather(t, i)  y = MatMul(e, w)",
        {"i": np.arange(4)},
        {"t": normal(1024, 16), "w": normal(16, 16, seed=1)},
        lambda ops: 200 + 20 * ("MatMul" in ops) + more * ("GatherBlockQuantized" in ops),
    )
    assert left in ops
    assert (ctx.facts["faster"]["int8 without lookups"] < 0.95) == (left == "Gather")


class Referee:
    """Bears no integers of weight v."""

    runs, rows = 1, 0

    def over(self, models):
        return 2.0 if any("v_q" in m.graph.initializers for m in models) else 0.5

    def strain(self, models, runs, rows=0):
        return 50.0 if any("v_q" in m.graph.initializers for m in models) else 0.01


@pytest.mark.parametrize(("beside", "kept"), [(12.0, 0), (8.0, 2)])
def test_what_the_guard_leaves_of_a_region_is_timed_again(beside, kept):
    """All of it in integers is fast; with a float layer in the middle, as the borders cost."""
    constants = {k: normal(16, 16, 3, 3, seed=s) / 12 for s, k in enumerate("uvw")}
    model = parse_model(
        "a = Conv(x, u)  b = Conv(a, v)  y = Conv(b, w)",
        inputs={"x": (1, 16, 12, 12)},
        constants=constants,
    )

    def cost(ops):
        read = ops.count("DequantizeLinear")  # three weights and four activations
        return 5.0 if read == 7 else beside if read else 10.0

    feeds = [{"x": normal(1, 16, 12, 12)}]
    target = find_target("cpu")
    ctx = Context(
        model, target=target, samples=Samples(feeds), timer=Clock(cost), referee=Referee()
    )
    Int8(balance=False).run(model, ctx)
    ops = [n.op_type for n in ctx.model.graph]
    assert (ops.count("QuantizeLinear") > 0) == bool(kept)
