"""Messages of queueing disciplines, classes and filters, packed here: many in one call, and options byte for byte.

What somebody else set can only be put back exactly from its raw options. Formats: include/uapi/linux/pkt_sched.h,
pkt_cls.h and tc_act/tc_mirred.h of Linux.
"""

from __future__ import annotations

import ipaddress
import struct
from functools import lru_cache
from typing import Dict, List, NamedTuple, Tuple, Union

from payloads.linkd.found import TC_INGRESS, TC_ROOT, FoundQdisc
from payloads.linkd.netlink import (
    ACK,
    CREATE,
    DUMP,
    EXCLUSIVE,
    REPLACE,
    REQUEST,
    Message,
    NetlinkSocket,
    attribute,
    attributes,
    nested,
)
from payloads.linkd.plan import (
    DEFAULT_MINOR,
    ROOT_HANDLE,
    Class,
    Fifo,
    Leaf,
    Match,
    Netem,
    Rated,
    Redirect,
)

__all__ = [
    "INGRESS_HANDLE",
    "Counters",
    "class_counters",
    "count_filters",
    "delete_class_message",
    "delete_filter_message",
    "delete_qdisc_message",
    "fifo_message",
    "filter_message",
    "ingress_message",
    "list_qdiscs",
    "netem_options",
    "options_to_make",
    "parse_qdisc",
    "qdisc_message",
    "rated_message",
    "root_message",
    "tbf_options",
]

INGRESS_HANDLE = 0xFFFF0000
_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_NEWTCLASS, _DELTCLASS, _GETTCLASS = 40, 41, 42
_NEWTFILTER, _DELTFILTER, _GETTFILTER = 44, 45, 46
_KIND, _OPTIONS, _STATS2, _STAB, _INGRESS_BLOCK, _EGRESS_BLOCK = 1, 2, 7, 8, 13, 14
_EXTRAS = {_STAB: "size table", _INGRESS_BLOCK: "shared block", _EGRESS_BLOCK: "shared block"}
_STATS_BASIC, _STATS_QUEUE = 1, 3
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_HTB_PARMS, _HTB_INIT, _HTB_RATE64, _HTB_CEIL64 = 1, 2, 6, 7
_NETEM_RATE, _NETEM_RATE64, _NETEM_LATENCY64, _NETEM_JITTER64 = 6, 8, 10, 11
#: The attributes that hold times: target, interval and the mark threshold.
_CODEL_TIMES = {"codel": (1, 3, 5), "fq_codel": (1, 3, 7)}
_U32_CLASSID, _U32_SEL, _U32_ACT = 1, 5, 7
_ACT_KIND, _ACT_OPTIONS, _MIRRED_PARMS = 1, 2, 2
_ACT_STOLEN, _EGRESS_REDIRECT = 4, 1
_U32_TERMINAL = 1
_ETH_P_IP = 0x0800
#: IPPROTO_TCP at byte 9; the IP header without options, as every system sends it.
_TCP_KEY = (0x00FF0000, 0x00060000, 8)
_SOURCE, _DESTINATION, _PORTS = 12, 16, 20
#: Above any frame, and below the 200,000 bytes from which the kernel warns.
_QUANTUM_BYTES = 60_000
#: Ethernet as the link layer; without one the kernel would want a table of 256 times.
_RATE_HEAD = (0, 1, 0, -1, 0)
#: One tick of the packet scheduler is 64 ns.
_NS_PER_TICK = 64
_U32 = 0xFFFFFFFF
#: A tbf of this rate (1 TB/s) has its next token with the next nanosecond.
_NO_LIMIT_BYTES_PER_S = 10**12
_CUTTER_LIMIT_BYTES = 1 << 30
_TCMSG = struct.Struct("=BxxxiIII")
#: An attribute's head, and two rates or one and an empty one: cell_log, link layer, overhead, cell_align, mpu, rate.
_HTB_OPTIONS = struct.Struct("=HH BBHhHI BBHhHI IIIII")
_TBF_OPTIONS = struct.Struct("=HH BBHhHI 12x III")
_NETEM_QOPT = struct.Struct("=IIIIII")
_NETEM_RATE_PARMS = struct.Struct("=IiIi")


