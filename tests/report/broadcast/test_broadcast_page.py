"""The page of a broadcast run: what it says, what must not stand in it, and what is wrong with the data."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from testbed.records import load_run
from testbed.report import render_report
from testbed.report.broadcast.examples import examples_of
from testbed.report.broadcast.facts import facts_of
from testbed.report.broadcast.figures_regions import counted_text, region_figure
from testbed.report.broadcast.looks import looks_of
from testbed.report.broadcast.regions import Point, regions_of
from testbed.report.broadcast.sentence import broadcast_headline, broadcast_second_line
from testbed.report.broadcast.timing import latencies_of, sendings_of
from testbed.report.broadcast.trust import checks_of_broadcast
from testbed.report.sections import trial_alerts
from testbed.report.trace import trace_events
from tests.report.broadcast.conftest import SCENARIOS, SCHEMES

Maker = Callable[..., Path]
SECTIONS = ("regions", "snr", "csi", "ablations", "examples", "latency", "energy", "links", "trials", "fleet")
SMALL: dict[str, Any] = {"pairs": 1, "repeats": 1, "shares": (0.5,)}
FOREIGN = ("token", "polic", "expert", "prompt", "quality pass", "perplexity", "request", "dispatch")


class Words(HTMLParser):
    """Keeps what a reader sees of a page: no script, no style, no data of figures."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.hidden = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden = tag in ("script", "style")
        self.texts += [value for name, value in attrs if name in ("title", "alt", "aria-label") and value]

    def handle_endtag(self, tag: str) -> None:
        self.hidden = False

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.texts.append(data)


def words_of(page: str) -> str:
    words = Words()
    words.feed(page)
    return re.sub(r"\s+", " ", " ".join(words.texts))


@pytest.fixture(scope="module")
def rack(make_broadcast: Maker) -> Path:
    return make_broadcast(pairs=2, repeats=2, shares=(0.2, 0.5, 0.8), pictures=True)


@pytest.fixture(scope="module")
def rack_page(rack: Path) -> str:
    return render_report(load_run(rack))


def test_a_broadcast_has_its_own_sections_and_no_words_of_the_other_workload(rack_page: str) -> None:
    assert tuple(re.findall(r'<section id="(\w+)"', rack_page)) == ("summary", *SECTIONS)
    seen = words_of(rack_page).lower()
    assert [word for word in FOREIGN if word in seen] == []
    assert "energy of a board per image that it decoded (j)" in rack_page.lower()
    assert f'title="sha256 {"0" * 64}">{"0" * 12}</td>' in rack_page


def test_the_sentence_counts_what_the_table_counts(rack: Path, rack_page: str) -> None:
    facts = facts_of(load_run(rack))
    regions = regions_of(facts)
    own = [
        s
        for r in regions
        for s in r.standings
        if r.measure.column == "psnr_db" and s.baseline == "time division"
    ]
    outside = sum(standing.verdict == "outside" for standing in own)
    judged = sum(standing.verdict != "past" for standing in own)
    sentence = broadcast_headline(facts, regions, "on 2 emulated boards")
    assert f"of time division at {outside} of {judged} swept points" in sentence
    assert sentence.endswith(
        "(PSNR, 95\N{NO-BREAK SPACE}% intervals over 2 pairs of images in 2 repeats), on 2 emulated boards."
    )
    assert f"{outside} of {judged}" in rack_page
    assert "past its last swept share" in broadcast_second_line(facts, regions)


def test_a_fusion_that_is_no_better_is_not_praised(make_broadcast: Maker) -> None:
    facts = facts_of(load_run(make_broadcast(better=-1.0, schemes=SCHEMES[:3], pairs=2, shares=(0.2, 0.5))))
    regions = regions_of(facts)
    assert "outside the region of time division at 0 of " in broadcast_headline(facts, regions)
    assert re.search(r"time division: \d+ inside", broadcast_second_line(facts, regions))


def test_a_scheme_that_failed_wherever_others_ran_is_named(make_broadcast: Maker) -> None:
    few = {**SMALL, "schemes": SCHEMES[:3], "scenarios": SCENARIOS[:1]}
    assert "not compared: time division" in words_of(render_report(load_run(make_broadcast(fail=2, **few))))
    whole = regions_of(facts_of(load_run(make_broadcast(**few))))
    assert not any("not compared" in counted_text(region) for region in whole)


