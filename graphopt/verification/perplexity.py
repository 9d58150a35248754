"""Perplexity and greedy agreement of language models: evaluations that need no code.

    perplexity(f) = exp(-1/n sum_t log p_f(x_t | x_1 ... x_{t-1}))
    greedy(f)     = mean over prompts of (tokens that f writes as the source does) / (all written)

Both are told with higher as better: perplexity is negative. Logits are reduced row by row, so that
no more than those of one run are held.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.budget import TOKEN_METRICS, Budget
from graphopt.errors import UsageError
from graphopt.execution.runtime import opened
from graphopt.samples import Samples
from graphopt.samples.tokens import MASK, TokenModel, token_model

__all__ = ["bound"]

Array = np.ndarray[Any, Any]
Predict = Callable[[Mapping[str, Array]], Mapping[str, Array]]

#: Elements of logits that are worked on at a time.
PART = 1 << 22
#: Prompts that are continued, and the most tokens that are written after each.
PROMPTS, NEW = 32, 32


def bound(budget: Budget, model: ir.Model, samples: Samples | None) -> Budget:
    """The budget with its built-in evaluation, if it names one, as a function on these samples.

    Raises:
        UsageError: there are no samples, or the model takes no tokens.
    """
    name = budget.evaluate
    if name not in TOKEN_METRICS:
        return budget
    if samples is None:
        raise UsageError(f"--eval {name} judges on tokens: give them with --samples tokens.npz")
    form = token_model(model)
    if form is None or (form.fixed and form.caches):
        raise UsageError(
            f"--eval {name} is for models of tokens: ids in (input_ids, perhaps attention_mask, "
            "position_ids and caches of open length), logits of every token out"
        )
    if name == "perplexity":

        def perplexity(predict: Predict) -> float:
            return -_perplexity(predict, form, samples)

        return dataclasses.replace(budget, evaluate=perplexity)
    written: list[tuple[Array, int, int]] = []

    def greedy(predict: Predict) -> float:
        if not written:
            with opened(model) as source:
                written.extend(_continued(source, form, samples))
        return _agreement(predict, form, written)

    return dataclasses.replace(budget, evaluate=greedy)


def _perplexity(
    predict: Predict, form: TokenModel, samples: Iterable[Mapping[str, Array]]
) -> float:
    total, count = 0.0, 0
    for feed in samples:
        for logits, targets in _scored(predict, form, feed):
            total += _cross_entropy(logits, targets)
            count += len(targets)
    if not count:
        raise UsageError("--eval perplexity: no row of the samples has two tokens")
    return math.exp(min(total / count, 700.0))


def _scored(
    predict: Predict, form: TokenModel, feed: Mapping[str, Array]
) -> Iterator[tuple[Array, Array]]:
    """Logits [n, vocabulary] and the tokens [n] that came after, padding left out."""
    ids, kept = feed[form.ids], _kept(feed, form)
    if form.fixed:
        valid = kept[:, 1:] & kept[:, :-1]
        yield predict(feed)[form.logits][:, :-1][valid], ids[:, 1:][valid]
        return
    for row in _rows(ids, kept):
        at = 1
        for logits in form.stream(predict, row):
            targets = row[0, at : at + len(logits)]
            at += len(logits)
            yield logits[: len(targets)], targets


def _kept(feed: Mapping[str, Array], form: TokenModel) -> Array:
    """Which tokens are none of padding, bool [batch, sequence]."""
    ids = feed[form.ids]
    mask = feed.get(MASK)
    return np.ones(ids.shape, bool) if mask is None or mask.shape != ids.shape else mask > 0


def _rows(ids: Array, kept: Array) -> Iterator[Array]:
    """Each row [1, length] without its padding."""
    return (row[valid][None] for row, valid in zip(ids, kept, strict=True) if valid.any())


def _cross_entropy(logits: Array, targets: Array) -> float:
    """Sum of -log softmax(logits) [n, vocabulary] at `targets` [n]."""
    total, step = 0.0, max(1, PART // logits.shape[-1])
    for at in range(0, len(targets), step):
        part = logits[at : at + step].astype(np.float32)
        part -= part.max(axis=1, keepdims=True)
        chosen = np.take_along_axis(part, targets[at : at + step, None], 1)
        sums = np.exp(part, out=part).sum(axis=1, dtype=np.float64)
        total += float(np.log(sums).sum() - chosen.sum(dtype=np.float64))
    return total


def _continued(
    predict: Predict, form: TokenModel, samples: Iterable[Mapping[str, Array]]
) -> Iterator[tuple[Array, int, int]]:
    """Rows [1, length], of which the model wrote the tokens from `start` to `end`."""
    found = 0
    for feed in samples:
        ids = feed[form.ids]
        for row in _rows(ids, _kept(feed, form)):
            if form.fixed and row.shape[1] < ids.shape[1]:
                continue
            start = row.shape[1] // 2
            end = min(row.shape[1], start + NEW)
            if start and found < PROMPTS:
                found += 1
                yield form.write(predict, row, start, end), start, end
    if not found:
        raise UsageError("--eval greedy: no row of the samples has two tokens")


def _agreement(
    predict: Predict, form: TokenModel, written: Iterable[tuple[Array, int, int]]
) -> float:
    """The share of the written tokens up to the first that `predict` would not write."""
    shares = []
    for row, start, end in written:
        best = np.concatenate([part.argmax(axis=-1) for part in form.stream(predict, row)])
        same = best[start - 1 : end - 1] == row[0, start:end]
        shares.append(float(np.minimum.accumulate(same).mean()))
    return float(np.mean(shares))
