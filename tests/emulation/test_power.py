"""The power model: exact between ticks, whatever the ticks are."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.emulation.power import (
    Backlog,
    LoadStep,
    RailPower,
    area,
    energy_mj,
    parse_script,
    relax,
    run_script,
    steps_between,
)

loads = st.floats(0, 1)
seconds = st.floats(0.001, 10)
scripts = st.lists(st.builds(LoadStep, seconds, loads), min_size=1, max_size=6)


def test_power_goes_from_idle_to_full_with_the_time_constant():
    rail = RailPower(idle_mw=4000, active_mw=9000)
    assert rail.at(relax(0, 1, 0, 0.3)) == 4000
    assert rail.at(relax(0, 1, 0.3, 0.3)) == pytest.approx(4000 + 9000 * (1 - 1 / math.e))
    assert rail.at(relax(0, 1, 100, 0.3)) == pytest.approx(13000)


@given(loads, loads, seconds, st.floats(0, 1), st.floats(0.05, 2))
def test_two_ticks_are_as_good_as_one(level, load, duration, part, tau_s):
    middle = relax(level, load, duration * part, tau_s)
    assert relax(middle, load, duration * (1 - part), tau_s) == pytest.approx(
        relax(level, load, duration, tau_s)
    )
    split = area(level, load, duration * part, tau_s) + area(middle, load, duration * (1 - part), tau_s)
    assert split == pytest.approx(area(level, load, duration, tau_s), abs=1e-9)


@given(scripts, loads)
def test_the_closed_form_is_what_fine_steps_add_up_to(script, level):
    rail, tau_s = RailPower(4000, 9000), 0.25
    total, step_s, now = 0.0, 0.002, level
    for step in script:
        count = max(1, round(step.seconds / step_s))
        for _ in range(count):
            after = relax(now, step.load, step.seconds / count, tau_s)
            total += (rail.at(now) + rail.at(after)) / 2 * step.seconds / count
            now = after
    assert energy_mj(rail, script, level=level, tau_s=tau_s) == pytest.approx(total, rel=1e-4)


@given(scripts, st.lists(st.floats(0, 70), max_size=8))
def test_a_script_cut_into_ticks_is_the_whole_script(script, cuts):
    end_s = sum(step.seconds for step in script)
    times = sorted({0.0, end_s, *(cut for cut in cuts if cut < end_s)})
    pieces = [piece for a, b in pairwise(times) for piece in steps_between(script, a, b)]
    level, total = run_script(0.3, script, 0.25)
    assert run_script(0.3, pieces, 0.25) == (pytest.approx(level, abs=1e-6), pytest.approx(total, abs=1e-6))


@given(st.lists(st.tuples(st.integers(0, 40_000_000), st.integers(1_000_000, 40_000_000)), min_size=1))
def test_no_busy_time_is_lost_or_invented(ticks):
    backlog = Backlog()
    assert backlog.load(0, 1) == 0
    counter, given_ns = 0, 0.0
    for added, elapsed in ticks:
        counter += added
        load = backlog.load(counter, elapsed)
        assert 0 <= load <= 1
        given_ns += load * elapsed
    # An idle second lets what is carried catch up.
    given_ns += backlog.load(counter, 1_000_000_000) * 1_000_000_000
    assert given_ns <= counter + 1
    if sum(added for added, _ in ticks) - given_ns > 1:
        assert given_ns >= 1_000_000_000


def test_a_new_worker_starts_from_its_own_zero():
    backlog = Backlog()
    backlog.load(5_000_000_000, 20_000_000)
    assert backlog.load(5_010_000_000, 20_000_000) == 0.5
    assert backlog.load(10_000_000, 20_000_000) == 0.5
    assert backlog.load(None, 20_000_000) == 0
    assert backlog.load(10_000_000, 20_000_000) == 0


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([], "list of"),
        ({}, "list of"),
        ([[1]], "step 1"),
        ([[1, 0.5], [0, 0.5]], "step 2"),
        ([[1, 1.5]], "step 1"),
        ([[True, 0.5]], "step 1"),
        ([["1", 0.5]], "step 1"),
        ([[math.inf, 0.5]], "step 1"),
    ],
)
def test_a_wrong_script_is_named(data, expected):
    with pytest.raises(ValueError, match=expected):
        parse_script(data)