def test_a_figure_shows_what_is_better_whatever_was_lost(make_broadcast: Maker) -> None:
    facts = facts_of(load_run(make_broadcast(**SMALL)))
    region = regions_of(facts)[0]
    whole, codec = region.points["fusion"][0], region.points["webp + LDPC"][0]

    def moved(by_db: float) -> Point:
        values = tuple(replace(one, value=one.value + by_db) for one in whole.values)
        return replace(codec, values=values, compared=values, received=(0.9, 0.9))

    points = {"fusion": [whole], "webp + LDPC": [moved(9), moved(-9)]}
    layout = region_figure("region", facts, replace(region, points=points), looks_of(facts)).spec["layout"]
    for user, axis in enumerate(("xaxis", "yaxis")):
        low, high = layout[axis]["range"]
        assert whole.values[user].value - 9 < low < high
        assert whole.values[user].value + 9 < high


def test_one_pair_and_repeat_show_no_difference(make_broadcast: Maker) -> None:
    facts = facts_of(load_run(make_broadcast(**SMALL)))
    assert "shows no difference yet" in broadcast_headline(facts, regions_of(facts))


def test_one_scheme_alone_has_nothing_to_compare(make_broadcast: Maker) -> None:
    run = load_run(make_broadcast(**SMALL, schemes=SCHEMES[:1]))
    facts = facts_of(run)
    assert "there is no other scheme to compare" in broadcast_headline(facts, regions_of(facts))
    assert "There is no other scheme whose region" in render_report(run)


def test_a_run_without_any_trial_still_has_a_page(make_broadcast: Maker) -> None:
    page = render_report(load_run(make_broadcast(stop_after=0, state="interrupted")))
    assert "No trial was completed, so there is nothing to report yet." in page
    assert "was interrupted" in page


def test_a_simulation_says_that_nothing_was_sent(make_broadcast: Maker) -> None:
    run = load_run(make_broadcast(**SMALL, rack=False, seeds=2, schemes=SCHEMES[:2]))
    page = render_report(run)
    assert "nothing was sent or timed" in page
    assert "A simulated run has no latency" in page
    assert "boards" not in re.search(r"<h1[^>]*>(.*?)</h1>", page, re.DOTALL).group(1)
    titles = [check.title for check in checks_of_broadcast(run, run.energy(), facts_of(run))]
    assert titles == ["trials completed", "training seeds", "boards"]


def test_times_are_split_and_add_up(rack: Path) -> None:
    facts = facts_of(load_run(rack))
    rows = latencies_of(facts)
    assert {row.device for row in rows} == {"orin-nx", "orin-nano"}
    assert {row.scheme for row in rows} == {"fusion", "time division", "superposition", "no CSI"}
    for row in rows:
        assert row.whole.value == pytest.approx(sum(part.value for part in row.parts.values()))
        assert row.images == 12
    assert rows[0].parts["decode_ms"].value < rows[1].parts["decode_ms"].value
    assert {(row.symbols, row.copies) for row in sendings_of(facts)} == {(8192, (2, 2))}


def test_energy_is_that_of_the_images_that_a_device_decoded(rack: Path) -> None:
    energy = load_run(rack).energy()
    assert set(energy["policy"]) == {"fusion", "time division", "superposition", "no CSI"}
    assert (energy["images"] == 6).all()
    assert (energy["joules_per_image"] * energy["images"] - energy["joules"]).abs().max() < 1e-9
    nx = energy[energy["device"] == "orin-nx"].iloc[0]
    assert (
        6.0 < nx["joules"] / (nx["t_end_s"] - nx["t_start_s"]) < 11.0
    )  # between idling and full load, in watts


def test_a_lost_receiver_is_told_in_red(make_broadcast: Maker) -> None:
    page = render_report(
        load_run(make_broadcast(fail=2, pairs=1, repeats=2, shares=(0.5,), schemes=SCHEMES[:2]))
    )
    assert "device orin-nano lost: connection closed" in page
    assert re.search(r'<li class="bad"><a href="#trials"', page)


def test_an_snr_that_was_not_as_asked_is_told_in_red(make_broadcast: Maker) -> None:
    run = load_run(make_broadcast(**SMALL))
    fine = {check.title: check for check in checks_of_broadcast(run, run.energy(), facts_of(run))}
    assert fine["SNR error"].state == "good"
    assert fine["schemes on air"].value == "4 of 6"
    run.images["measured_snr_db"] += 0.3
    off = {check.title: check for check in checks_of_broadcast(run, run.energy(), facts_of(run))}
    assert off["SNR error"].state == "bad"


