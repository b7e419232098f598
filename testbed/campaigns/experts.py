"""Split experts as a workload: the shards of one model on the devices, its base station, and quality passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from payloads.wdmoe.bs.spec import quality_name
from payloads.wdmoe.latency import LatencyModel
from testbed.artifacts.manifest import Manifest
from testbed.campaigns.imagined import Imagined, imagined_links
from testbed.campaigns.lab_steps import channel_bytes, json_bytes
from testbed.campaigns.passes import Pass
from testbed.campaigns.phases import Kind, Phase
from testbed.campaigns.placed import place, sharded
from testbed.campaigns.serving import Serving
from testbed.campaigns.spec import imagined_file, policy_files, run_spec
from testbed.campaigns.trials import Trial
from testbed.campaigns.work import Place, Tables
from testbed.config.campaign import Campaign
from testbed.config.inventory import Host, Inventory
from testbed.hosts.facts import Facts
from testbed.hosts.steps import Fetch, Put, Step
from testbed.placement.place import Placement, placement_json, wanted_list
from testbed.records.manifest import MANIFEST_NAME, read_manifest
from testbed.records.payload import read_payload_records
from testbed.simulate.assumed import latency_model

if TYPE_CHECKING:
    from testbed.records import RecordWriter

__all__ = ["Experts", "experts_of"]

TRIAL_TIMEOUT_S = 3600.0
QUALITY_TIMEOUT_S = 6 * 3600.0
SERVING_TIMEOUT_S = 30 * 86400.0  # it ends when it is told to


@dataclass(frozen=True)
class Experts:
    """Split experts, ready to be planned; see :class:`testbed.campaigns.work.Work`.

    Attributes:
        run: The run's name.
        campaign: The campaign file.
        inventory: The fleet.
        manifest: The sharded model.
        shards: The local folder of the model's objects.
        placement: Which devices hold which expert.
        all_trials: All trials of the run, in order.
        passes: The quality passes still to be made, in order.
        latency: What dispatches are expected to take.
        serving: How the base station serves, where that is all that the run does.
    """

    run: str
    campaign: Campaign
    inventory: Inventory
    manifest: Manifest
    shards: Path
    placement: Placement
    all_trials: Sequence[Trial]
    passes: Sequence[Pass]
    latency: LatencyModel
    serving: Serving | None = None
    noun: str = "shards"

    def objects(self) -> Mapping[str, Path]:
        """Return the model's objects."""
        return {digest: self.shards / "objects" / digest for digest in self.manifest.objects()}

    def wanted(self, device: str) -> Mapping[str, Any]:
        """Return the list of the experts that a device is to hold."""
        return wanted_list(self.manifest, self.placement, device, self.campaign.dtype)

    def files(self, at: Place) -> Iterator[Step]:
        """Yield the manifest, who holds what, what quality passes read, own policies, and the specification."""
        bs, network = at.lab.bs.name, self.inventory.network
        devices = {
            "devices": [
                {"name": d.name, "address": d.address, "port": network.data_port}
                for d in self.inventory.devices
            ],
            "placement": placement_json(self.placement),
        }
        yield Put(bs, self.shards / "manifest.json", "~/.testbed/manifest.json", "manifest")
        yield Put(bs, json_bytes(devices), "~/.testbed/devices.json", "devices")
        yield from self._quality_files(bs, at.remote)
        for target, path in policy_files(self.campaign, at.remote).items():
            yield Put(bs, path, target, "policy")
        spec = run_spec(self.campaign, self.run, at.remote, self.all_trials, self.latency, self._imagined)
        yield Put(bs, json_bytes(spec), f"{at.remote}/spec.json", "trials")
        if self.serving is not None:
            yield from self.serving.files(bs)

    @cached_property
    def _imagined(self) -> Sequence[Imagined]:
        """The links of the scenarios that a quality pass follows."""
        names = dict.fromkeys(one.scenario for one in self.passes if one.scenario is not None)
        return [imagined_links(self.campaign, self.inventory, name) for name in names]

    def _quality_files(self, bs: str, remote: str) -> Iterator[Step]:
        """Yield what quality passes read: texts, questions, and the links that they imagine."""
        quality = self.campaign.quality
        if quality is None or not self.passes:
            return
        for text in quality.texts:
            yield Put(bs, text, f"{remote}/texts/{text.name}", "held-out text")
        for file in quality.choices:
            yield Put(bs, file, f"{remote}/choices/{file.name}", "questions")
        for links in self._imagined:
            if links.channel is not None:
                yield Put(bs, channel_bytes(links.channel), imagined_file(remote, links), "imagined links")

    def device_service(self, at: Place, device: Host) -> Step:
        """Return what starts a device's worker."""
        worker = ["--wanted", "~/.testbed/shards.json", *at.lab.credentials()]
        worker += ["--listen", f"0.0.0.0:{self.inventory.network.data_port}", *at.lab.paced(device)]
        return at.lab.service(
            device, "worker", "wdmoe.worker.expert_worker", *worker, *at.lab.metrics(device)
        )

    def base_station_service(self, at: Place) -> Step:
        """Return what starts the base station."""
        serve = ["--manifest", "~/.testbed/manifest.json", "--devices", "~/.testbed/devices.json"]
        serve += [*at.lab.credentials(), "--dtype", self.campaign.dtype, *at.lab.controlled()]
        serve += at.lab.metrics(at.lab.bs)
        if self.serving is not None:
            serve += self.serving.base_station_options()
        return at.lab.service(at.lab.bs, "base-station", "wdmoe.bs.base_station", *serve)

    def before_trials(self, at: Place) -> list[Phase]:
        """Return the quality passes."""
        return [self._pass(at, one) for one in self.passes]

    def _pass(self, at: Place, one: Pass) -> Phase:
        args = ["quality", "--spec", f"{at.remote}/spec.json", "--policy", one.policy]
        if one.scenario is not None:
            args += ["--scenario", one.scenario]
        steps = (
            at.lab.ask(*args, title=one.name, timeout_s=QUALITY_TIMEOUT_S),
            at.lab.fetch_records(at.remote, at.folder, one.name),
        )
        return Phase(one.name, steps, Kind.QUALITY)

    def request(self, spec: str, trial: Trial) -> tuple[list[str], float]:
        """Return what the base station is asked to do in a trial: to answer prompts, or to serve."""
        if self.serving is not None:
            return self.serving.request(spec, trial), SERVING_TIMEOUT_S
        return ["trial", "--spec", spec, "--trial", trial.name], TRIAL_TIMEOUT_S

    def fetches(self, at: Place, trial: Trial) -> Sequence[Fetch]:
        """Return nothing: all records are the base station's."""
        return ()

    def read(self, fetched: Path, run: str, trial: str, started_unix: float) -> Tables:
        """Return the tables of the base station's records."""
        return read_payload_records(fetched, run, trial, started_unix)

    def begin(self, records: RecordWriter) -> None:
        """Write nothing."""

    def compute(self, trial: Trial, records: RecordWriter, now_s: float) -> None:
        """Compute nothing: every trial runs on the rack."""
        raise AssertionError("every trial of split experts runs on the rack")

    def describe(self) -> dict[str, Any]:
        """Return the model, who holds what of it, and the latency model."""
        calibration = self.campaign.latency.calibration
        numbers = asdict(self.manifest)
        del numbers["experts"], numbers["base_station"]
        return {
            "model": {
                "name": self.manifest.model,
                "manifest": self.manifest.digest(),
                "parameters": self.manifest.parameters,
                **numbers,
            },
            "placement": placement_json(self.placement),
            "latency": {
                "calibration": calibration and str(calibration),
                "model": self.latency.as_json(),
            },
        }

    def changed(self, manifest: Mapping[str, Any]) -> str:
        """Return the model, where it has changed."""
        if manifest["model"]["manifest"] == self.manifest.digest():
            return ""
        return f"{self.campaign.model}: the model"


