"""Can the numbers be trusted: one entry for each thing that could spoil them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from testbed.records.iterations import KEY
from testbed.records.outline import outline_of
from testbed.records.run import Run
from testbed.report.linkfacts import least_one_way_ms, links_untouched, probes_of, trial_links
from testbed.report.losses import AWAY
from testbed.report.metrics import measured_tokens, planned_trials
from testbed.report.numbers import number
from testbed.report.prediction import PredictedRun, error_row, predicted_dispatches

__all__ = [
    "COVERAGE_LEAST",
    "Check",
    "ClockError",
    "checks_of",
    "clock_check",
    "clock_errors",
    "energy_problems",
    "kind_check",
    "links_check",
    "power_check",
    "quality_only",
    "security_check",
    "trials_check",
]

COVERAGE_LEAST = 0.95
"""Below this share of a window covered by power readings, its energy is an error."""
CLOCK_SHARE = 0.2
"""A clock error above this share of the mean downlink time spoils the split into downlink, compute and uplink."""

_PLAIN = "Both ends prove a shared key; the data itself is neither encrypted nor protected against changes."
_SECURITY = {
    "tls": "Mutual TLS 1.3: both ends show a certificate of this lab’s authority, and the data is encrypted.",
    "plain": _PLAIN,
    "plain-hmac": _PLAIN,
}
SECURITY = {"tls": "TLS 1.3", "plain": "plain", "plain-hmac": "plain"}
"""What the page calls the manifest’s security modes."""


@dataclass(frozen=True)
class Check:
    """One entry of the trust strip.

    Attributes:
        title: What was checked.
        value: What was found, in a few characters.
        state: good, bad, or plain where there is nothing to judge.
        detail: One sentence.
        anchor: The id in the page where the rows behind it stand.
    """

    title: str
    value: str
    state: Literal["good", "bad", "plain"]
    detail: str
    anchor: str


@dataclass(frozen=True)
class ClockError:
    """How far a device's clock may be off, from its pings.

    Attributes:
        device: The device.
        bound_ms: The largest error that an estimate may have: half of its round trip, less what the ping takes on the
            link at least one way, as the rate and the delay asked for tell.
        drift_ppm: How fast its clock ran away from the base station's, from the first to the last estimate; NaN where
            too few.
        estimates: How many estimates there are.
    """

    device: str
    bound_ms: float
    drift_ppm: float
    estimates: int


def checks_of(run: Run, energy: pd.DataFrame, predicted: PredictedRun | None = None) -> list[Check]:
    """Return the entries of the trust strip.

    Args:
        run: The run.
        energy: What ``run.energy()`` gave.
        predicted: What :func:`testbed.report.prediction.predicted_trials` gave.
    """
    if run.manifest.get("simulated"):
        return [trials_check(run), _prediction(run, predicted), kind_check(run)]
    if quality_only(run):
        return [_passes(run), kind_check(run), security_check(run)]
    downlink_ms = float(((run.dispatches["t_received_s"] - run.dispatches["t_send_s"]) * 1000).mean())
    checks = [
        trials_check(run),
        links_check(run),
        power_check(run, energy),
        clock_check(run, downlink_ms),
        _records(run),
    ]
    if len(run.events):
        checks.append(_losses(run))
    if run.dispatches["predicted_ms"].notna().any():
        checks.append(_prediction(run, None))
    return [*checks, kind_check(run), security_check(run)]


def quality_only(run: Run) -> bool:
    """Return whether the run was asked for quality passes and no trial (`testbed evaluate`)."""
    files = run.manifest.get("files")
    return isinstance(files, dict) and files.get("evaluation") is not None and run.trials.empty


def clock_errors(run: Run) -> list[ClockError]:
    """Return the clock error of each device, in the devices' order."""
    errors = []
    tls = run.manifest.get("security") == "tls"
    for device in run.devices:
        own = run.clocks[run.clocks["device"] == device]
        if own.empty:
            continue
        span_s = float(own["t_s"].iloc[-1] - own["t_s"].iloc[0])
        moved_s = float(own["offset_s"].iloc[-1] - own["offset_s"].iloc[0])
        drift = moved_s / span_s * 1e6 if span_s > 0 else math.nan
        bounds_ms = own["rtt_ms"] / 2 - least_one_way_ms(run.links, device, own["t_s"], tls=tls)
        errors.append(ClockError(device, max(0.0, float(bounds_ms.max())), drift, len(own)))
    return errors


