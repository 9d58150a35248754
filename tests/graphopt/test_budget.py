import pytest

from graphopt import Budget, Limit
from graphopt.errors import UsageError


@pytest.mark.parametrize(
    ("text", "kind", "source", "limit"),
    [
        ("10MB", "size", 1, 10e6),
        ("10 MiB", "size", 1, 10 * 2**20),
        ("0.3x", "size", 100, 30),
        ("5ms", "latency", 1, 5),
        ("250us", "latency", 1, 0.25),
        ("0.5x", "latency", 8, 4),
    ],
)
def test_limits_are_read_with_their_units(text, kind, source, limit):
    assert Limit.parse(text, kind).resolve(source) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("10", "size"), ("x", "size"), ("5ms", "size"), ("-1MB", "size"), ("0x", "size")],
)
def test_anything_else_is_refused_with_an_example(text, kind):
    with pytest.raises(UsageError, match="write for example 10MB or"):
        Limit.parse(text, kind)


def test_a_drop_needs_a_metric():
    with pytest.raises(UsageError, match="--eval"):
        Budget(max_drop=1.0)


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_limit_is_a_number_from_zero_on(value):
    with pytest.raises(UsageError, match="--max-error"):
        Budget(max_error=value)


def test_it_is_shown_in_full_digits():
    assert repr(Budget(max_size="1.5MB", max_latency="0.5x")) == (
        "Budget(max_size='1500000B', max_latency='0.5x')"
    )
    assert str(Limit(123456789.0)) == "123456789"
