"""Reduced-rank regression: what given features of the inputs tell of the outputs.

Given features F of x the best linear map from x F to the outputs, of rank r at most, has a closed
form (Izenman 1975): Q = (FᵀC F)⁻¹ FᵀC M, followed by the principal basis V of the fitted outputs:
M̂ = F Q V Vᵀ. Without samples C = I.
"""

from __future__ import annotations

import numpy as np
from graphopt.passes.svd.layers import Array
from graphopt.passes.svd.spectrum import orthonormal, product, root, symmetric
from graphopt.passes.svd.stages import Problem

__all__ = ["Seen", "spanned"]


class Seen:
    """What features x F, F [K, n] orthonormal, tell of x M: by leading features, all at once.

    With FᵀC F = R Rᵀ and Z = R⁻¹ FᵀC M [n, N], the first k features explain the outputs' covariance
    Z[:k]ᵀ Z[:k], so the error of k features is 1 - ‖Z[:k]‖² and what rank r of them keeps is the
    sum of the first r eigenvalues of that covariance.
    """

    def __init__(self, problem: Problem, features: Array) -> None:
        self.features = features
        self._root: Array | None = None
        if problem.covariance is None:  # features are orthonormal, so R = I
            self._z = product(problem.matrix.T, features).T
        else:
            across = problem.covariance @ features
            target = product(problem.matrix.T, across).T
            self._root = root(_regular(features.T @ across))
            self._z = np.linalg.solve(self._root, target)
        self._total = problem.spectrum.total
        self._kept = np.concatenate([[0.0], np.square(self._z).sum(1).cumsum()])

    def error(self, count: int) -> float:
        """Relative squared error of the first `count` features."""
        return max(1 - float(self._kept[count]) / self._total, 0.0)

    def fit(self) -> Array:
        """The map Q [n, N] from all features to the outputs."""
        if self._root is None:
            return self._z
        fitted: Array = np.linalg.solve(self._root.T, self._z)
        return fitted

    def truncation(self, count: int) -> Array:
        """Relative squared error of the first `count` features at output ranks 0 ... N."""
        part = self._z[:count]
        energies = np.maximum(np.linalg.eigvalsh(part.T @ part)[::-1], 0.0)
        kept = np.concatenate([[0.0], energies.cumsum()])
        return np.maximum(1 - kept / self._total, 0.0)

    def basis(self, rank: int) -> Array:
        """The first principal directions [N, rank] of the outputs that all features explain."""
        return symmetric(self._z.T @ self._z)[1][:, :rank]


def spanned(unfolded: Array, covariance: Array | None, rank: int) -> Array:
    """The rank-r column space of the best approximation to `unfolded` under this covariance.

    With Lᵀ M = U S Vᵀ it is that of M V_r = C⁻¹L U_r S: found from the eigenvectors of M Mᵀ C
    without inverting anything.
    """
    inner = unfolded @ unfolded.T
    if covariance is None:
        return symmetric(inner)[1][:, :rank]
    chol = root(_regular(covariance))
    _, left = symmetric(chol.T @ inner @ chol)
    return orthonormal(inner @ (chol @ left[:, :rank]))


def _regular(covariance: Array) -> Array:
    """The matrix plus 1e-12 of its mean diagonal: positive definite to float64."""
    size = len(covariance)
    return covariance + np.eye(size) * (1e-12 * float(np.trace(covariance)) / size + 1e-30)
