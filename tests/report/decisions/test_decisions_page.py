from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed.records import load_run, read_manifest, write_manifest
from testbed.report import render_report
from testbed.report.checks import checks_of
from testbed.report.metrics import compare, means_over_all, policies_of, scenarios_of, trial_means
from testbed.report.prediction import (
    predicted_trials,
)

Maker = Callable[..., Path]
SMALL: dict[str, Any] = {"repeats": 2, "prompts": 1, "tokens": 3}


@pytest.fixture(scope="module")
def page(many_run: Path) -> str:
    return render_report(load_run(many_run))


class TestPage:
    def test_many_policies_stay_small_and_valid(self, page: str) -> None:
        assert len(page.encode()) < 10_000_000
        ids = re.findall(r' id="([\w-]+)"', page)
        assert len(ids) == len(set(ids))
        for _, text in re.findall(
            r'<script type="application/json" id="([\w-]+)-data">(.*?)</script>', page, re.S
        ):
            json.loads(text)

    def test_each_letter_stands_for_one_policy(self, page: str, many_run: Path) -> None:
        policies = policies_of(load_run(many_run))
        rows = re.findall(r'<i class="chip">(\w)</i>([\w-]+)', page)
        assert {(chr(65 + place), name) for place, name in enumerate(policies)} == set(rows)
        figures = dict(
            re.findall(r'<script type="application/json" id="(latency-quality)-data">(.*?)</script>', page)
        )
        points = [
            trace
            for trace in json.loads(figures["latency-quality"])["data"]
            if trace.get("mode") == "markers+text"
        ]
        for point in points:
            name = re.search(r"<b>(.*?)</b>", point["hovertemplate"])
            assert name
            assert point["text"] == [chr(65 + policies.index(html.unescape(name.group(1))))]

    def test_the_mean_over_all_scenarios_is_what_is_drawn_first(self, page: str, many_run: Path) -> None:
        run = load_run(many_run)
        means = means_over_all(trial_means(run), policies_of(run), scenarios_of(run))
        figures = dict(
            re.findall(r'<script type="application/json" id="(latency-quality)-data">(.*?)</script>', page)
        )
        drawn = [
            t["y"][0]
            for t in json.loads(figures["latency-quality"])["data"]
            if t.get("mode") == "markers+text"
        ]
        assert sorted(drawn) == pytest.approx(sorted(value.value for value in means.values()))
        whole = {c.policy: c.policy_ms for c in compare(run) if c.scenario is None}
        assert all(means[name].value == pytest.approx(value) for name, value in whole.items())

    def test_every_choice_of_a_pick_has_its_pane(self, page: str) -> None:
        for pick in re.findall(r'<div class="figures pick" id="[\w-]+">.*?<div class="pane"', page, re.S):
            assert pick.count(" checked") == len(re.findall("<fieldset", pick))
        sizes = {"causes": 4, "pareto": 5 * 5, "dropped-layers": 3 * 2 * 2}
        for name, count in sizes.items():
            block = page.split(f'id="{name}"')[1].split('class="figures pick"')[0]
            keys = re.findall(r'class="pane" data-key="([\d-]+)"', block)
            assert len(keys) == len(set(keys)) == count, name

    def test_a_simulated_run_says_so_and_nothing_is_red_that_no_model_has(self, make_many: Maker) -> None:
        options = {**SMALL, "policies": ("top-2", "top-1", "budget-90"), "scenarios": ("even", "street")}
        measured = make_many("measured-0001", **options)
        folder = make_many(
            "sim-0001", beside=measured.parent, predicts="measured-0001", quality=False, **options
        )
        run = load_run(folder)
        page = render_report(run)
        assert '<body class="simulated">' in page
        assert '<span class="badge">simulated</span>' in page
        assert "simulated boards" in page
        assert 'role="alert"' not in page
        assert not [c for c in checks_of(run, run.energy(), predicted_trials(run)) if c.state == "bad"]
        assert "Quality was not simulated: it was measured in measured-0001." in page
        assert "no rule" not in page  # of power, which nothing was to have
        assert "not calibrated" in page
        manifest = read_manifest(folder)
        manifest["simulation"] = {
            "calibration": "c.json",
            "calibrated_with": "measured-0001",
            "differs": ["seed"],
        }
        write_manifest(folder, manifest)
        page = render_report(load_run(folder))
        assert "calibrated with measured-0001; nothing was measured" in page
        assert "calibrated with this very run" in page
        assert "what differs: seed." in page

    def test_quality_of_other_policies_is_not_borrowed(self, make_many: Maker) -> None:
        options = {**SMALL, "policies": ("top-2", "top-1"), "scenarios": ("even",)}
        measured = make_many("measured-0001", **options)
        folder = make_many(
            "sim-0001", beside=measured.parent, predicts="measured-0001", quality=False, **options
        )
        manifest = read_manifest(folder)
        write_manifest(
            folder, manifest | {"campaign": str(manifest["campaign"]).replace("k: 1", "k: 1, norm: none")}
        )
        page = render_report(load_run(folder))
        assert "No perplexity was measured." in page
        assert "gate mass dropped" in page
        assert "Quality was not simulated" not in page

    def test_quality_passes_alone_make_a_report_of_quality(self, make_many: Maker) -> None:
        run = load_run(make_many(latency=False, policies=("top-2", "top-1", "budget-90")))
        page = render_report(run)
        assert re.findall(r'<section id="(\w+)"', page) == ["rated", "fleet"]
        assert "Latency was not measured in this run." in page
        assert [check.state for check in checks_of(run, run.energy())] == ["good", "plain", "plain"]
        assert 'role="alert"' not in page
