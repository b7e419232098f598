"""What the links do in a trial: fixed rates, or a channel that makes rates over time."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from payloads.wdmoe.serve.access import MOST_AT_ONCE
from testbed.config.model import Count, FilePath, Model, Name, Rate

__all__ = [
    "DEFAULT",
    "ChannelDevice",
    "ChannelSettings",
    "Link",
    "LinkRates",
    "LinkScenario",
    "PathLossName",
    "Scenario",
    "TableName",
]

DEFAULT = "default"
"""The entry for every device that is not named."""

PathLossName = Literal[
    "free-space", "log-distance", "umi", "umi-los", "umi-nlos", "inh", "inh-los", "inh-nlos"
]
TableName = Literal["cqi-1", "cqi-2", "wifi-6"]

Number = Annotated[float, Field(strict=True)]
NotNegative = Annotated[float, Field(strict=True, ge=0)]
Position = Annotated[tuple[Number, ...], Field(min_length=2, max_length=2)]


class LinkRates(Model):
    """The rates of one device's link."""

    downlink_mbit: Rate
    """From the base station to the device, in Mbit/s."""
    uplink_mbit: Rate
    """From the device to the base station, in Mbit/s."""


class Link(Model):
    """What a scenario says about one device's link."""

    downlink_mbit: Rate | None = None
    """From the base station to the device, in Mbit/s; not where the scenario has a channel."""
    uplink_mbit: Rate | None = None
    """From the device to the base station, in Mbit/s; not where the scenario has a channel."""
    delay_ms: Annotated[float, Field(strict=True, ge=0, le=10_000)] | None = None
    """How much later each packet arrives, one way, in both directions."""
    jitter_ms: Annotated[float, Field(strict=True, ge=0, le=2_000)] | None = None
    """How far the delay varies to either side of `delay_ms`; at most as much as that."""
    loss_percent: Annotated[float, Field(strict=True, ge=0, lt=100)] | None = None
    """How many of a hundred packets are lost, at random, in both directions."""


class ChannelDevice(Model):
    """Where one device stands in the channel."""

    distance_m: Rate | None = None
    """The horizontal distance from the base station, in metres."""
    position_m: Position | None = None
    """Its place on the ground, `[x, y]` in metres; the base station's is `base_station_m`."""
    snr_db: Number | None = None
    """The mean SNR over the whole band in both directions, in place of a distance."""
    downlink_snr_db: Number | None = None
    """The mean SNR of the downlink over the whole band."""
    uplink_snr_db: Number | None = None
    """The mean SNR of the uplink over the whole band."""
    file: FilePath | None = None
    """A trace of the rate: `.csv`, or a Mahimahi trace (any other ending); for both directions."""
    downlink_file: FilePath | None = None
    """A trace for the downlink alone."""
    uplink_file: FilePath | None = None
    """A trace for the uplink alone."""
    offset_s: NotNegative | None = None
    """How far into its trace the device starts, in seconds."""
    share: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    """The share of the band that it starts with; what is left is shared equally by devices without one."""


