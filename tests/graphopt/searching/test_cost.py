"""The cost model: prices of operators at every size and form, and what a choice costs."""

import dataclasses

import numpy as np
import pytest
from graphopt.passes.int8 import Int8

from graphopt.analyses.cost import cost
from graphopt.backend import find_target
from graphopt.cache import Cache
from graphopt.context import Context
from graphopt.pipeline.prepare import prepare
from graphopt.pipeline.run import run
from graphopt.searching import correction
from graphopt.searching.branches import Cutter
from graphopt.searching.choosing import cheapest
from graphopt.searching.cost import CostModel
from graphopt.searching.loss import Losses, measure_losses
from graphopt.searching.space import passes_for, space_of
from graphopt.searching.table import Form, Table, Wanted
from graphopt.searching.unpriced import others_of
from graphopt.testing import parse_model

#: Nothing is timed: sizes and MACs are what these tests compare.
TARGET = dataclasses.replace(find_target("cpu-avx512-vnni"), measured=False)


@pytest.fixture
def made(folder):
    setting = prepare("model.onnx", target=TARGET, samples="samples.npz", measure=False)
    base, steps = passes_for("prune, svd, int8, weight_only")
    setting = dataclasses.replace(setting, guard=None)
    space = space_of(base, steps, setting)
    plain = run(setting, space.passes(space.nothing)).model
    return setting, space, CostModel(setting, space, Table(TARGET, None), TARGET, plain)


def taken(space, **wanted):
    """The choice of these options by group and text."""
    return tuple(
        next((k for k, o in enumerate(g.options) if str(o) == wanted.get(g.name)), 0)
        for g in space.groups
    )


@pytest.mark.parametrize(
    "wanted",
    [
        {"w1": "prune 50%"},
        {"w1": "prune 75%", "w2": "prune 25%"},
        {"MatMul_2": "svd 16"},
        {"w1": "prune 50%", "MatMul_2": "int8 dynamic"},
        {"MatMul_0": "int8 dynamic", "MatMul_2": "int8 dynamic", "MatMul_4": "int8 dynamic"},
    ],
)
def test_predicted_macs_and_constants_are_those_of_the_model_that_is_built(made, wanted):
    setting, space, model = made
    choice = taken(space, **wanted)
    assert sum(map(bool, choice)) == len(wanted)
    predicted = model.predict(choice)
    built = run(setting, space.passes(choice)).model
    real = cost(Context(built, shapes=setting.shapes))
    assert predicted.macs == real.macs
    before = cost(Context(setting.source.model, shapes=setting.shapes)).param_bytes
    shrunk = setting.source.bytes - predicted.size
    assert shrunk == pytest.approx(before - real.param_bytes, rel=0.05)


def test_what_is_around_a_choice_is_what_each_choice_costs(made):
    _, space, model = made
    choice = taken(space, w1="prune 50%", MatMul_4="int8 dynamic")
    around = model.around(choice)
    for g, group in enumerate(space.groups):
        for k in range(len(group.options)):
            alone = model.predict((*choice[:g], k, *choice[g + 1 :]))
            assert around[g][k].macs == pytest.approx(alone.macs)
            assert around[g][k].size == pytest.approx(alone.size)


def test_a_table_measures_an_operator_once_and_reads_what_was_measured(made, tmp_path):
    _, _space, model = made
    (name,) = (n for n in model.cutter.nodes if n == "MatMul_2")
    branch = model.cutter.cut(name, {})
    assert branch.key == "MatMul[] xw 1x64 64x64"
    wanted = [
        Wanted(branch.key, form, lambda: model.cutter.cut(name, {}))
        for form in (Form(), Form(((Int8(), "dynamic"),)), Form())
    ]
    table = Table(TARGET, Cache(tmp_path))
    table.ask(wanted, lambda *_: None)
    assert table.measured == 2
    again = Table(TARGET, Cache(tmp_path))
    again.ask(wanted, lambda *_: None)
    assert again.measured == 0
    assert again.entries == table.entries
    floats, integers = (again.entries[w.name].bytes for w in wanted[:2])
    assert floats == 64 * 64 * 4
    assert 64 * 64 <= integers < 64 * 64 * 1.2


