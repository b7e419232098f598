"""A run read back: its manifest, its tables as pandas data frames, and the energy that follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from testbed.errors import InputError, TestbedError
from testbed.records.energy import run_energy
from testbed.records.image_energy import image_energy
from testbed.records.iterations import Numbered, numbered
from testbed.records.manifest import devices_of, read_manifest
from testbed.records.schema import TABLES, Table, arrow_schema

__all__ = ["Run", "load_run", "read_table"]


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        path: Its folder.
        manifest: What it was, on what, and how it ended.
        trials: One row a trial.
        requests: One row a request.
        tokens: One row a generated token.
        dispatches: One row a dispatch, those of quality passes included (their trial begins with ``quality-``).
        events: One row a device that was lost, late or back again.
        selection: One row a trial, stage, layer and device: what was sent and what the policy dropped.
        routing: One row a trial, stage, layer and expert: how often the router asked for it.
        clocks: One row an estimate of a device's clock.
        quality: One row a window of held-out text and policy, and scenario where the policy looks at the links.
        choices: One row a multiple-choice question and policy, and scenario as in ``quality``.
        schemes: One row a scheme of a broadcast campaign and model that plays it.
        frames: One row a frame of a broadcast.
        images: One row a user's image of a frame.
        links: One row a rate that came into force on a link, or a probe of it.
        traffic: One row a trial, device and direction: the kernel's count of bytes beside the records'.
        throughput: One row a look at the counters of a link.
        radio: One row a reading of a device's wireless interface.
        power: One row a reading of a rail.
        boards: One row a value of jtop.
    """

    path: Path
    manifest: dict[str, Any] = field(repr=False)
    trials: pd.DataFrame = field(repr=False)
    requests: pd.DataFrame = field(repr=False)
    tokens: pd.DataFrame = field(repr=False)
    dispatches: pd.DataFrame = field(repr=False)
    events: pd.DataFrame = field(repr=False)
    selection: pd.DataFrame = field(repr=False)
    routing: pd.DataFrame = field(repr=False)
    clocks: pd.DataFrame = field(repr=False)
    quality: pd.DataFrame = field(repr=False)
    choices: pd.DataFrame = field(repr=False)
    schemes: pd.DataFrame = field(repr=False)
    frames: pd.DataFrame = field(repr=False)
    images: pd.DataFrame = field(repr=False)
    links: pd.DataFrame = field(repr=False)
    traffic: pd.DataFrame = field(repr=False)
    throughput: pd.DataFrame = field(repr=False)
    radio: pd.DataFrame = field(repr=False)
    power: pd.DataFrame = field(repr=False)
    boards: pd.DataFrame = field(repr=False)

    @property
    def name(self) -> str:
        """Return the run's name."""
        return str(self.manifest["run"])

    @property
    def broadcast(self) -> bool:
        """Return whether its workload is semantic broadcast: its manifest says so, or its records do."""
        return self.manifest.get("workload") == "broadcast" or len(self.frames) > 0

    @cached_property
    def devices(self) -> list[str]:
        """Return the devices in inventory order, then those that only the records name."""
        names = dict.fromkeys(devices_of(self.manifest))
        for frame in (self.dispatches, self.images, self.power, self.links, self.throughput, self.radio):
            names.update(dict.fromkeys(str(name) for name in frame["device"].dropna().unique()))
        return list(names)

    @cached_property
    def numbered(self) -> Numbered:
        """Return the tokens and dispatches of trials, each with the number of its pass through the model."""
        return numbered(self)

    @cached_property
    def completed(self) -> pd.DataFrame:
        """Return the completed trials in the order of running."""
        return self.trials[self.trials["state"] == "completed"].reset_index(drop=True)

    def energy(self) -> pd.DataFrame:
        """Return the energy of each completed trial and device.

        See :func:`testbed.records.energy.run_energy`, and of a broadcast :func:`testbed.records.image_energy`.
        """
        return image_energy(self) if self.broadcast else run_energy(self)

    def tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield each table's name and frame."""
        for name in TABLES:
            yield name, getattr(self, name)

    def export_csv(self, folder: Path | str) -> list[Path]:
        """Write each table, and the energy, as one CSV file; the units stand in the column names.

        Args:
            folder: Where to; made if it is not there.

        Returns:
            The files.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        paths: list[Path] = []
        for name, frame in [*self.tables(), ("energy", self.energy())]:
            path = target / f"{name}.csv"
            frame.to_csv(path, index=False)
            paths.append(path)
        return paths


def load_run(path: Path | str) -> Run:
    """Read a run, finished or not.

    Args:
        path: The run's folder.

    Raises:
        InputError: It is not the folder of a run, or a file of it is damaged.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    return Run(folder, manifest, **{name: read_table(folder, table) for name, table in TABLES.items()})


def read_table(folder: Path, table: Table) -> pd.DataFrame:
    """Return one table of a run, in time or trial order; with all its columns and types even where it is empty.

    Args:
        folder: The run's folder.
        table: The table's declaration.
    """
    schema = arrow_schema(table)
    parts = [
        _read_part(path, table, schema) for path in sorted((folder / "tables" / table.name).glob("*.parquet"))
    ]
    data = pa.concat_tables(parts) if parts else schema.empty_table()
    extension = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frame = data.to_pandas(types_mapper=extension.get)
    plain = {"int64": "int64", "bool": "bool", "float64": "float64"}
    for column in table.columns:
        if column.kind == "string":
            frame[column.name] = frame[column.name].astype("str")
        elif not column.nullable:
            frame[column.name] = frame[column.name].astype(plain[column.kind])
    order = [name for name in ("order", "t_s") if name in frame.columns]
    if order and table.name != "tokens":
        frame = frame.sort_values(order, kind="stable").reset_index(drop=True)
    return frame


def _read_part(path: Path, table: Table, schema: pa.Schema) -> pa.Table:
    """Read one part as the schema of today: a nullable column that an older run has not is null."""
    try:
        # ParquetFile, since read_table() would take a folder named key=value for a partition.
        with pq.ParquetFile(path) as file:
            data = file.read()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {error}") from error
    arrays = []
    for column, declared in zip(table.columns, schema, strict=True):
        if column.name in data.column_names:
            arrays.append(data.column(column.name).cast(declared.type))
        elif column.nullable:
            arrays.append(pa.nulls(data.num_rows, declared.type))
        else:
            raise TestbedError(
                f"{path}: the column {column.name} is missing: the run is older than this testbed can read"
            )
    return pa.table(arrays, schema=schema)
