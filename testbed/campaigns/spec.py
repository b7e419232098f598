"""What the base station is told about a run: prompts, policies, quality texts and trials. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from payloads.wdmoe.latency import LatencyModel
from payloads.wdmoe.user_policy import is_user_kind, read_user_policy, split_kind
from testbed.campaigns.imagined import Imagined
from testbed.campaigns.trials import Trial
from testbed.config.campaign import Campaign, Policy
from testbed.errors import InputError

__all__ = ["imagined_file", "load_prompts", "policy_files", "run_spec"]


def load_prompts(campaign: Campaign) -> list[dict[str, str]]:
    """Return the campaign's prompts.

    Raises:
        InputError: A line of the prompts file is not an object with ``id`` and ``text``, or names an id twice; or
            there are fewer prompts than a scenario has requests at once.
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
            if not isinstance(entry["text"], str) or type(entry["id"]) not in (str, int):
                raise TypeError
            prompts.append({"id": str(entry["id"]), "text": entry["text"]})
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
    if not prompts:
        raise InputError.at(file, None, "", "at least one prompt was expected, and there is none")
    if count and count > len(prompts):
        text = f"{count} prompts were asked for, and there are {len(prompts)} in {file}"
        raise campaign.mistake((("prompts", "count"), text))
    asked = prompts[:count]
    for number, scenario in enumerate(campaign.scenarios):
        if scenario.concurrency > len(asked):  # so many could never be under way at once
            text = (
                f"{scenario.concurrency} requests at once were asked for, and there are {len(asked)} prompts"
            )
            raise campaign.mistake((("scenarios", number, "concurrency"), text))
    return asked


def run_spec(
    campaign: Campaign,
    run: str,
    remote: str,
    trials: Sequence[Trial],
    latency: LatencyModel,
    imagined: Sequence[Imagined],
) -> dict[str, Any]:
    """Return the run's specification for the base station.

    Args:
        campaign: The campaign.
        run: The run's name.
        remote: The run's folder on the base station.
        trials: All trials, in order.
        latency: What dispatches are expected to take.
        imagined: The links of the scenarios that quality passes follow.
    """
    return {
        "run": run,
        "model": campaign.model_name,
        "max_new_tokens": campaign.prompts.max_new_tokens,
        "warmup_prompts": campaign.prompts.warmup,
        "prompts": load_prompts(campaign),
        "policies": {policy.name: _selection(policy, remote) for policy in campaign.policies},
        "bandwidth": {
            policy.name: policy.bandwidth.settings() for policy in campaign.policies if policy.bandwidth
        },
        "loss": {policy.name: policy.on_loss.settings() for policy in campaign.policies if policy.on_loss},
        "activations": {
            policy.name: policy.activations for policy in campaign.policies if policy.activations
        },
        "serving": {
            "prefill_chunk_tokens": campaign.prompts.prefill_chunk_tokens,
            "request_deadline_s": campaign.prompts.request_deadline_s,
            "through": campaign.prompts.through,
        },
        "latency": latency.as_json(),
        "quality": _quality(campaign, remote),
        "scenarios": {
            links.scenario: {
                "channel": None if links.channel is None else imagined_file(remote, links),
                "delay_ms": dict(links.delay_ms),
            }
            for links in imagined
        },
        "trials": [
            {
                "trial": trial.name,
                "policy": trial.policy,
                "scenario": trial.scenario,
                "repeat": trial.repeat,
                "concurrency": trial.concurrency,
            }
            for trial in trials
        ],
    }


def imagined_file(remote: str, links: Imagined) -> str:
    """Return where the base station finds the links of a scenario that it imagines."""
    return f"{remote}/channels/{links.scenario}-imagined.json"


def policy_files(campaign: Campaign, remote: str) -> Mapping[str, Path]:
    """Return the files of the policies of the user's own, by the place that they get on the base station."""
    files: dict[str, Path] = {}
    for policy in campaign.policies:
        if is_user_kind(policy.selection.kind):
            path, name = split_kind(policy.selection.kind)
            files[_policy_file(remote, read_user_policy(path, name).sha256, path)] = path
    return files


def _policy_file(remote: str, sha256: str, path: Path) -> str:
    return f"{remote}/policies/{sha256[:16]}/{path.name}"


def _selection(policy: Policy, remote: str) -> dict[str, Any]:
    """Return the settings of a policy's selection; a class of the user's own is where its file is staged."""
    settings = policy.selection.settings()
    if not is_user_kind(settings["kind"]):
        return settings
    path, name = split_kind(settings["kind"])
    sha256 = read_user_policy(path, name).sha256
    return {**settings, "kind": f"{_policy_file(remote, sha256, path)}:{name}", "sha256": sha256}


def _quality(campaign: Campaign, remote: str) -> dict[str, Any] | None:
    quality = campaign.quality
    if quality is None:
        return None
    return {
        "window_tokens": quality.window_tokens,
        "windows": quality.windows,
        "texts": [{"name": t.stem, "path": f"{remote}/texts/{t.name}"} for t in quality.texts],
        "way": quality.way,
        "choices": [{"name": f.stem, "path": f"{remote}/choices/{f.name}"} for f in quality.choices],
        "choice_count": quality.choice_count,
    }
