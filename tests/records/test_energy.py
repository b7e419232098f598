from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.records import RecordWriter, load_run, write_manifest
from testbed.records.energy import idle_power_mw, total_power
from testbed.records.run import Run

IDLE_MW, LOAD_MW = 4000.0, 9000.0


def make(
    folder: Path, *, rule: str = "A+B", drop: Any = None, rails: tuple[str, ...] = ("A", "B", "C")
) -> Run:
    """A trial from 10 to 22 s whose measured requests run from 12 to 20 s at LOAD_MW; IDLE_MW else."""
    hosts = {"nano": {"role": "device"}}
    write_manifest(
        folder,
        {
            "run": "r",
            "started_unix": 0.0,
            "state": "completed",
            "inventory": {"hosts": hosts},
            "power_total": {"nano": rule} if rule else {},
        },
    )
    writer = RecordWriter(folder)
    requests = [
        {"request": "warm", "warmup": True, "t_start_s": 10.0, "e2el_ms": 2000.0},
        {"request": "p1", "warmup": False, "t_start_s": 12.0, "e2el_ms": 3000.0},
        {"request": "p2", "warmup": False, "t_start_s": 15.0, "e2el_ms": 5000.0},
    ]
    common = {"trial": "t001", "prompt_tokens": 5, "output_tokens": 10, "ttft_ms": 100.0}
    trial = {"trial": "t001", "order": 0, "policy": "top-2", "scenario": "even", "repeat": 0}
    writer.write_trial(
        trial | {"state": "completed", "t_start_s": 10.0, "t_end_s": 22.0},
        {"requests": [common | request for request in requests]},
    )
    power = []
    for t_s in np.arange(0, 30, 0.05):
        if drop is not None and drop(t_s):
            continue
        total = LOAD_MW if 10 <= t_s <= 22 else IDLE_MW
        power += [{"t_s": t_s, "device": "nano", "rail": rail, "mw": total / 2} for rail in rails]
    writer.write("power", "nano", power)
    return load_run(folder)


def test_energy_is_that_of_the_measured_requests_by_the_rule_of_the_total(tmp_path: Path) -> None:
    (row,) = make(tmp_path).energy().to_dict("records")
    assert (row["t_start_s"], row["t_end_s"], row["output_tokens"]) == (12.0, 20.0, 20)
    assert row["joules"] == pytest.approx(LOAD_MW / 1000 * 8)
    assert row["joules_per_token"] == pytest.approx(LOAD_MW / 1000 * 8 / 20)
    assert row["idle_joules"] == pytest.approx(IDLE_MW / 1000 * 8)
    assert row["coverage"] == pytest.approx(1.0)
    assert row["error"] is None or np.isnan(row["error"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rails": ()}, "no power was recorded"),
        ({"rails": ("A",)}, "no power was recorded of the rail B"),
        ({"rule": ""}, "no rule says"),
        ({"drop": lambda t_s: 13 < t_s < 19}, "of the window"),
        ({"drop": lambda t_s: 5 < t_s < 25}, "no power was recorded"),
    ],
)
def test_missing_power_is_an_error_and_no_number(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    (row,) = make(tmp_path, **options).energy().to_dict("records")
    assert message in row["error"]
    assert row["coverage"] < 0.95
    assert np.isnan(row["joules"])
    assert np.isnan(row["joules_per_token"])


def test_idle_power_is_unknown_where_the_board_was_never_left_alone(tmp_path: Path) -> None:
    run = make(tmp_path, drop=lambda t_s: not 9.5 < t_s < 22.5)
    power = total_power(run, "nano")
    assert power.error is None
    assert np.isnan(idle_power_mw(run, power))


@pytest.mark.parametrize(
    ("change", "idle_mw"),
    [
        ({"cause": "block", "asked_mbit": 5.0}, LOAD_MW),  # within a trial, whose time is no idle time anyway
        ({"cause": "set", "asked_mbit": 5.0}, IDLE_MW),
        ({"asked_mbit": 5.0}, IDLE_MW),  # as runs of the first schema have it
        ({"asked_mbit": 5.0, "message_bytes": 4096}, IDLE_MW),
    ],
)
def test_setting_and_probing_links_is_no_idling(
    tmp_path: Path, change: dict[str, Any], idle_mw: float
) -> None:
    make(tmp_path)
    # Twice as long as what is left: a board that works harder near these moments.
    moments = [2.0, 4.0, 6.0, 8.0]
    rows = [{"t_s": t_s, "device": "nano", "direction": "downlink", **change} for t_s in moments]
    writer = RecordWriter(tmp_path)
    writer.write("links", "t001", rows)
    power = [
        {"t_s": t_s, "device": "nano", "rail": rail, "mw": (LOAD_MW if 1.1 < t_s < 8.9 else IDLE_MW) / 2}
        for t_s in np.arange(0, 25.5, 0.05)
        for rail in ("A", "B")
    ]
    writer.write("power", "nano", power)
    run = load_run(tmp_path)
    assert idle_power_mw(run, total_power(run, "nano")) == idle_mw


def test_a_run_without_trials_has_an_energy_table_with_its_columns(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"run": "r", "started_unix": 0.0, "state": "failed"})
    energy = load_run(tmp_path).energy()
    assert energy.empty
    assert {"trial", "device", "joules", "coverage", "error", "joules_per_token"} <= set(energy.columns)
