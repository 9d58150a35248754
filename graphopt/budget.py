"""Budget: what the optimized model may lose and what it must gain."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Literal

from graphopt.errors import UsageError
from graphopt.reporting.records import Figures, Verdict
from graphopt.user_code import load_attribute

__all__ = ["TOKEN_METRICS", "Budget", "Limit"]

#: Evaluations of token models that need no code (`graphopt.verification.perplexity`).
TOKEN_METRICS = ("perplexity", "greedy")

#: Share of decisions that lossy steps together may change where no limit says otherwise.
MAX_DISAGREEMENT = 0.01

_UNITS: dict[str, dict[str, float]] = {
    "size": {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30},
    "latency": {"US": 1e-3, "MS": 1, "S": 1e3},
}


@dataclasses.dataclass(frozen=True)
class Limit:
    """At most `value` (bytes or milliseconds), or `value` times the source if `relative`."""

    value: float
    relative: bool = False

    @classmethod
    def parse(cls, given: str | Limit, kind: Literal["size", "latency"]) -> Limit:
        """`10MB`, `5ms`, `0.3x` or a Limit. Raises UsageError for anything else."""
        if isinstance(given, Limit):
            return given
        text = str(given)
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?\d+)?)\s*([a-zA-Z]+)\s*", text)
        if match:
            number, unit = float(match[1]), match[2].upper()
            if number > 0 and unit == "X":
                return cls(number, relative=True)
            if number > 0 and unit in _UNITS[kind]:
                return cls(number * _UNITS[kind][unit])
        example = "10MB or 0.3x" if kind == "size" else "5ms or 0.5x"
        raise UsageError(f"--max-{kind} {text!r} is not a limit; write for example {example}")

    def resolve(self, source: float) -> float:
        """The limit in bytes or milliseconds, given the source model's figure."""
        return self.value * source if self.relative else self.value

    def __str__(self) -> str:
        return f"{self.value:.15g}{'x' if self.relative else ''}"


