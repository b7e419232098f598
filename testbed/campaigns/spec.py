"""What the base station is told about a run: prompts, policies, quality texts and trials. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from testbed.campaigns.trials import Trial
from testbed.config.campaign import Campaign
from testbed.errors import InputError

__all__ = ["load_prompts", "run_spec"]


def load_prompts(campaign: Campaign) -> list[dict[str, str]]:
    """Return the campaign's prompts.

    Raises:
        InputError: A line of the prompts file is not an object with ``id`` and ``text``, or names an id twice.
    """
    prompts: list[dict[str, str]] = []
    file = campaign.prompts.file
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError.at(file, None, "", f"text in UTF-8 was expected ({error.reason})") from None
    seen: dict[str, int] = {}
    # Not splitlines(): JSON may hold other line breaks, such as U+2028, as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            prompts.append({"id": str(entry["id"]), "text": str(entry["text"])})
        except (ValueError, KeyError, TypeError):
            raise InputError.at(
                file, number, "", 'an object such as {"id": "p1", "text": "..."} was expected'
            ) from None
        name = prompts[-1]["id"]
        if not prompts[-1]["text"].strip():
            raise InputError.at(file, number, "text", f"the prompt {name} is empty")
        if name in seen:  # the records tell prompts apart by their id
            raise InputError.at(file, number, "id", f"{name} stands twice, first in line {seen[name]}")
        seen[name] = number
    count = campaign.prompts.count
    if not prompts or (count and count > len(prompts)):
        raise InputError.at(
            file, None, "", f"{count or 1} prompts were asked for, and there are {len(prompts)}"
        )
    return prompts[:count]


def run_spec(campaign: Campaign, run: str, remote: str, trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the run's specification for the base station.

    Args:
        campaign: The campaign.
        run: The run's name.
        remote: The run's folder on the base station.
        trials: All trials, in order.
    """
    quality = campaign.quality
    return {
        "run": run,
        "model": campaign.model_name,
        "max_new_tokens": campaign.prompts.max_new_tokens,
        "warmup_prompts": campaign.prompts.warmup,
        "prompts": load_prompts(campaign),
        "policies": {
            policy.name: policy.selection.model_dump(exclude_none=True) for policy in campaign.policies
        },
        "bandwidth": {
            policy.name: policy.bandwidth.settings() for policy in campaign.policies if policy.bandwidth
        },
        "quality": quality
        and {
            "window_tokens": quality.window_tokens,
            "windows": quality.windows,
            "texts": [{"name": t.stem, "path": f"{remote}/texts/{t.name}"} for t in quality.texts],
        },
        "trials": [
            {"trial": t.name, "policy": t.policy, "scenario": t.scenario, "repeat": t.repeat} for t in trials
        ],
    }
