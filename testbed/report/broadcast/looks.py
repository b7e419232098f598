"""The look of each scheme, the same in every figure: its colour and mark say what it is, not where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from testbed.report.broadcast.facts import Facts, Scheme
from testbed.report.stats import Interval

__all__ = ["DIGITS", "USER_COLOURS", "Look", "bars_of", "looks_of", "scatter_style"]

DIGITS = 4
"""Decimals of what is drawn: more would only make the page larger."""
USER_COLOURS = ("var(--s2)", "var(--s3)", "var(--s1)", "var(--s4)")

_PLAYS = {
    "fusion": "var(--k1)",
    "time_division": "var(--k2)",
    "superposition": "var(--k3)",
    "joint_division": "var(--k8)",
}
_CODECS = {"webp": "var(--k4)", "jpeg2000": "var(--k5)", "avif": "var(--k6)"}
_SPARE = ("var(--k7)", "var(--k6)", "var(--k5)", "var(--k4)", "var(--k8)")
_SYMBOLS = {
    "fusion": "circle",
    "time_division": "square",
    "superposition": "diamond",
    "joint_division": "cross",
}
_LEARNED_SPARE = ("triangle-up", "triangle-down", "pentagon", "star", "hexagon")


@dataclass(frozen=True)
class Look:
    """How a scheme is drawn.

    Attributes:
        colour: A reference to a colour of report.css.
        dash: The dash of its lines: solid for a learned scheme.
        symbol: The mark of its points; its open form stands for what could not always be decoded.
        width: The width of its lines.
    """

    colour: str
    dash: str
    symbol: str
    width: float


def looks_of(facts: Facts) -> dict[str, Look]:
    """Return the look of every scheme.

    Args:
        facts: What was compared.
    """
    looks: dict[str, Look] = {}
    taken: set[tuple[str, str]] = set()
    spare = 0
    for scheme in facts.schemes.values():
        look = _first(scheme)
        if (look.colour, look.symbol) in taken or scheme.ablates:
            turn = spare % len(_SPARE), spare % len(_LEARNED_SPARE)
            look = Look(_SPARE[turn[0]], look.dash, _LEARNED_SPARE[turn[1]], 1.6)
            spare += 1
        taken.add((look.colour, look.symbol))
        looks[scheme.name] = (
            look if scheme != facts.subject else Look(look.colour, look.dash, look.symbol, 2.6)
        )
    return looks


def scatter_style(look: Look, received: Sequence[float], size: float = 8) -> dict[str, Any]:
    """Return the line and the markers of a scheme: a marker is open where some images could not be decoded.

    Args:
        look: The scheme's look.
        received: The share of the images that could be decoded, for each point.
        size: The markers' size in pixels.
    """
    symbols = [look.symbol if share >= 1 else f"{look.symbol}-open" for share in received]
    return {
        "line": {"color": look.colour, "width": look.width, "dash": look.dash},
        "marker": {
            "color": look.colour,
            "symbol": symbols,
            "size": size,
            "line": {"width": 1.4, "color": look.colour},
        },
    }


def bars_of(intervals: Sequence[Interval], shown: Sequence[bool] | None = None) -> dict[str, Any]:
    """Return the intervals of several points as their error bars.

    Args:
        intervals: The intervals.
        shown: Which of them have bars; all by default.
    """
    which = [one.known and (shown is None or shown[place]) for place, one in enumerate(intervals)]
    ups = [round(one.high - one.value, DIGITS) for one in intervals]
    downs = [round(one.value - one.low, DIGITS) for one in intervals]
    return {
        "type": "data",
        "symmetric": False,
        "array": [up if known else None for up, known in zip(ups, which, strict=True)],
        "arrayminus": [down if known else None for down, known in zip(downs, which, strict=True)],
        "thickness": 1,
        "width": 2,
        "color": "var(--faint)",
    }


def _first(scheme: Scheme) -> Look:
    symbol = _SYMBOLS.get(scheme.plays, "triangle-up")
    if scheme.learned:
        return Look(_PLAYS.get(scheme.plays, "var(--k7)"), "solid", symbol, 2.0)
    dash = "dashdot" if scheme.kind == "practical" else "dash" if scheme.plays == "superposition" else "dot"
    mark = "triangle-up" if scheme.kind == "practical" else symbol
    return Look(_CODECS.get(scheme.codec, "var(--k8)"), dash, mark, 1.4)
