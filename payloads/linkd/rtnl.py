"""Interfaces and routes over netlink: the few messages that linkd needs."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Tuple

from payloads.linkd.netlink import (
    ACK,
    CREATE,
    EXCLUSIVE,
    REQUEST,
    Message,
    NetlinkSocket,
    attribute,
    attributes,
    nested,
)

__all__ = [
    "add_link_message",
    "add_veth_message",
    "delete_link_message",
    "interface_mtu",
    "link_up_message",
    "route",
]

_NEWLINK, _DELLINK, _GETLINK, _GETROUTE = 16, 17, 18, 26
_IFNAME, _MTU, _LINKINFO, _INFO_KIND, _INFO_DATA, _VETH_PEER = 3, 4, 18, 1, 2, 1
_RTA_DST, _RTA_OIF = 1, 4
_IFF_UP = 0x1
_IFINFOMSG = struct.Struct("=BxHiII")
_RTMSG = struct.Struct("=BBBBBBBBI")


def _name(name: str) -> bytes:
    return attribute(_IFNAME, name.encode() + b"\0")


def add_link_message(name: str, kind: str, mtu: int = 0) -> Message:
    """Return the message that makes an interface of a kind."""
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + _name(name)
    if mtu:
        body += attribute(_MTU, struct.pack("=I", mtu))
    body += nested(_LINKINFO, attribute(_INFO_KIND, kind.encode()))
    return _NEWLINK, REQUEST | ACK | CREATE | EXCLUSIVE, body


def add_veth_message(name: str, peer: str) -> Message:
    """Return the message that makes a pair of interfaces."""
    other = attribute(_VETH_PEER, _IFINFOMSG.pack(0, 0, 0, 0, 0) + _name(peer))
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + _name(name)
    body += nested(_LINKINFO, attribute(_INFO_KIND, b"veth"), nested(_INFO_DATA, other))
    return _NEWLINK, REQUEST | ACK | CREATE | EXCLUSIVE, body


def link_up_message(index: int) -> Message:
    """Return the message that brings an interface up."""
    return _NEWLINK, REQUEST | ACK, _IFINFOMSG.pack(0, 0, index, _IFF_UP, _IFF_UP)


def delete_link_message(index: int) -> Message:
    """Return the message that deletes an interface."""
    return _DELLINK, REQUEST | ACK, _IFINFOMSG.pack(0, 0, index, 0, 0)


def interface_mtu(netlink: NetlinkSocket, index: int) -> int:
    """Return an interface's MTU in bytes.

    Raises:
        NetlinkError: There is no such interface.
    """
    (body,) = netlink.ask(_GETLINK, _IFINFOMSG.pack(0, 0, index, 0, 0))
    (mtu,) = struct.unpack("=I", attributes(body, _IFINFOMSG.size)[_MTU])
    return int(mtu)


def route(netlink: NetlinkSocket, address: str) -> Tuple[int, int]:
    """Return how an IPv4 address is reached: the kind of the route (1 is unicast) and the interface's number.

    Raises:
        NetlinkError: There is no route.
    """
    message = _RTMSG.pack(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0)
    message += attribute(_RTA_DST, ipaddress.IPv4Address(address).packed)
    (body,) = netlink.ask(_GETROUTE, message)
    kind = _RTMSG.unpack_from(body)[7]
    (index,) = struct.unpack("=I", attributes(body, _RTMSG.size)[_RTA_OIF])
    return kind, index
