import signal
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed.config.inventory import Host, Inventory
from testbed.errors import CommandError, ConnectError, HostError
from testbed.hosts.fake import Answer, FakeTransport, UnexpectedStepError
from testbed.hosts.fleet import Fleet
from testbed.hosts.steps import Command, Completed, Fetch, Put, Step
from testbed.hosts.transport import Transport


def quiet(host: Host) -> FakeTransport:
    return FakeTransport(host.name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_outcomes_come_in_inventory_order_with_every_failure(inventory: Inventory, data: Any) -> None:
    names = data.draw(st.lists(st.sampled_from(list(inventory.hosts)), unique=True, min_size=1))
    failing = data.draw(st.sets(st.sampled_from(names)))
    pauses = {name: data.draw(st.sampled_from([0.0, 0.001])) for name in names}

    def work(host: Host, _transport: Transport) -> str:
        time.sleep(pauses[host.name])
        if host.name in failing:
            raise HostError(host.name, "no")
        return host.name.upper()

    with Fleet(inventory, connect=quiet) as fleet:
        outcomes = fleet.each(
            work, [inventory.hosts[name] for name in names], cap=data.draw(st.integers(1, 4))
        )
    assert [outcome.host.name for outcome in outcomes] == [name for name in inventory.hosts if name in names]
    for outcome in outcomes:
        assert outcome.ok == (outcome.host.name not in failing)
        if outcome.ok:
            assert outcome.get() == outcome.host.name.upper()
        else:
            with pytest.raises(HostError, match=f"{outcome.host.name}: no"):
                outcome.get()


def test_no_more_hosts_at_once_than_the_cap(inventory: Inventory) -> None:
    lock, full = threading.Lock(), threading.Event()
    now, most = 0, 0

    def work(_host: Host, _transport: Transport) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            if now == 3:
                full.set()
        assert full.wait(30)  # nobody leaves before there are as many as may be
        time.sleep(0.01)
        with lock:
            now -= 1

    with Fleet(inventory, connect=quiet) as fleet:
        fleet.each(work, cap=3)
    assert most == 3


def test_a_mistake_in_the_program_is_not_taken_for_a_host_that_failed(inventory: Inventory) -> None:
    with Fleet(inventory, connect=quiet) as fleet, pytest.raises(ZeroDivisionError):
        fleet.each(lambda host, transport: 1 // 0)


def test_ctrl_c_closes_the_connections_and_is_not_kept_by_a_host_that_hangs(inventory: Inventory) -> None:
    closed = threading.Event()
    main = threading.main_thread()

    class Hanging(FakeTransport):
        def close(self) -> None:
            super().close()
            closed.set()

    def work(host: Host, _transport: Transport) -> None:
        if host.name == "dev0":
            assert main.ident is not None
            signal.pthread_kill(main.ident, signal.SIGINT)
        if not closed.wait(30):
            raise AssertionError("nobody closed the connection")
        raise ConnectError(host.name, "closed")

    fleet = Fleet(inventory, connect=lambda host: Hanging(host.name))
    with pytest.raises(KeyboardInterrupt):
        fleet.each(work)
    with pytest.raises(ConnectError, match="the fleet is closed"):
        fleet.transport("bs")


def test_steps_go_to_their_hosts_and_are_observed(inventory: Inventory, tmp_path: Any) -> None:
    fakes: dict[str, FakeTransport] = {}
    seen: list[tuple[str, str, Mapping[str, Any]]] = []

    def connect(host: Host) -> FakeTransport:
        script = [
            ("ls", "a\nb\n"),
            ("put", ""),
            ("fetch", "content"),
            ("false", Answer(stderr="no", exit_status=1)),
        ]
        return fakes.setdefault(host.name, FakeTransport(host.name, script))

    def observe(step: Step, event: str, info: Mapping[str, Any]) -> None:
        seen.append((step.line(), event, info))

    with Fleet(inventory, connect=connect, observe=observe) as fleet:
        done = fleet.do(Command("dev0", "ls"))
        assert isinstance(done, Completed)
        assert done.stdout == "a\nb\n"
        assert fleet.do(Put("dev0", b"x", "~/x", secret=True)) is None
        fleet.do(Fetch("dev0", "~/x", tmp_path / "x"))
        with pytest.raises(CommandError):
            fleet.do(Command("dev0", "false"))
    assert list(fakes) == ["dev0"]
    assert fakes["dev0"].closed
    assert (tmp_path / "x").read_text() == "content"
    assert [event for _, event, _ in seen] == ["begin", "end"] * 3 + ["begin", "failed"]
    assert seen[2][0] == "dev0: put secret 0644 ~/x"
    assert seen[-1][2] == {"error": "dev0: `false` ended with status 1: no"}
    fakes["dev0"].finish()


def test_a_new_login_after_reconnect(inventory: Inventory) -> None:
    made: list[FakeTransport] = []

    def connect(host: Host) -> FakeTransport:
        made.append(FakeTransport(host.name))
        return made[-1]

    with Fleet(inventory, connect=connect) as fleet:
        assert fleet.transport("dev1") is fleet.transport("dev1")
        fleet.reconnect("dev1")
        fleet.transport("dev1")
    assert [transport.closed for transport in made] == [True, True]
    assert len(made) == 2


def test_the_fake_host_takes_nothing_that_is_not_in_its_script() -> None:
    fake = FakeTransport("dev0", [("^dev0: ls$", "one"), ("ls", Answer("more", times=None)), ("never", "")])
    assert [fake.run(Command("dev0", "ls")).stdout for _ in range(3)] == ["one", "more", "more"]
    with pytest.raises(UnexpectedStepError, match="unexpected step\n  dev0: rm -rf /"):
        fake.run(Command("dev0", "rm -rf /"))
    with pytest.raises(UnexpectedStepError, match=r"did not come: \['never'\]"):
        fake.finish()
