"""Losses: how far a student's outputs are from the original's, whatever the outputs mean.

    kl         T^2 KL(softmax(t / T) || softmax(s / T)), mean over rows     (Hinton et al., 2015)
    mse        mean (s - t)^2 / var(t)
    features   mean (s - t)^2 / var(t) over intermediate tensors, beside the outputs' own loss
    labels     cross-entropy for integer labels, mse for others

Losses of several outputs are averaged. Of tensors that have a row per token only the tokens that a
mask among the inputs leaves count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphopt.training.batches import Batch, Batches

if TYPE_CHECKING:
    import torch

__all__ = ["Criterion", "Kind", "counted", "kinds_of", "untrainable"]

Array = np.ndarray[Any, Any]
#: What an output holds: unnormalized or normalized class scores, numbers, or nothing to learn from.
Kind = Literal["logits", "probabilities", "values", "none"]
TEMPERATURE = 2.0
#: Bytes of outputs that are looked at to tell what they are.
ENOUGH = 1 << 26


@dataclasses.dataclass(frozen=True)
class Output:
    """What is known of one output of the original.

    Attributes:
        kind: what it holds.
        variance: of its values.
        mask: which input of the model holds ones for the tokens that count, where all axes but the
            last are those of tokens; None: all count.
    """

    kind: Kind
    variance: float
    mask: int | None = None


def kinds_of(targets: Iterable[Sequence[Array]], loss: str) -> list[Output]:
    """What each output of the original holds, told from its values.

    Class probabilities are (rows, classes) or (rows, positions, classes) and add up to 1. Scores
    that are not normalized are compared as numbers, which recovers more than their softmax does
    (Kim et al., IJCAI 2021, and bench/results/recover.md), unless `loss` is "kl".
    """
    rows: list[list[Array]] = []
    seen = 0
    for arrays in targets:
        seen += sum(a.nbytes for a in arrays)
        if rows and seen > ENOUGH:
            break
        rows = rows or [[] for _ in arrays]
        for found, array in zip(rows, arrays, strict=True):
            found.append(array)
    return [_output(arrays, loss) for arrays in rows]


def _output(arrays: Sequence[Array], loss: str) -> Output:
    if arrays[0].dtype.kind != "f" or not all(np.isfinite(a).all() for a in arrays):
        return Output("none", 1.0)
    flat = np.concatenate([a.reshape(-1) for a in arrays]).astype(np.float64)
    variance = max(float(flat.var()), 1e-12)
    shape = arrays[0].shape
    if len(shape) not in (2, 3) or shape[-1] < 2 or loss == "mse":
        return Output("values", variance)
    scores = np.concatenate([a.reshape(-1, shape[-1]) for a in arrays]).astype(np.float64)
    if (scores >= 0).all() and np.allclose(scores.sum(-1), 1, atol=1e-3):
        return Output("probabilities", variance)
    return Output("logits" if loss == "kl" else "values", variance)


def untrainable(batches: Batches, outputs: Sequence[Output]) -> str:
    """Why there is nothing to train on, or ""."""
    if batches.steps == 0:
        return "one is held out, so it takes two samples at least"
    if all(o.kind == "none" for o in outputs):
        return "no output holds finite float values to learn from"
    return ""


class Criterion:
    """The loss of a batch.

    Args:
        outputs: of the original, in order; further outputs of the student are features.
        features: variance, per axis the indices of the original's tensor that are left, and the
            mask (as of an output), for each tensor after the outputs.
        labels: weight of the labels' loss where a batch has labels, in [0, 1].
    """

    def __init__(
        self,
        outputs: Sequence[Output],
        features: Sequence[tuple[float, dict[int, Array], int | None]] = (),
        labels: float = 0.5,
    ) -> None:
        self.outputs, self.features, self.labels = list(outputs), list(features), labels

    def __call__(self, got: tuple[Any, ...], batch: Batch) -> torch.Tensor:
        """Mean over the batch's rows."""
        n = len(self.outputs)
        terms = [
            _distance(*counted(s.float(), t.float(), one.mask, batch), one)
            for one, s, t in zip(self.outputs, got[:n], batch.targets[:n], strict=True)
            if one.kind != "none"
        ]
        total = sum(terms) / len(terms)
        if batch.label is not None:
            total = (1 - self.labels) * total + self.labels * self._label(got, batch.label)
        pairs = zip(self.features, got[n:], batch.targets[n:], strict=True)
        hints = [_hint(s.float(), t.float(), *one, batch) for one, s, t in pairs]
        return total + sum(hints) / len(hints) if hints else total

    def _label(self, got: tuple[Any, ...], label: torch.Tensor) -> Any:
        import torch.nn.functional as f

        known = [i for i, o in enumerate(self.outputs) if o.kind != "none"]
        classes = [
            i for i in known if got[i].numel() == label.numel() * got[i].shape[-1] > label.numel()
        ]
        if label.is_floating_point() or not classes:
            k = known[0]
            wanted = label.float().reshape(got[k].shape)
            return ((got[k].float() - wanted) ** 2).mean() / self.outputs[k].variance
        k = classes[0]
        scores = _log(got[k].float(), self.outputs[k].kind, 1.0)
        return f.nll_loss(scores.reshape(-1, scores.shape[-1]), label.reshape(-1).long())


def counted(
    s: torch.Tensor, t: torch.Tensor, mask: int | None, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [n, channels] of the tokens that count; all as they are where none would."""
    keep = None if mask is None else batch.inputs[mask].to(s.device).reshape(-1) != 0
    if keep is None or not keep.any():
        return s, t
    return s.reshape(-1, s.shape[-1])[keep], t.reshape(-1, t.shape[-1])[keep]


def _distance(s: torch.Tensor, t: torch.Tensor, one: Output) -> Any:
    import torch.nn.functional as f

    if one.kind == "values":
        return ((s - t) ** 2).mean() / one.variance
    temperature = TEMPERATURE if one.kind == "logits" else 1.0
    a, b = _log(s, one.kind, temperature), _log(t, one.kind, temperature)
    rows = a.numel() // a.shape[-1]
    return f.kl_div(a, b, log_target=True, reduction="sum") / rows * temperature**2


def _log(scores: torch.Tensor, kind: Kind, temperature: float) -> torch.Tensor:
    """Logarithms of class probabilities."""
    import torch

    if kind == "probabilities":
        return torch.log(scores.clamp_min(1e-7))
    return torch.log_softmax(scores / temperature, -1)


def _hint(
    s: torch.Tensor,
    t: torch.Tensor,
    variance: float,
    kept: dict[int, Array],
    mask: int | None,
    batch: Batch,
) -> Any:
    """Hints (Romero et al., ICLR 2015): the tensors themselves, at the indices that are left."""
    import torch

    for axis, index in kept.items():
        t = t.index_select(axis, torch.from_numpy(index).to(t.device))
    s, t = counted(s, t, mask, batch)
    return ((s - t) ** 2).mean() / variance
