from __future__ import annotations

import pytest

from testbed.config.inventory import Inventory
from testbed.errors import CommandError
from testbed.hosts.steps import Command
from testbed.links.backends import BACKENDS, choices, explained, shaping_hosts, troubles


def lab(**network) -> Inventory:
    return Inventory.model_validate(
        {
            "lab": "lab",
            "network": network,
            "hosts": {
                "bs": {"role": "base_station", "address": "10.0.0.1"},
                "orin": {"role": "device", "address": "10.0.0.2"},
            },
        }
    )


@pytest.mark.parametrize(
    ("network", "hosts", "at_bs", "at_device"),
    [
        ({}, ["bs"], ("bs-htb-tbf", "bs-htb-netem", "bs-line"), ()),
        ({"leaf": "line"}, ["bs"], ("bs-line",), ()),
        ({"shaping": "device"}, ["bs", "orin"], ("bs-htb-tbf",), ("device-htb-tbf",)),
        ({"shaping": "device", "leaf": "netem"}, ["bs", "orin"], ("bs-htb-netem",), ("device-htb-netem",)),
        ({"shaping": "pacing"}, ["bs"], ("socket-pacing",), ("socket-pacing",)),
        ({"shaping": "none"}, [], (), ()),
    ],
)
def test_the_inventory_says_who_shapes_and_by_what(network, hosts, at_bs, at_device) -> None:
    inventory = lab(**network)
    assert [host.name for host in shaping_hosts(inventory)] == hosts
    assert choices(inventory.host("bs"), inventory.network) == at_bs
    assert choices(inventory.host("orin"), inventory.network) == at_device


def test_one_backend_that_works_is_enough() -> None:
    inventory = lab()
    able = {"backends": dict.fromkeys(BACKENDS, "not in this kernel") | {"bs-line": None}}
    bs, orin = inventory.host("bs"), inventory.host("orin")
    assert list(troubles(bs, inventory.network, able)) == []
    assert list(troubles(orin, inventory.network, able)) == []
    (trouble,) = troubles(bs, lab(leaf="netem").network, able)
    assert trouble.host == "bs"
    assert "bs-htb-netem: not in this kernel" in trouble.text


SET = Command("bs", "python -m payloads.linkd set --links []")


@pytest.mark.parametrize(
    ("network", "host", "status", "said", "hint"),
    [
        (
            {},
            "bs",
            3,
            "refused: delay needs sch_netem, or /dev/net/tun, and bs has neither",
            "modprobe sch_netem",
        ),
        ({"leaf": "netem"}, "bs", 3, "refused: the leaf netem needs what bs does not have", "leaf: auto"),
        ({"leaf": "tbf"}, "bs", 1, "the kernel did not add a htb: (is the kernel module there?)", "pacing"),
        (
            {},
            "bs",
            3,
            "refused: orin: downlink 150 Mbit/s: the user-space line keeps up with 100 Mbit/s on one link; ...",
            "lower the rates",
        ),
        ({"shaping": "device"}, "orin", 3, "refused: htb: not in this kernel", "shaping: bs"),
        (
            {},
            "bs",
            3,
            "refused: eth0 has a mq as its root, which could not be put back exactly",
            "tc qdisc show",
        ),
    ],
)
def test_a_refusal_says_what_to_do_instead(network, host, status, said, hint) -> None:
    step = Command(host, SET.shell)
    error = explained(CommandError(host, step.shell, status, f"linkd: {said}\n"), step, lab(**network))
    assert error is not None
    assert error.message == f"{host}: {said}"
    assert error.exit_code == 3
    assert hint in error.hint


def test_other_failures_are_left_as_they_are() -> None:
    inventory = lab()
    assert explained(CommandError("bs", SET.shell, 1, "linkd does not run"), SET, inventory) is None
    other = Command("bs", "python -m payloads.linkd probe")
    assert explained(CommandError("bs", other.shell, 3, "refused"), other, inventory) is None
    assert explained(KeyboardInterrupt(), SET, inventory) is None
