import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.config.inventory import Host, Inventory, Network
from testbed.errors import TestbedError
from testbed.hosts.facts import Environment, Facts, Recorded
from testbed.hosts.steps import Put
from testbed.provision.aspect import Site
from testbed.provision.aspects import RUN_ITEMS, aspects_of
from testbed.provision.aspects.folders import FOLDERS
from testbed.provision.code import PayloadCode, code_digest, load_payload_code
from testbed.provision.plan import check_host, plan_changes, plan_fleet, plan_host, steps_of
from tests.provision.conftest import Mark

pytestmark = pytest.mark.usefixtures("only")


def device(**changes: Any) -> Host:
    settings = {"name": "nano", "role": "device", "address": "x", "user": "nvidia"}
    return Host.model_validate(settings | changes)


@pytest.fixture
def host() -> Host:
    return device()


@pytest.fixture
def site(code: PayloadCode) -> Site:
    return Site(code)


@pytest.fixture
def ready(code: PayloadCode) -> Facts:
    """Return the facts of a host that is as it should be."""
    return Facts(
        "nano",
        l4t="36.4.3",
        jetpack="6.2",
        sudo=True,
        environment=Environment("3.10.12", {"torch": "2.5.0"}),
        code={code.digest: code.digest},
        code_current=code.digest,
        folders=dict(FOLDERS),
    )


def test_a_host_that_is_as_it_should_be_needs_nothing(host: Host, ready: Facts, site: Site) -> None:
    plan = plan_host(host, ready, site)
    assert (plan.changes, plan.findings, plan.ok) == ((), (), True)


def test_what_there_was_is_noted_before_anything_is_done(host: Host, site: Site) -> None:
    changes = plan_changes(host, Facts("nano"), site)
    assert [change.item for change in changes] == ["folders", "code"]
    assert changes[0].recorded == {"made": list(FOLDERS), "modes": {}, "sudo_mark": None}
    assert changes[1].recorded == {"current": None, "digest": site.code.digest, "there": False}
    for change in changes:
        first, *others = steps_of(change, Facts("nano"))
        assert first.line().endswith('>> "$HOME/.testbed/provision.jsonl" && chmod 600 '
                                     '"$HOME/.testbed/provision.jsonl" && sync "$HOME/.testbed/provision.jsonl" '
                                     '"$HOME/.testbed"')  # fmt: skip
        assert tuple(others) == change.steps


def test_what_is_noted_already_is_not_noted_again(host: Host, site: Site) -> None:
    facts = Facts("nano")
    (change, _) = plan_changes(host, facts, site)
    noted = Recorded("folders", change.recorded)
    assert steps_of(change, replace(facts, record=(noted, Recorded("code", {})))) == change.steps
    # Something else was done to it since: what there is now must be found again, too.
    since = (noted, Recorded("folders", {"made": [], "modes": {}}))
    assert len(steps_of(change, replace(facts, record=since))) == len(change.steps) + 1


def test_code_that_is_there_is_not_sent_again(host: Host, ready: Facts, site: Site) -> None:
    digest = site.code.digest
    facts = replace(ready, code_current="0" * 16, code={"0" * 16: "0" * 16, digest: digest})
    (change,) = plan_changes(host, facts, site)
    assert not any(isinstance(step, Put) for step in change.steps)
    assert (change.before, change.after) == ("0" * 16, digest)


def test_damaged_code_is_sent_again(host: Host, ready: Facts, site: Site) -> None:
    (change,) = plan_changes(host, replace(ready, code={site.code.digest: "f" * 16}), site)
    assert any(isinstance(step, Put) for step in change.steps)
    assert change.before == f"{site.code.digest}, damaged"


def test_a_board_that_is_too_old_is_refused(host: Host, ready: Facts, site: Site) -> None:
    (finding,) = check_host(host, replace(ready, jetpack="4", l4t="32.7.1"), site)
    assert finding.level == "failure"
    assert "JetPack 4 (L4T 32.7.1) is not supported" in finding.text
    assert finding.hint


def test_a_board_of_no_known_kind_is_noted(ready: Facts, site: Site) -> None:
    (finding,) = check_host(device(board="jetson-xavier-nx"), ready, site)
    assert finding.level == "note"
    assert "jetson-xavier-nx-16gb" in finding.hint


def test_the_base_station_needs_qdiscs(ready: Facts, site: Site) -> None:
    (finding,) = check_host(device(role="base_station"), replace(ready, user="root", qdiscs=("tbf",)), site)
    assert finding.text == "its kernel has no htb, ifb: links cannot be shaped in the kernel"