def test_a_timed_table_has_milliseconds_and_an_operator_that_cannot_run_is_never_taken():
    here = find_target("cpu")
    assert here.measured
    weight = np.ones((64, 64), np.float32)
    source = parse_model("y = MatMul(x, w)", inputs={"x": (8, 64)}, constants={"w": weight})
    cutter = Cutter(source, {}, {"x": (8, 64)})
    good = Wanted("good", Form(), lambda: cutter.cut("MatMul_0", {}))

    def broken():
        branch = cutter.cut("MatMul_0", {})
        branch.model.graph[0].attributes["no"] = __import__("onnx_ir").AttrInt64("no", 1)
        return branch

    table = Table(here, None)
    table.ask([good, Wanted("bad", Form(), broken)], lambda *_: None)
    assert 0 < table.entries["good"].ms < 100
    assert table.entries["bad"].ms == float("inf")


def test_weights_are_fitted_on_whole_models(made):
    _, _space, model = made
    rows = [np.array([a, 0.0, b, 0.0, 1.0]) for a, b in ((1, 2), (2, 1), (0.5, 2), (3, 1), (1, 1))]
    model.features = lambda choice: rows[choice[0]]
    latencies = [2 * r[0] + 1.5 * r[2] + 0.3 for r in rows]
    error = model.correct([(k,) for k in range(5)], latencies)
    assert error < 0.05
    assert model.weights[0] == pytest.approx(2, rel=0.15)


def test_what_hardly_shows_in_any_model_keeps_the_common_weight(made):
    _, _space, model = made
    rng = np.random.default_rng(0)
    rows = [np.array([a, 1e-4 * b, 1.0]) for a, b in rng.uniform(1, 3, (9, 2))]
    model.features = lambda choice: rows[choice[0]]
    noise = 1 + 0.02 * rng.standard_normal(9)
    model.correct(
        [(k,) for k in range(9)], [2 * r[0] * n for r, n in zip(rows, noise, strict=True)]
    )
    assert model.weights[:2] == pytest.approx([2, 2], rel=0.1)


class Recorded:
    """A backend whose profile is written beforehand."""

    def __init__(self, times):
        self.times = times

    def lower(self, model, target, path):
        return path

    def profile(self, path, feeds, target):
        return self.times


def test_what_the_runtime_fuses_shrinks_with_the_nodes_behind_the_last_that_has_a_name(monkeypatch):
    """A MatMul of its own, then an Add and a Gelu that become one operator without a name."""
    weight = np.ones((64, 64), np.float32)
    source = parse_model(
        "h = MatMul(x, w)\nb = Add(h, c)\ny = Gelu(b)",
        inputs={"x": (8, 64)},
        constants={"w": weight, "c": weight[0]},
    )
    setting = prepare(source, measure=False)
    cutter = Cutter(setting.source.model, {}, {"x": (8, 64)})
    times = {"p0n": 5.0, "BiasGelu": 2.0}
    monkeypatch.setattr("graphopt.searching.unpriced.backend_of", lambda target: Recorded(times))
    here = dataclasses.replace(find_target("cpu"), measured=True)
    others = others_of(setting.source.model, setting, here, cutter, {})
    assert [row[0] for row in others] == [0.0, 2.0, 0.0]


def test_the_cheapest_choice_within_a_budget_and_a_limit(made):
    setting, space, model = made
    losses = measure_losses(setting, space, lambda *_: None)
    assert all(row[0] == 0 for row in losses.rows)
    nothing = model.predict(space.nothing)
    sizes = []
    for budget in (0.0, 1e-3, 1e-1):
        choice = cheapest(model, losses, budget, "size")
        assert losses.of(choice) <= budget * (1 + 1e-9)
        sizes.append(model.predict(choice).size)
    assert nothing.size >= sizes[0] >= sizes[1] >= sizes[2]
    assert sizes[2] < 0.5 * nothing.size
    small = cheapest(model, losses, 1e-1, "macs", {"size": 0.3 * nothing.size})
    assert model.predict(small).size <= 0.3 * nothing.size


def test_coefficients_are_fitted_by_what_was_really_lost():
    rows = ((0.0, 1.0, 2.0), (0.0, 0.5))
    kinds = (("", "prune", "prune"), ("", "int8 dynamic"))
    losses = Losses(rows, kinds)
    seen = [((k, j), 3.0 * rows[0][k] + 8.0 * rows[1][j]) for k in range(3) for j in range(2)]
    fitted = losses.fitted(seen, 1.0)
    for choice, loss in seen:
        assert fitted.of(choice) == pytest.approx(loss, rel=0.25, abs=0.05)
    assert fitted.coefficients["int8 dynamic"] > 1.5 * fitted.coefficients["prune"]


def test_a_slower_moment_of_the_machine_counts_for_the_source_and_the_model_alike():
    times = [(1.0, 0.5), (1.2, 0.6), (1.0, 0.25)]
    assert correction.settled(times) == pytest.approx([0.5, 0.5, 0.25])
