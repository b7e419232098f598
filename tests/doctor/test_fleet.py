import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from testbed.cli.main import app
from testbed.config.inventory import Host, Inventory
from testbed.doctor.fleet import HEADING, fleet_problems, fleet_rows, state_of
from testbed.errors import ConnectError, HostKeyError
from testbed.hosts.facts import Facts
from testbed.hosts.fake import FakeTransport
from testbed.provision.aspect import Change, Finding
from testbed.provision.grouping import Told, group_problems
from testbed.provision.plan import HostPlan

GIB = 1 << 30
GOOD = Facts(
    "nano-1",
    board_model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
    l4t="36.4.3",
    jetpack="6.2",
    python="3.10.12",
    torch="2.5.0",
    cuda="12.6",
    capability="8.7",
    memory_bytes=8 * GIB,
    memory_free_bytes=6 * GIB,
    disk_free_bytes=20 * GIB,
    cpu_count=6,
    power_mode="MAXN",
    clock_offset_s=-0.0124,
    sudo=True,
    systemd=True,
)


def host(name, address):
    return Host.model_validate({"name": name, "role": "device", "address": address, "board": "a-board"})


def unreachable(name, address):
    error = ConnectError(name, f"no answer from {address}:22 within 4 s", hint=f"is {name} on?")
    return HostPlan(host(name, address), error=error)


def found(name, *findings, changes=()):
    one = host(name, "10.0.0.9")
    return HostPlan(one, GOOD, changes, tuple(Finding(name, *finding) for finding in findings))


def test_equal_problems_are_told_once_the_worst_and_commonest_first():
    plans = [
        found("a", ("note", "python", "torch has no GPU here"), ("warning", "disk", "only 1.5 GiB are free")),
        found("b", ("warning", "disk", "only 0.7 GiB are free"), ("failure", "sudo", "no sudo", "see b")),
        unreachable("c", "10.0.0.3"),
        unreachable("d", "10.0.0.4"),
    ]
    assert [line for problem in fleet_problems(plans) for line in problem.lines()] == [
        "failure: 2 hosts (c, d): no answer from ADDRESS:22 within 4 s",
        "  hint: is HOST on?",
        "failure: b: no sudo",
        "  hint: see b",
        "warning: 2 hosts (a, b): only 0.7 to 1.5 GiB are free",
        "note: a: torch has no GPU here",
    ]


def test_what_differs_in_more_than_a_quantity_stays_apart():
    told = [
        Told("a", "failure", "board", "JetPack 4.6 is not supported"),
        Told("b", "failure", "board", "JetPack 4.5 is not supported"),
        Told("c", "failure", "python", "JetPack 4.5 is not supported"),
        Told("d", "warning", "python", "JetPack 4.5 is not supported"),
        Told("e", "warning", "clock", "its clock is 60 ms ahead of ours"),
        Told("f", "warning", "clock", "its clock is 60 ms behind ours"),
        Told("g", "warning", "disk", "it needs # s"),
        Told("h", "warning", "disk", "it needs 5 s"),
    ]
    assert [problem.hosts for problem in group_problems(told)] == [(one.host,) for one in told]


def test_a_name_inside_a_longer_word_is_no_name():
    own = (("ADDRESS", "10.0.0.1"), ("HOST", "bs"))
    other = (("ADDRESS", "10.0.0.11"), ("HOST", "bs2"))
    text = "bs-htb fails at 10.0.0.11"
    told = [Told("bs", "failure", "x", text, own=own), Told("bs2", "failure", "x", text, own=other)]
    assert [problem.text for problem in group_problems(told)] == [text, text]


@given(
    st.lists(
        st.builds(
            Told,
            st.sampled_from(["a", "b", "c"]),
            st.sampled_from(["failure", "warning", "note"]),
            st.sampled_from(["disk", "clock"]),
            st.from_regex(r"[a-c ]{0,4}[0-9]{1,2}(\.[0-9])? ?(ms|GiB|%|x)?[a-c]?", fullmatch=True),
        )
    )
)
def test_no_problem_of_a_host_is_lost_or_said_twice(told):
    problems = group_problems(told)
    hosts = [(p.level, p.item, name) for p in problems for name in p.hosts]
    assert set(hosts) == {(t.level, t.item, t.host) for t in told}
    for one in told:
        assert any(
            one.host in p.hosts
            and (p.level, p.item) == (one.level, one.item)
            and re.sub(r"[\d.]+( to [\d.]+)?", "", p.text) == re.sub(r"[\d.]+", "", one.text)
            for p in problems
        )


