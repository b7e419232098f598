"""What was behind the links: the backends in use, what a rate means under them, and which trials had sound links."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from payloads.linkd.model import expected_ms, takes_first_frame
from payloads.wire.connection import record_bytes
from payloads.wire.frames import PING_BYTES, PONG_BYTES
from testbed.records.run import Run
from testbed.report.rates import DIRECTIONS

__all__ = [
    "TrialLinks",
    "backend_entries",
    "backend_notes",
    "least_one_way_ms",
    "links_untouched",
    "probes_of",
    "trial_links",
]

UNTOUCHED = "none"

_FIRST_FRAMES = {
    "tbf": "the first frame of a message passes an idle link at once: a message of one frame takes no time of its "
    "own, a longer one that of all its frames but the first",
    "netem": "every frame takes its time, the first too: a message of one frame takes its frame time",
    "line": "every frame takes its time, the first too: a message of one frame takes its frame time",
    "pacing": "TCP itself spaces what it sends: the first piece of a message leaves at once, the others follow at the "
    "rate, and only the sockets of the data plane and of the probes are held to it",
}


@dataclass(frozen=True)
class TrialLinks:
    """What is known of the links of one trial.

    Attributes:
        state: ok; off where they were not as asked; unverified where nobody looked; untouched where none was set, or
            where nothing was sent.
        reason: What is wrong, or an empty string.
    """

    state: Literal["ok", "off", "unverified", "untouched"]
    reason: str = ""


def probes_of(run: Run) -> pd.DataFrame:
    """Return the rows of ``links`` that are probes."""
    return run.links[run.links["message_bytes"].notna()].reset_index(drop=True)


def links_untouched(run: Run) -> bool:
    """Return whether the campaign left all links as they are (shaping ``none``)."""
    network = (run.manifest.get("inventory") or {}).get("network")
    if isinstance(network, dict) and network.get("shaping") == UNTOUCHED:
        return True
    used = set(run.links["backend"].dropna())
    return used == {UNTOUCHED}


def trial_links(run: Run) -> dict[str, TrialLinks]:
    """Return what is known of each trial's links."""
    untouched = links_untouched(run) or bool(run.manifest.get("simulated"))
    first_probe_s = probes_of(run).groupby("scenario")["t_s"].min()
    on_paper = run.images.groupby("trial")["on_paper"].all()
    found = {}
    for row in run.trials.to_dict("records"):
        ended_s = float(row["t_end_s"])
        probed_s = float(first_probe_s.get(row["scenario"], float("inf")))
        if isinstance(row["links_error"], str) and row["links_error"]:
            state = TrialLinks("off", row["links_error"])
        elif untouched:
            state = TrialLinks("untouched", "the links were left as they are")
        elif bool(on_paper.get(row["trial"], False)):
            state = TrialLinks("untouched", "computed on paper: nothing was sent")
        elif pd.notna(row["links_ok"]) and not row["links_ok"]:
            state = TrialLinks("off", "a probe was outside the tolerance")
        elif pd.isna(row["links_ok"]) or probed_s > ended_s:
            state = TrialLinks("unverified", "no link was verified before it")
        else:
            state = TrialLinks("ok")
        found[str(row["trial"])] = state
    return found


def least_one_way_ms(links: pd.DataFrame, device: str, t_s: pd.Series, *, tls: bool) -> np.ndarray:
    """Return what a clock's ping takes on a device's link at least: the quicker of its two directions.

    A round trip bounds the error of an offset by half; what both ways are known to take is no error.

    Args:
        links: The table ``links``.
        device: The device.
        t_s: When the pings were sent.
        tls: Whether they travelled in records of TLS.

    Returns:
        (N,) ms; 0 where a direction was not shaped, or lets the first frame pass at once.
    """
    ways = []
    for direction, size in zip(DIRECTIONS, (PING_BYTES, PONG_BYTES), strict=True):
        rows = links[(links["device"] == device) & (links["direction"] == direction) & links["cause"].notna()]
        rows = rows[rows["asked_mbit"].notna()].sort_values("t_s", kind="stable")
        takes_ms = [
            expected_ms(record_bytes(size) if tls else size, row["asked_mbit"], first_frame=True)
            if takes_first_frame(row["backend"])
            else 0.0
            for row in rows.to_dict("records")
        ]
        # A change of the rate alone leaves the delay as it was set.
        delays_ms = rows["delay_ms"].astype("float64").ffill().fillna(0.0).to_numpy()
        in_force = np.searchsorted(rows["t_s"].to_numpy(), t_s.to_numpy(), side="right")
        ways.append(np.concatenate([[0.0], np.array(takes_ms) + delays_ms])[in_force])
    least: np.ndarray = np.minimum(*ways)
    return least


def backend_entries(run: Run) -> list[tuple[str, str]]:
    """Return what shaped the links, by direction; devices that differ from the others apart."""
    entries = []
    for direction in DIRECTIONS:
        rows = run.links[(run.links["direction"] == direction) & run.links["backend"].notna()]
        by_backend: dict[str, list[str]] = {}
        for device, backends in rows.groupby("device", sort=False)["backend"]:
            by_backend.setdefault(", ".join(dict.fromkeys(backends)), []).append(str(device))
        if len(by_backend) == 1:
            entries.append((direction, next(iter(by_backend))))
        else:
            entries += [(f"{direction}, {', '.join(names)}", used) for used, names in by_backend.items()]
    return entries


def _unlike_scenarios(run: Run) -> list[str]:
    """Return a warning where scenarios were shaped in ways that treat a message's first frame differently."""
    rows = run.links[run.links["backend"].notna() & run.links["scenario"].notna()]
    used: dict[str, list[str]] = {}
    for scenario, backends in rows.groupby("scenario", sort=False)["backend"]:
        used.setdefault(" and ".join(sorted(set(backends))), []).append(str(scenario))
    if len(used) < 2:
        return []
    which = "; ".join(f"{', '.join(names)} by `{backends}`" for backends, names in used.items())
    return [
        f"Not all scenarios were shaped alike: {which}. What is small is not comparable between them; "
        "`network: {leaf: ...}` in the inventory makes one choice for all."
    ]


def backend_notes(run: Run) -> list[str]:
    """Return what a reader must know of the backends in use: their names, and what a message's first frame does."""
    entries = backend_entries(run)
    if not entries:
        return []
    used = list(dict.fromkeys(name for _, names in entries for name in names.split(", ")))
    notes = []
    if len(used) == 1 and len(entries) == len(DIRECTIONS):
        notes.append(f"Both directions were shaped by `{used[0]}`.")
    else:
        notes.append("Shaped by: " + "; ".join(f"{where}: `{names}`" for where, names in entries) + ".")
    notes.append(
        "A rate is a frame rate: every byte that the interface sees counts, Ethernet header included, so that a "
        "little less is left for the tensors."
    )
    told: dict[str, list[str]] = {}
    for name in used:
        family = next((text for key, text in _FIRST_FRAMES.items() if key in name), None)
        if family is not None:
            told.setdefault(family, []).append(name)
    for text, names in told.items():
        where = "Under " + " and ".join(f"`{name}`" for name in names)
        notes.append(f"{where} {text}.")
    notes += _unlike_scenarios(run)
    delays = run.links["delay_ms"]
    if (delays > 0).any():
        notes.append(
            "Times of probes have the unshaped round trip subtracted, and the delay that was asked for is part of it."
        )
    return notes
