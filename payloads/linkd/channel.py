"""A channel over time: what each link's state is, block by block, and what rates that gives. Pure.

One physics for linkd, which plays it, for the base station's policies and for the simulator: a *state* for each block
of time, device and direction; a *share* of the band for each device and direction; a rule (rule.py) that makes a rate
of them.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from payloads.json_input import parse_json
from payloads.linkd.model import MAX_RATE_MBIT, MIN_RATE_MBIT
from payloads.linkd.rule import ChannelError, Rule, finite, number, numbers

__all__ = [
    "DIRECTIONS",
    "MAX_BLOCKS",
    "MIN_BLOCK_S",
    "Channel",
    "ChannelError",
    "Rates",
    "Rule",
    "Shares",
    "changed_shares",
    "check_shares",
    "equal_shares",
    "linear_channel",
    "parse_channel",
    "read_channel",
]

DIRECTIONS = ("downlink", "uplink")
MAX_BLOCKS = 200_000
#: No timer of a busy base station plays shorter blocks.
MIN_BLOCK_S = 0.001
_MAX_STATES = 4_000_000
_MAX_FILE_BYTES = 128 << 20
_VERSION = 1
#: A timer that is rounded down must not find the block before; far below a block, far above a rounding error.
_GRACE_S = 1e-6
_SHARE_SLACK = 1e-9

#: Rates in Mbit/s by device: downlink, uplink.
Rates = Dict[str, Tuple[float, float]]
#: Shares of the band by device: downlink, uplink.
Shares = Mapping[str, Tuple[float, float]]


@dataclass(frozen=True)
class Channel:
    """All links' channels over time. It starts again at its end.

    Attributes:
        rule: What makes rates of states and shares.
        devices: The devices' names; all sequences of states and shares are in their order.
        shares_downlink: The share of the downlink band that each device starts with.
        shares_uplink: The same for the uplink.
        t_s: When each block begins, in seconds from the start; the first at 0.
        duration_s: When the channel ends and starts again.
        downlink: For each block, the state of each device's downlink.
        uplink: The same for the uplink.

    Raises:
        ChannelError: Something does not fit.
    """

    rule: Rule
    devices: Tuple[str, ...]
    shares_downlink: Tuple[float, ...]
    shares_uplink: Tuple[float, ...]
    t_s: Tuple[float, ...]
    duration_s: float
    downlink: Tuple[Tuple[float, ...], ...]
    uplink: Tuple[Tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not self.devices or len(set(self.devices)) != len(self.devices):
            raise ChannelError("devices: at least one name, and each once, was expected")
        self._check_times()
        if len(self.t_s) * len(self.devices) * 2 > _MAX_STATES:
            raise ChannelError(f"{len(self.t_s)} blocks of {len(self.devices)} devices are too many")
        for direction, states in (("downlink", self.downlink), ("uplink", self.uplink)):
            self._check_states(direction, states)
        for direction, shares in (("downlink", self.shares_downlink), ("uplink", self.shares_uplink)):
            if len(shares) != len(self.devices):
                raise ChannelError(
                    f"shares.{direction}: {len(self.devices)} numbers were expected, not {len(shares)}"
                )
        check_shares(self.shares())

    def _check_times(self) -> None:
        if not 1 <= len(self.t_s) <= MAX_BLOCKS:
            raise ChannelError(f"t_s: 1 to {MAX_BLOCKS} blocks were expected, not {len(self.t_s)}")
        times = (*self.t_s, self.duration_s)
        if not all(map(finite, times)) or times[0] != 0:
            raise ChannelError("t_s: times in seconds from 0 were expected")
        for index, (start, end) in enumerate(zip(times, times[1:])):
            # 0.1 us for sums of decimal fractions
            if end - start < MIN_BLOCK_S - 1e-7:
                name = "duration_s" if index == len(times) - 2 else f"t_s[{index + 1}]"
                raise ChannelError(
                    f"{name}: at least {start:g} + {MIN_BLOCK_S:g} s was expected, not {end!r}"
                )

    def _check_states(self, direction: str, states: Sequence[Sequence[float]]) -> None:
        if len(states) != len(self.t_s):
            raise ChannelError(f"{direction}: {len(self.t_s)} blocks were expected, not {len(states)}")
        for index, block in enumerate(states):
            if len(block) != len(self.devices):
                text = f"{len(self.devices)} states were expected, not {len(block)}"
                raise ChannelError(f"{direction}[{index}]: {text}")
            for state in block:
                if not (finite(state) and state >= 0):
                    text = f"numbers of at least 0 were expected, not {state!r}"
                    raise ChannelError(f"{direction}[{index}]: {text}")

    def shares(self) -> Dict[str, Tuple[float, float]]:
        """Return the shares that the devices start with."""
        return dict(zip(self.devices, zip(self.shares_downlink, self.shares_uplink)))

    def block_at(self, elapsed_s: float) -> int:
        """Return the number of the block at a time, in seconds since the channel was started."""
        return bisect_right(self.t_s, self._phase(elapsed_s)) - 1

    def next_block_in_s(self, elapsed_s: float) -> Optional[float]:
        """Return how long after a time the next block begins, or None where there is one block only."""
        if len(self.t_s) == 1:
            return None
        phase = self._phase(elapsed_s)
        following = bisect_right(self.t_s, phase)
        end = self.t_s[following] if following < len(self.t_s) else self.duration_s
        return end - phase + _GRACE_S

    def _phase(self, elapsed_s: float) -> float:
        return (max(0.0, elapsed_s) + _GRACE_S) % self.duration_s

    def rates(self, block: int, shares: Optional[Shares] = None) -> Rates:
        """Return the rates of a block.

        Args:
            block: Its number.
            shares: The shares by device, for every device; those that the channel starts with where left out.
        """
        shares = self.shares() if shares is None else shares
        rate = self.rule.rate_mbit
        return {
            name: (rate(down, shares[name][0]), rate(up, shares[name][1]))
            for name, down, up in zip(self.devices, self.downlink[block], self.uplink[block])
        }

    def lengths_s(self) -> List[float]:
        """Return how long each block is, in seconds."""
        return [end - start for start, end in zip(self.t_s, (*self.t_s[1:], self.duration_s))]

    def mean_rates(self, shares: Optional[Shares] = None) -> Rates:
        """Return the rates' means over time, in Mbit/s: each block counts by its length."""
        shares = self.shares() if shares is None else shares
        lengths = self.lengths_s()
        rate = self.rule.rate_mbit
        result: Rates = {}
        for index, name in enumerate(self.devices):
            down, up = shares[name]
            result[name] = (
                sum(rate(row[index], down) * t for row, t in zip(self.downlink, lengths)) / self.duration_s,
                sum(rate(row[index], up) * t for row, t in zip(self.uplink, lengths)) / self.duration_s,
            )
        return result

    def highest_rates(self, shares: Optional[Shares] = None) -> Rates:
        """Return the highest rate that each link comes to, in Mbit/s; more state never means less rate."""
        shares = self.shares() if shares is None else shares
        rate = self.rule.rate_mbit
        return {
            name: (rate(max(down), shares[name][0]), rate(max(up), shares[name][1]))
            for name, down, up in zip(self.devices, zip(*self.downlink), zip(*self.uplink))
        }

    def as_json(self) -> Dict[str, Any]:
        """Return the channel as a JSON object, as a channel file holds it."""
        return {
            "version": _VERSION,
            "rule": self.rule.as_json(),
            "devices": list(self.devices),
            "shares": {"downlink": list(self.shares_downlink), "uplink": list(self.shares_uplink)},
            "t_s": list(self.t_s),
            "duration_s": self.duration_s,
            "downlink": [list(block) for block in self.downlink],
            "uplink": [list(block) for block in self.uplink],
        }


