"""The messages that are packed by hand, read by pyroute2 as an independent witness."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from payloads.linkd.found import TC_ROOT, FoundQdisc
from payloads.linkd.plan import ROOT_HANDLE, Class, Leaf
from payloads.linkd.tc import parse_qdisc, qdisc_message, rated_message

tcmsg = pytest.importorskip("pyroute2.netlink.rtnl.tcmsg").tcmsg


def _read(message: tuple[int, int, bytes]) -> Any:
    kind, flags, body = message
    read = tcmsg(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
    read.decode()
    return read


@pytest.mark.parametrize("create", [False, True])
def test_a_leaf(create: bool) -> None:
    leaf = Leaf("eth0", 5, "a", 2_500_000, 1640, 5_000_000)
    message = rated_message(7, leaf, create=create)
    read = _read(message)
    assert message[0] == 36
    assert bool(message[1] & 0x400) is create
    assert (read["index"], read["parent"], read["handle"]) == (7, ROOT_HANDLE | 5, leaf.handle)
    assert read.get_attr("TCA_KIND") == "tbf"
    parms = read.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")
    assert (parms["rate"], parms["peak"], parms["limit"]) == (2_500_000, 0, 5_000_000)
    # A tick is 64 ns: 1640 bytes at 2.5 MB/s are 656 us.
    assert parms["buffer"] == 656_000 // 64


def test_a_class() -> None:
    message = rated_message(7, Class("eth0", 5, "a", 2_500_000, 4920))
    read = _read(message)
    assert (message[0], read["parent"], read["handle"]) == (40, ROOT_HANDLE, ROOT_HANDLE | 5)
    assert read.get_attr("TCA_KIND") == "htb"
    parms = read.get_attr("TCA_OPTIONS").get_attr("TCA_HTB_PARMS")
    assert parms["rate"] == parms["ceil"] == 2_500_000
    assert parms["buffer"] == parms["cbuffer"] == 1_968_000 // 64
    assert 1514 < parms["quantum"] < 200_000


def test_a_class_that_limits_nothing() -> None:
    options = _read(rated_message(7, Class("eth0", 5, "", 12_500_000_000, 125_000_000))).get_attr(
        "TCA_OPTIONS"
    )
    assert options.get_attr("TCA_HTB_RATE64") == options.get_attr("TCA_HTB_CEIL64") == 12_500_000_000


def test_options_come_through_byte_for_byte() -> None:
    message = qdisc_message(3, TC_ROOT, 0x80010000, "pfifo", bytes.fromhex("2a000000"), create=True)
    assert _read(message).get_attr("TCA_KIND") == "pfifo"
    assert parse_qdisc(message[2]) == (3, FoundQdisc("pfifo", 0x80010000, TC_ROOT, "2a000000"))
