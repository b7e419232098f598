from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.config.inventory import load_inventory
from testbed.errors import InputError


@pytest.fixture
def inventory(tmp_path: Path) -> Callable[[str], Path]:
    def write(line: str) -> Path:
        path = tmp_path / "rack.yaml"
        path.write_text(
            "lab: rack\ndefaults:\n  clock: {limit_ms: 20}\nnetwork: {data_port: 7777}\nhosts:\n"
            "  bs: {role: base_station, address: 192.0.2.1}\n"
            f"  orin:\n    role: device\n    address: 192.0.2.2\n    {line}\n"
        )
        return path

    return write


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("packages: ['rm -rf']", "packages[0]", "the name of a Debian package"),
        ("packages: [Iperf]", "packages[0]", "the name of a Debian package"),
        ("groups: ['a b']", "groups[0]", "the name of a group"),
        ("jetson_clocks: 'yes'", "jetson_clocks", "true or false"),
        ("clock: {limit_ms: 0}", "clock.limit_ms", "a number above 0"),
        ("clock: {servers: ['a;b']}", "clock.servers[0]", "the address or the name of a time server"),
        ("memory: {swap_mib: 0}", "memory.swap_mib", "an integer from 1 to"),
        ("memory: {swap_file: swap}", "memory.swap_file", "an absolute path"),
        ("memory: {swap: 1}", "memory.swap", "unknown key; did you mean `swap_"),
        ("python: {index: 'https://me:word@wheels.example/'}", "python.index", "an address that begins with"),
        ("disk: {free_gib: -1}", "disk.free_gib", "a number of at least 0"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    line: str, key: str, expected: str, inventory: Callable[[str], Path]
) -> None:
    with pytest.raises(InputError) as caught:
        load_inventory(inventory(line))
    assert f"rack.yaml:10: hosts.orin.{key}: {expected}" in str(caught.value)
    assert "me:word" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_defaults_are_merged_and_hosts_know_their_network(inventory: Callable[[str], Path]) -> None:
    lab = load_inventory(inventory("clock: {ntp: true}"))
    assert (lab.hosts["orin"].clock.limit_ms, lab.hosts["orin"].clock.ntp) == (20, True)
    assert {made.network.data_port for made in lab.hosts.values()} == {7777}
    assert "network" not in lab.resolved()["hosts"]["orin"]
