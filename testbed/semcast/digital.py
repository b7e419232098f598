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
    # A product that should be whole may come out a little less.
    offers = [math.floor(symbols * rate + 1e-9) for rate in rates(sharing, counted_on_db, shares)]
    files = [curve.best(offered) for curve, offered in zip(curves, offers, strict=True)]
    # A file is coded into all the symbols that it has: one that is smaller than it might be is all the safer, and what
    # is not sent is in nobody's way.
    sent_rates = [file.bits / symbols if file else 0.0 for file in files]
    sent_shares = [share if file else 0.0 for share, file in zip(shares, files, strict=True)]
    order = strongest_first(counted_on_db)
    heard = (
        decodes(sharing, sent_rates, sent_shares, order, user, link.true_snr_db)
        for user, link in enumerate(links)
    )
    return tuple(
        Delivery(offered, file, file.data if file and whole else None)
        for offered, file, whole in zip(offers, files, heard, strict=True)
    )
