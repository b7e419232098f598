"""What all tests share: how hypothesis judges, and one headless browser."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings

# The machine may be busy: no property is judged by the clock. And the same examples every time, so that a change is not
# refused for what a new one finds in code that it does not touch; TESTBED_EXPLORE=1 looks for new ones.
# TESTBED_EXAMPLES is how many are tried of each: what is run once more under another Python tries fewer.
settings.register_profile(
    "testbed",
    deadline=None,
    max_examples=int(os.environ.get("TESTBED_EXAMPLES", 100)),
    derandomize="TESTBED_EXPLORE" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("testbed")

LONGEST_ID = 60


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a case with a long text by how it begins: some are a hundred thousand characters."""
    if isinstance(val, (str, bytes)) and len(val) > LONGEST_ID:
        return f"{val[:20]!r}...{len(val)}"
    return None


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


# What users may have set for their own lab, and what makes a terminal of every output.
USERS_SETTINGS = (
    "TESTBED_DEBUG",
    "TESTBED_HOME",
    "TESTBED_INVENTORY",
    "TESTBED_OWNER",
    "TESTBED_RESULTS",
    "FORCE_COLOR",
)


@pytest.fixture(scope="session", autouse=True)
def own_data_and_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the authorities of the tests' labs out of the user's folder, and the user's settings out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        for name in USERS_SETTINGS:
            patch.delenv(name, raising=False)
        # No proxy leads to what tests serve on loopback.
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, "127.0.0.1,localhost", prepend=",")
        yield


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """Let Ctrl-C do what it does: tests send it, and a script's shell lets what it starts with & ignore it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def old_python() -> Callable[[str], str]:
    """Return what finds an interpreter of a board's version, such as 3.8; the test is skipped without one."""

    from testbed.emulation.pythons import find_python

    def find(version: str) -> str:
        found = find_python(version)
        if found is None:
            pytest.skip(f"there is no Python {version} here")
        return str(Path(found.prefix) / found.program)

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
