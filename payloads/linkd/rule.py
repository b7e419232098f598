"""What makes a rate of a channel's state and of the share of the band that a link has. Pure.

    linear    rate = state * share                                state: Mbit/s with the whole band
    shannon   b = share * bandwidth                               state: P g / (N0 F) in MHz, the SNR over the whole
              rate = b log2(1 + state / b) * scale                band times its width
    table     b = share * bandwidth, snr = state / b              state: as for shannon
              rate = b efficiency(snr) (1 - overhead) * scale

A link with a smaller share puts the same power into a smaller band, so its SNR rises: halving the share costs less than
half of the rate. No link can have rate 0: what falls below ``min_mbit`` is an outage and gets ``min_mbit``.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Dict, Tuple

from payloads.linkd.model import MAX_RATE_MBIT, MIN_RATE_MBIT

__all__ = [
    "DEFAULT_MAX_MBIT",
    "DEFAULT_MIN_MBIT",
    "RULE_KINDS",
    "ChannelError",
    "Rule",
    "finite",
    "number",
    "numbers",
]

RULE_KINDS = ("linear", "shannon", "table")
DEFAULT_MIN_MBIT = 0.05
DEFAULT_MAX_MBIT = 1000.0
_LN_2 = math.log(2)


class ChannelError(ValueError):
    """A channel, or the shares that were asked for, are wrong; the message is one clear line."""


@dataclass(frozen=True)
class Rule:
    """What makes a rate of a state and a share.

    Attributes:
        kind: ``linear``, ``shannon`` or ``table``.
        bandwidth_mhz: The whole band, in MHz; a linear rule needs none.
        scale: What every rate is multiplied by (kinds ``shannon`` and ``table``).
        thresholds_db: The lowest SNR of each row of the table, rising.
        efficiencies: What each row carries, in bit/s per Hz.
        margin_db: How far above a threshold the SNR has to be.
        overhead: The part of a table's rate that carries no data, from 0 to below 1.
        min_mbit: The lowest rate; what would be lower is an outage.
        max_mbit: The highest rate.

    Raises:
        ChannelError: A setting is wrong.
    """

    kind: str
    bandwidth_mhz: float = 1.0
    scale: float = 1.0
    thresholds_db: Tuple[float, ...] = ()
    efficiencies: Tuple[float, ...] = ()
    margin_db: float = 0.0
    overhead: float = 0.0
    min_mbit: float = DEFAULT_MIN_MBIT
    max_mbit: float = DEFAULT_MAX_MBIT

    def __post_init__(self) -> None:
        if self.kind not in RULE_KINDS:
            raise ChannelError(f"rule.kind: {', '.join(RULE_KINDS)} were expected, not {self.kind!r}")
        for name in ("bandwidth_mhz", "scale"):
            if not (finite(getattr(self, name)) and getattr(self, name) > 0):
                raise ChannelError(f"rule.{name}: a number above 0 was expected, not {getattr(self, name)!r}")
        if not finite(self.margin_db):
            raise ChannelError(f"rule.margin_db: a number was expected, not {self.margin_db!r}")
        if not (finite(self.overhead) and 0 <= self.overhead < 1):
            raise ChannelError(
                f"rule.overhead: a number from 0 to below 1 was expected, not {self.overhead!r}"
            )
        if not MIN_RATE_MBIT <= self.min_mbit <= self.max_mbit <= MAX_RATE_MBIT:
            limits = f"{MIN_RATE_MBIT:g} <= min_mbit <= max_mbit <= {MAX_RATE_MBIT:g}"
            raise ChannelError(f"rule: {limits} was expected, not {self.min_mbit!r} and {self.max_mbit!r}")
        if self.kind == "table":
            self._check_table()

    def _check_table(self) -> None:
        thresholds, efficiencies = self.thresholds_db, self.efficiencies
        if not thresholds or len(thresholds) != len(efficiencies):
            counts = f"{len(thresholds)} and {len(efficiencies)}"
            raise ChannelError(f"rule: as many thresholds_db as efficiencies were expected, not {counts}")
        if not all(map(finite, thresholds)) or any(a >= b for a, b in zip(thresholds, thresholds[1:])):
            raise ChannelError("rule.thresholds_db: rising numbers were expected")
        rising = all(a <= b for a, b in zip(efficiencies, efficiencies[1:]))
        if not all(map(finite, efficiencies)) or efficiencies[0] < 0 or not rising:
            raise ChannelError("rule.efficiencies: rising numbers of at least 0 were expected")

    @cached_property
    def thresholds(self) -> Tuple[float, ...]:
        """The lowest SNR of each row as a ratio, the margin included."""
        return tuple(10 ** ((value + self.margin_db) / 10) for value in self.thresholds_db)

    def offered_mbit(self, state: float, share: float) -> float:
        """Return what the channel itself offers, in Mbit/s, whether a link can have it or not.

        Args:
            state: The channel's state, at least 0.
            share: The share of the band, at least 0.
        """
        if self.kind == "linear":
            return state * share
        band_mhz = share * self.bandwidth_mhz
        snr = state / band_mhz if band_mhz > 0 else math.inf
        if not math.isfinite(snr):  # no band at all, or so little that it counts as none
            return 0.0
        if self.kind == "shannon":
            return band_mhz * (math.log1p(snr) / _LN_2) * self.scale
        row = bisect_right(self.thresholds, snr) - 1
        efficiency = self.efficiencies[row] if row >= 0 else 0.0
        return band_mhz * efficiency * (1 - self.overhead) * self.scale

    def rate_mbit(self, state: float, share: float) -> float:
        """Return the rate that a link is given, in Mbit/s: what the channel offers, within the limits."""
        return min(max(self.offered_mbit(state, share), self.min_mbit), self.max_mbit)

    def is_outage(self, state: float, share: float) -> bool:
        """Return whether the channel offers less than the lowest rate that a link can have."""
        return self.offered_mbit(state, share) < self.min_mbit

    def as_json(self) -> Dict[str, Any]:
        """Return the rule as a JSON object."""
        value: Dict[str, Any] = {"kind": self.kind}
        if self.kind != "linear":
            value.update(bandwidth_mhz=self.bandwidth_mhz, scale=self.scale)
        if self.kind == "table":
            value.update(thresholds_db=list(self.thresholds_db), efficiencies=list(self.efficiencies))
            value.update(margin_db=self.margin_db, overhead=self.overhead)
        return {**value, "min_mbit": self.min_mbit, "max_mbit": self.max_mbit}

    @classmethod
    def from_json(cls, value: Any) -> Rule:
        """Return the rule that a JSON object describes.

        Raises:
            ChannelError: It is none.
        """
        known = cls.__dataclass_fields__
        if not isinstance(value, dict) or "kind" not in value:
            raise ChannelError("rule: an object with `kind` was expected")
        settings: Dict[str, Any] = {}
        for name, given in value.items():
            if name not in known:
                raise ChannelError(f"rule: unknown key {name!r}; there are: {', '.join(known)}")
            if name == "kind":
                settings[name] = given
            elif name in ("thresholds_db", "efficiencies"):
                settings[name] = numbers(given, f"rule.{name}")
            else:
                settings[name] = number(given, f"rule.{name}")
        return cls(**settings)


def numbers(value: Any, name: str, most: int = 10_000) -> Tuple[float, ...]:
    """Return a list of numbers, or raise a ChannelError that names it."""
    if not isinstance(value, (list, tuple)) or len(value) > most:
        raise ChannelError(f"{name}: a list of at most {most} numbers was expected")
    return tuple(number(item, name) for item in value)


def number(value: Any, name: str) -> float:
    """Return a number, or raise a ChannelError that names it."""
    if not finite(value):
        raise ChannelError(f"{name}: a number was expected, not {value!r}")
    return float(value)


def finite(value: Any) -> bool:
    """Return whether a value is a number that is neither infinite nor too large for a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= 1e300
