import json
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.cli.common import HostProgress
from testbed.cli.provision import _provision
from testbed.config.inventory import Host, Inventory
from testbed.errors import ConnectError, DeadlineError, HeldError, HostError, HostKeyError
from testbed.hosts.deadline import Deadline
from testbed.hosts.facts import Facts
from testbed.hosts.fake import Answer, FakeTransport, Reply
from testbed.hosts.fleet import Fleet
from testbed.hosts.steps import Command, Put
from testbed.provision.apply import Way, provision_fleet
from testbed.provision.aspect import Site
from testbed.provision.code import PayloadCode
from testbed.provision.hands import Hands
from testbed.provision.limit import FailLimit
from testbed.provision.survey import survey_fleet
from testbed.provision.undo import undo_fleet
from tests.provision.conftest import LocalHost, Mark

OpenFleet = Callable[[Inventory], Fleet]
HOLD = ("hold", Answer('{"held": true}', times=None))
DOWN = ConnectError("bs", "the connection was lost")


@pytest.fixture(autouse=True)
def few_aspects(only: Callable[..., None], quick_facts: None) -> None:
    """Look after folders and code only."""


def bs_of(lab: Inventory, monkeypatch: pytest.MonkeyPatch, *script: tuple[str, Reply]) -> Fleet:
    """Return a fleet whose base station answers by a script, and whose waits take no time."""
    monkeypatch.setattr("testbed.provision.hands.time.sleep", lambda seconds: None)
    fake = FakeTransport("bs", [HOLD, *script])
    fake.close = lambda: None  # type: ignore[method-assign]
    return Fleet(lab, connect=lambda host: fake)


def hands(fleet: Fleet, lab: Inventory, deadline_s: float = 60.0) -> Hands:
    return Hands(fleet, lab.base_station, "provision", Deadline(deadline_s), lambda host, text: None)


def boots(*answers: str | BaseException) -> tuple[tuple[str, Reply], ...]:
    return tuple(("boot_id", answer) for answer in answers)


