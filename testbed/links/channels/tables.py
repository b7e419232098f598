"""Modulation and coding tables: which SNR carries how much. Pure.

- ``cqi-1`` and ``cqi-2`` are 3GPP TS 38.214, tables 5.2.2.1-2 and 5.2.2.1-3 (up to 64-QAM and up to 256-QAM). The
  specification leaves open at which SNR a receiver reports a CQI. Reconstruction: the SNR at which log2(1 + SNR / gap)
  is the CQI's efficiency. The gap is a setting, 3 dB unless it is said otherwise; measured thresholds can stand in
  place of the rule (``thresholds_db``).
- ``wifi-6`` is IEEE 802.11ax, one spatial stream, guard interval 0.8 us: data subcarriers x bits x code rate in 13.6
  us. The lowest SNR of an MCS follows from the standard's minimum receiver sensitivity for 20 MHz, which
  assumes a noise figure of 10 dB and an implementation margin of 5 dB: sensitivity - thermal noise - 10 dB - 5 dB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = [
    "CQI_TABLES",
    "WIFI_6",
    "WIFI_6_SUBCARRIERS",
    "WIFI_6_THRESHOLDS_DB",
    "Mcs",
    "cqi_thresholds_db",
    "wifi_6_efficiencies",
]

_BITS = {"BPSK": 1, "QPSK": 2, "16-QAM": 4, "64-QAM": 6, "256-QAM": 8, "1024-QAM": 10}


@dataclass(frozen=True)
class Mcs:
    """One row of a table.

    Attributes:
        modulation: Its name.
        rate_1024: The code rate times 1024.
        efficiency: Bits a symbol as the specification's table prints them.
    """

    modulation: str
    rate_1024: float
    efficiency: float

    @property
    def bits(self) -> int:
        """Coded bits a symbol."""
        return _BITS[self.modulation]


CQI_TABLES = {
    "cqi-1": (
        Mcs("QPSK", 78, 0.1523),
        Mcs("QPSK", 120, 0.2344),
        Mcs("QPSK", 193, 0.3770),
        Mcs("QPSK", 308, 0.6016),
        Mcs("QPSK", 449, 0.8770),
        Mcs("QPSK", 602, 1.1758),
        Mcs("16-QAM", 378, 1.4766),
        Mcs("16-QAM", 490, 1.9141),
        Mcs("16-QAM", 616, 2.4063),
        Mcs("64-QAM", 466, 2.7305),
        Mcs("64-QAM", 567, 3.3223),
        Mcs("64-QAM", 666, 3.9023),
        Mcs("64-QAM", 772, 4.5234),
        Mcs("64-QAM", 873, 5.1152),
        Mcs("64-QAM", 948, 5.5547),
    ),
    "cqi-2": (
        Mcs("QPSK", 78, 0.1523),
        Mcs("QPSK", 193, 0.3770),
        Mcs("QPSK", 449, 0.8770),
        Mcs("16-QAM", 378, 1.4766),
        Mcs("16-QAM", 490, 1.9141),
        Mcs("16-QAM", 616, 2.4063),
        Mcs("64-QAM", 466, 2.7305),
        Mcs("64-QAM", 567, 3.3223),
        Mcs("64-QAM", 666, 3.9023),
        Mcs("64-QAM", 772, 4.5234),
        Mcs("64-QAM", 873, 5.1152),
        Mcs("256-QAM", 711, 5.5547),
        Mcs("256-QAM", 797, 6.2266),
        Mcs("256-QAM", 885, 6.9141),
        Mcs("256-QAM", 948, 7.4063),
    ),
}
"""CQI 1 to 15 of each table; CQI 0 is out of range."""


def _he(modulation: str, numerator: int, denominator: int) -> Mcs:
    rate = numerator / denominator
    return Mcs(modulation, rate * 1024, _BITS[modulation] * rate)


WIFI_6 = (
    _he("BPSK", 1, 2),
    _he("QPSK", 1, 2),
    _he("QPSK", 3, 4),
    _he("16-QAM", 1, 2),
    _he("16-QAM", 3, 4),
    _he("64-QAM", 2, 3),
    _he("64-QAM", 3, 4),
    _he("64-QAM", 5, 6),
    _he("256-QAM", 3, 4),
    _he("256-QAM", 5, 6),
    _he("1024-QAM", 3, 4),
    _he("1024-QAM", 5, 6),
)
"""HE-MCS 0 to 11; the efficiency is in bits a data subcarrier and symbol."""

WIFI_6_SUBCARRIERS = {20: 234, 40: 468, 80: 980, 160: 1960}
"""Data subcarriers by the channel's width in MHz: RUs of 242, 484, 996 and 2 x 996 tones."""

_HE_SYMBOL_US = 12.8 + 0.8
_HE_SENSITIVITY_DBM = (-82, -79, -77, -74, -70, -66, -65, -64, -59, -57, -54, -52)
_HE_NOISE_FIGURE_DB = 10.0
_HE_MARGIN_DB = 5.0
_THERMAL_DBM_HZ = -174.0
_NOISE_20_MHZ_DBM = _THERMAL_DBM_HZ + 10 * math.log10(20e6)

WIFI_6_THRESHOLDS_DB = tuple(
    sensitivity - _NOISE_20_MHZ_DBM - _HE_NOISE_FIGURE_DB - _HE_MARGIN_DB
    for sensitivity in _HE_SENSITIVITY_DBM
)
"""The lowest SNR of HE-MCS 0 to 11 in dB."""


def wifi_6_efficiencies(width_mhz: int) -> tuple[float, ...]:
    """Return what HE-MCS 0 to 11 carry, in bit/s per Hz of the channel's width.

    Args:
        width_mhz: 20, 40, 80 or 160.
    """
    symbols_per_us = WIFI_6_SUBCARRIERS[width_mhz] / _HE_SYMBOL_US
    return tuple(row.efficiency * symbols_per_us / width_mhz for row in WIFI_6)


def cqi_thresholds_db(table: str, gap_db: float) -> tuple[float, ...]:
    """Return the lowest SNR of CQI 1 to 15 in dB, by the Shannon limit and a gap above it.

    Args:
        table: ``cqi-1`` or ``cqi-2``.
        gap_db: The gap.
    """
    return tuple(gap_db + 10 * math.log10(2**row.efficiency - 1) for row in CQI_TABLES[table])
