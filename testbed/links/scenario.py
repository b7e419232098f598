"""A scenario's rates as a shaping plan; the link daemon's answers as rows of the table ``links``. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from payloads.linkd.channel import DIRECTIONS, Channel
from payloads.linkd.model import MAX_RATE_MBIT, MIN_RATE_MBIT
from testbed.config.inventory import Host, Inventory
from testbed.config.scenario import LinkScenario
from testbed.config.shaping import IMPAIRMENTS
from testbed.errors import InputError, TestbedError

__all__ = [
    "LinkRate",
    "OfTrial",
    "ShapingPlan",
    "check_rate",
    "links_argument",
    "links_rows",
    "merged_counters",
    "probe_answers",
    "probe_rows",
    "shaping_plan",
]

_PROBE_COLUMNS: Mapping[str, tuple[type, ...]] = {
    "device": (str,),
    "direction": (str,),
    "backend": (str, type(None)),
    "state": (str,),
    "delay_ms": (int, float),
    "asked_mbit": (int, float),
    "message_bytes": (int,),
    "n": (int,),
    "expected_ms": (int, float),
    "measured_ms": (int, float),
    "p95_ms": (int, float),
    "ratio": (int, float, type(None)),
    "ok": (bool,),
}


class OfTrial(Protocol):
    """The trial that a row belongs to."""

    @property
    def name(self) -> str:
        """The trial's name."""

    @property
    def scenario(self) -> str:
        """Its scenario's name."""


@dataclass(frozen=True)
class LinkRate:
    """What one device's link is to be.

    Attributes:
        device: The device's name in the inventory.
        address: The address that the shaping host reaches the link's other end by.
        port: The port of its worker.
        probe_port: The port of its probe responder, shaped together with the worker's.
        downlink_mbit: Frame rate from the base station to the device, in Mbit/s; None: left alone.
        uplink_mbit: Frame rate from the device to the base station, in Mbit/s; None: left alone.
        delay_ms: One-way delay of each direction, in ms.
        jitter_ms: How far a frame's delay may be from that, in ms.
        loss_percent: The share of frames that are lost, in per cent.
    """

    device: str
    address: str
    port: int
    probe_port: int
    downlink_mbit: float | None
    uplink_mbit: float | None
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss_percent: float = 0.0


@dataclass(frozen=True)
class ShapingPlan:
    """What all links are to be.

    Attributes:
        scenario: The scenario's name.
        links: The links, in the inventory's order, as the base station sees them.
    """

    scenario: str
    links: tuple[LinkRate, ...]

    def at(self, host: Host, inventory: Inventory) -> ShapingPlan:
        """Return the part of the plan that a host's link daemon carries out.

        Where each device shapes its own uplink, the base station leaves the uplinks alone, and a device has one
        link, named after itself, towards the base station.
        """
        if inventory.network.shaping != "device":
            return self
        if not host.is_device:
            return replace(self, links=tuple(replace(link, uplink_mbit=None) for link in self.links))
        bs = inventory.base_station.address
        own = (link for link in self.links if link.device == host.name)
        return replace(self, links=tuple(replace(link, address=bs, downlink_mbit=None) for link in own))


def shaping_plan(scenario: LinkScenario, inventory: Inventory, channel: Channel | None = None) -> ShapingPlan:
    """Return the links that a scenario asks for.

    Args:
        scenario: The scenario.
        inventory: The lab.
        channel: Its channel, where it has one: until it is played, the links have its mean rates.

    Raises:
        InputError: The scenario says nothing about a device, or asks for a rate that no link can be given.
    """
    means = channel.mean_rates() if channel else {}
    links = []
    for device in inventory.devices:
        try:
            down, up = means[device.name] if channel else _fixed_rates(scenario, device)
        except KeyError:
            raise InputError(
                f"scenario {scenario.name}: no rates for {device.name}, and no default"
            ) from None
        for rate in (down, up):
            check_rate(rate, f"scenario {scenario.name}: {device.name}: ")
        network = inventory.network
        delay_ms, jitter_ms, loss_percent = scenario.impairments(device.name)
        links.append(
            LinkRate(
                device=device.name,
                address=device.address,
                port=network.data_port,
                probe_port=network.probe_port,
                downlink_mbit=round(down, 6),
                uplink_mbit=round(up, 6),
                delay_ms=delay_ms,
                jitter_ms=jitter_ms,
                loss_percent=loss_percent,
            )
        )
    return ShapingPlan(scenario.name, tuple(links))


