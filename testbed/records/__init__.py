"""The results on disk: Parquet tables and a manifest, written as a run goes and read back as pandas data frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from testbed.records.listing import RunSummary, find_run, list_runs
from testbed.records.manifest import read_manifest, write_manifest
from testbed.records.payload import read_payload_records
from testbed.records.schema import TABLES
from testbed.records.writer import RecordWriter

if TYPE_CHECKING:
    from testbed.records.run import Run, load_run

__all__ = [
    "TABLES",
    "RecordWriter",
    "Run",
    "RunSummary",
    "find_run",
    "list_runs",
    "load_run",
    "read_manifest",
    "read_payload_records",
    "write_manifest",
]


def __getattr__(name: str) -> Any:
    """Import what needs pandas when it is first asked for: most verbs do without."""
    if name in {"Run", "load_run"}:
        from testbed.records import run

        return getattr(run, name)
    raise AttributeError(f"module 'testbed.records' has no attribute {name!r}")
