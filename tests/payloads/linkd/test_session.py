"""What the daemon answers and does on time: a kernel that only remembers, and a clock that the test sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from payloads.linkd.channel import Channel, Rule
from payloads.linkd.errors import RefusedError
from payloads.linkd.pacing import Pacer
from payloads.linkd.plan import Leaf
from payloads.linkd.session import Session
from payloads.linkd.shaper import Shaper
from payloads.linkd.state import StateFile

LINKS = [
    {"device": name, "address": f"10.0.0.{n}", "port": 7070, "downlink_mbit": 8, "uplink_mbit": 4}
    for n, name in enumerate("ab", start=2)
]
PLACES = [{key: link[key] for key in ("device", "address", "port")} for link in LINKS]


class Lab:
    """A session whose clock is set by the test."""

    def __init__(self, kernel: Any, folder: Path, **options: Any) -> None:
        self.now = 100.0
        self.kernel = kernel
        self.state_path = folder / "state.json"
        shaper = options.pop("shaper", None) or Shaper(kernel, StateFile(self.state_path), leaf="tbf")
        self.session = Session(
            shaper, options.pop("sample_hz", 0), clock=lambda: self.now, wall=lambda: 1e9 + self.now
        )

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        line = json.dumps({"op": op, **arguments}).encode()
        return json.loads(b"".join(self.session.handle(line).chunks))

    def go_to(self, now: float) -> None:
        """Let time pass as the daemon's loop does: it wakes at every deadline, or late where it was busy."""
        while (due := self.session.deadline_s()) is not None and due <= now:
            self.now = max(self.now, due)
            self.session.tick()
        self.now = now

    def wake_late_at(self, now: float) -> None:
        self.now = now
        self.session.tick()

    def rates(self) -> list[tuple[float, float]]:
        """What the kernel was told, in Mbit/s: downlink and uplink of each device."""
        leaves = {
            (i.owner, i.on): i.rate_bytes_per_s * 8 / 1e6 for i in self.kernel.there if isinstance(i, Leaf)
        }
        return [(leaves[name, "eth0"], leaves[name, "tblinkd3"]) for name in "ab"]

    def changes(self) -> list[list[Any]]:
        return self.ask("history")["changes"]


@pytest.fixture
def lab(fake_kernel, tmp_path) -> Lab:
    return Lab(fake_kernel, tmp_path)


@pytest.fixture
def channel_file(tmp_path) -> str:
    """Three blocks of unequal length; at equal shares a's downlink has 10, 20 and 40 Mbit/s."""
    channel = Channel(
        Rule("linear"),
        ("a", "b"),
        (0.5, 0.5),
        (0.5, 0.5),
        (0.0, 1.0, 3.0),
        4.0,
        ((20, 4), (40, 4), (80, 4)),
        ((2, 6), (2, 8), (2, 10)),
    )
    path = tmp_path / "channel.json"
    path.write_text(json.dumps(channel.as_json()))
    return str(path)


def test_requests(lab) -> None:
    assert lab.ask("ping")["ok"]
    assert lab.ask("set", links=LINKS)["ok"]
    assert lab.ask("rerate", rates={"a": {"downlink_mbit": 3}})["changed"] == 1
    row = lab.ask("show")["links"][0]
    assert row["downlink_mbit"] == 3
    assert row["backends"] == {"downlink": "bs-htb-tbf", "uplink": "bs-htb-tbf"}
    assert row["shares"] == {"downlink": 0.5, "uplink": 0.5}
    for wrong, status in (
        ({"op": "set"}, 2),
        ({"op": "dance"}, 1),
        ({"op": "rerate", "rates": 3}, 2),
        ({"op": "set", "links": LINKS, "channel": 3}, 2),
        ({"op": "set", "links": PLACES}, 2),
        ({"op": "set", "links": LINKS, "channel": "/nowhere/channel.json"}, 2),
        ({"op": "allocate", "shares": {"a": 0.9}}, 2),
        ({"op": "allocate", "shares": {"c": 0.1}}, 2),
        ({"op": "allocate", "shares": {"a": 0.1}, "why": 3}, 2),
        ({"op": "set", "links": [{**LINKS[0], "downlink_mbit": 10**400}]}, 2),
        ({"op": "set", "links": [{**LINKS[0], "delay_ms": float("nan")}]}, 2),
        ({"op": "set", "links": LINKS, "channel": "~nobody-of-that-name/channel.json"}, 2),
    ):
        answer = lab.ask(**wrong)
        assert not answer["ok"]
        assert answer["exit_status"] == status
        assert answer["error"]
        assert len(answer["error"].splitlines()) == 1
    for line in (b"", b"{", b"3", b"\xff", b"[" * 200_000):
        (chunk,) = lab.session.handle(line).chunks
        assert not json.loads(chunk)["ok"]
    assert lab.rates() == [(3, 4), (8, 4)]


