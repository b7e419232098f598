"""The ways into the user-space line and out of it: TAPs, and the filters that lead packets there.

    downlink   interface's htb root ── filter ──> TAP ── line ──> packet socket on the interface, with its class named
    uplink     interface's ingress ── filter ──> TAP ── line ──> TAP ── filter ──> interface's ingress, marked
                                   ── filter for what is marked ──> ifb, and so on as without a line

The kernel cuts what is longer than a frame before it reaches a TAP, and works out the checksums. htb takes a packet
whose priority names a class straight to that class; what has been through the line on its way in carries a source
address of Ethernet that no device has, and comes in on the interface itself: reverse-path filters, firewalls and
sockets that are bound to the interface see nothing of the line. The TAPs are not persistent: they go with the process
that holds them, and the kernel takes the filters with what they sit on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import struct
import time
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

from payloads.linkd import rtnl, tc
from payloads.linkd.errors import LinkdError, RefusedError
from payloads.linkd.found import TC_INGRESS
from payloads.linkd.netlink import (
    ACK,
    CREATE,
    EXCLUSIVE,
    REQUEST,
    Message,
    NetlinkError,
    NetlinkSocket,
    attribute,
    nested,
)
from payloads.linkd.plan import ROOT_HANDLE, Interface, Link, ifb_name

__all__ = ["MARK", "Filters", "delete_tap", "hardware_address", "make_tap", "tap_name", "why_not"]

#: The source address of Ethernet of what has been through the line, a locally administered one.
MARK = b"\x02tlink"
_PREFIX = "tbline"
_TUN = Path("/dev/net/tun")
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI, _IFF_TUN_EXCL = 0x400454CA, 0x0002, 0x1000, 0x8000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFMTU = 0x8913, 0x8914, 0x8922
_SIOCSIFHWADDR, _SIOCGIFHWADDR, _SIOCSIFTXQLEN = 0x8924, 0x8927, 0x8943
_IFF_UP, _IFF_NOARP = 0x1, 0x80
_ARPHRD_ETHER = 1
#: Frames that the kernel may put into a TAP before they are read: far more than come between two looks.
_TAP_QUEUE_FRAMES = 10_000
_NEWTFILTER, _DELTFILTER = 44, 45
_KIND, _OPTIONS, _U32_CLASSID, _U32_SEL, _U32_ACT = 1, 2, 1, 5, 7
_ACT_KIND, _ACT_OPTIONS, _MIRRED_PARMS = 1, 2, 2
_STOLEN, _TO_EGRESS, _TO_INGRESS = 4, 1, 3
_TERMINAL = 1
_ETH_P_IP = 0x0800
#: Below those of the plan, which begin at 3. What is marked must not be led into the line again.
_MARKED_FIRST, _DIVERT = 1, 2
_VANISH_S = 2.0

_Key = Tuple[int, int, int]


def why_not() -> Optional[str]:
    """Return why this process cannot make TAPs or send frames, or None."""
    try:
        os.close(os.open(_TUN, os.O_RDWR))
    except OSError as error:
        return f"{_TUN}: {error.strerror}"
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except OSError as error:
        return f"packet sockets: {error.strerror}"
    return None


def tap_name(interface: Interface, direction: str) -> str:
    """Return the name of a direction's TAP: ours, and at most the 15 characters that the kernel allows."""
    return f"{_PREFIX}{direction[0]}{interface.index}"


def hardware_address(interface: str) -> bytes:
    """Return an interface's address of Ethernet.

    Raises:
        LinkdError: It is no Ethernet interface, or there is none of that name.
    """
    with _control() as control:
        answer = _ioctl(control, _SIOCGIFHWADDR, interface, bytes(24))
    (kind,) = struct.unpack_from("=H", answer, 16)
    if kind != _ARPHRD_ETHER:
        raise LinkdError(f"{interface} is no Ethernet interface")
    return answer[18:24]


def make_tap(name: str, mtu: int, address: bytes) -> int:
    """Make a TAP and bring it up; return its descriptor, with which it goes again.

    Raises:
        RefusedError: There is an interface of that name.
        LinkdError: The kernel refused.
    """
    descriptor = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        try:
            flags = _IFF_TAP | _IFF_NO_PI | _IFF_TUN_EXCL
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise RefusedError(f"there is an interface {name} already: ip link del {name}") from error
            raise LinkdError(f"the kernel did not make a TAP: {error.strerror}") from error
        # Nothing but what is led there may come to it; without IPv6 in the kernel there is nothing to switch off.
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        with _control() as control:
            # With the interface's own address the kernel takes what comes out of it as meant for this host.
            _ioctl(control, _SIOCSIFHWADDR, name, struct.pack("=H6s16x", _ARPHRD_ETHER, address))
            _ioctl(control, _SIOCSIFMTU, name, struct.pack("=i20x", mtu))
            _ioctl(control, _SIOCSIFTXQLEN, name, struct.pack("=i20x", _TAP_QUEUE_FRAMES))
            answer = _ioctl(control, _SIOCGIFFLAGS, name, bytes(24))
            (flags,) = struct.unpack_from("=h", answer, 16)
            _ioctl(control, _SIOCSIFFLAGS, name, struct.pack("=h22x", flags | _IFF_UP | _IFF_NOARP))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def delete_tap(name: str) -> None:
    """Wait until a TAP has gone with its process, and delete it where it does not.

    Raises:
        LinkdError: The kernel refused.
    """
    if not name.startswith(_PREFIX):
        raise LinkdError(f"{name} is no interface of the user-space line: it is left alone")
    deadline = time.monotonic() + _VANISH_S
    while True:
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            return
        if time.monotonic() >= deadline:
            break
        time.sleep(0.01)
    netlink = NetlinkSocket()
    try:
        netlink.send([rtnl.delete_link_message(index)])
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise LinkdError(f"the kernel did not delete {name}: {error.strerror}") from error
    finally:
        netlink.close()


