"""What a search may choose (`Pass.choices`), and the passes that make single choices (`only`)."""

import numpy as np
import pytest
from graphopt.passes.int8 import Int8
from graphopt.passes.prune import Prune
from graphopt.passes.svd import Svd
from graphopt.passes.weight_only import WeightOnly

from graphopt.analyses.dims import dimensions
from graphopt.backend import find_target
from graphopt.context import Context
from graphopt.samples import Samples
from graphopt.testing import parse_model

CPU = find_target("cpu-avx512-vnni")


def network():
    rng = np.random.default_rng(0)
    weights = {"w1": (64, 256), "w2": (256, 256), "w3": (256, 8)}
    return parse_model(
        "a = MatMul(x, w1)  b = Relu(a)  c = MatMul(b, w2)  d = Relu(c)  y = MatMul(d, w3)",
        inputs={"x": (4, 64)},
        constants={n: rng.standard_normal(s).astype(np.float32) for n, s in weights.items()},
    )


def context(model):
    x = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    return Context(model, target=CPU, samples=Samples([{"x": x}], "drawn"), shapes={"x": (4, 64)})


def test_every_choice_of_prune_leaves_what_the_target_likes():
    model = network()
    choices = Prune().choices(model, context(model))
    dims = context(model).get(dimensions).prunable
    assert choices.keys() == {"w1", "w2"}
    for name, shares in choices.items():
        assert list(shares) == sorted(shares)
        assert all(round(dims[name].size * (1 - s)) % 16 == 0 for s in shares)


def test_prune_of_one_dimension_leaves_the_others():
    model = network()
    assert Prune().only((("w2", 0.5),)).run(model, context(model)) > 0
    sizes = {n: d.size for n, d in context(model).get(dimensions).prunable.items()}
    assert sizes == {"w1": 256, "w2": 128}


@pytest.mark.parametrize(
    ("one", "value", "operator"),
    [
        (Svd(), 32.0, "MatMul"),
        (Int8(), "dynamic", "MatMulIntegerToFloat"),
        (WeightOnly(), 4, "MatMulNBits"),
    ],
)
def test_one_layer_is_changed_and_no_other(one, value, operator):
    model = network()
    choices = one.choices(model, context(model))
    assert value in choices["MatMul_2"]
    others = [name for name in choices if name != "MatMul_2"]
    assert one.only((("MatMul_2", value),), others).run(model, context(model)) > 0
    names = [n.op_type for n in model.graph]
    assert names.count("MatMul") == (4 if operator == "MatMul" else 2)
    assert operator in names


def test_int8_offers_ranges_from_samples_only_with_samples():
    model = network()
    assert Int8().choices(model, context(model))["MatMul_2"] == ("dynamic", "static")
    without = Context(model, target=CPU)
    assert Int8().choices(model, without)["MatMul_2"] == ("dynamic",)


def test_a_pattern_called_like_one_dimension_does_not_mean_another_that_its_node_writes():
    rng = np.random.default_rng(0)
    shapes = {"q": (32, 32), "k": (32, 32), "v": (32, 32), "o": (32, 4)}
    model = parse_model(
        "a = MatMul(x, q)  b = MatMul(x, k)  c = MatMul(x, v)\n"
        "e = Reshape(a, s)  f = Reshape(b, s)  g = Reshape(c, s)\n"
        "h = Transpose<perm=[1, 0, 2]>(e)  i = Transpose<perm=[1, 2, 0]>(f)\n"
        "j = Transpose<perm=[1, 0, 2]>(g)  m = MatMul(h, i)  n = Softmax(m)  p = MatMul(n, j)\n"
        "r = Transpose<perm=[1, 0, 2]>(p)  t = Reshape(r, u)  y = MatMul(t, o)",
        inputs={"x": (6, 32)},
        constants={
            **{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()},
            "s": np.array([6, 4, 8]),
            "u": np.array([6, 32]),
        },
    )
    ctx = Context(model, target=CPU)
    sizes = {n: d.size for n, d in ctx.get(dimensions).prunable.items()}
    assert Prune(scope="all").only((("v", 0.5),)).run(model, ctx) > 0
    after = {n: d.size for n, d in Context(model, target=CPU).get(dimensions).prunable.items()}
    assert after == {**sizes, "v": sizes["v"] // 2}
