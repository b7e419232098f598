"""How long an image takes: encoding at the base station, the way through the air, decoding on its device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from testbed.report.broadcast.facts import Facts
from testbed.report.stats import Interval, bootstrap_mean

__all__ = ["PARTS", "Latency", "Sending", "latencies_of", "sendings_of", "snr_error_db"]

PARTS: Mapping[str, str] = {
    "encode_ms": "encode (base station)",
    "air_ms": "air",
    "decode_ms": "decode (device)",
}


@dataclass(frozen=True)
class Latency:
    """The latency of the images of one scheme on one device, in milliseconds.

    Attributes:
        scheme: The scheme.
        scenario: The scenario.
        set: The set of images.
        ratio: The bandwidth ratio.
        device: The device.
        parts: The mean of each of :data:`PARTS`, over trials.
        whole: Their sum, over trials.
        images: How many images are behind it.
        unsplit: Images without one of the parts: they are left out.
    """

    scheme: str
    scenario: str
    set: str
    ratio: float
    device: str
    parts: Mapping[str, Interval]
    whole: Interval
    images: int
    unsplit: int


@dataclass(frozen=True)
class Sending:
    """How the frames of one scheme in one scenario, set and ratio were sent.

    Attributes:
        scheme: The scheme.
        scenario: The scenario.
        set: The set of images.
        ratio: The bandwidth ratio.
        frames: How many.
        symbols: The symbols of a frame.
        side_bits: The bits beside them.
        frame_bytes: The mean of what a frame took on the wire, all copies together.
        copies: How often a frame was sent: 1 by multicast; the least and the most.
    """

    scheme: str
    scenario: str
    set: str
    ratio: float
    frames: int
    symbols: int
    side_bits: float
    frame_bytes: float
    copies: tuple[int, int]


def latencies_of(facts: Facts) -> list[Latency]:
    """Return the latency by scheme, scenario, set, ratio and device; images that were never on air have none.

    Args:
        facts: What was compared.
    """
    images = facts.images[~facts.images["on_paper"] & facts.images["device"].notna()]
    images = images.merge(facts.frames[["trial", "frame", "encode_ms"]], on=["trial", "frame"], how="left")
    found = []
    keys = ["scheme", "scenario", "set", "bandwidth_ratio", "device"]
    parts = images.astype(dict.fromkeys(PARTS, "float64"))
    schemes, scenarios = list(facts.schemes), list(facts.scenarios)
    for (scheme, scenario, name, ratio, device), own in parts.groupby(keys, sort=False):
        whole = own.dropna(subset=list(PARTS))
        if whole.empty:
            continue
        by_trial = whole.groupby("trial", sort=False)[list(PARTS)].mean()
        found.append(
            Latency(
                str(scheme),
                str(scenario),
                str(name),
                float(ratio),
                str(device),
                {part: bootstrap_mean(by_trial[part]) for part in PARTS},
                bootstrap_mean(by_trial.sum(axis=1)),
                len(whole),
                len(own) - len(whole),
            )
        )
    devices = list(facts.devices.values())
    return sorted(
        found,
        key=lambda row: (
            schemes.index(row.scheme),
            scenarios.index(row.scenario),
            -row.ratio,
            devices.index(row.device) if row.device in devices else len(devices),
        ),
    )


def sendings_of(facts: Facts) -> list[Sending]:
    """Return how the frames that went on air were sent.

    Args:
        facts: What was compared.
    """
    frames = facts.frames[facts.frames["t_done_s"].notna()]
    found = []
    for (scheme, scenario, name, ratio), own in frames.groupby(
        ["scheme", "scenario", "set", "bandwidth_ratio"], sort=False
    ):
        copies = own["copies"].dropna()
        found.append(
            Sending(
                str(scheme),
                str(scenario),
                str(name),
                float(ratio),
                len(own),
                int(own["symbols"].max()),
                float(own["side_bits"].mean()),
                float(own["bytes"].astype("float64").mean()),
                (int(copies.min()), int(copies.max())) if len(copies) else (0, 0),
            )
        )
    schemes, scenarios = list(facts.schemes), list(facts.scenarios)
    return sorted(
        found, key=lambda row: (schemes.index(row.scheme), scenarios.index(row.scenario), -row.ratio)
    )


def snr_error_db(facts: Facts) -> pd.DataFrame:
    """Return how far the measured SNR of a user was from the asked one, in the mean over its symbols in a scenario.

    Args:
        facts: What was compared.

    Returns:
        ``scenario, user, error_db``: measured less asked (mean SNR and fading), where it was measured; ``frames``, and
        ``symbols`` with a noise of their own: schemes meet the same noise.
    """
    own = facts.images[facts.images["measured_snr_db"].notna()]
    own = own.merge(facts.frames[["trial", "frame", "symbols"]], on=["trial", "frame"], how="left")
    error = (own["measured_snr_db"] - own["snr_db"] - own["gain_db"]).astype(float)
    own = own.assign(weight=own["symbols"].astype(float), weighted=error * own["symbols"].astype(float))
    grouped = own.groupby(["scenario", "user"], sort=False)
    table = grouped.agg(weighted=("weighted", "sum"), weight=("weight", "sum"), frames=("frame", "size"))
    alone = own.drop_duplicates(["scenario", "user", "noise_seed"]).groupby(["scenario", "user"], sort=False)
    table["symbols"] = alone["weight"].sum()
    table["error_db"] = table["weighted"] / table["weight"]
    return table[["error_db", "frames", "symbols"]].reset_index()