@pytest.mark.parametrize(
    ("role", "shaping", "user", "wrong"),
    [
        ("device", "device", "jetson", True),
        ("device", "device", "root", False),
        ("device", "bs", "jetson", False),
        ("base_station", "bs", "jetson", True),
        ("base_station", "bs", "root", False),
        ("base_station", "pacing", "jetson", False),
    ],
)
def test_links_are_shaped_by_root_alone(
    role: str, shaping: str, user: str, wrong: bool, ready: Facts, site: Site
) -> None:
    host = device(role=role)
    host._network = Network(shaping=shaping)
    findings = check_host(host, replace(ready, user=user), site)
    assert [finding.item for finding in findings if finding.level == "failure"] == ["kernel"] * wrong
    assert all("`user: root`" in finding.hint for finding in findings if finding.item == "kernel")


def test_a_part_of_the_probe_that_failed_is_a_failure(host: Host, ready: Facts, site: Site) -> None:
    (finding,) = check_host(host, replace(ready, errors={"system": "OSError: no"}), site)
    assert (finding.level, finding.text) == ("failure", "the probe of its system failed: OSError: no")


def test_nothing_is_rebooted_unasked(host: Host, ready: Facts, site: Site, only: Callable[..., None]) -> None:
    only(Mark("mode", reboots=True))
    plan = plan_host(host, ready, site)
    assert (plan.changes, plan.ok) == ((), False)
    (failure,) = plan.failures
    assert (failure.item, failure.text) == ("mode", "the mode needs a reboot")
    assert "--reboot" in failure.hint
    allowed = plan_host(host, ready, replace(site, reboot=True))
    assert allowed.ok
    assert [getattr(step, "reboots", False) for step in allowed.steps] == [False, True]


def test_a_plan_for_a_fleet_refuses_hosts_that_cannot_be_used(
    lab: Inventory, ready: Facts, code: PayloadCode
) -> None:
    assert plan_fleet(lab, {"bs": ready, "dev": ready}, code) == ()
    fresh = replace(ready, code_current=None, code={})
    assert {step.host for step in plan_fleet(lab, {"bs": ready, "dev": fresh}, code)} == {"dev"}
    old = replace(ready, jetpack="4", l4t="32.7.1")
    with pytest.raises(TestbedError, match=r"dev: JetPack 4 .* is not supported.* \(hint: "):
        plan_fleet(lab, {"bs": ready, "dev": old}, code)


def test_a_run_puts_right_only_what_it_needs(
    lab: Inventory, ready: Facts, code: PayloadCode, only: Callable[..., None]
) -> None:
    only(Mark("mode"))
    assert plan_changes(lab.base_station, ready, Site(code)) != ()
    assert plan_fleet(lab, {"bs": ready, "dev": ready}, code) == ()


def test_every_aspect_has_a_name_of_its_own(site: Site) -> None:
    items = [aspect.item for aspect in aspects_of(site)]
    assert len(set(items)) == len(items)
    assert set(items) >= RUN_ITEMS


def test_the_archive_of_the_code_is_always_the_same(tmp_path: Path) -> None:
    root = tmp_path / "payloads"
    (root / "wire" / "__pycache__").mkdir(parents=True)
    (root / "wire" / "frames.py").write_text("SIZE = 3\n")
    (root / "__init__.py").touch()
    (root / "notes.txt").write_text("not code")
    code = load_payload_code(root)
    assert list(code.files) == ["payloads/__init__.py", "payloads/wire/frames.py"]
    first = code.archive
    (root / "__init__.py").chmod(0o600)
    (root / "wire" / "frames.py").touch()
    assert load_payload_code(root).archive == first
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        assert {name: (tar.extractfile(name) or first).read() for name in tar.getnames()} == code.files  # type: ignore[union-attr]
    (root / "wire" / "frames.py").write_text("SIZE = 4\n")
    assert load_payload_code(root).digest != code.digest


def test_the_digest_tells_names_from_contents() -> None:
    assert code_digest({"a": b"b"}) != code_digest({"b": b"a"})
    assert code_digest({"a": b"x", "b": b""}) != code_digest({"a": b"", "b": b"x"})


def test_the_shipped_code_holds_the_payloads() -> None:
    code = load_payload_code()
    assert {"payloads/__init__.py", "payloads/wdmoe/gating.py"} <= set(code.files)
    assert len(code.digest) == 16