class ChannelSettings(Model):
    """A channel: what makes the links' rates over time."""

    model: Literal["shannon", "mcs", "trace"]
    """`shannon` (capacity), `mcs` (the rates of a modulation and coding table) or `trace` (recorded rates)."""
    devices: dict[str, ChannelDevice]
    """Where each device stands; `default` is for what a device's own entry does not say."""
    duration_s: Annotated[float, Field(strict=True, gt=0, le=86_400)] | None = None
    """How long the channel is before it starts again: 30 s, or for traces as long as the longest one."""
    scale: Rate = 1.0
    """What all rates are multiplied by, so that they fit the lab."""
    min_mbit: Rate = 0.05
    """The lowest rate of a link; what would be lower counts as an outage."""
    max_mbit: Rate = 1000.0
    """The highest rate of a link."""

    bandwidth_mhz: Rate | None = None
    """The whole band, which the devices share, in each direction (models `shannon`, `mcs`)."""
    carrier_ghz: Rate | None = None
    """The carrier's frequency (with a distance or a position)."""
    path_loss: PathLossName | None = None
    """The path loss; `umi` and `inh` draw who has line of sight (with a distance or a position)."""
    path_loss_exponent: Rate | None = None
    """The exponent of `log-distance`."""
    reference_m: Rate = 1.0
    """The distance at which `log-distance` begins."""
    reference_loss_db: Number | None = None
    """The loss at `reference_m`; that of free space where it is left out."""
    office: Literal["mixed", "open"] = "mixed"
    """Which of the two offices `inh` draws lines of sight by."""
    base_station_m: Position = (0.0, 0.0)
    """The base station's place on the ground, `[x, y]` in metres."""
    base_station_height_m: NotNegative | None = None
    """Its antenna's height: 10 m for `umi`, 3 m for `inh`, otherwise that of the devices."""
    device_height_m: NotNegative | None = None
    """The devices' antennas' height: 1.5 m for `umi`, 1 m for `inh`."""
    shadowing_db: NotNegative | None = None
    """The standard deviation of log-normal shadowing: the path loss model's own, otherwise none."""
    fading: Literal["none", "rayleigh", "rician"] = "rayleigh"
    """How the power varies from block to block (models `shannon`, `mcs`)."""
    rician_k_db: Number | None = None
    """How much stronger the direct path is than all others together (fading `rician`)."""
    coherence_ms: Annotated[float, Field(strict=True, ge=1)] = 50.0
    """How long a block is, in which the channel stays as it is."""
    reciprocal: Annotated[bool, Field(strict=True)] = False
    """Whether both directions fade alike, as in one band used in turns."""
    base_station_dbm: Number = 40.0
    """The base station's transmit power; each device's part of the band gets it whole."""
    device_dbm: Number = 23.0
    """Each device's transmit power."""
    noise_dbm_hz: Number = -174.0
    """The noise's density at the receiver."""
    noise_figure_db: NotNegative = 7.0
    """What the receivers add to the noise, at both ends."""

    table: TableName | None = None
    """The table of `mcs`: `cqi-1` or `cqi-2` (5G, up to 64-QAM or 256-QAM), or `wifi-6`."""
    gap_db: NotNegative = 3.0
    """How far a CQI's SNR is above the Shannon limit of its efficiency (tables `cqi-1`, `cqi-2`)."""
    thresholds_db: Annotated[tuple[Number, ...], Field(min_length=1)] | None = None
    """The lowest SNR of each row of the table, in place of the computed ones (model `mcs`)."""
    margin_db: Number = 0.0
    """How far above a row's lowest SNR the link has to be (model `mcs`)."""
    overhead: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    """The part of the rate that carries no data, as a share of it (model `mcs`)."""

    bin_ms: Annotated[float, Field(strict=True, ge=1)] = 100.0
    """How long a block is, over which a trace is averaged (model `trace`)."""
    opportunity_bytes: Count = 1504
    """What one line of a Mahimahi trace delivers (model `trace`)."""

    def device(self, name: str) -> ChannelDevice | None:
        """Return what is said about one device, the default's words for what its own entry leaves out.

        Where the device stands (distance, position or SNR), and which trace it has, are each taken whole from one
        entry: a device with an SNR of its own does not also stand at the default's distance.
        """
        own, default = self.devices.get(name), self.devices.get(DEFAULT)
        if own is None or default is None:
            return own or default
        given = own.model_dump(exclude_none=True)
        kept = default.model_dump(exclude_none=True)
        for group in (_PLACE, _TRACE):
            if any(key in given for key in group):
                kept = {key: value for key, value in kept.items() if key not in group}
        return ChannelDevice.model_construct(**{**kept, **given})


_PLACE = ("distance_m", "position_m", "snr_db", "downlink_snr_db", "uplink_snr_db")
_TRACE = ("file", "downlink_file", "uplink_file")


class LinkScenario(Model):
    """What the links do in a trial, whatever crosses them."""

    name: Name
    """The scenario's name in the records."""
    links: dict[str, Link] = Field(default_factory=dict)
    """Rates, delay and loss by device; `default` is for what a device's own entry does not say."""
    channel: ChannelSettings | None = None
    """What makes the rates over time, in place of rates in `links`."""

    def rates(self, device: str) -> LinkRates:
        """Return the fixed rates of one device.

        Raises:
            KeyError: The scenario says nothing about the device, or a channel makes its rates.
        """
        down, up = self._said(device, "downlink_mbit"), self._said(device, "uplink_mbit")
        if down is None or up is None:
            raise KeyError(device)
        return LinkRates(downlink_mbit=down, uplink_mbit=up)

    def impairments(self, device: str) -> tuple[float, float, float]:
        """Return the one-way delay and jitter (ms) and the loss (percent) of one device's link."""
        delay, jitter, loss = (
            self._said(device, key) or 0.0 for key in ("delay_ms", "jitter_ms", "loss_percent")
        )
        return delay, jitter, loss

    def _said(self, device: str, key: str) -> float | None:
        for name in (device, DEFAULT):
            value: float | None = getattr(self.links.get(name), key, None)
            if value is not None:
                return value
        return None


class Scenario(LinkScenario):
    """What the links do in a trial of split experts, and how many requests are under way."""

    concurrency: Annotated[int, Field(strict=True, ge=1, le=MOST_AT_ONCE)] = 1
    """How many requests are answered at once: when one ends the next begins."""
