"""From a scenario to the channel that the links have in one repeat: drawn, or taken from traces.

Everything follows from the campaign's seed, the scenario's name and the repeat, so all policies of a repeat meet the
same channel. Fading is flat over the band and stays as it is for a block (the coherence time); blocks are independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from payloads.linkd.channel import Channel, Rule
from testbed.config.scenario import ChannelDevice, ChannelSettings, LinkScenario
from testbed.config.yaml import dotted
from testbed.errors import InputError
from testbed.links.channels.budget import Budget, Draw, budget_of
from testbed.links.channels.check import lacking_devices, scenario_problems
from testbed.links.channels.pathloss import Array
from testbed.links.channels.tables import (
    CQI_TABLES,
    WIFI_6_THRESHOLDS_DB,
    cqi_thresholds_db,
    wifi_6_efficiencies,
)
from testbed.links.channels.traces import Trace, block_means, read_trace

__all__ = ["budgets_of", "channel_of", "power_gains", "rule_of"]

_DEFAULT_DURATION_S = 30.0


def channel_of(scenario: LinkScenario, devices: Sequence[str], *, seed: int, repeat: int) -> Channel | None:
    """Return the channel that a scenario has in one repeat, or None where its rates are fixed.

    Args:
        scenario: The scenario.
        devices: The devices that take part.
        seed: The campaign's seed.
        repeat: The repeat, from 0.

    Raises:
        InputError: The scenario holds a mistake, lacks a device, or a trace cannot be read.
    """
    settings = scenario.channel
    if settings is None:
        return None
    _check(scenario, devices)
    if settings.model == "trace":
        return _trace_channel(settings, devices)
    return _radio_channel(settings, devices, Draw(seed, scenario.name, repeat))


def budgets_of(
    scenario: LinkScenario, devices: Sequence[str], *, seed: int, repeat: int
) -> dict[str, Budget]:
    """Return the link budgets of the devices; none where no physics makes the rates.

    Raises:
        InputError: The scenario holds a mistake, or lacks a device.
    """
    settings = scenario.channel
    if settings is None or settings.model == "trace":
        return {}
    _check(scenario, devices)
    draw = Draw(seed, scenario.name, repeat)
    return {name: budget_of(settings, _device(settings, name), name, draw) for name in devices}


def _check(scenario: LinkScenario, devices: Sequence[str]) -> None:
    for problem in (*scenario_problems(scenario), *lacking_devices(scenario, devices)):
        place = dotted(problem.place)
        raise InputError(f"scenario {scenario.name}: {place + ': ' if place else ''}{problem.text}")


def rule_of(settings: ChannelSettings) -> Rule:
    """Return what makes rates of the channel's states."""
    limits: dict[str, Any] = {"min_mbit": settings.min_mbit, "max_mbit": settings.max_mbit}
    if settings.model == "trace":
        return Rule("linear", **limits)
    assert settings.bandwidth_mhz is not None
    band: dict[str, Any] = {"bandwidth_mhz": settings.bandwidth_mhz, "scale": settings.scale, **limits}
    if settings.model == "shannon":
        return Rule("shannon", **band)
    assert settings.table is not None
    if settings.table == "wifi-6":
        thresholds, efficiencies = WIFI_6_THRESHOLDS_DB, wifi_6_efficiencies(int(settings.bandwidth_mhz))
    else:
        thresholds = cqi_thresholds_db(settings.table, settings.gap_db)
        efficiencies = tuple(row.efficiency for row in CQI_TABLES[settings.table])
    return Rule(
        "table",
        thresholds_db=settings.thresholds_db or thresholds,
        efficiencies=efficiencies,
        margin_db=settings.margin_db,
        overhead=settings.overhead,
        **band,
    )


def power_gains(generator: np.random.Generator, fading: str, blocks: int, k_db: float | None = None) -> Array:
    """Return independent power gains of mean one.

    Args:
        generator: Where they are drawn from.
        fading: ``none``, ``rayleigh`` (exponential gains) or ``rician``.
        blocks: How many.
        k_db: The power of the direct path over that of all others, for ``rician``.
    """
    if fading == "none":
        return np.ones(blocks)
    if fading == "rayleigh":
        return generator.exponential(1.0, blocks)
    k = 10 ** ((k_db or 0.0) / 10)
    scattered = generator.normal(0.0, math.sqrt(1 / (2 * (k + 1))), (2, blocks))
    gains: Array = (math.sqrt(k / (k + 1)) + scattered[0]) ** 2 + scattered[1] ** 2
    return gains