def test_the_table_has_what_is_known_of_each_host():
    change = Change("nano-1", "code", "send payload code", "none", "abc", ())
    rows = fleet_rows([found("nano-1", changes=(change, change)), unreachable("b", "10.0.0.2")])
    assert dict(zip(rows[0], rows[1], strict=True)) == {
        "host": "nano-1",
        "board": "Orin Nano Super",
        "jetpack": "6.2 (36.4.3)",
        "python": "3.10.12",
        "torch": "2.5.0 (CUDA 12.6, 8.7)",
        "cpus": "6",
        "memory GiB": "6.0/8.0",
        "disk GiB": "20.0",
        "power": "MAXN",
        "clock ms": "-12",
        "sudo": "yes",
        "services": "systemd",
        "state": "to provision: code",
    }
    assert rows[2] == ("b", "a-board", *["-"] * (len(HEADING) - 3), "not asked")


def test_a_host_is_ready_or_says_why_not():
    assert state_of(found("a")) == "ready"
    assert state_of(found("a", ("warning", "disk", "little"))) == "ready"
    assert state_of(found("a", ("failure", "sudo", "none"))) == "cannot be used"


def test_facts_of_which_nothing_is_known_leave_dashes():
    row = fleet_rows([HostPlan(host("a", "10.0.0.2"), Facts("a"))])[1]
    assert row[1:10] == ("-",) * 9


@pytest.fixture
def lab(monkeypatch, tmp_path):
    """Return what probes a lab of three hosts, whose facts are given or which fail with an error."""
    hosts = {"bs": {"role": "base_station", "address": "10.0.0.1"}}
    hosts |= {f"n{i}": {"role": "device", "address": f"10.0.0.{i}"} for i in (2, 3)}
    file = tmp_path / "lab.yaml"
    file.write_text(json.dumps(Inventory.model_validate({"lab": "x", "hosts": hosts}).resolved()))
    asked = []

    def probe(answers, *arguments):
        def gather(one, _transport, **_options):
            asked.append(one.name)
            if isinstance(answers[one.name], Exception):
                raise answers[one.name]
            return answers[one.name]

        def connect(one):
            return FakeTransport(one.name)

        monkeypatch.setattr("testbed.hosts.ssh.ssh_connect", lambda *_args, **_options: connect)
        monkeypatch.setattr("testbed.provision.survey.gather_facts", gather)
        return CliRunner().invoke(app, ["probe", "-i", str(file), *arguments])

    probe.asked = asked
    return probe


def test_a_dead_host_is_named_and_the_others_are_shown(lab):
    done = lab({"bs": GOOD, "n2": GOOD, "n3": ConnectError("n3", "no answer", hint="is it on?")})
    assert done.exit_code == 1
    assert "failure: n3: no answer\n  hint: is it on?\n" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()[-4:]] == ["host", "bs", "n2", "n3"]


def test_a_changed_key_is_refused_and_the_limit_is_kept(lab):
    answers = {"n2": HostKeyError("n2", "the host's key has changed"), "n3": GOOD}
    done = lab(answers, "--limit", "n2", "--json")
    assert done.exit_code == 3
    assert lab.asked == ["n2"]
    answer = json.loads(done.stdout)
    assert answer["problems"][0]["item"] == "host key"
    assert answer["problems"][0]["hosts"] == ["n2"]
    assert answer["hosts"][0]["facts"] is None
    assert answer["hosts"][0]["state"] == "not asked"


def test_keys_that_nobody_has_recorded_are_told_once_and_changed_ones_each():
    def showing(name, text):
        error = HostKeyError(name, f"the host's key {text}", hint="`testbed trust`")
        return HostPlan(host(name, "10.0.0.9"), error=error)

    new = [showing(name, f"is not recorded in keys: ssh-ed25519 SHA256:{2 * name}/+") for name in ("a", "b")]
    changed = [
        showing(name, f"has changed: ssh-ed25519 SHA256:{2 * name} instead of x") for name in ("c", "d")
    ]
    told = {problem.hosts: problem.text for problem in fleet_problems([*new, *changed])}
    assert told == {
        ("a", "b"): "the host's key is not recorded in keys: KEY",
        ("c",): "the host's key has changed: ssh-ed25519 SHA256:cc instead of x",
        ("d",): "the host's key has changed: ssh-ed25519 SHA256:dd instead of x",
    }
