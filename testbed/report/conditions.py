"""Under what conditions a run was made that are not its policies' own: what its figures depend on, in a few words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from testbed.records.outline import campaign_of
from testbed.records.run import Run

__all__ = ["conditions_of", "policy_key"]


def policy_key(manifest: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return one key of each policy of a run's campaign file; None where a policy has it not."""
    listed = campaign_of(manifest).get("policies")
    return {
        str(entry["name"]): entry.get(key)
        for entry in (listed if isinstance(listed, list) else ())
        if isinstance(entry, dict) and "name" in entry
    }


def conditions_of(run: Run) -> list[tuple[str, str]]:
    """Return what is not as by default: how weights and activations are held, how prompts are read, who asks.

    Args:
        run: The run.

    Returns:
        Names and values, both short.
    """
    manifest = run.manifest
    found = []
    weights = (manifest.get("model") or {}).get("weights")
    if weights:
        found.append(("experts", str(weights)))
    activations = {policy: str(said) for policy, said in policy_key(manifest, "activations").items() if said}
    if activations:
        found.append(("activations", _grouped(activations, list(policy_key(manifest, "name")))))
    at_once = sorted({int(number) for number in run.trials["concurrency"].dropna()})
    if at_once and at_once != [1]:
        found.append(("requests at once", ", ".join(map(str, at_once))))
    prompts = campaign_of(manifest).get("prompts")
    prompts = prompts if isinstance(prompts, dict) else {}
    if prompts.get("prefill_chunk_tokens"):
        found.append(("prompts read by", f"{prompts['prefill_chunk_tokens']} tokens"))
    if prompts.get("request_deadline_s"):
        found.append(("deadline of a request", f"{prompts['request_deadline_s']} s"))
    if prompts.get("through") == "api":
        found.append(("asked through", "HTTP"))
    return found


def _grouped(said: Mapping[str, str], policies: list[str]) -> str:
    """Return the values by policy: one for all, or each with the policies that have it."""
    values = list(dict.fromkeys(said.values()))
    if len(values) == 1 and len(said) == len(policies):
        return values[0]
    groups = [f"{value} ({', '.join(name for name in said if said[name] == value)})" for value in values]
    rest = [name for name in policies if name not in said]
    return "; ".join([*groups, *([f"as computed ({', '.join(rest)})"] if rest else [])])
