"""A concrete shape for every input of a model with dynamic axes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from graphopt.analyses.demand import too_much
from graphopt.analyses.equations import demanded, may_hold
from graphopt.analyses.shapes.facts import symbol_of
from graphopt.context import Context
from graphopt.errors import InputError, UsageError
from graphopt.io.reading import examples_of
from graphopt.samples.inputs import Input, inputs_of
from graphopt.samples.meaning import meaning_of
from graphopt.samples.stream import Feeds
from graphopt.samples.synthetic import synthetic

__all__ = ["bind_shapes", "sized"]

#: Inputs whose sizes are told.
MOST_TOLD = 6

Shapes = dict[str, tuple[int, ...]]
#: Sizes to try for an axis that is not a batch, best first; the first that runs is taken.
_IMAGE = (224, 256, 64, 32, 299, 512)
_AUDIO = (16000, 4000, 32000, 3000, 400)
_TIME, _FEATURES = (64, 128, 32, 16, 256, 1024), (64, 128, 80, 40, 32, 256)
_OTHER = (16, 8, 32, 64, 1, 128)
_PAST = (16, 8, 4, 1, 2, 3)


def sized(model: ir.Model, rows: int, others: int) -> dict[str, tuple[int, ...]]:
    """A shape for every input: `rows` for a first axis that is free, `others` for any other."""
    return {
        v.name or "": tuple(
            d if isinstance(d, int) else others if k else rows for k, d in enumerate(v.shape or ())
        )
        for v in model.graph.inputs
    }


def bind_shapes(
    model: ir.Model,
    given: Mapping[str, Sequence[int]] | None = None,
    like: Feeds | None = None,
    batch: int | None = None,
) -> tuple[Shapes, list[str]]:
    """A shape for every input that must be given, and sentences on what was chosen.

    Axes of one name get one size. Batch axes become 1, or what the model holds on to; other axes
    that `given` does not fix get the size they have in `like`, or one usual for what they are,
    which is tried on the model.

    Args:
        model: the model.
        given: shapes by input name.
        like: inputs the model runs with, such as the first of the samples; those that it was
            traced on if None.
        batch: what the model holds on to (`held_batch`), beside `like`; without, it is found.

    Raises:
        UsageError: `given` names no input of the model, or does not fit it.
    """
    like = like or next(iter(examples_of(model)), None)
    fixed = {name: tuple(shape) for name, shape in (given or {}).items()}
    inputs = inputs_of(model)
    _check_names(fixed, inputs)
    sizes: dict[str, int] = {}
    for one in inputs:
        if one.name in fixed:
            _bind(one, fixed[one.name], sizes)
    counted = _counted(model)
    batches = {
        _key(one, 0): batch or 1
        for one in inputs
        if one.name not in fixed and one.dims and one.batch is None
        if _key(one, 0) not in counted
    }
    if not like:
        _demand(model, inputs, fixed, sizes, batches)
    for key, size in batches.items():
        sizes.setdefault(key, size)
    for one in inputs:
        shape = like[one.name].shape if like and one.name in like else ()
        if one.name not in fixed and len(shape) == len(one.dims or ()):
            for axis, size in enumerate(shape):
                sizes.setdefault(_key(one, axis), size)
    choices = _choices(model, [i for i in inputs if i.name not in fixed], set(sizes))
    if not choices:
        shapes = {i.name: _shape(i, fixed, sizes) for i in inputs}
        taken = {n: tuple(like[n].shape) for n in shapes if like and n in like and n not in fixed}
        other = {**shapes, **taken}
        if other != shapes and may_hold(model) and not _runs(model, shapes):
            shapes = other  # for a reason that no equation tells
        return shapes, _notes(inputs, fixed, shapes)
    attempts = max(len(c) for c in choices.values())
    first: Shapes | None = None
    for k in range(attempts):
        tried = {n: c[min(k, len(c) - 1)] for n, c in choices.items()}
        shapes = {i.name: _shape(i, fixed, {**sizes, **tried}) for i in inputs}
        first = first or shapes
        if not too_much(Context(model, shapes=shapes)) and _runs(model, shapes):
            return shapes, _notes(inputs, fixed, shapes)
    assert first is not None
    listed = ", ".join(f"{i.name}={'x'.join(map(str, first[i.name]))}" for i in inputs)
    return first, [
        f"No sizes were found that the model runs with (tried {listed} and others); "
        "give them with --shape NAME=1x2x3"
    ]


def _check_names(given: Mapping[str, tuple[int, ...]], inputs: list[Input]) -> None:
    from graphopt.errors import nearest

    names = [i.name for i in inputs]
    for name in given:
        if name not in names:
            raise UsageError(
                f"--shape {name}: the model has no such input{nearest(name, names)}. "
                f"Its inputs: {', '.join(names) or 'none'}"
            )


def _bind(one: Input, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    """Record the size of each named axis of `one`."""
    text = "x".join(map(str, shape))
    if one.dims is None:
        return
    fits = len(shape) == len(one.dims) and all(
        not isinstance(want, int) or want == have
        for want, have in zip(one.dims, shape, strict=True)
    )
    if not fits:
        raise UsageError(f"--shape {one.name}={text}: the model takes {one}")
    for name, size in zip(one.dims, shape, strict=True):
        if isinstance(name, str) and sizes.setdefault(name, size) != size:
            raise UsageError(
                f"--shape {one.name}={text}: axis '{name}' has {sizes[name]} in another input"
            )


def _key(one: Input, axis: int) -> str:
    """What stands for the size of an axis: its name, or one made up for an axis without."""
    name = one.dims[axis] if one.dims is not None else None
    return name if isinstance(name, str) else f"{one.name}[{axis}]"


def _demand(
    model: ir.Model,
    inputs: list[Input],
    fixed: Shapes,
    sizes: dict[str, int],
    batches: Mapping[str, int],
) -> None:
    """Add the sizes that the model's own weights demand."""
    keys = {
        symbol_of(one.name, axis, size): _key(one, axis)
        for one in inputs
        for axis, size in enumerate(one.dims or ())
        if not isinstance(size, int)
    }
    open_ = set(keys.values()) - set(sizes)
    if not open_ or (open_ <= set(batches) and not may_hold(model)):
        return  # nothing is to be chosen

    def shapes_at(found: Mapping[str, int]) -> Shapes:
        named = {keys[s]: n for s, n in found.items() if s in keys}
        others = dict.fromkeys(keys.values(), _TIME[0])
        return {i.name: _shape(i, fixed, {**others, **named}) for i in inputs}

    known = {s: sizes[key] for s, key in keys.items() if key in sizes}
    usual = {s: batches[key] for s, key in keys.items() if key in batches}
    for name, size in demanded(model, known, usual, shapes_at).items():
        sizes.setdefault(keys[name], size)


