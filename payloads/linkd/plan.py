"""From links to queueing disciplines, classes and filters, as plain data. Pure.

    BS interface   htb root ── default class ── fifo            everything that no filter matches: unshaped
                            ── class 1 ── leaf (downlink)       to the first device's data or probe port
                            ── class 2 ── leaf ...
                   ingress  ── filters                          from a device's data or probe port: to the ifb
    ifb            htb root ── class 1 ── leaf (uplink)         and so on, one class per device

On a device (side ``device``) only its own egress is shaped, which is the uplink: no ingress hook and no ifb.

Three leaves shape:

    tbf     a token bucket. A packet longer than the bucket, such as the super-packets of up to 64 KiB that TCP
            hands over, is cut into frames first, where htb would send it whole as soon as its own bucket is not
            empty. The class has the same rate and a larger bucket, and so does nothing until a link is re-rated
            many times a second: the kernel fills a tbf's bucket at each change, and a class's not.
    netem   below a tbf that limits nothing and only cuts: each frame has its own time, delay and luck, where a
            whole super-packet would be lost at once.
    line    the user-space line (line.py) holds the packets, and the classes only count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Mapping, Sequence, Tuple, Union

from payloads.linkd.links import (
    DEFAULT_PROBE_PORT,
    MAX_DEVICES,
    Link,
    parse_links,
    parse_rates,
)
from payloads.linkd.model import DEFAULT_SLACK_US, bucket_bytes, limit_bytes, netem_limit_frames

__all__ = [
    "DEFAULT_MINOR",
    "DEFAULT_PROBE_PORT",
    "LEAVES",
    "ROOT_HANDLE",
    "SIDES",
    "Class",
    "Cutter",
    "Difference",
    "Fifo",
    "Ifb",
    "Ingress",
    "Interface",
    "Leaf",
    "Link",
    "Match",
    "Netem",
    "Operation",
    "Rated",
    "Redirect",
    "Root",
    "Shape",
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
NETEM_MAJOR = 0x7400
DEFAULT_MINOR = 0xFFF
SIDES = ("bs", "device")
LEAVES = ("tbf", "netem", "line")
_DEFAULT_FIFO_HANDLE = 0x7BFF0000
_FIFO_LIMIT_PACKETS = 10_000
#: 100 Gbit/s and 10 ms of it: a class that limits nothing.
_UNLIMITED = (12_500_000_000, 125_000_000)
#: The class may be this many frames ahead of its rate, where the leaf may be one.
_CLASS_FRAMES = 3
_FILTERS_PER_DEVICE = 2


@dataclass(frozen=True)
class Shape:
    """What stays while links come, go and change; another shape is made from nothing.

    Attributes:
        side: ``bs`` shapes both directions at the base station, ``device`` the uplink at the device.
        leaf: What holds the packets: ``tbf``, ``netem`` or ``line``.
        turns_around: Whether what comes in is shaped too, through an ifb.
    """

    side: str = "bs"
    leaf: str = "tbf"
    turns_around: bool = True

    @property
    def backend(self) -> str:
        """The backend's name in the records."""
        return "bs-line" if self.leaf == "line" else f"{self.side}-htb-{self.leaf}"

    def backends(self, link: Link) -> Dict[str, str]:
        """Return the backend of each direction of a link."""
        return {
            "downlink": "none" if link.downlink_mbit is None else self.backend,
            "uplink": "none" if link.uplink_mbit is None else self.backend,
        }


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
    """The queue of a class that holds nothing back."""

    on: str
    minor: int
    limit_packets: int = _FIFO_LIMIT_PACKETS

    @property
    def handle(self) -> int:
        """The queue's own handle."""
        return _DEFAULT_FIFO_HANDLE if self.minor == DEFAULT_MINOR else (LEAF_MAJOR + self.minor) << 16


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
class Cutter:
    """A tbf that limits nothing: it cuts what is longer than a frame for the netem below it."""

    on: str
    minor: int
    owner: str
    frame_bytes: int

    @property
    def handle(self) -> int:
        """The cutter's own handle."""
        return (LEAF_MAJOR + self.minor) << 16


@dataclass(frozen=True)
class Netem:
    """The netem below a cutter: rate, delay, jitter and loss of a link in one direction."""

    on: str
    minor: int
    owner: str
    rate_bytes_per_s: int
    limit_frames: int
    delay_ns: int = 0
    jitter_ns: int = 0
    loss: float = 0.0

    @property
    def handle(self) -> int:
        """Its own handle."""
        return (NETEM_MAJOR + self.minor) << 16

    @property
    def parent(self) -> int:
        """The place below its cutter."""
        return (LEAF_MAJOR + self.minor) << 16 | 1


@dataclass(frozen=True)
class Ingress:
    """The hook for packets that come in."""

    on: str


@dataclass(frozen=True)
class Match:
    """TCP goes to a class: to an address (``destination``) or from one, and to or from a port (``port_of_sender``)."""

    on: str
    minor: int
    priority: int
    destination: bool
    address: str
    port: int
    port_of_sender: bool = False


@dataclass(frozen=True)
class Redirect:
    """TCP that comes in from an address and port goes through the ifb."""

    on: str
    to: str
    priority: int
    address: str
    port: int


