"""What a run of semantic broadcast compared: its schemes, its scenarios, and every image with what it was sent as."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from testbed.records.outline import campaign_of
from testbed.records.run import Run
from testbed.report.metrics import ordered

__all__ = [
    "MEASURES",
    "Facts",
    "Measure",
    "Panel",
    "Scenario",
    "Scheme",
    "facts_of",
    "ratio_name",
]


@dataclass(frozen=True)
class Measure:
    """One measure of how good a received image is; higher is better in all of them.

    Attributes:
        column: Its column in the table ``images``.
        title: Its name.
        unit: Its unit; empty where it has none.
    """

    column: str
    title: str
    unit: str = ""


MEASURES = (Measure("psnr_db", "PSNR", "dB"), Measure("ssim", "SSIM"), Measure("ms_ssim", "MS-SSIM"))


@dataclass(frozen=True)
class Scheme:
    """One scheme of the campaign.

    Attributes:
        name: Its name.
        kind: learned, digital or practical.
        plays: fusion, joint_division, time_division or superposition: how the users share the channel.
        codec: The codec of a digital or practical one.
        ablates: The scheme that it is an ablation of, or an empty string.
        models: The models of a learned one: several are trainings that differ in their seed.
    """

    name: str
    kind: str
    plays: str
    codec: str = ""
    ablates: str = ""
    models: tuple[str, ...] = ()

    @property
    def learned(self) -> bool:
        """Return whether it plays a trained model."""
        return self.kind == "learned"


@dataclass(frozen=True)
class Scenario:
    """What the channel of a scenario is asked to be.

    Attributes:
        name: Its name.
        snr_db: The mean SNR of each user; empty where the campaign file does not say.
        fading: none, or the kind of fading.
        csi_error: The variance of the error of the channel estimate.
    """

    name: str
    snr_db: tuple[float, ...] = ()
    fading: str = "none"
    csi_error: float = 0.0


class Panel(NamedTuple):
    """Where schemes are compared: one scenario, one set of images, one bandwidth ratio."""

    scenario: str
    set: str
    ratio: float


@dataclass(frozen=True)
class Facts:
    """What was compared.

    Attributes:
        schemes: By name, in the campaign's order.
        scenarios: By name, in the campaign's order.
        images: The images of completed trials, each with ``scheme, scenario, repeat, set, pair, model,
            bandwidth_ratio`` and ``share`` of its frame.
        frames: The frames of completed trials, with scheme, scenario and repeat.
        users: The users, from 1.
        devices: The device of each user, where there is one.
    """

    schemes: Mapping[str, Scheme]
    scenarios: Mapping[str, Scenario]
    images: pd.DataFrame = field(repr=False)
    frames: pd.DataFrame = field(repr=False)
    users: Sequence[int]
    devices: Mapping[int, str]

    @property
    def subject(self) -> Scheme | None:
        """Return the scheme that the report asks about: the first fusion that ablates nothing, else the first one."""
        whole = [scheme for scheme in self.schemes.values() if not scheme.ablates]
        fused = [scheme for scheme in whole if scheme.learned and scheme.plays == "fusion"]
        return next(iter(fused or whole), None)

    @property
    def baselines(self) -> list[Scheme]:
        """Return what the subject is held against: those of the same backbone first."""
        subject = self.subject
        others = [s for s in self.schemes.values() if not s.ablates and s != subject]
        return sorted(others, key=lambda scheme: not scheme.learned)

    @property
    def panels(self) -> list[Panel]:
        """Return where schemes are compared, in the order of scenarios, sets, and falling ratios."""
        keys = self.images[["scenario", "set", "bandwidth_ratio"]].drop_duplicates()
        scenarios, sets = list(self.scenarios), list(dict.fromkeys(self.frames["set"]))
        panels = [
            Panel(str(a), str(b), float(c)) for a, b, c in keys.itertuples(index=False) if a in scenarios
        ]
        return sorted(panels, key=lambda p: (scenarios.index(p.scenario), sets.index(p.set), -p.ratio))


def facts_of(run: Run) -> Facts:
    """Return what a run compared; frames and images of trials that were not completed are left out.

    Args:
        run: A run of semantic broadcast.
    """
    campaign = campaign_of(run.manifest)
    trials = run.completed[["trial", "policy", "scenario", "repeat"]].rename(columns={"policy": "scheme"})
    frames = run.frames.merge(trials, on="trial", how="inner")
    keys = [
        "trial",
        "frame",
        "scheme",
        "scenario",
        "repeat",
        "set",
        "pair",
        "model",
        "bandwidth_ratio",
        "share",
    ]
    images = run.images.merge(frames[keys], on=["trial", "frame"], how="inner")
    named = [str(name) for name in [*run.schemes["scheme"], *run.trials["policy"]]]
    schemes = {
        name: _scheme(name, run.schemes[run.schemes["scheme"] == name], images)
        for name in ordered(_names(campaign.get("schemes")), named)
    }
    asked = {entry["name"]: entry for entry in _entries(campaign.get("scenarios"))}
    scenarios = {
        name: _scenario(name, asked.get(name, {}), images)
        for name in ordered(_names(campaign.get("scenarios")), run.trials["scenario"])
    }
    pairs = images.loc[images["device"].notna(), ["user", "device"]].drop_duplicates("user")
    devices = {int(user): str(device) for user, device in pairs.itertuples(index=False)}
    users = sorted({int(user) for user in images["user"]})
    return Facts(schemes, scenarios, images, frames, users, devices)


def ratio_name(ratio: float) -> str:
    """Return a bandwidth ratio as people write it: ``1/6``; as a decimal where it is no such fraction."""
    whole = round(1 / ratio) if ratio > 0 else 0
    return f"1/{whole}" if whole and math.isclose(ratio * whole, 1, rel_tol=5e-3) else f"{ratio:.3g}"


def _scheme(name: str, rows: pd.DataFrame, images: pd.DataFrame) -> Scheme:
    if rows.empty:
        used = images.loc[images["scheme"] == name, "model"].dropna().unique()
        return Scheme(name, "learned" if len(used) else "digital", "", models=tuple(map(str, used)))
    first = rows.iloc[0]
    models = tuple(dict.fromkeys(str(model) for model in rows["model"].dropna()))
    texts = {
        key: "" if pd.isna(first[key]) else str(first[key]) for key in ("kind", "plays", "codec", "ablates")
    }
    return Scheme(name, **texts, models=models)


def _scenario(name: str, entry: Mapping[str, Any], images: pd.DataFrame) -> Scenario:
    snr = entry.get("snr_db")
    if not isinstance(snr, list):
        own = images[images["scenario"] == name].groupby("user")["snr_db"].first()
        snr = [float(value) for value in own]
    error = entry.get("csi_error")
    fading = entry.get("fading")
    return Scenario(
        name,
        tuple(float(value) for value in snr),
        str(fading) if fading else "none",
        float(error) if isinstance(error, int | float) else 0.0,
    )


def _entries(listed: Any) -> list[dict[str, Any]]:
    if not isinstance(listed, list):
        return []
    return [entry for entry in listed if isinstance(entry, dict) and "name" in entry]


def _names(listed: Any) -> list[str]:
    return [str(entry["name"]) for entry in _entries(listed)]
