"""Svd: exactness of the factors, what is matched and what is left alone, and its choices."""

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphopt.passes.svd import Svd

from graphopt.context import Context
from graphopt.errors import UsageError
from graphopt.execution.runtime import run
from graphopt.graph import provenance
from graphopt.samples import Samples
from graphopt.target import Target
from graphopt.testing import check, parse_model

RNG = np.random.default_rng(7)


def draws(*arrays, name="x"):
    """Samples of one input, one run per array."""
    return Samples([{name: a.astype(np.float32)} for a in arrays])


def weight(*shape, rank=None, scale=1.0):
    """Random, or of a given rank as a [first, rest] matrix."""
    if rank is None:
        return (scale * RNG.standard_normal(shape)).astype(np.float32)
    rows, columns = shape[0], int(np.prod(shape[1:]))
    product = RNG.standard_normal((rows, rank)) @ RNG.standard_normal((rank, columns))
    return (scale * product / rank**0.5).reshape(shape).astype(np.float32)


def operators(model):
    return [n.op_type for n in model.graph]


def factor(model, one, **context):
    ctx = Context(model, pass_name="svd", **context)
    edits = one.run(model, ctx)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return edits, ctx


# --- exactly low-rank weights come out exact ---------------------------------------------------

EXACT = Svd(energy=1 - 1e-9)


@pytest.mark.parametrize(
    ("before", "w", "x", "ops"),
    [
        ("y = MatMul(x, w)", weight(24, 32, rank=4), (3, 5, 24), ["MatMul"] * 2),
        ("y = MatMul(w, x)", weight(24, 32, rank=4), (3, 32, 5), ["MatMul"] * 2),
        ("y = Gemm(x, w)", weight(24, 32, rank=4), (5, 24), ["Gemm"] * 2),
        (
            "y = Gemm<alpha=0.5, transA=1, transB=1>(x, w)",
            weight(32, 24, rank=4),
            (24, 5),
            ["Gemm"] * 2,
        ),
        ("t = Transpose(w)  y = MatMul(x, t)", weight(32, 24, rank=4), (5, 24), ["MatMul"] * 2),
        ("y = Conv(x, w)", weight(32, 24, 1, 1, rank=4), (2, 24, 5, 6), ["Conv"] * 2),
        ("y = Conv(x, w)", weight(32, 24, 3, rank=4), (2, 24, 9), ["Conv"] * 2),
        (
            "y = Conv<strides=[2, 1], pads=[1, 1, 1, 1]>(x, w)",
            weight(32, 24, 3, 3, rank=4),
            (2, 24, 9, 8),
            ["Conv"] * 2,
        ),
        ('y = Conv<auto_pad="SAME_UPPER">(x, w)', weight(32, 8, 3, 3, rank=3), (2, 8, 9, 8), None),
    ],
)
def test_an_exactly_low_rank_weight_is_factored_without_error(before, w, x, ops):
    model = check(EXACT, before=before, inputs={"x": x}, constants={"w": w})
    assert ops is None or operators(model) == ops
    assert sum(v.const_value.size for v in model.graph.initializers.values()) < w.size


def test_bias_of_gemm_and_conv_stays():
    c = weight(32)
    check(
        EXACT,
        before="y = Gemm(x, w, c)",
        after="h = Gemm(x, a)  y = Gemm(h, b, c)",
        inputs={"x": (5, 24)},
        constants={"w": weight(24, 32, rank=4), "c": c},
    )
    check(
        EXACT,
        before="y = Conv(x, w, c)",
        inputs={"x": (2, 24, 5, 6)},
        constants={"w": weight(32, 24, 1, 1, rank=4), "c": c},
    )


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_recurrent_input_weights(op, direction):
    hidden, inputs, gates = 6, 20, {"LSTM": 4, "GRU": 3}[op]
    count = 2 if direction == "bidirectional" else 1
    w = weight(count * gates * hidden, inputs, rank=3).reshape(count, gates * hidden, inputs)
    constants = {
        "w": w,
        "r": weight(count, gates * hidden, hidden, scale=0.3),
        "b": weight(count, 2 * gates * hidden, scale=0.1),
    }
    before = f'y = {op}<hidden_size={hidden}, direction="{direction}">(x, w, r, b)'
    model = check(EXACT, before=before, inputs={"x": (7, 2, inputs)}, constants=constants)
    assert operators(model) == ["MatMul", op]


