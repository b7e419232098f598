"""Which scenarios differ in one thing only, and what a fading channel did to images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from testbed.records import load_run
from testbed.report.broadcast.facts import Scenario, facts_of, ratio_name
from testbed.report.broadcast.ladders import (
    by_met_snr,
    changes_along,
    changes_of,
    error_ladders,
    gap_ladders,
    rungs_of,
    snr_ladders,
)
from testbed.report.broadcast.regions import regions_of
from testbed.report.broadcast.tables import errors_table
from tests.report.broadcast.conftest import SCHEMES

Maker = Callable[..., Path]


def scenarios(*rows: tuple[str, tuple[float, ...], str, float]) -> dict[str, Scenario]:
    return {name: Scenario(name, snr, fading, error) for name, snr, fading, error in rows}


def test_ladders_hold_all_but_one_thing_equal() -> None:
    found = scenarios(
        ("a", (10, 1), "none", 0),
        ("b", (13, 4), "none", 0),
        ("c", (10, 10), "none", 0),
        ("d", (10, 1), "rayleigh", 0),
        ("e", (10, 1), "rayleigh", 0.1),
        ("f", (16, 7), "none", 0),
        ("g", (13, 4), "none", 0.1),
    )
    assert [ladder.steps for ladder in snr_ladders(found)] == [{10: "a", 13: "b", 16: "f"}]
    assert [(ladder.title, ladder.steps) for ladder in gap_ladders(found)] == [
        ("user 1 at 10 dB", {0: "c", 9: "a"})
    ]
    errors = [(ladder.title, ladder.steps) for ladder in error_ladders(found)]
    assert errors == [
        ("13 and 4 dB, no fading", {0: "b", 0.1: "g"}),
        ("10 and 1 dB, rayleigh fading", {0: "d", 0.1: "e"}),
    ]


def test_a_campaign_of_one_scenario_has_no_ladder() -> None:
    found = scenarios(("a", (10, 1), "none", 0))
    assert snr_ladders(found) == gap_ladders(found) == error_ladders(found) == []


def test_a_rung_is_the_point_nearest_to_one_half(make_broadcast: Maker) -> None:
    facts = facts_of(
        load_run(make_broadcast(shares=(0.2, 0.45, 0.8), pairs=1, repeats=1, schemes=SCHEMES[:2]))
    )
    regions = {r.panel.scenario: r for r in regions_of(facts) if r.measure.column == "psnr_db"}
    ladder = gap_ladders(facts.scenarios)[0]
    rungs = rungs_of(ladder, regions, "fusion")
    assert [(rung.at, rung.scenario, rung.point.share) for rung in rungs] == [
        (0, "10-10", 0.45),
        (9, "10-1", 0.45),
    ]
    assert rungs_of(ladder, {"10-1": regions["10-1"]}, "fusion")[0].scenario == "10-1"


def test_an_error_of_the_estimate_costs_what_it_was_made_to_cost(make_broadcast: Maker) -> None:
    scenarios = tuple(
        {"name": f"fading-{error}", "snr_db": [10, 1], "fading": "rayleigh", "csi_error": error}
        for error in (0.0, 0.01, 4.0)
    )
    run = load_run(
        make_broadcast(scenarios=scenarios, schemes=SCHEMES[:2], pairs=4, shares=(0.4, 0.6), repeats=1)
    )
    facts = facts_of(run)
    regions = {r.panel.scenario: r for r in regions_of(facts) if r.measure.column == "psnr_db"}
    ladder = error_ladders(facts.scenarios)[0]
    (small, slight), (large, heavy) = changes_along(ladder, regions, "fusion")
    assert (small, large) == (0.01, 4.0)
    # The model of the fixture takes 0.1 dB for a dB of error: its spread is 8 dB at 4 and 0.4 dB at 0.01.
    for near, far in zip(slight, heavy, strict=True):
        assert far.value < near.value
    table = errors_table(facts, list(regions.values()))
    assert len(table.rows) == len(facts.schemes) * 2 * 2
    rungs = changes_of(ladder, regions, "fusion")
    assert [rung.at for rung in rungs] == [0.0, 0.01, 4.0]
    assert rungs[0].point.values[0].value == 0
    assert rungs[2].point.values[1] == heavy[1]


def test_images_stand_where_the_fading_put_them(make_broadcast: Maker) -> None:
    faded = ({"name": "fading", "snr_db": [10, 1], "fading": "rayleigh", "csi_error": 0.1},)
    facts = facts_of(load_run(make_broadcast(scenarios=faded, schemes=SCHEMES[5:], pairs=16)))
    table = by_met_snr(facts, "fading", facts.images)
    assert (table["n"] >= 8).all()
    own = table[(table["scheme"] == "webp + LDPC") & (table["user"] == 1)]
    assert own["snr_db"].diff().dropna().min() == 2
    # A code breaks where the channel is poor.
    assert own["received"].iloc[0] < own["received"].iloc[-1]
    assert own["received"].iloc[0] < 0.9
    met = facts.images[facts.images["scheme"] == "webp + LDPC"]
    inside = met[(met["user"] == 1) & ((met["snr_db"] + met["gain_db"]).between(9, 10.999))]
    row = own[own["snr_db"] == 11]
    both = met[
        (met["user"] == 1) & (met["snr_db"] + met["gain_db"] >= 10) & (met["snr_db"] + met["gain_db"] < 12)
    ]
    assert len(inside) > 0
    assert int(row["n"].iloc[0]) == len(both)


def test_how_easy_an_image_is_does_not_bend_the_curve_of_what_they_met(make_broadcast: Maker) -> None:
    still, faded = {"name": "10-1", "snr_db": [10, 1]}, {"name": "f", "snr_db": [10, 1], "fading": "rayleigh"}
    facts = facts_of(
        load_run(
            make_broadcast(
                scenarios=(still, faded), schemes=SCHEMES[:1], pairs=24, repeats=1, shares=(0.4, 0.5, 0.6)
            )
        )
    )
    images = facts.images
    images["psnr_db"] = images["snr_db"] + images["gain_db"] + 4.0 * images["pair"].str[1:].astype(int)

    def bend_db(told: pd.DataFrame) -> float:
        table = by_met_snr(facts, "f", told)
        above = table["psnr_db"] - table["snr_db"]
        return float(above.max() - above.min())

    assert bend_db(images) <= 2  # the width of a step
    assert bend_db(images[images["scenario"] == "f"]) > 2


def test_ratios_are_fractions_where_they_are() -> None:
    assert [ratio_name(ratio) for ratio in (1 / 6, 1 / 12, 0.16667, 0.3, 0.0)] == [
        "1/6",
        "1/12",
        "1/6",
        "0.3",
        "0",
    ]
