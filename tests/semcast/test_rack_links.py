"""Frames over links whose rates linkd tells: sockets and multicast keep to them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from payloads.semcast.multicast import Group, MulticastError, Sender
from payloads.semcast.receivers import Receivers
from payloads.semcast.spec import read_spec
from payloads.station.link_feed import LinkControlError
from payloads.wire.channel import Channel
from payloads.wire.pacing import SO_MAX_PACING_RATE
from tests.semcast.semcast_rack import (
    Rack,
    check_equals_play,
    nothing,
)


@dataclass
class Linkd:
    """A socket where somebody tells of a fast and a slow link, as linkd does to whoever watches."""

    path: Path
    watchers: list[socket.socket] = field(default_factory=list)

    def tell(self, weak_mbit: float, *before: dict) -> None:
        """Tell the one who came last of the rates, and of something else before."""
        rates = {
            "strong": {"downlink_mbit": 300.0, "uplink_mbit": 200.0},
            "weak": {"downlink_mbit": weak_mbit, "uplink_mbit": None},
        }
        said = [*before, {"event": "rates", "cause": "watch", "rates": rates}]
        self.watchers[-1].sendall("".join(json.dumps(one) + "\n" for one in said).encode())

    def serve(self, listener: socket.socket) -> None:
        while True:
            self.watchers.append(listener.accept()[0])
            if not self.watchers[-1].recv(100):
                return  # it is over
            self.tell(100.0, {"ok": True})


@pytest.fixture
def linkd(tmp_path: Path) -> Iterator[Linkd]:
    made = Linkd(tmp_path / "linkd.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(made.path))
        listener.listen()
        thread = threading.Thread(target=made.serve, args=(listener,))
        thread.start()
        yield made
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last:
            last.connect(str(made.path))
        thread.join()
        for watcher in made.watchers:
            watcher.close()


def test_multicast_keeps_to_the_slowest_link(
    rack: Rack, group: Group, linkd: Linkd, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    send = Sender.send

    def spied(self: Sender, *given) -> int:
        asked.append(given[-1])
        return send(self, *given)

    monkeypatch.setattr(Sender, "send", spied)
    spec = read_spec(rack.spec({"fusion": ["fusion"]}))
    rack.transmitter(group, links=linkd.path).trial(spec, "t001", nothing, nothing)
    assert set(asked) == {100.0}
    check_equals_play(rack, spec, "t001")


def test_a_frame_that_multicast_cannot_bring_in_time_fails_the_trial(
    rack: Rack, group: Group, linkd: Linkd
) -> None:
    spec = read_spec(rack.spec({"fusion": ["fusion"]}, deadline_s=1e-5))
    with pytest.raises(
        MulticastError, match=r"takes 4\.69e-05 s by multicast at 100 Mbit/s, and may take 1e-05"
    ):
        rack.transmitter(group, links=linkd.path).trial(spec, "t001", nothing, nothing)


def test_sockets_keep_to_the_links_rates_where_they_shape(rack: Rack, linkd: Linkd) -> None:
    transmitter = rack.transmitter(links=linkd.path, pacing=True)
    spec = read_spec(rack.spec({"fusion": ["fusion"]}))
    seen = []

    def look(*_: object) -> None:
        seen.append([rate_of(channel) for channel in transmitter._receivers.channels.values()])

    transmitter.trial(spec, "t001", look, nothing)
    strong, weak = seen[0]
    assert strong == pytest.approx(3 * weak, rel=1e-6)
    assert weak == pytest.approx(100e6 / 8, rel=0.1)
    assert [rate_of(channel) for channel in transmitter._receivers.channels.values()] == [None, None]


@pytest.mark.parametrize("multicast", [False, True])
def test_a_frame_goes_at_the_rates_that_were_told_before_it(
    rack: Rack, group: Group, linkd: Linkd, monkeypatch: pytest.MonkeyPatch, multicast: bool
) -> None:
    transmitter = rack.transmitter(group if multicast else None, links=linkd.path, pacing=True)
    spec = read_spec(rack.spec({"fusion": ["fusion"]}))
    seen = []
    ask = Receivers.ask

    def look(self: Receivers, messages, *given) -> dict:
        seen.append(rate_of(self.channels["weak"]))
        return ask(self, messages, *given)

    def change(done: int, *_: object) -> None:
        if done == 3:
            seen.clear()
            linkd.tell(50.0)

    monkeypatch.setattr(Receivers, "ask", look)
    transmitter.trial(spec, "t001", change, nothing)
    assert seen[0] == pytest.approx(50e6 / 8, rel=0.1)
    assert set(seen) == {seen[0]}


def rate_of(channel: Channel) -> int | None:
    """What the kernel was told, in bytes a second; None for no limit."""
    told = channel.connection.socket.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8)
    rate = int.from_bytes(told, "little")
    return None if rate == (1 << 64) - 1 else rate


def test_links_that_nobody_tells_of_fail_the_trial(rack: Rack, group: Group) -> None:
    spec = read_spec(rack.spec({"fusion": ["fusion"]}))
    with pytest.raises(LinkControlError, match="the links cannot be followed"):
        rack.transmitter(group, links=rack.home / "nobody.sock").trial(spec, "t001", nothing, nothing)
