"""Whether a converted model says what the framework says: two batches, two sizes of every axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.binding import bind_shapes, sized
from graphopt.converting.mending import mend_shape
from graphopt.converting.process import Converter
from graphopt.errors import GraphOptError, ModelError
from graphopt.execution.runtime import run
from graphopt.samples import synthetic
from graphopt.samples.thresholds import categories_of, thresholds_of

__all__ = ["check_against_framework", "difference", "drawn", "predicted"]

#: Sizes of the first dynamic axis of every input, and of the others.
SIZES = ((2, 8), (5, 13))
#: Largest difference, relative to the largest number of an output, that rounding in another order
#: brings; above it the converter is at fault.
TOLERANCE = 1e-4
#: The same where integers are rounded on the way, of the root mean square: a step of 8 bits is
#: 0.004 of the range, and some fall to the other side.
ROUNDED = 0.02
#: What is drawn about a threshold is moved off it: a framework may compare in float64.
OFF = 2.0**-8
#: What is drawn until the framework takes it: any numbers and missing ones, numbers alone, none
#: below 0, 0 and 1 alone.
FORMS: tuple[Callable[[Any], Any], ...] = (
    lambda x: x,
    np.nan_to_num,
    lambda x: np.abs(np.nan_to_num(x)),
    lambda x: (x > 0).astype(x.dtype),
)
#: Share of what trees read that is 0, which some take for a missing value.
ZEROS = 0.1


def check_against_framework(model: ir.Model, source: Converter, title: str) -> str:
    """What the comparison found, as a note.

    Raises:
        ModelError: an output differs.
    """
    worst = 0.0
    rounds = any(n.op_type == "QuantizeLinear" for n in model.graph)
    size, limit = (mean_size, ROUNDED) if rounds else (largest, TOLERANCE)
    unit = "root mean square" if rounds else "largest number"
    mended: dict[str, str] = {}
    for seed, (rows, others) in enumerate(SIZES):
        try:
            feeds, expected = predicted(model, source, rows, others, seed)
        except ModelError as error:
            if seed:  # another size is none that the model takes
                shapes = _shapes(drawn(model, rows, others, seed))
                return f"{title} does not run at {shapes}: {error}."
            return f"{title} itself was not asked: {error}."
        try:
            got = list(run(model, feeds).values())
        except GraphOptError as error:
            raise ModelError(
                f"the converted model does not run where {title} does, at {_shapes(feeds)}: {error}"
            ) from error
        for value, array in zip(model.graph.outputs, got, strict=True):
            if told := mend_shape(value, array):
                mended.setdefault(value.name or "", told)
        for k, want in expected.items():
            name = model.graph.outputs[k].name
            apart = difference(want, got[k], size)
            if not apart <= limit:
                raise ModelError(
                    f"its converter is at fault: output {name} differs from {title}'s by "
                    f"{apart:.1g} of the {unit} at {_shapes(feeds)}"
                )
            worst = max(worst, apart)
    within = f"{worst:.1g} of the {unit}, rounded," if rounds else f"{worst:.1g}"
    agrees = f"It agrees with {title} within {within} at {len(SIZES)} sizes."
    return " ".join([agrees, *mended.values()])


def predicted(
    model: ir.Model, source: Converter, rows: int, others: int, seed: int
) -> tuple[dict[str, Any], dict[int, Any]]:
    """Inputs that the framework takes, and its outputs by position.

    Raises:
        ModelError: it takes none; what it said of the first.
    """
    first: ModelError | None = None
    some = drawn(model, rows, others, seed)
    for form in FORMS:
        feeds = {k: form(x) if x.dtype.kind == "f" else x for k, x in some.items()}
        try:
            return feeds, source.predict(feeds)
        except ModelError as error:
            first = first or error
    assert first is not None
    raise first


def drawn(model: ir.Model, rows: int, others: int, seed: int) -> dict[str, Any]:
    """Inputs of so many rows, other dynamic axes of size `others`.

    They lie off what trees split at, but for some zeros, and are whole numbers where trees ask for
    categories.
    """
    shapes, _ = bind_shapes(model, sized(model, rows, others))
    feeds = next(iter(synthetic(model, seed=seed, shapes=shapes, runs=1)))
    rng = np.random.default_rng(seed)
    values = {v.name: v for v in model.graph.inputs}
    return {k: _moved(x, values[k], rng) if x.dtype.kind == "f" else x for k, x in feeds.items()}


def _moved(x: Any, value: ir.Value, rng: np.random.Generator) -> Any:
    made = (x * (1 + OFF * rng.standard_normal(x.shape))).astype(x.dtype)
    for column in categories_of(value):
        made[..., column] = np.rint(x[..., column])
    if thresholds_of(value):
        made[rng.random(made.shape) < ZEROS] = 0
    return made


def largest(x: Any) -> float:
    """The largest magnitude, of what is a number."""
    return float(np.nanmax(np.abs(x), initial=0.0))


def mean_size(x: Any) -> float:
    """The root mean square, of what is a number."""
    return float(np.sqrt(np.nanmean(np.square(x)))) if np.isfinite(x).any() else 0.0


def difference(want: Any, got: Any, size: Callable[[Any], float] = largest) -> float:
    """The size of it in units of that of `want`; infinite where shapes or texts differ."""
    a, b = np.asarray(want), np.asarray(got)
    if a.dtype.kind in "OSU":
        return 0.0 if np.array_equal(a.astype(str).ravel(), b.astype(str).ravel()) else np.inf
    if a.ndim + 1 == b.ndim and b.shape[-1] == 2:  # one probability of two classes
        b = b[..., -1]
    if a.size != b.size:
        return np.inf
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    if not np.array_equal(np.isnan(x), np.isnan(y)):
        return np.inf
    return size(x - y) / max(size(x), 1e-12)


def _shapes(feeds: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={'x'.join(map(str, x.shape))}" for k, x in feeds.items())
