"""The figures of links that change, in Chromium, headless."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.support.ui import WebDriverWait

from testbed.report import write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(make_moving: Callable[..., Path]) -> str:
    return write_report(make_moving(off=True, block_s=0.005)).resolve().as_uri()


def show(browser: Any, page: str, width: int, scheme: str) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_rates_are_drawn_whole_within_the_page(browser: Any, page: str, width: int, scheme: str) -> None:
    browser.get_log("browser")
    show(browser, page, width, scheme)
    drawn = browser.execute_script(
        """
        return [...document.querySelectorAll("#links .plot")].map((box) => {
          const frame = box.getBoundingClientRect();
          const cut = [...box.querySelectorAll("text")].filter((text) => {
            const place = text.getBoundingClientRect();
            return place.width && (place.left < frame.left - 2 || place.right > frame.right + 2);
          });
          return [box.id, box.querySelectorAll(".trace path").length, cut.map((text) => text.textContent),
                  frame.right];
        })
        """
    )
    assert len(drawn) == 9
    for name, paths, cut, right in drawn:
        assert paths > 0, name
        assert cut == [], name
        assert right <= width, name
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []


def test_the_trust_strip_leads_to_the_row_that_is_off(browser: Any, page: str) -> None:
    show(browser, page, 1280, "light")
    browser.execute_script("document.querySelector('.trust a[href=\"#links-off\"]').click()")
    seen = """
        const row = document.getElementById("links-off").getBoundingClientRect();
        return row.height > 0 && row.top >= 0 && row.bottom <= innerHeight;
    """
    WebDriverWait(browser, 20).until(lambda _: browser.execute_script(seen))


def test_the_band_of_many_changes_is_filled(browser: Any, page: str) -> None:
    show(browser, page, 1280, "light")
    fills = browser.execute_script(
        "return [...document.querySelectorAll('#links-rates-0 .fills path')].map((path) => "
        "[getComputedStyle(path).fill, Number(getComputedStyle(path).fillOpacity)])"
    )
    assert len(fills) == 2
    for colour, opacity in fills:
        assert colour == "rgb(0, 114, 178)"
        assert 0 < opacity < 1