def rates_by(event: dict[str, Any], rule: Rule) -> dict[str, dict[str, float]]:
    """The rates that follow from what an event says beside them."""
    return {
        name: {
            f"{way}_mbit": rule.rate_mbit(state, share)
            for way, state, share in zip(("downlink", "uplink"), states, event["shares"][name])
        }
        for name, states in event["states"].items()
    }


def test_whoever_watches_knows_what_other_shares_would_give(lab, channel_file) -> None:
    events: list[dict[str, Any]] = []
    lab.ask("set", links=LINKS)
    first = lab.session.event_now()
    lab.session.publish = events.append
    lab.ask("allocate", shares={"a": 0.75, "b": 0.25})
    lab.ask("rerate", rates={"b": {"uplink_mbit": 7}})
    lab.ask("set", links=PLACES, channel=channel_file)
    lab.ask("play")
    lab.go_to(102.0)
    lab.ask("allocate", shares={"a": 0.125})
    assert [event["cause"] for event in events] == ["allocate", "rerate", "set", "block", "block", "allocate"]
    rule = Rule.from_json(first["rule"])
    for event in [first, *events]:
        rule = Rule.from_json(event["rule"]) if "rule" in event else rule
        for name, rates in rates_by(event, rule).items():
            assert event["rates"][name] == pytest.approx(rates)
    # A rule is said again only where it is another one; a watcher who comes late is told all the same.
    assert ["rule" in event for event in events] == [True, False, False, True, False, False]
    assert lab.session.event_now()["rule"] == events[3]["rule"]
    shown = lab.ask("show")
    assert shown["rule"] == events[3]["rule"]
    assert shown["links"][0]["states"] == {"downlink": 40, "uplink": 2}
    assert shown["links"][0]["shares"] == {"downlink": 0.125, "uplink": 0.125}


def test_a_direction_that_is_left_alone_has_no_state(lab) -> None:
    lab.ask("set", links=[{**LINKS[0], "uplink_mbit": None}, LINKS[1]])
    assert lab.session.event_now()["states"] == {"a": (16, None), "b": (16, 8)}


def test_nothing_is_done_to_links_that_are_not_set(lab) -> None:
    for op, more in (("play", {}), ("hold", {}), ("rerate", {"rates": {}}), ("allocate", {"shares": {}})):
        answer = lab.ask(op, **more)
        assert (answer["ok"], answer["exit_status"]) == (False, 2)
        assert "no links are set" in answer["error"]
    assert lab.changes() == []


def test_a_kernel_that_does_not_answer_is_told_to_the_client(lab, monkeypatch) -> None:
    lab.ask("set", links=LINKS)

    def silent(_rated: Any) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(lab.kernel, "change", silent)
    answer = lab.ask("rerate", rates={"a": {"downlink_mbit": 3}})
    assert answer == {"ok": False, "error": "the kernel did not answer 'rerate': timed out", "exit_status": 1}
    assert not lab.state_path.exists()
    assert lab.ask("show")["links"] == []


def test_a_channel_is_held_at_its_mean_until_it_is_played(lab, channel_file) -> None:
    answer = lab.ask("set", links=PLACES, channel=channel_file)
    assert answer["channel"] == {"blocks": 3, "duration_s": 4.0}
    assert not answer["playing"]
    assert lab.rates() == [((10 + 2 * 20 + 40) / 4, 1), (2, (3 + 2 * 4 + 5) / 4)]
    lab.go_to(200.0)
    assert [change[1] for change in lab.changes()] == ["set"]