def _counted(model: ir.Model) -> set[str]:
    """Axes that ids count along: of nodes, tokens or the like, and so of several."""
    ids = [v for v in model.graph.inputs if v.dtype is not None and v.dtype.is_integer()]
    return {name for v in ids for name in meaning_of(v, model).rows}


def _choices(model: ir.Model, inputs: list[Input], known: set[str]) -> dict[str, tuple[int, ...]]:
    """Sizes to try for each axis that is neither given nor a batch."""
    values = {v.name: v for v in model.graph.inputs}
    found: dict[str, tuple[int, ...]] = {}
    for one in inputs:
        for axis, size in enumerate(one.dims or ()):
            key = _key(one, axis)
            if isinstance(size, int) or key in known or _terms(key, known) is not None:
                continue
            kind = meaning_of(values[one.name], model).kind
            for name in _symbols(key):
                if name not in known and found.get(name, _AUDIO) is _AUDIO:
                    found[name] = _usual(one, axis, name, kind)  # what others share is no sound
    return found


def _usual(one: Input, axis: int, name: str, kind: str) -> tuple[int, ...]:
    rank = len(one.dims or ())
    if kind in ("image", "bytes") and rank == 4 and axis > 0:
        return _IMAGE if axis > 1 or one.dims is None or one.dims[-1] in (1, 3, 4) else (3,)
    if re.search(r"past|cache", name, re.I):
        return _PAST
    if kind == "normal" and rank == 2 and axis == 1 and one.axis == 0:
        return _AUDIO
    if kind == "normal" and one.axis is None and one.dims is not None:
        return _TIME if axis == 0 else _FEATURES
    return _OTHER


def _symbols(name: str) -> list[str]:
    """`past + sequence` -> [past, sequence]; a plain name is itself."""
    parts = [p.strip() for p in name.split("+")]
    return [p for p in parts if not p.isdigit()] if len(parts) > 1 else [name]


def _terms(name: str, sizes: Mapping[str, int] | set[str]) -> list[str] | None:
    """The terms of a sum of known sizes and numbers, or None."""
    parts = [p.strip() for p in name.split("+")]
    known = all(p.isdigit() or p in sizes for p in parts)
    return parts if len(parts) > 1 and known else None


def _shape(
    one: Input, given: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]
) -> tuple[int, ...]:
    if one.name in given:
        return given[one.name]
    shape = []
    for axis, size in enumerate(one.dims or ()):
        key = _key(one, axis)
        if isinstance(size, int):
            shape.append(size)
        elif key in sizes:
            shape.append(sizes[key])
        else:
            terms = _terms(key, sizes) or []
            shape.append(sum(int(t) if t.isdigit() else sizes[t] for t in terms) or 1)
    return tuple(shape)


def _runs(model: ir.Model, shapes: Shapes) -> bool:
    from graphopt.execution.runtime import run_each

    try:
        for _ in run_each(model, iter(synthetic(model, shapes=shapes, runs=1))):
            pass
    except InputError:
        return False
    return True


def _notes(
    inputs: list[Input], given: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    chosen = []
    for one in inputs:
        if one.dims is None and one.name not in given:
            chosen.append(f"{one.name} (which declares no shape) = scalar")
        elif one.name not in given and any(not isinstance(d, int) for d in one.dims or ()):
            chosen.append(f"{one.name}={'x'.join(map(str, shapes[one.name]))}")
    if not chosen:
        return []
    if len(chosen) > MOST_TOLD:
        chosen[MOST_TOLD:] = [f"and so on ({len(chosen)} inputs)"]
    return [f"Dynamic axes were bound to {', '.join(chosen)}; --shape binds them otherwise."]