def test_what_was_computed_on_paper_needs_no_links(make_broadcast: Maker) -> None:
    run = load_run(make_broadcast(**SMALL))
    paper = run.trials["policy"].isin(["jpeg2000 (superposition)", "webp + LDPC"])
    run.trials.loc[paper, "links_ok"] = None
    checks = {check.title: check for check in checks_of_broadcast(run, run.energy(), facts_of(run))}
    assert checks["links in tolerance"].state == "good"
    assert not any("had links that were not as asked" in block.text for block in trial_alerts(run))
    run.trials.loc[~paper, "links_ok"] = None
    checks = {check.title: check for check in checks_of_broadcast(run, run.energy(), facts_of(run))}
    assert checks["trials with sound links"].value == "4 of 12"


def test_an_image_without_its_times_is_counted(make_broadcast: Maker) -> None:
    run = load_run(make_broadcast(pairs=2, repeats=1, shares=(0.5,), schemes=SCHEMES[:1]))
    place = run.images.index[run.images["decode_ms"].notna()][0]
    run.images.loc[place, "decode_ms"] = None
    facts = facts_of(run)
    checks = {check.title: check for check in checks_of_broadcast(run, run.energy(), facts)}
    assert checks["full records"].state == "bad"
    assert sum(row.unsplit for row in latencies_of(facts)) == 1


def test_pictures_are_embedded_as_they_are_and_only_pngs(rack: Path, rack_page: str) -> None:
    run = load_run(rack)
    facts = facts_of(run)
    shown, left_out = examples_of(run, facts)
    assert left_out == []
    assert [example.panel.scenario for example in shown] == ["10-1", "10-10"]
    strip = shown[0].strips[0]
    assert [shot.title for shot in strip.shots] == [
        "source",
        *(name for name, scheme in facts.schemes.items() if not scheme.ablates),
    ]
    assert strip.shots[0].size == (128, 128)
    lost = [shot.caption for strip in shown[0].strips for shot in strip.shots if shot.lost]
    assert lost
    assert set(lost) == {"not decodable"}
    assert rack_page.count('<img src="data:image/png;base64,') == sum(
        len(s.shots) for e in shown for s in e.strips
    )


def test_pictures_beyond_the_limit_are_named(rack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_run(rack)
    monkeypatch.setattr("testbed.report.broadcast.examples.MOST_BYTES", 1)
    shown, left_out = examples_of(run, facts_of(run))
    assert [example.panel.scenario for example in shown] == ["10-1"]
    assert left_out == ["10-10 · natural-128 · k/n = 1/6"]


def test_what_is_no_png_is_not_embedded(make_broadcast: Maker) -> None:
    folder = make_broadcast(**SMALL, schemes=SCHEMES[:2], pictures=True)
    for path in (folder / "pictures").glob("*.png"):
        path.write_bytes(b"<svg onload=alert(1)>")
    shown, _ = examples_of(load_run(folder), facts_of(load_run(folder)))
    assert shown == []


def test_names_of_a_campaign_cannot_become_markup(make_broadcast: Maker) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    schemes = ({**SCHEMES[0]}, {**SCHEMES[1], "name": evil})
    page = render_report(load_run(make_broadcast(**SMALL, schemes=schemes)))
    assert evil not in page
    assert "<img src=x" not in page


def test_the_tables_are_exported(rack: Path, tmp_path: Path) -> None:
    names = {path.name for path in load_run(rack).export_csv(tmp_path)}
    assert {"frames.csv", "images.csv", "schemes.csv", "energy.csv"} <= names
    assert "joules_per_image" in (tmp_path / "energy.csv").read_text().splitlines()[0]


def test_the_trace_has_frames_on_the_station_and_images_on_the_devices(rack: Path) -> None:
    run = load_run(rack)
    events = list(trace_events(run))
    names = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert names == {"trials", "frames", "images"}
    slices = [event for event in events if event["ph"] == "X"]
    sent = int(run.frames["t_send_s"].notna().sum())
    assert sum(event["name"].endswith("encode") for event in slices) == sent
    assert sum(event["name"].endswith("decode") for event in slices) == 2 * sent