def test_a_weight_made_by_slices_and_concats_is_seen():
    hidden, inputs = 6, 20
    parts = weight(4 * hidden, inputs, rank=3)
    text = """
        p = Slice(w, zero, half)
        q = Slice(w, half, end)
        c = Concat<axis=0>(q, p)
        u = Unsqueeze(c, zero)
        y = LSTM<hidden_size=6>(x, u, r)
    """
    constants = {"w": parts, "r": weight(1, 4 * hidden, hidden, scale=0.3)}
    constants |= {"zero": np.array([0]), "half": np.array([12]), "end": np.array([24])}
    model = check(EXACT, before=text, inputs={"x": (7, 2, inputs)}, constants=constants)
    assert operators(model) == ["MatMul", "LSTM"]


def test_a_tied_embedding_and_head_share_one_pair():
    text = "e = Gather(w, ids)  h = Relu(e)  t = Transpose(w)  y = MatMul(h, t)"
    w = weight(60, 16, rank=4)
    ids = np.array([[1, 5, 59], [0, 2, 2]])
    model = check(EXACT, before=text, inputs={"ids": ids}, constants={"w": w})
    sizes = sorted(v.const_value.size for v in model.graph.initializers.values())
    assert sizes == [16 * 4, 60 * 4]


def test_a_weight_computed_from_constants_is_factored():
    text = "v = Mul(w, g)  y = MatMul(x, v)"
    constants = {"w": weight(24, 32, rank=2), "g": np.full((1, 32), 0.5, np.float32)}
    model = check(EXACT, before=text, inputs={"x": (5, 24)}, constants=constants)
    assert operators(model) == ["MatMul", "MatMul"]


def test_a_quantized_weight_stays_quantized():
    text = "v = DequantizeLinear(q, s)  y = MatMul(x, v)"
    constants = {"q": np.ones((24, 32), np.int8), "s": np.array(0.1, np.float32)}
    check(EXACT, before=text, inputs={"x": (5, 24)}, constants=constants, unchanged=True)


def test_layers_that_share_a_weight_share_the_factors():
    text = "a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w)"
    model = check(
        EXACT, before=text, inputs={"x": (5, 24)}, constants={"w": weight(24, 24, rank=4)}
    )
    assert len(model.graph.initializers) == 2
    assert operators(model).count("MatMul") == 4


# --- what is left alone ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "x", "w", "because"),
    [
        ("y = MatMul(x, w)", (5, 24), weight(24, 32), "keep"),
        ("y = MatMul(x, w)", (5, 2), weight(2, 1), "no rank"),
        ("y = Conv<group=4>(x, w)", (1, 8, 5, 5), weight(8, 2, 3, 3), "grouped"),
        ("y = Gather(w, ids)", None, weight(30, 16, rank=2), "lookup"),
        ("y = MatMul(x, w)", (3, 5, 24), weight(3, 24, 32), "stack"),
    ],
)
def test_refuses_with_a_reason(before, x, w, because):
    inputs = {"x": x} if x else {"ids": np.array([1, 2])}
    check(EXACT, before=before, inputs=inputs, constants={"w": w}, because=because)


def test_products_of_activations_and_integer_weights_are_no_layers():
    check(EXACT, before="y = MatMul(x, z)", inputs={"x": (5, 6), "z": (6, 5)}, unchanged=True)


def test_a_weight_other_nodes_read_is_left_alone():
    text = "y = MatMul(x, w)  z = Relu(w)"
    w = weight(24, 32, rank=2)
    check(EXACT, before=text, inputs={"x": (5, 24)}, constants={"w": w}, because="other nodes")


@pytest.mark.parametrize("one", [Svd(energy=0.9), Svd(ratio=0.5), Svd(rank=1)])
@pytest.mark.parametrize(("far", "rank"), [(0, None), (8, 8), (0.9, 1)])
def test_layers_says_how_far_single_layers_go(one, far, rank):
    constants = {"u": weight(24, 32, rank=4), "v": weight(32, 24, rank=2)}
    text = "a = MatMul(x, u)  b = Relu(a)  y = MatMul(b, v)"
    model = parse_model(text, inputs={"x": (5, 24)}, constants=constants)
    one = dataclasses.replace(one, layers=(("MatMul_0", far), ("Mat*2", 3)))
    assert factor(model, one)[0] == 1 + (rank is not None)
    products = [n.inputs[1].const_value.shape for n in model.graph if n.op_type == "MatMul"]
    assert [shape[1] for shape in products] == ([32] if rank is None else [rank, 32]) + [3, 24]


