"""Singular spectrum of a layer: what each rank keeps of its output, and the basis that keeps it.

With M [K, N] and the covariance C = L Lᵀ of its inputs (L = I without samples), the rank-r matrix
nearest in output error E‖x M - x M̂‖² = ‖Lᵀ(M - M̂)‖² is M V Vᵀ, where V [N, r] holds the first
right singular vectors of Lᵀ M, and its error is the sum of the discarded squared singular values
(Eckart and Young 1936; whitened as in Chen et al. 2021, "DRONE", and Wang et al. 2024, "SVD-LLM").
V is also the principal basis of the *outputs*, since MᵀC M is their covariance. So nothing is ever
inverted, which makes a singular C harmless, and the factors are A = M V and B = Vᵀ.

Small sides (up to `LARGE`) are decomposed exactly, from the Gram matrix of the smaller side in
float64. Larger ones, of which only ranks that save at least a quarter are sought, go through
scikit-learn's randomized SVD (Halko, Martinsson and Tropp 2011, algorithm 4.4 with power
iterations), at growing width until the rank asked for is inside or the
energy left proves that it is too large to be of use. Error bounds there: the error of each rank is
known exactly afterwards, by Pythagoras, as ‖T‖² minus the captured energy. With width l = r + p and
no power iteration its expectation is at most (1 + r / (p - 1)) times the optimum (their theorem
10.5); each power iteration shrinks the excess by (σ_{l+1} / σ_r)⁴ or more.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from graphopt.passes.svd.layers import Array

__all__ = [
    "LARGE",
    "Spectrum",
    "decompose",
    "gram",
    "orthonormal",
    "product",
    "root",
    "symmetric",
]

#: Smaller sides above this are decomposed at random.
LARGE = 2048
#: Multiplications by T and Tᵀ, and columns beyond the rank, that the randomized SVD spends.
POWER, OVERSAMPLES = 4, 16
#: Rows of a weight that are held in float64 at once.
BLOCK = 2048


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Squared singular values of Lᵀ M, largest first, and one side's vectors.

    Attributes:
        energies: as many squared singular values as are known.
        total: the sum of all of them, ‖Lᵀ M‖².
        vectors: right singular vectors [N, k] if `right`, else L U [K, k] with U the left ones.
        right: which of the two `vectors` holds.
    """

    energies: Array
    total: float
    vectors: Array
    right: bool

    def errors(self) -> Array:
        """Relative squared output error at ranks 0, 1, ..., len(energies)."""
        left = self.total - np.concatenate([[0.0], np.cumsum(self.energies)])
        return np.maximum(left, 0.0) / max(self.total, 1e-300)

    def basis(self, matrix: Array, rank: int) -> Array:
        """V [N, rank], orthonormal, in float64."""
        first = self.vectors[:, :rank].astype(np.float64)
        if self.right:
            return first
        # V = Mᵀ L U / σ; where σ is small, rounding has spoilt its angles
        lifted = product(matrix.T, first)
        if rank and self.energies[rank - 1] > 1e-6 * self.energies[0]:
            return lifted / np.sqrt(self.energies[:rank])
        return orthonormal(lifted)


