"""A run as a list of phases: what a dry run prints, and what a real run does and journals. Pure.

A phase's steps go to their hosts in parallel, each host's in order, and the phase ends when all are done. Phases
follow each other. Everything that a run does to a host stands here; nothing is added while it runs. What differs from
workload to workload is what devices pull, which services run, and what the base station is asked for (:mod:`.work`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from payloads.linkd.channel import Channel
from testbed.campaigns.lab_steps import LabSteps, channel_bytes, json_bytes
from testbed.campaigns.object_steps import ObjectSteps
from testbed.campaigns.phases import Kind, Phase
from testbed.campaigns.trials import Trial
from testbed.campaigns.work import Work
from testbed.config.campaign_base import CampaignBase
from testbed.config.inventory import Inventory
from testbed.hosts.steps import Fetch, Put, Step
from testbed.links.channels import channel_of
from testbed.links.commands import history_command
from testbed.links.scenario import ShapingPlan, shaping_plan

__all__ = ["RunInputs", "plan_run"]


@dataclass(frozen=True)
class RunInputs:
    """All that a plan follows from.

    Attributes:
        run: The run's name.
        campaign: The campaign file.
        inventory: The fleet.
        work: What runs on it.
        trials: The trials still to be run on the rack, in order.
        computed: The trials still to be computed here when the rack is done, in order.
        provision: The steps that make the hosts ready.
        objects_at_bs: The digests that the base station holds already.
        key: The key of this deploy, in hexadecimal.
        certificates: The certificate files of each host, by its name; empty where the data plane is plain.
        folder: The run's local folder.
        rack: Whether the hosts are needed for any of it.
    """

    run: str
    campaign: CampaignBase
    inventory: Inventory
    work: Work
    trials: Sequence[Trial]
    computed: Sequence[Trial]
    provision: Sequence[Step]
    objects_at_bs: frozenset[str]
    key: str = field(repr=False)
    certificates: Mapping[str, Mapping[str, bytes]] = field(repr=False)
    folder: Path
    rack: bool = True


def plan_run(inputs: RunInputs) -> list[Phase]:
    """Return the phases of a run (or of what is left of it) in order; none where no host is needed any more."""
    if not inputs.rack:
        return []
    planner = _Planner(inputs)
    phases = [
        planner.lab.hold(f"run {inputs.run}"),
        Phase("provision", tuple(inputs.provision), Kind.PROVISION),
        Phase("set the power", tuple(planner.powers()), Kind.POWER),
        Phase("stage files", tuple(planner.stage())),
        *planner.objects.phases(),
        Phase("start the devices", tuple(planner.device_services())),
        Phase("read the power rails", tuple(planner.rails()), Kind.RAILS),
        Phase("start the base station", tuple(planner.base_station_services())),
        *inputs.work.before_trials(planner),
    ]
    verified: tuple[str, Channel | None] | None = None
    for trial in inputs.trials:
        links = trial.scenario, planner.channel(trial.scenario, trial.repeat)
        phases += planner.trial(trial, verify=links != verified)
        verified = links
    power = inputs.campaign.power is not None
    phases += [planner.lab.restore(power=power), Phase("collect", tuple(planner.collect()), Kind.COLLECT)]
    return [phase for phase in phases if phase.steps]


class _Planner:
    """Builds the steps of one run; every method is a function of the inputs alone."""

    def __init__(self, inputs: RunInputs) -> None:
        self.inputs = inputs
        self.campaign = inputs.campaign
        self.inventory = inputs.inventory
        self.work = inputs.work
        self.lab = LabSteps(inputs.inventory)
        self.bs = self.lab.bs
        self.devices = self.lab.devices
        self.folder = inputs.folder
        self.remote = f"~/.testbed/runs/{inputs.run}"
        self.objects = ObjectSteps(self.lab, self.work.noun, self.wanted_file)
        self.channel = cache(self._channel)

    def _channel(self, scenario: str, repeat: int) -> Channel | None:
        """Return the channel that all policies see in a scenario's repeat; None where its rates are fixed."""
        names = [device.name for device in self.devices]
        return channel_of(self.campaign.scenario(scenario), names, seed=self.campaign.seed, repeat=repeat)

    def stage(self) -> Iterable[Step]:
        yield from self.lab.keys(self.inputs.key)
        yield from self.lab.certificates(self.inputs.certificates)
        for device in self.devices:
            wanted = self.work.wanted(device.name)
            yield Put(device.name, json_bytes(wanted), self.wanted_file, f"wanted {self.work.noun}")
        # The lists come before what they name: an object that no list names may be removed by `artifacts gc`.
        yield from self.work.files(self)
        for digest, path in self.work.objects().items():
            if digest not in self.inputs.objects_at_bs:
                yield Put(self.bs.name, path, f"~/.testbed/objects/{digest}", "model object")
        yield from self.channel_files()

    @property
    def wanted_file(self) -> str:
        """Where a device finds the list of what it is to hold."""
        return f"~/.testbed/{self.work.noun}.json"

    def channel_files(self) -> Iterator[Step]:
        """Yield the channel of each scenario and repeat that is still to be run, for every host that plays it."""
        for name, repeat in dict.fromkeys((trial.scenario, trial.repeat) for trial in self.inputs.trials):
            channel = self.channel(name, repeat)
            if channel is not None:
                content = channel_bytes(channel)
                for host in self.lab.shapers:
                    yield Put(host.name, content, self.channel_file(name, repeat), "channel")

    def channel_file(self, scenario: str, repeat: int) -> str:
        return f"{self.remote}/channels/{scenario}-r{repeat}.json"

    def device_services(self) -> Iterable[Step]:
        network = self.inventory.network
        telemetry = self.campaign.telemetry
        for device in self.devices:
            yield self.work.device_service(self, device)
            if self.lab.shapers:
                yield self.lab.responder(device)
            yield from self.lab.link_daemon(device)
            power = ["power", "--out", f"{self.remote}/power.csv", "--hz", f"{telemetry.power_hz:g}"]
            yield self.lab.service(device, "powerlog", "boardlog", *power)
            jtop = ["jtop", "--out", f"{self.remote}/jtop.csv", "--hz", f"{telemetry.jtop_hz:g}"]
            yield self.lab.service(device, "jtoplog", "boardlog", *jtop)
            if self.records_radio:
                assert network.wifi_interface is not None
                wifi = ["wifi", "--interface", network.wifi_interface, "--out", f"{self.remote}/wifi.csv"]
                yield self.lab.service(device, "wifilog", "boardlog", *wifi, "--hz", "1")

    @property
    def records_radio(self) -> bool:
        """Whether the devices' radio links are recorded: they are where nothing shapes them."""
        return not self.lab.shapers and self.inventory.network.wifi_interface is not None

    def powers(self) -> Iterable[Step]:
        return () if self.campaign.power is None else self.lab.powers(self.campaign.power)

    def rails(self) -> Iterable[Step]:
        for device in self.devices:
            yield self.lab.payload(device, "boardlog", "rails", "--json", title="power rails")

    def base_station_services(self) -> Iterable[Step]:
        yield from self.lab.link_daemon(self.bs)
        yield self.work.base_station_service(self)

    def trial(self, trial: Trial, *, verify: bool) -> list[Phase]:
        phases: list[Phase] = []
        channel = None
        if self.lab.shapers:
            channel = self.channel(trial.scenario, trial.repeat)
            scenario = self.campaign.scenario(trial.scenario)
            links = shaping_plan(scenario, self.inventory, channel)
            phases.append(self._links(trial, links, has_channel=channel is not None))
            if verify:
                step = self.lab.verify(links, self.campaign.verify)
                phases.append(Phase(f"verify links of {trial.name}", (step,), Kind.VERIFY, trial))
        return [*phases, self._measured(trial, plays=channel is not None)]

    def _links(self, trial: Trial, links: ShapingPlan, *, has_channel: bool) -> Phase:
        file = self.channel_file(trial.scenario, trial.repeat) if has_channel else None
        steps = self.lab.set_links(links, file)
        return Phase(f"links of {trial.name}: {links.scenario}", steps, Kind.LINKS, trial)

    def _measured(self, trial: Trial, *, plays: bool) -> Phase:
        """Return the trial itself, between two looks at the links, its channel played meanwhile."""
        args, timeout_s = self.work.request(f"{self.remote}/spec.json", trial)
        looks = self.lab.shows()
        before = (*looks, *(self.lab.plays() if plays else ()))
        ask = self.lab.ask(*args, title=trial.name, timeout_s=timeout_s)
        after = (*(self.lab.holds() if plays else ()), *looks)
        histories = tuple(history_command(host) for host in self.lab.shapers)
        records = self.lab.fetch_records(self.remote, self.folder, trial.name)
        fetched = self.work.fetches(self, trial)
        steps = (*before, ask, *after, *histories, records, *fetched)
        # With one host its own order is enough; several play and hold together, around what is measured. What others
        # fetch is there when the base station has answered.
        several = len(self.lab.shapers) > 1
        cuts = (len(looks), len(before), len(before) + 1) if several else ()
        if fetched:
            cuts = (*cuts, len(steps) - len(fetched))
        return Phase(f"trial {trial.name}", steps, Kind.TRIAL, trial, cuts)

    def collect(self) -> Iterable[Step]:
        logs = ("power.csv", "jtop.csv", *(("wifi.csv",) if self.records_radio else ()))
        for device in self.devices:
            for name in logs:
                target = self.folder / "boards" / device.name / name
                yield Fetch(device.name, f"{self.remote}/{name}", target, name, optional=True)