def experts_of(
    run: str,
    folder: Path,
    campaign: Campaign,
    inventory: Inventory,
    trials: Sequence[Trial],
    passes: Sequence[Pass],
    facts: Mapping[str, Facts],
    serving: Serving | None = None,
) -> Experts:
    """Return the split experts of a run (or of what is left of it).

    Args:
        run: The run's name.
        folder: Its local folder.
        campaign: The campaign.
        inventory: The fleet.
        trials: All trials of the run.
        passes: All quality passes of the run.
        facts: What the hosts said of themselves.
        serving: How the base station serves, where that is all that the run does.
    """
    model = sharded(campaign.model, campaign.experts)
    whole = _whole_passes(
        folder, asks_questions=campaign.quality is not None and bool(campaign.quality.choices)
    )
    return Experts(
        run=run,
        campaign=campaign,
        inventory=inventory,
        manifest=model.manifest,
        shards=model.path.parent,
        placement=_recorded_placement(folder) or place(campaign, inventory, model.manifest, facts),
        all_trials=trials,
        passes=[one for one in passes if one.name not in whole],
        latency=latency_model(campaign, inventory, model.manifest),
        serving=serving,
    )


def _recorded_placement(folder: Path) -> Placement | None:
    """Return the placement that a run was started with: its memory may look otherwise now, its trials must not."""
    if not (folder / MANIFEST_NAME).is_file():
        return None
    given = read_manifest(folder).get("placement")
    return {
        int(layer): {int(expert): tuple(names) for expert, names in row.items()}
        for layer, row in (given or {}).items()
    } or None


def _whole_passes(folder: Path, *, asks_questions: bool) -> set[str]:
    """Return the quality passes that are whole on disk."""
    if not (folder / "tables").is_dir():
        return set()
    from testbed.records.run import read_table
    from testbed.records.schema import TABLES

    # Of a pass' tables this one is written last.
    rated = read_table(folder, TABLES["choices" if asks_questions else "quality"])
    passes = rated[["policy", "scenario"]].drop_duplicates()
    return {
        quality_name(str(row.policy), row.scenario if isinstance(row.scenario, str) else None)
        for row in passes.itertuples()
    }
