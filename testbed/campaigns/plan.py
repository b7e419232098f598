"""A run as a list of phases: what a dry run prints, and what a real run does and journals. Pure.

A phase's steps go to their hosts in parallel, each host's in order, and the phase ends when all are done. Phases
follow each other. Everything that a run does to a host stands here; nothing is added while it runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from testbed.artifacts.manifest import Manifest
from testbed.artifacts.placement import Placement, placement_json, wanted_list
from testbed.campaigns.spec import run_spec
from testbed.campaigns.trials import Trial
from testbed.config.campaign import Campaign, Scenario
from testbed.config.inventory import Host, Inventory
from testbed.hosts.payload import host_python, payload_command
from testbed.hosts.steps import Command, Fetch, Put, Step
from testbed.links.commands import clear_command, probe_command, set_command, show_command
from testbed.links.scenario import shaping_plan

__all__ = ["Kind", "Phase", "RunInputs", "plan_run"]

TRIAL_TIMEOUT_S = 3600.0
LEASE_TTL_S = 8.0


class Kind(Enum):
    """What the runner does with the answers of a phase's steps."""

    DO = "do"
    LEASE = "lease"
    RAILS = "rails"
    VERIFY = "verify"
    LINKS = "links"
    QUALITY = "quality"
    TRIAL = "trial"
    RESTORE = "restore"
    COLLECT = "collect"