class Counters(NamedTuple):
    """What passed through a class, and what waits in it.

    Attributes:
        bytes: Bytes of frames sent.
        packets: Frames sent.
        drops: Frames that did not fit in the queue, or that a netem lost.
        backlog_bytes: Bytes that wait.
    """

    bytes: int
    packets: int
    drops: int
    backlog_bytes: int


def _message(
    number: int, index: int, parent: int, handle: int, kind: str, options: bytes, flags: int, info: int = 0
) -> Message:
    body = _TCMSG.pack(0, index, handle, parent, info)
    if kind:
        body += attribute(_KIND, kind.encode() + b"\0")
    if options:
        body += attribute(_OPTIONS, options)
    return number, REQUEST | ACK | flags, body


def qdisc_message(
    index: int, parent: int, handle: int, kind: str, options: bytes, *, create: bool
) -> Message:
    """Return the message that makes a queueing discipline, in place of another, or changes one."""
    flags = CREATE | REPLACE if create else 0
    return _message(_NEWQDISC, index, parent, handle, kind, options, flags)


def root_message(index: int) -> Message:
    """Return the message that makes our htb the root, in place of another."""
    options = attribute(_HTB_INIT, struct.pack("=IIIII", 3, 10, DEFAULT_MINOR, 0, 0))
    return qdisc_message(index, TC_ROOT, ROOT_HANDLE, "htb", options, create=True)


def fifo_message(index: int, fifo: Fifo) -> Message:
    """Return the message that makes the queue of a class that holds nothing back."""
    limit = struct.pack("=I", fifo.limit_packets)
    parent = ROOT_HANDLE | fifo.minor
    return _message(_NEWQDISC, index, parent, fifo.handle, "pfifo", limit, CREATE | EXCLUSIVE)


def ingress_message(index: int) -> Message:
    """Return the message that makes the hook for packets that come in."""
    return _message(_NEWQDISC, index, TC_INGRESS, INGRESS_HANDLE, "ingress", b"", CREATE | EXCLUSIVE)


def delete_qdisc_message(index: int, parent: int, handle: int) -> Message:
    """Return the message that deletes a queueing discipline."""
    return _message(_DELQDISC, index, parent, handle, "", b"", 0)


def delete_class_message(index: int, minor: int) -> Message:
    """Return the message that deletes one of our classes, and what hangs below it."""
    return _message(_DELTCLASS, index, 0, ROOT_HANDLE | minor, "", b"", 0)


def rated_message(index: int, item: Rated, *, create: bool = False) -> Message:
    """Return the message that makes a class or a leaf, or gives it another rate without touching its queue."""
    flags = REQUEST | ACK | CREATE | REPLACE if create else REQUEST | ACK
    if isinstance(item, Class):
        head = _head(index, ROOT_HANDLE, ROOT_HANDLE | item.minor, "htb")
        return _NEWTCLASS, flags, head + attribute(_OPTIONS, _htb_options(item))
    if isinstance(item, Netem):
        head = _head(index, item.parent, item.handle, "netem")
        return _NEWQDISC, flags, head + attribute(_OPTIONS, netem_options(item))
    if isinstance(item, Leaf):
        options = tbf_options(item.rate_bytes_per_s, item.burst_bytes, item.limit_bytes)
    else:
        options = tbf_options(_NO_LIMIT_BYTES_PER_S, item.frame_bytes, _CUTTER_LIMIT_BYTES)
    head = _head(index, ROOT_HANDLE | item.minor, item.handle, "tbf")
    return _NEWQDISC, flags, head + attribute(_OPTIONS, options)


@lru_cache(maxsize=8192)
def _head(index: int, parent: int, handle: int, kind: str) -> bytes:
    """Return what stays of the messages of one class or leaf."""
    return _TCMSG.pack(0, index, handle, parent, 0) + attribute(_KIND, kind.encode() + b"\0")