class Filters:
    """What leads the packets of links into the line.

    Args:
        interface: The base station's interface; its htb and its ifb are there.
        links: The links; a direction whose rate is None is left alone.
    """

    def __init__(self, interface: Interface, links: Sequence[Link]) -> None:
        self._interface = interface
        self._downlinks = [link for link in links if link.downlink_mbit is not None]
        self._uplinks = [link for link in links if link.uplink_mbit is not None]

    @property
    def directions(self) -> Tuple[str, ...]:
        """The directions in which there is something to lead."""
        both = (("downlink", self._downlinks), ("uplink", self._uplinks))
        return tuple(direction for direction, links in both if links)

    def add(self) -> None:
        """Lead the packets into the line's TAPs, which are there.

        Raises:
            LinkdError: The kernel refused.
        """
        index = self._interface.index
        messages: List[Message] = []
        if self._uplinks:
            tap = socket.if_nametoindex(tap_name(self._interface, "uplink"))
            ifb = socket.if_nametoindex(ifb_name(self._interface))
            marked = (0xFFFFFFFF, int.from_bytes(MARK[:4], "big"), -8)
            messages += [
                tc.ingress_message(tap),
                _redirect(tap, tc.INGRESS_HANDLE, _MARKED_FIRST, [(0, 0, 0)], _TO_INGRESS, index),
                tc.ingress_message(index),
                _redirect(index, tc.INGRESS_HANDLE, _MARKED_FIRST, [marked], _TO_EGRESS, ifb),
            ]
            for link in self._uplinks:
                for port in (link.port, link.probe_port):
                    keys = _keys(link.address, 12, (0xFFFF0000, port << 16, 20))
                    messages.append(_redirect(index, tc.INGRESS_HANDLE, _DIVERT, keys, _TO_EGRESS, tap))
        if self._downlinks:
            tap = socket.if_nametoindex(tap_name(self._interface, "downlink"))
            for link in self._downlinks:
                for port in (link.port, link.probe_port):
                    keys = _keys(link.address, 16, (0x0000FFFF, port, 20))
                    messages.append(_redirect(index, ROOT_HANDLE, _DIVERT, keys, _TO_EGRESS, tap))
        with contextlib.closing(NetlinkSocket()) as netlink:
            for message in messages:
                try:
                    netlink.send([message])
                except NetlinkError as error:
                    name = self._interface.name
                    raise LinkdError(
                        f"the kernel did not lead {name} through the line: {error.strerror}"
                    ) from error

    def remove(self) -> None:
        """Let the packets pass beside the line again; harmless where something has gone already."""
        index = self._interface.index
        messages: List[Message] = []
        if self._downlinks:
            messages.append(_delete(index, ROOT_HANDLE, _DIVERT))
        if self._uplinks:
            messages.append(tc.delete_qdisc_message(index, TC_INGRESS, tc.INGRESS_HANDLE))
        with contextlib.closing(NetlinkSocket()) as netlink:
            for message in messages:
                with contextlib.suppress(NetlinkError):
                    netlink.send([message])


def _keys(address: str, at_address: int, port: _Key) -> List[_Key]:
    """Return u32 keys (mask, value, offset): TCP, an address, a port; an IP header without options."""
    number = int(ipaddress.IPv4Address(address))
    return [(0x00FF0000, 0x00060000, 8), (0xFFFFFFFF, number, at_address), port]


def _redirect(index: int, parent: int, priority: int, keys: Sequence[_Key], way: int, to: int) -> Message:
    """Return the message of a filter that gives what matches to another interface, to send or as received."""
    selector = struct.pack("=BBBxHHhhI", _TERMINAL, 0, len(keys), 0, 0, 0, 0, 0)
    for mask, value, offset in keys:
        selector += struct.pack("!II", mask, value) + struct.pack("=ii", offset, 0)
    parms = struct.pack("=IIiiiiI", 0, 0, _STOLEN, 0, 0, way, to)
    action = attribute(_ACT_KIND, b"mirred\0") + nested(_ACT_OPTIONS, attribute(_MIRRED_PARMS, parms))
    options = attribute(_U32_CLASSID, struct.pack("=I", 1)) + attribute(_U32_SEL, selector)
    options += nested(_U32_ACT, nested(1, action))
    body = _header(index, parent, priority) + attribute(_KIND, b"u32\0") + attribute(_OPTIONS, options)
    return _NEWTFILTER, REQUEST | ACK | CREATE | EXCLUSIVE, body


def _delete(index: int, parent: int, priority: int) -> Message:
    """Return the message that deletes all filters of a priority."""
    return _DELTFILTER, REQUEST | ACK, _header(index, parent, priority) + attribute(_KIND, b"u32\0")


def _header(index: int, parent: int, priority: int) -> bytes:
    return struct.pack("=BxxxiIII", 0, index, 0, parent, priority << 16 | socket.htons(_ETH_P_IP))


def _control() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _ioctl(control: socket.socket, request: int, name: str, value: bytes) -> bytes:
    try:
        return fcntl.ioctl(control, request, struct.pack("16s", name.encode()) + value)
    except OSError as error:
        raise LinkdError(f"the kernel did not set up {name}: {error.strerror}") from error