def _radio_channel(settings: ChannelSettings, devices: Sequence[str], draw: Draw) -> Channel:
    duration_s = settings.duration_s or _DEFAULT_DURATION_S
    block_s = duration_s if settings.fading == "none" else min(settings.coherence_ms / 1e3, duration_s)
    edges = _edges(duration_s, block_s)
    blocks = len(edges) - 1
    assert settings.bandwidth_mhz is not None
    states = np.empty((2, blocks, len(devices)))
    for number, name in enumerate(devices):
        budget = budget_of(settings, _device(settings, name), name, draw)
        for side, snr_db in enumerate((budget.downlink_snr_db, budget.uplink_snr_db)):
            what = "fading" if settings.reciprocal else ("downlink", "uplink")[side]
            generator = draw.generator(name, what)
            gains = power_gains(generator, settings.fading, blocks, settings.rician_k_db)
            states[side, :, number] = 10 ** (snr_db / 10) * settings.bandwidth_mhz * gains
    return _channel(settings, devices, edges, states)


def _trace_channel(settings: ChannelSettings, devices: Sequence[str]) -> Channel:
    traces: dict[str, tuple[Trace, Trace]] = {}
    read: dict[Path, Trace] = {}
    for name in devices:
        device = _device(settings, name)
        pair = []
        for path in (device.downlink_file or device.file, device.uplink_file or device.file):
            assert path is not None
            if path not in read:
                bytes_ = settings.opportunity_bytes
                read[path] = read_trace(path, bin_ms=settings.bin_ms, opportunity_bytes=bytes_)
            pair.append(read[path])
        traces[name] = (pair[0], pair[1])
    duration_s = settings.duration_s or max(trace.duration_s for trace in read.values())
    edges = _edges(duration_s, min(settings.bin_ms / 1e3, duration_s))
    shares = _shares(settings, devices)
    states = np.empty((2, len(edges) - 1, len(devices)))
    for number, name in enumerate(devices):
        shifted = edges + (_device(settings, name).offset_s or 0.0)
        down, up = traces[name]
        for side, (trace, rates) in enumerate(((down, down.downlink_mbit), (up, up.uplink_mbit))):
            means = block_means(trace.t_s, trace.duration_s, rates, shifted)
            # The trace is what the device has with the share that it starts with.
            states[side, :, number] = means * settings.scale / shares[name]
    return _channel(settings, devices, edges, states)


def _edges(duration_s: float, block_s: float) -> Array:
    """Return where blocks begin, and the end; a rest of less than a millisecond is left to the last block."""
    count = max(1, math.ceil((duration_s - 1e-3) / block_s - 1e-9))
    edges: Array = np.append(np.round(np.arange(count) * block_s, 9), duration_s)
    return edges


def _channel(settings: ChannelSettings, devices: Sequence[str], edges: Array, states: Array) -> Channel:
    shares = tuple(_shares(settings, devices).values())
    down, up = (tuple(tuple(_short(row)) for row in side.tolist()) for side in states)
    return Channel(
        rule=rule_of(settings),
        devices=tuple(devices),
        shares_downlink=shares,
        shares_uplink=shares,
        t_s=tuple(edges[:-1].tolist()),
        duration_s=float(edges[-1]),
        downlink=down,
        uplink=up,
    )


def _short(row: Sequence[float]) -> list[float]:
    """Return states with nine digits, as many as any rate needs: the file is a third shorter."""
    return [float(f"{value:.9g}") for value in row]


def _shares(settings: ChannelSettings, devices: Sequence[str]) -> Mapping[str, float]:
    said = {name: _device(settings, name).share for name in devices}
    taken = sum(share for share in said.values() if share is not None)
    left = sum(share is None for share in said.values())
    return {name: (1 - taken) / left if share is None else share for name, share in said.items()}


def _device(settings: ChannelSettings, name: str) -> ChannelDevice:
    device = settings.device(name)
    assert device is not None
    return device