def test_a_reboot_is_waited_for_and_the_host_held_again(
    lab: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (*boots("one\n", "one\n", DOWN, DOWN, "two\n"), ("nvpmodel", DOWN))
    with bs_of(lab, monkeypatch, *script) as fleet, hands(fleet, lab) as both:
        both.do(Command("bs", "nvpmodel", reboots=True))
        fake: Any = fleet.transport("bs")
    assert [step.line() for step in fake.steps].count("bs: nvpmodel") == 1
    assert sum(step.title == "hold" for step in fake.steps) == 2


def test_a_host_that_does_not_go_down_after_all_is_not_waited_for(
    lab: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.provision.hands.GOING_DOWN_S", 0.0)
    failed = Answer(stderr="no such mode", exit_status=3)
    script = (*boots("one\n", "one\n", "one\n", "one\n"), ("good", ""), ("bad", failed))
    with bs_of(lab, monkeypatch, *script) as fleet, hands(fleet, lab) as both:
        both.do(Command("bs", "good", reboots=True))
        with pytest.raises(HostError, match="no such mode"):
            both.do(Command("bs", "bad", reboots=True))


def test_a_host_that_does_not_come_back(lab: Inventory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("testbed.provision.hands.REBOOT_TIMEOUT_S", 0.05)
    never: tuple[str, Reply] = ("boot_id", DOWN)
    script = (*boots("one\n"), *[never] * 500, ("nvpmodel", DOWN))
    with bs_of(lab, monkeypatch, *script) as fleet, hands(fleet, lab) as both:
        monkeypatch.setattr(
            "testbed.provision.hands.time.sleep", lambda seconds: threading.Event().wait(0.001)
        )
        with pytest.raises(DeadlineError, match="did not come back from its reboot") as caught:
            both.do(Command("bs", "nvpmodel", reboots=True))
    assert "console" in caught.value.hint


def test_another_key_after_a_reboot_is_refused(lab: Inventory, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (*boots("one\n", HostKeyError("bs", "has changed")), ("nvpmodel", DOWN))
    with bs_of(lab, monkeypatch, *script) as fleet, hands(fleet, lab) as both, pytest.raises(HostKeyError):
        both.do(Command("bs", "nvpmodel", reboots=True))


def test_nothing_is_begun_after_a_hosts_time(lab: Inventory, monkeypatch: pytest.MonkeyPatch) -> None:
    with bs_of(lab, monkeypatch) as fleet, hands(fleet, lab, 0.0) as both:
        with pytest.raises(DeadlineError, match="next would have been: brew tea"):
            both.do(Command("bs", "tea", "brew tea"))
        assert not both.done


def test_no_step_outlasts_a_hosts_time(lab: Inventory, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    deadline = Deadline(100.0, clock=lambda: now[0])

    def late(step: Any) -> DeadlineError:
        now[0] += step.timeout_s
        return DeadlineError("bs", "`tea` took longer")

    script = (("put", ""), ("tea", late))
    with (
        bs_of(lab, monkeypatch, *script) as fleet,
        Hands(fleet, lab.base_station, "", deadline, lambda *_: None) as both,
    ):
        now[0] = 70.0
        both.do(Put("bs", b"", "cup", "bring a cup"))
        with pytest.raises(DeadlineError, match="not done within 100 s; it was at: brew tea") as caught:
            both.do(Command("bs", "tea", "brew tea"))
        fake: Any = fleet.transport("bs")
    assert "--host-timeout" in caught.value.hint
    assert [step.timeout_s for step in fake.steps] == [30.0, 30.0, 30.0]  # the first holds the host


def test_a_hosts_time_begins_before_its_connect(
    lab: Inventory, code: PayloadCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(FakeTransport):
        def open(self, deadline: Deadline | None = None) -> None:
            assert deadline is not None
            while not deadline.passed:
                threading.Event().wait(0.001)

    with Fleet(lab, connect=lambda host: Slow(host.name)) as fleet:
        for results in (
            provision_fleet(fleet, [lab.base_station], Site(code), Way(0.01)),
            undo_fleet(fleet, [lab.base_station], Site(code), Way(0.01)),
            survey_fleet(fleet, [lab.base_station], Site(code), host_timeout_s=0.01),
        ):
            assert "not done within 0.01 s; next would have been: ask for facts" in str(results[0].error)
        fake: Any = fleet.transport("bs")
        assert fake.steps == []


def test_nothing_is_done_on_a_host_that_another_has(
    lab: Inventory, code: PayloadCode, open_fleet: OpenFleet, local: dict[str, LocalHost]
) -> None:
    fleet = open_fleet(lab)
    fleet.transport("bs")
    local["bs"].refused = {"owner": "ann@laptop", "purpose": "a run"}
    bs, dev = provision_fleet(fleet, list(lab.hosts.values()), Site(code))
    assert isinstance(bs.error, HeldError)
    assert (bs.changed, dev.ok, dev.changed) == (False, True, True)
    assert local["bs"].changing_steps() == []


def test_what_does_not_hold_is_said(
    lab: Inventory, code: PayloadCode, open_fleet: OpenFleet, local: Any, only: Callable[..., None]
) -> None:
    class Vain(Mark):
        def changes(self, host: Host, facts: Facts) -> Any:
            for change in super().changes(host, facts):
                yield type(change)(**vars(change) | {"steps": (Command(host.name, "true", "nothing"),)})

    only(Vain("tea"))
    (result,) = provision_fleet(open_fleet(lab), [lab.base_station], Site(code))
    assert not result.ok
    assert str(result.error) == "bs: still not as it should be: tea"
    assert result.states == ("done", "done", "failed")  # the folders and the code come first


def test_what_became_of_each_change_is_said(
    lab: Inventory, code: PayloadCode, open_fleet: OpenFleet, local: Any, only: Callable[..., None]
) -> None:
    class Broken(Mark):
        def changes(self, host: Host, facts: Facts) -> Any:
            for change in super().changes(host, facts):
                yield type(change)(**vars(change) | {"steps": (Command(host.name, "false", "boil"),)})

    def states(result: Any) -> list[str]:
        return [change["state"] for change in result.as_json()["changes"]]

    only(Mark("cup"), Broken("tea"), Mark("milk"))
    hosts = [lab.base_station]
    (result,) = provision_fleet(open_fleet(lab), hosts, Site(code))
    assert states(result) == ["done", "done", "done", "failed", "not reached"]
    assert (result.items("done"), result.items("not reached")) == (["folders", "code", "cup"], ["milk"])
    local["bs"].refused = {"owner": "ann@laptop", "purpose": "a run"}
    (result,) = provision_fleet(open_fleet(lab), hosts, Site(code))
    assert states(result) == ["not reached", "not reached"]
    local["bs"].refused = {}
    only(Mark("milk"))
    (result,) = provision_fleet(open_fleet(lab), hosts, Site(code))
    assert states(result) == ["done"]


def test_what_was_done_until_the_user_ended_it_is_said(
    lab: Inventory,
    code: PayloadCode,
    open_fleet: OpenFleet,
    local: Any,
    only: Callable[..., None],
    capsys: Any,
) -> None:
    main, fleet = threading.main_thread(), open_fleet(lab)

    class Watched(HostProgress):
        def __call__(self, host: str, text: str) -> None:
            if text == "make tea":
                assert main.ident is not None
                signal.pthread_kill(main.ident, signal.SIGINT)
                for _ in range(3000):
                    if fleet.ended.is_set():
                        break
                    threading.Event().wait(0.01)

    only(Mark("cup"), Mark("tea"), Mark("milk"))
    way = Way(progress=Watched("provision", 1))
    with pytest.raises(KeyboardInterrupt):
        _provision(fleet, [lab.base_station], Site(code), way, dry_run=False, as_json=True)
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["host"], told["ok"], told["changed"]) == ("bs", False, True)
    states = {change["item"]: change["state"] for change in told["changes"]}
    assert (states["cup"], states["tea"], states["milk"]) == ("done", "failed", "not reached")


@given(st.integers(1, 50), st.floats(0, 100), st.data())
def test_the_limit_is_passed_by_more_failures_than_it_says(hosts: int, percent: float, data: Any) -> None:
    limit = FailLimit(hosts, percent)
    failed = data.draw(st.integers(0, hosts))
    for number in range(hosts):
        limit.note(failed=number < failed)
    assert limit.passed == (100 * failed > percent * hosts)
    if limit.passed:
        with pytest.raises(HostError, match="left as it is") as caught:
            limit.check("dev")
        assert "--fail-percent" in caught.value.hint
    else:
        limit.check("dev")


def test_nothing_more_is_begun_once_too_many_hosts_failed(
    lab: Inventory, code: PayloadCode, open_fleet: OpenFleet, local: dict[str, LocalHost]
) -> None:
    fleet = open_fleet(lab)
    for name in lab.hosts:
        fleet.transport(name)
    local["dev"].down = True
    failed = threading.Event()
    once = local["bs"]._note

    def wait(step: Any) -> None:
        if step.title == "ask for facts":
            assert failed.wait(30)
        once(step)

    local["bs"]._note = wait  # type: ignore[method-assign]

    def on_result(result: Any) -> None:
        if result.plan.host.name == "dev":
            failed.set()

    everyone, way = list(lab.hosts.values()), Way(fail_percent=40)
    bs, dev = provision_fleet(fleet, everyone, Site(code), way, on_result=on_result)
    assert "no answer" in str(dev.error)
    assert "more than 40 % of the hosts failed" in str(bs.error)
    assert local["bs"].changing_steps() == []
    # By itself, a host that fails keeps nobody from anything.
    bs, dev = provision_fleet(fleet, everyone, Site(code))
    assert (bs.ok, dev.ok) == (True, False)