def _ticks(burst_bytes: int, bytes_per_s: int) -> int:
    return min(_U32, burst_bytes * 10**9 // bytes_per_s // _NS_PER_TICK)


def _htb_options(item: Class) -> bytes:
    ticks = _ticks(item.burst_bytes, item.rate_bytes_per_s)
    rate = min(item.rate_bytes_per_s, _U32)
    options = _HTB_OPTIONS.pack(
        _HTB_OPTIONS.size,
        _HTB_PARMS,
        *_RATE_HEAD,
        rate,
        *_RATE_HEAD,
        rate,
        ticks,
        ticks,
        _QUANTUM_BYTES,
        0,
        0,
    )
    if item.rate_bytes_per_s > _U32:
        rate64 = struct.pack("=Q", item.rate_bytes_per_s)
        options += attribute(_HTB_RATE64, rate64) + attribute(_HTB_CEIL64, rate64)
    return options


def tbf_options(rate_bytes_per_s: int, burst_bytes: int, limit_bytes: int) -> bytes:
    """Return a tbf's options."""
    ticks, rate = _ticks(burst_bytes, rate_bytes_per_s), min(rate_bytes_per_s, _U32)
    options = _TBF_OPTIONS.pack(_TBF_OPTIONS.size, _TBF_PARMS, *_RATE_HEAD, rate, limit_bytes, ticks, 0)
    if rate_bytes_per_s > _U32:
        options += attribute(_TBF_RATE64, struct.pack("=Q", rate_bytes_per_s))
    # The bucket in bytes too: in ticks alone it could come out a few bytes smaller than a frame.
    return options + attribute(_TBF_BURST, struct.pack("=I", burst_bytes))


def netem_options(item: Netem) -> bytes:
    """Return netem's options: its struct comes first and bare, the attributes behind it."""
    ticks = [min(_U32, nanoseconds // _NS_PER_TICK) for nanoseconds in (item.delay_ns, item.jitter_ns)]
    loss = min(_U32, round(item.loss * _U32))
    options = _NETEM_QOPT.pack(ticks[0], item.limit_frames, loss, 0, 0, ticks[1])
    rate = min(item.rate_bytes_per_s, _U32)
    options += attribute(_NETEM_RATE, _NETEM_RATE_PARMS.pack(rate, 0, 0, 0))
    if item.rate_bytes_per_s > _U32:
        options += attribute(_NETEM_RATE64, struct.pack("=Q", item.rate_bytes_per_s))
    # Ticks are rounded down to 64 ns; kernels before 4.14 know nothing else and pass over these.
    options += attribute(_NETEM_LATENCY64, struct.pack("=q", item.delay_ns))
    return options + attribute(_NETEM_JITTER64, struct.pack("=q", item.jitter_ns))


def _u32_options(keys: List[Tuple[int, int, int]], class_id: int) -> bytes:
    """Return u32's options: every (mask, value, offset) of the IP packet has to match."""
    selector = struct.pack("=BBBxHHhhI", _U32_TERMINAL, 0, len(keys), 0, 0, 0, 0, 0)
    for mask, value, offset in keys:
        selector += struct.pack("!II", mask, value) + struct.pack("=ii", offset, 0)
    return attribute(_U32_CLASSID, struct.pack("=I", class_id)) + attribute(_U32_SEL, selector)


def filter_message(index: int, item: Union[Match, Redirect], to: int = 0, parent: int = 0) -> Message:
    """Return the message that makes a filter.

    Args:
        index: The number of the interface that it sits on.
        item: The filter.
        to: The number of the interface that a redirect leads to.
        parent: What it hangs below: our root or the ingress hook, as the filter needs it, where left out.
    """
    address = int(ipaddress.IPv4Address(item.address))
    if isinstance(item, Match):
        at_address, of_sender = _DESTINATION if item.destination else _SOURCE, item.port_of_sender
        class_id, actions, below = ROOT_HANDLE | item.minor, b"", ROOT_HANDLE
    else:
        at_address, of_sender = _SOURCE, True
        parms = struct.pack("=IIiiiiI", 0, 0, _ACT_STOLEN, 0, 0, _EGRESS_REDIRECT, to)
        action = attribute(_ACT_KIND, b"mirred\0") + nested(_ACT_OPTIONS, attribute(_MIRRED_PARMS, parms))
        class_id, actions, below = 1, nested(_U32_ACT, nested(1, action)), INGRESS_HANDLE
    port = (0xFFFF0000, item.port << 16, _PORTS) if of_sender else (0x0000FFFF, item.port, _PORTS)
    options = _u32_options([_TCP_KEY, (0xFFFFFFFF, address, at_address), port], class_id) + actions
    flags = CREATE | EXCLUSIVE
    return _message(_NEWTFILTER, index, parent or below, 0, "u32", options, flags, _info(item.priority))


def delete_filter_message(index: int, item: Union[Match, Redirect]) -> Message:
    """Return the message that deletes a filter."""
    parent = ROOT_HANDLE if isinstance(item, Match) else INGRESS_HANDLE
    return _message(_DELTFILTER, index, parent, 0, "u32", b"", 0, _info(item.priority))


def _info(priority: int) -> int:
    """Return a filter's priority and protocol, the latter in network order, as one number."""
    (protocol,) = struct.unpack("=H", struct.pack("!H", _ETH_P_IP))
    return priority << 16 | int(protocol)


def parse_qdisc(body: bytes) -> Tuple[int, FoundQdisc]:
    """Return the interface's number and the queueing discipline of one dumped message."""
    _family, index, handle, parent, _of = _TCMSG.unpack_from(body)
    found = attributes(body, _TCMSG.size)
    kind = found.get(_KIND, b"").rstrip(b"\0").decode()
    extras = tuple(sorted({name for number, name in _EXTRAS.items() if number in found}))
    return index, FoundQdisc(kind, handle, parent, found.get(_OPTIONS, b"").hex(), extras)


def options_to_make(qdisc: FoundQdisc) -> bytes:
    """Return the options with which a discipline comes out as it was found.

    codel and fq_codel keep times in units of 1024 ns and tell them in whole microseconds, rounded down: asked for
    what was told, they would tell of one less.
    """
    options = bytes.fromhex(qdisc.options)
    times = _CODEL_TIMES.get(qdisc.kind)
    if times is None:
        return options
    result = b""
    for kind, value in attributes(options).items():
        if kind in times:
            value = struct.pack("=I", min(_U32, struct.unpack("=I", value)[0] + 1))
        result += attribute(kind, value)
    return result


def list_qdiscs(netlink: NetlinkSocket, index: int) -> List[FoundQdisc]:
    """Return the queueing disciplines of one interface, as the kernel lists them."""
    # Older kernels list all interfaces whatever was asked for.
    listed = map(parse_qdisc, netlink.ask(_GETQDISC, _TCMSG.pack(0, index, 0, 0, 0), DUMP))
    return [qdisc for of, qdisc in listed if of == index]


def count_filters(netlink: NetlinkSocket, index: int) -> int:
    """Return how many filters hang below an interface's root, whatever its handle."""
    return sum(1 for _ in netlink.ask(_GETTFILTER, _TCMSG.pack(0, index, 0, 0, 0), DUMP))


def class_counters(netlink: NetlinkSocket, index: int) -> Dict[int, Counters]:
    """Return the counters of our classes on an interface, by class number."""
    result: Dict[int, Counters] = {}
    dropped = _leaf_drops(netlink, index)
    for body in netlink.ask(_GETTCLASS, _TCMSG.pack(0, index, 0, ROOT_HANDLE, 0), DUMP):
        _family, _of, handle, _parent, _info = _TCMSG.unpack_from(body)
        found = attributes(body, _TCMSG.size)
        # Older kernels list the classes of the leaves too.
        if handle & 0xFFFF0000 != ROOT_HANDLE or _STATS2 not in found:
            continue
        stats = attributes(found[_STATS2])
        sent, packets = struct.unpack_from("=QI", stats[_STATS_BASIC])
        _waiting, backlog, drops = struct.unpack_from("=III", stats[_STATS_QUEUE])
        minor = handle & 0xFFFF
        result[minor] = Counters(sent, packets, dropped.get(minor, drops), backlog)
    return result


def _leaf_drops(netlink: NetlinkSocket, index: int) -> Dict[int, int]:
    """Return what the queueing discipline of each of our classes has dropped, by class number.

    A class does not learn of each frame that was lost after its tbf had cut a longer packet.
    """
    result: Dict[int, int] = {}
    for body in netlink.ask(_GETQDISC, _TCMSG.pack(0, index, 0, 0, 0), DUMP):
        _family, of, _handle, parent, _info = _TCMSG.unpack_from(body)
        if of != index or parent == TC_ROOT or parent & 0xFFFF0000 != ROOT_HANDLE:
            continue
        stats = attributes(attributes(body, _TCMSG.size).get(_STATS2, b""))
        if _STATS_QUEUE in stats:
            result[parent & 0xFFFF] = int(struct.unpack_from("=III", stats[_STATS_QUEUE])[2])
    return result