def test_every_block_comes_at_its_time_again_and_again(lab, channel_file) -> None:
    lab.ask("set", links=PLACES, channel=channel_file)
    lab.go_to(107.5)
    assert lab.ask("play")["playing"]
    assert lab.rates() == [(10, 1), (2, 3)]
    lab.go_to(107.5 + 8.5)
    told = [(round(change[0] - 1e9 - 107.5, 3), change[1], change[3][0]) for change in lab.changes()]
    assert told[1:] == [
        (0, "block", 10), (1, "block", 20), (3, "block", 40), (4, "block", 10), (5, "block", 20),
        (7, "block", 40), (8, "block", 10),
    ]  # fmt: skip
    assert lab.rates() == [(10, 1), (2, 3)]
    assert lab.ask("show")["playing"]


def test_blocks_that_were_missed_are_left_out_and_the_next_is_on_time(lab, channel_file) -> None:
    lab.ask("set", links=PLACES, channel=channel_file)
    lab.ask("play")
    lab.wake_late_at(100.0 + 3.4)
    assert lab.rates()[0] == (40, 1)
    lab.go_to(104.1)
    told = [(round(change[0] - 1e9 - 100, 3), change[3][0]) for change in lab.changes()]
    assert told[1:] == [(0, 10), (3.4, 40), (4, 10)]


def test_hold_keeps_what_is_in_force(lab, channel_file) -> None:
    lab.ask("set", links=PLACES, channel=channel_file)
    lab.ask("play")
    lab.go_to(101.5)
    assert lab.ask("hold")["was_playing"]
    lab.go_to(150.0)
    assert lab.rates()[0] == (20, 1)
    assert [change[1] for change in lab.changes()] == ["set", "block", "block", "hold"]
    assert not lab.ask("hold")["was_playing"]


def test_rates_of_a_channel_that_plays_are_not_overruled(lab, channel_file) -> None:
    lab.ask("set", links=PLACES, channel=channel_file)
    lab.ask("play")
    answer = lab.ask("rerate", rates={"a": {"downlink_mbit": 3}})
    assert (answer["ok"], answer["exit_status"]) == (False, 2)
    assert "hold first" in answer["error"]
    lab.ask("hold")
    assert lab.ask("rerate", rates={"a": {"downlink_mbit": 3}})["changed"] == 1
    assert lab.rates() == [(3, 1), (2, 3)]
    lab.ask("play")
    assert lab.rates() == [(10, 1), (2, 3)]


def test_links_of_fixed_rates_have_nothing_to_play(lab) -> None:
    lab.ask("set", links=LINKS)
    answer = lab.ask("play")
    assert answer["ok"]
    assert not answer["playing"]
    assert "no channel" in answer["note"]


def test_shares_hold_at_once_and_for_the_blocks_to_come(lab, channel_file) -> None:
    lab.ask("set", links=PLACES, channel=channel_file)
    lab.ask("play")
    answer = lab.ask("allocate", shares={"a": {"downlink": 0.25}, "b": {"downlink": 0.75}}, why="layer 3")
    assert answer["changed"] == 2
    assert answer["rates"]["a"] == {"downlink_mbit": 5, "uplink_mbit": 1}
    lab.go_to(101.5)
    assert lab.rates() == [(10, 1), (3, 4)]
    assert [(change[1], change[2]) for change in lab.changes()][-2:] == [
        ("allocate", "layer 3"),
        ("block", None),
    ]


def test_fixed_links_share_what_they_have_together(lab) -> None:
    lab.ask("set", links=LINKS)
    lab.ask("allocate", shares={"a": 0.25, "b": {"downlink": 0.75}})
    assert lab.rates() == [(4, 2), (12, 4)]
    # A base rate is the one at an equal share.
    lab.ask("rerate", rates={"a": {"downlink_mbit": 20}})
    assert lab.rates() == [(10, 2), (12, 4)]
    assert lab.ask("show")["links"][0]["shares"] == {"downlink": 0.25, "uplink": 0.25}
    lab.ask("allocate", shares={"a": 0.0})
    assert lab.rates()[0] == (0.01, 0.01)


def test_a_direction_that_is_left_alone_stays_alone(lab) -> None:
    lab.ask("set", links=[{**LINKS[0], "uplink_mbit": None}, LINKS[1]])
    assert not lab.ask("rerate", rates={"a": {"uplink_mbit": 2}})["ok"]
    assert not lab.ask("allocate", shares={"a": {"uplink": 0.2}})["ok"]
    assert lab.ask("allocate", shares={"a": 0.25})["changed"] == 1
    assert lab.changes()[-1][3:] == [[4, 8], [None, 4]]


