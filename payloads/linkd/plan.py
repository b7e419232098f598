"""From links to queueing disciplines, classes and filters, as plain data. Pure.

    BS interface   htb root ── default class ── fifo            everything that no filter matches: unshaped
                            ── class 1 ── tbf (downlink rate)   to the first device's data or probe port
                            ── class 2 ── tbf ...
                   ingress  ── filters                          from a device's data or probe port: to the ifb
    ifb            htb root ── class 1 ── tbf (uplink rate)     and so on, one class per device

The tbf leaf shapes: a packet longer than its bucket, such as the super-packets of up to 64 KiB that TCP hands over,
is cut into frames first, where htb would send it whole as soon as its own bucket is not empty. The class has the
same rate and a larger bucket, and so does nothing until a link is re-rated many times a second: the kernel fills a
tbf's bucket at each change, and a class's not.
"""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, Sequence, Tuple, Union

from payloads.linkd.errors import LinksError
from payloads.linkd.model import DEFAULT_SLACK_US, MAX_RATE_MBIT, MIN_RATE_MBIT, bucket_bytes, limit_bytes

__all__ = [
    "DEFAULT_MINOR",
    "DEFAULT_PROBE_PORT",
    "ROOT_HANDLE",
    "Class",
    "Difference",
    "Fifo",
    "Ifb",
    "Ingress",
    "Interface",
    "Leaf",
    "Link",
    "Match",
    "Operation",
    "Rated",
    "Redirect",
    "Root",
    "assign_minors",
    "difference",
    "ifb_name",
    "parse_links",
    "parse_rates",
    "plan",
    "rated",
]

#: Major numbers that nobody else is likely to use: what carries them on an interface is ours.
ROOT_HANDLE = 0x7B1D0000
LEAF_MAJOR = 0x7C00
DEFAULT_MINOR = 0xFFF
DEFAULT_PROBE_PORT = 7071
MAX_DEVICES = 0x3FF
_FIFO_LIMIT_PACKETS = 10_000
#: 100 Gbit/s and 10 ms of it: a class that limits nothing.
_UNLIMITED = (12_500_000_000, 125_000_000)
#: The class may be this many frames ahead of its rate, where the leaf may be one.
_CLASS_FRAMES = 3
_FILTERS_PER_DEVICE = 2


@dataclass(frozen=True)
class Interface:
    """The base station's interface towards the devices.

    Attributes:
        name: Its name.
        index: Its number.
        mtu: Its MTU in bytes.
    """

    name: str
    index: int
    mtu: int


@dataclass(frozen=True)
class Link:
    """The rates asked for one device.

    Attributes:
        device: The device's name.
        address: Its IPv4 address.
        port: The port of its worker.
        probe_port: The port of its probe responder, which shares the shaped class.
        downlink_mbit: Frame rate from the base station to the device, in Mbit/s.
        uplink_mbit: Frame rate from the device to the base station, in Mbit/s.
    """

    device: str
    address: str
    port: int
    probe_port: int
    downlink_mbit: float
    uplink_mbit: float

    @property
    def identity(self) -> Tuple[str, str, int, int]:
        """What the filters match: a link of the same identity keeps its classes."""
        return self.device, self.address, self.port, self.probe_port

    def as_json(self) -> Dict[str, Any]:
        """Return the link as plain data."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Ifb:
    """The device that uplink traffic is turned around in."""

    name: str
    mtu: int


@dataclass(frozen=True)
class Root:
    """The htb root of an interface."""

    on: str


@dataclass(frozen=True)
class Class:
    """A class below the root; its counters are those of its owner."""

    on: str
    minor: int
    owner: str
    rate_bytes_per_s: int
    burst_bytes: int


@dataclass(frozen=True)
class Fifo:
    """The queue of the class that everything unmatched goes to."""

    on: str
    minor: int
    limit_packets: int = _FIFO_LIMIT_PACKETS


@dataclass(frozen=True)
class Leaf:
    """The tbf of a class: what shapes a link in one direction."""

    on: str
    minor: int
    owner: str
    rate_bytes_per_s: int
    burst_bytes: int
    limit_bytes: int

    @property
    def handle(self) -> int:
        """The leaf's own handle."""
        return (LEAF_MAJOR + self.minor) << 16


