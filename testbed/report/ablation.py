"""What expert selection and bandwidth allocation each do alone, and whether both together do more.

Which policies belong together is read from the campaign: a policy whose selection and bandwidth both differ from the
reference's is joint; the policy with its selection and the reference's bandwidth is "selection alone", that with its
bandwidth and the reference's selection "bandwidth alone". What else they say (`activations`, `on_loss`) must be as the
reference has it, or the difference would be that of two things.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from testbed.records.outline import campaign_of
from testbed.records.run import Run
from testbed.report.metrics import Comparison, contrast, policies_of, scenarios_of

__all__ = ["ROLES", "Ablation", "AblationRow", "ablation_rows", "ablations", "policy_settings"]

ROLES: Mapping[str, str] = {
    "bandwidth": "bandwidth alone",
    "selection": "selection alone",
    "joint": "both",
}

_REST = ("activations", "on_loss")


@dataclass(frozen=True)
class Ablation:
    """One joint policy and its two halves; at least one of them is in the campaign.

    Attributes:
        reference: The campaign's first policy.
        joint: The policy that differs in both.
        selection: The policy that differs in the selection alone.
        bandwidth: The policy that differs in the bandwidth alone.
    """

    reference: str
    joint: str
    selection: str | None
    bandwidth: str | None


@dataclass(frozen=True)
class AblationRow:
    """One part of an ablation, in one scenario or over all.

    Attributes:
        ablation: Which one.
        role: bandwidth, selection or joint.
        policy: The policy that plays it.
        against_reference: Its latency against the reference's.
        against_joint: The joint policy's latency against its own; None for the joint policy.
    """

    ablation: Ablation
    role: str
    policy: str
    against_reference: Comparison
    against_joint: Comparison | None


def policy_settings(manifest: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Return selection, bandwidth and the rest of each policy of a run's campaign file, as texts that can be compared.

    A policy without ``bandwidth`` leaves the links as the scenario has them, which is what the kind ``scenario`` does.

    Args:
        manifest: The run's manifest; its ``campaign`` is the text of the campaign file.
    """
    listed = campaign_of(manifest).get("policies")
    found = {}
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and "name" in entry:
            bandwidth = entry.get("bandwidth") or {"kind": "scenario"}
            if isinstance(bandwidth, dict) and bandwidth.get("kind") == "scenario":
                bandwidth = {"kind": "scenario"}
            rest = {key: entry[key] for key in _REST if entry.get(key) is not None}
            parts = (entry.get("selection"), bandwidth, rest)
            selection_text, bandwidth_text, rest_text = (
                json.dumps(part, sort_keys=True, default=str) for part in parts
            )
            found[str(entry["name"])] = (selection_text, bandwidth_text, rest_text)
    return found


def ablations(run: Run) -> list[Ablation]:
    """Return the ablations that the campaign's policies make, in the campaign's order of the joint ones."""
    policies, settings = policies_of(run), policy_settings(run.manifest)
    if not policies or policies[0] not in settings:
        return []
    reference = policies[0]
    base_selection, base_bandwidth, base_rest = settings[reference]
    by_settings: dict[tuple[str, str, str], str] = {}
    for name in policies:
        if name in settings:
            by_settings.setdefault(settings[name], name)
    found = []
    for name in policies:
        if name not in settings:
            continue
        selection, bandwidth, rest = settings[name]
        if selection == base_selection or bandwidth == base_bandwidth or rest != base_rest:
            continue
        alone = (
            by_settings.get((selection, base_bandwidth, base_rest)),
            by_settings.get((base_selection, bandwidth, base_rest)),
        )
        if any(alone):
            found.append(Ablation(reference, name, *alone))
    return found


def ablation_rows(run: Run, means: pd.DataFrame) -> list[AblationRow]:
    """Return the parts of every ablation: over all scenarios, then by scenario; pairs are equal repeats.

    Args:
        run: The run.
        means: What :func:`testbed.report.metrics.trial_means` gave.
    """
    scenarios, rows = scenarios_of(run), []
    for ablation in ablations(run):
        parts = {"bandwidth": ablation.bandwidth, "selection": ablation.selection, "joint": ablation.joint}
        measured: dict[str | None, list[AblationRow]] = {}
        for role, policy in parts.items():
            if policy is None:
                continue
            joint = (
                {} if role == "joint" else _by_scenario(contrast(means, scenarios, policy, ablation.joint))
            )
            for entry in contrast(means, scenarios, ablation.reference, policy):
                row = AblationRow(ablation, role, policy, entry, joint.get(entry.scenario))
                measured.setdefault(entry.scenario, []).append(row)
        rows += [row for scenario in (None, *scenarios) for row in measured.get(scenario, [])]
    return rows


def _by_scenario(entries: list[Comparison]) -> dict[str | None, Comparison]:
    return {entry.scenario: entry for entry in entries}