@dataclasses.dataclass(frozen=True, repr=False)
class Budget:
    """Limits on the result; None means no limit.

        Budget(max_drop=0.5, max_size="1MB", max_latency="0.5x", evaluate="score.py:score")

    Attributes:
        max_error: worst output's relative L2 difference against the source model.
        max_disagreement: share of decisions that all lossy steps may change on the samples
            (`graphopt.verification.agreement`). None: 0.01, unless `max_error` or `max_drop` judge
            lossy steps; inf: any, so that nothing judges them.
        max_drop: how far the metric of `evaluate` may fall, in its own units.
        max_size: of the written model, external data included: `"10MB"`, or `"0.3x"` the source's.
        max_latency: of one run, measured on the target: `"5ms"`, or `"0.5x"` the source's.
        evaluate: `f(predict) -> float`, higher is better, where
            `predict(dict of arrays) -> dict of arrays`; or its name, `FILE.py:FUNCTION`, which
            goes to other processes where a function does not; or of a language model, judged on
            the samples, "perplexity" (negative) or "greedy" (share of the tokens that the source
            writes after half of a row, up to the first that differs).
        require_verdict: whether the result is faster or slower must be known: timing that is too
            noisy misses the budget. `max_latency` always needs that.
    """

    max_error: float | None = None
    max_disagreement: float | None = None
    max_drop: float | None = None
    max_size: Limit | str | None = None
    max_latency: Limit | str | None = None
    evaluate: Callable[..., float] | str | None = None
    require_verdict: bool = False

    def __post_init__(self) -> None:
        if self.max_drop is not None and self.evaluate is None:
            raise UsageError(
                "--max-drop limits a metric; say how it is computed with --eval FILE.py:f"
            )
        if self.max_size is not None:
            object.__setattr__(self, "max_size", Limit.parse(self.max_size, "size"))
        if self.max_latency is not None:
            object.__setattr__(self, "max_latency", Limit.parse(self.max_latency, "latency"))
        for name in ("max_error", "max_disagreement", "max_drop"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UsageError(f"--{name.replace('_', '-')} must be a number >= 0, not {value}")

    def __repr__(self) -> str:
        units = {"max_size": "B", "max_latency": "ms"}
        set_ = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Limit):
                value = str(value) if value.relative else f"{value}{units[field.name]}"
            if value is not None and value is not False:
                set_.append(f"{field.name}={getattr(value, '__name__', repr(value))}")
        return f"Budget({', '.join(set_)})"

    @property
    def evaluation(self) -> Callable[..., float] | None:
        """The function that `evaluate` is or names. Raises UsageError if there is none.

        None for a built-in one, which `prepare` makes a function of model and samples.
        """
        if not isinstance(self.evaluate, str):
            return self.evaluate
        if self.evaluate in TOKEN_METRICS:
            return None
        path, colon, name = self.evaluate.rpartition(":")
        if not colon:
            raise UsageError(
                f"--eval {self.evaluate!r}: write FILE.py:function, or for a language model "
                f"{' or '.join(TOKEN_METRICS)}"
            )
        function: Callable[..., float] = load_attribute(path, name, "function")
        if not callable(function):
            raise UsageError(f"--eval {self.evaluate}: {name} is not a function")
        return function

    @property
    def timed(self) -> str:
        """The option that needs the result to be timed, or ""."""
        if self.max_latency is not None:
            return "--max-latency"
        return "--require-verdict" if self.require_verdict else ""

    @property
    def limited(self) -> bool:
        """Whether any limit is set."""
        return self.require_verdict or any(
            x is not None
            for x in (
                self.max_error,
                self.max_disagreement,
                self.max_drop,
                self.max_size,
                self.max_latency,
            )
        )

    @property
    def guard(self) -> float | None:
        """The share of decisions that lossy steps may change; None where nothing guards them."""
        if self.max_disagreement is not None:
            return self.max_disagreement if math.isfinite(self.max_disagreement) else None
        return MAX_DISAGREEMENT if self.max_error is None and self.max_drop is None else None

    def limits(self) -> dict[str, float | str | bool | None]:
        """The limits as given, for the report."""
        size, latency = self.max_size, self.max_latency
        return {
            "max_error": self.max_error,
            "max_disagreement": self.max_disagreement,
            "max_drop": self.max_drop,
            "max_size": None if size is None else str(size),
            "max_latency": None if latency is None else str(latency),
            "require_verdict": self.require_verdict,
        }

    def over_drop(self, source: float | None, metric: float | None) -> str:
        """Why a metric this far below the source's may not stay; "" if it may."""
        if self.max_drop is None or metric is None or source is None:
            return ""
        drop = source - metric
        if drop <= self.max_drop + 1e-12:
            return ""
        return f"the metric drops by {drop:.4g}, over --max-drop {self.max_drop:g}"

    def over_error(self, worst: float) -> str:
        """Why outputs this far from the source's may not stay; "" if they may."""
        if self.max_error is None or worst <= self.max_error:
            return ""
        return f"error {worst:.3g} is over --max-error {self.max_error:g}"

    def missed(
        self, before: Figures, after: Figures, worst: float | None, verdict: Verdict | None = None
    ) -> list[str]:
        """The limits that a result does not meet, one sentence each.

        Args:
            before: figures of the source.
            after: figures of the result.
            worst: relative L2 difference of the worst output; None if none was compared.
            verdict: what timing allows to say; None if nothing was timed.
        """
        found = [self.over_drop(before.metric, after.metric)]
        if worst is not None:
            found.append(self.over_error(worst))
        elif self.max_error is not None:
            found.append("--max-error cannot be judged: outputs were not compared")
        if self.max_size is not None and before.bytes and after.bytes:
            limit = Limit.parse(self.max_size, "size").resolve(before.bytes)
            if after.bytes > limit:
                found.append(f"size {after.bytes:,} bytes is over --max-size ({limit:,.0f})")
        if self.timed and verdict == "noisy":
            found.append(f"{self.timed} cannot be judged: timing is too noisy for a verdict")
        elif self.max_latency is not None:
            allowed = Limit.parse(self.max_latency, "latency")
            found.append(_late(allowed, before.latency_ms, after.latency_ms))
        return [f for f in found if f]


def _late(allowed: Limit, before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "--max-latency cannot be judged: nothing was measured"
    limit = allowed.resolve(before)
    if after <= limit:
        return ""
    return f"latency {after:.3g} ms is over --max-latency ({limit:.3g} ms)"