@dataclass(frozen=True)
class Ingress:
    """The hook for packets that come in."""

    on: str


@dataclass(frozen=True)
class Match:
    """TCP to (``destination``) or from an address and port goes to a class."""

    on: str
    minor: int
    priority: int
    destination: bool
    address: str
    port: int


@dataclass(frozen=True)
class Redirect:
    """TCP that comes in from an address and port goes through the ifb."""

    on: str
    to: str
    priority: int
    address: str
    port: int


Rated = Union[Class, Leaf]
Operation = Union[Ifb, Root, Class, Fifo, Leaf, Ingress, Match, Redirect]


@dataclass(frozen=True)
class Difference:
    """The way from one plan to another.

    Attributes:
        remove: What goes, in the order of its removal.
        add: What comes, in order.
        change: The classes and leaves that get another rate where they are.
    """

    remove: Tuple[Operation, ...]
    add: Tuple[Operation, ...]
    change: Tuple[Rated, ...]

    def __bool__(self) -> bool:
        return bool(self.remove or self.add or self.change)


def ifb_name(interface: Interface) -> str:
    """Return the name of an interface's ifb: ours, and at most the 15 characters that the kernel allows."""
    return f"tblinkd{interface.index}"


def parse_links(value: Any) -> Tuple[Link, ...]:
    """Return the links of a JSON list.

    Raises:
        LinksError: It is not a list of links; one line says where and what was expected.
    """
    if not isinstance(value, list) or not value:
        raise LinksError("links: a list of at least one link was expected")
    if len(value) > MAX_DEVICES:
        raise LinksError(f"links: at most {MAX_DEVICES} links were expected, not {len(value)}")
    links = [_parse_link(item, f"links[{number}]") for number, item in enumerate(value)]
    for what in ("device", "address"):
        seen: Dict[str, int] = {}
        for number, link in enumerate(links):
            first = seen.setdefault(getattr(link, what), number)
            if first != number:
                raise LinksError(f"links[{number}]: its {what} is that of links[{first}] too")
    return tuple(links)


def _parse_link(item: Any, where: str) -> Link:
    if not isinstance(item, dict):
        raise LinksError(f"{where}: an object was expected")
    known = {"device", "address", "port", "probe_port", "downlink_mbit", "uplink_mbit"}
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
    rates = [_parse_rate(item.get(key), f"{where}: {key}") for key in ("downlink_mbit", "uplink_mbit")]
    return Link(device, address, ports[0], ports[1], rates[0], rates[1])


def _parse_rate(value: Any, where: str) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not MIN_RATE_MBIT <= value <= MAX_RATE_MBIT:
        raise LinksError(
            f"{where}: {MIN_RATE_MBIT:g} to {MAX_RATE_MBIT:g} Mbit/s were expected, not {value!r}"
        )
    return float(value)


def parse_rates(value: Any, links: Sequence[Link]) -> Tuple[Link, ...]:
    """Return the links with the rates of a JSON object: device -> downlink_mbit, uplink_mbit, or one of them.

    Raises:
        LinksError: It names an unknown device or direction, or a rate is out of range.
    """
    if not isinstance(value, dict):
        raise LinksError("rates: an object of devices was expected")
    by_device = {link.device: link for link in links}
    for device, rates in value.items():
        if device not in by_device:
            raise LinksError(f"rates: no link was set for {device!r}")
        if not isinstance(rates, dict) or not rates or not set(rates) <= {"downlink_mbit", "uplink_mbit"}:
            raise LinksError(f"rates: {device}: downlink_mbit, uplink_mbit or both were expected")
        given: Dict[str, Any] = {
            key: _parse_rate(rate, f"rates: {device}: {key}") for key, rate in rates.items()
        }
        by_device[device] = replace(by_device[device], **given)
    return tuple(by_device.values())


