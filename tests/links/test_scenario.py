from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from payloads.linkd.plan import parse_links
from testbed.config.campaign import Scenario, Verify
from testbed.config.inventory import Inventory
from testbed.errors import InputError, TestbedError
from testbed.links.backends import planned_backends
from testbed.links.commands import clear_command, probe_command, set_command
from testbed.links.estimate import probe_row_count, probe_seconds
from testbed.links.scenario import links_argument, links_rows, merged_counters, probe_rows, shaping_plan
from testbed.records.schema import TABLES

WAYS = ("downlink", "uplink")
TRIAL = SimpleNamespace(name="t003", scenario="weak")
ROW = {
    "device": "nano", "direction": "uplink", "asked_mbit": 2.0, "message_bytes": 4096, "n": 5,
    "expected_ms": 11.1, "measured_ms": 11.0, "p95_ms": 11.4, "ratio": 0.99, "ok": True, "rtt_ms": 0.2,
    "backend": "bs-htb-tbf", "state": "idle", "delay_ms": 0.0,
}  # fmt: skip


@pytest.fixture
def inventory() -> Inventory:
    return Inventory.model_validate(
        {
            "lab": "lab",
            "network": {"data_port": 7170},
            "hosts": {
                "bs": {"role": "base_station", "address": "10.0.0.1"},
                "orin": {"role": "device", "address": "10.0.0.2"},
                "nano": {"role": "device", "address": "10.0.0.3"},
            },
        }
    )


@pytest.fixture
def weak() -> Scenario:
    even = {"downlink_mbit": 20.0, "uplink_mbit": 20.0}
    return Scenario.model_validate(
        {"name": "weak", "links": {"default": even, "nano": {"downlink_mbit": 4.0, "uplink_mbit": 2.0}}}
    )


def test_a_scenario_becomes_links_that_the_daemon_takes(weak, inventory) -> None:
    plan = shaping_plan(weak, inventory)
    links = parse_links(json.loads(links_argument(plan)))
    assert [(k.device, k.address, k.port, k.probe_port, k.downlink_mbit, k.uplink_mbit) for k in links] == [
        ("orin", "10.0.0.2", 7170, 7071, 20, 20),
        ("nano", "10.0.0.3", 7170, 7071, 4, 2),
    ]


def test_a_scenario_that_cannot_be_shaped_is_wrong_input(weak, inventory) -> None:
    slow = Scenario.model_validate(
        {"name": "slow", "links": {"default": {"downlink_mbit": 0.001, "uplink_mbit": 1.0}}}
    )
    with pytest.raises(InputError, match=r"0\.001"):
        shaping_plan(slow, inventory)
    partial = Scenario.model_validate({"name": "partial", "links": {"nano": weak.links["nano"]}})
    with pytest.raises(InputError, match="orin"):
        shaping_plan(partial, inventory)


def answer_of(plan, backend="bs-htb-tbf"):
    """What the daemon answers when a plan is set."""
    backends = {"backends": {"downlink": backend, "uplink": backend}}
    return {"backend": backend, "links": [{**asdict(link), **backends} for link in plan.links]}


def test_rows_have_the_columns_of_the_table(weak, inventory) -> None:
    plan = shaping_plan(weak, inventory)
    rows = links_rows(answer_of(plan), t_s=3.5, trial=TRIAL)
    assert [(r["device"], r["direction"], r["asked_mbit"]) for r in rows] == [
        ("orin", "downlink", 20), ("orin", "uplink", 20), ("nano", "downlink", 4), ("nano", "uplink", 2),
    ]  # fmt: skip
    rows += probe_rows(json.dumps(ROW) + "\n", t_s=4.5, trial=TRIAL)
    columns = {column.name: column for column in TABLES["links"].columns}
    for row in rows:
        assert set(row) <= set(columns)
        assert {name for name, column in columns.items() if not column.nullable} <= set(row)
    assert rows[-1]["t_s"] == 4.5
    assert rows[-1]["ok"] is True


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "3",
        json.dumps({**ROW, "ok": "yes"}),
        json.dumps({k: ROW[k] for k in ROW if k != "ratio"}),
    ],
)
def test_an_answer_that_is_no_probe_is_told(text: str) -> None:
    with pytest.raises(TestbedError, match="probe"):
        probe_rows(text, t_s=0.0, trial=TRIAL)


