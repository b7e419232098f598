"""Full load: streams with bounds, in a process that ends with its parent."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.linkd.errors import LinkdError
from payloads.linkd.links import Link
from payloads.linkd.load import MAX_SECONDS, Load, LoadProcess, serve_load, share_of_rates
from tests.ports import kept_port

ROOT = Path(__file__).parents[3]
#: On loopback nothing is shaped; a low rate keeps what may be under way small.
LINK = Link("board", "127.0.0.1", 7070, 7071, 5.0, 5.0)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text(secrets.token_hex(32))
    return path


@pytest.fixture
def responder(key_file: Path, tmp_path: Path, free_port: int) -> Iterator[Link]:
    ready = tmp_path / "ready"
    listen = ["respond", "--listen", f"127.0.0.1:{free_port}", "--key-file", str(key_file)]
    process = subprocess.Popen(
        [sys.executable, "-m", "payloads.linkd", *listen],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TESTBED_READY": str(ready)},
    )
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield replace(LINK, probe_port=free_port)
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def free_port() -> Iterator[int]:
    with kept_port() as kept:
        yield kept.getsockname()[1]


@pytest.mark.unhurried
def test_a_load_runs_both_ways_and_ends_when_it_is_told(
    responder: Link, key_file: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with LoadProcess([responder], key_file, 30) as load:
        deadline = time.monotonic() + 20
        while min((counts := load.counts()[1]["board"]).values()) < 1 << 16:
            assert time.monotonic() < deadline, counts
            time.sleep(0.05)
        load.mark()
        while not load.share() > 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with pytest.raises((LinkdError, ValueError)):
        load.counts()


def test_a_load_ends_by_itself_and_says_what_arrived(responder: Link, key_file: Path) -> None:
    lines: list[str] = []
    load = Load([responder], bytes.fromhex(key_file.read_text()), 1.5)
    serve_load(load, False, 0, lines.append)
    first, last = (json.loads(line) for line in lines)
    assert last["t_s"] > first["t_s"]
    assert set(last["bytes"]["board"]) == {"downlink", "uplink"}
    assert all(last["bytes"]["board"][way] > first["bytes"]["board"][way] for way in ("downlink", "uplink"))


@pytest.mark.unhurried
def test_a_load_ends_with_its_parent(responder: Link, key_file: Path) -> None:
    """The parent's end closes the child's standard input."""
    read_end, write_end = os.pipe()
    load = Load([responder], bytes.fromhex(key_file.read_text()), 60)
    thread = threading.Thread(target=serve_load, args=(load, True, read_end, lambda _line: None))
    thread.start()
    os.close(write_end)
    thread.join(20)
    os.close(read_end)
    assert not thread.is_alive()


def test_a_responder_that_is_not_there_is_said(key_file: Path, free_port: int, monkeypatch: Any) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(LinkdError, match="no probe responder at board"):
        LoadProcess([replace(LINK, probe_port=free_port)], key_file, 5)


@pytest.mark.parametrize("seconds", [0.0, -1.0, MAX_SECONDS + 1, float("nan")])
def test_a_load_has_an_end(seconds: float) -> None:
    with pytest.raises(LinkdError, match="lasts"):
        Load([LINK], bytes(32), seconds)


@given(st.floats(0.1, 200), st.floats(0.1, 200), st.floats(0.1, 60), st.floats(0, 1), st.floats(0, 1))
def test_the_share_is_that_of_the_least_full_direction(
    down: float, up: float, seconds: float, down_share: float, up_share: float
) -> None:
    link = replace(LINK, downlink_mbit=down, uplink_mbit=up)
    came = {
        "downlink": round(down * 1e6 / 8 * 0.95 * seconds * down_share),
        "uplink": round(up * 1e6 / 8 * 0.95 * seconds * up_share),
    }
    before = {"board": {"downlink": 7, "uplink": 9}}
    after = {"board": {"downlink": 7 + came["downlink"], "uplink": 9 + came["uplink"]}}
    share = share_of_rates([link], before, after, seconds, 0.95)
    assert share == pytest.approx(min(down_share, up_share), abs=1e-3)


def test_a_direction_without_a_rate_has_no_share() -> None:
    link = replace(LINK, uplink_mbit=None)
    before, after = {"board": {"downlink": 0, "uplink": 0}}, {"board": {"downlink": 625_000, "uplink": 0}}
    assert share_of_rates([link], before, after, 1.0, 1.0) == pytest.approx(1.0)