Rated = Union[Class, Leaf, Cutter, Netem]
Operation = Union[Ifb, Root, Class, Fifo, Leaf, Cutter, Netem, Ingress, Match, Redirect]
_RATED = (Class, Leaf, Cutter, Netem)


@dataclass(frozen=True)
class Difference:
    """The way from one plan to another.

    Attributes:
        remove: What goes, in the order of its removal.
        add: What comes, in order.
        change: What gets another rate where it is.
    """

    remove: Tuple[Operation, ...]
    add: Tuple[Operation, ...]
    change: Tuple[Rated, ...]

    def __bool__(self) -> bool:
        return bool(self.remove or self.add or self.change)


def ifb_name(interface: Interface) -> str:
    """Return the name of an interface's ifb: ours, and at most the 15 characters that the kernel allows."""
    return f"tblinkd{interface.index}"


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


def rated(
    on: str,
    minor: int,
    link: Link,
    rate_mbit: float,
    mtu: int,
    slack_us: float = DEFAULT_SLACK_US,
    leaf: str = "tbf",
) -> Tuple[Rated, ...]:
    """Return what gives a link its rate in one direction, and is changed in place when the rate changes."""
    rate = max(1, round(rate_mbit * 1e6 / 8))
    if leaf == "tbf":
        bucket = bucket_bytes(rate_mbit, mtu, slack_us)
        limit = limit_bytes(rate_mbit, mtu, slack_us)
        return (
            Class(on, minor, link.device, rate, _CLASS_FRAMES * bucket),
            Leaf(on, minor, link.device, rate, bucket, limit),
        )
    if leaf == "netem":
        limit = netem_limit_frames(rate_mbit, link.delay_ms, link.jitter_ms)
        delay, jitter = round(link.delay_ms * 1e6), round(link.jitter_ms * 1e6)
        return (Netem(on, minor, link.device, rate, limit, delay, jitter, link.loss_percent / 100),)
    return ()


def _class_of(
    on: str, minor: int, link: Link, rate_mbit: float, mtu: int, slack_us: float, leaf: str
) -> Tuple[Operation, ...]:
    """Return a link's class in one direction and all that hangs below it."""
    changing = rated(on, minor, link, rate_mbit, mtu, slack_us, leaf)
    if leaf == "tbf":
        return changing
    counting = Class(on, minor, link.device, *_UNLIMITED)
    if leaf == "netem":
        return (counting, Cutter(on, minor, link.device, bucket_bytes(0.0, mtu, 0.0)), *changing)
    return (counting, Fifo(on, minor))


def plan(
    links: Sequence[Link],
    interface: Interface,
    minors: Mapping[Tuple[str, str, int, int], int],
    slack_us: float = DEFAULT_SLACK_US,
    shape: Shape = Shape(),
) -> Tuple[Operation, ...]:
    """Return all that shapes the links, in the order in which it can be made.

    With the leaf ``line`` what comes in is led through the line by the line itself, and so is missing here.

    Args:
        links: The links.
        interface: The interface that all their devices are reached through.
        minors: The class number of each link (:func:`assign_minors`).
        slack_us: The bucket's room for late timers (:func:`payloads.linkd.model.bucket_bytes`).
        shape: What stays.
    """
    ifb = ifb_name(interface)
    operations: List[Operation] = [Ifb(ifb, interface.mtu)] if shape.turns_around else []
    for on in (ifb, interface.name) if shape.turns_around else (interface.name,):
        operations += [Root(on), Class(on, DEFAULT_MINOR, "", *_UNLIMITED), Fifo(on, DEFAULT_MINOR)]
    redirects = shape.turns_around and shape.leaf != "line"
    if redirects:
        operations.append(Ingress(interface.name))
    for link in links:
        minor = minors[link.identity]
        ports = [
            (1 + minor * _FILTERS_PER_DEVICE + number, port)
            for number, port in enumerate((link.port, link.probe_port))
        ]
        at_device = shape.side == "device"
        for on, rate_mbit, to_device in (
            (interface.name, link.uplink_mbit if at_device else link.downlink_mbit, not at_device),
            (ifb, None if at_device else link.uplink_mbit, False),
        ):
            if rate_mbit is None:
                continue
            operations += _class_of(on, minor, link, rate_mbit, interface.mtu, slack_us, shape.leaf)
            for priority, port in ports:
                # A device's port is the receiver's on the downlink, and the sender's on the uplink.
                destination = on == interface.name
                operations.append(
                    Match(on, minor, priority, destination, link.address, port, port_of_sender=not to_device)
                )
        if redirects and link.uplink_mbit is not None:
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
        item for key, item in after.items() if isinstance(item, _RATED) and before.get(key, item) != item
    )
    # A class takes what hangs below it with it.
    gone = (item for item in reversed(old) if _key(item) not in after)
    remove = tuple(item for item in gone if not isinstance(item, (Leaf, Fifo, Cutter, Netem)))
    return Difference(remove, tuple(item for item in new if _key(item) not in before), change)


def _key(item: Operation) -> object:
    """Return what makes an operation the same thing in two plans: all of it but a rate."""
    return (type(item), item.on, item.minor, item.owner) if isinstance(item, _RATED) else item
