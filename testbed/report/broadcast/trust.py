"""Can the numbers of a broadcast run be trusted: one entry for each thing that could spoil them."""

from __future__ import annotations

import math

import pandas as pd

from testbed.records.run import Run
from testbed.report.broadcast.facts import Facts
from testbed.report.broadcast.timing import PARTS, snr_error_db
from testbed.report.checks import (
    Check,
    clock_check,
    kind_check,
    links_check,
    power_check,
    security_check,
    trials_check,
)

__all__ = ["SNR_TOLERANCE_DB", "checks_of_broadcast"]

SNR_TOLERANCE_DB = 0.1
"""A measured SNR may be this far from the asked one, in the mean over a user's symbols of a scenario."""
CHANCE_SIGMA = 4
"""Where there are few symbols, it may be so many standard errors off."""


def checks_of_broadcast(run: Run, energy: pd.DataFrame, facts: Facts) -> list[Check]:
    """Return the entries of the trust strip.

    Args:
        run: The run.
        energy: What ``run.energy()`` gave.
        facts: What was compared.
    """
    if run.manifest.get("simulated"):
        return [trials_check(run), *_snr(facts), _trainings(facts), kind_check(run)]
    sent = facts.images[~facts.images["on_paper"]]
    air_ms = float(sent["air_ms"].astype("float64").mean())
    checks = [trials_check(run), links_check(run), power_check(run, energy), clock_check(run, air_ms)]
    return [*checks, _records(facts), *_snr(facts), _paper(facts), kind_check(run), security_check(run)]


def _records(facts: Facts) -> Check:
    """Hold the images against the frames: every frame that was sent has an image of each user with all its times."""
    sent = facts.frames[facts.frames["t_send_s"].notna()]
    expected = len(sent) * len(facts.users)
    images = facts.images[~facts.images["on_paper"]].merge(
        sent[["trial", "frame", "encode_ms"]], on=["trial", "frame"], how="inner"
    )
    fine = int(images[list(PARTS)].notna().all(axis=1).sum())
    title, value = "full records", f"all {expected:,}" if fine == expected else f"{expected - fine:,} missing"
    detail = f"{fine:,} of {expected:,} images of frames that were sent have their encoding, air and decoding times."
    if not expected:
        return Check(title, "none", "bad", "No frame was sent.", "latency")
    return Check(title, value, "good" if fine == expected else "bad", detail, "latency")


def _snr(facts: Facts) -> list[Check]:
    """Hold the SNR that the receivers measured against that asked for; nothing where none was measured."""
    errors = snr_error_db(facts)
    if errors.empty:
        return []
    # What a measurement over so few symbols may be off by itself: noise power over n symbols spreads by 1/sqrt(n).
    chance = CHANCE_SIGMA * 10 / math.log(10) / errors["symbols"] ** 0.5
    errors = errors.assign(limit=chance.clip(lower=SNR_TOLERANCE_DB))
    worst = errors.loc[(errors["error_db"].abs() / errors["limit"]).idxmax()]
    off = abs(float(worst["error_db"]))
    least = math.ceil(off * 100) / 100
    value = f"\N{LESS-THAN OR EQUAL TO} {least:.2f}\N{NO-BREAK SPACE}dB"
    detail = (
        f"Measured less asked SNR, in the mean over a user's {int(worst['frames'])} frames of a scenario: the largest "
        f"(user {int(worst['user'])}, {worst['scenario']}); the limit is {worst['limit']:.2g} dB."
    )
    return [Check("SNR error", value, "good" if off <= float(worst["limit"]) else "bad", detail, "trials")]


def _paper(facts: Facts) -> Check:
    paper = facts.images.groupby("scheme", sort=False)["on_paper"].all()
    names = [str(name) for name, only in paper.items() if only]
    value = f"{len(paper) - len(names)} of {len(paper)}"
    detail = "Every scheme was played on the rack."
    if names:
        detail = f"Computed at the controller for the same frames, never sent: {', '.join(names)}."
    return Check("schemes on air", value, "plain", detail, "regions")


def _trainings(facts: Facts) -> Check:
    """Tell how many trainings are behind each learned scheme: one says nothing of another."""
    counts = [len(s.models) for s in facts.schemes.values() if s.learned and s.models and not s.ablates]
    least, most = min(counts, default=0), max(counts, default=0)
    value = str(most) if least == most else f"{least} to {most}"
    detail = f"Learned schemes have {value} training seed{'s' if most != 1 else ''} each."
    return Check("training seeds", value, "plain", detail, "regions")
