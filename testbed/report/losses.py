"""What happened to devices that were lost or late, and what tokens got meanwhile: tables ``events`` and ``tokens``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from testbed.records.run import Run
from testbed.report.conditions import policy_key
from testbed.report.metrics import measured_requests, measured_tokens, policies_of, scenarios_of

__all__ = ["AWAY", "BACK", "Absence", "LossRow", "absences", "loss_rows", "loss_rules"]

AWAY = ("lost", "deadline")
"""The events that begin an absence of a device."""
BACK = "readmitted"
"""The event that ends it."""


@dataclass(frozen=True)
class LossRow:
    """What became of one policy's requests in one scenario.

    Attributes:
        policy: The policy.
        scenario: The scenario.
        trials: Its trials, failed ones included.
        failed: How many of them failed.
        lost: How often a connection to a device broke.
        late: How often a device missed a deadline.
        back: How often one was taken back.
        requests: Its measured requests.
        whole: How many of them were answered in full.
        wanted: Pairs that its tokens were to get; None where that was not recorded.
        dropped: Pairs that they did not get.
        rerouted: Pairs that another device served.
        touched: Tokens that lost a pair.
        tokens: All of its tokens.
    """

    policy: str
    scenario: str
    trials: int
    failed: int
    lost: int
    late: int
    back: int
    requests: int
    whole: int
    wanted: int | None
    dropped: int
    rerouted: int
    touched: int
    tokens: int


@dataclass(frozen=True)
class Absence:
    """A stretch of a trial without one device, in seconds since the run's start; it may last to the trial's end."""

    device: str
    begin_s: float
    end_s: float


def loss_rules(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return each policy's rule for lost devices in words, by the campaign file; empty where it says none.

    Args:
        manifest: The run's manifest.
    """
    rules = {}
    for policy, said in policy_key(manifest, "on_loss").items():
        settings = said if isinstance(said, dict) else {}
        words = _RULES.get(str(settings.get("kind")), "")
        if settings.get("kind") == "replica":
            words += f", else {_RULES.get(str(settings.get('then') or 'fail'), '')}"
        rules[policy] = words
    return rules


_RULES = {
    "fail": "the trial fails",
    "replica": "another holder of the expert is asked",
    "drop": "the token goes without",
    "wait": "the device is waited for",
}


def loss_rows(run: Run) -> list[LossRow]:
    """Return what became of the requests by policy and scenario, in the campaign's order, where anything happened."""
    keys = ["policy", "scenario"]
    events = run.events.merge(run.trials[["trial", *keys]], on="trial", how="inner")
    requests, tokens = measured_requests(run), measured_tokens(run)
    rows = []
    for policy in policies_of(run):
        for scenario in scenarios_of(run):
            own, trials, asked, made = (
                frame[(frame["policy"] == policy) & (frame["scenario"] == scenario)]
                for frame in (events, run.trials, requests, tokens)
            )
            if own.empty:
                continue
            counts = own["event"].value_counts()
            known = made["wanted"].notna().any()
            rows.append(
                LossRow(
                    policy,
                    scenario,
                    trials=len(trials),
                    failed=int((trials["state"] == "failed").sum()),
                    lost=int(counts.get("lost", 0)),
                    late=int(counts.get("deadline", 0)),
                    back=int(counts.get(BACK, 0)),
                    requests=len(asked),
                    whole=int(asked["whole"].sum()),
                    wanted=int(made["wanted"].sum()) if known else None,
                    dropped=int(made["lost"].fillna(0).sum()),
                    rerouted=int(made["rerouted"].fillna(0).sum()),
                    touched=int((made["lost"].fillna(0) > 0).sum()),
                    tokens=len(made),
                )
            )
    return rows


def absences(events: pd.DataFrame, end_s: float) -> list[Absence]:
    """Return when devices were away.

    Args:
        events: The events of one trial, in time order.
        end_s: The trial's end.
    """
    found, since = [], dict[str, float]()
    for row in events.to_dict("records"):
        device, t_s = row["device"], float(row["t_s"])
        if pd.isna(device):
            continue
        if row["event"] in AWAY:
            since.setdefault(str(device), t_s)
        elif row["event"] == BACK and str(device) in since:
            found.append(Absence(str(device), since.pop(str(device)), t_s))
    found += [Absence(device, begin_s, max(begin_s, end_s)) for device, begin_s in since.items()]
    return sorted(found, key=lambda one: one.begin_s)
