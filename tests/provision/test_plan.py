import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.config.inventory import Host, Inventory
from testbed.errors import TestbedError
from testbed.hosts.facts import Environment, Facts, Jtop
from testbed.hosts.steps import Command, Put
from testbed.provision.changes import FOLDERS, desired_state, plan_provision
from testbed.provision.check import check_host
from testbed.provision.code import PayloadCode, code_digest, load_payload_code
from testbed.provision.plan import plan_fleet, plan_host


def device(**changes: Any) -> Host:
    settings = {"name": "nano", "role": "device", "address": "x", "user": "nvidia"}
    settings |= {"python": {"packages": ["torch==2.5.0"], "index": "https://wheels.example/jp6"}}
    return Host.model_validate(settings | changes)


@pytest.fixture
def host() -> Host:
    return device()


@pytest.fixture
def ready(host: Host, code: PayloadCode, good_facts: dict[str, Any]) -> Facts:
    """Return the facts of a device that is as it should be."""
    return Facts(
        "nano",
        l4t="36.4.3",
        jetpack="6.2",
        python="3.10.12",
        torch="2.5.0",
        cuda="12.6",
        disk_free_bytes=100 << 30,
        clock_offset_s=0.004,
        clock_error_s=0.002,
        systemd=True,
        jtop=Jtop(**good_facts, unit=True),
        user="nvidia",
        sudo=True,
        environment=Environment("3.10.12", {"torch": "2.5.0"}, recipe=desired_state(host).recipe),
        code={code.digest: code.digest},
        code_current=code.digest,
        folders=dict(FOLDERS),
    )


def test_a_host_that_is_as_it_should_be_needs_nothing(host: Host, ready: Facts, code: PayloadCode) -> None:
    plan = plan_host(host, ready, code)
    assert (plan.changes, plan.findings, plan.ok) == ((), (), True)


def test_a_fresh_board_needs_everything_in_order(host: Host, code: PayloadCode) -> None:
    jtop = Jtop("/usr/bin/jtop", None, group=True, unit=True)
    facts = Facts("nano", user="nvidia", sudo=True, systemd=True, jtop=jtop)
    changes = plan_provision(host, facts, code)
    assert [change.item for change in changes] == ["folders", "code", "python", "jtop group", "jtop service"]
    steps = [step for change in changes for step in change.steps]
    pip = next(step for step in steps if isinstance(step, Command) and " pip " in step.shell)
    assert pip.shell.endswith("--index-url https://wheels.example/jp6 torch==2.5.0")
    assert [step.shell for step in steps if isinstance(step, Command) and step.become] == [
        "usermod -aG jtop nvidia",
        next(step.shell for step in steps if "systemctl" in step.line() and isinstance(step, Command)),
    ]
    assert all(step.host == "nano" for step in steps)
    assert changes[1].before == "none"
    assert changes[1].after == code.digest


def test_code_that_is_there_is_not_sent_again(host: Host, ready: Facts, code: PayloadCode) -> None:
    facts = replace(ready, code_current="0" * 16, code={"0" * 16: "0" * 16, code.digest: code.digest})
    (change,) = plan_provision(host, facts, code)
    assert not any(isinstance(step, Put) for step in change.steps)
    assert (change.before, change.after) == ("0" * 16, code.digest)


def test_damaged_code_is_sent_again(host: Host, ready: Facts, code: PayloadCode) -> None:
    (change,) = plan_provision(host, replace(ready, code={code.digest: "f" * 16}), code)
    assert any(isinstance(step, Put) for step in change.steps)
    assert change.before == f"{code.digest}, damaged"


def test_an_environment_is_made_anew_when_its_recipe_changes(ready: Facts, code: PayloadCode) -> None:
    other = device(python={"packages": ["torch==2.6.0"], "index": "https://wheels.example/jp6"})
    (change,) = plan_provision(other, ready, code)
    assert change.before == "python3 with torch==2.5.0 from https://wheels.example/jp6"
    assert change.after == "python3 with torch==2.6.0 from https://wheels.example/jp6"


