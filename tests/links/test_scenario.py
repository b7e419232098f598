from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from payloads.linkd.plan import parse_links
from testbed.config.campaign import Scenario, Verify
from testbed.config.inventory import Inventory
from testbed.errors import InputError, TestbedError
from testbed.links.commands import clear_command, probe_command, set_command
from testbed.links.scenario import links_argument, links_rows, probe_rows, shaping_plan
from testbed.records.schema import TABLES

TRIAL = SimpleNamespace(name="t003", scenario="weak")
ROW = {
    "device": "nano", "direction": "uplink", "asked_mbit": 2.0, "message_bytes": 4096, "n": 5,
    "expected_ms": 11.1, "measured_ms": 11.0, "p95_ms": 11.4, "ratio": 0.99, "ok": True, "rtt_ms": 0.2,
    "backend": "bs-htb-tbf",
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


def test_rows_have_the_columns_of_the_table(weak, inventory) -> None:
    plan = shaping_plan(weak, inventory)
    answer = {"backend": "bs-htb-tbf", "links": json.loads(links_argument(plan))}
    rows = links_rows(answer, t_s=3.5, trial=TRIAL)
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