def test_denied_edits_are_not_made():
    w = weight(24, 32, rank=2)
    model = parse_model("y = MatMul(x, w)", inputs={"x": (5, 24)}, constants={"w": w})
    assert factor(model, EXACT, allow=lambda edit: False)[0] == 0
    assert operators(model) == ["MatMul"]


@pytest.mark.parametrize(
    "options", [{"energy": 0.9, "rank": 3}, {"energy": 2.0}, {"rank": 0}, {"of": "bytes"}]
)
def test_impossible_options_are_named(options):
    with pytest.raises(UsageError, match="svd"):
        Svd(**options)


# --- how much is lost --------------------------------------------------------------------------


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def test_without_samples_the_error_is_that_of_the_discarded_singular_values():
    w = weight(40, 60)
    model = parse_model("y = MatMul(x, w)", inputs={"x": (9, 40)}, constants={"w": w})
    assert factor(model, Svd(rank=10))[0] == 1
    a, b = (v.const_value.numpy() for v in model.graph.initializers.values())
    values = np.linalg.svd(w, compute_uv=False)
    best = np.sqrt(np.square(values[10:]).sum() / np.square(values).sum())
    assert relative(w, a @ b) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
def test_with_samples_the_output_error_is_optimal(shape):
    """The least error of a rank-r map of centred inputs is what PCA of the outputs discards."""
    w = weight(*shape)
    mix = RNG.standard_normal((shape[0], shape[0])) * np.geomspace(1, 0.01, shape[0])
    x = RNG.standard_normal((4000, shape[0])) @ mix.T + 3.0
    model = parse_model("y = MatMul(x, w)", inputs={"x": ("n", shape[0])}, constants={"w": w})
    samples = draws(*np.split(x, 8))
    assert factor(model, Svd(rank=8), samples=samples)[0] == 1
    y = x.astype(np.float32) @ w
    got = run(model, {"x": x.astype(np.float32)})["y"]
    values = np.linalg.svd(y - y.mean(0), compute_uv=False)
    best = np.sqrt(np.square(values[8:]).sum())
    assert float(np.linalg.norm(y - got)) <= 1.01 * float(best)


def test_bias_absorbs_the_mean():
    w, c = weight(30, 40), weight(40)
    x = 0.1 * RNG.standard_normal((500, 30)) + 5.0
    text = "m = MatMul(x, w)  y = Add(m, c)"
    model = parse_model(text, inputs={"x": ("n", 30)}, constants={"w": w, "c": c})
    factor(model, Svd(rank=4), samples=draws(x))
    assert operators(model) == ["MatMul", "MatMul", "Add"]
    y = x.astype(np.float32) @ w + c
    got = run(model, {"x": x.astype(np.float32)})["y"]
    assert np.abs(y.mean(0) - got.mean(0)).max() < 1e-3 * np.abs(y).max()


@pytest.mark.parametrize("rows", [1, 3])
def test_tiny_sample_sets_give_finite_factors(rows):
    w = weight(30, 40)
    x = RNG.standard_normal((rows, 30)).astype(np.float32)
    model = parse_model("y = MatMul(x, w)", inputs={"x": ("n", 30)}, constants={"w": w})
    factor(model, Svd(rank=12), samples=draws(x))
    got = run(model, {"x": RNG.standard_normal((50, 30)).astype(np.float32)})["y"]
    assert np.isfinite(got).all()


def test_constant_inputs_are_no_obstacle():
    w = weight(30, 40)
    model = parse_model("y = MatMul(x, w)", inputs={"x": ("n", 30)}, constants={"w": w})
    edits, _ = factor(model, Svd(rank=4), samples=draws(np.zeros((8, 30))))
    assert edits == 1
    assert np.isfinite(run(model, {"x": np.ones((2, 30), np.float32)})["y"]).all()


