from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.records import load_run, read_manifest, write_manifest
from testbed.report import render_report, write_report
from testbed.report.blocks import Alert
from testbed.report.sections import trial_alerts

Maker = Callable[..., Path]
MOST_BYTES = 10_000_000


class Outline(html.parser.HTMLParser):
    """What a page refers to, and the ids it has."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if tag == "a" else []
        self.sources += [given[key] or "" for key in ("src", "href") if key in given and tag != "a"]
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def page(whole_run: Path) -> str:
    return write_report(whole_run).read_text(encoding="utf-8")


def test_the_page_is_one_small_file_that_asks_the_network_for_nothing(page: str) -> None:
    outline = Outline(page)
    assert len(page.encode()) < MOST_BYTES
    assert outline.sources == ["data:,"]
    assert "default-src 'none'" in page


def test_links_within_the_page_lead_somewhere_and_ids_are_its_own(page: str) -> None:
    outline = Outline(page)
    assert len(outline.ids) == len(set(outline.ids))
    assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids)


def test_the_sections_stand_in_order(page: str) -> None:
    names = re.findall(r'<section id="(\w+)"', page)
    assert names == [
        "summary",
        "policies",
        "time",
        "timeline",
        "rated",
        "prediction",
        "energy",
        "links",
        "metrics",
        "trials",
        "fleet",
    ]


def test_the_first_screen_answers_from_the_data(page: str) -> None:
    sentence = re.search(r"<h1[^>]*>(.*?)</h1>", page)
    assert sentence
    assert sentence.group(1).startswith("top-1 cut the mean token latency by")
    assert "12 of 12" in page
    assert "emulated" in page


def test_text_of_the_run_is_escaped_everywhere(make_run: Maker) -> None:
    folder = make_run("run-<b>&'\"", repeats=1, prompts=1, tokens=3)
    evil = "</script><script>alert(1)</script>"
    manifest = read_manifest(folder) | {"campaign_name": evil, "command": evil, "security": evil}
    manifest["facts"]["orin-nx"]["board_model"] = evil
    manifest["campaign"] += f"# {evil}"
    write_manifest(folder, manifest)
    page = render_report(load_run(folder))
    assert evil not in page
    assert "alert(1)" in Outline(page).text


def test_figures_are_json_with_axes_and_units(page: str) -> None:
    figures = re.findall(
        r'<script type="application/json" id="([\w-]+)-data">(.*?)</script>', page, re.DOTALL
    )
    names = {name for name, _ in figures}
    assert {
        "latency-quality",
        "parts",
        "parts-share",
        "parts-first",
        "parts-first-share",
        "power",
        "energy-figure",
        "links-ratio",
        "links-rates-2",
    } <= names
    assert len([name for name in names if name.startswith(("bottleneck-", "timeline-"))]) == 8
    for name, text in figures:
        layout = json.loads(text)["layout"]
        if not name.startswith("bottleneck-"):
            assert re.search(
                r"\((ms|s|J|%|lower is better)\)|over expected", layout["xaxis"]["title"]["text"]
            ), name


def test_a_device_has_one_colour_in_every_figure(page: str) -> None:
    for device, colour in (("agx-orin", "--d1"), ("xavier-nx", "--d4")):
        assert set(re.findall(rf'color:var\((--d\d)\)\\"\\u003e■\\u003c/span\\u003e {device}', page)) <= {
            colour
        }
        swatches = re.findall(rf'<i class="swatch" style="background: var\((--d\d)\)"></i>{device}', page)
        assert set(swatches) == {colour}


def test_missing_power_is_red_and_never_blank(make_run: Maker) -> None:
    folder = make_run(repeats=2, prompts=1, tokens=3)
    (folder / "tables" / "power" / "orin-nx.parquet").unlink()
    page = render_report(load_run(folder))
    assert '<p class="alert" role="alert" id="energy-bad">' in page
    assert "orin-nx: no power was recorded" in page
    assert re.search(r'<td class="num bad" data-value="">missing</td>', page)


def test_a_run_that_was_cut_off_says_what_is_missing(make_run: Maker) -> None:
    folder = make_run(repeats=2, prompts=1, tokens=3, stop_after=5, fail=2, state="interrupted")
    page = render_report(load_run(folder))
    assert "This run was interrupted" in page
    assert "device orin-nano lost: connection closed" in page
    assert "3 of 8 trials were not run" in page
    assert "testbed run --resume synthetic-0001" in page
    for workload, goes_on in (
        ("broadcast", "`testbed simulate --resume synthetic-0001` goes on"),
        ("split-experts", ""),
    ):
        run = load_run(folder)
        run.manifest.update(simulated=True, workload=workload)
        texts = [block.text for block in trial_alerts(run) if isinstance(block, Alert)]
        assert f"3 of 8 trials were not run{': ' if goes_on else ''}{goes_on}." in texts


@pytest.mark.parametrize("known", [{}, {"inventory": {"hosts": {"nano": {"role": "device"}}}}])
def test_a_run_with_nothing_recorded_still_has_a_report(tmp_path: Path, known: dict[str, object]) -> None:
    write_manifest(tmp_path, {"run": "r", "started_unix": 1.0, "state": "failed"} | known)
    page = render_report(load_run(tmp_path))
    assert "No trial was completed" in page
    assert 'class="alert"' in page
    assert "nan" not in Outline(page).text.split()


@pytest.mark.parametrize(
    "table",
    ["quality", "clocks", "links", "boards", "tokens", "dispatches", "requests"],
)
def test_a_table_that_is_missing_does_not_break_the_report(make_run: Maker, table: str) -> None:
    folder = make_run(repeats=1, prompts=1, tokens=3)
    for part in (folder / "tables" / table).glob("*.parquet"):
        part.unlink()
    page = render_report(load_run(folder))
    assert page.count("<section") == 11


def test_links_outside_the_tolerance_are_named(make_run: Maker) -> None:
    from testbed.records import RecordWriter

    folder = make_run(repeats=1, prompts=1, tokens=3)
    probe = {
        "t_s": 3.0,
        "trial": "t001",
        "scenario": "even",
        "device": "orin-nano",
        "direction": "uplink",
        "asked_mbit": 20.0,
        "message_bytes": 4096,
        "n": 5,
        "expected_ms": 1.7,
        "measured_ms": 0.2,
        "ratio": 0.118,
        "ok": False,
    }
    small = probe | {"message_bytes": 1024, "expected_ms": 0.0, "ratio": None, "ok": True}
    RecordWriter(folder).write("links", "more", [probe, small])
    page = render_report(load_run(folder))
    assert "orin-nano uplink in even, 4,096 B: ratio 0.118" in page
    assert "1 of " in page


def test_many_devices_are_told_apart(make_run: Maker) -> None:
    from testbed.report.style import device_styles

    looks = [(d.colour, d.dash) for d in device_styles([f"d{number}" for number in range(16)]).values()]
    assert len(set(looks)) == 16


def test_bytes_that_the_records_do_not_explain_are_marked(make_run: Maker) -> None:
    from testbed.records import RecordWriter

    folder = make_run(repeats=1, prompts=1, tokens=3)
    assert "records do not explain" not in render_report(load_run(folder))
    row = {"trial": "t001", "device": "orin-nx", "direction": "uplink", "frame_bytes": 900_000, "frames": 600}
    RecordWriter(folder).write(
        "traffic", "t001", [row | {"drops": 0, "dispatch_bytes": 500_000, "control_bytes": 0}]
    )
    assert "records do not explain: orin-nx uplink" in render_report(load_run(folder))
