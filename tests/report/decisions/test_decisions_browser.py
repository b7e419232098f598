"""The page of many policies in Chromium: what only a browser can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from testbed.report import write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(many_run: Path) -> str:
    return write_report(many_run).resolve().as_uri()


def show(browser: Any, page: str, width: int, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page)


def pick(browser: Any, name: str, axis: int, option: int) -> None:
    browser.execute_script(
        "document.querySelectorAll(`#${arguments[0]} fieldset`)[arguments[1]]"
        ".querySelectorAll('input')[arguments[2]].click()",
        name,
        axis,
        option,
    )


def seen(browser: Any, name: str) -> list[list[Any]]:
    """Return the figures of a pick that are seen: their names, and how many traces are drawn in each."""
    return list(
        browser.execute_script(
            "return [...document.querySelectorAll(`#${arguments[0]} .plot`)].filter((box) => box.clientWidth)"
            ".map((box) => [box.id, box.querySelectorAll('.trace, .hm, .heatmaplayer image').length])",
            name,
        )
    )


def test_nine_policies_answer_without_scrolling(browser: Any, page: str) -> None:
    browser.get_log("browser")
    show(browser, page, 1280)
    assert browser.get_log("browser") == []
    bottoms = browser.execute_script(
        "return ['h1', '.trust', '.forest', '#latency-quality'].map("
        "(name) => document.querySelector(name).getBoundingClientRect().bottom)"
    )
    assert max(bottoms) < 800
    rows = browser.execute_script("return document.querySelector('.forest').tBodies[0].rows.length")
    assert rows == 9


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_page_or_cut_off(browser: Any, page: str, width: int) -> None:
    show(browser, page, width, "dark")
    pick(browser, "causes", 1, 1)
    pick(browser, "pareto", 1, 1)
    pick(browser, "pareto", 0, 4)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
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


def test_one_pane_is_seen_and_it_is_that_of_the_options(browser: Any, page: str) -> None:
    show(browser, page, 1280)
    assert [name for name, _ in seen(browser, "pareto")] == ["latency-quality"]
    pick(browser, "pareto", 0, 2)
    pick(browser, "pareto", 1, 3)
    found = seen(browser, "pareto")
    assert [name for name, _ in found] == ["latency-quality-2-3"]
    assert found[0][1] > 0
    pick(browser, "dropped-layers", 0, 2)
    pick(browser, "dropped-layers", 2, 1)
    found = seen(browser, "dropped-layers")
    assert len(found) == 7
    assert all(name.startswith("dropped-2-0-1-") and traces for name, traces in found)
    pick(browser, "causes", 1, 1)
    assert [name for name, _ in seen(browser, "causes")] == ["parts-share"]


def test_what_was_picked_in_the_light_is_right_in_the_dark(browser: Any, page: str) -> None:
    """A figure that was drawn, hidden, and is picked again after a change of colours has the new ones."""
    show(browser, page, 1280, "light")
    colour = "return getComputedStyle(document.querySelector('#parts .xtick text')).fill"
    light = browser.execute_script(colour)
    pick(browser, "causes", 1, 1)
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    pick(browser, "causes", 1, 0)
    assert browser.execute_script(colour) != light


def test_picks_are_reached_by_the_keyboard(browser: Any, page: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser, page, 1280)
    first = browser.find_element(By.CSS_SELECTOR, "#causes fieldset[data-axis='1'] input")
    first.send_keys(Keys.ARROW_RIGHT)
    assert [name for name, _ in seen(browser, "causes")] == ["parts-share"]


def test_many_policies_print_within_the_paper(browser: Any, page: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    show(browser, page, 1280, "dark")
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    metrics = {"width": 700, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    width = "return document.documentElement.scrollWidth"
    WebDriverWait(browser, 20).until(lambda _: browser.execute_script(width) <= 700)
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