def equal_shares(devices: Sequence[str]) -> Dict[str, Tuple[float, float]]:
    """Return the same share of both bands for every device."""
    return {name: (1 / len(devices), 1 / len(devices)) for name in devices}


def check_shares(shares: Shares) -> None:
    """Check shares of the band: each at least 0, and in each direction at most 1 together.

    Raises:
        ChannelError: They are not.
    """
    for side, direction in enumerate(DIRECTIONS):
        for name, pair in shares.items():
            if not (finite(pair[side]) and pair[side] >= 0):
                raise ChannelError(
                    f"shares: {name}: {direction}: at least 0 was expected, not {pair[side]!r}"
                )
        total = sum(pair[side] for pair in shares.values())
        if total > 1 + _SHARE_SLACK:
            raise ChannelError(f"shares: the {direction} band is shared out {total:.6g} times; at most 1 is")


def changed_shares(shares: Shares, asked: Any) -> Dict[str, Tuple[float, float]]:
    """Return all shares after some devices' were changed.

    Args:
        shares: The present shares, of all devices.
        asked: By device a number for both directions, or ``{"downlink": s, "uplink": s}`` with one or both.
            Devices and directions that are not named keep theirs.

    Raises:
        ChannelError: A device is unknown, or the shares are wrong.
    """
    if not isinstance(asked, Mapping):
        raise ChannelError("shares: an object of shares by device was expected")
    result = dict(shares)
    for name, given in asked.items():
        if name not in result:
            raise ChannelError(f"shares: there is no device {name!r}; there are: {', '.join(result)}")
        if not isinstance(given, Mapping):
            both = number(given, f"shares: {name}")
            result[name] = (both, both)
            continue
        pair = dict(zip(DIRECTIONS, result[name]))
        for direction, value in given.items():
            if direction not in DIRECTIONS:
                raise ChannelError(f"shares: {name}: `downlink` or `uplink` was expected, not {direction!r}")
            pair[direction] = number(value, f"shares: {name}: {direction}")
        result[name] = (pair["downlink"], pair["uplink"])
    check_shares(result)
    return result


