"""What a broadcast campaign needs on this machine, seen before any host is asked."""

from __future__ import annotations

import importlib.util

from testbed.config.broadcast import BroadcastCampaign
from testbed.errors import InputError
from testbed.semcast.models import models_of
from testbed.semcast.pairs import pairs_of

__all__ = ["check_playable"]


def check_playable(campaign: BroadcastCampaign) -> None:
    """Check that models have weights and sets their images, and that what computes the schemes is installed.

    Args:
        campaign: The campaign.

    Raises:
        InputError: Something is missing.
    """
    models_of(campaign)
    for number, images in enumerate(campaign.images):
        try:
            pairs_of(images, len(campaign.users))
        except InputError as error:
            mistake = campaign.mistake((("images", number), error.message))
            mistake.hint = error.hint
            raise mistake from None
    needing = [scheme.name for scheme in campaign.schemes if scheme.kind == "practical"]
    if needing and importlib.util.find_spec("sionna") is None:
        raise InputError(
            f"the scheme {needing[0]} codes with sionna-no-rt, which is not installed",
            hint="in testbed's folder: pip install -c constraints.txt -e '.[link-level]'",
        )
