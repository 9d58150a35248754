"""graphopt: an optimizing compiler for trained neural networks.

Names are imported when first used (PEP 562), so that `import graphopt` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from graphopt.analyses.dims import dimensions as dimensions
    from graphopt.backend import Backend as Backend
    from graphopt.budget import Budget as Budget
    from graphopt.budget import Limit as Limit
    from graphopt.context import Analysis as Analysis
    from graphopt.context import Context as Context
    from graphopt.cutting import cut as cut
    from graphopt.errors import GraphOptError as GraphOptError
    from graphopt.io import load as load
    from graphopt.io import save as save
    from graphopt.pass_ import Pass as Pass
    from graphopt.pipeline import optimize as optimize
    from graphopt.prepared import prepare as prepare
    from graphopt.report import Report as Report
    from graphopt.report import Step as Step
    from graphopt.result import Result as Result
    from graphopt.rewrite import Rewrite as Rewrite
    from graphopt.rewrite import Rule as Rule
    from graphopt.samples import Samples as Samples
    from graphopt.sessions import session as session
    from graphopt.spec import parse as parse
    from graphopt.target import Int8Scheme as Int8Scheme
    from graphopt.target import Target as Target
    from graphopt.tracing import trace as trace
    from graphopt.tuning import tune as tune

_WHERE = {
    "Analysis": "context",
    "Backend": "backend",
    "Budget": "budget",
    "Context": "context",
    "GraphOptError": "errors",
    "Int8Scheme": "target",
    "Limit": "budget",
    "Pass": "pass_",
    "Result": "pipeline",
    "Report": "report",
    "Rewrite": "rewrite",
    "Rule": "rewrite",
    "Samples": "samples",
    "Step": "report",
    "Target": "target",
    "load": "io",
    "cut": "cutting",
    "dimensions": "analyses.dims",
    "optimize": "pipeline",
    "parse": "spec",
    "prepare": "prepared",
    "save": "io",
    "session": "sessions",
    "trace": "tracing",
    "tune": "tuning",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'graphopt' has no attribute '{name}'")
    return getattr(import_module(f"graphopt.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
