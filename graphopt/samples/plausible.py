"""Plausibility of samples: outliers, constants and narrow ranges, which spoil a calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.samples.inputs import Input, inputs_of
from graphopt.samples.meaning import meaning_of
from graphopt.samples.stream import Feeds, Samples

__all__ = ["plausible"]

Array = np.ndarray[Any, Any]
#: A sample whose peak is this many times that of half of them is no input of the model.
ABSURD = 1e6
#: ... and from here on it is said.
FAR = 100.0
#: Samples that reach less than this share of the range that the model scales are said.
NARROW = 0.25


def plausible(samples: Samples, model: ir.Model) -> tuple[Samples | None, list[str]]:
    """The samples without those that cannot be, and sentences on what is odd about them.

    Left out are samples in which a float input reaches `ABSURD` times what half of them reach. Said
    are these, others that reach far, inputs that never vary, and pixels that fill a small part of
    the range that the model itself scales. Where no input ever varies nothing is left.
    """
    inputs = [i for i in inputs_of(model) if i.dtype.kind == "f"]
    values = {v.name: v for v in model.graph.inputs}
    seen = {i.name: np.concatenate([_extremes(f[i.name], i) for f in samples]) for i in inputs}
    notes, limits = list[str](), dict[str, float]()
    constant: dict[float, list[str]] = {}
    for one in inputs:
        low, high = seen[one.name].T
        peaks = np.maximum(-low, high)
        usual = float(np.median(peaks[peaks > 0])) if (peaks > 0).any() else 0.0
        odd = int((peaks > FAR * usual).sum())
        most = float(peaks.max(initial=0))
        if low.min() == high.max():
            constant.setdefault(float(low.min()), []).append(one.name)
        elif odd and usual:
            text = f"'{one.name}' reaches {most:.3g} in {odd} of {len(peaks)} samples"
            notes.append(f"{text}, where half of them stay below {usual:.3g}")
            if most > ABSURD * usual:
                limits[one.name] = ABSURD * usual
                notes[-1] += ": these were left out"
        pixels = meaning_of(values[one.name], model)
        if pixels.kind == "image" and pixels.high and 0 < most < NARROW * pixels.high:
            notes.append(f"'{one.name}' reaches {most:.3g} of the {pixels.high} the model scales")
    for value, names in constant.items():
        others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        notes.append(f"'{names[0]}'{others} is {value:g} throughout: no range follows from that")
    if constant and sum(map(len, constant.values())) == len(inputs_of(model)):
        return None, notes
    if limits:
        rest = Samples(_Without(samples, inputs, limits), samples.source, samples.synthetic)
        samples = rest if next(iter(rest), None) is not None else samples
    return samples, notes


def _extremes(array: Array, one: Input) -> Array:
    """Least and greatest finite value of each sample, float64 [samples, 2]."""
    rows = (
        array.reshape(len(array), -1) if one.batch is None and array.ndim else array.reshape(1, -1)
    )
    if not rows.size:
        return np.zeros((len(rows), 2))
    finite = np.where(np.isfinite(rows), rows, 0)
    return np.stack([finite.min(axis=1), finite.max(axis=1)], axis=1).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class _Without:
    """Samples without those in which an input is beyond its limit; read again each time."""

    samples: Samples
    inputs: list[Input]
    limits: dict[str, float]

    def __iter__(self) -> Iterator[Feeds]:
        for feeds in self.samples:
            keep: Any = True
            for one in self.inputs:
                if one.name in self.limits:
                    peaks = np.abs(_extremes(feeds[one.name], one)).max(axis=1)
                    keep = keep & (peaks <= self.limits[one.name])
            if np.all(keep):
                yield feeds
            elif np.any(keep) and all(len(keep) == len(a) for a in feeds.values() if a.ndim):
                yield {n: a[keep] if a.ndim else a for n, a in feeds.items()}
