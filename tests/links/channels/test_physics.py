"""Path losses, tables and fading against hand-computed values and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from testbed.links.channels.draw import power_gains
from testbed.links.channels.pathloss import PathLoss, free_space_db
from testbed.links.channels.tables import (
    CQI_TABLES,
    WIFI_6,
    WIFI_6_SUBCARRIERS,
    WIFI_6_THRESHOLDS_DB,
    cqi_thresholds_db,
    wifi_6_efficiencies,
)

UMI = PathLoss("umi", 3.5)
INH = PathLoss("inh", 3.5)


def test_free_space_at_a_wavelength_over_four_pi_loses_nothing() -> None:
    wavelength = 0.299792458
    assert free_space_db(wavelength / (4 * math.pi), 1.0) == pytest.approx(0)
    assert free_space_db(1000.0, 1.0) == pytest.approx(92.45, abs=0.005)


def test_log_distance_follows_its_exponent_from_its_reference() -> None:
    model = PathLoss("log-distance", 3.5, exponent=3, reference_m=10, reference_loss_db=60)
    assert model.loss_db([10, 100, 1000], True) == pytest.approx([60, 90, 120])
    from_free_space = PathLoss("log-distance", 3.5, exponent=3, reference_m=10)
    assert from_free_space.loss_db(10, True) == pytest.approx(free_space_db(10, 3.5))


@pytest.mark.parametrize(
    ("model", "distance_m", "los", "loss_db"),
    [
        # Antennas at 10 and 1.5 m: 3-D distances of 100.3606 and 500.0722 m, a breakpoint at 210 m.
        (UMI, 100, True, 32.4 + 21 * 2.0015633 + 10.8813609),
        (UMI, 500, True, 32.4 + 40 * 2.6990327 + 10.8813609 - 9.5 * 4.6451492),
        (UMI, 100, False, 22.4 + 35.3 * 2.0015633 + 21.3 * 0.5440680),
        # At 3 and 1 m: a 3-D distance of 20.0998 m.
        (INH, 20, True, 32.4 + 17.3 * 1.3031907 + 10.8813609),
        (INH, 20, False, 17.3 + 38.3 * 1.3031907 + 24.9 * 0.5440680),
    ],
)
def test_the_formulas_of_tr_38_901_by_hand(
    model: PathLoss, distance_m: float, los: bool, loss_db: float
) -> None:
    assert model.loss_db(distance_m, los) == pytest.approx(loss_db, abs=1e-4)


def test_the_breakpoint_of_umi_is_where_its_two_lines_meet() -> None:
    assert UMI.breakpoint_m == pytest.approx(4 * 9 * 0.5 * 3.5e9 / 3e8)
    around = UMI.loss_db([209.999, 210.001], True)
    assert around[1] - around[0] == pytest.approx(0, abs=1e-3)


@given(st.sampled_from((UMI, INH)), st.floats(10, 149), st.floats(10, 149))
def test_farther_away_loses_more_and_so_does_a_lost_sight(model: PathLoss, a: float, b: float) -> None:
    near, far = sorted((a, b))
    for los in (True, False):
        assert model.loss_db(near, los) <= model.loss_db(far, los) + 1e-9
    assert model.loss_db(near, True) <= model.loss_db(near, False)


@pytest.mark.parametrize(
    ("model", "distance_m", "probability"),
    [
        (UMI, 18, 1.0),
        (UMI, 5, 1.0),
        (UMI, 72, 0.25 + math.exp(-2) * 0.75),
        (INH, 1.0, 1.0),
        (INH, 5.9, math.exp(-1)),
        (INH, 39.1, 0.32 * math.exp(-1)),
        (PathLoss("inh", 3.5, office="open"), 4.0, 1.0),
        (PathLoss("inh", 3.5, office="open"), 40.4, math.exp(-0.5)),
        (PathLoss("inh", 3.5, office="open"), 260.7, 0.54 * math.exp(-1)),
        (PathLoss("umi-los", 3.5), 500, 1.0),
        (PathLoss("umi-nlos", 3.5), 500, 0.0),
        (PathLoss("free-space", 3.5), 500, 1.0),
    ],
)
def test_the_probability_of_a_line_of_sight(model: PathLoss, distance_m: float, probability: float) -> None:
    assert model.los_probability(distance_m) == pytest.approx(probability)


def test_the_report_s_own_shadowing() -> None:
    assert UMI.sigma_db([True, False]).tolist() == [4.0, 7.82]
    assert INH.sigma_db([True, False]).tolist() == [3.0, 8.03]
    assert PathLoss("free-space", 3.5).sigma_db(True) == 0


def test_models_say_what_they_are_not_for() -> None:
    assert UMI.distance_problem(9.9) == "umi is for 10 to 5000 m, not 9.9"
    assert UMI.distance_problem(5001) == "umi is for 10 to 5000 m, not 5001"
    assert UMI.distance_problem(10) is None
    assert INH.distance_problem(151) == "inh is for 1 to 150 m from antenna to antenna, not 151"
    assert INH.distance_problem(0.1) is None  # 2 m apart: one antenna hangs at the ceiling
    flat = PathLoss("inh", 3.5, base_station_height_m=1)
    assert flat.distance_problem(0.5) == "inh is for 1 to 150 m from antenna to antenna, not 0.5"
    near = PathLoss("log-distance", 3.5, reference_m=10).distance_problem(9)
    assert near == "log-distance begins at reference_m = 10 m; the antennas are 9 m apart"
    assert "begins at a wavelength, 0.0857 m" in str(PathLoss("free-space", 3.5).distance_problem(0.08))
    assert list(PathLoss("umi-los", 0.4).setting_problems()) == [
        ("carrier_ghz", "umi-los is for 0.5 to 100 GHz, not 0.4")
    ]
    assert [key for key, _ in PathLoss("umi", 101, 25, 1).setting_problems()] == [
        "carrier_ghz",
        "base_station_height_m",
        "device_height_m",
    ]
    assert list(PathLoss("free-space", 0.4).setting_problems()) == []


@pytest.mark.parametrize("table", CQI_TABLES)
def test_each_cqi_carries_its_bits_times_its_code_rate(table: str) -> None:
    rows = CQI_TABLES[table]
    assert len(rows) == 15
    for row in rows:
        assert row.efficiency == pytest.approx(row.bits * row.rate_1024 / 1024, abs=5.1e-5)
    assert [row.efficiency for row in rows] == sorted(row.efficiency for row in rows)
    assert rows[-1].efficiency == {"cqi-1": 5.5547, "cqi-2": 7.4063}[table]


def test_a_cqi_s_threshold_is_its_shannon_limit_and_the_gap() -> None:
    limits = cqi_thresholds_db("cqi-1", 0)
    for row, limit_db in zip(CQI_TABLES["cqi-1"], limits, strict=True):
        assert math.log2(1 + 10 ** (limit_db / 10)) == pytest.approx(row.efficiency)
    assert cqi_thresholds_db("cqi-1", 3) == pytest.approx([limit + 3 for limit in limits])


def test_wifi_6_gives_the_standard_s_data_rates() -> None:
    """Mbit/s of HE-MCS 0 to 11, one stream, guard interval 0.8 us, as the standard lists them."""
    listed = {
        20: (8.6, 17.2, 25.8, 34.4, 51.6, 68.8, 77.4, 86.0, 103.2, 114.7, 129.0, 143.4),
        40: (17.2, 34.4, 51.6, 68.8, 103.2, 137.6, 154.9, 172.1, 206.5, 229.4, 258.1, 286.8),
        80: (36.0, 72.1, 108.1, 144.1, 216.2, 288.2, 324.3, 360.3, 432.4, 480.4, 540.4, 600.5),
        160: (72.1, 144.1, 216.2, 288.2, 432.4, 576.5, 648.5, 720.6, 864.7, 960.8, 1080.9, 1201.0),
    }
    assert set(listed) == set(WIFI_6_SUBCARRIERS)
    for width, rates in listed.items():
        ours = [efficiency * width for efficiency in wifi_6_efficiencies(width)]
        assert ours == pytest.approx(rates, abs=0.051)


def test_wifi_6_thresholds_are_the_sensitivities_above_the_noise() -> None:
    """-82 dBm over -101 dBm of noise in 20 MHz, less 10 dB of noise figure and 5 dB of margin."""
    assert len(WIFI_6_THRESHOLDS_DB) == len(WIFI_6)
    assert WIFI_6_THRESHOLDS_DB[0] == pytest.approx(4.0, abs=0.02)
    assert WIFI_6_THRESHOLDS_DB[11] == pytest.approx(34.0, abs=0.02)


def test_fading_has_a_mean_of_one_and_the_right_spread() -> None:
    generator = np.random.default_rng(1)
    count = 200_000
    assert power_gains(generator, "none", 3).tolist() == [1, 1, 1]
    rayleigh = power_gains(generator, "rayleigh", count)
    assert stats.kstest(rayleigh, "expon").pvalue > 1e-3
    for k_db in (-10, 0, 6, 15):
        k = 10 ** (k_db / 10)
        gains = power_gains(generator, "rician", count, k_db)
        # 2 (K + 1) times the gain is a noncentral chi-squared of two degrees of freedom.
        assert stats.kstest(2 * (k + 1) * gains, stats.ncx2(2, 2 * k).cdf).pvalue > 1e-3
        assert gains.mean() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("snr_db", [-5, 0, 10, 20])
def test_the_ergodic_capacity_under_rayleigh_fading(snr_db: float) -> None:
    """E[log2(1 + s g)] = exp(1/s) E1(1/s) log2(e) for an exponential gain g of mean one."""
    s = 10 ** (snr_db / 10)
    exact = math.exp(1 / s) * special.exp1(1 / s) * math.log2(math.e)
    drawn = np.log2(1 + s * power_gains(np.random.default_rng(3), "rayleigh", 400_000))
    error = drawn.std() / math.sqrt(len(drawn))
    assert abs(drawn.mean() - exact) < 5 * error