def decompose(
    matrix: Array,
    *,
    chol: Array | None = None,
    outputs: Array | None = None,
    wanted: float | None = None,
    useful: int = 1 << 62,
    seed: int = 0,
) -> Spectrum:
    """The spectrum of Lᵀ M.

    Args:
        matrix: M [K, N].
        chol: L [K, K], lower triangular, or None for the identity.
        outputs: the outputs' covariance [N, N] instead of L.
        wanted: the energy (0 to 1) some rank has to keep; lets a randomized search stop early.
        useful: ranks from here on save nothing, so they need not be found.
        seed: seeds the randomized SVD.
    """
    rows, columns = matrix.shape
    if outputs is not None:
        if columns > LARGE and _sklearn() is not None:
            return _randomized(outputs, wanted, min(useful * 3 // 4, columns), seed, squared=True)
        return _right(outputs)
    if min(rows, columns) > LARGE and _sklearn() is not None:
        target = matrix if chol is None else chol.T.astype(np.float32) @ matrix
        return _randomized(target, wanted, min(useful * 3 // 4, rows, columns), seed)
    if columns <= rows:
        return _right(gram(matrix) if chol is None else _whitened(matrix, chol))
    inner = gram(matrix.T)
    if chol is not None:
        inner = chol.T @ inner @ chol
    values, vectors = symmetric(inner)
    lifted = vectors if chol is None else chol @ vectors
    return Spectrum(values, float(np.trace(inner)), lifted.astype(np.float32), right=False)


def gram(matrix: Array) -> Array:
    """MᵀM in float64, a block of rows at a time."""
    size = matrix.shape[1]
    total = np.zeros((size, size))
    for start in range(0, matrix.shape[0], BLOCK):
        block = np.asarray(matrix[start : start + BLOCK], np.float64)
        total += block.T @ block
    return total


def symmetric(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues, largest first and not below zero, and eigenvectors of a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]


def root(matrix: Array) -> Array:
    """Lower triangular L with L Lᵀ = C, for C positive definite up to rounding."""
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        values, vectors = symmetric(matrix)
        floor = max(1e-7 * float(values[0]), 1e-300)
        half = vectors * np.sqrt(np.maximum(values, floor))
        upper = np.asarray(np.linalg.qr(half.T, mode="r"))
        return upper.T


def orthonormal(columns: Array) -> Array:
    """An orthonormal basis of what the columns span, in their order."""
    scale = np.linalg.norm(columns, axis=0)
    basis: Array = np.linalg.qr(columns / np.maximum(scale, 1e-300))[0]
    return basis


def _whitened(matrix: Array, chol: Array) -> Array:
    return gram(chol.T @ matrix.astype(np.float64))


def _right(outputs: Array) -> Spectrum:
    values, vectors = symmetric(outputs)
    return Spectrum(values, float(np.trace(outputs)), vectors.astype(np.float32), right=True)


def product(a: Array, b: Array) -> Array:
    """a b in float64, a block of rows of `a` at a time."""
    out = np.empty((a.shape[0], b.shape[1]))
    for start in range(0, a.shape[0], BLOCK):
        out[start : start + BLOCK] = a[start : start + BLOCK].astype(np.float64) @ b
    return out


def _randomized(
    target: Array, wanted: float | None, useful: int, seed: int, *, squared: bool = False
) -> Spectrum:
    """By randomized SVD of `target` (T, or TᵀT if `squared`), at growing width."""
    limit = min(target.shape)
    if squared:
        total = float(np.trace(target))
    else:
        total = sum(
            float(np.square(target[i : i + BLOCK], dtype=np.float64).sum())
            for i in range(0, target.shape[0], BLOCK)
        )
    width = min(256 if wanted is not None else limit // 4, useful)
    while True:
        _, values, rows = _sklearn()(
            target,
            n_components=width,
            n_oversamples=OVERSAMPLES,
            n_iter=POWER,
            random_state=seed,
        )
        energies = np.asarray(values, np.float64) ** (1 if squared else 2)
        found = Spectrum(energies, total, rows.T.astype(np.float32), right=True)
        missing = (wanted or 0.0) * total - float(energies.sum())
        # every further singular value is at most the last one found
        needed = width + missing / max(float(energies[-1]), 1e-300)
        if missing <= 0 or needed >= useful or width >= useful:
            return found
        width = min(max(2 * width, int(needed)), useful)


def _sklearn() -> Any:
    """scikit-learn's randomized SVD, or None where it is not installed."""
    try:
        from sklearn.utils.extmath import randomized_svd
    except ImportError:
        return None
    return randomized_svd
