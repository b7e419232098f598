"""The records of a trial: collected in memory, written at its end, whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from payloads.wdmoe.bounds import WaitBounds
from payloads.wdmoe.bs.generate import Generation
from payloads.wdmoe.dispatch import DispatchRow
from payloads.wdmoe.tally import Tally
from payloads.wire.clock import BSClock, Offset, OffsetTrack

__all__ = ["TABLES", "Records"]

#: The files of a trial's folder; each is there, if empty.
TABLES = ("requests", "tokens", "dispatches", "selection", "clocks", "quality", "choices")


class Records:
    """The rows of one trial or quality pass.

    Attributes:
        trial: Name of the trial.
        tables: The rows, by table; times are unix seconds on the base station's clock.
    """

    def __init__(self, trial: str, clock: BSClock) -> None:
        self.trial = trial
        self.tables: Dict[str, List[Dict[str, Any]]] = {name: [] for name in TABLES}
        self._clock = clock

    def add_generation(self, request: str, warmup: bool, text: str, generation: Generation) -> None:
        """Add one answered prompt."""
        last_ns = generation.tokens[-1].done_ns
        self.tables["requests"].append(
            {
                "trial": self.trial,
                "request": request,
                "warmup": warmup,
                "prompt_tokens": generation.prompt_tokens,
                "output_tokens": len(generation.tokens),
                "t_start_s": self._clock.unix_s(generation.start_ns),
                "ttft_ms": generation.tokens[0].duration_ms,
                "e2el_ms": (last_ns - generation.start_ns) / 1e6,
                "text": text,
            }
        )
        self.tables["tokens"] += [
            {
                "trial": self.trial,
                "request": request,
                "position": position,
                "token": token.token,
                "t_s": self._clock.unix_s(token.done_ns),
                "duration_ms": token.duration_ms,
                "bs_ms": token.bs_ms,
                "bound_ms": None,
                "nll": token.nll,
            }
            for position, token in enumerate(generation.tokens)
        ]

    def add_bounds(self, bounds: WaitBounds) -> None:
        """Say what each token so far could have taken at best: the base station's part and the least waiting."""
        waits_s = bounds.waits_s()
        for row in self.tables["tokens"]:
            row["bound_ms"] = row["bs_ms"] + 1e3 * waits_s[row["request"], row["position"]]

    def add_selection(self, tally: Tally) -> None:
        """Add what the policy made of the router's choices."""
        self.tables["selection"] += [{"trial": self.trial, **row} for row in tally.rows()]

    def add_clocks(self, offsets: Mapping[str, Offset]) -> None:
        """Add the estimated clock offsets of all devices."""
        self.tables["clocks"] += [
            {
                "t_s": self._clock.unix_s(offset.at_ns),
                "device": name,
                "offset_s": self._clock.unix_s(round(offset.offset_ns)),
                "rtt_ms": offset.rtt_ns / 1e6,
            }
            for name, offset in offsets.items()
        ]

    def add_dispatches(self, rows: Sequence[DispatchRow], tracks: Mapping[str, OffsetTrack]) -> None:
        """Add all dispatches, the devices' stamps moved to the base station's clock."""
        self.tables["dispatches"] += [self._dispatch(row, tracks[row.device]) for row in rows]

    def write(self, folder: Path) -> None:
        """Write the tables into ``folder``, which appears when it is complete."""
        partial = folder.with_name(folder.name + ".part")
        try:
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir(parents=True)
            for name, rows in self.tables.items():
                with (partial / f"{name}.jsonl").open("w") as file:
                    for row in rows:
                        file.write(json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n")
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _dispatch(self, row: DispatchRow, track: OffsetTrack) -> Dict[str, Any]:
        device_ns = (row.received_ns, row.started_ns, row.computed_ns, row.replied_ns)
        received, started, computed, replied = (self._clock.unix_s(ns) for ns in track.stamps(device_ns))
        return {
            "trial": self.trial,
            "request": row.request,
            "step": row.step,
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
