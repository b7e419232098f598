"""Path loss, and who has line of sight. Pure.

UMi street canyon and InH office are those of 3GPP TR 38.901, tables 7.4.1-1 (loss, shadowing, ranges) and 7.4.2-1
(probability of a line of sight), with the default effective environment height of 1 m. The report's optional
simpler loss without line of sight is not used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PATH_LOSSES", "Array", "PathLoss", "free_space_db"]

Array = npt.NDArray[np.float64]

PATH_LOSSES = ("free-space", "log-distance", "umi", "umi-los", "umi-nlos", "inh", "inh-los", "inh-nlos")

_LIGHT_M_PER_S = 299_792_458.0
#: The report's own value, for its breakpoint distance.
_LIGHT_TR_M_PER_S = 3.0e8
_ENVIRONMENT_HEIGHT_M = 1.0
#: Standard deviations of shadowing in dB: with line of sight, without.
_SIGMA_DB = {"umi": (4.0, 7.82), "inh": (3.0, 8.03)}
_HEIGHTS_M = {"umi": (10.0, 1.5), "inh": (3.0, 1.0)}


def free_space_db(distance_m: Any, carrier_ghz: float) -> Array:
    """Return the free-space path loss (Friis) in dB."""
    wavelength_m = _LIGHT_M_PER_S / (carrier_ghz * 1e9)
    loss: Array = 20 * np.log10(4 * math.pi * np.asarray(distance_m, dtype=float) / wavelength_m)
    return loss


@dataclass(frozen=True)
class PathLoss:
    """A path loss model with its settings.

    Attributes:
        name: One of ``PATH_LOSSES``.
        carrier_ghz: The carrier's frequency.
        base_station_height_m: The base station's antenna height; the model's default where None.
        device_height_m: The devices' antenna height; the model's default where None.
        exponent: The exponent of ``log-distance``.
        reference_m: Where ``log-distance`` begins.
        reference_loss_db: Its loss there; that of free space where None.
        office: ``mixed`` or ``open``, for the line of sight of ``inh``.
    """

    name: str
    carrier_ghz: float
    base_station_height_m: float | None = None
    device_height_m: float | None = None
    exponent: float = 2.0
    reference_m: float = 1.0
    reference_loss_db: float | None = None
    office: str = "mixed"

    @property
    def family(self) -> str:
        """``umi``, ``inh``, ``free-space`` or ``log-distance``."""
        return self.name.removesuffix("-nlos").removesuffix("-los")

    @property
    def heights_m(self) -> tuple[float, float]:
        """The antenna heights of the base station and of the devices."""
        station, device = self.base_station_height_m, self.device_height_m
        default = _HEIGHTS_M.get(self.family)
        if default:
            return default[0] if station is None else station, default[1] if device is None else device
        # Where one height alone is given, the other end is as high.
        if station is None:
            station = 0.0 if device is None else device
        return station, station if device is None else device

    def distance_3d_m(self, distance_m: Any) -> Array:
        """Return the distances between the antennas for horizontal distances."""
        station, device = self.heights_m
        distance: Array = np.hypot(np.asarray(distance_m, dtype=float), station - device)
        return distance

    @property
    def breakpoint_m(self) -> float:
        """The breakpoint distance d'BP of UMi (TR 38.901, table 7.4.1-1, note 1)."""
        station, device = self.heights_m
        effective = (station - _ENVIRONMENT_HEIGHT_M) * (device - _ENVIRONMENT_HEIGHT_M)
        return 4 * effective * self.carrier_ghz * 1e9 / _LIGHT_TR_M_PER_S

    def los_probability(self, distance_m: Any) -> Array:
        """Return how likely a line of sight is at horizontal distances; 1 for models that draw none."""
        d = np.asarray(distance_m, dtype=float)
        if self.name == "umi":
            far = np.maximum(d, 18.0)
            likely: Array = 18 / far + np.exp(-far / 36) * (1 - 18 / far)
            return likely
        if self.name == "inh" and self.office == "mixed":
            near = np.exp(-(np.maximum(d, 1.2) - 1.2) / 4.7)
            return np.where(d < 6.5, near, np.exp(-(d - 6.5) / 32.6) * 0.32)
        if self.name == "inh":
            near = np.exp(-(np.maximum(d, 5.0) - 5) / 70.8)
            return np.where(d <= 49, near, np.exp(-(d - 49) / 211.7) * 0.54)
        return np.full_like(d, 0.0 if self.name.endswith("-nlos") else 1.0)

    def loss_db(self, distance_m: Any, los: Any) -> Array:
        """Return the path loss in dB, without shadowing.

        Args:
            distance_m: Horizontal distances.
            los: Whether each has a line of sight; models without the question ignore it.
        """
        d3 = self.distance_3d_m(distance_m)
        if self.family == "free-space":
            return free_space_db(d3, self.carrier_ghz)
        if self.family == "log-distance":
            start = self.reference_loss_db
            if start is None:
                start = float(free_space_db(self.reference_m, self.carrier_ghz))
            loss: Array = start + 10 * self.exponent * np.log10(d3 / self.reference_m)
            return loss
        with_los, without = self._umi_db(distance_m, d3) if self.family == "umi" else self._inh_db(d3)
        return np.where(los, with_los, np.maximum(with_los, without))

    def _umi_db(self, distance_m: Any, d3: Array) -> tuple[Array, Array]:
        station, device = self.heights_m
        near = 32.4 + 21 * np.log10(d3) + 20 * math.log10(self.carrier_ghz)
        bend_db = 9.5 * math.log10(self.breakpoint_m**2 + (station - device) ** 2)
        far = 32.4 + 40 * np.log10(d3) + 20 * math.log10(self.carrier_ghz) - bend_db
        with_los = np.where(np.asarray(distance_m) <= self.breakpoint_m, near, far)
        without = 22.4 + 35.3 * np.log10(d3) + 21.3 * math.log10(self.carrier_ghz) - 0.3 * (device - 1.5)
        return with_los, without

    def _inh_db(self, d3: Array) -> tuple[Array, Array]:
        with_los = 32.4 + 17.3 * np.log10(d3) + 20 * math.log10(self.carrier_ghz)
        without = 17.3 + 38.3 * np.log10(d3) + 24.9 * math.log10(self.carrier_ghz)
        return with_los, without

    def sigma_db(self, los: Any) -> Array:
        """Return the model's own standard deviation of shadowing in dB; 0 where it has none."""
        with_los, without = _SIGMA_DB.get(self.family, (0.0, 0.0))
        return np.where(los, with_los, without)

    def setting_problems(self) -> Iterator[tuple[str, str]]:
        """Yield settings outside the model's range: a setting's name and what was expected."""
        station, device = self.heights_m
        if self.family in _SIGMA_DB and not 0.5 <= self.carrier_ghz <= 100:
            yield "carrier_ghz", f"{self.name} is for 0.5 to 100 GHz, not {self.carrier_ghz:g}"
        if self.family != "umi":
            return
        if station != _HEIGHTS_M["umi"][0]:
            yield (
                "base_station_height_m",
                f"{self.name} is for a base station at 10 m, not {station:g}",
            )
        if not 1.5 <= device <= 22.5:
            yield "device_height_m", f"{self.name} is for devices at 1.5 to 22.5 m, not {device:g}"

    def distance_problem(self, distance_m: float) -> str | None:
        """Return why the model is not for a horizontal distance, or None where it is."""
        d3 = float(self.distance_3d_m(distance_m))
        if self.family == "umi":
            if not 10 <= distance_m <= 5000:
                return f"{self.name} is for 10 to 5000 m, not {distance_m:g}"
        elif self.family == "inh":
            if not 1 <= d3 <= 150:
                return f"{self.name} is for 1 to 150 m from antenna to antenna, not {d3:.4g}"
        elif self.family == "log-distance":
            if d3 < self.reference_m:
                return f"{self.name} begins at reference_m = {self.reference_m:g} m; the antennas are {d3:.4g} m apart"
        elif d3 < (wavelength_m := _LIGHT_M_PER_S / (self.carrier_ghz * 1e9)):
            return (
                f"{self.name} begins at a wavelength, {wavelength_m:.3g} m; the antennas are {d3:.4g} m apart"
            )
        return None
