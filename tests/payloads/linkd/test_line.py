"""What the line takes on, before anything is touched; and what tells it when to wake."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from payloads.linkd import line
from payloads.linkd.errors import LinkdError, RefusedError
from payloads.linkd.line import MAX_RATE_MBIT, MAX_SUM_MBIT, check, take_away, timing_of
from payloads.linkd.line_process import Lateness
from payloads.linkd.line_taps import Filters, tap_name
from payloads.linkd.plan import Interface, Link

LINK = Link("orin", "10.84.0.2", 7070, 7071, 8.0, 4.0)
INTERFACE = Interface("eth0", 123_456, 1500)


def test_rates_up_to_the_limits_are_taken_and_others_name_the_limit() -> None:
    check([replace(LINK, downlink_mbit=MAX_RATE_MBIT, uplink_mbit=None)])
    with pytest.raises(RefusedError, match=f"orin: uplink .* {MAX_RATE_MBIT:g} Mbit/s on one link"):
        check([replace(LINK, uplink_mbit=MAX_RATE_MBIT * 1.01)])
    count = int(MAX_SUM_MBIT / MAX_RATE_MBIT)
    full = [
        replace(LINK, device=f"d{n}", downlink_mbit=MAX_RATE_MBIT, uplink_mbit=None) for n in range(count)
    ]
    check(full)
    with pytest.raises(RefusedError, match=f"{MAX_SUM_MBIT:g} Mbit/s in sum"):
        check([*full, LINK])


def test_a_link_becomes_a_timing_in_bytes_and_seconds() -> None:
    link = replace(LINK, delay_ms=5.0, jitter_ms=2.0, loss_percent=3.0, uplink_mbit=None)
    timing = timing_of(link, "downlink", 1500)
    assert timing is not None
    assert timing[0] == 1e6
    assert timing[2:] == pytest.approx((0.005, 0.002, 0.03))
    # The longest message that an MoE layer sends fits.
    assert timing.limit_bytes > 4 << 20
    assert json.loads(json.dumps(timing)) == list(timing)
    assert timing_of(link, "uplink", 1500) is None


def test_only_directions_with_a_rate_are_led_through_the_line() -> None:
    down, up = replace(LINK, uplink_mbit=None), replace(LINK, downlink_mbit=None)
    assert Filters(INTERFACE, [down]).directions == ("downlink",)
    assert Filters(INTERFACE, [up]).directions == ("uplink",)
    assert Filters(INTERFACE, [down, LINK]).directions == ("downlink", "uplink")


def test_names_of_interfaces_fit_and_differ() -> None:
    names = {tap_name(INTERFACE, direction) for direction in ("downlink", "uplink")}
    assert len(names) == 2
    assert all(len(name) <= 15 for name in names)


def test_taking_away_is_harmless_where_nothing_is_and_touches_nothing_of_others() -> None:
    take_away({"taps": [tap_name(INTERFACE, "downlink")]})
    with pytest.raises(LinkdError, match="left alone"):
        take_away({"taps": ["eth0"]})


def test_lateness_is_learned_for_short_and_long_sleeps_and_disturbances_are_cut() -> None:
    lateness = Lateness()
    assert lateness.of(1.0) == lateness.of(1e-4) == 0.0
    for _ in range(100):
        lateness.learn(5e-4, 50e-6)
        lateness.learn(1.0, 150e-6)
    assert lateness.of(1e-4) == pytest.approx(50e-6, rel=0.01)
    assert lateness.of(1.0) == pytest.approx(150e-6, rel=0.01)
    lateness.learn(1.0, 10.0)
    assert lateness.of(1.0) < 160e-6
    for _ in range(200):
        lateness.learn(5e-4, -1.0)
    assert lateness.of(1e-4) == pytest.approx(0.0, abs=1e-6)


def test_an_interface_that_is_no_ethernet_takes_no_line(monkeypatch) -> None:
    monkeypatch.setattr(line, "why_not", lambda: None)
    assert line.usable(Interface("lo", 1, 65_536)) == "lo is no Ethernet interface"
    with pytest.raises(RefusedError, match="cannot run: lo is no Ethernet interface"):
        line.needed(Interface("lo", 1, 65_536), [LINK])
    assert "no-such-one" in str(line.usable(Interface("no-such-one", 2, 1500)))


def test_a_process_whose_linkd_was_killed_before_it_said_a_word_ends_in_silence() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        ours.close()
        command = [sys.executable, "-m", "payloads.linkd.line_process", "0", str(theirs.fileno())]
        done = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
