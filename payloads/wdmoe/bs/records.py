"""The records of a trial or quality pass: its requests, tokens and dispatches."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Sequence

from payloads.station.records import TrialRecords
from payloads.wdmoe.bounds import WaitBounds
from payloads.wdmoe.bs.asks import Handle, Token
from payloads.wdmoe.bs.loss import LossEvent
from payloads.wdmoe.dispatch import DispatchRow
from payloads.wdmoe.tally import Tally
from payloads.wire.clock import BSClock, OffsetHistory, OffsetTrack

__all__ = ["TABLES", "Answer", "Records"]

#: The files of a trial's folder; each is there, if empty.
TABLES = (
    "requests",
    "tokens",
    "dispatches",
    "selection",
    "routing",
    "clocks",
    "quality",
    "choices",
    "events",
)


class Answer(NamedTuple):
    """A request that has ended.

    Attributes:
        handle: What was asked, and when.
        warmup: Whether it is a warm-up.
        text: What was answered.
        tokens: The tokens of it.
        reason: Why it ended, of :data:`payloads.wdmoe.bs.asks.END_REASONS`.
        ended_ns: When, on the monotonic clock.
    """

    handle: Handle
    warmup: bool
    text: str
    tokens: Sequence[Token]
    reason: str
    ended_ns: int


class Records(TrialRecords):
    """The rows of one trial or quality pass."""

    def __init__(self, trial: str, clock: BSClock) -> None:
        super().__init__(trial, clock, TABLES)
        self._spans: List[range] = []  # of each token, the iterations that it took

    def add_answer(self, answer: Answer) -> None:
        """Add a request that has ended."""
        handle, tokens = answer.handle, answer.tokens
        last_ns = tokens[-1].done_ns if tokens else answer.ended_ns
        request, start_ns, begun_ns = handle.ask.id, handle.start_ns, handle.begun_ns or answer.ended_ns
        self.tables["requests"].append(
            {
                "trial": self.trial,
                "request": request,
                "warmup": answer.warmup,
                "prompt_tokens": handle.prompt_tokens,
                "output_tokens": len(tokens),
                "t_start_s": self._clock.unix_s(start_ns),
                "queued_ms": (begun_ns - start_ns) / 1e6,
                "ttft_ms": tokens[0].duration_ms if tokens else None,
                "e2el_ms": (last_ns - start_ns) / 1e6,
                "finish": answer.reason,
                "text": answer.text,
            }
        )
        since = handle.first_iteration
        for position, (token, nll) in enumerate(zip(tokens, handle.nlls)):
            self.tables["tokens"].append(
                {
                    "trial": self.trial,
                    "request": request,
                    "position": position,
                    "iteration": token.iteration,
                    "token": token.token,
                    "t_s": self._clock.unix_s(token.done_ns),
                    "duration_ms": token.duration_ms,
                    "bs_ms": token.bs_ms,
                    "bound_ms": None,
                    "nll": nll,
                    "wanted": token.wanted,
                    "lost": token.lost,
                    "rerouted": token.rerouted,
                }
            )
            self._spans.append(range(since, token.iteration + 1))
            since = token.iteration + 1

    def add_bounds(self, bounds: WaitBounds) -> None:
        """Say what each token so far could have taken at best: the base station's part and the least waiting.

        A token waits in all iterations since the one before it, also in those of other requests.
        """
        waits_s = bounds.waits_s()
        for row, iterations in zip(self.tables["tokens"], self._spans):
            row["bound_ms"] = row["bs_ms"] + 1e3 * sum(waits_s.get(number, 0.0) for number in iterations)

    def add_selection(self, tally: Tally) -> None:
        """Add what the policy made of the router's choices."""
        self.tables["selection"] += [{"trial": self.trial, **row} for row in tally.rows()]
        self.tables["routing"] += [{"trial": self.trial, **row} for row in tally.routing_rows()]

    def add_dispatches(self, rows: Sequence[DispatchRow], clocks: Mapping[str, OffsetHistory]) -> None:
        """Add all dispatches, the devices' stamps moved to the base station's clock."""
        self.tables["dispatches"] += [self._dispatch(row, clocks[row.device].at(row.sent_ns)) for row in rows]

    def add_events(self, events: Sequence[LossEvent]) -> None:
        """Add what happened to devices, and what was done about it."""
        for event in events:
            self.add_event(
                event.at_ns, event.device, event.event, event.detail, event.request, event.step, event.layer
            )

    def _dispatch(self, row: DispatchRow, track: OffsetTrack) -> Dict[str, Any]:
        device_ns = (row.received_ns, row.started_ns, row.computed_ns, row.replied_ns)
        received, started, computed, replied = (self._clock.unix_s(ns) for ns in track.stamps(device_ns))
        return {
            "trial": self.trial,
            "request": row.request,
            "step": row.step,
            "iteration": row.iteration,
            "batch": row.batch,
            "layer": row.layer,
            "device": row.device,
            "tokens": row.tokens,
            "assignments": row.assignments,
            "dropped": row.dropped,
            "bytes_out": row.bytes_out,
            "bytes_back": row.bytes_back,
            "t_send_s": self._clock.unix_s(row.sent_ns),
            "t_first_s": self._clock.unix_s(row.first_ns),
            "t_done_s": self._clock.unix_s(row.done_ns),
            "t_received_s": received,
            "t_started_s": started,
            "t_computed_s": computed,
            "t_replied_s": replied,
            "compute_ms": (row.computed_ns - row.started_ns) / 1e6,
            "predicted_ms": row.predicted_ms(),
        }