def check_rate(rate_mbit: float, where: str = "") -> None:
    """Check that links can have a rate.

    Args:
        rate_mbit: The rate in Mbit/s.
        where: What the message begins with.

    Raises:
        InputError: They cannot.
    """
    if not MIN_RATE_MBIT <= rate_mbit <= MAX_RATE_MBIT:
        raise InputError(
            f"{where}{rate_mbit:g} Mbit/s cannot be shaped",
            hint=f"a rate is {MIN_RATE_MBIT:g} to {MAX_RATE_MBIT:g} Mbit/s",
        )


def _fixed_rates(scenario: LinkScenario, device: Host) -> tuple[float, float]:
    rates = scenario.rates(device.name)
    return rates.downlink_mbit, rates.uplink_mbit


def links_argument(plan: ShapingPlan, backends: Mapping[str, str] | None = None) -> str:
    """Return the plan as the argument ``--links`` of ``linkd``; what is nought is left out.

    Args:
        plan: The links.
        backends: What shapes each direction, for a probe that cannot ask who shapes.
    """
    listed = [dict(vars(link)) for link in plan.links]  # asdict is ten times as slow
    for link in listed:
        for key in IMPAIRMENTS:
            if not link[key]:
                del link[key]
        if backends is not None:
            link["backends"] = dict(backends)
    return json.dumps(listed)


def links_rows(answer: Mapping[str, Any], *, t_s: float, trial: OfTrial) -> list[dict[str, Any]]:
    """Return what ``linkd set`` answered as rows of the table ``links``: one for each device and shaped direction.

    Args:
        answer: The answer of one host's daemon.
        t_s: When it was set, in seconds since the run's start.
        trial: The trial that it was set for.
    """
    return [
        {
            **_about(trial, t_s),
            "device": link["device"],
            "direction": direction,
            "backend": link["backends"][direction],
            "cause": "set",
            "asked_mbit": float(link[f"{direction}_mbit"]),
            "delay_ms": float(link["delay_ms"]),
            "loss_percent": float(link["loss_percent"]),
        }
        for link in answer["links"]
        for direction in DIRECTIONS
        if link[f"{direction}_mbit"] is not None
    ]


def merged_counters(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what several hosts' ``linkd show`` answered as one answer: each direction's from who shapes it.

    Args:
        answers: The answers, the base station's first.
    """
    links: dict[str, dict[str, Any]] = {}
    for answer in answers:
        for link in answer["links"]:
            known = links.setdefault(link["device"], dict(link))
            for direction in DIRECTIONS:
                if link[f"{direction}_mbit"] is not None:
                    known[direction] = link[direction]
    return {"links": list(links.values())}


def probe_rows(text: str, *, t_s: float, trial: OfTrial) -> list[dict[str, Any]]:
    """Return what ``linkd probe`` printed as rows of the table ``links``.

    Args:
        text: Its standard output: one JSON object a line.
        t_s: When it was measured, in seconds since the run's start.
        trial: The trial that it was measured for.

    Raises:
        TestbedError: A line is no row of a probe, or there is none.
    """
    return [{**_about(trial, t_s), **row} for row in probe_answers(text)]


def probe_answers(text: str) -> list[dict[str, Any]]:
    """Return the rows that ``linkd probe`` printed, with the columns that the table ``links`` has for them.

    Raises:
        TestbedError: A line is no row of a probe, or there is none.
    """
    rows = [_probe_row(line) for line in text.splitlines() if line.strip()]
    if not rows:
        raise TestbedError("the link probe measured nothing")
    return rows


def _probe_row(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        raise TestbedError(f"the link probe answered what is no JSON: {line[:100]!r}") from None
    if not isinstance(value, dict):
        raise TestbedError(f"the link probe answered what is no row: {line[:100]!r}")
    for name, types in _PROBE_COLUMNS.items():
        if name not in value or type(value[name]) not in types:
            raise TestbedError(f"the link probe answered {name}: {value.get(name)!r}")
    return {name: value[name] for name in _PROBE_COLUMNS}


def _about(trial: OfTrial, t_s: float) -> dict[str, Any]:
    return {"t_s": t_s, "trial": trial.name, "scenario": trial.scenario}
