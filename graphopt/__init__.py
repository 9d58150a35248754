"""graphopt: an optimizing compiler for trained neural networks.

Names are imported when first used (PEP 562), so that `import graphopt` is quick.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from graphopt.deferred import Deferred

__version__ = "0.1.0"

# ONNX Runtime reports to its maker, and keeps a device id in the home folder, from the moment it is
# imported, unless this is set before (docs/security.md). Who sets it to 0 is heard.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

Deferred("sympy", "onnx_ir._symbolic_shapes").install()

if TYPE_CHECKING:
    from graphopt.analyses.dims import dimensions as dimensions
    from graphopt.backend import Backend as Backend
    from graphopt.budget import Budget as Budget
    from graphopt.budget import Limit as Limit
    from graphopt.context import Analysis as Analysis
    from graphopt.context import Context as Context
    from graphopt.deploy.prepared import prepare as prepare
    from graphopt.deploy.sessions import session as session
    from graphopt.errors import GraphOptError as GraphOptError
    from graphopt.formats import load as load
    from graphopt.formats import save as save
    from graphopt.measuring.session_options import tune as tune
    from graphopt.page.view import view as view
    from graphopt.pass_ import Pass as Pass
    from graphopt.pipeline.optimize import optimize as optimize
    from graphopt.pipeline.result import Result as Result
    from graphopt.reporting.records import Report as Report
    from graphopt.reporting.records import Step as Step
    from graphopt.rewriting.cutting import cut as cut
    from graphopt.rewriting.driver import Rewrite as Rewrite
    from graphopt.rewriting.merging import merge as merge
    from graphopt.rewriting.rules import Bind as Bind
    from graphopt.rewriting.rules import Refused as Refused
    from graphopt.rewriting.rules import Replacement as Replacement
    from graphopt.rewriting.rules import Rule as Rule
    from graphopt.rewriting.rules import Walker as Walker
    from graphopt.samples import Samples as Samples
    from graphopt.searching.search import search as search
    from graphopt.spec import parse as parse
    from graphopt.target import Int8Scheme as Int8Scheme
    from graphopt.target import Target as Target
    from graphopt.tracing import trace as trace

_WHERE = {
    "Analysis": "context",
    "Backend": "backend",
    "Bind": "rewriting.rules",
    "Budget": "budget",
    "Context": "context",
    "GraphOptError": "errors",
    "Int8Scheme": "target",
    "Limit": "budget",
    "Pass": "pass_",
    "Result": "pipeline.result",
    "Report": "reporting.records",
    "Refused": "rewriting.rules",
    "Replacement": "rewriting.rules",
    "Rewrite": "rewriting.driver",
    "Rule": "rewriting.rules",
    "Samples": "samples",
    "Step": "reporting.records",
    "Target": "target",
    "Walker": "rewriting.rules",
    "load": "formats",
    "cut": "rewriting.cutting",
    "dimensions": "analyses.dims",
    "merge": "rewriting.merging",
    "optimize": "pipeline.optimize",
    "parse": "spec",
    "prepare": "deploy.prepared",
    "save": "formats",
    "search": "searching.search",
    "session": "deploy.sessions",
    "trace": "tracing",
    "tune": "measuring.session_options",
    "view": "page.view",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'graphopt' has no attribute '{name}'")
    return getattr(import_module(f"graphopt.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
