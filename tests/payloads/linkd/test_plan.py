from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.linkd.errors import LinksError
from payloads.linkd.plan import (
    Class,
    Fifo,
    Ifb,
    Interface,
    Leaf,
    Link,
    Match,
    Operation,
    Rated,
    Redirect,
    Root,
    assign_minors,
    difference,
    parse_links,
    parse_rates,
    plan,
)

ETH0 = Interface("eth0", 3, 1500)
GOOD: dict[str, Any] = {
    "device": "a", "address": "10.0.0.2", "port": 7070, "downlink_mbit": 8.0, "uplink_mbit": 4,
}  # fmt: skip

fleets = st.lists(
    st.tuples(st.integers(2, 9), st.floats(0.01, 1000), st.floats(0.01, 1000)),
    min_size=1,
    unique_by=lambda item: item[0],
).map(lambda items: tuple(Link(f"d{n}", f"10.0.0.{n}", 7070, 7071, down, up) for n, down, up in items))


class Kernel:
    """Refuses what a real one would refuse."""

    def __init__(self) -> None:
        self.there: list[Operation] = []

    def add(self, item: Operation) -> None:
        assert item not in self.there
        if isinstance(item, (Class, Match)):
            assert Root(item.on) in self.there
        if isinstance(item, (Leaf, Fifo, Match)):
            assert any(isinstance(i, Class) and (i.on, i.minor) == (item.on, item.minor) for i in self.there)
        if isinstance(item, Leaf):
            assert not any(
                isinstance(i, Leaf) and (i.on, i.handle) == (item.on, item.handle) for i in self.there
            )
        if isinstance(item, (Match, Redirect)):
            taken = [(type(i), i.on, i.priority) for i in self.there if isinstance(i, (Match, Redirect))]
            assert (type(item), item.on, item.priority) not in taken
        if isinstance(item, Redirect):
            # What is turned around must find its class.
            assert any(
                isinstance(i, Match) and (i.on, i.address, i.port) == (item.to, item.address, item.port)
                for i in self.there
            )
        self.there.append(item)

    def remove(self, item: Operation) -> None:
        if isinstance(item, Class):
            assert not any(
                isinstance(i, Match) and (i.on, i.minor) == (item.on, item.minor) for i in self.there
            )
            self.there = [
                i
                for i in self.there
                if not (isinstance(i, Leaf) and (i.on, i.minor) == (item.on, item.minor))
            ]
        self.there.remove(item)

    def change(self, item: Rated) -> None:
        same = (type(item), item.on, item.minor, item.owner)
        rated = (i for i in self.there if isinstance(i, (Class, Leaf)))
        old = next(i for i in rated if (type(i), i.on, i.minor, i.owner) == same)
        self.there[self.there.index(old)] = item


@given(st.lists(fleets, min_size=1, max_size=4))
def test_every_way_from_plan_to_plan_can_be_gone_and_arrives(steps: list[tuple[Link, ...]]) -> None:
    kernel, old, minors = Kernel(), (), {}
    for links in steps:
        minors = assign_minors(links, minors)
        new = plan(links, ETH0, minors)
        way = difference(old, new)
        for item in way.remove:
            kernel.remove(item)
        for item in way.add:
            kernel.add(item)
        for rated in way.change:
            kernel.change(rated)
        assert set(kernel.there) == set(new)
        assert len(kernel.there) == len(new)
        old = new


@given(fleets, st.floats(0.01, 1000))
def test_other_rates_change_in_place_and_tear_nothing_down(links: tuple[Link, ...], rate: float) -> None:
    minors = assign_minors(links, {})
    before = plan(links, ETH0, minors)
    faster = tuple(replace(link, downlink_mbit=rate) for link in links)
    way = difference(before, plan(faster, ETH0, minors))
    assert not way.remove
    assert not way.add
    assert all(item.on == "eth0" for item in way.change)
    for item in way.change:
        assert item.rate_bytes_per_s == max(1, round(rate * 1e6 / 8))
    assert not difference(before, before)


def test_a_link_that_stays_keeps_its_class() -> None:
    a, b, c = (Link(name, f"10.0.0.{n}", 7070, 7071, 1, 1) for n, name in enumerate("abc", start=2))
    minors = assign_minors([a, b], {})
    assert assign_minors([c, b], minors)[b.identity] == minors[b.identity]
    assert assign_minors([c, b], minors)[c.identity] == minors[a.identity]


def test_downlink_and_uplink_of_both_ports_are_matched() -> None:
    links = parse_links([{**GOOD, "probe_port": 9000}])
    operations = plan(links, ETH0, assign_minors(links, {}))
    matches = {(m.on, m.destination, m.port) for m in operations if isinstance(m, Match)}
    ifb = next(item.name for item in operations if isinstance(item, Ifb))
    assert matches == {("eth0", True, 7070), ("eth0", True, 9000), (ifb, False, 7070), (ifb, False, 9000)}
    leaves = {leaf.on: leaf.rate_bytes_per_s for leaf in operations if isinstance(leaf, Leaf)}
    assert leaves == {"eth0": 1_000_000, ifb: 500_000}


@pytest.mark.parametrize(
    ("links", "words"),
    [
        ({}, "a list"),
        ([], "at least one"),
        ([3], "an object"),
        ([{**GOOD, "rate": 3}], "unknown key 'rate'"),
        ([{**GOOD, "device": ""}], "device"),
        ([{**GOOD, "address": "board"}], "IPv4"),
        ([{**GOOD, "address": None}], "IPv4"),
        ([{**GOOD, "port": 0}], "port"),
        ([{**GOOD, "port": True}], "port"),
        ([{**GOOD, "port": 7071}], "both 7071"),
        ([{**GOOD, "downlink_mbit": -1}], "downlink_mbit"),
        ([{**GOOD, "downlink_mbit": float("nan")}], "downlink_mbit"),
        ([{**GOOD, "uplink_mbit": "8"}], "uplink_mbit"),
        ([{key: GOOD[key] for key in GOOD if key != "uplink_mbit"}], "uplink_mbit"),
        ([GOOD, {**GOOD, "device": "b"}], "its address"),
        ([GOOD, {**GOOD, "address": "10.0.0.3"}], "its device"),
    ],
)
def test_wrong_links_are_refused_with_the_place(links: Any, words: str) -> None:
    with pytest.raises(LinksError, match=words):
        parse_links(links)


def test_rates_of_some_devices() -> None:
    links = parse_links([GOOD, {**GOOD, "device": "b", "address": "10.0.0.3"}])
    assert parse_rates({"b": {"uplink_mbit": 2}}, links) == {"b": (None, 2)}
    for wrong in ({"c": {"uplink_mbit": 2}}, {"b": {}}, {"b": {"uplink": 2}}, {"b": {"uplink_mbit": 0}}, []):
        with pytest.raises(LinksError):
            parse_rates(wrong, links)
