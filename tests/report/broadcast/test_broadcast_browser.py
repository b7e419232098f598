"""A broadcast's report in Chromium, headless."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed.report import write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(make_broadcast: Callable[..., Path]) -> str:
    scenarios = (
        {"name": "10-1", "snr_db": [10, 1]},
        {"name": "13-4", "snr_db": [13, 4]},
        {"name": "10-10", "snr_db": [10, 10]},
        {"name": "fading", "snr_db": [10, 1], "fading": "rayleigh", "csi_error": 0.0},
        {"name": "fading-0.1", "snr_db": [10, 1], "fading": "rayleigh", "csi_error": 0.1},
    )
    return (
        write_report(
            make_broadcast(pairs=10, repeats=1, shares=(0.35, 0.5), scenarios=scenarios, pictures=True)
        )
        .resolve()
        .as_uri()
    )


def show(browser: Any, page: str, width: int, scheme: str) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_everything_is_drawn_whole_within_the_page(browser: Any, page: str, width: int, scheme: str) -> None:
    browser.get_log("browser")
    show(browser, page, width, scheme)
    drawn = browser.execute_script(
        """
        return [...document.querySelectorAll(".plot")].filter((box) => !box.closest("[hidden]")).map((box) => {
          const frame = box.getBoundingClientRect();
          const cut = [...box.querySelectorAll("text")].filter((text) => {
            const place = text.getBoundingClientRect();
            return place.width && (place.left < frame.left - 2 || place.right > frame.right + 2);
          });
          return [box.id, box.querySelectorAll(".trace").length, cut.map((text) => text.textContent), frame.right];
        })
        """
    )
    names = {name for name, *_ in drawn}
    assert {
        "region-0-0-0-0",
        "snr-ladder-0-0-1",
        "met-0-0-1",
        "gap-ladder-0-0-1",
        "csi-ladder-0-0-2",
    } <= names
    assert {"ablation-0-0", "latency-0-0", "latency-0-1", "power", "energy-figure"} <= names
    for name, traces, cut, right in drawn:
        assert traces > 0, name
        assert cut == [], name
        assert right <= width, name
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    images = browser.execute_script(
        "return [...document.querySelectorAll('.shot img')].map((image) => [image.complete, image.naturalWidth])"
    )
    assert len(images) == 60
    assert all(complete and wide == 128 for complete, wide in images)
    assert browser.get_log("browser") == []


def test_the_first_screen_has_the_region_and_what_it_says(browser: Any, page: str) -> None:
    show(browser, page, 1280, "light")
    tops = browser.execute_script(
        "return ['h1', '.trust', '#tally tbody', '#region-0-0-0-0 .plot-container'].map("
        "(name) => document.querySelector(name).getBoundingClientRect().top)"
    )
    assert max(tops) < 800
    hidden = "const table = document.querySelector('#tally'); return table.scrollWidth - table.parentNode.clientWidth"
    assert browser.execute_script(hidden) <= 0


def test_another_region_is_picked(browser: Any, page: str) -> None:
    show(browser, page, 1280, "light")
    browser.execute_script(
        'document.querySelector(\'#regions-figure fieldset[data-axis="0"] input[value="1"]\').click()'
    )
    shown = "return [...document.querySelectorAll('#regions-figure .pane:not([hidden]) .plot')].map((box) => box.id)"
    assert browser.execute_script(shown) == ["region-1-0-0-0"]
    traces = "return document.querySelectorAll('#region-1-0-0-0 .trace').length"
    assert browser.execute_script(traces) == 5