@pytest.mark.parametrize("scheme", ["channel", "spatial", "tucker"])
def test_each_scheme_wins_where_it_is_exact(scheme):
    """A kernel of exactly one scheme's form is found to be of that form, without error."""
    o, i, r = 24, 24, 3
    if scheme == "channel":
        w = weight(o, i, 3, 3, rank=r)
    elif scheme == "spatial":
        w = np.einsum("ria,orb->oiab", weight(r, i, 3), weight(o, r, 3))
    else:
        w = np.einsum("ri,srab,os->oiab", weight(r, i), weight(r, r, 3, 3), weight(o, r))
    w = (w / np.linalg.norm(w) * 10).astype(np.float32)
    text = "y = Conv<pads=[1, 1, 1, 1]>(x, w)"
    model = check(EXACT, before=text, inputs={"x": (2, i, 7, 7)}, constants={"w": w})
    why = [provenance.why(n) for n in model.graph]
    assert all(scheme in text for text in why), why


@pytest.mark.parametrize("scheme", ["channel", "spatial-v", "spatial-h", "tucker"])
@pytest.mark.parametrize("aware", [False, True])
def test_every_convolution_scheme_reports_the_error_it_has(scheme, aware, monkeypatch):
    from graphopt.passes.svd import svd

    chosen = svd.cheapest

    def only(curve, error, of):
        return chosen([c for c in curve if c.scheme == scheme], error, of)

    monkeypatch.setattr(svd, "cheapest", only)
    w = weight(16, 12, 3, 3)
    x = np.cumsum(RNG.standard_normal((16, 12, 12, 12)), axis=-1).astype(np.float32)
    text = "y = Conv(x, w)"
    model = parse_model(text, inputs={"x": ("n", 12, 12, 12)}, constants={"w": w})
    if not aware:
        x = RNG.standard_normal(x.shape).astype(np.float32)
    before = run(model, {"x": x})["y"]
    edits, ctx = factor(model, Svd(energy=0.7), samples=draws(x) if aware else None)
    assert edits == 1
    said = float(ctx.notes[-1].rsplit(" ", 1)[1].rstrip("."))
    got = run(model, {"x": x})["y"]
    spread = before - before.mean((0, 2, 3), keepdims=True) if aware else before
    # white inputs are a sample of 1600 patches: 5 %; observed ones are the very same: 1 %
    assert float(np.linalg.norm(before - got) / np.linalg.norm(spread)) == pytest.approx(
        said, rel=0.01 if aware else 0.05
    )


# --- choices -----------------------------------------------------------------------------------


def test_ranks_are_multiples_of_the_target():
    w = weight(64, 64)
    model = parse_model("y = MatMul(x, w)", inputs={"x": (5, 64)}, constants={"w": w})
    factor(model, Svd(energy=0.5), target=Target("t", channel_multiple=8))
    a = next(iter(model.graph.initializers.values()))
    assert a.shape[1] % 8 == 0


@pytest.mark.parametrize("of", ["macs", "params"])
def test_ratio_is_met_where_it_costs_least(of):
    text = "a = MatMul(x, u)  b = Relu(a)  y = MatMul(b, v)"
    constants = {"u": weight(64, 64), "v": weight(64, 64, rank=8)}
    model = parse_model(text, inputs={"x": (5, 64)}, constants=constants)
    factor(model, Svd(ratio=0.35, of=of))
    left = sum(v.const_value.size for v in model.graph.initializers.values())
    assert left <= 0.65 * 2 * 64 * 64
    assert left >= 0.60 * 2 * 64 * 64
    untouched = [n for n in model.graph if not provenance.why(n)]
    assert [n.op_type for n in untouched] == ["MatMul", "Relu"]


def test_embeddings_pay_in_parameters():
    w = weight(60, 16, rank=2)
    model = check(
        Svd(energy=1 - 1e-9, of="params"),
        before="y = Gather(w, ids)",
        after="g = Gather(a, ids)  y = MatMul(g, b)",
        inputs={"ids": np.array([1, 4])},
        constants={"w": w},
    )
    assert len(model.graph.initializers) == 2


def test_provenance_names_weight_rank_and_error():
    w = weight(24, 32, rank=4)
    model = parse_model("y = MatMul(x, w)", inputs={"x": (5, 24)}, constants={"w": w})
    factor(model, EXACT)
    for node in model.graph:
        assert provenance.sources(node) == ("MatMul_0",)
        assert provenance.made_by(node) == ("svd",)
        assert "w (24x32) as channel factors of rank 4" in provenance.why(node)


