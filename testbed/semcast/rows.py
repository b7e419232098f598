"""What was sent and decoded, as rows of the tables `schemes`, `frames` and `images`. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from payloads.semcast.spec import Block, Spec
from testbed.config.broadcast import VALUES_OF_PATCH, BroadcastCampaign
from testbed.semcast.models import Model
from testbed.semcast.pairs import Pairs

__all__ = ["Pixels", "block_columns", "digest", "image_columns", "scheme_rows"]

Pixels = NDArray[np.uint8]


def scheme_rows(campaign: BroadcastCampaign, models: Mapping[str, Model]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table ``schemes``, in the order of the campaign file.

    Args:
        campaign: The campaign.
        models: Its models by name.
    """
    for scheme in campaign.schemes:
        common = {
            "scheme": scheme.name,
            "kind": scheme.kind,
            "codec": scheme.codec,
            "ablates": scheme.ablates,
        }
        if scheme.kind != "learned":
            yield {**common, "plays": scheme.sharing, "model": None, "training_seed": None}
        for folder in scheme.models:
            model = models[folder.name]
            plays = str(model.config.get("scheme"))
            yield {**common, "plays": plays, "model": model.name, "training_seed": model.training_seed}


def block_columns(block: Block, sets: Mapping[str, Pairs]) -> dict[str, Any]:
    """Return the columns of ``frames`` that follow from the block.

    Args:
        block: The block.
        sets: The pairs of each set.
    """
    return {
        "set": block.set,
        "pair": sets[block.set].name(block.pair),
        "bandwidth_ratio": block.slots / (2 * VALUES_OF_PATCH),
        "share": block.shares[0],
    }


def image_columns(
    spec: Spec, sets: Mapping[str, Pairs], block: Block, scenario: str, user: int, pixels: Pixels
) -> dict[str, Any]:
    """Return the columns of ``images`` that follow from what was sent and what was decoded.

    Args:
        spec: The run's specification.
        sets: The pairs of each set.
        block: The block.
        scenario: The scenario's name.
        user: The user, from 1.
        pixels: (H, W, 3), what was decoded.
    """
    from testbed.semcast.measures import ms_ssim, psnr_db, ssim

    pairs = sets[block.set]
    source = pairs.pixels[block.pair, user - 1]
    return {
        "user": user,
        "image": pairs.names[block.pair][user - 1],
        "snr_db": spec.scenarios[scenario].snr_db[user - 1],
        "psnr_db": psnr_db(source, pixels),
        "ssim": ssim(source, pixels),
        "ms_ssim": ms_ssim(source, pixels),
        "digest": digest(pixels),
    }


def digest(pixels: Pixels) -> str:
    """Return 16 hexadecimal digits of the sha256 of an image's bytes (H, W, 3), as the receivers do."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]
