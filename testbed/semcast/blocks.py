"""What every scheme of a broadcast campaign sends alike, as the specification that the transmitter reads. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from testbed.campaigns.trials import Trial
from testbed.config.broadcast import BroadcastCampaign, slots_of
from testbed.semcast.pairs import Pairs

__all__ = ["blocks_of", "broadcast_spec", "image_file", "shown_blocks"]


def blocks_of(campaign: BroadcastCampaign, sets: Mapping[str, Pairs]) -> list[dict[str, Any]]:
    """Return the blocks in order: by set, then bandwidth ratio, then share, then pair.

    Args:
        campaign: The campaign.
        sets: The pairs of each set.
    """
    return [
        {"set": name, "pair": pair, "slots": slots_of(ratio), "shares": list(campaign.parts(share))}
        for name, pairs in sets.items()
        for ratio in campaign.bandwidth_ratios
        for share in campaign.shares
        for pair in range(len(pairs.names))
    ]


def shown_blocks(blocks: Sequence[Mapping[str, Any]]) -> set[int]:
    """Return the numbers of the blocks whose images are kept as pictures.

    Of each set and bandwidth ratio that is the first pair, at the share that divides most evenly.
    """
    best: dict[tuple[str, int], tuple[float, int]] = {}
    for number, block in enumerate(blocks):
        if block["pair"] == 0:
            shares = block["shares"]
            uneven = max(shares) - min(shares)
            key = block["set"], block["slots"]
            best[key] = min(best.get(key, (uneven, number)), (uneven, number))
    return {number for _, number in best.values()}


def broadcast_spec(
    campaign: BroadcastCampaign, run: str, remote: str, trials: Iterable[Trial], sets: Mapping[str, Pairs]
) -> dict[str, Any]:
    """Return a run's specification for the transmitter; :mod:`payloads.semcast.spec` reads it.

    Args:
        campaign: The campaign.
        run: The run's name.
        remote: The run's folder on the base station.
        trials: The trials that run on the rack, in order.
        sets: The pairs of each set.
    """
    return {
        "workload": campaign.workload,
        "run": run,
        "seed": campaign.seed,
        "users": list(campaign.users),
        "sets": {
            name: {
                "file": image_file(remote, name),
                "pairs": len(pairs.names),
                "height": int(pairs.pixels.shape[2]),
                "width": int(pairs.pixels.shape[3]),
            }
            for name, pairs in sets.items()
        },
        "blocks": blocks_of(campaign, sets),
        "schemes": {scheme.name: [model.name for model in scheme.models] for scheme in campaign.learned},
        "scenarios": {
            scenario.name: {
                "snr_db": list(scenario.snr_db),
                "fading": scenario.fading,
                "csi_error": scenario.csi_error,
            }
            for scenario in campaign.scenarios
        },
        "trials": [
            {"trial": trial.name, "scheme": trial.policy, "scenario": trial.scenario, "repeat": trial.repeat}
            for trial in trials
        ],
    }


def image_file(remote: str, name: str) -> str:
    """Return where the base station finds the images of a set."""
    return f"{remote}/images/{name}.bin"
