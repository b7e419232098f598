"""Digital broadcast at capacity: a file for each user, and an ideal code that is as good as information theory allows.

A user's file may have as many bits as the symbols of the block times the user's rate. The transmitter chooses the
rates by what it believes of the channel; the receiver is an ideal one that knows its gain when it decodes, so that a
message is lost exactly when the channel turns out to carry less than was sent. No side information is counted: rates
follow from what all sides know already, and a file says where it ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from testbed.semcast.belief import Link
from testbed.semcast.capacity import decodes, rates, strongest_first
from testbed.semcast.codecs import Attempt, Curve

__all__ = ["Delivery", "play_digital"]


class Delivery(NamedTuple):
    """What came of one user's file.

    Attributes:
        offered_bits: How many bits there was room for.
        sent: The file that was sent; None where none is small enough.
        data: What the user received of it: the file, or None.
    """

    offered_bits: int
    sent: Attempt | None
    data: bytes | None


def play_digital(
    curves: Sequence[Curve],
    links: Sequence[Link],
    counted_on_db: Sequence[float],
    *,
    sharing: str,
    shares: Sequence[float],
    symbols: int,
) -> tuple[Delivery, ...]:
    """Return what each user receives of a block.

    Args:
        curves: What the codec makes of each user's image.
        links: The users' channels.
        counted_on_db: The SNRs that the transmitter counts on.
        sharing: One of :data:`testbed.semcast.capacity.SHARINGS`.
        shares: The users' shares.
        symbols: The complex symbols of the block.

    Raises:
        ValueError: There is no such sharing, or the shares are none.
    """
    sent_rates = rates(sharing, counted_on_db, shares)
    order = strongest_first(counted_on_db)
    found = []
    for user, (curve, link) in enumerate(zip(curves, links, strict=True)):
        # A product that should be whole may come out a little less.
        offered = math.floor(symbols * sent_rates[user] + 1e-9)
        file = curve.best(offered)
        heard = file is not None and decodes(sharing, sent_rates, shares, order, user, link.true_snr_db)
        found.append(Delivery(offered, file, file.data if heard and file is not None else None))
    return tuple(found)
