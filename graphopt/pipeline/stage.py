"""Stages: the model after each step, for whoever watches a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir

from graphopt.pipeline.prepare import Setting
from graphopt.reporting.records import Step

__all__ = ["Stage", "Watch"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """The model as it is after a step; told while the pipeline runs.

    Attributes:
        setting: what the run works with.
        step: the record of the step; None before the first.
        model: not to be changed; the run goes on with it, so that who keeps it keeps a copy.
        edits: what the step did and kept: rule, node, and "proved", "checked", "assumed" or "".
    """

    setting: Setting
    step: Step | None
    model: ir.Model
    edits: tuple[tuple[str, str, str], ...] = ()


#: Told of every stage of a run.
Watch = Callable[[Stage], None]
