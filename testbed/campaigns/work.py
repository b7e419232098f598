"""What a workload adds to the plan of a run. Everything else is the same for all of them (`plan` and `runner`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from testbed.campaigns.lab_steps import LabSteps
from testbed.campaigns.phases import Phase
from testbed.campaigns.trials import Trial
from testbed.config.inventory import Host
from testbed.hosts.steps import Fetch, Step

if TYPE_CHECKING:
    import pandas as pd

    from testbed.records import RecordWriter

__all__ = ["Place", "Tables", "Work", "add_tables"]

Tables = Mapping[str, "list[dict[str, Any]] | pd.DataFrame"]


class Place(Protocol):
    """Where a run's files lie."""

    @property
    def lab(self) -> LabSteps:
        """The steps that every use of the lab is made of."""

    @property
    def remote(self) -> str:
        """The run's folder on every host."""

    @property
    def folder(self) -> Path:
        """The run's folder here."""


class Work(Protocol):
    """One workload, ready to be planned: plain data, and functions of it."""

    @property
    def noun(self) -> str:
        """What devices pull before they serve: ``shards`` or ``models``."""

    def objects(self) -> Mapping[str, Path]:
        """Return the files that the base station is to hold, by the sha256 of their content."""

    def wanted(self, device: str) -> Mapping[str, Any]:
        """Return the list of the objects that a device is to hold."""

    def files(self, at: Place) -> Iterator[Step]:
        """Yield what else is staged, the specification ``spec.json`` of the trials among it."""

    def device_service(self, at: Place, device: Host) -> Step:
        """Return what starts a device's part."""

    def base_station_service(self, at: Place) -> Step:
        """Return what starts the base station's part."""

    def before_trials(self, at: Place) -> list[Phase]:
        """Return what is measured before the first trial."""

    def request(self, spec: str, trial: Trial) -> tuple[list[str], float]:
        """Return what the base station is asked to do in a trial, and the most seconds that it may take.

        Args:
            spec: The specification on the base station.
            trial: The trial.
        """

    def fetches(self, at: Place, trial: Trial) -> Sequence[Fetch]:
        """Return what is fetched from devices when a trial is done, beside the base station's records."""

    def read(self, fetched: Path, run: str, trial: str, started_unix: float) -> Tables:
        """Return the tables of what was fetched of a trial.

        Args:
            fetched: The folder of the base station's records; what :meth:`fetches` brought lies beside it.
            run: The run's name.
            trial: The trial's name.
            started_unix: The run's start in unix seconds on the base station's clock.

        Raises:
            InputError: A record does not fit its table.
        """

    def begin(self, records: RecordWriter) -> None:
        """Write the tables that are known before the first trial."""

    def compute(self, trial: Trial, records: RecordWriter, now_s: float) -> None:
        """Compute a trial that needs no rack, and write it.

        Args:
            trial: The trial.
            records: The run's tables.
            now_s: Seconds since the run's start.
        """

    def describe(self) -> dict[str, Any]:
        """Return what the run's manifest says of the workload, without secrets."""

    def changed(self, manifest: Mapping[str, Any]) -> str:
        """Return what is not as it was when a run was started, for people; nothing where all is.

        Args:
            manifest: The manifest of that run.
        """


def add_tables(records: RecordWriter, part: str, tables: Tables) -> None:
    """Write one part of several tables."""
    for table, rows in tables.items():
        records.write(table, part, rows)
