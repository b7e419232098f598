"""Semantic broadcast as a workload: a transmitter at the base station, a receiver on each user's device."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from payloads.semcast.spec import Spec, spec_of
from testbed.campaigns.lab_steps import json_bytes
from testbed.campaigns.phases import Phase
from testbed.campaigns.trials import Trial
from testbed.campaigns.work import Place, Tables
from testbed.config.broadcast import BroadcastCampaign
from testbed.config.inventory import Host, Inventory
from testbed.hosts.steps import Fetch, Put, Step
from testbed.semcast.blocks import broadcast_spec, image_file
from testbed.semcast.models import Model, models_of
from testbed.semcast.pairs import Pairs, sets_of
from testbed.semcast.play import Stage, play_trial, stage_of
from testbed.semcast.received import pixel_folder, received_tables
from testbed.semcast.rows import scheme_rows
from testbed.semcast.written import PICTURES, described, write_picture, write_sources, write_trial

if TYPE_CHECKING:
    from testbed.records import RecordWriter

__all__ = ["Broadcasting", "broadcast_of"]

TRIAL_TIMEOUT_S = 3600.0
MODELS_FILE = "~/.testbed/models.json"


@dataclass(frozen=True, eq=False)
class Broadcasting:
    """Semantic broadcast, ready to be planned; see :class:`testbed.campaigns.work.Work`.

    Attributes:
        run: The run's name.
        campaign: The campaign file.
        inventory: The fleet: the users' devices and the base station.
        all_trials: All trials of the run, in order.
        sets: The pairs of each set of images.
        models: The models by name.
    """

    run: str
    campaign: BroadcastCampaign
    inventory: Inventory
    all_trials: Sequence[Trial]
    sets: Mapping[str, Pairs]
    models: Mapping[str, Model]
    noun: str = "models"

    def objects(self) -> Mapping[str, Path]:
        """Return the models' weights."""
        return {model.object: model.weights for model in self.models.values()}

    def wanted(self, device: str) -> Mapping[str, Any]:
        """Return the list of the models that a receiver is to hold: all of them."""
        weights = [{"object": model.object, "bytes": model.bytes} for model in self.models.values()]
        return {"objects": weights, "models": {name: model.listed() for name, model in self.models.items()}}

    def files(self, at: Place) -> Iterator[Step]:
        """Yield the list of models, the users, their images, and the specification."""
        bs = at.lab.bs.name
        yield Put(bs, json_bytes(self.wanted(bs)), MODELS_FILE, "models")
        hosts, port = self.inventory.hosts, self.inventory.network.data_port
        users = [
            {"name": name, "address": hosts[name].address, "port": port, "user": number}
            for number, name in enumerate(self.campaign.users, 1)
        ]
        yield Put(bs, json_bytes({"devices": users}), "~/.testbed/devices.json", "devices")
        for name, pairs in self.sets.items():
            content = np.ascontiguousarray(pairs.pixels).tobytes()
            yield Put(bs, content, image_file(at.remote, name), "images")
        spec = broadcast_spec(self.campaign, self.run, at.remote, self._on_rack, self.sets)
        yield Put(bs, json_bytes(spec), f"{at.remote}/spec.json", "trials")

    @property
    def _on_rack(self) -> list[Trial]:
        return [trial for trial in self.all_trials if self.campaign.scheme(trial.policy).kind == "learned"]

    def device_service(self, at: Place, device: Host) -> Step:
        """Return what starts a user's receiver."""
        receiver = ["--models", MODELS_FILE, "--folder", at.remote, *at.lab.credentials()]
        receiver += ["--listen", f"0.0.0.0:{self.inventory.network.data_port}", *at.lab.paced(device)]
        return at.lab.service(device, "receiver", "semcast.receiver", *receiver, *at.lab.metrics(device))

    def base_station_service(self, at: Place) -> Step:
        """Return what starts the transmitter."""
        transmitter = ["--models", MODELS_FILE, "--devices", "~/.testbed/devices.json"]
        transmitter += [*at.lab.credentials(), *at.lab.controlled(), *at.lab.metrics(at.lab.bs)]
        if self.inventory.network.multicast is not None:
            transmitter += ["--multicast", self.inventory.network.multicast]
        return at.lab.service(at.lab.bs, "base-station", "semcast.transmitter", *transmitter)

    def before_trials(self, at: Place) -> list[Phase]:
        """Return nothing."""
        return []

    def request(self, spec: str, trial: Trial) -> tuple[list[str], float]:
        """Return what the transmitter is asked to do in a trial."""
        return ["trial", "--spec", spec, "--trial", trial.name], TRIAL_TIMEOUT_S

    def fetches(self, at: Place, trial: Trial) -> Sequence[Fetch]:
        """Return what each receiver kept of a trial: the images that it decoded."""
        records = at.folder / "fetched" / trial.name
        return tuple(
            Fetch(name, f"{at.remote}/{trial.name}", pixel_folder(records, name), "decoded images")
            for name in self.campaign.users
        )

    def read(self, fetched: Path, run: str, trial: str, started_unix: float) -> Tables:
        """Return the tables of a trial; its images are measured here, and those that are shown become pictures."""
        tables, images = received_tables(fetched, run, trial, started_unix, spec=self._spec, sets=self.sets)
        shown = self._stage.shown if self._spec.trial(trial).repeat == 0 else frozenset()
        for (frame, user), pixels in images.items():
            if frame in shown:  # frames of the first model have their block's number
                write_picture(fetched.parent.parent / PICTURES, f"{trial}-{frame}-{user}", pixels)
        for name in self.campaign.users:  # they are many, and what they came to is known
            shutil.rmtree(pixel_folder(fetched, name))
        return tables

    @cached_property
    def _spec(self) -> Spec:
        return spec_of(broadcast_spec(self.campaign, self.run, "~", self._on_rack, self.sets), Path())

    @cached_property
    def _stage(self) -> Stage:
        return stage_of(self.campaign, self.run, self.sets, self.models)

    def begin(self, records: RecordWriter) -> None:
        """Write the table of the schemes, and the images that are shown as they were sent."""
        records.write("schemes", "campaign", scheme_rows(self.campaign, self.models))
        stage = self._stage
        write_sources(records.folder / PICTURES, self.sets, stage.spec.blocks, stage.shown)

    def compute(self, trial: Trial, records: RecordWriter, now_s: float) -> None:
        """Play a trial on paper, and write it."""
        write_trial(trial, play_trial(self._stage, trial), records, now_s, now_s)

    def describe(self) -> dict[str, Any]:
        """Return the models and the images."""
        return described(self.models, self.sets)

    def changed(self, manifest: Mapping[str, Any]) -> str:
        """Return the first model or set of images that has changed."""
        now = self.describe()
        for key, what in (("models", "the model"), ("images", "the set of images")):
            for name, known in manifest[key].items():
                if now[key].get(name) != known:
                    return f"{what} {name}"
        return ""


def broadcast_of(
    run: str, campaign: BroadcastCampaign, inventory: Inventory, trials: Sequence[Trial]
) -> Broadcasting:
    """Return the broadcast of a run.

    Args:
        run: The run's name.
        campaign: The campaign.
        inventory: The fleet.
        trials: All trials of the run.

    Raises:
        InputError: Images or models cannot be read.
    """
    sets = sets_of(campaign.images, len(campaign.users))
    return Broadcasting(run, campaign, inventory, trials, sets, models_of(campaign))
