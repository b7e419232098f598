import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.config.inventory import Host, Inventory
from testbed.errors import ConnectError
from testbed.hosts.deadline import Deadline
from testbed.hosts.fake import FakeTransport
from testbed.hosts.fleet import Fleet
from testbed.hosts.gate import Gate


def test_no_more_are_inside_than_there_are_places() -> None:
    gate, lock, full = Gate(3, patience_s=60), threading.Lock(), threading.Event()
    now, most = 0, 0

    def work() -> None:
        nonlocal now, most
        with gate.place(Deadline(60)):
            with lock:
                now += 1
                most = max(most, now)
                if now == 3:
                    full.set()
            assert full.wait(30)  # nobody leaves before all places have been taken
            threading.Event().wait(0.005)
            with lock:
                now -= 1

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3


def test_who_stays_long_keeps_nobody_out() -> None:
    gate, done = Gate(1, patience_s=0.05), threading.Event()

    def stay() -> None:
        with gate.place(Deadline(60)):
            assert done.wait(30)

    threads = [threading.Thread(target=stay) for _ in range(3)]
    for thread in threads:
        thread.start()
    with gate.place(Deadline(60)):  # all three are in front, and none of them leaves
        done.set()
    for thread in threads:
        thread.join()


def test_nobody_waits_beyond_the_deadline() -> None:
    gate = Gate(1, patience_s=60)
    with gate.place(Deadline(60)), gate.place(Deadline(0.01)):
        pass


@given(st.integers(1, 4), st.lists(st.floats(0, 20), max_size=8))
def test_a_place_is_free_as_soon_as_few_enough_are_young(places: int, ages: list[float]) -> None:
    now = [100.0]
    gate = Gate(places, patience_s=10, clock=lambda: now[0])
    gate._inside = {object(): 100.0 - age for age in ages}
    wait_s = gate._wait_s()
    young = sum(since > now[0] - 10 for since in gate._inside.values())
    assert (wait_s == 0) == (young < places)
    now[0] += wait_s
    assert gate._wait_s() == pytest.approx(0, abs=1e-9)


class Slow(FakeTransport):
    """A host that can be reached only when all others are done."""

    def __init__(self, name: str, others: threading.Event) -> None:
        super().__init__(name)
        self._others = others

    def open(self, deadline: Deadline | None = None) -> None:
        if self.host == "dev0":
            assert self._others.wait(30)
            raise ConnectError(self.host, "no answer")


@pytest.mark.parametrize("cap", [1, 64])
def test_a_dead_host_keeps_no_other_from_its_turn(inventory: Inventory, cap: int) -> None:
    others, count = threading.Event(), len(inventory.hosts)

    def on_done(outcome: Any) -> None:
        nonlocal count
        count -= 1
        if count == 1:
            others.set()

    def name_of(host: Host, transport: object) -> str:
        return host.name

    with Fleet(inventory, connect=lambda host: Slow(host.name, others)) as fleet:
        outcomes = fleet.each(name_of, cap=cap, on_done=on_done)
        assert [outcome.host.name for outcome in outcomes if not outcome.ok] == ["dev0"]
        # Where nothing is to be reached, nothing is tried.
        assert all(outcome.ok for outcome in fleet.each(name_of, cap=cap, reach=False))


def test_a_hosts_deadline_covers_its_connect_and_not_the_wait_for_its_turn(inventory: Inventory) -> None:
    now = [0.0]
    left: list[float] = []
    hosts = [inventory.hosts["dev0"], inventory.hosts["dev1"]]
    paused: list[str] = []
    connected, stands = threading.Barrier(2), threading.Event()

    class Late(FakeTransport):
        def open(self, deadline: Deadline | None = None) -> None:
            assert deadline is deadlines[self.host]
            if self.host == "dev0":
                now[0] += 3.0
            connected.wait(30)

    def work(host: Host, transport: object) -> None:
        if not left:  # the first: the other stands in line meanwhile
            assert stands.wait(30)
        left.append(deadlines[host.name].remaining_s)
        now[0] += 50.0

    class Watched(Deadline):
        @contextmanager
        def paused(self) -> Iterator[None]:
            with super().paused():
                paused.append("stands in line")
                if len(paused) == 2:
                    stands.set()
                yield

    deadlines = {host.name: Watched(100.0, clock=lambda: now[0]) for host in hosts}
    with Fleet(inventory, connect=lambda host: Late(host.name)) as fleet:
        outcomes = fleet.each(work, hosts, cap=1, deadlines=deadlines)
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert left == [97.0, 97.0]