def test_the_same_seed_gives_the_same_bytes():
    def once():
        local = np.random.default_rng(3)
        w = local.standard_normal((24, 12, 3, 3)).astype(np.float32)
        model = parse_model("y = Conv(x, w)", inputs={"x": ("n", 12, 9, 9)}, constants={"w": w})
        factor(model, Svd(energy=0.6), samples=draws(local.standard_normal((64, 12, 9, 9))))
        return ir.to_proto(model).SerializeToString(deterministic=True)

    assert once() == once()


def test_a_chain_of_factored_convolutions_stays_connected():
    constants = {"u": weight(24, 24, 3, 3, rank=3), "v": weight(32, 24, 1, 1, rank=3)}
    before = "a = Conv(x, u)  y = Conv(a, v)"
    model = check(EXACT, before=before, inputs={"x": (1, 24, 6, 6)}, constants=constants)
    assert operators(model) == ["Conv"] * 4


# --- narrow activations ------------------------------------------------------------------------

NARROW = Svd(ratio=0.0, fold=1e-4)


@pytest.mark.parametrize(
    ("before", "x", "u", "v"),
    [
        ("a = MatMul(x, u)  b = Add(a, c)  y = MatMul(b, v)", (64, 20), (20, 24), (24, 16)),
        ("a = Gemm(x, u, c)  y = Gemm(a, v)", (64, 20), (20, 24), (24, 16)),
        ("a = Conv(x, u, c)  y = Conv<pads=[1, 1, 1, 1]>(a, v)", (4, 20, 6, 6), None, None),
    ],
)
def test_a_low_rank_activation_is_narrowed_on_both_sides(before, x, u, v):
    u = weight(24, 20, 1, 1) if u is None else weight(*u)
    v = weight(16, 24, 3, 3) if v is None else weight(*v)
    mix = RNG.standard_normal((5, 20))
    shape = (*x[:1], *x[2:], 5)
    data = np.moveaxis(RNG.standard_normal(shape) @ mix, -1, 1).astype(np.float32)
    constants = {"u": u, "v": v, "c": weight(24)}
    model = parse_model(before, inputs={"x": data}, constants=constants)
    expected, ops = run(model, {"x": data})["y"], operators(model)
    edits, ctx = factor(model, NARROW, samples=draws(data))
    assert edits == 1
    assert "narrowed from 24 to 6" in ctx.notes[0]  # five directions and the bias
    assert operators(model) == ops
    assert relative(expected, run(model, {"x": data})["y"]) < 1e-4
    assert NARROW.run(model, Context(model, samples=draws(data))) == 0


def test_a_residual_stream_is_narrowed_as_a_whole():
    text = """
        a = MatMul(x, u)
        b = MatMul(a, v)
        r = Relu(b)
        d = MatMul(r, w)
        s = Add(a, d)
        y = MatMul(s, v)
    """
    constants = {"u": weight(20, 24, rank=3), "v": weight(24, 12), "w": weight(12, 24, rank=3)}
    text = text.replace("y = MatMul(s, v)", "y = MatMul(s, z)")
    constants["z"] = weight(24, 8)
    data = RNG.standard_normal((64, 20)).astype(np.float32)
    model = parse_model(text, inputs={"x": data}, constants=constants)
    expected = run(model, {"x": data})["y"]
    edits, _ = factor(model, NARROW, samples=draws(data))
    assert edits == 1
    assert relative(expected, run(model, {"x": data})["y"]) < 1e-4
    assert max(max(v.shape) for v in model.graph.initializers.values()) <= 20


@pytest.mark.parametrize(
    "text",
    [
        "a = MatMul(x, u)  b = Relu(a)  y = MatMul(b, v)",
        "a = MatMul(x, u)  z = Relu(a)  y = MatMul(a, v)",
    ],
)
def test_activations_that_others_read_are_not_narrowed(text):
    constants = {"u": weight(20, 24, rank=3), "v": weight(24, 12)}
    data = RNG.standard_normal((64, 20)).astype(np.float32)
    model = parse_model(text, inputs={"x": data}, constants=constants)
    assert factor(model, NARROW, samples=draws(data))[0] == 0
