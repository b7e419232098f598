"""Numbers as text, with as many digits as their interval supports."""

from __future__ import annotations

import math

from testbed.report.stats import Interval

__all__ = [
    "MINUS",
    "NO_SPREAD",
    "NO_VALUE",
    "change",
    "decimals_of",
    "number",
    "percent_range",
    "plain",
    "with_interval",
]

MINUS = "\N{MINUS SIGN}"
NO_VALUE = "\N{EN DASH}"
NO_SPREAD = "no spread"
"""In place of an interval where all repeats gave the same, as those of a simulation do on links of fixed rates."""
# Non-breaking, so that a number and its unit stay on one line.
GAP = "\N{NO-BREAK SPACE}"
MOST_DIGITS = 4


def decimals_of(interval: Interval) -> int:
    """Return how many decimals an estimate deserves: to the leading digit of half its interval, or one more below 2.

    Negative for tens and hundreds. Where there is no interval, three significant digits of the value; and four at most,
    however narrow it is: repeats that hardly differ, as simulated ones do, say nothing of what all of them share.
    """
    half = interval.half_width
    if not interval.known or half <= 0:
        return _significant(interval.value, 3)
    exponent = math.floor(math.log10(half))
    decimals = min(6, -exponent + (1 if half < 2 * 10**exponent else 0))
    if interval.value == 0:
        return decimals
    return min(decimals, max(0, _significant(interval.value, MOST_DIGITS)))


def plain(value: float, decimals: int) -> str:
    """Return a number with a given number of decimals; tens and hundreds for negative ones."""
    if not math.isfinite(value):
        return NO_VALUE
    rounded = round(value, decimals)
    text = f"{abs(rounded):.{max(decimals, 0)}f}"
    return f"{MINUS}{text}" if rounded < 0 else text


def number(value: float, digits: int = 3) -> str:
    """Return a number with a given number of significant digits."""
    return plain(value, _significant(value, digits))


def with_interval(interval: Interval, unit: str = "") -> tuple[str, str]:
    """Return an estimate and its interval as two texts: ``("38.4 ms", "37.9 to 38.9 ms")``.

    The second is empty where there is no interval, and :data:`NO_SPREAD` where it has no length.
    """
    decimals = decimals_of(interval)
    end = f"{GAP}{unit}" if unit else ""
    value = f"{plain(interval.value, decimals)}{end}"
    if not interval.known:
        return value, ""
    return value, _range(plain(interval.low, decimals), plain(interval.high, decimals), end)


def change(interval: Interval) -> tuple[str, str]:
    """Return a relative change in percent: ``("−46 %", "−49 to −43 %")``; a rise has its plus sign."""
    scaled = interval.scaled(100)
    decimals = max(0, decimals_of(scaled))
    value = f"{_signed(scaled.value, decimals)}{GAP}%"
    if not scaled.known:
        return value, ""
    return value, _range(_signed(scaled.low, decimals), _signed(scaled.high, decimals), f"{GAP}%")


def percent_range(interval: Interval) -> tuple[str, str]:
    """Return the size of a change without its sign: ``("46 %", "43 to 49 %")``, for "cut by" and "rose by"."""
    scaled = interval.scaled(100)
    decimals = max(0, decimals_of(scaled))
    value = f"{plain(abs(scaled.value), decimals)}{GAP}%"
    if not scaled.known:
        return value, ""
    low, high = scaled.low, scaled.high
    if scaled.value < 0:
        low, high = -high, -low
    return value, _range(plain(low, decimals), plain(high, decimals), f"{GAP}%")


def _range(low: str, high: str, unit: str) -> str:
    """Return both ends of an interval, or that they are the same to every digit that counts."""
    return NO_SPREAD if low == high else f"{low} to {high}{unit}"


def _signed(value: float, decimals: int) -> str:
    text = plain(value, decimals)
    return f"+{text}" if round(value, decimals) > 0 else text


def _significant(value: float, digits: int) -> int:
    if not math.isfinite(value) or value == 0:
        return 0
    return digits - 1 - math.floor(math.log10(abs(value)))
