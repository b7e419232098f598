"""What an estimated gain says of the gain."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.semcast.belief import link_of

gains = st.complex_numbers(min_magnitude=0.01, max_magnitude=5)


@given(gain=gains, fading=st.booleans(), outage=st.floats(0, 0.9))
def test_a_known_gain_is_relied_on_as_it_is(gain: complex, fading: bool, outage: float) -> None:
    link = link_of(7, gain, gain, 0, fading=fading)
    assert link.reliable_snr_db(outage) == pytest.approx(link.true_snr_db)
    assert link.reliable_equalised_snr_db(outage) == pytest.approx(link.true_snr_db)
    assert link.true_snr_db == pytest.approx(7 + 20 * np.log10(abs(gain)))


@settings(max_examples=30)
@given(gain=gains, error=st.floats(0.001, 0.3), fading=st.booleans())
def test_the_surer_one_has_to_be_the_less_one_counts_on(gain: complex, error: float, fading: bool) -> None:
    link = link_of(10, gain, gain, error, fading=fading)
    for reliable_db in (link.reliable_snr_db, link.reliable_equalised_snr_db):
        counted = [reliable_db(outage) for outage in (0.01, 0.05, 0.5, 0.9)]
        assert counted == sorted(counted)


@pytest.mark.parametrize("outage", [0.05, 0.2])
def test_the_gain_is_worse_as_often_as_asked(outage: float) -> None:
    rng = np.random.default_rng(5)
    count, error = 2000, 0.1
    true, off = ((rng.standard_normal((2, count, 2)) / 2**0.5) @ [1, 1j]).tolist()
    links = [link_of(10, h, h + error**0.5 * e, error, fading=True) for h, e in zip(true, off, strict=True)]
    worse = np.mean([link.true_snr_db < link.reliable_snr_db(outage) for link in links])
    # Four standard deviations of such a count.
    within = 4 * (outage * (1 - outage) / count) ** 0.5
    assert worse == pytest.approx(outage, abs=within)
    # What is left where the expected gain has been divided by: the noise, and what the gain is off by.
    disturbed = [abs(link.true - link.expected) ** 2 + 10**-1.0 for link in links]
    worse = np.mean(
        [
            10 * np.log10(abs(link.expected) ** 2 / power) < link.reliable_equalised_snr_db(outage)
            for link, power in zip(links, disturbed, strict=True)
        ]
    )
    assert worse == pytest.approx(outage, abs=within)


def test_what_fading_makes_likely_pulls_the_estimate_down() -> None:
    faded = link_of(10, 1, 1.5, 0.5, fading=True)
    assert faded.expected == pytest.approx(1)
    assert faded.variance == pytest.approx(1 / 3)
    steady = link_of(10, 1, 1.5, 0.5, fading=False)
    assert (steady.expected, steady.variance) == (1.5, 0.5)


def test_a_gain_of_nothing_is_no_error() -> None:
    assert link_of(10, 0, 0, 0, fading=True).true_snr_db < -200
    assert link_of(10, 0, 0, 0.05, fading=True).reliable_snr_db(0) < -200
    assert link_of(10, 0, 0, 0, fading=True).reliable_equalised_snr_db(0) < -200
    assert link_of(10, 1, 1, 0.05, fading=True).reliable_equalised_snr_db(0) < -200


@pytest.mark.parametrize("outage", [-0.1, 1, float("nan")])
def test_an_outage_that_is_none_is_refused(outage: float) -> None:
    link = link_of(10, 1, 1, 0.1, fading=True)
    for reliable_db in (link.reliable_snr_db, link.reliable_equalised_snr_db):
        with pytest.raises(ValueError, match="at least 0 and below 1"):
            reliable_db(outage)


def test_a_negative_variance_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        link_of(10, 1, 1, -0.1, fading=True)
