from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import TestbedError
from testbed.links.history import history_problems, history_tables
from testbed.records.schema import TABLES, arrow_schema
from testbed.records.writer import arrow_table

TRIAL = SimpleNamespace(name="t001", scenario="fading")
DEVICES = ("left", "right")
BACKENDS = {name: {"downlink": "bs-line", "uplink": "bs-htb-tbf"} for name in DEVICES}
STARTED = 1000.0
ALWAYS = (0.0, 1e6)


def tables(changes=(), samples=(), window_s=ALWAYS, devices=DEVICES):
    answer = {"devices": list(devices), "changes": list(changes), "samples": list(samples)}
    return history_tables(answer, trial=TRIAL, backends=BACKENDS, started_unix=STARTED, window_s=window_s)


rate = st.one_of(st.none(), st.sampled_from([1.0, 2.5, 8.0]))
pair = st.lists(rate, min_size=2, max_size=2)


@given(
    alone=st.lists(st.booleans(), min_size=4, max_size=4),
    steps=st.lists(
        st.lists(st.sampled_from([1.0, 2.5, 8.0]), min_size=4, max_size=4), min_size=1, max_size=8
    ),
)
def test_the_rows_tell_all_rates_at_all_times_and_nothing_twice(alone, steps) -> None:
    """Who starts with what was set and takes each row in turn has the rates in force after every change."""
    states = [[None if left else one for left, one in zip(alone, step, strict=True)] for step in steps]
    changes = [
        [STARTED + number, "block" if number else "set", None, state[:2], state[2:]]
        for number, state in enumerate(states)
    ]
    rows = tables(changes)["links"].to_dict("records")
    keys = [(device, way) for way in ("downlink", "uplink") for device in DEVICES]
    known = dict(zip(keys, states[0], strict=True))
    for number, state in enumerate(states):
        for row in rows:
            if row["t_s"] == number:
                assert known[row["device"], row["direction"]] != row["asked_mbit"]
                known[row["device"], row["direction"]] = row["asked_mbit"]
        assert known == dict(zip(keys, state, strict=True))


@given(st.lists(st.lists(st.integers(0, 10_000), min_size=4, max_size=4), min_size=1, max_size=10))
def test_the_samples_add_up_to_what_was_counted(grown) -> None:
    counts, samples = [0, 0, 0, 0], []
    for number, more in enumerate([[0, 0, 0, 0], *grown]):
        counts = [count + one for count, one in zip(counts, more, strict=True)]
        samples.append([STARTED + number / 5, counts[:2], counts[2:], [0, 0], [None, None]])
    frame = tables(samples=samples)["throughput"]
    sums = frame.groupby(["direction", "device"])["frame_bytes"].sum()
    assert [sums[way, device] for way in ("downlink", "uplink") for device in DEVICES] == counts
    assert frame["interval_s"].sum() == pytest.approx(4 * len(grown) / 5)


def test_frames_fit_their_tables_also_where_they_are_empty() -> None:
    change = [STARTED + 1, "allocate", "t001 layer 2", [3.0, None], [8.0, 8.0]]
    sample = [STARTED + 1, [10, None], [10, 20], [5, None], [0, 0]]
    later = [STARTED + 2, [30, None], [10, 60], [7, None], [0, None]]
    first = [STARTED, "set", None, [8.0, None], [8.0, 8.0]]
    for frames in (tables([first, change], [sample, later]), tables()):
        for name in ("links", "throughput"):
            assert arrow_table(TABLES[name], frames[name]).schema == arrow_schema(TABLES[name])
    frames = tables([first, change], [sample, later])
    (row,) = frames["links"].to_dict("records")
    assert (row["device"], row["direction"], row["backend"], row["cause"], row["why"], row["asked_mbit"]) == (
        "left", "downlink", "bs-line", "allocate", "t001 layer 2", 3.0,
    )  # fmt: skip
    assert frames["throughput"]["frame_bytes"].tolist() == [20, 0, 40]


def test_a_history_whose_beginning_was_lost_begins_with_all_rates() -> None:
    changes = [[STARTED + 5, "block", None, [1.0, 2.0], [3.0, 4.0]]]
    assert tables(changes)["links"]["asked_mbit"].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_a_counter_that_begins_anew_gives_no_interval() -> None:
    samples = [[STARTED + t, [n, n], [n, n], [0, 0], [0, 0]] for t, n in ((1, 500), (2, 100), (3, 150))]
    assert set(tables(samples=samples)["throughput"]["t_s"]) == {3.0}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"devices": ["left"], "changes": [[1.0, "set"]], "samples": []},
        {"devices": ["left"], "changes": [[1.0, "set", None, [1.0, 2.0], [1.0, 2.0]]], "samples": []},
        {"devices": ["left"], "changes": [], "samples": [[1.0, ["x"], [1], [1], [1]]]},
    ],
)
def test_an_answer_that_is_no_history_is_told(answer) -> None:
    with pytest.raises(TestbedError, match="history cannot be read"):
        history_tables(answer, trial=TRIAL, backends={}, started_unix=0.0, window_s=ALWAYS)


def test_what_went_wrong_is_in_words() -> None:
    assert history_problems({"lost": 0}, "bs") == []
    said = history_problems({"line_died_unix_s": 3.0, "failed": "no such device", "lost": 7}, "bs")
    assert [word in " ".join(said) for word in ("line died", "no such device", "7 changes")] == [True] * 3
