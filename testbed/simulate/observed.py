"""What a run shows of the latency model's terms: each dispatch's size, what its links should have taken, and the rest.

The records do not say how many tokens each expert of a dispatch had. The sizes of its frames say how many experts there
were; where that is one, or as many as pairs, the tokens of each are known too, and only such dispatches tell about the
computation. Trials that answered several requests at once, or lost a device, are left out: what a token took there is
not what the model speaks of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from payloads.linkd.channel import DIRECTIONS
from payloads.linkd.model import DEFAULT_SLACK_US, Framing, takes_first_frame
from payloads.wire.connection import message_bytes
from payloads.wire.frames import DISPATCH_HEAD_BYTES, DTYPE_BYTES, HEADER_BYTES, RESULT_HEAD_BYTES
from testbed.errors import InputError
from testbed.records.iterations import overlapping
from testbed.records.manifest import devices_of
from testbed.records.outline import campaign_of
from testbed.records.run import Run

__all__ = ["Observed", "Slot", "observe"]

_STAMPS = ("t_received_s", "t_started_s", "t_computed_s", "t_replied_s", "compute_ms")
_STEP = ["trial", "request", "step"]
_LAYER = [*_STEP, "layer"]


@dataclass(frozen=True)
class Observed:
    """A run's dispatches and tokens, with what calibration asks of them.

    Attributes:
        run: The run's name.
        devices: The devices, in the inventory's order.
        layers: How many layers of experts the model has.
        row_bytes: Bytes of one row of hidden state, as it is computed with.
        shaped: Whether any link's rate was asked for.
        first_frame: Whether the links delay the first frame of a message too.
        dispatches: One row each: ``trial, request, step, layer, device, tokens, pairs, experts, each`` (tokens of each
            expert, NaN where not known), ``compute_ms, total_ms, link_ms`` (what the rates asked for should take, NaN
            where a rate changed on the way), ``send_s, done_s, allocated`` (whether the band was shared anew for its
            layer); quality passes have no ``link_ms``.
        tokens: One row each: ``trial, request, step, rows, duration_ms, bs_ms, allocations`` (how often the band was
            shared anew, for the token or a layer of it); warm-ups are left out, and prompts that were read in pieces.
        left_out: Why trials were left out, one line each.
    """

    run: str
    devices: tuple[str, ...]
    layers: int
    row_bytes: int
    shaped: bool
    first_frame: bool
    dispatches: pd.DataFrame
    tokens: pd.DataFrame
    left_out: tuple[str, ...] = ()


def observe(run: Run) -> Observed:
    """Return what a run shows.

    Args:
        run: The run.

    Raises:
        InputError: No trial of it was completed, it was simulated, or its dispatches lack stamps.
    """
    manifest = run.manifest
    if manifest.get("simulated"):
        raise InputError(f"{run.name} was simulated: a calibration needs a measured run")
    trials, left_out = _one_at_a_time(run)
    dispatches = run.dispatches.dropna(subset=list(_STAMPS))
    measured = dispatches["trial"].isin(trials)
    if left_out and not measured.any():
        raise InputError(
            f"{run.name} has no trial to calibrate with: {'; '.join(left_out)}",
            hint="run a scenario with `concurrency: 1` and all devices at work",
        )
    if not measured.any():
        raise InputError(
            f"{run.name} has no completed trial with time stamps: there is nothing to calibrate with"
        )
    quality = dispatches["trial"].str.startswith("quality-")
    used = dispatches[measured | quality].dropna(subset=_STEP).astype({"step": "int64"})
    used = used.sort_values("t_send_s", kind="stable").reset_index(drop=True)
    # The records count what crossed the links, which under TLS is more than the frames.
    frame_bytes = message_bytes if manifest.get("security") == "tls" else int
    used = used.assign(
        frame_out=used["bytes_out"].map(frame_bytes), frame_back=used["bytes_back"].map(frame_bytes)
    )
    sent_bytes = _row_bytes(run.name, used)
    links = run.links[run.links["message_bytes"].isna()]
    backends = links["backend"].dropna()
    first_frame = bool(len(backends)) and takes_first_frame(str(backends.mode().iloc[0]))
    rated = _rated(used, links)
    sized = _sizes(rated, sent_bytes)
    allocations = _allocations(links, sized)
    return Observed(
        run=run.name,
        devices=tuple(devices_of(manifest)) or tuple(sorted(set(dispatches["device"]))),
        layers=int(manifest.get("model", {}).get("layers") or dispatches["layer"].max() + 1),
        row_bytes=_computed_bytes(manifest, sent_bytes),
        shaped=bool(links["asked_mbit"].notna().any()),
        first_frame=first_frame,
        dispatches=sized.assign(
            link_ms=_link_ms(rated, first_frame),
            allocated=pd.MultiIndex.from_frame(sized[_LAYER]).isin(
                pd.MultiIndex.from_frame(allocations[_LAYER])
            ),
        ),
        tokens=_tokens(run, trials, allocations),
        left_out=left_out,
    )


def _one_at_a_time(run: Run) -> tuple[set[str], tuple[str, ...]]:
    """Return the completed trials that the model speaks of, and why others were left out."""
    completed = set(run.completed["trial"])
    several = completed & overlapping(run)
    troubled = completed & set(run.events["trial"]) - several
    why = []
    if several:
        why.append(f"{_trials(several)} answered several requests at once")
    if troubled:
        why.append(f"{_trials(troubled)} lost a device")
    return completed - several - troubled, tuple(why)


def _trials(names: set[str]) -> str:
    return "1 trial" if len(names) == 1 else f"{len(names)} trials"


def _row_bytes(name: str, dispatches: pd.DataFrame) -> pd.Series[int]:
    """Return the bytes of one row on the links, for each dispatch: the same within a trial, by what came back."""
    rows = (dispatches["frame_back"] - HEADER_BYTES - RESULT_HEAD_BYTES) / dispatches["assignments"]
    sizes = rows.groupby(dispatches["trial"], sort=False).transform("first")
    if (rows != sizes).any() or (sizes < 1).any() or (sizes % 1 != 0).any():
        raise InputError(
            f"{name}: the answers' sizes do not fit their pairs: these are no records of this protocol"
        )
    return sizes.astype(int)


def _computed_bytes(manifest: Mapping[str, Any], sent_bytes: pd.Series[int]) -> int:
    """Return the bytes of one row as it is computed with; what crosses the links may be narrower."""
    hidden = manifest.get("model", {}).get("hidden_size")
    campaign = campaign_of(manifest)
    if not isinstance(hidden, int) or not campaign:
        return int(sent_bytes.iloc[0])
    return hidden * DTYPE_BYTES.get(str(campaign.get("dtype", "bfloat16")), 2)


def _sizes(rated: pd.DataFrame, row_bytes: pd.Series[int]) -> pd.DataFrame:
    pairs = rated["assignments"]
    lists = rated["frame_out"] - HEADER_BYTES - DISPATCH_HEAD_BYTES - rated["tokens"] * row_bytes
    experts = (lists // 2 - pairs) // 2
    even = (experts == 1) | (experts == pairs)
    return pd.DataFrame(
        {
            **{name: rated[name] for name in ("trial", "request", "step", "layer", "device", "tokens")},
            "pairs": pairs,
            "experts": experts,
            "each": (pairs / experts).where(even),
            "compute_ms": rated["compute_ms"],
            "total_ms": (rated["t_done_s"] - rated["t_send_s"]) * 1e3,
            "send_s": rated["t_send_s"],
            "done_s": rated["t_done_s"],
        }
    )


def _allocations(links: pd.DataFrame, dispatches: pd.DataFrame) -> pd.DataFrame:
    """Return when the base station shared the band anew, by the reasons that it gave linkd.

    Returns:
        ``trial, request, step, layer``, one row each; the layer is -1 where it was for a whole token step.
    """
    told = links[links["cause"] == "allocate"].drop_duplicates(["trial", "t_s", "why"])
    told = told[["trial", "t_s"]].assign(why=told["why"].astype(str)).sort_values("t_s", kind="stable")
    steps = told.join(told["why"].str.extract(r"^(?:before|step (?P<step>\d+) of) (?P<request>.+)$"))
    steps = steps.dropna(subset=["request"]).fillna({"step": "0"}).assign(layer=-1)
    layers = told.join(told["why"].str.extract(r"^layer (?P<layer>\d+) step (?P<step>\d+)$"))
    layers = layers.dropna(subset=["layer"]).astype({"layer": int, "step": int})
    # The reason leaves out the request: it is the one whose layer was sent next to that time.
    sent = dispatches.groupby(_LAYER, sort=False)["send_s"].min().reset_index().sort_values("send_s")
    by = ["trial", "step", "layer"]
    layers = pd.merge_asof(layers, sent, left_on="t_s", right_on="send_s", by=by, direction="nearest")
    both = [steps.astype({"step": int})[_LAYER], layers.dropna(subset=["request"])[_LAYER]]
    return pd.concat(both, ignore_index=True)


def _rated(used: pd.DataFrame, links: pd.DataFrame) -> pd.DataFrame:
    """Add each direction's rate and delay at the begin, and whether a rate changed before the end.

    A link that nobody shaped has an infinite rate. Quality passes have no rates: nothing says what their links did.
    """
    result = used.assign(steady=True, delay_ms=0.0)
    key = ["trial", "device"]
    for direction in DIRECTIONS:
        mine = links.loc[links["direction"] == direction, [*key, "t_s", "asked_mbit", "delay_ms"]]
        mine = mine.rename(columns={"asked_mbit": f"{direction}_mbit", "delay_ms": f"{direction}_delay"})
        mine = mine.dropna(subset=["trial"]).sort_values("t_s", kind="stable")
        # The change in force at the begin, and the one in force at the end.
        at = pd.merge_asof(
            result, mine.assign(change=range(len(mine))), left_on="t_send_s", right_on="t_s", by=key
        )
        ends = used[[*key, "t_done_s"]].assign(place=range(len(used))).sort_values("t_done_s", kind="stable")
        until = pd.merge_asof(
            ends, mine.assign(change=range(len(mine))), left_on="t_done_s", right_on="t_s", by=key
        ).sort_values("place")
        # A delay holds until it is set anew; a change of the rate does not say it again.
        delay = pd.merge_asof(
            used, mine.dropna(subset=[f"{direction}_delay"]), left_on="t_send_s", right_on="t_s", by=key
        )[f"{direction}_delay"]
        result[f"{direction}_mbit"] = at[f"{direction}_mbit"].fillna(np.inf)
        result["steady"] &= at["change"].fillna(-1).to_numpy() == until["change"].fillna(-1).to_numpy()
        result["delay_ms"] += delay.fillna(0.0)
    return result


def _link_ms(rated: pd.DataFrame, first_frame: bool) -> pd.Series[float]:
    """Return what the links should have taken for each dispatch, both ways and with the delay asked for."""
    result = pd.Series(np.nan, index=rated.index)
    for (trial, _), rows in rated.groupby(["trial", "device"], sort=False):
        if not str(trial).startswith("quality-"):
            result.loc[rows.index] = np.fromiter(_carried_ms(rows, first_frame), float, len(rows))
    return (result + rated["delay_ms"]).where(rated["steady"])


class Slot:
    """One direction of one link over time: its token bucket, or the line that holds every frame.

    Args:
        first_frame: Whether there is no bucket.
    """

    def __init__(self, first_frame: bool) -> None:
        self._framing = Framing()
        self._there_bytes, self._at_s = np.inf, 0.0
        self._first_frame = first_frame

    def held_ms(self, message_bytes: int, at_s: float, mbit: float) -> float:
        """Return how long the link holds a message that comes at a time, at its rate then."""
        if not np.isfinite(mbit):
            return 0.0
        bytes_per_s = mbit * 1e6 / 8
        wire = self._framing.wire_bytes(message_bytes)
        if self._first_frame:
            return 1e3 * wire / bytes_per_s
        full = self._framing.frame_bytes + DEFAULT_SLACK_US / 1e6 * bytes_per_s
        there = min(full, self._there_bytes + max(0.0, at_s - self._at_s) * bytes_per_s)
        held_s = max(0.0, wire - there) / bytes_per_s
        self._there_bytes, self._at_s = max(0.0, there - wire), at_s + held_s
        return 1e3 * held_s


def _carried_ms(rows: pd.DataFrame, first_frame: bool) -> Iterator[float]:
    down, up = Slot(first_frame), Slot(first_frame)
    names = ["bytes_out", "t_send_s", "downlink_mbit", "bytes_back", "t_replied_s", "uplink_mbit"]
    columns: list[Any] = [rows[name].tolist() for name in names]
    for out, sent_s, down_mbit, back, replied_s, up_mbit in zip(*columns, strict=True):
        yield down.held_ms(out, sent_s, down_mbit) + up.held_ms(back, replied_s, up_mbit)


def _tokens(run: Run, trials: set[str], allocations: pd.DataFrame) -> pd.DataFrame:
    requests = run.requests[~run.requests["warmup"] & run.requests["trial"].isin(trials)]
    tokens = run.tokens.merge(requests[["trial", "request", "prompt_tokens"]], on=["trial", "request"])
    reading = run.dispatches[run.dispatches["step"] == 0].groupby(["trial", "request"])["iteration"].nunique()
    pieces = tokens[["trial", "request"]].join(reading, on=["trial", "request"])["iteration"].fillna(0)
    tokens = tokens[(tokens["position"] > 0) | (pieces <= 1)]
    tokens = tokens.dropna(subset=["bs_ms"]).rename(columns={"position": "step"})
    rows = tokens["prompt_tokens"].where(tokens["step"] == 0, 1)
    tokens = tokens.assign(rows=rows).join(allocations.groupby(_STEP).size().rename("allocations"), on=_STEP)
    return tokens.fillna({"allocations": 0})[[*_STEP, "rows", "duration_ms", "bs_ms", "allocations"]]
