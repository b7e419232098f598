"""From an inventory file to a lab."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testbed.boards.kinds import kinds
from testbed.config.inventory import load_inventory
from testbed.emulation import host, network
from testbed.emulation.lab import load, shell_command
from testbed.emulation.plan import plan_lines
from testbed.emulation.settings import load_lab
from testbed.emulation.spec import LabSpec
from testbed.errors import InputError

SHIPPED = Path(__file__).parents[2] / "inventory/emulated.yaml"
PACE_SCALE = 100


def changed(tmp_path, *changes):
    text = SHIPPED.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "lab.yaml"
    path.write_text(text)
    return path


def test_the_shipped_inventory_is_a_lab_of_four_boards_and_a_base_station():
    spec = load_lab(SHIPPED)
    assert [entry.board for entry in spec.hosts] == [
        "",
        "jetson-agx-orin-64gb",
        "jetson-orin-nx-16gb",
        "jetson-orin-nano-8gb",
        "jetson-xavier-nx-16gb",
    ]
    assert spec.gateway == "10.83.0.254"


def test_a_host_that_the_lab_has_not_is_a_mistake_of_the_user():
    spec = load_lab(SHIPPED)
    with pytest.raises(InputError, match="has no host nope; its hosts are bs, agx-orin, "):
        shell_command(spec, "nope")
    with pytest.raises(InputError, match="has no host nope"):
        load(spec, "nope", [])


def test_the_shipped_inventory_leads_where_the_lab_keeps_its_files():
    inventory, files = load_inventory(SHIPPED), load_lab(SHIPPED).files
    assert inventory.known_hosts == files.known_hosts
    for entry in inventory.hosts.values():
        assert entry.key_file == files.key
        assert str(files.net) in entry.gateway


def test_the_shipped_pace_is_the_boards_own_divided_by_the_scale():
    for entry in load_inventory(SHIPPED).devices:
        speed = kinds()[entry.board].at().speed(PACE_SCALE)
        assert entry.pace.ops_per_s == pytest.approx(speed.ops_per_s, rel=1e-3)
        assert entry.pace.bytes_per_s == pytest.approx(speed.bytes_per_s, rel=1e-3)


def test_the_shipped_pace_matters_for_the_shipped_model():
    weights = 3 * 192 * 384
    for entry in load_inventory(SHIPPED).devices:
        one_token_ms = 1e3 * (2 * weights / entry.pace.ops_per_s + 2 * weights / entry.pace.bytes_per_s)
        assert 0.2 < one_token_ms < 2


def test_a_lab_survives_the_way_to_its_keeper():
    spec = load_lab(SHIPPED)
    assert LabSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_only_what_the_inventory_says_makes_two_labs_different(tmp_path):
    spec = load_lab(SHIPPED)
    assert LabSpec.from_json({**spec.to_json(), "interpreter": "/other"}).digest() == spec.digest()
    other = load_lab(changed(tmp_path, ("network: 10.83.0.0/24", "network: 10.83.0.0/24\n  tick_hz: 20")))
    assert other.digest() != spec.digest()


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("10.83.0.13", "10.84.0.13", "orin-nano.address", "10.83.0.0/24"),
        ("10.83.0.13", "10.83.0.254", "orin-nano.address", "bridge"),
        ("jetson-orin-nano-8gb", "jetson-orin-nano-9gb", "orin-nano.board", "jetson-orin-nano-8gb"),
        ("jetson-orin-nano-8gb", "jetson-nano-4gb", "orin-nano.board", "Python is 3.6"),
        ("network: 10.83.0.0/24", 'hosts: {orin-nano: {l4t: "38.2"}}', "orin-nano.l4t", "L4T 35, 36, 39"),
        ("network: 10.83.0.0/24", 'hosts: {bs: {l4t: "36.4"}}', "bs.l4t", "plain machine"),
        ("network: 10.83.0.0/24", "network: home", "emulation.network", "IPv4 network"),
        ("network: 10.83.0.0/24", "netwrk: 10.83.0.0/24", "emulation.netwrk", "`network`"),
        ("network: 10.83.0.0/24", "hosts: {nano: {cpu_cores: 1}}", "emulation.hosts.nano", "no host"),
        (
            "network: 10.83.0.0/24",
            "hosts: {orin-nano: {cpu_cores: -1}}",
            "emulation.hosts.orin-nano",
            "at least",
        ),
        ("  user: root", "  user: Me", "user", "small letters"),
        ("network: 10.83.0.0/24", "hosts: {orin-nano: {l4t: 36}}", "orin-nano.l4t", "in quotes"),
        ("network: 10.83.0.0/24", "hosts: {orin-nano: {sudo: maybe}}", "orin-nano.sudo", "`nopasswd`"),
        ("network: 10.83.0.0/24", "hosts: {orin-nano: {sudo: none}}", "orin-nano.sudo", "not root"),
        ("network: 10.83.0.0/24", "hosts: {bs: {jtop: false}}", "emulation.hosts.bs.jtop", "a device was"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path, old, new, line, expected):
    with pytest.raises(InputError) as caught:
        load_lab(changed(tmp_path, (old, new)))
    assert "lab.yaml:" in str(caught.value)
    assert line in str(caught.value)
    assert expected in str(caught.value)


def test_an_inventory_without_the_section_is_no_lab(tmp_path):
    with pytest.raises(InputError, match="emulation"):
        load_lab(changed(tmp_path, ("emulation:\n  network: 10.83.0.0/24", "")))


def test_limits_come_from_the_board_unless_they_are_given(tmp_path):
    section = "network: 10.83.0.0/24\n  hosts: {orin-nx: {cpu_cores: 0.5, memory_mib: 512}}"
    spec = load_lab(changed(tmp_path, ("network: 10.83.0.0/24", section)))
    hosts = {entry.name: entry for entry in spec.hosts}
    assert (hosts["orin-nx"].cpu_cores, hosts["orin-nx"].memory_mib) == (0.5, 512)
    assert (hosts["orin-nano"].cpu_cores, hosts["orin-nano"].memory_mib) == (6, 7620)


def test_every_host_is_in_the_hosts_file_and_on_the_bridge():
    spec = load_lab(SHIPPED)
    text = host.hosts_file(spec, spec.hosts[0])
    ports = [network.port_name(number, entry.name) for number, entry in enumerate(spec.hosts)]
    for entry in spec.hosts:
        assert f"{entry.address} {entry.name}\n" in text
    assert len(set(ports)) == len(ports)
    assert all(len(port) <= 15 for port in ports)


def test_only_boards_run_jtop():
    spec = load_lab(SHIPPED)
    names = {entry.name: [service["name"] for service in host.services(spec, entry)] for entry in spec.hosts}
    assert names["bs"] == ["sshd"]
    assert names["orin-nano"] == ["sshd", "jtop"]


def test_the_dry_run_names_every_host_and_its_limits():
    text = "\n".join(plan_lines(load_lab(SHIPPED)))
    for name in ("bs", *(entry.name for entry in load_lab(SHIPPED).hosts)):
        assert name in text
    assert "7620 MiB" in text
