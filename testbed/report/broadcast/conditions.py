"""Under what conditions a broadcast was made, in a few words: what its figures depend on beside its schemes."""

from __future__ import annotations

from collections.abc import Mapping

from testbed.records.run import Run
from testbed.report.broadcast.facts import Facts, ratio_name

__all__ = ["broadcast_conditions"]


def broadcast_conditions(run: Run, facts: Facts) -> list[tuple[str, str]]:
    """Return the bandwidth ratios, the images, and how frames reached the users.

    Args:
        run: The run.
        facts: What was compared.

    Returns:
        Names and values, both short.
    """
    found = []
    ratios = sorted({float(ratio) for ratio in facts.frames["bandwidth_ratio"]}, reverse=True)
    if ratios:
        found.append(("k/n", ", ".join(ratio_name(ratio) for ratio in ratios)))
    sets = list(dict.fromkeys(map(str, facts.frames["set"])))
    if sets:
        found.append(("images", ", ".join(sets)))
    network = (run.manifest.get("inventory") or {}).get("network")
    if isinstance(network, Mapping) and network.get("multicast"):
        found.append(("sent by", "multicast"))
    elif not run.manifest.get("simulated") and facts.frames["copies"].notna().any():
        found.append(("sent as", "one copy for each user"))
    return found
