from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pandas as pd
import pytest

from testbed.records import RecordWriter, load_run, read_manifest, write_manifest
from testbed.report import render_report, write_trace
from testbed.report.checks import Check, checks_of
from testbed.report.linkfacts import backend_notes, least_one_way_ms
from testbed.report.tables_links import traffic_totals

Maker = Callable[..., Path]


def section(page: str, name: str = "links") -> str:
    found = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    assert found
    return found.group(0)


def figures(page: str) -> dict[str, dict]:
    pattern = r'<script type="application/json" id="([\w-]+)-data">(.*?)</script>'
    return {name: json.loads(text) for name, text in re.findall(pattern, page, re.DOTALL)}


def text_of(page: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def rows_of(page: str, table: str) -> list[str]:
    found = re.search(rf'<table[^>]*id="{table}".*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert found
    return re.findall(r"<tr.*?</tr>", found.group(1), re.DOTALL)


def links_check(folder: Path) -> Check:
    run = load_run(folder)
    return checks_of(run, run.energy())[1]


def set_trial(folder: Path, trial: str, **values: object) -> None:
    row = pd.read_parquet(folder / "tables" / "trials" / f"{trial}.parquet").astype({"links_ok": object})
    RecordWriter(folder).write("trials", trial, row.assign(**values))


@pytest.fixture(scope="module")
def page(moving_run: Path) -> str:
    return render_report(load_run(moving_run))


def test_every_device_has_its_rates_by_direction_in_its_colour(page: str) -> None:
    drawn = figures(page)
    for place in range(4):
        for name in (f"links-rates-{place}", f"links-closer-0-{place}"):
            spec = drawn[name]
            lines = [trace for trace in spec["data"] if trace.get("line", {}).get("shape") == "hv"]
            assert {trace["line"]["color"] for trace in lines} == {f"var(--d{place + 1})"}
            assert {trace["yaxis"] for trace in lines} == {"y", "y2"}
            assert spec["layout"]["xaxis"]["title"]["text"].endswith("(s)")
            assert spec["layout"]["yaxis"]["title"]["text"] == "Mbit/s"
    assert drawn["links-rates-0"]["layout"]["shapes"]


def test_a_point_of_a_probe_is_the_rate_that_its_time_stands_for(moving_run: Path, page: str) -> None:
    probes = load_run(moving_run).links.dropna(subset=["message_bytes", "ratio"])
    own = probes[(probes["device"] == "agx-orin") & (probes["direction"] == "downlink")]
    own = own[own["message_bytes"] > 1448]
    expected = (own["asked_mbit"] * own["expected_ms"] / own["measured_ms"]).tolist()
    (points,) = [
        trace
        for trace in figures(page)["links-rates-0"]["data"]
        if trace["yaxis"] == "y" and isinstance(trace.get("marker", {}).get("symbol"), list)
    ]
    assert points["y"] == pytest.approx(expected, rel=1e-3)


def test_tens_of_thousands_of_changes_are_drawn_as_their_extremes_and_said_so(make_moving: Maker) -> None:
    folder = make_moving(run={"repeats": 1, "prompts": 3, "tokens": 30}, block_s=0.001)
    run = load_run(folder)
    assert len(run.links) > 30_000
    page = render_report(run)
    assert len(page.encode()) < 6_500_000
    busiest = run.links[run.links["message_bytes"].isna()].groupby(["device", "direction"]).size().max()
    assert f"Up to {busiest:,} changes a line" in text_of(page)
    spec = figures(page)["links-rates-0"]
    low, high = spec["data"][0], spec["data"][1]
    assert high["fill"] == "tonexty"
    assert (low["line"]["width"], high["line"]["width"]) == (0, 0)


def test_what_is_off_comes_first_in_red_and_the_trust_strip_leads_there(make_moving: Maker) -> None:
    folder = make_moving(off=True)
    set_trial(folder, "t002", links_ok=False)
    page = render_report(load_run(folder))
    rows = rows_of(page, "links-table")
    off = ['class="off"' in row for row in rows]
    assert off[:4] == [True] * 4
    assert sum(off) == 4
    assert 'id="links-off"' in rows[0]
    assert all("orin-nano" in row and "uplink" in row and "8,192" in row for row in rows[:4])
    check = links_check(folder)
    assert (check.state, check.anchor) == ("bad", "links-off")
    assert "1 of 4 completed trials" in check.detail
    trials = {text_of(row)[:4]: row for row in rows_of(page, "trials-table")}
    assert '<td class="bad" data-value="off: a probe was outside the tolerance"' in trials["t002"]
    assert '<td class="bad" data-value="off' not in trials["t001"]
    assert "t002: a probe was outside the tolerance." in text_of(section(page))


def test_a_table_of_probes_has_idle_and_busy_with_their_delay_and_backend(page: str) -> None:
    rows = [text_of(row) for row in rows_of(page, "links-table")]
    assert len(rows) == 2 * 4 * 2 * 3 * 2
    assert sum(" busy " in f" {row} " for row in rows) == len(rows) / 2
    assert all("bs-line" in row for row in rows if "downlink" in row)
    assert "delay (ms)" in text_of(section(page))


def test_a_line_that_died_and_links_that_nobody_verified_are_said(make_moving: Maker) -> None:
    folder = make_moving()
    set_trial(folder, "t001", links_error="the line of orin-nx ended: killed by signal 9 <b>")
    set_trial(folder, "t003", links_ok=None)
    check = links_check(folder)
    assert (check.title, check.value, check.state) == ("trials with sound links", "2 of 4", "bad")
    page = render_report(load_run(folder))
    text = text_of(section(page))
    assert "t001: the line of orin-nx ended: killed by signal 9 <b>." in text
    assert "t003: no link was verified before it." in text
    assert 'id="links-bad"' in page
    assert "9 <b>" not in page
    trials = rows_of(page, "trials-table")
    assert sum("not verified" in row for row in trials) == 1


def test_links_that_were_probed_only_after_a_trial_were_not_verified_before_it(make_moving: Maker) -> None:
    folder = make_moving()
    for part in (folder / "tables" / "links").glob("*-probe.parquet"):
        late = pd.read_parquet(part)
        RecordWriter(folder).write("links", part.stem, late.assign(t_s=late["t_s"] + 1e6))
    assert links_check(folder).value == "0 of 4"


def test_a_reader_is_told_what_a_rate_and_a_first_frame_are(page: str, whole_run: Path) -> None:
    text = text_of(section(page))
    assert "A rate is a frame rate" in text
    assert "Under bs-line every frame takes its time, the first too" in text
    assert "Under device-htb-tbf the first frame of a message passes an idle link at once" in text
    fleet = text_of(section(page, "fleet"))
    assert "downlink, in force bs-line" in fleet
    assert "uplink, in force device-htb-tbf" in fleet
    alone = text_of(section(render_report(load_run(whole_run))))
    assert "Both directions were shaped by htb+tbf ." in alone
    assert "every frame takes its time" not in alone


def test_what_a_ping_is_known_to_take_is_no_error_of_the_clock() -> None:
    """A ping of 110 bytes, headers included, takes 0.88 ms at 1 Mbit/s, its answer of as many 0.11 ms at 8."""
    about = {"device": "nano", "backend": "bs-line"}
    links = pd.DataFrame(
        [
            {
                **about,
                "t_s": 1.0,
                "direction": "downlink",
                "cause": "set",
                "asked_mbit": 1.0,
                "delay_ms": 2.0,
            },
            {**about, "t_s": 1.0, "direction": "uplink", "cause": "set", "asked_mbit": 8.0, "delay_ms": 2.0},
            {**about, "t_s": 5.0, "direction": "uplink", "cause": "block", "asked_mbit": 0.5},
        ]
    )
    at = pd.Series([0.5, 3.0, 6.0])
    assert least_one_way_ms(links, "nano", at, tls=False) == pytest.approx([0.0, 2.11, 2.88])
    assert least_one_way_ms(links, "orin", at, tls=False) == pytest.approx([0.0, 0.0, 0.0])
    assert least_one_way_ms(links, "nano", at, tls=True) == pytest.approx([0.0, 2.132, 3.056])
    bucket = links.assign(backend="bs-htb-tbf", delay_ms=0.0)
    assert least_one_way_ms(bucket, "nano", at, tls=False) == pytest.approx([0.0, 0.0, 0.0])


def test_scenarios_that_were_shaped_in_two_ways_are_no_secret(whole_run: Path) -> None:
    run = load_run(whole_run)
    assert not any("shaped alike" in note for note in backend_notes(run))
    first = run.links["scenario"].iloc[0]
    run.links.loc[run.links["scenario"] == first, "backend"] = "bs-line"
    run.links.loc[run.links["scenario"] != first, "backend"] = "bs-htb-tbf"
    (note,) = (note for note in backend_notes(run) if "shaped alike" in note)
    assert f"{first} by `bs-line`" in note


def test_rates_that_change_have_a_table_and_a_surplus_is_red(page: str, make_moving: Maker) -> None:
    rows = [text_of(row) for row in rows_of(page, "rates-table")]
    assert len(rows) == 8
    assert "changes by allocate" in page
    assert "changes by rerate" not in page
    assert 'class="off"' not in "".join(rows_of(page, "rates-table"))
    wrong = render_report(load_run(make_moving(surplus=1.2)))
    assert all('class="off"' in row for row in rows_of(wrong, "rates-table"))
    assert "More was delivered than was asked for" in wrong


def test_links_that_nobody_set_show_the_radio_and_no_rate(untouched_run: Path) -> None:
    check = links_check(untouched_run)
    assert (check.value, check.state) == ("not set", "plain")
    page = render_report(load_run(untouched_run))
    names = figures(page)
    assert {name for name in names if name.startswith("links-")} == {f"links-radio-{n}" for n in range(3)}
    text = text_of(section(page))
    assert "the links were left as they are" in text
    assert "Nothing was read on: xavier-nx." in text
    assert "not verified" not in text_of(section(page, "trials"))
    assert 'role="alert"' not in section(page)


def test_links_that_nobody_set_without_a_radio_log_say_so(untouched_run: Path) -> None:
    for part in (untouched_run / "tables" / "radio").glob("*.parquet"):
        part.unlink()
    assert "No device told of its radio" in render_report(load_run(untouched_run))


def test_text_in_the_records_of_links_is_escaped(make_moving: Maker) -> None:
    folder = make_moving()
    evil = "</script><script>alert(1)</script>"
    part = folder / "tables" / "links" / "t001-probe.parquet"
    rows = pd.read_parquet(part)
    RecordWriter(folder).write("links", "t001-probe", rows.assign(backend=evil, state=evil))
    set_trial(folder, "t001", links_error=evil)
    write_manifest(folder, read_manifest(folder) | {"links": {"backend": evil}})
    page = render_report(load_run(folder))
    assert evil not in page
    assert "alert(1)" in text_of(section(page))


def test_what_tcp_sent_again_explains_bytes_but_no_more_than_there_are(make_run: Maker) -> None:
    row = {"trial": "t001", "device": "nano", "direction": "uplink", "frames": 100, "drops": 0}
    row |= {"dispatch_bytes": 100_000, "control_bytes": 0, "frame_bytes": 100_000 + 6600 + 20_000}

    def share(**more: object) -> float:
        frame = pd.DataFrame([{**row, "retransmitted_bytes": None, **more}])
        return float(traffic_totals(frame)["share"].iloc[0])

    assert share() == pytest.approx(20_000 / 126_600)
    assert share(retransmitted_bytes=20_000) == 0
    assert share(retransmitted_bytes=50_000) == 0
    assert share(retransmitted_bytes=5_000) == pytest.approx(15_000 / 126_600)
    assert share(frame_bytes=90_000, retransmitted_bytes=50_000) < 0
    folder = make_run(repeats=1, prompts=1, tokens=3)
    assert "sent again (B)" not in render_report(load_run(folder))
    RecordWriter(folder).write("traffic", "t001", [row | {"device": "other", "retransmitted_bytes": 20_000}])
    page = render_report(load_run(folder))
    assert "Sent again: payload that TCP retransmitted" in page
    assert "records do not explain" not in page


def test_bytes_that_nothing_counted_are_no_zeros(make_run: Maker) -> None:
    folder = make_run(repeats=1, prompts=1, tokens=3)
    for part in (folder / "tables" / "traffic").glob("*.parquet"):
        rows = pd.read_parquet(part).astype({"frames": object, "frame_bytes": object, "drops": object})
        RecordWriter(folder).write(
            "traffic", part.stem, rows.assign(frames=None, frame_bytes=None, drops=None)
        )
    cells = rows_of(render_report(load_run(folder)), "traffic-table")[0]
    assert cells.count("nothing counted it") == 4
    assert "nan" not in cells


def test_a_trace_counts_the_rates_asked_for_and_what_crossed(moving_run: Path, tmp_path: Path) -> None:
    run = load_run(moving_run)
    trace = json.loads(write_trace(run, tmp_path / "t.json").read_text())
    counters = [event for event in trace["traceEvents"] if event["ph"] == "C"]
    asked = [event for event in counters if event["name"] == "downlink asked for"]
    settings = run.links[run.links["message_bytes"].isna() & (run.links["direction"] == "downlink")]
    assert len(asked) == len(settings)
    assert sum(event["args"]["Mbit/s"] for event in asked) == pytest.approx(
        settings["asked_mbit"].sum(), rel=1e-4
    )
    crossed = [event for event in counters if event["name"].endswith(" crossed")]
    assert len(crossed) == len(run.throughput)


def test_all_tables_are_exported(moving_run: Path, tmp_path: Path) -> None:
    load_run(moving_run).export_csv(tmp_path)
    links = pd.read_csv(tmp_path / "links.csv")
    assert set(links["cause"].dropna()) == {"set", "block", "allocate"}
    assert set(links["state"].dropna()) == {"idle", "busy"}
    assert len(pd.read_csv(tmp_path / "throughput.csv")) == len(load_run(moving_run).throughput)
    assert (tmp_path / "radio.csv").read_text().startswith("t_s,device,interface,signal_dbm")