@pytest.fixture
def device_lab(inventory) -> Inventory:
    network = inventory.network.model_copy(update={"shaping": "device"})
    return inventory.model_copy(update={"network": network})


def test_where_devices_shape_each_host_gets_its_own_direction(weak, device_lab) -> None:
    plan = shaping_plan(weak, device_lab)
    at_bs = plan.at(device_lab.base_station, device_lab).links
    assert [(link.device, link.downlink_mbit, link.uplink_mbit) for link in at_bs] == [
        ("orin", 20, None), ("nano", 4, None),
    ]  # fmt: skip
    (own,) = plan.at(device_lab.host("nano"), device_lab).links
    assert (own.device, own.address, own.downlink_mbit, own.uplink_mbit) == ("nano", "10.0.0.1", None, 2)
    parse_links(json.loads(links_argument(plan.at(device_lab.host("nano"), device_lab))))


def test_the_probe_takes_links_of_several_shapers(weak, device_lab, tmp_path, capsys) -> None:
    from payloads.linkd.__main__ import main

    links = links_argument(shaping_plan(weak, device_lab), planned_backends(device_lab.network))
    no_key = tmp_path / "no-key"
    assert main(["probe", "--links", links, "--key-file", str(no_key)]) == 1
    assert str(no_key) in capsys.readouterr().err  # it went through the links, and asked for the key next


def test_counters_come_from_who_shapes_the_direction(weak, device_lab) -> None:
    def shown(host, count):
        links = []
        for link in shaping_plan(weak, device_lab).at(host, device_lab).links:
            ways = {way: None if getattr(link, f"{way}_mbit") is None else {"bytes": count} for way in WAYS}
            links.append({**asdict(link), **ways})
        return {"links": links}

    hosts = enumerate([device_lab.base_station, *device_lab.devices])
    merged = merged_counters([shown(host, number) for number, host in hosts])
    assert [(link["device"], link["downlink"], link["uplink"]) for link in merged["links"]] == [
        ("orin", {"bytes": 0}, {"bytes": 1}), ("nano", {"bytes": 0}, {"bytes": 2}),
    ]  # fmt: skip


def test_a_direction_that_is_left_alone_has_no_row(weak, device_lab) -> None:
    plan = shaping_plan(weak, device_lab).at(device_lab.base_station, device_lab)
    rows = links_rows(answer_of(plan), t_s=0.0, trial=TRIAL)
    assert [row["direction"] for row in rows] == ["downlink", "downlink"]


def test_delays_go_to_the_daemon_and_into_the_records(inventory) -> None:
    link = {"downlink_mbit": 8.0, "uplink_mbit": 8.0, "delay_ms": 5.0, "loss_percent": 1.0}
    far = Scenario.model_validate({"name": "far", "links": {"default": link, "nano": {"delay_ms": 20.0}}})
    plan = shaping_plan(far, inventory)
    links = parse_links(json.loads(links_argument(plan)))
    assert [(k.delay_ms, k.jitter_ms, k.loss_percent) for k in links] == [(5, 0, 1), (20, 0, 1)]
    rows = links_rows(answer_of(plan), t_s=0.0, trial=TRIAL)
    assert [row["delay_ms"] for row in rows] == [5, 5, 20, 20]


@pytest.mark.parametrize("repeats", [1, 7])
def test_busy_verification_takes_longer_and_longer_with_more_messages(weak, inventory, repeats) -> None:
    plan = shaping_plan(weak, inventory)
    verify = Verify(message_bytes=(1024, 65536), repeats=repeats)
    idle, busy = (probe_seconds(plan, verify, busy=state) for state in (False, True))
    assert busy > 2 * idle
    # The messages alone take this long at these rates.
    bits = 8 * (1024 + 65536) * repeats
    assert idle > sum(bits / rate / 1e6 for rate in (20, 20, 4, 2))
    assert probe_row_count(plan, verify, busy=True) == 2 * probe_row_count(plan, verify, busy=False) == 16


def test_commands_run_at_the_base_station(weak, inventory) -> None:
    bs = inventory.base_station
    step = set_command(bs, shaping_plan(weak, inventory))
    assert step.host == "bs"
    assert " -m payloads.linkd set --links " in step.shell
    assert (
        "--sizes 1024,65536 --repeats 3 "
        in probe_command(bs, Verify(message_bytes=(1024, 65536), repeats=3)).shell
    )
    assert clear_command(bs).shell.endswith("payloads.linkd clear")
