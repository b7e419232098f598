from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.telemetry.clocks import DeviceClock
from testbed.telemetry.logs import board_rows, power_rows

STARTED = 1_795_000_000.0


@given(
    st.floats(0, 1e6),
    st.floats(-1e-4, 1e-4),
    st.lists(st.floats(0, 3600), min_size=2, max_size=20, unique=True).map(sorted),
    st.floats(0, 1),
)
def test_a_drifting_clock_is_followed(booted_ago_s, drift, estimated_at, share):
    # The device counts from its boot, with a crystal that is wrong by a constant share.
    def device_s(t_s):
        return (np.asarray(t_s) + booted_ago_s) * (1 + drift)

    times = np.array(estimated_at)
    clock = DeviceClock.from_estimates(times, STARTED + times - device_s(times), STARTED, "nx")
    t_s = times[0] + share * (times[-1] - times[0])
    # Unix seconds in a double have steps of a quarter of a microsecond.
    assert clock.run_seconds(np.array([round(float(device_s(t_s)) * 1e9)]))[0] == pytest.approx(t_s, abs=2e-6)


def test_the_offset_is_constant_outside_of_the_estimates():
    clock = DeviceClock.from_estimates([10.0, 20.0], [STARTED - 90.0, STARTED - 90.001], STARTED, "nx")
    assert clock.run_seconds([95_000_000_000, 120_000_000_000]) == pytest.approx([5.0, 29.999], abs=1e-6)


def test_the_order_of_estimates_does_not_matter():
    one = DeviceClock.from_estimates([10.0, 20.0], [STARTED - 90.0, STARTED - 90.1], STARTED, "nx")
    two = DeviceClock.from_estimates([20.0, 10.0], [STARTED - 90.1, STARTED - 90.0], STARTED, "nx")
    stamps = np.array([105_000_000_000])
    assert one.run_seconds(stamps) == two.run_seconds(stamps)


def test_a_boot_in_between_is_followed_where_both_boots_were_compared():
    times = [10.0, 20.0, 110.0, 120.0]
    offsets = np.array([-990.0, -990.0, 95.0, 95.0]) + STARTED
    clock = DeviceClock.from_estimates(times, offsets, STARTED, "nx")
    stamps = np.array([1005, 1010, 20, 25]) * 10**9
    assert clock.run_seconds(stamps) == pytest.approx([15.0, 20.0, 115.0, 120.0], abs=1e-6)
    once = DeviceClock.from_estimates(times[:2], offsets[:2], STARTED, "nx")
    with pytest.raises(InputError, match="starts anew 1 times in its records and 0 times"):
        once.run_seconds(stamps)


def test_estimates_that_lie_closer_together_than_their_errors_are_no_boot():
    offsets = np.array([-90.0, -89.995, -90.0]) + STARTED
    clock = DeviceClock.from_estimates([10.0, 10.002, 20.0], offsets, STARTED, "nx")
    assert clock.run_seconds([105_000_000_000]) == pytest.approx([15.0], abs=5e-3)


def test_a_clock_that_was_never_compared_is_an_error():
    with pytest.raises(InputError, match="nx: its clock was never compared"):
        DeviceClock.from_estimates([], [], STARTED, "nx")


OFFSETS = pd.DataFrame({"t_s": [1.0], "device": ["nx"], "offset_s": [STARTED - 100.0], "rtt_ms": [0.2]})


def test_a_power_log_becomes_rows(tmp_path):
    log = tmp_path / "power.csv"
    log.write_text(
        "mono_ns,rail,mw\n101000000000,VDD_IN,5005.000\n101000000000,VDD_SOC,1000.500\n101050000000,VDD_"
    )
    rows = power_rows(log, "nx", OFFSETS, STARTED)
    assert list(rows.columns) == ["t_s", "device", "rail", "mw"]
    assert rows["t_s"].tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert rows["t_s"].nunique() == 1  # the rails of one sample can be added up
    assert rows["rail"].tolist() == ["VDD_IN", "VDD_SOC"]
    assert rows["mw"].tolist() == [5005.0, 1000.5]


def test_a_jtop_log_becomes_rows(tmp_path):
    log = tmp_path / "jtop.csv"
    log.write_text("mono_ns,key,value\n103000000000,temp_cpu_c,41.5\n")
    (row,) = board_rows(log, "nx", OFFSETS, STARTED).to_dict("records")
    assert row == {"t_s": pytest.approx(3.0, abs=1e-6), "device": "nx", "key": "temp_cpu_c", "value": 41.5}


@pytest.mark.parametrize("text", ["", "mono_ns,rail,mw\n", "mono_n"])
def test_a_log_that_had_no_time_to_begin_has_no_rows(tmp_path, text):
    log = tmp_path / "power.csv"
    log.write_text(text)
    assert power_rows(log, "nx", OFFSETS, STARTED).empty


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,c\n1,2,3\n", "power.csv:1: expected the header mono_ns,rail,mw"),
        ("mono_ns,rail,mw\n1,A,x\n", "a line does not fit the header"),
        ("mono_ns,rail,mw\n1,A,5\n2,B,\n", "power.csv:3: expected 3 values"),
        ("mono_ns,rail,mw\n1,A,5,6\n", "power.csv"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, text, words):
    log = tmp_path / "power.csv"
    log.write_text(text)
    with pytest.raises(InputError, match=words):
        power_rows(log, "nx", OFFSETS, STARTED)


def test_no_log_is_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        power_rows(tmp_path / "none.csv", "nx", OFFSETS, STARTED)