def assign_minors(
    links: Sequence[Link], previous: Mapping[Tuple[str, str, int, int], int]
) -> Dict[Tuple[str, str, int, int], int]:
    """Return the class number of each link: the one that it had, else the lowest free one from 1."""
    minors = {link.identity: previous[link.identity] for link in links if link.identity in previous}
    free = iter(sorted(set(range(1, MAX_DEVICES + 1)) - set(minors.values())))
    for link in links:
        if link.identity not in minors:
            minors[link.identity] = next(free)
    return minors


def rated(on: str, minor: int, owner: str, rate_mbit: float, mtu: int, slack_us: float) -> Tuple[Class, Leaf]:
    """Return the class and the leaf that give a rate at an MTU."""
    rate = max(1, round(rate_mbit * 1e6 / 8))
    bucket = bucket_bytes(rate_mbit, mtu, slack_us)
    return (
        Class(on, minor, owner, rate, _CLASS_FRAMES * bucket),
        Leaf(on, minor, owner, rate, bucket, limit_bytes(rate_mbit, mtu, slack_us)),
    )


def plan(
    links: Sequence[Link],
    interface: Interface,
    minors: Mapping[Tuple[str, str, int, int], int],
    slack_us: float = DEFAULT_SLACK_US,
) -> Tuple[Operation, ...]:
    """Return all that shapes the links, in the order in which it can be made.

    Args:
        links: The links.
        interface: The interface that all their devices are reached through.
        minors: The class number of each link (:func:`assign_minors`).
        slack_us: The bucket's room for late timers (:func:`payloads.linkd.model.bucket_bytes`).
    """
    ifb = ifb_name(interface)
    operations: List[Operation] = [Ifb(ifb, interface.mtu)]
    for on in (ifb, interface.name):
        operations += [Root(on), Class(on, DEFAULT_MINOR, "", *_UNLIMITED), Fifo(on, DEFAULT_MINOR)]
    operations.append(Ingress(interface.name))
    for link in links:
        minor = minors[link.identity]
        for on, rate in ((interface.name, link.downlink_mbit), (ifb, link.uplink_mbit)):
            operations += rated(on, minor, link.device, rate, interface.mtu, slack_us)
        ports = [
            (1 + minor * _FILTERS_PER_DEVICE + number, port)
            for number, port in enumerate((link.port, link.probe_port))
        ]
        for priority, port in ports:
            operations.append(Match(interface.name, minor, priority, True, link.address, port))
            operations.append(Match(ifb, minor, priority, False, link.address, port))
        # Last: nothing comes to the ifb before its class is there.
        operations += [
            Redirect(interface.name, ifb, priority, link.address, port) for priority, port in ports
        ]
    return tuple(operations)


def difference(old: Sequence[Operation], new: Sequence[Operation]) -> Difference:
    """Return the way from one plan to another on the same interface.

    Classes and leaves change where they are; all else that differs is taken away and made anew.
    """
    before, after = {_key(item): item for item in old}, {_key(item): item for item in new}
    change = tuple(
        item
        for key, item in after.items()
        if isinstance(item, (Class, Leaf)) and before.get(key, item) != item
    )
    # A class takes its leaf with it.
    gone = (item for item in reversed(old) if _key(item) not in after)
    remove = tuple(item for item in gone if not isinstance(item, (Leaf, Fifo)))
    return Difference(remove, tuple(item for item in new if _key(item) not in before), change)


def _key(item: Operation) -> object:
    """Return what makes an operation the same thing in two plans: all of it but a rate."""
    return (type(item), item.on, item.minor, item.owner) if isinstance(item, (Class, Leaf)) else item
