"""The messages that are packed by hand, read by pyroute2 as an independent witness."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.linkd.found import TC_ROOT, FoundQdisc
from payloads.linkd.plan import ROOT_HANDLE, Class, Cutter, Fifo, Leaf, Match, Netem, Redirect
from payloads.linkd.tc import (
    fifo_message,
    filter_message,
    ingress_message,
    options_to_make,
    parse_qdisc,
    qdisc_message,
    rated_message,
    root_message,
)

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
    if "UNKNOWN" in dict(options["attrs"]):
        pytest.skip("this pyroute2 knows no rates of 64 bits")
    assert options.get_attr("TCA_HTB_RATE64") == options.get_attr("TCA_HTB_CEIL64") == 12_500_000_000


def test_options_come_through_byte_for_byte() -> None:
    message = qdisc_message(3, TC_ROOT, 0x80010000, "pfifo", bytes.fromhex("2a000000"), create=True)
    assert _read(message).get_attr("TCA_KIND") == "pfifo"
    assert parse_qdisc(message[2]) == (3, FoundQdisc("pfifo", 0x80010000, TC_ROOT, "2a000000"))


@given(st.integers(0, (1 << 32) * 1000 // 1024 - 1), st.sampled_from([("codel", 1), ("fq_codel", 3)]))
def test_the_times_of_codel_come_out_as_they_were(kept: int, where: tuple[str, int]) -> None:
    """codel keeps microseconds * 1000 >> 10 and tells kept << 10 / 1000 of them, both rounded down."""
    kind, number = where
    told = struct.pack("=HHIHHI", 8, number, (kept << 10) // 1000, 8, 2, 10240)
    asked = dict(_attributes(options_to_make(FoundQdisc(kind, 0x110000, TC_ROOT, told.hex()))))
    assert struct.unpack("=I", asked[number])[0] * 1000 >> 10 == kept
    assert asked[2] == struct.pack("=I", 10240)


def test_other_options_are_made_again_as_they_are() -> None:
    assert options_to_make(FoundQdisc("pfifo", 0x110000, TC_ROOT, "2a000000")) == bytes.fromhex("2a000000")


def test_a_cutter_limits_nothing_and_takes_no_more_than_a_frame() -> None:
    read = _read(rated_message(7, Cutter("eth0", 5, "a", 1515), create=True))
    assert read.get_attr("TCA_KIND") == "tbf"
    assert read.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")["limit"] > 4 << 20
    options = dict(_attributes(_options(rated_message(7, Cutter("eth0", 5, "a", 1515)))))
    assert struct.unpack("=Q", options[4])[0] >= 10**12
    assert struct.unpack("=I", options[6]) == (1515,)


@pytest.mark.parametrize("create", [False, True])
def test_a_netem(create: bool) -> None:
    """The struct is older than the attributes: both say the same, and the loss is a share of 2**32."""
    netem = Netem("eth0", 5, "a", 2_500_000, 9000, 20_000_000, 5_000_000, 0.25)
    message = rated_message(7, netem, create=create)
    read = _read(message)
    assert message[0] == 36
    assert bool(message[1] & 0x400) is create
    assert (read["parent"], read["handle"]) == (0x7C050001, netem.handle)
    assert read.get_attr("TCA_KIND") == "netem"
    options = read.get_attr("TCA_OPTIONS")
    assert (options["delay"], options["jitter"]) == (20_000_000 // 64, 5_000_000 // 64)
    assert (options["limit"], options["gap"], options["duplicate"]) == (9000, 0, 0)
    assert options["loss"] / 2**32 == pytest.approx(0.25)
    assert options.get_attr("TCA_NETEM_RATE")["rate"] == 2_500_000
    attributes = dict(_attributes_behind_the_struct(message))
    assert struct.unpack("=q", attributes[10]) == (20_000_000,)
    assert struct.unpack("=q", attributes[11]) == (5_000_000,)
    assert 8 not in attributes


def test_a_netem_faster_than_its_old_field() -> None:
    message = rated_message(7, Netem("eth0", 5, "a", 5 * 10**9, 9000))
    attributes = dict(_attributes_behind_the_struct(message))
    assert struct.unpack("=I", attributes[6][:4]) == (0xFFFFFFFF,)
    assert struct.unpack("=Q", attributes[8]) == (5 * 10**9,)


def _attributes(data: bytes) -> list[tuple[int, bytes]]:
    result = []
    while data:
        length, kind = struct.unpack_from("=HH", data)
        result.append((kind, data[4:length]))
        data = data[(length + 3) & ~3 :]
    return result


def _options(message: tuple[int, int, bytes]) -> bytes:
    return dict(_attributes(message[2][20:]))[2]


def _attributes_behind_the_struct(message: tuple[int, int, bytes]) -> list[tuple[int, bytes]]:
    """pyroute2 does not know netem's newer attributes: they are taken apart here."""
    return _attributes(_options(message)[24:])


