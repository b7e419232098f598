"""The links that are asked for: what a JSON list says, checked. Pure."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from payloads.linkd.errors import LinksError
from payloads.linkd.model import MAX_RATE_MBIT, MIN_RATE_MBIT

__all__ = [
    "DEFAULT_PROBE_PORT",
    "DIRECTIONS",
    "MAX_DELAY_MS",
    "MAX_DEVICES",
    "MAX_JITTER_MS",
    "Link",
    "parse_links",
    "parse_rates",
    "with_rates",
]

DIRECTIONS = ("downlink", "uplink")
DEFAULT_PROBE_PORT = 7071
MAX_DEVICES = 0x3FF
MAX_DELAY_MS = 10_000.0
#: netem keeps its jitter in 31 bits of nanoseconds.
MAX_JITTER_MS = 2_000.0
_RATES = frozenset(("downlink_mbit", "uplink_mbit"))


@dataclass(frozen=True)
class Link:
    """What is asked for one device.

    Attributes:
        device: The device's name.
        address: Its IPv4 address; on the device itself (side ``device``) the base station's.
        port: The port of its worker.
        probe_port: The port of its probe responder, which shares the shaped class.
        downlink_mbit: Frame rate from the base station to the device, in Mbit/s; None: left alone.
        uplink_mbit: Frame rate from the device to the base station, in Mbit/s; None: left alone.
        delay_ms: One-way delay of each direction, in ms, beside what the rate takes.
        jitter_ms: Each frame's delay is drawn evenly from ``delay_ms`` ± this.
        loss_percent: The share of frames that are lost, each on its own.
    """

    device: str
    address: str
    port: int
    probe_port: int
    downlink_mbit: Optional[float]
    uplink_mbit: Optional[float]
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss_percent: float = 0.0

    @property
    def impaired(self) -> bool:
        """Whether more than a rate is asked for."""
        return bool(self.delay_ms or self.jitter_ms or self.loss_percent)

    @property
    def identity(self) -> Tuple[str, str, int, int]:
        """What the filters match: a link of the same identity keeps its classes."""
        return self.device, self.address, self.port, self.probe_port

    def as_json(self) -> Dict[str, Any]:
        """Return the link as plain data."""
        return dict(self.__dict__)


def parse_links(value: Any, *, rates_given: bool = True) -> Tuple[Link, ...]:
    """Return the links of a JSON list.

    Args:
        value: The list.
        rates_given: Whether each link must have its rates. Where a channel gives them, a rate may be left out;
            it is 0 then, and to be replaced.

    Raises:
        LinksError: It is not a list of links; one line says where and what was expected.
    """
    if not isinstance(value, list) or not value:
        raise LinksError("links: a list of at least one link was expected")
    if len(value) > MAX_DEVICES:
        raise LinksError(f"links: at most {MAX_DEVICES} links were expected, not {len(value)}")
    links = [_parse_link(item, f"links[{number}]", rates_given) for number, item in enumerate(value)]
    for what in ("device", "address"):
        seen: Dict[str, int] = {}
        for number, link in enumerate(links):
            first = seen.setdefault(getattr(link, what), number)
            if first != number:
                raise LinksError(f"links[{number}]: its {what} is that of links[{first}] too")
    return tuple(links)


def _parse_link(item: Any, where: str, rates_given: bool) -> Link:
    if not isinstance(item, dict):
        raise LinksError(f"{where}: an object was expected")
    known = set(Link.__dataclass_fields__)
    unknown = sorted(set(item) - known)
    if unknown:
        raise LinksError(f"{where}: unknown key {unknown[0]!r}; there are {', '.join(sorted(known))}")
    device = item.get("device")
    if not isinstance(device, str) or not device:
        raise LinksError(f"{where}: device: a name was expected, not {device!r}")
    where = f"{where} ({device})"
    try:
        address = str(ipaddress.IPv4Address(item.get("address")))
    except ValueError:
        raise LinksError(
            f"{where}: address: an IPv4 address was expected, not {item.get('address')!r}"
        ) from None
    ports = []
    for key, default in (("port", None), ("probe_port", DEFAULT_PROBE_PORT)):
        port = item.get(key, default)
        if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
            raise LinksError(f"{where}: {key}: a port was expected, not {port!r}")
        ports.append(port)
    if ports[0] == ports[1]:
        raise LinksError(f"{where}: port and probe_port are both {ports[0]}")
    rates: List[Optional[float]] = []
    for key in ("downlink_mbit", "uplink_mbit"):
        if key not in item and not rates_given:
            rates.append(0.0)
        elif key not in item:
            raise LinksError(f"{where}: {key}: a rate in Mbit/s was expected, or null to leave it alone")
        else:
            rates.append(None if item[key] is None else _parse_rate(item[key], f"{where}: {key}"))
    delay = _parse_number(item, "delay_ms", MAX_DELAY_MS, "ms", where)
    jitter = _parse_number(item, "jitter_ms", MAX_JITTER_MS, "ms", where)
    loss = _parse_number(item, "loss_percent", 100.0, "%", where)
    if jitter > delay:
        raise LinksError(f"{where}: jitter_ms: at most delay_ms ({delay:g}) was expected, not {jitter:g}")
    return Link(device, address, ports[0], ports[1], rates[0], rates[1], delay, jitter, loss)


def _is_number(value: Any) -> bool:
    # Compared and not asked whether it is finite: JSON's whole numbers may be too long for that.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def _is_rate(value: Any) -> bool:
    return _is_number(value) and MIN_RATE_MBIT <= value <= MAX_RATE_MBIT


def _not_a_rate(value: Any, where: str) -> LinksError:
    return LinksError(f"{where}: {MIN_RATE_MBIT:g} to {MAX_RATE_MBIT:g} Mbit/s were expected, not {value!r}")


def _parse_rate(value: Any, where: str) -> float:
    if not _is_rate(value):
        raise _not_a_rate(value, where)
    return float(value)


def _parse_number(item: Mapping[str, Any], key: str, most: float, unit: str, where: str) -> float:
    value = item.get(key, 0.0)
    if not _is_number(value) or not 0 <= value <= most:
        raise LinksError(f"{where}: {key}: 0 to {most:g} {unit} were expected, not {value!r}")
    return float(value)


def parse_rates(value: Any, links: Sequence[Link]) -> Dict[str, Tuple[Optional[float], Optional[float]]]:
    """Return the downlink's and the uplink's new rate of each device that a JSON object names; None: not named.

    Raises:
        LinksError: It names an unknown device or direction, or one that is left alone, or a rate is out of range.
    """
    if not isinstance(value, dict):
        raise LinksError("rates: an object of devices was expected")
    by_device = {link.device: link for link in links}
    result: Dict[str, Tuple[Optional[float], Optional[float]]] = {}
    for device, rates in value.items():
        link = by_device.get(device)
        if link is None:
            raise LinksError(f"rates: no link was set for {device!r}")
        if not isinstance(rates, dict) or not rates or not _RATES.issuperset(rates):
            raise LinksError(f"rates: {device}: downlink_mbit, uplink_mbit or both were expected")
        for key, rate in rates.items():
            if getattr(link, key) is None:
                raise LinksError(f"rates: {device}: {key}: this direction was set to be left alone")
            if not _is_rate(rate):
                raise _not_a_rate(rate, f"rates: {device}: {key}")
        down, up = rates.get("downlink_mbit"), rates.get("uplink_mbit")
        result[device] = (None if down is None else float(down), None if up is None else float(up))
    return result


def with_rates(link: Link, downlink_mbit: float, uplink_mbit: float) -> Link:
    """Return a link with other rates; a direction that is left alone stays so."""
    down = None if link.downlink_mbit is None else downlink_mbit
    up = None if link.uplink_mbit is None else uplink_mbit
    if down == link.downlink_mbit and up == link.uplink_mbit:
        return link
    impairments = link.delay_ms, link.jitter_ms, link.loss_percent
    # As dataclasses.replace does, in a third of its time: this is done for every link at every block.
    return Link(link.device, link.address, link.port, link.probe_port, down, up, *impairments)
