"""The messages that are packed by hand, read by pyroute2 as an independent witness."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from payloads.linkd.found import TC_ROOT, FoundQdisc
from payloads.linkd.plan import ROOT_HANDLE, Leaf
from payloads.linkd.tc import leaf_message, parse_qdisc, qdisc_message

tcmsg = pytest.importorskip("pyroute2.netlink.rtnl.tcmsg").tcmsg


def _read(message: tuple[int, int, bytes]) -> Any:
    kind, flags, body = message
    read = tcmsg(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
    read.decode()
    return read


@pytest.mark.parametrize("create", [False, True])
def test_a_leaf(create: bool) -> None:
    leaf = Leaf("eth0", 5, "a", 2_500_000, 1640, 5_000_000)
    message = leaf_message(7, leaf, create=create)
    read = _read(message)
    assert message[0] == 36
    assert bool(message[1] & 0x400) is create
    assert (read["index"], read["parent"], read["handle"]) == (7, ROOT_HANDLE | 5, leaf.handle)
    assert read.get_attr("TCA_KIND") == "tbf"
    parms = read.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")
    assert (parms["rate"], parms["peak"], parms["limit"]) == (2_500_000, 0, 5_000_000)
    # A tick is 64 ns: 1640 bytes at 2.5 MB/s are 656 us.
    assert parms["buffer"] == 656_000 // 64


def test_options_come_through_byte_for_byte() -> None:
    message = qdisc_message(3, TC_ROOT, 0x80010000, "pfifo", bytes.fromhex("2a000000"), create=True)
    assert _read(message).get_attr("TCA_KIND") == "pfifo"
    assert parse_qdisc(message[2]) == (3, FoundQdisc("pfifo", 0x80010000, TC_ROOT, "2a000000"))