def test_the_root_the_hook_and_a_queue() -> None:
    root = _read(root_message(7))
    assert (root["parent"], root["handle"], root.get_attr("TCA_KIND")) == (TC_ROOT, ROOT_HANDLE, "htb")
    init = root.get_attr("TCA_OPTIONS").get_attr("TCA_HTB_INIT")
    assert (init["version"], init["defcls"]) == (3, 0xFFF)
    hook = _read(ingress_message(7))
    assert (hook["parent"], hook["handle"], hook.get_attr("TCA_KIND")) == (0xFFFFFFF1, 0xFFFF0000, "ingress")
    fifo = _read(fifo_message(7, Fifo("eth0", 5, 1234)))
    assert (fifo["parent"], fifo.get_attr("TCA_KIND")) == (ROOT_HANDLE | 5, "pfifo")
    assert _options(fifo_message(7, Fifo("eth0", 5, 1234))) == struct.pack("=I", 1234)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (Match("eth0", 5, 9, True, "10.0.0.2", 7070), (16, 0x0000FFFF, 7070)),
        (Match("eth0", 5, 9, False, "10.0.0.2", 7070, port_of_sender=True), (12, 0xFFFF0000, 7070 << 16)),
        (Match("eth0", 5, 9, True, "10.0.0.2", 7070, port_of_sender=True), (16, 0xFFFF0000, 7070 << 16)),
        (Redirect("eth0", "ifb", 9, "10.0.0.2", 7070), (12, 0xFFFF0000, 7070 << 16)),
    ],
)
def test_a_filter(item: Match | Redirect, words: tuple[int, int, int]) -> None:
    read = _read(filter_message(7, item, 11))
    at_address, port_mask, port = words
    assert read["info"] == 9 << 16 | 0x0008
    assert read["parent"] == (ROOT_HANDLE if isinstance(item, Match) else 0xFFFF0000)
    options = read.get_attr("TCA_OPTIONS")
    # pyroute2 makes keys of its own notation and reads them wrongly: they are taken apart here.
    selector = dict(_attributes(_options(filter_message(7, item, 11))))[5]
    assert (selector[0], selector[2], len(selector)) == (1, 3, 16 + 3 * 16)
    keys = [struct.unpack_from("!IIi", selector, 16 + 16 * number) for number in range(3)]
    assert keys == [
        (0x00FF0000, 6 << 16, 8 << 24),
        (0xFFFFFFFF, 0x0A000002, at_address << 24),
        (port_mask, port, 20 << 24),
    ]
    if isinstance(item, Match):
        assert options.get_attr("TCA_U32_CLASSID") == ROOT_HANDLE | 5
        return
    action = options.get_attr("TCA_U32_ACT").get_attr("TCA_ACT_PRIO_1")
    assert action.get_attr("TCA_ACT_KIND") == "mirred"
    parms = action.get_attr("TCA_ACT_OPTIONS").get_attr("TCA_MIRRED_PARMS")
    assert (parms["eaction"], parms["action"], parms["ifindex"]) == (1, 4, 11)
