"""What the daemon does when it is asked, and when time comes: one request or one timer after the other."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Optional, Union

from payloads.json_input import parse_json
from payloads.linkd.asked import Asked, ask
from payloads.linkd.channel import ChannelError, read_channel
from payloads.linkd.errors import LinkdError, LinksError
from payloads.linkd.history import History
from payloads.linkd.links import parse_links
from payloads.linkd.pacing import Pacer
from payloads.linkd.player import Player
from payloads.linkd.rule import Rule
from payloads.linkd.shaper import Shaper

__all__ = ["DEFAULT_SAMPLE_HZ", "MAX_SAMPLE_HZ", "Reply", "Session"]

DEFAULT_SAMPLE_HZ = 5.0
MAX_SAMPLE_HZ = 100.0
_LOOK_AFTER_LINE_S = 0.5
_OPS = "set, play, hold, rerate, allocate, clear, show, history, watch or ping"


@dataclass(frozen=True)
class Reply:
    """The answer to one request.

    Attributes:
        chunks: The line, in pieces.
        watches: Whether the client is to be told of what happens from now on.
    """

    chunks: Iterable[bytes]
    watches: bool = False


class Session:
    """The links that are set, the channel that is played over them, and the record of both.

    Args:
        shaper: Who gives the links their rates.
        sample_hz: How often counters are sampled while links are set; 0 for never.
        publish: Who is told of each event; None while nobody watches.
        clock: Monotonic seconds.
        wall: Seconds since 1970.
    """

    def __init__(
        self,
        shaper: Union[Shaper, Pacer],
        sample_hz: float = DEFAULT_SAMPLE_HZ,
        publish: Optional[Callable[[Dict[str, Any]], None]] = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.publish = publish
        self._shaper = shaper
        self._sample_s = 1 / sample_hz if sample_hz else None
        self._clock = clock
        self._wall = wall
        self._asked: Optional[Asked] = None
        self._player: Optional[Player] = None
        self._history = History(())
        self._rule_told: Optional[Rule] = None
        self._next_block_s: Optional[float] = None
        self._next_sample_s: Optional[float] = None
        self._next_look_s: Optional[float] = None

    def handle(self, line: bytes) -> Reply:
        """Carry out one request and return the answer.

        A request is an object with ``op``; what else it holds, and what is answered, stands in docs/links.md.
        """
        started = time.perf_counter()
        op, watches = None, False
        try:
            request = parse_json(line)
            op = request.get("op") if isinstance(request, dict) else None
            if op == "history":
                head = {"ok": True, **self._history.head(), **self._line(), "took_ms": _took_ms(started)}
                return Reply(self._history.chunks(head))
            answer, watches = self._carry_out(op, request), op == "watch"
        except ValueError as error:
            answer = {"ok": False, "error": f"a request is one line of JSON: {error}", "exit_status": 2}
        except LinkdError as error:
            answer = {"ok": False, "error": str(error), "exit_status": error.exit_status}
        except OSError as error:
            # A netlink call that failed or timed out: the client is told, instead of being hung up on.
            words = error.strerror or str(error)
            answer = {"ok": False, "error": f"the kernel did not answer {op!r}: {words}", "exit_status": 1}
        else:
            answer = {"ok": True, **answer, "took_ms": _took_ms(started)}
        if not answer["ok"]:
            self._look_whether_cleared()
        return Reply((json.dumps(answer).encode() + b"\n",), watches and answer["ok"])

    def _carry_out(self, op: Any, request: Dict[str, Any]) -> Dict[str, Any]:
        if op == "set":
            return self._set(request.get("links"), request.get("channel"))
        if op == "play":
            return self._play()
        if op == "hold":
            return self._hold()
        if op == "rerate":
            return self._rerate(request.get("rates"))
        if op == "allocate":
            return self._allocate(request.get("shares"), request.get("why"))
        if op == "clear":
            self._forget()
            return self._shaper.clear()
        if op == "show":
            return self._about(self._shaper.show())
        if op == "watch":
            return {"watching": True}
        if op == "ping":
            return {"pid": os.getpid()}
        raise LinkdError(f"a request has an op: {_OPS}")

    def deadline_s(self) -> Optional[float]:
        """Return when :meth:`tick` has to be called next, on the session's clock, or None."""
        times = (self._next_block_s, self._next_sample_s, self._next_look_s)
        return min((moment for moment in times if moment is not None), default=None)

    def tick(self) -> None:
        """Do what is due: a block of the channel, a sample, a look after the line.

        What fails here is printed and kept in the history, and does not end the daemon.
        """
        now = self._clock()
        try:
            if self._next_block_s is not None and now >= self._next_block_s:
                self._block(now)
            if self._next_sample_s is not None and now >= self._next_sample_s:
                self._sample(now)
            if self._next_look_s is not None and now >= self._next_look_s:
                self._look_after_line(now)
        except (LinkdError, OSError) as error:
            self._failed(str(error))

    def event_now(self) -> Dict[str, Any]:
        """Return the event that a new watcher is told first: the rates in force."""
        return self._event(self._wall(), "watch", None)

    def _set(self, links: Any, channel_path: Any) -> Dict[str, Any]:
        if channel_path is None:
            asked = ask(parse_links(links))
        else:
            if not isinstance(channel_path, str):
                raise LinksError(f"channel: the path of a file was expected, not {channel_path!r}")
            parsed = parse_links(links, rates_given=False)
            try:
                asked = ask(parsed, read_channel(Path(channel_path).expanduser()))
            except (ChannelError, RuntimeError) as error:  # the latter where there is no such home folder
                raise LinksError(f"channel: {error}") from None
        answer = self._shaper.set(asked.links, asked.highest(), asked.varies)
        self._player = self._next_block_s = None
        self._asked = asked
        self._history = History([link.device for link in asked.links])
        now = self._clock()
        self._next_sample_s = None if self._sample_s is None else now
        self._next_look_s = None if self._shaper.line is None else now + _LOOK_AFTER_LINE_S
        self._keep("set", None)
        return self._about(answer)

    def _play(self) -> Dict[str, Any]:
        asked = self._links_set("play")
        if asked.channel is None:
            return {"playing": False, "note": "the links have fixed rates: there is no channel to play"}
        if self._shaper.line is not None:
            for block in range(len(asked.channel.t_s)):
                self._shaper.check(asked.at_block(block).links)
        self._player = Player(asked.channel, self._clock())
        self._apply(asked.at_block(self._player.block), "block", None)
        self._next_block_s = self._player.next_s(self._clock())
        return {"playing": True, "blocks": len(asked.channel.t_s), "duration_s": asked.channel.duration_s}

    def _hold(self) -> Dict[str, Any]:
        self._links_set("hold")
        was_playing = self._player is not None
        self._player = self._next_block_s = None
        if was_playing:
            self._keep("hold", None)
        return {"was_playing": was_playing}

    def _rerate(self, rates: Any) -> Dict[str, Any]:
        asked = self._links_set("rerate")
        if self._player is not None:
            raise LinksError("rates: a channel is playing and gives them: hold first")
        return {"changed": self._apply(asked.rerated(rates), "rerate", None)}

    def _allocate(self, shares: Any, why: Any) -> Dict[str, Any]:
        asked = self._links_set("allocate")
        if not isinstance(why, (str, type(None))):
            raise LinksError(f"why: a few words were expected, not {why!r}")
        changed = self._apply(asked.allocated(shares), "allocate", why)
        return {"changed": changed, "rates": self._rates()}

    def _block(self, now: float) -> None:
        assert self._player is not None and self._asked is not None  # noqa: PT018
        block = self._player.due(now)
        if block is not None:
            self._apply(self._asked.at_block(block), "block", None)
        self._next_block_s = self._player.next_s(self._clock())

    def _sample(self, now: float) -> None:
        assert self._next_sample_s is not None and self._sample_s is not None  # noqa: PT018
        # Moments that were missed are left out.
        late = int((now - self._next_sample_s) / self._sample_s)
        self._next_sample_s += (1 + late) * self._sample_s
        sample = self._shaper.sample(self._wall())
        if sample is None:
            self._next_sample_s = None
            return
        self._history.sample(sample)
        if self.publish is not None and self._asked is not None:
            devices = [link.device for link in self._asked.links]
            self.publish({"event": "sample", "devices": devices, **sample._asdict()})

    def _look_after_line(self, now: float) -> None:
        self._next_look_s = None if self._shaper.line is None else now + _LOOK_AFTER_LINE_S
        if not self._shaper.look_after_line():
            return
        unix_s = self._wall()
        print("the user-space line has died: the links are not what was asked until the next set", flush=True)
        self._history.about["line_died_unix_s"] = unix_s
        if self.publish is not None:
            self.publish({"event": "line", "unix_s": unix_s, "line": "died"})

    def _apply(self, asked: Asked, cause: str, why: Optional[str]) -> int:
        changed = self._shaper.rerate(asked.links)
        self._asked = asked
        self._keep(cause, why)
        return changed

    def _keep(self, cause: str, why: Optional[str]) -> None:
        assert self._asked is not None
        unix_s = self._wall()
        self._history.change(unix_s, cause, why, self._asked.links)
        if self.publish is not None:
            self.publish(self._event(unix_s, cause, why))

    def _event(self, unix_s: float, cause: str, why: Optional[str]) -> Dict[str, Any]:
        event = {"event": "rates", "unix_s": unix_s, "cause": cause, "why": why, "rates": self._rates()}
        asked = self._asked
        if asked is not None:
            event["states"] = asked.states()
            event["shares"] = {link.device: asked.shares[link.device] for link in asked.links}
            # A table is long, and what hardly ever changes need not be said with each block.
            if asked.rule is not self._rule_told or cause == "watch":
                event["rule"] = asked.rule.as_json()
            # Whoever has just come knows this rule, but perhaps not the one that others were told before.
            self._rule_told = None if cause == "watch" else asked.rule
        return event

    def _rates(self) -> Dict[str, Dict[str, Optional[float]]]:
        links = self._asked.links if self._asked is not None else ()
        return {
            link.device: {"downlink_mbit": link.downlink_mbit, "uplink_mbit": link.uplink_mbit}
            for link in links
        }

    def _about(self, answer: Dict[str, Any]) -> Dict[str, Any]:
        asked = self._asked
        if asked is not None:
            states = asked.states()
            for row in answer["links"]:
                for key, (down, up) in (
                    ("shares", asked.shares[row["device"]]),
                    ("states", states[row["device"]]),
                ):
                    row[key] = {"downlink": down, "uplink": up}
            answer = {**answer, "rule": asked.rule.as_json()}
        channel = None if asked is None or asked.channel is None else asked.channel
        about = {"blocks": len(channel.t_s), "duration_s": channel.duration_s} if channel else None
        return {**answer, "channel": about, "playing": self._player is not None, **self._line()}

    def _line(self) -> Dict[str, Any]:
        return {} if self._shaper.line is None else {"line": self._shaper.line}

    def _links_set(self, op: str) -> Asked:
        if self._asked is None:
            raise LinksError(f"{op}: no links are set")
        if "failed" in self._history.about and op != "hold":
            # A trial that goes on changing links which have failed would only find out at its end.
            raise LinkdError(f"{op}: the links are not what was asked: {self._history.about['failed']}")
        return self._asked

    def _forget(self) -> None:
        """Forget the links: they go back to what they were. The history stays until the next set."""
        had = self._asked is not None
        self._asked = self._player = None
        self._next_block_s = self._next_sample_s = self._next_look_s = None
        if had and self.publish is not None:
            self.publish(self._event(self._wall(), "clear", None))

    def _look_whether_cleared(self) -> None:
        """After a failure the shaper may have put everything back."""
        if self._asked is not None and not self._shaper.links_set:
            self._forget()

    def _failed(self, error: str) -> None:
        print(f"linkd: {error}", flush=True)
        self._history.about["failed"] = error
        self._player = self._next_block_s = self._next_sample_s = None
        self._look_whether_cleared()


def _took_ms(started: float) -> float:
    return round((time.perf_counter() - started) * 1e3, 3)
