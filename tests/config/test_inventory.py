import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.cli import main
from testbed.config.inventory import Inventory, load_inventory
from testbed.errors import InputError

GOOD = """\
lab: shelf
defaults:
  user: nvidia
  python: {interpreter: python3.10, packages: [torch]}
hosts:
  bs:
    role: base_station
    address: 10.0.0.1
    user: root
  nano:
    role: device
    address: 10.0.0.2
    python:
      index: https://wheels.example/jp6
"""

BROKEN = {
    "wrong type": (
        ("address: 10.0.0.2", "address: 10.0.0.2\n    port: abc"),
        "lab.yaml:13: hosts.nano.port: an integer from 1 to 65535 was expected, not 'abc'",
    ),
    "out of range": (
        ("address: 10.0.0.2", "address: 10.0.0.2\n    port: 70000"),
        "lab.yaml:13: hosts.nano.port: an integer from 1 to 65535 was expected, not 70000",
    ),
    "true is no number": (
        ("address: 10.0.0.2", "address: 10.0.0.2\n    port: true"),
        "lab.yaml:13: hosts.nano.port: an integer from 1 to 65535 was expected, not true",
    ),
    "unknown key": (
        ("    user: root", "    usr: root"),
        "lab.yaml:9: hosts.bs.usr: unknown key; did you mean `user`?",
    ),
    "unknown key in the defaults": (
        ("  user: nvidia", "  usr: nvidia"),
        "lab.yaml:3: defaults.usr: unknown key; did you mean `user`?",
    ),
    "wrong type in the defaults": (
        ("interpreter: python3.10", "interpreter: 3.10"),
        "lab.yaml:4: defaults.python.interpreter: text was expected, not 3.1",
    ),
    "metrics where the worker listens": (
        ("lab: shelf", "lab: shelf\nnetwork: {metrics_port: 7070}"),
        "lab.yaml:2: network.metrics_port: 7070 is the `data_port` already; metrics need one of their own",
    ),
    "multicast to one host": (
        ("lab: shelf", "lab: shelf\nnetwork: {multicast: 10.0.0.9:7090}"),
        "lab.yaml:2: network.multicast: an IPv4 multicast address with a port was expected, such as 239.83.0.1:7090, "
        "not '10.0.0.9:7090'",
    ),
    "multicast without a port": (
        ("lab: shelf", "lab: shelf\nnetwork: {multicast: 239.83.0.1}"),
        "lab.yaml:2: network.multicast: an IPv4 multicast address with a port was expected",
    ),
    "a mirror that is no device": (
        ("lab: shelf", "lab: shelf\nnetwork: {artifact_mirrors: [nanno]}"),
        "lab.yaml:2: network.artifact_mirrors[0]: the lab has no device 'nanno'; did you mean nano?",
    ),
    "the base station as a mirror": (
        ("lab: shelf", "lab: shelf\nnetwork: {artifact_mirrors: [bs]}"),
        "lab.yaml:2: network.artifact_mirrors[0]: bs is the base station, which all devices pull from anyway",
    ),
    "a mirror that stands twice": (
        ("lab: shelf", "lab: shelf\nnetwork: {artifact_mirrors: [nano, nano]}"),
        "lab.yaml:2: network.artifact_mirrors[1]: nano stands here twice",
    ),
    "a mirror that is no address": (
        ("lab: shelf", "lab: shelf\nnetwork: {artifact_mirrors: ['ftp://a/b']}"),
        "lab.yaml:2: network.artifact_mirrors[0]: the name of a device, or the address of a web server such as "
        "http://10.0.0.9:8080, was expected, not 'ftp://a/b'",
    ),
    "no bandwidth for artifacts": (
        ("lab: shelf", "lab: shelf\nnetwork: {artifact_mbit: 0}"),
        "lab.yaml:2: network.artifact_mbit: a number above 0 was expected, not 0",
    ),
    "missing key": (
        ("    address: 10.0.0.2\n", ""),
        "lab.yaml:10: hosts.nano.address: this key is missing: an IPv4 address or a host name",
    ),
    "missing base station": (
        ("base_station", "device"),
        "lab.yaml:5: hosts: no host has the role base_station; exactly one was expected",
    ),
    "two base stations": (
        ("role: device", "role: base_station"),
        "lab.yaml:11: hosts.nano.role: a second base_station; bs is one already (line 7)",
    ),
    "an address that cannot be": (
        ("10.0.0.2", "300.1.1.1"),
        "lab.yaml:12: hosts.nano.address: an IPv4 address or a host name was expected, not '300.1.1.1'",
    ),
    "duplicate address": (
        ("10.0.0.2", "10.0.0.1"),
        "lab.yaml:12: hosts.nano.address: 10.0.0.1 is the address of bs too (line 8)",
    ),
    "one of a few": (
        ("role: device", "role: devise"),
        "lab.yaml:11: hosts.nano.role: one of `base_station`, `device` was expected, not 'devise'",
    ),
    "unknown field of a gateway": (
        ("address: 10.0.0.2", "address: 10.0.0.2\n    gateway: nc {host} {port}"),
        "lab.yaml:13: hosts.nano.gateway: unknown field {host}; there are {address} and {port}",
    ),
    "negative pace": (
        ("address: 10.0.0.2", "address: 10.0.0.2\n    pace: {ops_per_s: -1, bytes_per_s: 2e9}"),
        "lab.yaml:13: hosts.nano.pace.ops_per_s: a number above 0 was expected, not -1",
    ),
    "a host's name in it": (
        ("    user: root", "    name: other"),
        "lab.yaml:9: hosts.bs.name: unknown key; a host's name is the key that it stands under",
    ),
    "a host that is no mapping": (
        ("  nano:\n", "  extra: 3\n  nano:\n"),
        "lab.yaml:10: hosts.extra: keys and values",
    ),
    "YAML error": (("role: device", "role: [device"), "lab.yaml:12: not valid YAML"),
    "doubled key": (
        ("    user: root", "    address: 10.0.0.9"),
        "lab.yaml:9: hosts.bs.address: the key stands twice, first in line 8",
    ),
}

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("lab.yaml").write_text(text)
        return Path("lab.yaml")

    return write


