"""The report in Chromium, headless: what only a browser can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.support.ui import WebDriverWait

from testbed.report import write_report

WIDTHS = (1280, 390)

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(whole_run: Path) -> str:
    return write_report(whole_run).resolve().as_uri()


def show(browser: Any, page: str, width: int, scheme: str = "light") -> None:
    phone = width < 600
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page)


def test_the_browser_has_nothing_to_complain_about(browser: Any, page: str) -> None:
    browser.get_log("browser")
    show(browser, page, 1280)
    assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_all_figures_are_drawn_within_the_page(browser: Any, page: str, width: int) -> None:
    show(browser, page, width)
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].filter((box) => !box.closest('[hidden]')).map((box) => ["
        "box.id, box.querySelectorAll('.main-svg').length, "
        "box.querySelectorAll('.trace, .hm, .heatmaplayer image').length, box.getBoundingClientRect().right])"
    )
    assert len(drawn) == 14
    for name, images, traces, right in drawn:
        assert images > 0, name
        assert traces > 0, name
        assert right <= width, name
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_no_text_of_a_figure_is_cut_off(browser: Any, page: str, width: int) -> None:
    show(browser, page, width)
    cut = browser.execute_script(
        """
        const cut = [];
        for (const box of document.querySelectorAll(".plot")) {
          const frame = box.getBoundingClientRect();
          for (const text of box.querySelectorAll("text")) {
            const place = text.getBoundingClientRect();
            const outside = place.left < frame.left - 2 || place.right > frame.right + 2 ||
              place.bottom > frame.bottom + 2;
            if (place.width && outside) cut.push([box.id, text.textContent]);
          }
        }
        return cut;
        """
    )
    assert cut == []


def test_the_first_screen_answers_without_scrolling(browser: Any, page: str) -> None:
    show(browser, page, 1280)
    bottoms = browser.execute_script(
        "return ['h1', '.trust', '.forest'].map("
        "(name) => document.querySelector(name).getBoundingClientRect().bottom)"
    )
    assert max(bottoms) < 800


def test_dark_and_light_follow_the_system(browser: Any, page: str) -> None:
    def colours() -> list[str]:
        return list(
            browser.execute_script(
                "return [getComputedStyle(document.body).backgroundColor, "
                "getComputedStyle(document.querySelector('#parts .xtick text')).fill]"
            )
        )

    show(browser, page, 1280, "light")
    light = colours()
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    # The page learns of the change by an event, and draws its figures anew after that.
    changed = WebDriverWait(browser, 20)
    changed.until(lambda _: all(one != other for one, other in zip(light, colours(), strict=True)))


def test_a_table_is_sorted_by_its_header_and_copied_as_csv(browser: Any, page: str) -> None:
    show(browser, page, 1280)
    rows = "[...document.querySelectorAll('#serving tbody tr')]"
    column = f"return {rows}.map((row) => Number(row.cells[5].dataset.value))"
    header = "document.querySelectorAll('#serving th button')[5].click();"
    up = browser.execute_script(header + column)
    down = browser.execute_script(header + column)
    assert up == sorted(up)
    assert down == sorted(up, reverse=True)
    browser.execute_script(
        "window.copied = null;"
        "const writeText = async (text) => { window.copied = text; };"
        "Object.defineProperty(navigator, 'clipboard', {value: {writeText}});"
        "document.querySelector('[data-table=serving]').click();"
    )
    lines = browser.execute_script("return window.copied").splitlines()
    assert lines[0].startswith("metric,policy,scenario,n,trials,mean (ms)")
    assert len(lines) == 17
    assert float(lines[1].split(",")[5]) == down[0]


def test_a_link_of_the_trust_strip_opens_what_is_folded_away(browser: Any, page: str) -> None:
    show(browser, page, 1280)
    browser.execute_script("location.hash = '#links-table'")
    opened = "return document.getElementById('links-table').closest('details').open"
    WebDriverWait(browser, 20).until(lambda _: browser.execute_script(opened))


def test_it_prints_light_and_unfolded(browser: Any, page: str) -> None:
    show(browser, page, 1280, "dark")
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    metrics = {"width": 700, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert browser.execute_script("return document.querySelectorAll('details:not([open])').length") == 0
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)"
    width = "return document.documentElement.scrollWidth"
    WebDriverWait(browser, 20).until(lambda _: browser.execute_script(width) <= 700)
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert browser.execute_script("return document.querySelectorAll('details:not([open])').length") > 0
