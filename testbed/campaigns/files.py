"""The files that a campaign reads, by their digests: what a run was made from, and whether it is still so."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from payloads.wdmoe.user_policy import is_user_kind, split_kind
from testbed.config.campaign import Campaign
from testbed.config.campaign_base import CampaignBase
from testbed.errors import InputError

__all__ = ["check_unchanged", "file_digests"]


def file_digests(campaign: CampaignBase) -> dict[str, str]:
    """Return the sha256 of every file that a campaign names, beside the lab, models and images: those have their own.

    Prompts, held-out texts, questions, recorded channels, the calibration, and policies of the user's own. They go by
    their absolute paths: a run goes on by the campaign's, however it was named when the run was started.

    Args:
        campaign: The campaign.

    Raises:
        OSError: A file cannot be read.
    """
    data = campaign.model_dump(exclude={"inventory", "model", "schemes", "images"})
    paths = [*_paths(data)]
    for policy in campaign.policies if isinstance(campaign, Campaign) else ():
        if is_user_kind(policy.selection.kind):
            paths.append(split_kind(policy.selection.kind)[0])
    named = dict.fromkeys(path.resolve() for path in paths)
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in named}


def check_unchanged(known: Mapping[str, str], campaign: CampaignBase, run: str) -> None:
    """Check that the files are those that a run was started with.

    Args:
        known: Their digests, as its manifest has them; a run that is older than these has none.
        campaign: The campaign.
        run: The run's name.

    Raises:
        InputError: One has changed since; the message names it.
    """
    found = file_digests(campaign) if known else {}
    for path, digest in known.items():
        # Older manifests have paths as they were typed, from the folder that the run was started in.
        if found.get(str(Path(path).resolve())) != digest:
            raise InputError(
                f"{path}: the file has changed since {run} was started",
                hint="put it back as it was, or start a new run",
            )


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _paths(entry)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _paths(entry)
