"""Figures of a model before and after, one card each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from graphopt.page.html import element, text
from graphopt.reporting.records import Figures
from graphopt.reporting.units import count, milliseconds, size

__all__ = ["CARDS", "Card", "cards", "times"]


@dataclasses.dataclass(frozen=True)
class Card:
    """What a card shows: a field of `Figures` under a title; `more` is better for some."""

    title: str
    field: str
    more: bool = False

    @property
    def form(self) -> Callable[..., str]:
        """How its figure is written."""
        known = {"bytes": size, "peak_activation_bytes": size, "latency_ms": milliseconds}
        return known.get(self.field, _metric if self.field == "metric" else count)


CARDS = (
    Card("Size", "bytes"),
    Card("Latency", "latency_ms"),
    Card("Metric", "metric", more=True),
    Card("MACs", "macs"),
    Card("Parameters", "params"),
    Card("Nodes", "nodes"),
    Card("Peak activations", "peak_activation_bytes"),
)


def times(ratio: float) -> str:
    """A ratio for people: ×0.27."""
    return f"×{ratio:.2f}" if ratio >= 0.095 else f"×{ratio:.2g}"


def cards(
    shown: Sequence[Card],
    before: Figures,
    after: Figures | None,
    latency: str = "",
) -> str:
    """The cards of figures that are known; `latency` is what timing allows to say of it."""
    made = []
    for card in shown:
        old, new = getattr(before, card.field), getattr(after, card.field) if after else None
        if old is None and new is None:
            continue
        lines = [element("div", text(card.form(old if after is None else new)), class_="now")]
        if after is not None and old is not None:
            side = element("span", text(f"was {card.form(old)}"))
            told = _change(card, old, new, latency)
            lines.append(element("div", side, told, class_="was"))
        made.append(
            element("div", element("dt", text(card.title)), element("dd", *lines), class_="card")
        )
    columns = len(made) if len(made) <= 5 else 3 if len(made) == 6 else 4
    return element("dl", *made, class_=f"cards of-{columns}")


def _change(card: Card, old: float, new: float | None, latency: str) -> str:
    """The ratio to before, green where it is for the better."""
    if new is None or not old:
        return ""
    if card.field == "metric":
        change, told = new - old, f"{new - old:+.2g}"
    else:
        change, told = new / old - 1, times(new / old)
    if card.field == "latency_ms" and latency:
        told = latency
    even = abs(change) < (0.0005 if card.more else 0.005) or told == "no verdict"
    even = even or card.field == "nodes"  # more of them may well be faster
    better = (change > 0) == card.more
    kind = "ratio even" if even else "ratio" if better else "ratio worse"
    return element("span", text(told), class_=kind)


def _metric(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