def test_an_environment_of_ones_own_is_never_touched(ready: Facts, code: PayloadCode) -> None:
    own = device(python={"manage": False, "interpreter": "/opt/py"})
    broken = replace(ready, environment=Environment(error="/opt/py: not found"))
    assert plan_provision(own, broken, code) == []
    (finding,) = check_host(own, broken)
    assert (finding.level, finding.text) == ("failure", "/opt/py: not found")
    assert "python.interpreter" in finding.hint


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        ({"jetpack": "4", "l4t": "32.7.1"}, "failure", "JetPack 4 (L4T 32.7.1) is not supported"),
        ({"environment": Environment("3.6.9", {"torch": "1"})}, "failure", "Python 3.6.9 is too old"),
        (
            {"environment": Environment("3.10.1", {}, {"torch": "ModuleNotFoundError: no"})},
            "failure",
            "torch cannot be imported: ModuleNotFoundError: no",
        ),
        ({"cuda": None}, "note", "the device runs on its CPU"),
        ({"jtop": Jtop()}, "failure", "jtop (jetson-stats) is not installed"),
        (
            {"jtop": Jtop("jtop", "1", group=True, member=True), "systemd": False},
            "failure",
            "the jtop service does not run",
        ),
        (
            {"jtop": Jtop("jtop", None, group=True, member=True, socket=True)},
            "failure",
            "does not see jetson-stats",
        ),
        ({"clock_offset_s": -0.3}, "warning", "its clock is 300 ms behind ours"),
        ({"clock_offset_s": 0.06, "clock_error_s": 0.0}, "warning", "its clock is 60 ms ahead of ours"),
        ({"disk_free_bytes": 1 << 30}, "warning", "only 1.0 GiB of disk are free"),
    ],
)
def test_what_only_a_person_can_change_is_said_with_a_hint(
    changes: dict[str, Any], level: str, text: str, ready: Facts
) -> None:
    own = device(python={"manage": False})
    (finding,) = check_host(own, replace(ready, **changes))
    assert finding.level == level
    assert text in finding.text
    assert finding.hint


def test_a_clock_is_not_blamed_for_a_slow_answer(host: Host, ready: Facts) -> None:
    assert check_host(host, replace(ready, clock_offset_s=0.06, clock_error_s=0.05)) == []


def test_what_needs_root_fails_without_sudo(host: Host, ready: Facts, code: PayloadCode) -> None:
    jtop = replace(ready.jtop, member=False)
    plan = plan_host(host, replace(ready, jtop=jtop, sudo=False), code)
    (finding,) = plan.failures
    assert finding.text == "nvidia cannot become root without a password"
    assert "NOPASSWD" in finding.hint


def test_another_power_mode_is_told(ready: Facts) -> None:
    (finding,) = check_host(device(power_mode="MAXN"), replace(ready, power_mode="15W"))
    assert (finding.level, finding.text) == ("warning", "its power mode is 15W instead of MAXN")


def test_the_base_station_needs_qdiscs_and_no_jtop(ready: Facts, code: PayloadCode) -> None:
    bs = device(role="base_station", python={"manage": False})
    modules = {"torch": "2", "transformers": "5"}
    facts = replace(ready, jtop=Jtop(), environment=Environment("3.11.2", modules), qdiscs=("tbf",))
    assert plan_provision(bs, facts, code) == []
    (finding,) = check_host(bs, facts)
    assert finding.text == "its kernel has no htb, ifb: links cannot be shaped in the kernel"


def test_a_plan_for_a_fleet_refuses_hosts_that_cannot_be_used(
    lab: Inventory, ready: Facts, code: PayloadCode, good_facts: dict[str, Any]
) -> None:
    modules = {"torch": "2", "transformers": "5"}
    fine = replace(ready, environment=Environment("3.11.2", modules), jtop=Jtop(**good_facts))
    assert plan_fleet(lab, {"bs": fine, "dev": fine}, code) == ()
    fresh = replace(fine, code_current=None, code={})
    assert {step.host for step in plan_fleet(lab, {"bs": fine, "dev": fresh}, code)} == {"dev"}
    with pytest.raises(TestbedError, match=r"dev: jtop \(jetson-stats\) is not installed \(hint: "):
        plan_fleet(lab, {"bs": fine, "dev": replace(fine, jtop=Jtop())}, code)


def test_the_archive_of_the_code_is_always_the_same(tmp_path: Path) -> None:
    root = tmp_path / "payloads"
    (root / "wire" / "__pycache__").mkdir(parents=True)
    (root / "wire" / "frames.py").write_text("SIZE = 3\n")
    (root / "__init__.py").touch()
    (root / "notes.txt").write_text("not code")
    code = load_payload_code(root)
    assert list(code.files) == ["payloads/__init__.py", "payloads/wire/frames.py"]
    first = code.archive()
    (root / "__init__.py").chmod(0o600)
    (root / "wire" / "frames.py").touch()
    assert load_payload_code(root).archive() == first
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
