"""A device's clock on the run's time.

A device stamps its records with its own monotonic clock. The base station estimates, before and after every trial,
what must be added to that clock to get its own. Between two estimates the offset is taken as linear, which follows
the drift of the device's crystal; outside of them it is constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from testbed.errors import InputError

__all__ = ["DeviceClock"]

BOOT_S = 1.0


@dataclass(frozen=True)
class DeviceClock:
    """Maps a device's monotonic clock to seconds since the run's start.

    Attributes:
        mono_s: The device's clock at the estimates, for each boot of the device, ascending.
        offset_s: What gives seconds since the run's start when added to the device's clock.
    """

    mono_s: tuple[NDArray[np.float64], ...]
    offset_s: tuple[NDArray[np.float64], ...]

    @classmethod
    def from_estimates(cls, t_s: ArrayLike, offset_s: ArrayLike, started_unix: float, device: str) -> Self:
        """Make the clock from the base station's estimates.

        Args:
            t_s: When each estimate was made, in seconds since the run's start.
            offset_s: Base station's unix time less the device's monotonic clock.
            started_unix: The run's start in unix seconds on the base station's clock.
            device: The device's name, for messages.

        Raises:
            InputError: There is no estimate.
        """
        times, offsets = np.asarray(t_s, dtype=float), np.asarray(offset_s, dtype=float) - started_unix
        if times.size == 0:
            raise InputError(f"{device}: its clock was never compared with the base station's")
        order = np.argsort(times, kind="stable")
        times, offsets = times[order], offsets[order]
        mono = times - offsets
        # A boot takes longer than any round trip; estimates that lie close together differ by theirs.
        boots = np.flatnonzero((np.diff(mono) < 0) & (np.diff(offsets) > BOOT_S)) + 1
        parts = [np.argsort(part, kind="stable") for part in np.split(mono, boots)]
        return cls(
            tuple(part[order] for part, order in zip(np.split(mono, boots), parts, strict=True)),
            tuple(part[order] for part, order in zip(np.split(offsets, boots), parts, strict=True)),
        )

    def run_seconds(self, mono_ns: ArrayLike) -> NDArray[np.float64]:
        """Return time stamps of the device in seconds since the run's start.

        Args:
            mono_ns: The device's monotonic clock in nanoseconds, in the order of recording: a step backwards is a
                boot of the device.

        Raises:
            InputError: The device was booted in between, and the clocks were not compared in each boot.
        """
        stamps = np.asarray(mono_ns, dtype=np.int64)
        if stamps.size == 0:
            return np.empty(0)
        parts = np.split(stamps, np.flatnonzero(np.diff(stamps) < 0) + 1)
        if len(self.mono_s) == 1 and len(parts) == 1:
            boots = [0]
        elif len(self.mono_s) == len(parts):
            boots = list(range(len(parts)))
        else:
            raise InputError(
                f"the device's clock starts anew {len(parts) - 1} times in its records and "
                f"{len(self.mono_s) - 1} times in the comparisons with the base station's"
            )
        return np.concatenate([self._in_boot(boot, part) for boot, part in zip(boots, parts, strict=True)])

    def _in_boot(self, boot: int, stamps: NDArray[np.int64]) -> NDArray[np.float64]:
        mono_s = stamps / 1e9
        return mono_s + np.interp(mono_s, self.mono_s[boot], self.offset_s[boot])