def test_defaults_are_filled_in_and_own_settings_win(write: Write) -> None:
    lab = load_inventory(write(GOOD))
    assert (lab.base_station.name, [device.name for device in lab.devices]) == ("bs", ["nano"])
    assert (lab.hosts["bs"].user, lab.hosts["nano"].user) == ("root", "nvidia")
    python = lab.hosts["nano"].python
    assert (python.interpreter, python.packages, python.index) == (
        "python3.10",
        ("torch",),
        "https://wheels.example/jp6",
    )
    assert lab.known_hosts == Path("lab.known_hosts")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_inventory_gets_one_clear_message_and_exit_code_2(
    name: str, write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (old, new), message = BROKEN[name]
    assert old in GOOD
    write(GOOD.replace(old, new, 1))
    monkeypatch.setattr(sys, "argv", ["testbed", "inventory", "check", "lab.yaml"])
    with pytest.raises(SystemExit) as caught:
        main.run()
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {message}")
    assert shown.err.count("\n") == 1
    assert not shown.out


def test_a_board_of_no_known_kind_is_noted_and_no_mistake(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(GOOD.replace("address: 10.0.0.2", "address: 10.0.0.2\n    board: jetson-orin-nx"))
    monkeypatch.setattr(sys, "argv", ["testbed", "inventory", "check", "lab.yaml"])
    with pytest.raises(SystemExit, match=r"^0$"):
        main.run()
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("no mistake")
    assert said[1].startswith("note: nano: jetson-orin-nx is no kind of board that testbed knows: ")
    assert said[2:] == ["  hint: did you mean jetson-orin-nx-8gb or jetson-orin-nx-16gb?"]
    write(GOOD.replace("address: 10.0.0.2", "address: 10.0.0.2\n    board: jetson-orin-nx-8gb"))
    with pytest.raises(SystemExit, match=r"^0$"):
        main.run()
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lab.yaml: the file is empty"),
        ("- a\n- b", "lab.yaml:1: keys and values were expected, not a list"),
        ("lab: x\nhosts: {}", "lab.yaml:2: hosts: the fleet is empty"),
        ("lab: x", "lab.yaml:1: hosts: this key is missing"),
    ],
)
def test_an_empty_inventory(text: str, message: str, write: Write) -> None:
    with pytest.raises(InputError) as caught:
        load_inventory(write(text))
    assert str(caught.value).startswith(message)


def test_every_mistake_of_a_file_is_named_in_one_go(write: Write) -> None:
    text = GOOD.replace("role: device", "role: x").replace("    user: root", "    port: -1")
    with pytest.raises(InputError) as caught:
        load_inventory(write(text))
    assert [problem.split(":")[1] for problem in caught.value.problems] == ["9", "11"]


def test_an_unreadable_file_has_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["testbed", "inventory", "check", "/none/lab.yaml"])
    with pytest.raises(SystemExit) as caught:
        main.run()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "error: /none/lab.yaml: cannot be read: No such file or directory\n" in said
    assert "TESTBED_INVENTORY" in said


def test_selecting_hosts_keeps_the_order_and_helps_with_names(write: Write) -> None:
    lab = load_inventory(write(GOOD))
    assert [host.name for host in lab.select(["nano", "bs"])] == ["bs", "nano"]
    assert lab.select([]) == list(lab.hosts.values())
    with pytest.raises(InputError) as caught:
        lab.select(["nanoo"])
    assert "did you mean nano?" in caught.value.hint


def test_what_is_recorded_of_an_inventory_names_no_key_and_can_be_read_again(write: Write) -> None:
    lab = load_inventory(write(GOOD.replace("user: nvidia", "user: nvidia\n  key_file: ~/.ssh/secret", 1)))
    resolved = lab.resolved()
    assert "secret" not in str(resolved)
    assert Inventory.model_validate(resolved).hosts["nano"].python == lab.hosts["nano"].python


@pytest.mark.parametrize("name", ["emulated.yaml", "lab-rack.example.yaml"])
def test_the_shipped_inventories_are_good(name: str) -> None:
    lab = load_inventory(Path(__file__).parents[2] / "inventory" / name)
    assert len(lab.devices) >= 4
