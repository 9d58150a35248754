"""What a run records of itself in its result: recipe, certificate and provenance."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt import __version__
from graphopt.errors import InputError
from graphopt.graph import provenance
from graphopt.pipeline import recipe
from graphopt.pipeline.prepare import Setting
from graphopt.pipeline.state import State
from graphopt.proving.certificate import certified
from graphopt.reporting.records import Step

__all__ = ["recipe_of", "recorded"]


def recipe_of(
    setting: Setting, decisions: Sequence[recipe.Decision], replay: recipe.Recipe | None
) -> recipe.Recipe:
    """The recipe of a run. Raises InputError if a replay was fed something else."""
    made = recipe.Recipe(
        graphopt=__version__,
        target=setting.target.name,
        seed=setting.seed,
        source=setting.digest,
        samples=setting.samples.digest() if setting.given else None,
        validated=(setting.given and setting.judge is not None and not setting.judge.silent)
        or setting.budget.evaluate is not None,
        versions=recipe.versions(),
        steps=tuple(decisions),
        max_opset=setting.max_opset,
    )
    for what in ("source", "samples", "target", "seed", "max_opset"):
        if replay is not None and getattr(replay, what) != getattr(made, what):
            name = what.replace("_", " ")
            raise InputError(f"the recipe was made with another {name}; give it the same one")
    return made


def recorded(
    setting: Setting,
    state: State,
    model: ir.Model,
    made: recipe.Recipe,
    steps: Sequence[Step],
    notes: list[str],
) -> State:
    """The last state with recipe, certificate, and provenance as its share of it allows.

    `model` is the state's, which is changed; a word on what was left out goes into `notes`.
    """
    model.metadata_props[provenance.RECIPE] = made.to_text()
    model.metadata_props.pop(provenance.CERTIFICATE, None)
    if setting.verify == "outputs":
        paper = certified(setting.digest, model, steps)
        model.metadata_props[provenance.CERTIFICATE] = paper.to_text()
    final = state.with_metadata(model)
    if provenance.trim(model, final.bytes):
        notes.append("single nodes' provenance was left out: it is over 5 % of the file")
        return state.with_metadata(model)
    return final
