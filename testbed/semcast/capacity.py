"""What can be told to users at all: rate regions of the Gaussian degraded broadcast channel. Pure.

Rates are in bits for each complex symbol of the block. The transmitter's mean power is 1, and the noise of user i has
the variance ``10 ** (-SNR_i / 10)``. Superposition with successive cancellation reaches the whole capacity region
(Cover 1972, Bergmans 1973); time division, each user alone in its share of the symbols at the same power, does not.

A *share* is what a user has of the symbols (time division) or of the power (superposition). Shares of all users sum to
1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

__all__ = [
    "SHARINGS",
    "capacity",
    "decodes",
    "rates",
    "split_symbols",
    "strongest_first",
    "superposition",
    "time_division",
]

#: How users share a block.
SHARINGS = ("time_division", "superposition")

_TOLERANCE = 1e-9


def capacity(snr_db: float) -> float:
    """Return what one user alone can be told: log2(1 + SNR), from an SNR in dB (minus infinity gives 0)."""
    return math.log2(1 + 10 ** (snr_db / 10))


def strongest_first(snr_db: Sequence[float]) -> tuple[int, ...]:
    """Return the users' places, the strongest first; of equal ones the earlier counts as the stronger."""
    return tuple(sorted(range(len(snr_db)), key=lambda user: -snr_db[user]))


def time_division(snr_db: Sequence[float], shares: Sequence[float]) -> tuple[float, ...]:
    """Return what each user is told where it has its share of the symbols for itself.

    Args:
        snr_db: The users' SNRs.
        shares: Their shares of the symbols.

    Raises:
        ValueError: The shares are none, or not as many as the SNRs.
    """
    _check(snr_db, shares)
    return tuple(share * capacity(snr) for snr, share in zip(snr_db, shares, strict=True))


def superposition(snr_db: Sequence[float], shares: Sequence[float]) -> tuple[float, ...]:
    """Return a point on the boundary of the capacity region.

    A user takes what is for stronger users for noise, and subtracts what is for weaker ones, which it can decode as
    well.

    Args:
        snr_db: The users' SNRs, in any order.
        shares: Their shares of the power.

    Raises:
        ValueError: The shares are none, or not as many as the SNRs.
    """
    _check(snr_db, shares)
    found = [0.0] * len(shares)
    above = 0.0
    for user in strongest_first(snr_db):
        found[user] = _through(snr_db[user], shares[user], above)
        above += shares[user]
    return tuple(found)


def rates(sharing: str, snr_db: Sequence[float], shares: Sequence[float]) -> tuple[float, ...]:
    """Return what each user can be told under one of the :data:`SHARINGS`.

    Raises:
        ValueError: There is no such sharing, or the shares are none.
    """
    if sharing == "time_division":
        return time_division(snr_db, shares)
    if sharing == "superposition":
        return superposition(snr_db, shares)
    raise ValueError(f"no sharing is called {sharing!r}; expected one of {', '.join(SHARINGS)}")


def decodes(
    sharing: str,
    sent_rates: Sequence[float],
    shares: Sequence[float],
    order: Sequence[int],
    user: int,
    snr_db: float,
) -> bool:
    """Return whether an ideal receiver has its message, where rates were chosen before the channel was known.

    Under superposition it decodes the layers of the users that were taken to be weaker, the weakest first, subtracts
    each, and takes what is left of the others for noise.

    Args:
        sharing: One of the :data:`SHARINGS`.
        sent_rates: The users' rates in bits for each symbol of the block.
        shares: The users' shares.
        order: The users, strongest first, as the transmitter took them to be.
        user: Whose receiver this is.
        snr_db: The SNR that this receiver really has.
    """
    if sent_rates[user] <= 0:
        return False
    if sharing == "time_division":
        return sent_rates[user] <= shares[user] * capacity(snr_db) + _TOLERANCE
    ours = order.index(user)
    for place in range(len(order) - 1, ours - 1, -1):
        layer = order[place]
        above = sum(shares[other] for other in order[:place])
        if sent_rates[layer] > _through(snr_db, shares[layer], above) + _TOLERANCE:
            return False
    return True


def split_symbols(symbols: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Return how many of a block's symbols each user has under time division; together they are all of them.

    Each boundary between users is rounded to the nearest symbol, so that no rounding error adds up.
    """
    bounds, reached = [0], 0.0
    for share in shares[:-1]:
        reached += share
        bounds.append(min(symbols, max(bounds[-1], math.floor(reached * symbols + 0.5))))
    bounds.append(symbols)
    return tuple(end - start for start, end in itertools.pairwise(bounds))


def _through(snr_db: float, share: float, above: float) -> float:
    """Return the rate of a layer with a share of the power, where layers with a power of ``above`` are noise to it."""
    noise = 10 ** (-snr_db / 10) if snr_db > -math.inf else math.inf
    return math.log2(1 + share / (above + noise))


def _check(snr_db: Sequence[float], shares: Sequence[float]) -> None:
    if len(snr_db) != len(shares):
        raise ValueError(f"{len(snr_db)} SNRs and {len(shares)} shares do not go together")
    if any(not 0 <= share <= 1 + _TOLERANCE for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares from 0 to 1 that sum to 1 were expected, not {list(shares)!r}")
