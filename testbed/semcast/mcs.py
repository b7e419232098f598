"""Modulation and coding schemes, and when they can be relied on. Pure, but for the measured file beside it.

The schemes are those of TS 38.214, table 5.1.3.1-1, but for the first three, whose code rates of less than 1/5 need a
repetition in the rate matching that the link-level library does not do. In their place the fourth one is sent several
times, and the receiver takes the mean. ``link_level.json`` holds what ``scripts/measure_mcs.py`` measured
by coding and decoding: for each scheme and some sizes of code blocks the SNR at which half of the blocks are lost, and
how wide the slope is.
"""

from __future__ import annotations

import bisect
import functools
import json
import math
from dataclasses import dataclass
from importlib import resources
from statistics import NormalDist
from typing import NamedTuple

__all__ = ["MCS_TABLE", "Mcs", "Waterfall", "limit_db", "threshold_db", "waterfall_of", "waterfalls"]

MEASURED = "link_level.json"

#: What is added to thresholds for the errors of the fits and between measured sizes: without it blocks of some sizes
#: are lost several times as often as asked.
_MARGIN_DB = 0.15


class Mcs(NamedTuple):
    """A modulation and coding scheme.

    Attributes:
        number: Its place in the table of TS 38.214.
        bits: Coded bits in a symbol: 2, 4 or 6.
        code_rate: Information bits, with all checksums, for each coded bit.
        repeats: How many times each symbol is sent.
    """

    number: int
    bits: int
    code_rate: float
    repeats: int = 1

    @property
    def efficiency(self) -> float:
        """Information bits for each symbol."""
        return self.bits * self.code_rate / self.repeats


def _table() -> tuple[Mcs, ...]:
    qpsk = (251, 308, 379, 449, 526, 602, 679)
    qam16 = (340, 378, 434, 490, 553, 616, 658)
    qam64 = (438, 466, 517, 567, 616, 666, 719, 772, 822, 873, 910, 948)
    of_bits = {2: qpsk, 4: qam16, 6: qam64}
    pairs = [(bits, part / 1024) for bits, parts in of_bits.items() for part in parts]
    once = [Mcs(number, bits, rate) for number, (bits, rate) in enumerate(pairs, 3)]
    return (*(once[0]._replace(repeats=repeats) for repeats in (8, 4, 3, 2)), *once)


MCS_TABLE = _table()
"""The schemes: number 3 repeated, then 3 to 28. At 17 the efficiency is a little less than at 16."""


@dataclass(frozen=True)
class Waterfall:
    """How block errors vanish with the SNR: ``BLER = Q((snr - middle) / spread)``, a fit to measured blocks.

    Attributes:
        code_block_bits: The size of the code blocks, checksums included.
        coded_bits: What became of each by coding.
        middle_db: The SNR at which half of them are lost.
        spread_db: The standard deviation of the slope.
        blocks: How many were measured.
    """

    code_block_bits: int
    coded_bits: float
    middle_db: float
    spread_db: float
    blocks: int

    def error_rate(self, snr_db: float) -> float:
        """Return the part of the blocks that are lost at an SNR."""
        return 1 - NormalDist(self.middle_db, self.spread_db).cdf(snr_db)

    def threshold_db(self, error_rate: float) -> float:
        """Return the SNR at which this part of the blocks is lost."""
        return NormalDist(self.middle_db, self.spread_db).inv_cdf(1 - error_rate)


@functools.cache
def waterfalls() -> dict[int, tuple[Waterfall, ...]]:
    """Return what was measured: for each number of a scheme its slopes, the smallest blocks first."""
    text = resources.files(__package__).joinpath(MEASURED).read_text(encoding="utf-8")
    return {
        row["mcs"]: tuple(
            sorted((Waterfall(**one) for one in row["sizes"]), key=lambda one: one.code_block_bits)
        )
        for row in json.loads(text)["schemes"]
    }


def waterfall_of(mcs: Mcs, code_block_bits: int, coded_bits: float) -> Waterfall:
    """Return the slope of a scheme, sent once, for code blocks that become so many coded bits.

    Between measured sizes the spread and the gap to Shannon's limit are interpolated by the logarithm of the size. The
    limit is that of the block itself: sizes come in steps, and a block that leaves room is safer than its scheme says.
    """
    known = waterfalls()[mcs.number]
    place = bisect.bisect_left(known, code_block_bits, key=lambda one: one.code_block_bits)
    low, high = known[max(0, place - 1)], known[min(place, len(known) - 1)]
    part = 0.0
    if low is not high:
        part = math.log(code_block_bits / low.code_block_bits)
        part /= math.log(high.code_block_bits / low.code_block_bits)
    gaps_db = [
        one.middle_db - limit_db(mcs.bits * one.code_block_bits / one.coded_bits) for one in (low, high)
    ]
    return Waterfall(
        code_block_bits,
        coded_bits,
        limit_db(mcs.bits * code_block_bits / coded_bits) + gaps_db[0] + part * (gaps_db[1] - gaps_db[0]),
        low.spread_db + part * (high.spread_db - low.spread_db),
        min(low.blocks, high.blocks),
    )


def threshold_db(
    mcs: Mcs, code_block_bits: int, code_blocks: int, coded_bits: int, error_rate: float
) -> float:
    """Return the SNR from which a transport block is lost with at most about this probability.

    Args:
        mcs: The scheme.
        code_block_bits: The size of its code blocks, checksums included.
        code_blocks: How many code blocks it has; one that is lost loses all.
        coded_bits: What became of all of them by coding, without repetitions.
        error_rate: The probability, above 0 and below 1.
    """
    each = 1 - (1 - error_rate) ** (1 / code_blocks)
    slope = waterfall_of(mcs, code_block_bits, coded_bits / code_blocks)
    return slope.threshold_db(each) + _MARGIN_DB - 10 * math.log10(mcs.repeats)


def limit_db(efficiency: float) -> float:
    """Return the SNR from which so many bits a symbol can be told at all."""
    return 10 * math.log10(2**efficiency - 1)
