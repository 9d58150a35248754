import numpy as np
import pytest
from graphopt.passes.prune.least_squares import Gram
from graphopt.passes.prune.rectified import SWEEPS, Rows, fit_rectified, sloped_range

from graphopt.testing import parse_model


def setting(*, low=0.0, high=np.inf, known=False, shift=True, count=4000):
    """Targets that 7 features and a switch make, the switch lost, and the fit before any sweep.

    What the switch does is mostly on the flat side of the activation.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2 * count, 7)) @ rng.standard_normal((7, 7)) / 3
    w = rng.standard_normal((7, 5))
    push = 6 if np.isinf(low) else -6
    y = (x @ w + push * (rng.random((2 * count, 1)) < 0.3)).astype(np.float32)
    term = rng.standard_normal((2 * count, 5)).astype(np.float32) if known else 0 * y
    f = x.astype(np.float32)
    parts = [
        Rows(f[None, s], (y + term)[None, s], term[None, s], 0.8)
        for s in (slice(0, count), slice(count, None))
    ]
    gram = Gram(1, 7, 5, shift=shift)
    gram.add(parts[0].features, parts[0].wanted - parts[0].known, 0.8)
    weight, bias, _ = gram.fit(w.T[None], np.zeros(5) if shift else None)

    def error(part, weight, bias):
        got = part.features @ weight.transpose(0, 2, 1) + (0 if bias is None else bias) + part.known
        return np.square(np.clip(got, low, high) - np.clip(part.wanted, low, high)).sum()

    return parts, gram, weight, bias, error


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("low", "high"), [(0.0, np.inf), (0.0, 2.0), (-np.inf, 0.5)])
def test_less_error_behind_the_activation_on_rows_never_seen(low, high, known, shift):
    (seen, fresh), gram, weight, bias, error = setting(low=low, high=high, known=known, shift=shift)
    better = fit_rectified(gram, lambda: [seen], weight, bias, (low, high))
    assert error(seen, *better) < 0.96 * error(seen, weight, bias)
    assert error(fresh, *better) < 0.96 * error(fresh, weight, bias)
    assert (better[1] is None) == (not shift)


def test_no_sweep_makes_it_worse_and_all_together_end():
    (seen, _), gram, weight, bias, error = setting()
    errors = []

    def rows():
        yield seen
        errors.append(len(errors))

    better = fit_rectified(gram, rows, weight, bias, (0.0, np.inf))
    assert error(seen, *better) <= error(seen, weight, bias)
    assert 2 <= len(errors) <= SWEEPS


def test_without_a_flat_side_it_stays_the_least_squares_fit():
    (seen, _), gram, weight, bias, _ = setting()
    same = fit_rectified(gram, lambda: [seen], weight, bias, (-np.inf, np.inf))
    np.testing.assert_allclose(same[0], weight, atol=1e-4)
    np.testing.assert_allclose(same[1], bias, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = Identity (x)  y = Relu (a)", (0.0, np.inf)),
        ("a = Identity (x)  y = Clip (a, low, high)", (-1.0, 6.0)),
        ("a = Identity (x)  y = Clip (a, , high)", (-np.inf, 6.0)),
        ("a = Identity (x)  b = Relu (a)  c = Relu (a)  y = Add (b, c)", (0.0, np.inf)),
        ("a = Identity (x)  b = Relu (a)  y = Add (a, b)", None),
        ("a = Identity (x)  y = Sigmoid (a)", None),
        ("a = Identity (x)  l = ReduceMin (x)  y = Clip (a, l)", None),
        ("y = Identity (x)", None),
    ],
)
def test_the_range_in_which_readers_see_a_value(text, expected):
    model = parse_model(
        text,
        inputs={"x": (2, 3)},
        constants={"low": np.float32(-1.0), "high": np.float32(6.0)},
    )
    assert sloped_range(next(iter(model.graph)).outputs[0]) == expected