def test_a_new_set_starts_a_new_history(lab, channel_file) -> None:
    lab.ask("set", links=PLACES, channel=channel_file)
    lab.ask("play")
    lab.go_to(103.5)
    lab.ask("set", links=LINKS[:1])
    lab.go_to(110.0)
    history = lab.ask("history")
    assert history["devices"] == ["a"]
    assert [change[1:] for change in history["changes"]] == [["set", None, [8], [4]]]


def test_counters_are_sampled_while_links_are_set(fake_kernel, tmp_path, monkeypatch) -> None:
    lab = Lab(fake_kernel, tmp_path, sample_hz=5)
    lab.go_to(110.0)
    lab.ask("set", links=LINKS)
    lab.go_to(111.05)
    lab.ask("clear")
    lab.go_to(120.0)
    history = lab.ask("history")
    assert [round(sample[0] - 1e9 - 110, 6) for sample in history["samples"]] == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert all(len(column) == 2 for sample in history["samples"] for column in sample[1:])


def test_what_fails_on_a_timer_is_told_in_the_history(lab, channel_file, monkeypatch) -> None:
    lab.ask("set", links=PLACES, channel=channel_file)
    lab.ask("play")

    def gone(_rated: Any) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr(lab.kernel, "change", gone)
    lab.go_to(110.0)
    assert "No such device" in lab.ask("history")["failed"]
    assert lab.ask("show")["links"] == []
    assert lab.session.deadline_s() is None


def test_a_channel_that_goes_beyond_the_line_stops_and_is_told_at_the_next_change(
    lab, channel_file, monkeypatch
) -> None:
    """Shares may be taken on in one block, and be too much in a later one."""
    lab.ask("set", links=PLACES, channel=channel_file)
    lab.ask("play")
    change = lab.kernel.change

    def up_to_50(rated: Any) -> None:
        if any(isinstance(item, Leaf) and item.rate_bytes_per_s > 50e6 / 8 for item in rated):
            raise RefusedError("refused: too much")
        change(rated)

    monkeypatch.setattr(lab.kernel, "change", up_to_50)
    assert lab.ask("allocate", shares={"a": {"downlink": 0.9}, "b": {"downlink": 0.1}})["ok"]
    lab.go_to(103.5)
    assert lab.ask("history")["failed"] == "refused: too much"
    for op, more in (("allocate", {"shares": {"a": 0.1}}), ("rerate", {"rates": {}}), ("play", {})):
        answer = lab.ask(op, **more)
        assert (answer["ok"], answer["exit_status"]) == (False, 1)
        assert answer["error"] == f"{op}: the links are not what was asked: refused: too much"
    assert lab.ask("hold")["ok"]
    assert lab.ask("set", links=LINKS)["ok"]
    assert lab.ask("rerate", rates={"a": {"downlink_mbit": 3}})["ok"]


def test_watchers_are_told_of_every_change(fake_kernel, tmp_path, channel_file) -> None:
    lab = Lab(fake_kernel, tmp_path, sample_hz=2)
    events: list[dict[str, Any]] = []
    lab.session.publish = events.append
    lab.ask("set", links=PLACES, channel=channel_file)
    lab.ask("play")
    lab.go_to(101.6)
    lab.ask("clear")
    rates = [event for event in events if event["event"] == "rates"]
    assert [event["cause"] for event in rates] == ["set", "block", "block", "clear"]
    assert rates[2]["rates"]["a"] == {"downlink_mbit": 20, "uplink_mbit": 1}
    assert rates[-1]["rates"] == {}
    assert len([event for event in events if event["event"] == "sample"]) == 4


def test_pacing_keeps_the_rates_for_others(fake_kernel, tmp_path, channel_file) -> None:
    lab = Lab(fake_kernel, tmp_path, shaper=Pacer(), sample_hz=5)
    answer = lab.ask("set", links=PLACES, channel=channel_file)
    assert answer["backend"] == "socket-pacing"
    assert answer["links"][0]["backends"] == {"downlink": "socket-pacing", "uplink": "socket-pacing"}
    lab.ask("play")
    lab.go_to(101.5)
    assert lab.ask("show")["links"][0]["downlink_mbit"] == 20
    assert lab.ask("history")["samples"] == []
    assert len(lab.changes()) == 3
    assert fake_kernel.log == []
    refused = lab.ask("set", links=[{**LINKS[0], "delay_ms": 5}])
    assert (refused["ok"], refused["exit_status"]) == (False, 3)
    assert lab.ask("clear")["ok"]
