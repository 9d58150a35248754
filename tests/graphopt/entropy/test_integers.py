"""Integers by contexts: any come back; structure pays; damage is an error, not a crash."""

import numpy as np
import pytest

from graphopt.entropy.contexts import lean_of
from graphopt.entropy.integers import (
    TAPS,
    Rounded,
    bits_taken,
    counts_of,
    pack_integers,
    steps_of,
    tables_of,
    unpack_integers,
)
from graphopt.errors import ModelError
from graphopt.varint import encode_varint

pytest.importorskip("constriction")


def tensor(q, taps=9, turned=False, seed=0):
    rng = np.random.default_rng(seed)
    rows, columns = q.shape
    row, column = (rng.integers(0, 9, n).astype(np.uint8) for n in (rows, -(-columns // taps)))
    return Rounded(q.astype(np.int32), np.float32(0.013), row, column, taps, turned)


def coded(one):
    tables = tables_of([counts_of(one)])
    return pack_integers([one], tables), tables


def back(data, one, tables):
    return unpack_integers(memoryview(data), 4 * one.q.size, tables)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (7, 5), (64, 72), (33, 100)])
@pytest.mark.parametrize("taps", [1, 8, 9])
@pytest.mark.parametrize("scale", [0.0, 0.4, 3.0, 9000.0, 1e6])
@pytest.mark.parametrize("turned", [False, True])
def test_any_integers_come_back(shape, taps, scale, turned):
    if taps > 8 * shape[1]:
        pytest.skip("more filling than tensor")
    q = np.rint(np.random.default_rng(1).standard_normal(shape) * scale)
    one = tensor(q, taps, turned)
    data, tables = coded(one)
    assert back(data, one, tables) == one.values().tobytes()


def structured(rows=128, groups=96, taps=9):
    rng = np.random.default_rng(2)
    scale = [np.exp(rng.standard_normal(s) * 0.6) for s in ((rows, 1, 1), (1, groups, 1))]
    w = rng.standard_normal((rows, groups, taps)) * scale[0] * scale[1] * 0.5
    return np.rint(w).reshape(rows, -1)


def entropy(q):
    shares = np.unique(q, return_counts=True)[1] / q.size
    return float(-(shares * np.log2(shares)).sum())


def test_rows_and_columns_of_different_size_cost_less_than_their_entropy():
    q = structured()
    one = tensor(q)
    flat = Rounded(one.q, one.step, 0 * one.row, 0 * one.column, 9, False)
    assert 8 * len(coded(flat)[0]) / q.size < 0.9 * entropy(q)


def test_smooth_kernels_cost_less_by_their_signs():
    rng = np.random.default_rng(4)
    rough = rng.laplace(size=(64, 64, 3, 3))
    smooth = rough.copy()
    smooth[:, :, 1:] += 0.7 * smooth[:, :, :-1]
    smooth[..., 1:] += 0.7 * smooth[..., :-1]
    mixed = np.abs(smooth) * np.sign(rng.standard_normal(smooth.shape))
    bits = []
    for w in (smooth, mixed):
        one = tensor(np.rint(w / w.std()).reshape(64, -1))
        counts = counts_of(one)
        bits.append(bits_taken(counts, tables_of([counts])) / one.q.size)
    assert bits[0] < bits[1] - 0.07


def test_signs_lean_to_those_of_known_taps_above_all_of_those_beside():
    taps = [np.array(v, np.int8) for v in ([4, -9], [1, -2], [-2, 1], [0, 3])]
    assert lean_of(taps[:1], 9).tolist() == [0, -1]
    # 3 x 3: beside the fourth and fifth of nine are the first two
    assert lean_of(taps[:3], 9).tolist() == [0, -1]
    # a row: beside the fourth is the third alone
    assert lean_of(taps[:3], 8).tolist() == [-1, -1]
    assert lean_of([taps[0], taps[3]], 8).tolist() == [0, 0]  # 4 and -9 + 3 * 3


def test_the_values_are_products_of_exact_steps():
    levels = np.arange(0, 60, dtype=np.uint8)
    made = steps_of(np.float32(0.75), levels)
    assert (made[::4] == np.float32(0.75) * 2.0 ** np.arange(15)).all()
    assert (np.abs(made / (0.75 * 2.0 ** (levels / 4.0)) - 1) < 1e-6).all()


def test_damaged_streams_that_pass_for_whole_are_errors_or_integers():
    """What a checksum would catch: the decoder itself neither crashes nor grows."""
    one = tensor(structured(24, 12))
    data, tables = coded(one)
    rng = np.random.default_rng(3)
    for _ in range(200):
        bad = bytearray(data)
        for at in rng.integers(0, len(bad), 3):
            bad[at] = int(rng.integers(256))
        try:
            assert len(back(bytes(bad), one, tables)) == 4 * one.q.size
        except ModelError as error:
            assert str(error)  # noqa: PT017


def test_tensors_of_a_chunk_are_coded_together():
    rng = np.random.default_rng(6)
    shapes = [(7, 30, 9), (1, 17, 8), (20, 12, 3), (5, 40, 8), (3, 49, 49), (9, 4, 1), (2, 9, 9)]
    whole = [
        tensor(np.rint(rng.laplace(size=(r, c)) * rng.integers(0, 9)), taps, k % 2 == 1, k)
        for k, (r, c, taps) in enumerate(shapes)
    ]
    counts = [counts_of(t) for t in whole]
    tables = tables_of(counts)
    data = pack_integers(whole, tables)
    expected = b"".join(t.values().tobytes() for t in whole)
    assert bytes(unpack_integers(memoryview(data), len(expected), tables)) == expected
    bits = sum(bits_taken(c, tables) for c in counts)
    assert bits / 8 < len(data) < bits / 8 + 8 * len(whole) + 12


def test_a_tensor_has_the_same_bits_whatever_is_beside_it():
    """What is known of a symbol is of its own tensor: trials are told bits without a coder."""
    q = np.rint(np.random.default_rng(7).laplace(size=(40, 64)))
    one, other = tensor(q, 8), tensor(2 * q[:9, :45], 9)
    counts = [counts_of(one), counts_of(other)]
    tables = tables_of(counts)
    both, alone = (len(pack_integers(t, tables)) for t in ([one, other], [one]))
    assert both - alone == pytest.approx(bits_taken(counts[1], tables) / 8, abs=12)


@pytest.mark.parametrize("taps", [0, TAPS + 1, 500])
def test_shapes_that_no_tensor_has_are_refused(taps):
    one = tensor(np.ones((4, 9)))
    data, tables = coded(one)
    head = encode_varint(1) + encode_varint(2 * taps)
    assert data[:2] == bytes([1, 18])
    with pytest.raises(ModelError, match="another size"):
        back(head + data[2:], one, tables)
