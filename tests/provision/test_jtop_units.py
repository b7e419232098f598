"""The aspects jtop and units: pure plans, findings and the way back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.config.inventory import Host
from testbed.hosts.facts import Environment, Facts, Jtop, Units
from testbed.hosts.facts.own import Recorded
from testbed.hosts.facts.system import Access, System
from testbed.provision.aspects.access import Access as AccessAspect
from testbed.provision.aspects.jtop import Jtop as JtopAspect
from testbed.provision.aspects.jtop import client_requirement
from testbed.provision.aspects.python import recipe_of
from testbed.provision.aspects.units import Units as UnitsAspect

JTOP, UNITS = JtopAspect(), UnitsAspect()
MISMATCH = "JtopException: Mismatch version jtop service: [7.1.4] and client: [7.2.2]. Please run:"


def device(**changes: Any) -> Host:
    settings = {"name": "nano", "role": "device", "address": "x", "user": "nvidia"}
    return Host.model_validate(settings | changes)


def facts(host: Host, **changes: Any) -> Facts:
    about = {"program": "/usr/bin/jtop", "version": "7.2.2", "service_version": "7.2.0", "group": True}
    about |= {"member": True, "socket": True, "unit": True}
    jtop = Jtop(**about | changes.pop("jtop", {}))
    settings = {"user": "nvidia", "sudo": True, "systemd": True, "jtop": jtop} | changes
    return Facts("nano", environment=Environment("3.10.12", recipe=recipe_of(host)), **settings)


def test_client_and_service_that_agree_in_two_numbers_are_left_alone() -> None:
    host = device()
    assert list(JTOP.changes(host, facts(host))) == list(JTOP.findings(host, facts(host), ())) == []


def test_a_client_is_made_to_fit_the_service() -> None:
    host = device(python={"index": "https://wheels.example/jp6"})
    found = facts(host, jtop={"service_version": "7.1.4", "error": MISMATCH})
    (change,) = JTOP.changes(host, found)
    assert change.recorded == {"client": "7.2.2", "own": False}
    words = "--quiet --index-url https://wheels.example/jp6 --prefer-binary jetson-stats==7.1.4"
    assert change.steps[0].line().endswith(words)
    assert list(JTOP.findings(host, found, [change])) == []
    (back,) = JTOP.undo(host, found, change.recorded)
    assert "pip uninstall --yes --quiet --disable-pip-version-check jetson-stats" in back.line()
    (back,) = JTOP.undo(host, found, {"client": "7.2.2", "own": True})
    assert "--index-url https://wheels.example/jp6 jetson-stats==7.2.2" in back.line()
    # An environment that testbed made goes as a whole, also where no index can be reached.
    made = replace(found, record=(Recorded("python", {"there": False}),))
    assert list(JTOP.undo(host, made, {"client": "7.2.2", "own": True})) == []


def test_a_service_that_was_not_started_anew_is_started_anew() -> None:
    host = device()
    found = facts(host, jtop={"service_version": "7.2.2", "error": MISMATCH})
    (change,) = JTOP.changes(host, found)
    assert (change.before, change.after) == ("version 7.1.4 runs", "version 7.2.2 runs")
    assert list(JTOP.undo(host, found, change.recorded)) == []  # it ran before
    stopped = facts(host, jtop={"socket": False})
    (change,) = JTOP.changes(host, stopped)
    assert [step.line() for step in JTOP.undo(host, stopped, change.recorded)] == [
        "nano: (root) if systemctl is-active --quiet jtop.service; then systemctl stop jtop.service; fi"
    ]


@pytest.mark.parametrize(
    ("changes", "text", "hint"),
    [
        ({"program": None}, "jtop (jetson-stats) is not installed", "pip3 install"),
        ({"socket": False}, "the jtop service does not run", "JTOP_SERVICE=True"),
        ({"version": None}, "does not see jetson-stats", "system_packages"),
        ({"group": False, "member": False}, "there is no group jtop", "as root"),
        ({"service_version": "7.1.0"}, "of version 7.1.0 and the payload code's client of 7.2.2", "==7.1.0"),
        ({"service_version": "7.2.2", "error": MISMATCH}, "of version 7.1.4", "systemctl restart"),
        (
            {"error": "JtopException: I can't access jtop.service."},
            "does not answer: JtopException",
            "restart",
        ),
    ],
)
def test_what_has_no_remedy_from_here_is_a_failure(changes: dict[str, Any], text: str, hint: str) -> None:
    own = device(python={"manage": False})
    found = facts(own, systemd=False, jtop=changes)
    assert list(JTOP.changes(own, found)) == []
    (finding,) = JTOP.findings(own, found, ())
    assert finding.level == "failure"
    assert text in finding.text
    assert hint in finding.hint


def test_a_client_is_installed_when_it_is_known_what_the_environment_sees() -> None:
    host = device()
    fresh = facts(host, jtop={"version": None})
    assert client_requirement(host, fresh) == "jetson-stats==7.2.0"
    unmade = replace(fresh, environment=Environment(error="not made yet"))
    assert client_requirement(host, unmade) is None
    alone = device(python={"system_packages": False})
    assert client_requirement(alone, unmade) == "jetson-stats==7.2.0"


VERSIONS = st.tuples(*[st.integers(0, 30)] * 3).map(lambda numbers: ".".join(map(str, numbers)))


@given(VERSIONS, VERSIONS)
def test_a_mismatch_is_a_difference_in_the_first_two_numbers(service: str, client: str) -> None:
    same = service.split(".")[:2] == client.split(".")[:2]
    assert Jtop(version=client, service_version=service).mismatch is not same
    # What the service itself says counts more than what is installed.
    told = Jtop(version=client, service_version=client, error=f"X: jtop service: [{service}] and client: [y]")
    assert told.mismatch is not same


def test_a_base_station_has_no_jtop() -> None:
    station = device(role="base_station")
    found = facts(station, jtop={"program": None})
    assert list(JTOP.changes(station, found)) == list(JTOP.findings(station, found, ())) == []


ALL_RIGHT = Units(manager=True, linger=True, journal=True, memory=True)


def test_services_are_made_to_outlive_a_login() -> None:
    host = device()
    assert list(UNITS.changes(host, facts(host, units=ALL_RIGHT))) == []
    found = facts(host, units=replace(ALL_RIGHT, linger=False))
    (change,) = UNITS.changes(host, found)
    assert change.steps[0].line().startswith("nano: (root) loginctl enable-linger nvidia && ")
    (back,) = UNITS.undo(host, found, change.recorded)
    assert back.line() == "nano: (root) loginctl disable-linger nvidia"


def test_the_user_may_read_what_services_say() -> None:
    host = device()
    access = System(access=Access(groups=("systemd-journal",), member=()))
    found = facts(host, units=replace(ALL_RIGHT, journal=False), system=access)
    (change,) = AccessAspect().changes(host, found)
    assert change.recorded["groups"] == ["systemd-journal"]
    assert list(UNITS.changes(host, found)) == list(UNITS.findings(host, found, [change])) == []
    # Without root it is no failure: the host is used as it is.
    assert list(AccessAspect().changes(host, replace(found, sudo=False))) == []
    (finding,) = UNITS.findings(host, replace(found, sudo=False), ())
    assert (finding.level, "usermod -aG systemd-journal nvidia" in finding.hint) == ("warning", True)
    # In the group, and still without a journal to read: that needs a person.
    member = replace(found, system=System(access=Access(("systemd-journal",), ("systemd-journal",))))
    assert list(AccessAspect().changes(host, member)) == []
    (finding,) = UNITS.findings(host, member, ())
    assert (finding.level, "/var/log/journal" in finding.hint) == ("warning", True)


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        ({"units": replace(ALL_RIGHT, linger=False), "sudo": False}, "warning", "ends what nvidia started"),
        ({"units": replace(ALL_RIGHT, memory=False)}, "note", "cannot limit the memory"),
        ({"units": ALL_RIGHT, "user": "root"}, "note", "services run as root, though with fewer rights"),
    ],
)
def test_what_systemd_cannot_do_is_said(changes: dict[str, Any], level: str, text: str) -> None:
    host = device()
    found = facts(host, **changes)
    assert list(UNITS.changes(host, found)) == []
    (finding,) = UNITS.findings(host, found, ())
    assert finding.level == level
    assert text in finding.text
    # Without systemd there is nothing to say.
    assert list(UNITS.findings(host, replace(found, systemd=False), ())) == []