@dataclass(frozen=True)
class Phase:
    """Steps that may run side by side on different hosts.

    Attributes:
        name: A few words for people and the journal.
        steps: The steps, each host's in order.
        kind: What is done with the answers.
        trial: The trial that the phase belongs to.
    """

    name: str
    steps: tuple[Step, ...]
    kind: Kind = Kind.DO
    trial: Trial | None = None


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
        policies_to_rate: The policies whose quality is still to be measured.
        provision: The steps that make the hosts ready.
        objects_at_bs: The digests that the base station holds already.
        key: The data plane's key of this deploy, in hexadecimal.
        folder: The run's local folder.
    """

    run: str
    campaign: Campaign
    inventory: Inventory
    manifest: Manifest
    shards: Path
    placement: Placement
    trials: Sequence[Trial]
    all_trials: Sequence[Trial]
    policies_to_rate: Sequence[str]
    provision: Sequence[Step]
    objects_at_bs: frozenset[str]
    key: str
    folder: Path


def plan_run(inputs: RunInputs) -> list[Phase]:
    """Return the phases of a run (or of what is left of it) in order."""
    planner = _Planner(inputs)
    phases = [
        Phase("provision", tuple(inputs.provision)),
        Phase("hold the hosts", tuple(planner.leases()), Kind.LEASE),
        Phase("stage files", tuple(planner.stage())),
        Phase("serve the shards", (planner.service(planner.bs, "artifacts", *planner.artifact_server()),)),
        Phase("pull the shards", tuple(planner.pulls())),
        Phase("start the devices", tuple(planner.device_services())),
        Phase("read the power rails", tuple(planner.rails()), Kind.RAILS),
        Phase("start the base station", tuple(planner.base_station_services())),
    ]
    for policy in inputs.policies_to_rate:
        phases += planner.quality(policy)
    scenario = ""
    for trial in inputs.trials:
        phases += planner.trial(trial, verify=trial.scenario != scenario)
        scenario = trial.scenario
    phases += [
        Phase("restore", tuple(planner.restore()), Kind.RESTORE),
        Phase("collect", tuple(planner.collect()), Kind.COLLECT),
    ]
    return [phase for phase in phases if phase.steps]


class _Planner:
    """Builds the steps of one run; every method is a function of the inputs alone."""

    def __init__(self, inputs: RunInputs) -> None:
        self.inputs = inputs
        self.campaign = inputs.campaign
        self.inventory = inputs.inventory
        self.bs = inputs.inventory.base_station
        self.devices = inputs.inventory.devices
        self.remote = f"~/.testbed/runs/{inputs.run}"

    def payload(self, host: Host, module: str, *args: str, title: str, timeout_s: float = 60.0) -> Command:
        return Command(host.name, payload_command(host_python(host), module, *args), title, timeout_s)

    def service(self, host: Host, name: str, module: str, *args: str) -> Command:
        start = ["start", name, "--ready-timeout", "90", "--restart"]
        argv = [host_python(host), "-m", f"payloads.{module}", *args]
        return self.payload(host, "services", *start, "--", *argv, title=f"start {name}", timeout_s=120)

    def leases(self) -> Iterable[Step]:
        for host in self.inventory.hosts.values():
            yield self.payload(host, "services", "hold", "--ttl", f"{LEASE_TTL_S:g}", title="hold")

    def stage(self) -> Iterable[Step]:
        network = self.inventory.network
        for host in self.inventory.hosts.values():
            yield Put(
                host.name, self.inputs.key.encode(), "~/.testbed/key", "data plane key", 0o600, secret=True
            )
        for device in self.devices:
            wanted = wanted_list(
                self.inputs.manifest, self.inputs.placement, device.name, self.campaign.dtype
            )
            yield Put(device.name, _json(wanted), "~/.testbed/shards.json", "wanted shards")
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
        yield Put(self.bs.name, _json(devices), "~/.testbed/devices.json", "devices")
        quality = self.campaign.quality
        for text in quality.texts if quality else ():
            yield Put(self.bs.name, text, f"{self.remote}/texts/{text.name}", "held-out text")
        spec = run_spec(self.campaign, self.inputs.run, self.remote, self.inputs.all_trials)
        yield Put(self.bs.name, _json(spec), f"{self.remote}/spec.json", "trials")

    def artifact_server(self) -> tuple[str, ...]:
        listen = f"{self.bs.address}:{self.inventory.network.artifact_port}"
        return "artifacts", "serve", "--listen", listen

    def pulls(self) -> Iterable[Step]:
        source = f"http://{self.bs.address}:{self.inventory.network.artifact_port}"
        for device in self.devices:
            args = ["pull", "--from", source, "--wanted", "~/.testbed/shards.json"]
            yield self.payload(device, "artifacts", *args, title="pull shards", timeout_s=TRIAL_TIMEOUT_S)

    def device_services(self) -> Iterable[Step]:
        network = self.inventory.network
        telemetry = self.campaign.telemetry
        for device in self.devices:
            worker = ["--wanted", "~/.testbed/shards.json", "--key-file", "~/.testbed/key"]
            worker += ["--listen", f"0.0.0.0:{network.data_port}", "--busy-file", "/run/testbed/busy_ns"]
            if device.pace:
                worker += ["--pace-ops-per-s", f"{device.pace.ops_per_s:g}"]
                worker += ["--pace-bytes-per-s", f"{device.pace.bytes_per_s:g}"]
            yield self.service(device, "worker", "wdmoe.expert_worker", *worker)
            respond = ["respond", "--listen", f"0.0.0.0:{network.probe_port}", "--key-file", "~/.testbed/key"]
            yield self.service(device, "probe", "linkd", *respond)
            power = ["power", "--out", f"{self.remote}/power.csv", "--hz", f"{telemetry.power_hz:g}"]
            yield self.service(device, "powerlog", "boardlog", *power)
            jtop = ["jtop", "--out", f"{self.remote}/jtop.csv", "--hz", f"{telemetry.jtop_hz:g}"]
            yield self.service(device, "jtoplog", "boardlog", *jtop)

    def rails(self) -> Iterable[Step]:
        for device in self.devices:
            yield self.payload(device, "boardlog", "rails", "--json", title="power rails")

    def base_station_services(self) -> Iterable[Step]:
        linkd = ["serve", "--socket", "~/.testbed/linkd.sock", "--state", "~/.testbed/linkd.state.json"]
        yield self.service(self.bs, "linkd", "linkd", *linkd)
        serve = ["--manifest", "~/.testbed/manifest.json", "--devices", "~/.testbed/devices.json"]
        serve += ["--key-file", "~/.testbed/key", "--dtype", self.campaign.dtype]
        serve += ["--control", "~/.testbed/bs.sock"]
        yield self.service(self.bs, "base-station", "wdmoe.base_station", *serve)

    def fetch(self, trial: str) -> Fetch:
        return Fetch(
            self.bs.name, f"{self.remote}/{trial}", self.inputs.folder / "fetched" / trial, "records"
        )

    def quality(self, policy: str) -> list[Phase]:
        name = f"quality-{policy}"
        args = ["quality", "--spec", f"{self.remote}/spec.json", "--policy", policy]
        steps = (
            self.payload(self.bs, "wdmoe.bsctl", *args, title=name, timeout_s=TRIAL_TIMEOUT_S),
            self.fetch(name),
        )
        return [Phase(name, steps, Kind.QUALITY)]

    def trial(self, trial: Trial, *, verify: bool) -> list[Phase]:
        scenario = self.campaign.scenario(trial.scenario)
        phases = [self._links(trial, scenario)]
        if verify:
            phases.append(self._verify(trial))
        args = ["trial", "--spec", f"{self.remote}/spec.json", "--trial", trial.name]
        steps = (
            show_command(self.bs),
            self.payload(self.bs, "wdmoe.bsctl", *args, title=trial.name, timeout_s=TRIAL_TIMEOUT_S),
            show_command(self.bs),
            self.fetch(trial.name),
        )
        return [*phases, Phase(f"trial {trial.name}", steps, Kind.TRIAL, trial)]

    def _links(self, trial: Trial, scenario: Scenario) -> Phase:
        step = set_command(self.bs, shaping_plan(scenario, self.inventory))
        return Phase(f"links of {trial.name}: {scenario.name}", (step,), Kind.LINKS, trial)

    def _verify(self, trial: Trial) -> Phase:
        step = probe_command(self.bs, self.campaign.verify)
        return Phase(f"verify links of {trial.name}", (step,), Kind.VERIFY, trial)

    def restore(self) -> Iterable[Step]:
        yield clear_command(self.bs)
        for host in self.inventory.hosts.values():
            yield self.payload(host, "services", "stop", "--all", title="stop services")

    def collect(self) -> Iterable[Step]:
        for device in self.devices:
            for name in ("power.csv", "jtop.csv"):
                target = self.inputs.folder / "boards" / device.name / name
                yield Fetch(device.name, f"{self.remote}/{name}", target, name, optional=True)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()
