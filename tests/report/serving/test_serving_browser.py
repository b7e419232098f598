"""The page of a run with several requests at once and lost devices, in Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from testbed.report import write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(served: Path) -> str:
    return write_report(served).resolve().as_uri()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_figures_of_losses_and_throughput_are_drawn_within_the_page(
    browser: Any, page: str, width: int
) -> None:
    browser.get_log("browser")
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page)
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('#losses .plot, #metrics .plot')].filter((box) => box.clientWidth)"
        ".map((box) => [box.id, box.querySelectorAll('.trace').length, box.getBoundingClientRect().right])"
    )
    assert [name for name, _, _ in drawn] == ["losses-0", "throughput-0", "ladder-itl-0"]
    assert all(traces >= 2 and right <= width for _, traces, right in drawn)
    cut = browser.execute_script(
        "return [...document.querySelectorAll('#losses .plot text, #metrics .plot text')].filter((text) => {"
        "const place = text.getBoundingClientRect(), frame = text.closest('.plot').getBoundingClientRect();"
        "return place.width && (place.left < frame.left - 2 || place.right > frame.right + 2); })"
        ".map((text) => text.textContent)"
    )
    assert cut == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []
