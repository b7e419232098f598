"""A run as a list of phases: what a dry run prints, and what a real run does and journals. Pure.

A phase's steps go to their hosts in parallel, each host's in order, and the phase ends when all are done. Phases
follow each other. Everything that a run does to a host stands here; nothing is added while it runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from payloads.linkd.channel import Channel
from payloads.wdmoe.latency import LatencyModel
from testbed.artifacts.manifest import Manifest
from testbed.campaigns.imagined import Imagined, imagined_links
from testbed.campaigns.lab_steps import LabSteps, json_bytes
from testbed.campaigns.passes import Pass
from testbed.campaigns.phases import Kind, Phase
from testbed.campaigns.serving import Serving
from testbed.campaigns.spec import imagined_file, policy_files, run_spec
from testbed.campaigns.trials import Trial
from testbed.config.campaign import Campaign
from testbed.config.inventory import Host, Inventory
from testbed.hosts.steps import Fetch, Put, Step
from testbed.links.channels import channel_of
from testbed.links.commands import history_command
from testbed.links.scenario import ShapingPlan, shaping_plan
from testbed.placement.place import Placement, placement_json, wanted_list

__all__ = ["RunInputs", "plan_run"]

TRIAL_TIMEOUT_S = 3600.0
QUALITY_TIMEOUT_S = 6 * 3600.0
SERVING_TIMEOUT_S = 30 * 86400.0  # it ends when it is told to


@dataclass(frozen=True)
class RunInputs:
    """All that a plan follows from.

    Attributes:
        run: The run's name.
        campaign: The campaign file.
        inventory: The fleet.
        manifest: The sharded model.
        shards: The local folder of the model's objects.
        placement: Which devices hold which expert.
        trials: The trials still to be run, in order.
        all_trials: All trials of the campaign, in order.
        passes: The quality passes still to be made, in order.
        latency: What dispatches are expected to take.
        provision: The steps that make the hosts ready.
        objects_at_bs: The digests that the base station holds already.
        key: The key of this deploy, in hexadecimal.
        certificates: The certificate files of each host, by its name; empty where the data plane is plain.
        folder: The run's local folder.
        serving: How the base station serves, where that is all that the run does.
    """

    run: str
    campaign: Campaign
    inventory: Inventory
    manifest: Manifest
    shards: Path
    placement: Placement
    trials: Sequence[Trial]
    all_trials: Sequence[Trial]
    passes: Sequence[Pass]
    latency: LatencyModel
    provision: Sequence[Step]
    objects_at_bs: frozenset[str]
    key: str = field(repr=False)
    certificates: Mapping[str, Mapping[str, bytes]] = field(repr=False)
    folder: Path
    serving: Serving | None = None


def plan_run(inputs: RunInputs) -> list[Phase]:
    """Return the phases of a run (or of what is left of it) in order."""
    planner = _Planner(inputs)
    phases = [
        Phase("provision", tuple(inputs.provision)),
        Phase("hold the hosts", tuple(planner.lab.leases()), Kind.LEASE),
        Phase("stage files", tuple(planner.stage())),
        Phase("serve the shards", (planner.artifact_server(),)),
        Phase("pull the shards", tuple(planner.pulls())),
        Phase("start the devices", tuple(planner.device_services())),
        Phase("read the power rails", tuple(planner.rails()), Kind.RAILS),
        Phase("start the base station", tuple(planner.base_station_services())),
    ]
    for one in inputs.passes:
        phases += planner.quality(one)
    verified: tuple[str, Channel | None] | None = None
    for trial in inputs.trials:
        links = trial.scenario, planner.channel(trial.scenario, trial.repeat)
        phases += planner.trial(trial, verify=links != verified)
        verified = links
    phases += [planner.lab.restore(), Phase("collect", tuple(planner.collect()), Kind.COLLECT)]
    return [phase for phase in phases if phase.steps]


class _Planner:
    """Builds the steps of one run; every method is a function of the inputs alone."""

    def __init__(self, inputs: RunInputs) -> None:
        self.inputs = inputs
        self.campaign = inputs.campaign
        self.inventory = inputs.inventory
        self.lab = LabSteps(inputs.inventory)
        self.bs = self.lab.bs
        self.devices = self.lab.devices
        self.remote = f"~/.testbed/runs/{inputs.run}"
        self.channel = cache(self._channel)

    def _channel(self, scenario: str, repeat: int) -> Channel | None:
        """Return the channel that all policies see in a scenario's repeat; None where its rates are fixed."""
        names = [device.name for device in self.devices]
        return channel_of(self.campaign.scenario(scenario), names, seed=self.campaign.seed, repeat=repeat)

    def stage(self) -> Iterable[Step]:
        network = self.inventory.network
        yield from self.lab.keys(self.inputs.key)
        yield from self.lab.certificates(self.inputs.certificates)
        for device in self.devices:
            wanted = wanted_list(
                self.inputs.manifest, self.inputs.placement, device.name, self.campaign.dtype
            )
            yield Put(device.name, json_bytes(wanted), "~/.testbed/shards.json", "wanted shards")
        for digest in self.inputs.manifest.objects():
            if digest not in self.inputs.objects_at_bs:
                path = self.inputs.shards / "objects" / digest
                yield Put(self.bs.name, path, f"~/.testbed/objects/{digest}", "model object")
        devices = {
            "devices": [
                {"name": d.name, "address": d.address, "port": network.data_port} for d in self.devices
            ],
            "placement": placement_json(self.inputs.placement),
        }
        yield Put(
            self.bs.name, (self.inputs.shards / "manifest.json"), "~/.testbed/manifest.json", "manifest"
        )
        yield Put(self.bs.name, json_bytes(devices), "~/.testbed/devices.json", "devices")
        yield from self.quality_files()
        for target, path in policy_files(self.campaign, self.remote).items():
            yield Put(self.bs.name, path, target, "policy")
        spec = run_spec(
            self.campaign,
            self.inputs.run,
            self.remote,
            self.inputs.all_trials,
            self.inputs.latency,
            self.imagined,
        )
        yield Put(self.bs.name, json_bytes(spec), f"{self.remote}/spec.json", "trials")
        yield from self.channel_files()
        if self.inputs.serving is not None:
            yield from self.inputs.serving.files(self.bs.name)

    @cached_property
    def imagined(self) -> Sequence[Imagined]:
        """The links of the scenarios that a quality pass follows."""
        names = dict.fromkeys(one.scenario for one in self.inputs.passes if one.scenario is not None)
        return [imagined_links(self.campaign, self.inventory, name) for name in names]

    def quality_files(self) -> Iterator[Step]:
        """Yield what quality passes read: texts, questions, and the links that they imagine."""
        quality = self.campaign.quality
        if quality is None or not self.inputs.passes:
            return
        for text in quality.texts:
            yield Put(self.bs.name, text, f"{self.remote}/texts/{text.name}", "held-out text")
        for file in quality.choices:
            yield Put(self.bs.name, file, f"{self.remote}/choices/{file.name}", "questions")
        for links in self.imagined:
            if links.channel is not None:
                content = channel_bytes(links.channel)
                yield Put(self.bs.name, content, imagined_file(self.remote, links), "imagined links")

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

    def artifact_server(self) -> Step:
        listen = f"{self.bs.address}:{self.inventory.network.artifact_port}"
        return self.lab.service(self.bs, "artifacts", "artifacts", "serve", "--listen", listen)

    def pulls(self) -> Iterable[Step]:
        source = f"http://{self.bs.address}:{self.inventory.network.artifact_port}"
        for device in self.devices:
            args = ["pull", "--from", source, "--wanted", "~/.testbed/shards.json"]
            yield self.lab.payload(device, "artifacts", *args, title="pull shards", timeout_s=TRIAL_TIMEOUT_S)

    def device_services(self) -> Iterable[Step]:
        network = self.inventory.network
        telemetry = self.campaign.telemetry
        for device in self.devices:
            worker = ["--wanted", "~/.testbed/shards.json", *self.lab.credentials()]
            worker += ["--listen", f"0.0.0.0:{network.data_port}", "--busy-file", "/run/testbed/busy_ns"]
            if device.pace:
                worker += ["--pace-ops-per-s", f"{device.pace.ops_per_s:g}"]
                worker += ["--pace-bytes-per-s", f"{device.pace.bytes_per_s:g}"]
            worker += self.metrics(device)
            yield self.lab.service(device, "worker", "wdmoe.worker.expert_worker", *worker)
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

    def metrics(self, host: Host) -> list[str]:
        """Return the options that let a service of a host show its metrics."""
        port = self.inventory.network.metrics_port
        return [] if port is None else ["--metrics", f"{host.address}:{port}"]

    def rails(self) -> Iterable[Step]:
        for device in self.devices:
            yield self.lab.payload(device, "boardlog", "rails", "--json", title="power rails")

    def base_station_services(self) -> Iterable[Step]:
        yield from self.lab.link_daemon(self.bs)
        serve = ["--manifest", "~/.testbed/manifest.json", "--devices", "~/.testbed/devices.json"]
        serve += [*self.lab.credentials(), "--dtype", self.campaign.dtype]
        serve += ["--control", "~/.testbed/bs.sock"]
        if self.lab.shapers:
            serve += ["--links", "~/.testbed/linkd.sock"]
        if self.inventory.network.shaping == "pacing":
            serve.append("--pacing")
        serve += self.metrics(self.bs)
        if self.inputs.serving is not None:
            serve += self.inputs.serving.base_station_options()
        yield self.lab.service(self.bs, "base-station", "wdmoe.bs.base_station", *serve)

    def fetch(self, trial: str) -> Fetch:
        return Fetch(
            self.bs.name, f"{self.remote}/{trial}", self.inputs.folder / "fetched" / trial, "records"
        )

    def quality(self, one: Pass) -> list[Phase]:
        args = ["quality", "--spec", f"{self.remote}/spec.json", "--policy", one.policy]
        if one.scenario is not None:
            args += ["--scenario", one.scenario]
        steps = (
            self.lab.payload(self.bs, "wdmoe.bs.bsctl", *args, title=one.name, timeout_s=QUALITY_TIMEOUT_S),
            self.fetch(one.name),
        )
        return [Phase(one.name, steps, Kind.QUALITY)]

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
        spec, serving = f"{self.remote}/spec.json", self.inputs.serving
        args, timeout_s = ["trial", "--spec", spec, "--trial", trial.name], TRIAL_TIMEOUT_S
        if serving is not None:
            args, timeout_s = serving.request(spec, trial), SERVING_TIMEOUT_S
        looks = self.lab.shows()
        before = (*looks, *(self.lab.plays() if plays else ()))
        ask = self.lab.payload(self.bs, "wdmoe.bs.bsctl", *args, title=trial.name, timeout_s=timeout_s)
        after = (*(self.lab.holds() if plays else ()), *looks)
        histories = tuple(history_command(host) for host in self.lab.shapers)
        steps = (*before, ask, *after, *histories, self.fetch(trial.name))
        # With one host its own order is enough; several play and hold together, around what is measured.
        several = len(self.lab.shapers) > 1
        cuts = (len(looks), len(before), len(before) + 1) if several else ()
        return Phase(f"trial {trial.name}", steps, Kind.TRIAL, trial, cuts)

    def collect(self) -> Iterable[Step]:
        logs = ("power.csv", "jtop.csv", *(("wifi.csv",) if self.records_radio else ()))
        for device in self.devices:
            for name in logs:
                target = self.inputs.folder / "boards" / device.name / name
                yield Fetch(device.name, f"{self.remote}/{name}", target, name, optional=True)


def channel_bytes(channel: Channel) -> bytes:
    """Return the content of a channel's file; the same channel gives the same bytes."""
    return (json.dumps(channel.as_json(), separators=(",", ":"), sort_keys=True) + "\n").encode()
