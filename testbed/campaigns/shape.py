"""A lab's links without a campaign's trials: the plans of `testbed shape apply` and `verify`, and carrying them out.

A run does the same to the links (``lab_steps``) with the same executor: what is verified here is what a run has.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from payloads.linkd.channel import Channel
from testbed.campaigns.executor import Executor, Reporter
from testbed.campaigns.lab_steps import LabSteps, channel_bytes
from testbed.campaigns.phases import Kind, Phase
from testbed.config.campaign_base import CampaignBase, Verify, check_campaign
from testbed.config.inventory import Host, Inventory
from testbed.config.scenario import DEFAULT, Link, LinkScenario
from testbed.config.shaping import no_impairments
from testbed.errors import InputError, TestbedError
from testbed.hosts.answer import last_json
from testbed.hosts.facts import Facts, assume_facts, gather_facts
from testbed.hosts.fleet import Fleet
from testbed.hosts.steps import Completed, Put, Step
from testbed.hosts.transport import Transport
from testbed.links.backends import is_shaped
from testbed.links.channels import channel_of
from testbed.links.estimate import probe_row_count, probe_seconds
from testbed.links.scenario import ShapingPlan, check_rate, links_rows, probe_answers, shaping_plan
from testbed.provision.aspect import Site
from testbed.provision.aspects.python import OLDEST_PYTHON
from testbed.provision.code import load_payload_code
from testbed.provision.plan import plan_changes, steps_of

__all__ = [
    "Deployed",
    "Shape",
    "ShapeRunner",
    "Wanted",
    "deployed",
    "plan_shape",
    "wanted_of_campaign",
    "wanted_of_rate",
]

CHANNEL_FOLDER = "~/.testbed/runs/shape/channels"
NEEDED = ("folders", "code", "python")
IN_FORCE = ("scenario", "device", "direction", "backend", "asked_mbit", "delay_ms")


@dataclass(frozen=True)
class Wanted:
    """One state of the links.

    Attributes:
        plan: The links.
        channel: What makes their rates over time; None where they are fixed.
    """

    plan: ShapingPlan
    channel: Channel | None = None


@dataclass(frozen=True)
class Shape:
    """What is to be done to the links of a lab.

    Attributes:
        inventory: The lab.
        wanted: The states of the links, one after the other.
        verify: How each is verified; not at all where it is None.
        busy: Whether each size is also timed while all other devices are at full load.
    """

    inventory: Inventory
    wanted: tuple[Wanted, ...]
    verify: Verify | None = None
    busy: bool = False

    @property
    def rows(self) -> int:
        """How many rows the verification gives."""
        if self.verify is None:
            return 0
        return sum(probe_row_count(one.plan, self.verify, busy=self.busy) for one in self.wanted)

    @property
    def seconds(self) -> float:
        """How long the verification takes, where nothing has to be timed again."""
        if self.verify is None:
            return 0.0
        return sum(probe_seconds(one.plan, self.verify, busy=self.busy) for one in self.wanted)


def _shaped(inventory: Inventory) -> None:
    if not is_shaped(inventory):
        raise InputError(
            f"nothing shapes the links of the lab {inventory.lab} (`network.shaping` is none)",
            hint="set `network: {shaping: bs}` in the inventory",
        )


def wanted_of_campaign(
    campaign: CampaignBase, inventory: Inventory, names: Sequence[str] = (), repeat: int = 0
) -> tuple[Wanted, ...]:
    """Return the states of the links that a campaign's scenarios ask for.

    Args:
        campaign: The campaign.
        inventory: The lab, limited to the devices that take part.
        names: The scenarios; all where none is named.
        repeat: Whose channel is drawn, from 0.

    Raises:
        InputError: There is no such scenario, or the lab cannot give what it asks for.
    """
    _shaped(inventory)
    known = [scenario.name for scenario in campaign.scenarios]
    for name in names:
        if name not in known:
            raise InputError(
                f"the campaign {campaign.campaign} has no scenario {name!r}",
                hint=f"its scenarios are {', '.join(known)}",
            )
    devices = [device.name for device in inventory.devices]
    wanted = []
    for scenario in campaign.scenarios:
        if not names or scenario.name in names:
            channel = channel_of(scenario, devices, seed=campaign.seed, repeat=repeat)
            wanted.append(Wanted(shaping_plan(scenario, inventory, channel), channel))
    return tuple(wanted)


def wanted_of_rate(
    inventory: Inventory,
    downlink_mbit: float,
    uplink_mbit: float,
    *,
    delay_ms: float = 0.0,
    jitter_ms: float = 0.0,
    loss_percent: float = 0.0,
) -> Wanted:
    """Return the state in which all links are alike.

    Raises:
        InputError: A rate is out of range, or the lab gives no delay, jitter or loss.
    """
    _shaped(inventory)
    for rate in (downlink_mbit, uplink_mbit):
        check_rate(rate)
    if (delay_ms or jitter_ms or loss_percent) and (why := no_impairments(inventory.network)):
        raise InputError(
            f"this lab gives no delay, jitter or loss: {why}",
            hint="set `network: {shaping: bs, leaf: auto}` in the inventory",
        )
    if jitter_ms > delay_ms:
        raise InputError(
            f"a jitter of {jitter_ms:g} ms needs a delay of at least as much, not {delay_ms:g} ms"
        )
    # Checked here and not by the model, whose words are about a file.
    link = Link.model_construct(
        downlink_mbit=downlink_mbit,
        uplink_mbit=uplink_mbit,
        delay_ms=delay_ms,
        jitter_ms=jitter_ms,
        loss_percent=loss_percent,
    )
    both = f"{downlink_mbit:g}" if downlink_mbit == uplink_mbit else f"{downlink_mbit:g}-{uplink_mbit:g}"
    scenario = LinkScenario.model_construct(name=f"{both}-mbit", links={DEFAULT: link}, channel=None)
    return Wanted(shaping_plan(scenario, inventory))


def checked(campaign: CampaignBase, lab: Inventory, limit: Sequence[str]) -> Inventory:
    """Return the lab, limited, once the campaign fits it.

    Raises:
        InputError: It does not, or no device is left.
    """
    check_campaign(campaign, lab)
    return campaign.taking_part(lab, ()).limited(limit)


@dataclass(frozen=True)
class Deployed:
    """What has to be done before payload code runs on a lab's hosts.

    Attributes:
        steps: The steps, each host's in order.
        assumed: Why a host's facts had to be assumed, by host.
    """

    steps: tuple[Step, ...]
    assumed: dict[str, str]


def deployed(fleet: Fleet, *, assume: bool) -> Deployed:
    """Ask the hosts what they have and return what is missing for the links: the payload code and its Python.

    Less than a run needs: neither torch nor jtop.

    Args:
        fleet: The hosts.
        assume: Whether a host that does not answer is taken for one that has nothing yet; else it is an error.

    Raises:
        TestbedError: A host did not answer, or cannot run the code.
    """
    site = Site(load_payload_code())

    def ask(host: Host, transport: Transport) -> Facts:
        # With facts from before nothing is imported, which takes long on a board.
        return gather_facts(host, transport, before=assume_facts(host))

    steps: list[Step] = []
    assumed: dict[str, str] = {}
    for outcome in fleet.each(ask):
        host = outcome.host
        if outcome.error is None:
            facts = outcome.get()
        elif assume and isinstance(outcome.error, TestbedError):
            facts = assume_facts(host)
            assumed[host.name] = outcome.error.message
        else:
            raise outcome.error
        changes = plan_changes(host, facts, site, NEEDED)
        if not facts.assumed and not any(change.item == "python" for change in changes):
            _check_python(host, facts)
        steps += [step for change in changes for step in steps_of(change, facts)]
    return Deployed(tuple(steps), assumed)


def _check_python(host: Host, facts: Facts) -> None:
    environment = facts.environment
    if environment.error is not None or environment.version is None:
        raise TestbedError(
            f"{host.name}: {environment.error or 'the Python of the payload code does not run'}",
            hint="see its `python` in the inventory; `testbed provision` says more",
        )
    if tuple(int(part) for part in environment.version.split(".")[:2]) < OLDEST_PYTHON:
        raise TestbedError(
            f"{host.name}: Python {environment.version} is too old; 3.8 or newer is needed",
            hint="see its `python` in the inventory",
        )


def plan_shape(shape: Shape, provision: Sequence[Step], key: str | None = None) -> list[Phase]:
    """Return the phases: hold the hosts, start what shapes and answers, then set and verify each state; and back.

    The last state's channel is played once it is verified.

    Args:
        shape: What is to be done.
        provision: The steps that make the hosts ready.
        key: The data plane's key for this time, in hexadecimal; a new one where left out.
    """
    lab = LabSteps(shape.inventory)
    files = [
        Put(host.name, channel_bytes(one.channel), _channel_file(one), "channel")
        for one in shape.wanted
        if one.channel is not None
        for host in lab.shapers
    ]
    services: list[Step] = []
    for device in lab.devices:
        services += [lab.responder(device), *lab.link_daemon(device)]
    services += lab.link_daemon(lab.bs)
    phases = [
        lab.hold("shape the links"),
        Phase("provision", tuple(provision), Kind.PROVISION),
        Phase("stage files", (*lab.keys(key or secrets.token_hex(32)), *files)),
        Phase("start what shapes and answers", tuple(services)),
    ]
    for one in shape.wanted:
        file = _channel_file(one) if one.channel else None
        phases.append(Phase(f"links: {one.plan.scenario}", lab.set_links(one.plan, file), Kind.LINKS))
        if shape.verify is not None:
            step = lab.verify(one.plan, shape.verify, busy=shape.busy)
            phases.append(Phase(f"verify links: {one.plan.scenario}", (step,), Kind.VERIFY))
    if shape.wanted[-1].channel is not None:
        phases.append(Phase("play the channel", lab.plays()))
    phases.append(lab.restore())
    return [phase for phase in phases if phase.steps]


def _channel_file(wanted: Wanted) -> str:
    return f"{CHANNEL_FOLDER}/{wanted.plan.scenario}.json"


class ShapeRunner(Executor):
    """Carries out the phases of one shape.

    Args:
        open_fleet: Makes the connections to the hosts.
        shape: What is to be done.
        reporter: Who is told how far it is.

    Attributes:
        links: What is in force now: a row for each device and direction.
        rows: What was verified so far, with the scenario of each row.
    """

    def __init__(self, open_fleet: Callable[[], Fleet], shape: Shape, reporter: Reporter) -> None:
        super().__init__(open_fleet, reporter)
        self.shape = shape
        self.links: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self._scenarios = iter(shape.wanted)
        self._scenario = ""
        self._probed = 0

    def answered(self, phase: Phase, answers: Sequence[Completed]) -> None:
        """Keep what was set and measured."""
        if phase.kind is Kind.LINKS:
            self._scenario = next(self._scenarios).plan.scenario
            of = _InForce("", self._scenario)
            rows = [
                row for answer in answers for row in links_rows(last_json(answer, "links"), t_s=0.0, trial=of)
            ]
            order = [device.name for device in self.shape.inventory.devices]
            rows.sort(key=lambda row: (order.index(row["device"]), row["direction"]))
            self.links = [{key: row[key] for key in IN_FORCE} for row in rows]
        elif phase.kind is Kind.VERIFY:
            rows = probe_answers(answers[0].stdout)
            self.rows += [{"scenario": self._scenario, **row} for row in rows]

    def listen(self, phase: Phase, line: str) -> None:
        """Count the rows of the verification as they come."""
        if phase.kind is Kind.VERIFY and line.startswith("{"):
            self._probed += 1
            self.reporter.within(phase, self._probed, self.shape.rows, "")

    @property
    def off(self) -> list[dict[str, Any]]:
        """What was measured outside its tolerance."""
        return [row for row in self.rows if not row["ok"]]


@dataclass(frozen=True)
class _InForce:
    """What a row of the links in force belongs to: no trial."""

    name: str
    scenario: str


def open_lab(inventory: Inventory, *, connect_timeout_s: float = 15.0) -> Callable[[], Fleet]:
    """Return what makes the connections of a lab."""
    return lambda: Fleet(inventory, connect_timeout_s=connect_timeout_s)


def verify_settings(sizes: Sequence[int], repeats: int, tolerance: float) -> Verify:
    """Return how links are verified, by options of a command.

    Raises:
        InputError: A setting is out of range.
    """
    for size in sizes:
        if not 8 < size <= 4 << 20:
            raise InputError(f"a message has 9 bytes to 4 MiB, not {size} bytes")
    if not sizes or repeats < 1 or not 0 < tolerance < 1:
        raise InputError("at least one size, one repeat and a tolerance between 0 and 1 were expected")
    return Verify(message_bytes=tuple(sizes), repeats=repeats, tolerance=tolerance)


def campaign_and_lab(
    campaign_file: Path, inventory_file: Path | None, limit: Sequence[str]
) -> tuple[CampaignBase, Inventory]:
    """Return a campaign and the lab that it runs on, limited and checked against each other.

    Raises:
        InputError: A file is wrong, or they do not fit each other.
    """
    from testbed.config.inventory import load_inventory
    from testbed.config.workloads import load_any_campaign

    campaign = load_any_campaign(campaign_file)
    lab = load_inventory(campaign.lab_file(inventory_file))
    return campaign, checked(campaign, lab, limit)
