"""The link budget: from where a device stands to the SNR that it has on average. Pure; draws follow from a seed."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass

import numpy as np

from testbed.config.scenario import ChannelDevice, ChannelSettings
from testbed.links.channels.pathloss import PathLoss

__all__ = ["Budget", "Draw", "budget_of", "distance_m", "path_loss_of"]


@dataclass(frozen=True)
class Draw:
    """What all random choices of one repeat of a scenario follow from.

    Attributes:
        seed: The campaign's seed.
        scenario: The scenario's name.
        repeat: The repeat, from 0.
    """

    seed: int
    scenario: str
    repeat: int

    def generator(self, device: str, what: str) -> np.random.Generator:
        """Return the random numbers of one device for one purpose.

        They do not depend on which other devices there are: a lab with one device less has the same channels.
        """
        text = json.dumps([self.seed, self.scenario, self.repeat, device, what])
        return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


@dataclass(frozen=True)
class Budget:
    """What one device's links are on average over the fading.

    Attributes:
        downlink_snr_db: The downlink's SNR over the whole band.
        uplink_snr_db: The uplink's SNR over the whole band.
        distance_m: The horizontal distance; None where the SNR was given.
        los: Whether there is a line of sight; None where the model does not ask.
        path_loss_db: The path loss without shadowing; None where the SNR was given.
        shadowing_db: What shadowing adds to the path loss; None where the SNR was given.
    """

    downlink_snr_db: float
    uplink_snr_db: float
    distance_m: float | None = None
    los: bool | None = None
    path_loss_db: float | None = None
    shadowing_db: float | None = None


def path_loss_of(settings: ChannelSettings) -> PathLoss:
    """Return the path loss model of a channel that has a carrier and a path loss."""
    assert settings.carrier_ghz is not None
    assert settings.path_loss is not None
    return PathLoss(
        name=settings.path_loss,
        carrier_ghz=settings.carrier_ghz,
        base_station_height_m=settings.base_station_height_m,
        device_height_m=settings.device_height_m,
        exponent=settings.path_loss_exponent or 2.0,
        reference_m=settings.reference_m,
        reference_loss_db=settings.reference_loss_db,
        office=settings.office,
    )


def distance_m(settings: ChannelSettings, device: ChannelDevice) -> float:
    """Return the horizontal distance of a device that has a distance or a position."""
    if device.distance_m is not None:
        return device.distance_m
    assert device.position_m is not None
    return math.dist(device.position_m, settings.base_station_m)


def budget_of(settings: ChannelSettings, device: ChannelDevice, name: str, draw: Draw) -> Budget:
    """Return the budget of one device of a channel that was checked.

    Args:
        settings: The channel's settings.
        device: Where the device stands.
        name: Its name.
        draw: What its line of sight and its shadowing follow from.
    """
    if device.distance_m is None and device.position_m is None:
        down = device.snr_db if device.downlink_snr_db is None else device.downlink_snr_db
        up = device.snr_db if device.uplink_snr_db is None else device.uplink_snr_db
        assert down is not None
        assert up is not None
        return Budget(down, up)
    path_loss = path_loss_of(settings)
    distance = distance_m(settings, device)
    los = bool(draw.generator(name, "los").random() < float(path_loss.los_probability(distance)))
    sigma_db = float(path_loss.sigma_db(los)) if settings.shadowing_db is None else settings.shadowing_db
    shadowing_db = sigma_db * float(draw.generator(name, "shadowing").standard_normal())
    loss_db = float(path_loss.loss_db(distance, los))
    assert settings.bandwidth_mhz is not None
    noise_dbm = (
        settings.noise_dbm_hz + settings.noise_figure_db + 10 * math.log10(settings.bandwidth_mhz * 1e6)
    )
    lost_db = loss_db + shadowing_db + noise_dbm
    return Budget(
        downlink_snr_db=settings.base_station_dbm - lost_db,
        uplink_snr_db=settings.device_dbm - lost_db,
        distance_m=distance,
        los=los if path_loss.family in ("umi", "inh") else None,
        path_loss_db=loss_db,
        shadowing_db=shadowing_db,
    )