def linear_channel(rates: Rates) -> Channel:
    """Return links of fixed rates as a channel of one block, so that their band can be shared out anew.

    Args:
        rates: The rate that each device has with an equal share of the band.
    """
    count = len(rates)
    return Channel(
        rule=Rule("linear", min_mbit=MIN_RATE_MBIT, max_mbit=MAX_RATE_MBIT),
        devices=tuple(rates),
        shares_downlink=(1 / count,) * count,
        shares_uplink=(1 / count,) * count,
        t_s=(0.0,),
        duration_s=1.0,
        downlink=(tuple(down * count for down, _ in rates.values()),),
        uplink=(tuple(up * count for _, up in rates.values()),),
    )


def read_channel(path: Path) -> Channel:
    """Return the channel that a file holds.

    Raises:
        ChannelError: The file cannot be read, or holds no channel.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ChannelError(f"{path}: a channel file of more than {_MAX_FILE_BYTES >> 20} MiB is not read")
        value = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ChannelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ChannelError:
        raise
    except ValueError as error:
        raise ChannelError(f"{path}: JSON was expected: {error}") from error
    try:
        return parse_channel(value)
    except ChannelError as error:
        raise ChannelError(f"{path}: {error}") from error


def parse_channel(value: Any) -> Channel:
    """Return the channel that a JSON object describes.

    Raises:
        ChannelError: It describes none.
    """
    if not isinstance(value, dict):
        raise ChannelError("a channel is a JSON object")
    if value.get("version") != _VERSION:
        raise ChannelError(f"version: {_VERSION} was expected, not {value.get('version')!r}")
    keys = ("version", "rule", "devices", "shares", "t_s", "duration_s", "downlink", "uplink")
    for key in keys:
        if key not in value:
            raise ChannelError(f"{key}: this key is missing")
    for key in value:
        if key not in keys:
            raise ChannelError(f"{key}: unknown key; there are: {', '.join(keys)}")
    devices, shares = value["devices"], value["shares"]
    if not isinstance(devices, list) or not all(isinstance(name, str) and name for name in devices):
        raise ChannelError("devices: a list of names was expected")
    if not isinstance(shares, dict) or set(shares) != set(DIRECTIONS):
        raise ChannelError("shares: an object with `downlink` and `uplink` was expected")
    return Channel(
        rule=Rule.from_json(value["rule"]),
        devices=tuple(devices),
        shares_downlink=numbers(shares["downlink"], "shares.downlink"),
        shares_uplink=numbers(shares["uplink"], "shares.uplink"),
        t_s=numbers(value["t_s"], "t_s", MAX_BLOCKS),
        duration_s=number(value["duration_s"], "duration_s"),
        downlink=_blocks(value["downlink"], "downlink"),
        uplink=_blocks(value["uplink"], "uplink"),
    )


def _blocks(value: Any, name: str) -> Tuple[Tuple[float, ...], ...]:
    if not isinstance(value, list) or len(value) > MAX_BLOCKS:
        raise ChannelError(f"{name}: a list of at most {MAX_BLOCKS} blocks was expected")
    return tuple(numbers(block, f"{name}[{index}]") for index, block in enumerate(value))
