"""A scenario's rates as a shaping plan; the link daemon's answers as rows of the table ``links``. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from payloads.linkd.model import MAX_RATE_MBIT, MIN_RATE_MBIT
from testbed.config.campaign import Scenario
from testbed.config.inventory import Inventory
from testbed.errors import InputError, TestbedError

__all__ = ["LinkRate", "OfTrial", "ShapingPlan", "links_argument", "links_rows", "probe_rows", "shaping_plan"]

_PROBE_COLUMNS: Mapping[str, tuple[type, ...]] = {
    "device": (str,),
    "direction": (str,),
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
        address: The address that the base station reaches it by.
        port: The port of its worker.
        probe_port: The port of its probe responder, shaped together with the worker's.
        downlink_mbit: Frame rate from the base station to the device, in Mbit/s.
        uplink_mbit: Frame rate from the device to the base station, in Mbit/s.
    """

    device: str
    address: str
    port: int
    probe_port: int
    downlink_mbit: float
    uplink_mbit: float


@dataclass(frozen=True)
class ShapingPlan:
    """What all links are to be.

    Attributes:
        scenario: The scenario's name.
        links: The links, in the inventory's order.
    """

    scenario: str
    links: tuple[LinkRate, ...]


def shaping_plan(scenario: Scenario, inventory: Inventory) -> ShapingPlan:
    """Return the links that a scenario asks for.

    Raises:
        InputError: The scenario says nothing about a device, or asks for a rate that no link can be given.
    """
    links = []
    for device in inventory.devices:
        try:
            rates = scenario.rates(device.name)
        except KeyError:
            raise InputError(
                f"scenario {scenario.name}: no rates for {device.name}, and no default"
            ) from None
        for rate in (rates.downlink_mbit, rates.uplink_mbit):
            if not MIN_RATE_MBIT <= rate <= MAX_RATE_MBIT:
                raise InputError(
                    f"scenario {scenario.name}: {device.name}: {rate:g} Mbit/s cannot be shaped",
                    hint=f"a rate is {MIN_RATE_MBIT:g} to {MAX_RATE_MBIT:g} Mbit/s",
                )
        network = inventory.network
        links.append(
            LinkRate(
                device=device.name,
                address=device.address,
                port=network.data_port,
                probe_port=network.probe_port,
                downlink_mbit=rates.downlink_mbit,
                uplink_mbit=rates.uplink_mbit,
            )
        )
    return ShapingPlan(scenario.name, tuple(links))


def links_argument(plan: ShapingPlan) -> str:
    """Return the plan as the argument of ``linkd set --links``."""
    return json.dumps([asdict(link) for link in plan.links])


def links_rows(answer: Mapping[str, Any], *, t_s: float, trial: OfTrial) -> list[dict[str, Any]]:
    """Return what ``linkd set`` answered as rows of the table ``links``: one for each device and direction.

    Args:
        answer: The answer.
        t_s: When it was set, in seconds since the run's start.
        trial: The trial that it was set for.
    """
    return [
        {
            **_about(trial, t_s),
            "device": link["device"],
            "direction": direction,
            "backend": answer["backend"],
            "asked_mbit": float(link[f"{direction}_mbit"]),
        }
        for link in answer["links"]
        for direction in ("downlink", "uplink")
    ]


def probe_rows(text: str, *, t_s: float, trial: OfTrial) -> list[dict[str, Any]]:
    """Return what ``linkd probe`` printed as rows of the table ``links``.

    Args:
        text: Its standard output: one JSON object a line.
        t_s: When it was measured, in seconds since the run's start.
        trial: The trial that it was measured for.

    Raises:
        TestbedError: A line is no row of a probe, or there is none.
    """
    rows = [_probe_row(line) for line in text.splitlines() if line.strip()]
    if not rows:
        raise TestbedError("the link probe measured nothing")
    return [{**_about(trial, t_s), **row} for row in rows]


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
    backend = value.get("backend")
    return {"backend": backend, **{name: value[name] for name in _PROBE_COLUMNS}}


def _about(trial: OfTrial, t_s: float) -> dict[str, Any]:
    return {"t_s": t_s, "trial": trial.name, "scenario": trial.scenario}
