"""What a run's campaign file asked for, read from the text in the manifest as far as it can be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from testbed.config.yaml import parse_yaml
from testbed.errors import InputError

__all__ = ["Outline", "campaign_of", "goes_on_with", "outline_of", "planned_trials", "was_served"]


@dataclass(frozen=True)
class Outline:
    """The plan behind a run; what the campaign file does not say is empty or None.

    Attributes:
        policies: The policies' names in the file's order, where images are broadcast the schemes'; the first is the
            reference of every comparison.
        scenarios: The scenarios' names in the file's order.
        repeats: How often each pair of a policy and a scenario is run.
        tolerance: The share by which a link may miss its rate.
        power_hz: Readings of the power rails a second.
    """

    policies: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    repeats: int | None = None
    tolerance: float | None = None
    power_hz: float | None = None

    @property
    def trials(self) -> int | None:
        """Return how many trials the campaign has."""
        if self.policies and self.scenarios and self.repeats:
            return len(self.policies) * len(self.scenarios) * self.repeats
        return None


def was_served(manifest: Mapping[str, Any]) -> bool:
    """Return whether a run did nothing but serve: then it has one trial, whatever its campaign file asks for."""
    files = manifest.get("files")
    return isinstance(files, dict) and bool(files.get("serving"))


def goes_on_with(manifest: Mapping[str, Any]) -> str:
    """Return the verb that goes on with a run that was cut off; nothing where it has to be made again."""
    if was_served(manifest):
        return ""
    if not manifest.get("simulated"):
        return "testbed run"
    return "testbed simulate" if manifest.get("workload") == "broadcast" else ""


def planned_trials(manifest: Mapping[str, Any], outline: Outline) -> int | None:
    """Return how many trials a run was to have; a simulation may have been asked for other repeats.

    Args:
        manifest: The run's manifest.
        outline: The plan behind it.
    """
    if was_served(manifest):
        return 1
    simulation = manifest.get("simulation")
    repeats = simulation.get("repeats") if isinstance(simulation, dict) else None
    return replace(outline, repeats=repeats).trials if isinstance(repeats, int) else outline.trials


def campaign_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a run's campaign file; nothing where the manifest has none that can be read.

    Args:
        manifest: The run's manifest; its ``campaign`` is the text of the campaign file.
    """
    try:
        # Read as the campaign was: to YAML 1.1, a policy named `no` would be false.
        campaign = parse_yaml(str(manifest.get("campaign") or ""), Path("campaign")).data
    except InputError:
        return {}
    return campaign if isinstance(campaign, dict) else {}


def outline_of(manifest: Mapping[str, Any]) -> Outline:
    """Return the plan behind a run.

    Args:
        manifest: The run's manifest; its ``campaign`` is the text of the campaign file.
    """
    campaign = campaign_of(manifest)
    repeats = campaign.get("repeats")
    return Outline(
        policies=_names(campaign.get("schemes" if campaign.get("workload") == "broadcast" else "policies")),
        scenarios=_names(campaign.get("scenarios")),
        repeats=repeats if isinstance(repeats, int) else None,
        tolerance=_number(campaign.get("verify"), "tolerance"),
        power_hz=_number(campaign.get("telemetry"), "power_hz"),
    )


def _number(section: Any, key: str) -> float | None:
    value = section.get(key) if isinstance(section, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _names(listed: Any) -> tuple[str, ...]:
    if not isinstance(listed, list):
        return ()
    return tuple(str(entry["name"]) for entry in listed if isinstance(entry, dict) and "name" in entry)
