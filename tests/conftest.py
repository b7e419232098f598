"""What all tests share: how hypothesis judges, and one headless browser."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The machine may be busy: no property is judged by the clock. And the same examples every time, so that a change is not
# refused for what a new one finds in code that it does not touch; TESTBED_EXPLORE=1 looks for new ones.
settings.register_profile(
    "testbed",
    deadline=None,
    derandomize="TESTBED_EXPLORE" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("testbed")

CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


@pytest.fixture(scope="session", autouse=True)
def own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the authorities of the tests' labs out of the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def old_python() -> Callable[[str], str]:
    """Return what finds an interpreter of a board's version, such as 3.8; the test is skipped without one."""

    def find(version: str) -> str:
        managed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        for candidate in (*map(str, reversed(managed)), shutil.which(f"python{version}")):
            # A version manager's stand-in is on the path for versions that it then refuses to run.
            if (
                candidate
                and subprocess.run([candidate, "-V"], capture_output=True, check=False).returncode == 0
            ):
                return candidate
        pytest.skip(f"there is no Python {version} here")

    return find


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, driven by selenium, with its console recorded."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium (or google-chrome) and its driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*CHROMIUM_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    opened.set_page_load_timeout(90)
    yield opened
    opened.quit()


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A program that a test runs in this process may take over Ctrl-C; the next test is to have it back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)
