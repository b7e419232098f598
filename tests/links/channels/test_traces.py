"""Traces: what they say, what is wrong with them, and that they come back from their files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.links.channels.traces import (
    Trace,
    block_means,
    mahimahi_times,
    read_trace,
    write_csv,
    write_mahimahi,
)

rates_lists = st.lists(st.floats(0, 200), min_size=1, max_size=30)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_csv_s_rates_hold_until_the_next_row(tmp_path: Path) -> None:
    text = "# recorded in the yard\ntime_s, downlink_mbit, uplink_mbit\n100,8,2\n\n100.5,4,1\n102.5,6,3\n"
    trace = read_trace(write(tmp_path, "a.csv", text))
    assert trace.t_s.tolist() == [0, 0.5, 2.5]
    assert trace.duration_s == 4.5  # the last one holds as long as the one before it
    assert trace.downlink_mbit.tolist() == [8, 4, 6]
    assert trace.uplink_mbit.tolist() == [2, 1, 3]


def test_a_csv_of_one_rate_is_for_both_directions_and_may_say_its_end(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, "a.csv", "time_s,rate_mbit\n0,8\n1,4\n5,\n"))
    assert trace.duration_s == 5
    assert trace.downlink_mbit.tolist() == trace.uplink_mbit.tolist() == [8, 4]


def test_a_mahimahi_trace_counts_1504_bytes_a_line(tmp_path: Path) -> None:
    """Two packets in the first half of 100 ms, one in the second."""
    path = write(tmp_path, "a.down", "10\n10\n100\n")
    trace = read_trace(path, bin_ms=50)
    assert trace.duration_s == pytest.approx(0.1)
    assert trace.downlink_mbit == pytest.approx([2 * 1504 * 8 / 50e3, 1504 * 8 / 50e3])
    assert read_trace(path, bin_ms=50, opportunity_bytes=1500).uplink_mbit[1] == pytest.approx(0.24)


def test_a_packet_a_millisecond_is_the_same_rate_in_every_bin(tmp_path: Path) -> None:
    path = write(tmp_path, "one", "".join(f"{t}\n" for t in range(1, 251)))
    for bin_ms in (1, 7, 100, 250, 1000):
        assert read_trace(path, bin_ms=bin_ms).downlink_mbit == pytest.approx(12.032)
    assert read_trace(write(tmp_path, "short", "1\n")).downlink_mbit == pytest.approx([12.032])


BROKEN = {
    "no header": ("a.csv", "0,8\n", "a.csv:1: the header `time_s,rate_mbit` or `time_s,downlink_mbit"),
    "empty csv": ("a.csv", "", "a.csv:1: the header"),
    "header only": ("a.csv", "time_s,rate_mbit\n", "a.csv:1: no rates stand below the header"),
    "no number": (
        "a.csv",
        "time_s,rate_mbit\n0,8\n1,fast\n",
        "a.csv:3: rate_mbit: a rate from 0 to 1e+06 Mbit/s was expected, not 'fast'",
    ),
    "negative": ("a.csv", "time_s,rate_mbit\n0,-8\n", "a.csv:2: rate_mbit: a rate from 0"),
    "not finite": ("a.csv", "time_s,rate_mbit\n0,nan\n", "a.csv:2: rate_mbit: a rate from 0"),
    "no time": ("a.csv", "time_s,rate_mbit\nnoon,8\n", "a.csv:2: time_s: a time in seconds was expected"),
    "too few cells": (
        "a.csv",
        "time_s,rate_mbit\n0\n",
        "a.csv:2: 2 numbers were expected, not 1",
    ),
    "time that stands": (
        "a.csv",
        "time_s,rate_mbit\n\n3,8\n3,8\n",
        "a.csv:4: time_s: a time after 3 was expected, not 3",
    ),
    "more after the end": (
        "a.csv",
        "time_s,rate_mbit\n0,8\n1,\n2,8\n",
        "a.csv:4: nothing was expected below",
    ),
    "no milliseconds": (
        "a.up",
        "1\n2.5\n",
        "a.up:2: a time in whole milliseconds was expected, not '2.5'",
    ),
    "back in time": ("a.up", "1\n5\n\n4\n", "a.up:4: a time of at least 5 was expected, not 4"),
    "no length": ("a.up", "0\n0\n", "a.up:2: a delivery after 0 ms was expected"),
    "empty": ("a.up", "", "a.up: a delivery after 0 ms was expected"),
}


@pytest.mark.parametrize(("name", "text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_mistake_is_named_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, name, text)
    with pytest.raises(InputError) as caught:
        read_trace(Path(name))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_trace(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="text in UTF-8 was expected"):
        read_trace(tmp_path / "binary")


@given(rates_lists, st.data())
def test_a_csv_comes_back_exactly(rates: list[float], data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.floats(0.001, 100), min_size=len(rates), max_size=len(rates)))
    up = data.draw(st.lists(st.floats(0, 200), min_size=len(rates), max_size=len(rates)))
    bounds = np.concatenate([[0.0], np.cumsum(steps)])
    trace = Trace(bounds[:-1], float(bounds[-1]), np.array(rates), np.array(up))
    with tempfile.TemporaryDirectory() as folder:
        write_csv(Path(folder) / "t.csv", trace)
        back = read_trace(Path(folder) / "t.csv")
    assert back.t_s.tolist() == trace.t_s.tolist()
    assert back.duration_s == trace.duration_s
    assert back.downlink_mbit.tolist() == rates
    assert back.uplink_mbit.tolist() == up


@given(rates_lists, st.integers(5, 200))
def test_a_mahimahi_trace_comes_back_within_two_packets_at_any_time(rates: list[float], bin_ms: int) -> None:
    """One packet is waiting to be earned, and one may mark the end."""
    edges = np.arange(len(rates) + 1) * bin_ms / 1e3
    trace = Trace(edges[:-1], float(edges[-1]), np.array(rates), np.array(rates))
    with tempfile.TemporaryDirectory() as folder:
        write_mahimahi(Path(folder) / "t", trace, "downlink")
        back = read_trace(Path(folder) / "t", bin_ms=bin_ms)
    assert back.duration_s == pytest.approx(trace.duration_s)
    carried = np.cumsum((back.downlink_mbit - rates) * bin_ms / 1e3)
    assert np.abs(carried).max() <= 2 * 1504 * 8 / 1e6


def test_a_packet_waits_until_it_is_earned() -> None:
    """Nothing for a second, then 1504 bytes in every 10 ms, and nothing again."""
    rate = 1504 * 8 / 1e6 / 0.010
    times = mahimahi_times(np.array([0, 1.0, 1.05]), 2.0, np.array([0, rate, 0]))
    assert times == [1010, 1020, 1030, 1040, 1050, 2000]
    with pytest.raises(ValueError, match="at least a millisecond"):
        mahimahi_times(np.array([0.0]), 1e-4, np.array([1.0]))


@given(rates_lists, st.floats(0.01, 3), st.floats(0, 50), st.integers(1, 40))
def test_blocks_carry_what_the_trace_carries(
    rates: list[float], step_s: float, offset_s: float, blocks: int
) -> None:
    """Whatever the blocks' length and the start, over whole rounds the mean is the trace's."""
    t_s = np.arange(len(rates)) * step_s
    duration_s = len(rates) * step_s
    edges = offset_s + np.linspace(0, 2 * duration_s, blocks + 1)
    means = block_means(t_s, duration_s, np.array(rates), edges)
    assert means.mean() == pytest.approx(np.mean(rates), abs=1e-6)
    assert means.min() >= min(rates) - 1e-6
    assert means.max() <= max(rates) + 1e-6


@given(rates_lists, st.integers(0, 100))
def test_blocks_that_lie_on_the_steps_have_their_rates(rates: list[float], start: int) -> None:
    count = len(rates)
    edges = (np.arange(count + 1) + start) * 0.1
    means = block_means(np.arange(count) * 0.1, count * 0.1, np.array(rates), edges)
    assert means == pytest.approx(np.roll(rates, -(start % count)), abs=1e-6)
