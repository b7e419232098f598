"""What is believed of a link: the distribution of its gain given the estimate, and the SNR to count on. Pure.

The estimate is ``b = h + e`` with ``e`` complex Gaussian of variance ``v``. Under Rayleigh fading ``h`` is complex
Gaussian of variance 1 beforehand, so that given ``b`` it is Gaussian with mean ``b / (1 + v)`` and variance ``v / (1 +
v)`` (linear minimum mean square error). Without fading nothing is assumed of ``h`` beforehand: mean ``b``, variance
``v``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["Link", "link_of"]

#: A gain of nothing, in dB.
_NOTHING_DB = -300.0


class Link(NamedTuple):
    """One user's channel during a block.

    Attributes:
        snr_db: The mean SNR.
        true: The complex gain that there is.
        expected: The gain to expect, given the estimate.
        variance: The variance of the error that is left.
    """

    snr_db: float
    true: complex
    expected: complex
    variance: float

    @property
    def true_snr_db(self) -> float:
        """The SNR of the block as it is."""
        return self.snr_db + _power_db(abs(self.true) ** 2)

    def reliable_snr_db(self, outage: float) -> float:
        """Return the SNR that the true one exceeds with a probability of 1 - ``outage``, given the estimate.

        Without an error that is the SNR itself, whatever the outage. With one, ``2 |h|^2 / variance`` has a noncentral
        chi-squared distribution with two degrees of freedom.

        Raises:
            ValueError: The outage is not at least 0 and below 1.
        """
        _check(outage)
        if self.variance <= 0:
            return self.snr_db + _power_db(abs(self.expected) ** 2)
        from scipy.stats import ncx2

        scale = self.variance / 2
        return self.snr_db + _power_db(scale * float(ncx2.ppf(outage, 2, abs(self.expected) ** 2 / scale)))

    def reliable_equalised_snr_db(self, outage: float) -> float:
        """Return the SNR that a receiver who divides by the expected gain has with a probability of 1 - ``outage``.

        What is left of the gain's error disturbs such a receiver as noise does. Its power is exponentially distributed.

        Raises:
            ValueError: The outage is not at least 0 and below 1.
        """
        _check(outage)
        noise = 10 ** (-self.snr_db / 10)
        if self.variance > 0:
            noise += -self.variance * math.log(outage) if outage > 0 else math.inf
        return _power_db(abs(self.expected) ** 2 / noise)


def link_of(snr_db: float, true: complex, believed: complex, csi_error: float, *, fading: bool) -> Link:
    """Return what is believed of a link whose gain was estimated.

    Args:
        snr_db: The mean SNR.
        true: The gain.
        believed: The estimate of the gain.
        csi_error: The variance of the estimate's error.
        fading: Whether the gain was drawn from a complex Gaussian distribution of variance 1.

    Raises:
        ValueError: The variance is negative.
    """
    if not csi_error >= 0:
        raise ValueError(f"a variance of at least 0 was expected, not {csi_error!r}")
    shrink = 1 + csi_error if fading else 1.0
    return Link(snr_db, true, believed / shrink, csi_error / shrink)


def _check(outage: float) -> None:
    if not 0 <= outage < 1:
        raise ValueError(f"an outage of at least 0 and below 1 was expected, not {outage!r}")


def _power_db(power: float) -> float:
    return 10 * math.log10(power) if power > 0 else _NOTHING_DB