def energy_problems(energy: pd.DataFrame) -> pd.DataFrame:
    """Return what is wrong with the energy: one row a device, with its errors, trials and least coverage.

    Args:
        energy: What ``run.energy()`` gave.
    """
    wrong = energy[energy["error"].notna() | (energy["coverage"] < COVERAGE_LEAST) | energy["joules"].isna()]
    texts = wrong["error"].where(wrong["error"].notna(), "the readings do not cover the trials")
    grouped = wrong.assign(error=texts).groupby("device", sort=False)
    summary = grouped.agg(error=("error", _errors), trials=("trial", ", ".join), coverage=("coverage", "min"))
    return summary.reset_index()


def _errors(texts: pd.Series[str]) -> str:
    """Return the first of several errors, and how many others there are."""
    kinds = list(dict.fromkeys(texts))
    return kinds[0] if len(kinds) == 1 else f"{kinds[0]} (and {len(kinds) - 1} more of the kind)"


def trials_check(run: Run) -> Check:
    """Tell how many trials were completed."""
    done, planned = len(run.completed), planned_trials(run)
    failed = int((run.trials["state"] == "failed").sum())
    state = str(run.manifest["state"])
    value = f"{done} of {planned}" if planned else str(done)
    detail = f"The run is {state}: {value} trials completed, {failed} failed."
    good = done > 0 and not failed and state == "completed" and (planned is None or done >= planned)
    return Check("trials completed", value, "good" if good else "bad", detail, "trials")


def links_check(run: Run) -> Check:
    """Tell how many probes found a link as asked for."""
    if links_untouched(run):
        detail = (
            "Shaping is none: the links were not set, and nothing was asked of them that could be verified."
        )
        return Check("links", "not set", "plain", detail, "links")
    probes = probes_of(run)
    if probes.empty:
        return Check(
            "links", "not verified", "bad", "No link was probed: no rate can be relied on.", "links-bad"
        )
    judged = probes[probes["ok"].notna()]
    fine = int(judged["ok"].sum())
    tolerance = outline_of(run.manifest).tolerance
    within = f" of {tolerance * 100:g} %" if tolerance else ""
    detail = f"{fine} of {len(judged)} probes were within the tolerance{within} (or one frame)."
    known = trial_links(run)
    unsound = [name for name in run.completed["trial"] if known[name].state in ("off", "unverified")]
    if unsound:
        detail += f" {len(unsound)} of {len(run.completed)} completed trials had links that were off or not verified."
    if fine == len(judged) and unsound:
        value = f"{len(run.completed) - len(unsound)} of {len(run.completed)}"
        return Check("trials with sound links", value, "bad", detail, "links-bad")
    good = fine == len(judged)
    anchor = "links" if good else "links-off"
    return Check("links in tolerance", f"{fine} of {len(judged)}", "good" if good else "bad", detail, anchor)


def power_check(run: Run, energy: pd.DataFrame) -> Check:
    """Tell how much of the trials the power readings cover."""
    if energy.empty:
        return Check("power coverage", "none", "bad", "No trial has a power reading.", "energy")
    least, problems = float(energy["coverage"].min()), energy_problems(energy)
    value = f"{math.floor(least * 1000) / 10:g}\N{NO-BREAK SPACE}%"
    if problems.empty:
        detail = "The least share of a trial that the power readings of a board cover."
        return Check("power coverage", value, "good", detail, "energy")
    wrong = list(dict.fromkeys(problems["device"]))
    fine = len(run.devices) - len(wrong)
    detail = f"The energy of {', '.join(wrong)} is wrong or missing."
    return Check("boards with full power", f"{fine} of {len(run.devices)}", "bad", detail, "energy-bad")


def clock_check(run: Run, downlink_ms: float) -> Check:
    """Tell how far the devices' clocks may be off, beside what a message takes to a device.

    Args:
        run: The run.
        downlink_ms: That time, in the mean; NaN where it is not known.
    """
    errors = clock_errors(run)
    missing = [device for device in run.devices if device not in {error.device for error in errors}]
    if not errors or missing:
        detail = f"No clock estimate of {', '.join(missing) or 'any device'}: the split into links and compute is void."
        return Check("clock error", "unknown", "bad", detail, "clocks")
    worst = max(errors, key=lambda error: error.bound_ms)
    value = f"\N{LESS-THAN OR EQUAL TO} {number(worst.bound_ms, 2)}\N{NO-BREAK SPACE}ms"
    detail = (
        f"Half of the round trip of a clock estimate, less what the link itself takes one way ({worst.device}, the "
        "largest)."
    )
    if np.isfinite(downlink_ms) and worst.bound_ms > CLOCK_SHARE * downlink_ms:
        detail += (
            f" That is more than {CLOCK_SHARE:.0%} of the mean downlink time ({number(downlink_ms)} ms)."
        )
        return Check("clock error", value, "bad", detail, "clocks")
    return Check("clock error", value, "good", detail, "clocks")


