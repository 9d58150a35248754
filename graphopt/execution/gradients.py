"""Gradients: how a model's loss moves with its weights and activations, by backward passes.

At its own weights a model's divergence from itself is least, so the first derivative of that
divergence is zero there, for any sample, and says nothing. What says something is

    own     the loss of labels that are given or, without any, of the model's own answers: the
            class it finds likeliest. Its gradient is not zero, and tells what the answer rests on
    drawn   the loss of labels y drawn from the model's own softmax p. Its mean gradient is zero and
            its mean square is the Fisher matrix, which is the second derivative of the divergence:

                KL(p(z) || p(z + dz)) = 1/2 dz^T F dz + ...,   F = E_y[g g^T],  g = d(-log p_y)/dz

            Outputs that are no class scores are compared by squares instead, |dy|^2 / (2 s^2) with
            s^2 their variance. Their loss is <r, y> / s with r drawn from N(0, 1), and E_r[g g^T]
            is that divergence's Gauss-Newton matrix J^T J / s^2.

Draws for different rows are independent with mean zero, so that for the sum over a batch

    E[(g_1 + ... + g_n)(g_1 + ... + g_n)^T] = F_1 + ... + F_n

and one backward pass per small batch suffices.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt.errors import SamplesError, UsageError
from graphopt.execution.observe import with_outputs
from graphopt.execution.runtime import Arrays
from graphopt.execution.trainable import trainable

if TYPE_CHECKING:
    import torch

__all__ = ["LABEL", "Step", "backward"]

Array = np.ndarray[Any, Any]
#: Name of the labels in a sample, beside the inputs: integer classes of the first class scores.
LABEL = "label"
#: Rows of a batch, where the model takes any number.
ROWS = 4
_SCORES = re.compile(r"logit|score|prob|class", re.I)


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One backward pass. Arrays are valid until the next step.

    Attributes:
        loss: the sum of the rows' losses.
        rows: rows it went over.
        weights: by initializer, d loss / d weight.
        values: by name of each value asked for, what it was and d loss / d value.
    """

    loss: float
    rows: int
    weights: dict[str, Array]
    values: dict[str, tuple[Array, Array]]


def backward(
    model: ir.Model,
    samples: Iterable[Arrays],
    *,
    loss: Literal["own", "drawn"],
    seed: int = 0,
    values: Sequence[str] = (),
) -> Iterator[Step]:
    """One backward pass for every few rows of `samples`.

    Args:
        model: with at least one float output. It is not changed.
        samples: inputs by name and, for `loss="own"`, perhaps labels under "label".
        loss: see above.
        seed: of the draws.
        values: names of values of the main graph whose gradients are wanted too.

    Raises:
        MissingExtra: torch is not installed.
        ModelError: the model has operators that the torch backend does not know.
        UsageError: no output is of floats that weights have an influence on.
        SamplesError: labels that do not fit the scores.
    """
    import torch

    outputs = len(model.graph.outputs)
    exposed = with_outputs(model, values)
    module = trainable(exposed)
    places = {o.name: k for k, o in enumerate(exposed.graph.outputs)}
    inputs = [v for v in model.graph.inputs if not v.is_initializer()]
    names = [v.name or "" for v in inputs]
    scored = [_scores(v) for v in model.graph.outputs]
    known = module.meta["graphopt.parameters"]
    parameters = {known[path].name: p for path, p in module.named_parameters() if path in known}
    random = torch.Generator().manual_seed(seed)
    scales: dict[int, float] = {}
    for feeds in samples:
        for part, count in _parts(feeds, inputs):
            given = [torch.from_numpy(np.array(part[n])) for n in names]
            made = list(module(*given))
            seen = {n: made[places[n]] for n in values if made[places[n]].requires_grad}
            for v in seen.values():
                v.retain_grad()
            label = part.get(LABEL) if loss == "own" else None
            total = _loss(made[:outputs], scored, label, loss, random, scales)
            module.zero_grad(set_to_none=True)
            total.backward()
            yield Step(
                float(total.detach()),
                count,
                {n: p.grad.numpy() for n, p in parameters.items() if p.grad is not None},
                {
                    n: (v.detach().numpy(), v.grad.numpy())
                    for n, v in seen.items()
                    if v.grad is not None
                },
            )


def _parts(feeds: Arrays, inputs: Sequence[ir.Value]) -> Iterator[tuple[dict[str, Array], int]]:
    """Some rows at a time, where all inputs have a free first axis of one size; else all."""
    sizes = {len(feeds[v.name or ""]) if np.ndim(feeds[v.name or ""]) else 0 for v in inputs}
    free = all(
        v.shape is not None and len(v.shape) and not isinstance(v.shape[0], int) for v in inputs
    )
    if len(sizes) != 1 or not free:
        first = feeds[inputs[0].name or ""] if inputs else np.zeros(1)
        yield dict(feeds), len(first) if np.ndim(first) else 1
        return
    (total,) = sizes
    for at in range(0, total, ROWS):
        yield {k: a[at : at + ROWS] for k, a in feeds.items()}, min(ROWS, total - at)


def _scores(value: ir.Value) -> bool:
    """Whether an output looks like scores of classes along its last axis."""
    rank = len(value.shape) if value.shape is not None else 0
    return rank == 2 or bool(rank > 2 and _SCORES.search(value.name or ""))


def _loss(
    outputs: Sequence[torch.Tensor],
    scored: Sequence[bool],
    label: Array | None,
    kind: str,
    random: torch.Generator,
    scales: dict[int, float],
) -> torch.Tensor:
    """The sum over rows and outputs."""
    import torch

    terms = []
    for k, (y, scores) in enumerate(zip(outputs, scored, strict=True)):
        if not (isinstance(y, torch.Tensor) and y.is_floating_point() and y.requires_grad):
            continue
        if not scores or y.shape[-1] < 2:
            if k not in scales:
                scales[k] = max(float(y.detach().std(unbiased=False)), 1e-12)
            terms.append((torch.randn(y.shape, generator=random) * y).sum() / scales[k])
            continue
        z = _logits(y).reshape(-1, y.shape[-1])
        if label is not None:
            target = torch.from_numpy(np.array(label, np.int64).reshape(-1))
            if len(target) != len(z) or int(target.max()) >= z.shape[1] or int(target.min()) < 0:
                raise SamplesError(
                    f"'{LABEL}' holds {len(target)} classes up to {int(target.max())}: the scores "
                    f"are {len(z)} rows of {z.shape[1]}"
                )
            label = None  # of the first scores alone
        elif kind == "own":
            target = z.detach().argmax(1)
        else:
            target = torch.multinomial(z.detach().softmax(1), 1, generator=random)[:, 0]
        terms.append(torch.nn.functional.cross_entropy(z, target, reduction="sum"))
    if not terms:
        raise UsageError(
            "no output of the model is of floats that its weights have an influence on"
        )
    return torch.stack(terms).sum()


def _logits(y: torch.Tensor) -> torch.Tensor:
    """Scores whose softmax is p: `y`, or log y where it is a probability already."""
    held = y.detach()
    if bool((held >= 0).all()) and bool(((held.sum(-1) - 1).abs() < 1e-3).all()):
        return y.clamp_min(1e-12).log()
    return y