def _records(run: Run) -> Check:
    """Hold the dispatches against the tokens: a token without any, or without all stamps, has lost records."""
    every, dispatches = run.numbered
    tokens = measured_tokens(run, every)
    if tokens.empty:
        return Check("tokens with full records", "none", "bad", "No token was recorded.", "time")
    stamps = ["t_received_s", "t_started_s", "t_computed_s", "t_replied_s"]
    passes = dispatches.assign(whole=dispatches[stamps].notna().all(axis=1))
    by_pass = passes.groupby(KEY, sort=False).agg(layers=("layer", "nunique"), whole=("whole", "all"))
    expected = dispatches["layer"].nunique()
    found = by_pass.reindex(pd.MultiIndex.from_frame(tokens[KEY]))
    fine = int(((found["layers"] == expected) & (found["whole"] == True)).sum())  # noqa: E712
    detail = f"{fine} of {len(tokens)} tokens have every layer's dispatches with every time stamp."
    value = f"{fine} of {len(tokens)}"
    return Check("tokens with full records", value, "good" if fine == len(tokens) else "bad", detail, "time")


def _losses(run: Run) -> Check:
    """Tell how often a device was lost or late: an experiment may be about that, so it is not red in itself."""
    away = run.events[run.events["event"].isin(AWAY)]
    names = ", ".join(dict.fromkeys(away["device"].dropna()))
    detail = f"Connections that broke and deadlines that were missed ({names or 'no device named'})."
    return Check("losses of a device", str(len(away)), "plain", detail, "losses")


def _passes(run: Run) -> Check:
    """Tell how many quality passes a run without trials has; only its state says whether one is missing."""
    passes = len(run.quality[["policy", "scenario"]].drop_duplicates())
    state = str(run.manifest["state"])
    detail = f"The run is {state}: {passes} quality passes, and no trial was asked for."
    return Check(
        "quality passes", str(passes), "good" if passes and state == "completed" else "bad", detail, "rated"
    )


def _prediction(run: Run, predicted: PredictedRun | None) -> Check:
    """Tell how far the latency model is off: nothing is wrong with a run whose model is, so it is never red."""
    title, anchor = "model error", "prediction"
    if predicted is not None and not predicted.problem:
        row = error_row("all", predicted.pairs)
        of = f"{row.n} mean token latencies of {predicted.name}"
    else:
        row = error_row("all", predicted_dispatches(run))
        of = f"{row.n} dispatches"
    if not row.n:
        detail = "Nothing measured is known beside these figures, so the error of the model is not known."
        return Check(title, "unknown", "plain", detail, anchor)
    value = f"{number(100 * row.median, 2)}\N{NO-BREAK SPACE}%"
    detail = f"The median error of the latency model over {of}; the 90th percentile is {number(100 * row.p90, 2)} %."
    return Check(title, value, "plain", detail, anchor)


def kind_check(run: Run) -> Check:
    """Tell what the devices were."""
    if run.manifest.get("simulated"):
        return Check(
            "boards", "simulated", "plain", "Nothing was measured: a model made these figures.", "fleet"
        )
    if run.manifest.get("emulated"):
        detail = (
            "Boards are emulated: real SSH, links, jtop and computation; their speed and power are settings."
        )
        return Check("boards", "emulated", "plain", detail, "fleet")
    return Check("boards", "hardware", "plain", "Measured on hardware.", "fleet")


def security_check(run: Run) -> Check:
    """Tell how the data plane was secured."""
    mode = str(run.manifest.get("security") or "")
    if not mode:
        return Check(
            "data plane",
            "unknown",
            "bad",
            "The manifest does not say how the data plane is secured.",
            "fleet",
        )
    return Check(
        "data plane", SECURITY.get(mode, mode), "plain", _SECURITY.get(mode, f"Mode {mode}."), "fleet"
    )
